#!/bin/bash
# One node, all its GPUs share every sequence; parameters, gradients and moments divided by FSDP2.
#
# @HEADER_ONE@
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# A rank that fails ends the others; torchrun then starts all of them again, from the last checkpoint.
exec torchrun --standalone --nproc-per-node "${GPUS:-8}" --max-restarts "${RESTARTS:-3}" \
    "$here/train.py" --state fsdp2 "$@"

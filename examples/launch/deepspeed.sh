#!/bin/bash
# One node with DeepSpeed's ZeRO stage 3 instead of FSDP2: deepspeed_zero3.json beside this.
#
# @HEADER_ONE@
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

exec torchrun --standalone --nproc-per-node "${GPUS:-8}" --max-restarts "${RESTARTS:-3}" \
    "$here/train.py" --state zero3 --deepspeed "$here/deepspeed_zero3.json" "$@"

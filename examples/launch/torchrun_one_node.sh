#!/bin/bash
# One node, all its GPUs share every sequence; parameters, gradients and moments divided by FSDP2.
#
# @HEADER_ONE@
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# A rank that fails ends the others; torchrun then starts all of them again, from the last checkpoint.
# Else a restart may look for processes of the run before, whose addresses are still in the store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec python -m torch.distributed.run --standalone --nproc-per-node "${GPUS:-8}" --max-restarts "${RESTARTS:-3}" \
    "$here/train.py" --state fsdp2 "$@"

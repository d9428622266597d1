#!/bin/bash
# One node with DeepSpeed's ZeRO stage 3 instead of FSDP2: deepspeed_zero3.json beside this.
#
# @HEADER_ONE@
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# Else a restart may look for processes of the run before, whose addresses are still in the store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec python -m torch.distributed.run --standalone --nproc-per-node "${GPUS:-8}" --max-restarts "${RESTARTS:-3}" \
    "$here/train.py" --state zero3 --deepspeed "$here/deepspeed_zero3.json" "$@"

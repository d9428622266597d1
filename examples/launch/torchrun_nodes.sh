#!/bin/bash
# Several nodes: the GPUs of a node share a sequence, the nodes train on sequences of their own.
# Run it on every node, with the name of one of them:  HEAD=node0 NODES=4 torchrun_nodes.sh ...
#
# @HEADER_NODES@
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# Else a restart may look for processes of the run before, whose addresses are still in the store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec python -m torch.distributed.run --nnodes "${NODES:-2}" --nproc-per-node "${GPUS:-8}" \
    --rdzv-backend c10d --rdzv-id "${JOB:-memo}" --rdzv-endpoint "${HEAD:?a node of them}:${PORT:-29400}" \
    --max-restarts "${RESTARTS:-3}" \
    "$here/train.py" --sp "${GPUS:-8}" --state fsdp2 "$@"

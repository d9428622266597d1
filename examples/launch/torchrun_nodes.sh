#!/bin/bash
# Several nodes: the GPUs of a node share a sequence, the nodes train on sequences of their own.
# Run it on every node, with the name of one of them:  HEAD=node0 NODES=4 torchrun_nodes.sh ...
#
# Environment: nodes of 8 GPUs of 80 GB and 1.6 TiB of host memory for swapped tensors; torch 2.11
#   or newer with NCCL, Transformers. Tried with gloo on CPUs only.
# Longest sequence: 3,702,968 tokens.
# Device memory: 74.9 GiB of each GPU at 1,048,576 tokens, and 209 GiB of the host's.
# Speed: 210 s a step of 2 sequences of 1,048,576 tokens, 624 tokens a second and GPU.
# All figures are predictions for Llama 3 8B in bf16 on 2 nodes of H100s:
#   memo-plan make --model llama-3-8b --seq-len 1M --gpus 16 --batch 2 --hardware h100-80g-x8 \
#       --zero 3 --sequence 8 --attention-once   (the longest: memo-plan max-seq)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# Else a restart may look for processes of the run before, whose addresses are still in the store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec python -m torch.distributed.run --nnodes "${NODES:-2}" --nproc-per-node "${GPUS:-8}" \
    --rdzv-backend c10d --rdzv-id "${JOB:-memo}" --rdzv-endpoint "${HEAD:?a node of them}:${PORT:-29400}" \
    --max-restarts "${RESTARTS:-3}" \
    "$here/train.py" --sp "${GPUS:-8}" --state fsdp2 "$@"

#!/bin/bash
# One node, all its GPUs share every sequence; parameters, gradients and moments divided by FSDP2.
#
# Environment: 8 GPUs of 80 GB and 1.6 TiB of host memory for swapped tensors in one node; torch 2.11
#   or newer with NCCL, Transformers. Tried with gloo on CPUs only.
# Longest sequence: 3,617,528 tokens.
# Device memory: 74.9 GiB of each GPU at 1,048,576 tokens, and 209 GiB of the host's.
# Speed: 210 s a step at 1,048,576 tokens, 624 tokens a second and GPU.
# All figures are predictions for Llama 3 8B in bf16 on H100s:
#   memo-plan make --model llama-3-8b --seq-len 1M --gpus 8 --hardware h100-80g-x8 --zero 3 \
#       --sequence 8 --attention-once          (the longest: memo-plan max-seq)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# A rank that fails ends the others; torchrun then starts all of them again, from the last checkpoint.
# Else a restart may look for processes of the run before, whose addresses are still in the store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec python -m torch.distributed.run --standalone --nproc-per-node "${GPUS:-8}" --max-restarts "${RESTARTS:-3}" \
    "$here/train.py" --state fsdp2 "$@"

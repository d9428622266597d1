#!/bin/bash
#SBATCH --job-name=memo-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
# The nodes of a Slurm job: one torchrun on each, which starts a process for each of its GPUs.
#   sbatch examples/launch/slurm.sh --model ./model --seq-len 1048576 --bf16 --checkpoints ./run
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
# Slurm runs a copy of this file, so the folder is told or that of the submission.
here=${MEMO_LAUNCH:-$SLURM_SUBMIT_DIR/examples/launch}

export HEAD=${HEAD:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export NODES=$SLURM_JOB_NUM_NODES JOB=$SLURM_JOB_ID
srun --kill-on-bad-exit=1 bash "$here/torchrun_nodes.sh" "$@"

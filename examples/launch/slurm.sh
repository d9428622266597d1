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
# @HEADER_NODES@
set -euo pipefail
# Slurm runs a copy of this file, so the folder is told or that of the submission.
here=${MEMO_LAUNCH:-$SLURM_SUBMIT_DIR/examples/launch}

export HEAD=${HEAD:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export NODES=$SLURM_JOB_NUM_NODES JOB=$SLURM_JOB_ID
srun --kill-on-bad-exit=1 bash "$here/torchrun_nodes.sh" "$@"

#!/bin/bash
# One run on several processes of a node: sbatch docs/slurm/torchrun.sh RECIPE --out /shared/FOLDER --seed 0
#SBATCH --job-name=run
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=2
#SBATCH --time=24:00:00
#SBATCH --requeue
# A job that is started again continues from the last checkpoint.
set -euo pipefail
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # which srun does not take from the job since SLURM 22.05
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / 2))
srun torchrun --standalone --nproc-per-node 2 -m mtanytime run "$@"

#!/bin/bash
# A sweep on the nodes of a job: sbatch docs/slurm/sweep.sh RECIPE --out /shared/FOLDER --seed 0 1 2 --over …
#SBATCH --job-name=sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# With GPUs: add #SBATCH --gpus-per-node=4 and, to the sweep's options, --gpus 1 or a fraction.
set -euo pipefail
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # which srun does not take from the job since SLURM 22.05
export RAY_USAGE_STATS_ENABLED=0

port=6379
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | cut -d ' ' -f 1):$port"

srun --nodes=1 --ntasks=1 -w "$head" --overlap \
    ray start --head --port "$port" --num-cpus "$SLURM_CPUS_PER_TASK" --include-dashboard=false --block &
sleep 20
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude "$head" --overlap \
        ray start --address "$address" --num-cpus "$SLURM_CPUS_PER_TASK" --block &
    sleep 20
fi

# Two minutes before the end of the time, SLURM sends TERM: the cells save their checkpoints, and the same job continues.
# The batch script runs on the first node, which is the head.
python -m mtanytime sweep "$@" --on "$address" &
sweep=$!
trap 'kill -TERM "$sweep"' TERM
status=0
wait "$sweep" || status=$?
wait "$sweep" || status=$?  # the first wait ends early at TERM
exit "$status"

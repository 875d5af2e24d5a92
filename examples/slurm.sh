#!/bin/bash
# nncift on the machines of a Slurm job, which Ray joins into a cluster as long as the job runs:
#
#     sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=64 examples/slurm.sh pool.jsonl --dtype bfloat16 --output /scratch/run
#
# What follows the script's name goes to `nncift select`. Submit it from an environment in which `nncift` and `ray` are on the
# PATH, at the same place on every machine. A job that is requeued goes on where it was.
#SBATCH --job-name=nncift
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
set -eu

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$first:$((20000 + SLURM_JOB_ID % 10000))
cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}

export SRUN_CPUS_PER_TASK=$cpus                    # since 22.05 srun takes the number from nowhere else
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600  # seconds; Python from a shared file system takes longer than Ray's 30

srun ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$cpus" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" -- \
    nncift select "$@" --ray-address "$address"

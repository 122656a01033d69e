#!/usr/bin/env bash
# Submit a training run to SLURM, one process for each GPU:
#
#   launch/slurm.sh [--dry_run] [flags of vpjax.train]
#
# SLURM connects the processes. It sends SIGTERM two minutes before the time limit and when the job is preempted,
# and a checkpoint is saved. A preempted job is queued again and continues by itself; after the time limit, the same
# command continues the run. Follow it with: tail -f "$LOGS"/vpjax-JOBID.log
# Environment: NODES (1), GPUS of a node (8), CPUS of a process (8), HOURS (24), PARTITION and ACCOUNT (by default
# those of the cluster), LOGS (.), PYTHON (python).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cpus="--cpus-per-task=${CPUS:-8}"
options=(
  --job-name=vpjax
  --nodes="${NODES:-1}"
  --ntasks-per-node="${GPUS:-8}"
  --gpus-per-node="${GPUS:-8}"
  "$cpus"
  --time="${HOURS:-24}:00:00"
  --output="${LOGS:-.}/vpjax-%j.log"
  --open-mode=append
  --requeue
  --signal=TERM@120
)
[[ -z "${PARTITION:-}" ]] || options+=(--partition="$PARTITION")
[[ -z "${ACCOUNT:-}" ]] || options+=(--account="$ACCOUNT")

# srun takes the CPUs of a process from sbatch no longer (Slurm 22.05): without the flag each would have one.
run sbatch "${options[@]}" --wrap="$(quoted srun "$cpus" "${PYTHON:-python}" -m vpjax.train "$@")"

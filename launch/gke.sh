#!/usr/bin/env bash
# A training run on TPU slices of a GKE cluster, as a JobSet created by XPK:
#
#   launch/gke.sh [--dry_run] run [flags of vpjax.train]    start the run and follow its logs
#   launch/gke.sh [--dry_run] stop                          delete the run
#
# The working tree is copied into the image. When a slice is preempted, the JobSet restarts, up to RESTARTS times,
# and the run continues after its last checkpoint: --workdir must be on a disk that all pods share.
# Environment: CLUSTER, PROJECT, ZONE, TYPE (such as v5litepod-64), RUN (its name); SLICES (1), RESTARTS (100),
# GRACE (300, the seconds in which a pod that is told to stop may save), IMAGE, the base image (python:3.11).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

action=${1:-}
shift || true
need CLUSTER PROJECT ZONE RUN
where=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" --workload="$RUN")

case "$action" in
  run)
    need TYPE
    run xpk workload create "${where[@]}" \
      --tpu-type="$TYPE" \
      --num-slices="${SLICES:-1}" \
      --max-restarts="${RESTARTS:-100}" \
      --termination-grace-period-seconds="${GRACE:-300}" \
      --base-docker-image="${IMAGE:-python:3.11}" \
      --script-dir="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" \
      --command="pip install -e '.[tpu]' && $(quoted python -m vpjax.train "$@")"
    # Process 0, which alone prints, runs in the first pod of the first slice. It has a log once it has started.
    first="jobset.sigs.k8s.io/jobset-name=$RUN,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    while ((!DRY_RUN)); do
      phase=$(kubectl get pods --selector="$first" --output=jsonpath='{.items[*].status.phase}')
      [[ -z "$phase" || "$phase" == Pending ]] || break
      sleep 10
    done
    run kubectl logs --follow --selector="$first"
    ;;
  stop)
    run xpk workload delete "${where[@]}"
    ;;
  *)
    fail "usage: launch/gke.sh [--dry_run] run [flags of vpjax.train] | stop"
    ;;
esac

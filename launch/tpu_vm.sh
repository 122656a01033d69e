#!/usr/bin/env bash
# A training run on a Cloud TPU VM or pod slice:
#
#   launch/tpu_vm.sh [--dry_run] run [flags of vpjax.train]   create or reuse the TPU, install, run, follow the log
#   launch/tpu_vm.sh [--dry_run] stop                         save a checkpoint and end the run
#   launch/tpu_vm.sh [--dry_run] delete                       delete the TPU
#
# A preempted spot TPU is created again, and the run continues after its last checkpoint. The disks of a TPU are
# deleted with it and are not shared: --workdir must be inside /mnt/vpjax, where BUCKET is mounted on every worker.
# Environment: TPU (its name), ZONE, TYPE (such as v5litepod-64), RUNTIME (such as v2-alpha-tpuv5-lite), BUCKET (of
# Cloud Storage); SPOT (1: use a spot TPU), PROJECT (by default that of gcloud).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

action=${1:-}
shift || true
need TPU ZONE
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

state() { # READY, CREATING, PREEMPTED, ...; empty if there is no such TPU
  ((DRY_RUN)) || gcloud compute tpus tpu-vm describe "$TPU" "${where[@]}" --format='value(state)' 2>/dev/null || true
}

everywhere() { # run a shell command on all workers
  run gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker=all --command="$1"
}

delete() {
  run gcloud compute tpus tpu-vm delete "$TPU" "${where[@]}" --quiet
}

create() {
  run gcloud compute tpus tpu-vm create "$TPU" "${where[@]}" \
    --accelerator-type="$TYPE" --version="$RUNTIME" ${SPOT:+--spot}
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$TPU:vpjax.tar.gz" "${where[@]}" --worker=all
  rm -f "$archive"
  # The images have Python 3.10; uv brings a newer one.
  everywhere "mkdir -p vpjax && cd vpjax && tar -xzf ../vpjax.tar.gz && python3 -m pip install --user --quiet uv &&
    ~/.local/bin/uv venv --quiet --allow-existing --python=3.12 venv &&
    ~/.local/bin/uv pip install --quiet --python=venv -e '.[tpu]'"
  everywhere "sudo mkdir -p /mnt/vpjax && sudo chown \$USER /mnt/vpjax && (mountpoint -q /mnt/vpjax ||
    gcsfuse --implicit-dirs --rename-dir-limit=1000000 $(quoted "$BUCKET") /mnt/vpjax)"
}

# Start the run on all workers, unless it runs already, and follow the first worker's log to its end. Succeeds if
# the run does.
follow() {
  local train
  train="rm -f code; $(quoted venv/bin/python -m vpjax.train "$@") > log 2>&1; echo \$? > code"
  everywhere "cd vpjax && (nohup flock --nonblock lock sh -c $(quoted "$train") > /dev/null 2>&1 &) && sleep 5"
  # shellcheck disable=SC2016 # expands on the worker
  run gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker=0 --command='cd vpjax &&
    (tail -n +1 -f log & until [ -f code ]; do sleep 5; done; kill $!; exit "$(cat code)")'
}

case "$action" in
  run)
    need TYPE RUNTIME BUCKET
    while true; do
      case "$(state)" in
        READY) ;;
        "") create ;;
        PREEMPTED | TERMINATED | STOPPED) delete && create ;;
        *) fail "TPU $TPU is $(state): wait, or delete it" ;;
      esac
      install
      if follow "$@"; then
        break
      elif [[ "$(state)" == READY ]]; then
        fail "the run or its setup failed; $TPU is still there and still costs: run continues, delete ends it"
      fi
      echo "$TPU is lost ($(state)): a new one continues the run" >&2
    done
    ;;
  stop)
    # Python alone: the shell around it has the same words in its command, and is to write the code of its end.
    everywhere "pkill -TERM -f '^venv/bin/python -m vpjax.train' || true"
    ;;
  delete)
    delete
    ;;
  *)
    fail "usage: launch/tpu_vm.sh [--dry_run] run [flags of vpjax.train] | stop | delete"
    ;;
esac

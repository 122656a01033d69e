#!/usr/bin/env bash
# One training run as N processes on this machine:
#
#   launch/local.sh [--dry_run] N [flags of vpjax.train]
#
# Ctrl-C or SIGTERM saves a checkpoint on all of them. When one fails, the others have GRACE seconds to end.
# Environment: PYTHON, PORT of process 0, GRACE; the variables of JAX (XLA_FLAGS, JAX_PLATFORMS, ...) are passed on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

count=${1:-}
[[ "$count" =~ ^[1-9][0-9]*$ ]] || fail "usage: launch/local.sh [--dry_run] N [flags of vpjax.train]"
shift
PYTHON=${PYTHON:-python}
free_port='import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
PORT=${PORT:-$("$PYTHON" -c "$free_port")}

stopping=0
trap 'stopping=1' INT TERM
pids=()
for ((i = 0; i < count; i++)); do
  command=("$PYTHON" -m vpjax.train --coordinator="localhost:$PORT" --processes="$count" --process="$i" "$@")
  show "${command[@]}"
  if ((!DRY_RUN)); then
    "${command[@]}" & # not by `run`, because its shell would receive the signals
    pids+=($!)
  fi
done

running() {
  kill -0 ${pids[@]+"${pids[@]}"} 2>/dev/null
}

killer=
while running; do
  # `wait -n` returns when a process ends: 0 if it succeeded, else the process failed or a signal arrived.
  wait -n && continue
  if ((stopping)); then
    kill -TERM "${pids[@]}" 2>/dev/null || true
  elif [[ -z "$killer" ]]; then
    echo "a process failed: the others end now, or are killed in ${GRACE:=60} s" >&2
    { sleep "$GRACE" && kill -KILL "${pids[@]}"; } 2>/dev/null &
    killer=$!
  fi
done
[[ -z "$killer" ]] || kill "$killer" 2>/dev/null || true

code=0
for pid in ${pids[@]+"${pids[@]}"}; do
  wait "$pid" || code=$?
done
exit "$code"

# Sourced by the launchers in this folder: --dry_run, required variables, and printing of commands.
# shellcheck shell=bash

DRY_RUN=0
if [[ "${1:-}" == --dry_run ]]; then
  DRY_RUN=1
  shift
fi

# Print a command on stderr, quoted for a shell.
show() {
  printf '+ %s\n' "$(quoted "$@")" >&2
}

# Print a command and, unless this is a dry run, run it.
run() {
  show "$@"
  ((DRY_RUN)) || "$@"
}

# A command on one line, quoted for a shell.
quoted() {
  local word line=
  for word in "$@"; do
    [[ "$word" =~ ^[a-zA-Z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# Stop unless each of the environment variables named is set.
need() {
  local name
  for name in "$@"; do
    [[ -n "${!name:-}" ]] || fail "set the environment variable $name (see launch/README.md)"
  done
}

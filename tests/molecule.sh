#!/usr/bin/env bash
# Run the scenarios, two at a time, in the order in which the shared environment fills; a list stops at its first failure.
set -euo pipefail
cd "$(dirname "$0")/.."
molecule/shared/setup.sh
mkdir -p .cache/molecule

scenario() {
  local started=$SECONDS log=".cache/molecule/$1.log"
  # Quiet while all is well; the whole log of a scenario that fails.
  if ! ANSIBLE_FORCE_COLOR=0 NO_COLOR=1 molecule test -s "$1" > "$log" 2>&1; then
    cat "$log"
    echo "molecule $1: FAILED after $((SECONDS - started)) s"
    return 1
  fi
  echo "molecule $1: $(grep -oE '[0-9]+ passed' "$log" | tail -1), $((SECONDS - started)) s"
}

one_by_one() {
  local name
  for name in "$@"; do scenario "$name" || return 1; done
}

if [ $# -gt 0 ]; then
  one_by_one "$@"
  exit
fi
# Two lists of scenarios, one beside the other.
beside() {
  local lane failed=
  # shellcheck disable=SC2086 # lists of words
  one_by_one $1 &
  lane=$!
  # shellcheck disable=SC2086
  one_by_one $2 || failed=yes
  wait "$lane" || failed=yes
  [ -z "$failed" ]
}

one_by_one gpu_host  # it makes the image of the hosts
# ray_serve is with those that have nothing to do with the shared environment: it sees what others write there.
beside "conda fan_out firewall load_test gateway" "python_env model_store ray_node ray_serve"
beside "faults upgrade preflight" "cluster security ray_health monitoring"

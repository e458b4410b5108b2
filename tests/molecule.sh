#!/usr/bin/env bash
# Run the scenarios that are named, one after the other; without a name those of `make test`, two at a time; `rest`: without
# gpu_host and python_env, which come first, as they make what the others use: the hosts' image, the shared environment.
set -euo pipefail
cd "$(dirname "$0")/.."
molecule/shared/setup.sh
mkdir -p .cache/molecule

scenario() {
  local started=$SECONDS log=".cache/molecule/$1.log"
  # The containers together weigh as much as one process of the controller, which has many: an engine's clients would wait.
  # Quiet while all is well; the whole log of a scenario that fails.
  if ! ANSIBLE_FORCE_COLOR=0 NO_COLOR=1 nice -n 5 molecule test -s "$1" > "$log" 2>&1; then
    cat "$log"
    echo "molecule $1: FAILED after $((SECONDS - started)) s"
    return 1
  fi
  echo "molecule $1: $(grep -oE '[0-9]+ passed' "$log" | tail -1), $((SECONDS - started)) s"
}

if [ $# -gt 0 ] && [ "$1" != rest ]; then
  for name in "$@"; do scenario "$name"; done
  exit
fi
[ $# -gt 0 ] || { scenario gpu_host; scenario python_env; }

# First what fills the shared environment. ray_serve sees what others write there: what comes just before and after it has
# nothing to do with it. The longest of the rest come first, so that both workers are busy to the end.
folder=$(mktemp --directory)
trap 'rm -r "$folder"' EXIT
queue=$folder/queue
printf '%s\n' conda model_store fan_out firewall ray_serve gateway load_test faults upgrade cluster container security \
  ray_node ray_health monitoring preflight > "$queue"

# The first name of the queue, which it loses; fails when there is none.
next() {
  flock "$folder" sh -c 'test -s "$1" && sed -n 1p "$1" && sed -i 1d "$1"' next "$queue"
}

# What runs is finished, nothing new begins.
stop() {
  flock "$folder" sh -c ': > "$1"' stop "$queue"
}

work() {
  local name
  while name=$(next); do
    scenario "$name" || { stop; return 1; }
  done
}

work & beside=$!
failed=
work || failed=yes
wait "$beside" || failed=yes
[ -z "$failed" ]

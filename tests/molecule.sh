#!/usr/bin/env bash
# Run the scenarios, in the order in which the shared environment fills; stop at the first failure. Those that need little
# of the machine, and do not need one another, run beside others.
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
one_by_one gpu_host  # it makes the image of the hosts
one_by_one conda fan_out &
beside=$!
one_by_one python_env model_store || failed=yes
wait "$beside" || failed=yes
[ -z "${failed:-}" ]
one_by_one firewall gateway preflight load_test ray_node ray_serve ray_health cluster security hosts faults upgrade

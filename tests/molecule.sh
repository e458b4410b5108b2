#!/usr/bin/env bash
# Run the scenarios one after the other, in the order in which the shared environment fills; stop at the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."
molecule/shared/setup.sh
scenarios=("$@")
[ ${#scenarios[@]} -gt 0 ] || scenarios=(gpu_host python_env conda fan_out model_store gateway load_test ray_node ray_serve ray_health cluster upgrade)
mkdir -p .cache/molecule
for scenario in "${scenarios[@]}"; do
  started=$SECONDS
  # Quiet while all is well; the whole log of a scenario that fails.
  if ! ANSIBLE_FORCE_COLOR=0 NO_COLOR=1 molecule test -s "$scenario" > ".cache/molecule/$scenario.log" 2>&1; then
    cat ".cache/molecule/$scenario.log"
    echo "molecule $scenario: FAILED after $((SECONDS - started)) s"
    exit 1
  fi
  echo "molecule $scenario: $(grep -oE '[0-9]+ passed' ".cache/molecule/$scenario.log" | tail -1), $((SECONDS - started)) s"
done

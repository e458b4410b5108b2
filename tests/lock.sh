#!/usr/bin/env bash
# Renew the locks from files/locks/*.in, and what is read out of the pinned Ray.
set -euo pipefail
cd "$(dirname "$0")/../files/locks"
export UV_CUSTOM_COMPILE_COMMAND="make lock"
compile() { uv pip compile --quiet --upgrade --generate-hashes --no-annotate --python-version 3.11 "$@"; }
hosts=(--python-platform x86_64-manylinux_2_28)
# PyTorch's own index has the CPU build; find-links take its place.
cpu=(--overrides cpu.overrides)
[ -n "${UV_FIND_LINKS:-}" ] || cpu+=(--index https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)

compile "${hosts[@]}" "${cpu[@]}" cpu.in -o cpu.lock
(unset UV_FIND_LINKS && compile "${hosts[@]}" cuda.in -o cuda.lock)  # a CPU build among them would win
compile --no-deps demo.in -o demo.lock
compile --universal load.in -o load.lock
compile --universal rattler.in -o rattler.lock
compile --universal docs.in -o docs.lock
compile --universal --constraints <(grep -oE '^huggingface-hub==[^ ]+' cpu.lock) control.in -o control.lock

# The options of `ray start`, from the Ray of the lock.
ray=$(grep -oE '^ray==[^ ]+' cpu.lock)
uv run --quiet --no-project --isolated --python 3.11 --with "ray[default]${ray#ray}" python ray_start_options.py \
  > ../../roles/ray_node/vars/main/options.yml

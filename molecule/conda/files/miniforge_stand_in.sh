#!/bin/sh
# A stand-in for Miniforge's installer, which cannot be had without its release page: takes `-b -p PREFIX`, refuses a
# prefix that exists, and leaves a bin/conda. That is a stand-in, too: it notes its arguments and lets py-rattler do it.
# It proves what the role does around the installer and with conda's command line, and nothing about them.
set -eu
prefix=
batch=no
while getopts bp: option; do
  case $option in
    b) batch=yes ;;
    p) prefix=$OPTARG ;;
    *) exit 2 ;;
  esac
done
[ $batch = yes ] || { echo "the stand-in asks nothing, it must be told -b" >&2; exit 2; }
[ ! -e "$prefix" ] || { echo "ERROR: File or directory already exists: '$prefix'" >&2; exit 1; }
mkdir -p "$prefix/bin"
cat > "$prefix/bin/conda" <<'CONDA'
#!/usr/bin/python3
import json, os, pathlib, subprocess, sys

base = pathlib.Path(__file__).resolve().parents[1]
environment = {name: value for name, value in os.environ.items() if name.startswith(("CONDA_", "HOME", "SSL_"))}
with open(base / "calls.jsonl", "a") as calls:
    print(json.dumps({"arguments": sys.argv[1:], "environment": environment}), file=calls)
if sys.argv[1:] == ["--version"]:
    sys.exit(print("conda 0.0.0, a stand-in"))
assert sys.argv[1] == "create", sys.argv
passed = [word for word in sys.argv[2:] if word not in ("--yes", "--quiet", "--override-channels")]
command = [base.parent / "rattler/bin/python", base.parent / "create_prefix.py", f"--cache={base.parent}/cache"]
sys.exit(subprocess.call([*command, *passed]))
CONDA
chmod 755 "$prefix/bin/conda"

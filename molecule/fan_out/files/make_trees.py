#!/usr/bin/python3
"""Make trees of random bytes, each with its manifest: make_trees.py MODEL ARCHIVE, or make_trees.py TREE BYTES."""

import hashlib
import json
import os
import sys
from pathlib import Path

MIB = 1024**2


def manifest(tree: Path) -> None:
    files = {}
    for folder, _, names in os.walk(tree, followlinks=True):
        for path in (Path(folder) / name for name in names):
            stat = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            entry = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}
            files[str(path.relative_to(tree))] = entry
    Path(f"{tree}.manifest.json").write_text(json.dumps({"files": files}))


def model(tree: Path) -> None:
    """Names of all sorts, links as a hub's cache has them, an empty file, a file of one byte."""
    blobs = tree.parent / "blobs"
    (tree / "sub/déeper one").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "aa").write_bytes(os.urandom(20 * MIB + 17))
    (tree / "model-00001.safetensors").symlink_to("../blobs/aa")
    (tree / "model-00002.safetensors").write_bytes(os.urandom(8 * MIB))
    (tree / "config.json").write_text("{}")
    (tree / "sub/déeper one/a name, with ünï \"codes\" & 'marks'.txt").write_bytes(os.urandom(70000))
    (tree / "sub/empty").touch()
    (tree / "sub/one").write_bytes(b"1")
    os.chmod(tree / "config.json", 0o600)
    manifest(tree)


def single(tree: Path, size: int) -> None:
    tree.mkdir(parents=True)
    (tree / "all.tar.zst").write_bytes(os.urandom(size))
    manifest(tree)


if __name__ == "__main__":
    first, second = sys.argv[1:]
    if second.isdigit():
        single(Path(first), int(second))
    else:
        model(Path(first))
        single(Path(second), 6 * MIB + 5)

#!/usr/bin/env python3
"""Make what the hub and the bucket of the tests hold, below the directory that is given.

usage: sources.py ROOT
"""

import io
import json
import struct
import sys
import tarfile
from pathlib import Path

COMMIT = "b" * 40
MIB = 1 << 20


def safetensors(size: int) -> bytes:
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def tar(path: Path, files: dict[str, bytes], mode: str) -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def main() -> None:
    root = Path(sys.argv[1])
    model = {"config.json": b'{"model_type": "llama"}', "model.safetensors": safetensors(4 * MIB)}
    more = {"model.gguf": b"x" * 5000, "original/params.json": b"{}"}
    repos = {
        "org/m": {**model, **more},
        "gated/m": model,
        "org/big": {**model, "model.safetensors": safetensors(100 * MIB)},
        "org/none": {"README.md": b"no model"},
    }
    for repo, files in repos.items():
        for name, data in files.items():
            path = root / "repos" / repo / COMMIT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    folder = root / "files"
    folder.mkdir()
    tar(folder / "m.tar.gz", {f"m/{name}": data for name, data in model.items()}, "w:gz")
    tar(folder / "zeros.tar.gz", {**model, "model.safetensors": safetensors(50 * MIB)}, "w:gz")
    tar(folder / "evil.tar", {**model, "../evil": b"x"}, "w")
    (folder / "text.tar").write_text("no archive")


if __name__ == "__main__":
    main()

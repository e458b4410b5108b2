#!/usr/bin/python
"""Write down what a model directory holds, or check that it still holds it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_manifest
short_description: Write down what a model directory holds, or check that it still holds it
description:
  - The first time every file is read and its size and sha256 are written beside the directory, in
    C(<path>.manifest.json), whose own time is that of the staging; what no engine could load is refused (no
    C(config.json), a safetensors file shorter than its own header says, a part that the index names and that is not
    there).
  - Later a file is read again only where its size or time of change is another, or with I(full).
  - Names that begin with a dot are left out.
options:
  path:
    description: The model directory, or a link to it.
    type: path
    required: true
  full:
    description: Whether every file is read again.
    type: bool
    default: false
  source:
    description:
      - What the bytes follow from, written down too. Later another source is refused - the bytes would be the old ones.
    type: str
    default: ''
  digest:
    description: What C(digest) must be; empty is whatever it is.
    type: str
    default: ''
author: Raymetal
"""
EXAMPLES = r"""
- name: Verify the model
  model_manifest:
    path: /opt/raymetal/models/qwen3-8b/1
    full: true
"""
RETURN = r"""
digest:
  description: One sha256 over the names, sizes and hashes of all files; the same on hosts that hold the same model.
  type: str
  returned: when the directory is there
bytes:
  description: Size of all files together.
  type: int
  returned: when the directory is there
"""

import glob
import hashlib
import json
import os
import struct
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

READERS = 4  # hashing is bound by the disk or by one core each; more would starve what serves on the host
CHUNK_BYTES = 1 << 22
HEADER_MAX_BYTES = 100_000_000  # the format's own limit
Entry = dict[str, Any]


class Problem(Exception):
    """What stops the module, in words for the operator."""


def list_files(path: str) -> dict[str, os.stat_result]:
    """Relative name -> what stat says, links followed."""
    found = {}
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            full = os.path.join(folder, name)
            try:
                found[os.path.relpath(full, path)] = os.stat(full)
            except FileNotFoundError as error:
                raise Problem(f"{full} is a link to nothing") from error
    return found


def sha256_of(path: str) -> str:
    total = hashlib.sha256()
    with open(path, "rb", buffering=0) as handle:
        while chunk := handle.read(CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()


def safetensors_length(path: str) -> int:
    """How long a safetensors file must be: 8 bytes, its header, and the furthest end of a tensor.

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    with open(path, "rb") as handle:
        first = handle.read(8)
        size = struct.unpack("<Q", first)[0] if len(first) == 8 else HEADER_MAX_BYTES + 1
        if size > HEADER_MAX_BYTES:
            raise Problem(f"{path} is no safetensors file")
        try:
            header = json.loads(handle.read(size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Problem(f"{path} has a broken header") from error
    return int(8 + size + max(ends, default=0))


def check_loadable(path: str, files: dict[str, os.stat_result]) -> None:
    """Raise Problem for what no engine could load."""
    if "config.json" not in files:
        raise Problem(f"{path} has no config.json: it is no model directory")
    for name, stat in files.items():
        full = os.path.join(path, name)
        if name.endswith(".json"):
            try:
                with open(full, encoding="utf-8") as handle:
                    content = json.load(handle)
            except ValueError as error:
                raise Problem(f"{full} is not JSON: {error}") from error
            if name.endswith(".index.json"):
                parts = {os.path.join(os.path.dirname(name), part) for part in content.get("weight_map", {}).values()}
                if lost := sorted(parts - files.keys()):
                    raise Problem(f"{full} names what is not there: {', '.join(lost)}")
        elif name.endswith(".safetensors") and (length := safetensors_length(full)) != stat.st_size:
            raise Problem(f"{full} has {stat.st_size} bytes and should have {length}: it is cut short or corrupt")


def read_manifest(path: str) -> tuple[dict[str, Entry], str]:
    """Files and source as they were written down; both empty where nothing was."""
    try:
        with open(path, encoding="utf-8") as handle:
            content = json.load(handle)
            return content["files"], content.get("source", "")
    except FileNotFoundError:
        return {}, ""
    except (ValueError, LookupError, TypeError) as error:
        raise Problem(f"{path} is broken: {error!r}. To do: remove it, and run again") from error


def differences(known: dict[str, Entry], now: dict[str, Entry]) -> list[str]:
    """What is not as it was written down, one sentence each."""
    found = [f"{name} is gone" for name in known.keys() - now.keys()]
    found += [f"{name} is new" for name in now.keys() - known.keys()]
    for name in known.keys() & now.keys():
        if known[name]["size"] != now[name]["size"]:
            found.append(f"{name} has {now[name]['size']} bytes and had {known[name]['size']}")
        elif known[name]["sha256"] != now[name]["sha256"]:
            found.append(f"{name} has other bytes")
    return sorted(found)


def look(path: str, known: dict[str, Entry], full: bool) -> dict[str, Entry]:
    """Every file's size, time of change and sha256; hashed again where needed."""
    files = list_files(path)
    if not known:
        try:
            check_loadable(path, files)
        except Problem as problem:
            do = f"correct it at its source, remove {path}, and run --tags models"
            raise Problem(f"{problem}. To do: {do}") from problem

    def entry(name: str) -> Entry:
        size, mtime = files[name].st_size, files[name].st_mtime_ns
        old = known.get(name, {})
        if not full and (old.get("size"), old.get("mtime_ns")) == (size, mtime):
            return old
        return {"size": size, "mtime_ns": mtime, "sha256": sha256_of(os.path.join(path, name))}

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(files, pool.map(entry, files), strict=True))


def digest_of(files: dict[str, Entry]) -> str:
    lines = [f"{files[name]['sha256']} {files[name]['size']} {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def staged_ns(manifest: str) -> int:
    """When the model was staged: as the manifest says, else now, and later than its other revisions in any case."""
    if os.path.exists(manifest):
        return os.stat(manifest).st_mtime_ns
    others = glob.glob(os.path.join(glob.escape(os.path.dirname(manifest)), "*.manifest.json"))
    return max([time.time_ns(), *(os.stat(other).st_mtime_ns + 1_000_000_000 for other in others)])


def compare(path: str, manifest: str, params: dict[str, Any]) -> tuple[dict[str, Entry], str, bool]:
    """Files and source to write down, and whether that is anything new; Problem where it is not what it should be."""
    known, origin = read_manifest(manifest)
    source = params["source"] or origin
    remove = f"remove {path} and {manifest}, and run --tags models"
    if origin and source != origin:
        do = f"give it another revision (of model_store_models), or {remove}"
        raise Problem(f"{path} was staged from {origin}, and the inventory names {source}. To do: {do}")
    now = look(path, known, params["full"])
    if known and (wrong := differences(known, now)):
        do = f"if that was meant, give it another revision; else {remove}"
        raise Problem(f"{path} is not what was staged: {'; '.join(wrong[:5])}. To do: {do}")
    if params["digest"] not in ("", digest_of(now)):
        do = f"correct digest, or the source and then {remove}"
        raise Problem(f"{path} has digest {digest_of(now)}, and the inventory names {params['digest']}. To do: {do}")
    return now, source, (now, source) != (known, origin)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "full": {"type": "bool", "default": False},
            "source": {"type": "str", "default": ""},
            "digest": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    manifest = f"{path}.manifest.json"
    if not os.path.isdir(path):
        if module.check_mode:
            module.exit_json(changed=True)  # staged by the real run only
        module.fail_json(msg=f"{path} is no directory. To do: --tags models")
    try:
        now, source, changed = compare(path, manifest, module.params)
    except Problem as problem:
        module.fail_json(msg=str(problem))
    if changed and not module.check_mode:
        # Of its own name: hosts may share the directory.
        with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(manifest), prefix=".manifest-", delete=False) as new:
            json.dump({"files": now, **({"source": source} if source else {})}, new, indent=1, sort_keys=True)
            os.fchmod(new.fileno(), 0o644)
        os.utime(new.name, ns=(time.time_ns(), staged_ns(manifest)))
        os.replace(new.name, manifest)
    total = sum(entry["size"] for entry in now.values())
    module.exit_json(changed=changed, digest=digest_of(now), bytes=total)


if __name__ == "__main__":
    main()

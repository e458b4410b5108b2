"""What a host holds of a tree, and how a received one becomes whole: verified, then there, never half."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

READERS = 4
CHUNK_BYTES = 1 << 22
BLOCK_BYTES = 4096  # what a file takes beyond its size, at most
Files = dict[str, dict[str, Any]]  # relative name -> size, sha256


class Problem(Exception):
    """What stops the host, in words for the operator."""


def manifest_of(path: str) -> str:
    return f"{path}.manifest.json"


def read_manifest(path: str) -> Files | None:
    """Size and sha256 of every file of the tree at ``path``; None where nobody wrote them down."""
    name = manifest_of(path)
    try:
        with open(name, encoding="utf-8") as handle:
            files = json.load(handle)["files"]
            found = {file: {"size": int(files[file]["size"]), "sha256": files[file]["sha256"]} for file in files}
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Problem(f"{name} is broken: {error!r}. To do: remove it, and run --tags models") from error
    check_names(found, name)
    return found


def check_names(files: Files, where: str) -> None:
    """Raise Problem for a name that would lead out of the tree."""
    for name in files:
        parts = name.split("/")
        if "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise Problem(f"{where} names {name!r}, which is no file below the tree. To do: remove it")


def digest_of(files: Files) -> str:
    """One sha256 over names, sizes and hashes; the same on hosts that hold the same."""
    lines = [f"{files[name]['sha256']} {files[name]['size']} {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tree_id(path: str, digest: str) -> str:
    """A name of the tree that is its own, also where another path holds the same bytes."""
    return hashlib.sha256(f"{digest} {path}".encode()).hexdigest()


def carried(files: Files) -> list[str]:
    """The names in the order of the torrent. An empty file has no byte to send: the manifest is enough."""
    return sorted(name for name in files if files[name]["size"])


def held(path: str) -> dict[str, Any]:
    """What the host has at ``path``, without reading it: present, digest, bytes, and the room for it.

    ``digest`` is empty where there is nothing to offer. Sizes in bytes; ``room_bytes`` is what is free at the nearest
    directory above, ``partial_bytes`` what an interrupted run already takes up there, ``device`` the file system.
    """
    above = os.path.dirname(path)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    space = os.statvfs(above)
    found = {"path": path, "present": os.path.lexists(path), "digest": "", "bytes": 0, "disk_bytes": 0}
    files = read_manifest(path) if os.path.isdir(path) else None
    if files is not None:
        size = sum(entry["size"] for entry in files.values())
        found.update(digest=digest_of(files), bytes=size, disk_bytes=size + BLOCK_BYTES * len(files))
    partial = 0
    for folder, _, names in os.walk(f"{path}.partial"):
        partial += sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for name in names)
    found.update(room_bytes=space.f_bavail * space.f_frsize, partial_bytes=partial, device=os.stat(above).st_dev)
    return found


def check_sizes(path: str, files: Files) -> None:
    """Raise Problem where a held tree is not, by its sizes, what its manifest says."""
    for name, entry in files.items():
        full = os.path.join(path, name)
        try:
            size = os.stat(full).st_size
        except OSError as error:
            raise Problem(f"{full} cannot be offered: {error.strerror}. To do: --tags verify") from error
        if size != entry["size"]:
            do = "To do: --tags verify"
            raise Problem(f"{full} has {size} bytes and {entry['size']} by its manifest: not offered. {do}")


def prepare(partial: str, files: Files) -> bool:
    """Make ``partial`` a directory with nothing in it but of the tree; whether something of it was received before."""
    wanted = {os.path.join(partial, name) for name in files}
    folders = {partial}
    for full in wanted:
        while (full := os.path.dirname(full)) not in folders:
            folders.add(full)
    if os.path.lexists(partial) and not stat.S_ISDIR(os.lstat(partial).st_mode):
        os.unlink(partial)
    for folder, inner, names in os.walk(partial, topdown=False):
        for full in (os.path.join(folder, name) for name in [*names, *inner]):
            mode = os.lstat(full).st_mode
            if stat.S_ISDIR(mode):
                if full not in folders:
                    os.rmdir(full)
            elif not stat.S_ISREG(mode) or full not in wanted:
                os.unlink(full)  # a link above all: nothing is written through it
            elif os.path.getsize(full) > files[os.path.relpath(full, partial)]["size"]:
                os.truncate(full, files[os.path.relpath(full, partial)]["size"])
    for folder in sorted(folders):
        os.makedirs(folder, mode=0o755, exist_ok=True)
    for name, entry in files.items():
        if not entry["size"]:
            open(os.path.join(partial, name), "ab").close()
    return any(os.path.exists(os.path.join(partial, name)) for name in carried(files))


def finish_file(full: str, entry: dict[str, Any], ended: Callable[[], bool]) -> dict[str, Any]:
    """Verify one received file, give it its mode, and bring it to the disk; its line of the manifest."""
    digest = hashlib.sha256()
    with open(full, "rb", buffering=0) as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
            if ended():
                raise Problem(f"ended while {full} was verified. To do: run again")
        os.fchown(handle.fileno(), 0, 0)
        os.fchmod(handle.fileno(), 0o644)
        os.fsync(handle.fileno())
        now = os.fstat(handle.fileno())
    if digest.hexdigest() != entry["sha256"] or now.st_size != entry["size"]:
        do = "To do: --tags verify on the hosts that hold it, correct it there, and run again"
        raise Problem(f"{full} is not what the manifest of the host that offered it says. {do}")
    return {"size": now.st_size, "mtime_ns": now.st_mtime_ns, "sha256": entry["sha256"]}


def sync_directory(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def place(partial: str, path: str, files: Files, ended: Callable[[], bool] = lambda: False) -> None:
    """Verify every byte of ``partial`` and put it in place; raises Problem, and ``partial`` stays, where it is not so.

    The manifest comes first: a tree that is there has one, and one without a tree promises nothing. ``ended``: whether
    to give up.
    """
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda name: finish_file(os.path.join(partial, name), files[name], ended), files)
        done = dict(zip(files, found))  # noqa: B905 - Python 3.9 on a host does not know strict
    for folder, _, _ in os.walk(partial):
        os.chown(folder, 0, 0)
        os.chmod(folder, 0o755)
        sync_directory(folder)
    above = os.path.dirname(path)
    with tempfile.NamedTemporaryFile("w", dir=above, prefix=".manifest-", delete=False) as new:
        json.dump({"files": done}, new, indent=1, sort_keys=True)
        os.fchmod(new.fileno(), 0o644)
        new.flush()
        os.fsync(new.fileno())
    if os.path.lexists(path):
        os.unlink(new.name)
        if held(path)["digest"] == digest_of(files):  # the job of a run that was killed went on, and was quicker
            shutil.rmtree(partial)
            return
        raise Problem(f"{path} appeared meanwhile; it is left alone. To do: run again")
    os.replace(new.name, manifest_of(path))
    os.rename(partial, path)
    sync_directory(above)

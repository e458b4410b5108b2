#!/usr/bin/python3
"""Keep what a Ray node leaves on the disk within bounds; docs/disk.md says which.

Runs as the service user at each start of the node and once an hour (raymetal-sweep.timer). It removes only what this
user owns, in the places it is given, and nothing that a process of the user has open. Whether disks keep their reserve
is said in the journal, a disk without it as a warning; then everything goes that is not in use. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator

SESSION = re.compile(r"session_\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}_\d+_\d+")
SPILLED = re.compile(r"ray_spilled_objects_([0-9a-f]+)")
NODE_ID = re.compile(r"--node[_-]id=([0-9a-f]+)")
CACHES = (".cache", ".triton", ".nv")  # below the home: what Ray, vLLM and CUDA may make again
GRACE_SECONDS = 600  # what is younger may be about to be used
NETWORK_FILE_SYSTEMS = re.compile(r"nfs|cifs|smb|ceph|lustre|gpfs|beegfs|gluster|fuse|9p|afs")
GIB = 1024**3
WARNING, NOTICE = "<4>", "<5>"  # levels of the journal


class Held:
    """What the processes of a user have open, by path, and the ids of the Ray nodes among them."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.nodes: set[str] = set()
        self.complete = True  # False: of a process it could not be seen

    def below(self, path: str) -> bool:
        """Whether ``path`` or anything below it is open."""
        return path in self.paths or any(held.startswith(path + "/") for held in self.paths)


def read(path: str) -> str:
    """The file's text; empty where it is gone."""
    try:
        with open(path, "rb") as handle:
            return handle.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def look(uid: int) -> Held:
    """What processes of ``uid`` hold: open and mapped files, working directories, sockets with a name."""
    held = Held()
    for name in os.listdir("/proc"):
        here = f"/proc/{name}"
        try:
            # Not the owner of the directory: that is root where a process may not be dumped.
            if not name.isdigit() or f"\nUid:\t{uid}\t" not in read(f"{here}/status"):
                continue
            held.nodes |= set(NODE_ID.findall(read(f"{here}/cmdline")))
            links = [f"{here}/cwd", *(f"{here}/fd/{number}" for number in os.listdir(f"{here}/fd"))]
            for link in links:
                with contextlib.suppress(FileNotFoundError):
                    held.paths.add(os.readlink(link))
            held.paths |= set(re.findall(r"(?m)^\S+ \S+ \S+ \S+ \S+\s+(/.*)$", read(f"{here}/maps")))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        except PermissionError:
            held.complete = False
    held.paths |= set(re.findall(r"(?m)\s(/\S+)$", read("/proc/net/unix")))
    return held


def mine(path: str, uid: int) -> os.stat_result | None:
    """The entry itself, a link not followed, if ``uid`` owns it."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found if found.st_uid == uid else None


def tree(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """``path`` and all below it; links are not followed, what vanishes meanwhile is left out."""
    with contextlib.suppress(FileNotFoundError):
        yield path, os.lstat(path)
    for folder, names, files in os.walk(path):
        for name in names + files:
            with contextlib.suppress(FileNotFoundError):
                yield f"{folder}/{name}", os.lstat(f"{folder}/{name}")


def size(path: str) -> int:
    """Bytes on the disk of ``path`` and all below it."""
    return sum(found.st_blocks * 512 for _, found in tree(path))


def age(path: str) -> float:
    """Seconds since anything in ``path`` was written."""
    return time.time() - max((found.st_mtime for _, found in tree(path)), default=0)


def free(path: str) -> tuple[float, float]:
    """GiB that are free and that there are on the file system of ``path``, counted as Ray counts them."""
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize / GIB, space.f_blocks * space.f_frsize / GIB


def on_network(path: str) -> bool:
    """Whether other hosts may write there, too."""
    mounts = re.findall(r"(?m)^\S+ \S+ \S+ \S+ (\S+) .* - (\S+) ", read("/proc/self/mountinfo"))
    above = [(point, kind) for point, kind in mounts if f"{path}/".startswith(point.rstrip("/") + "/")]
    return bool(above and NETWORK_FILE_SYSTEMS.match(max(above, key=lambda entry: len(entry[0]))[1]))


class Sweep:
    """One run over the places of ``options``; see ``parser``."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        for name in ("temp_dir", "home", "tmp", "shm"):
            setattr(options, name, os.path.realpath(getattr(options, name)))
        self.uid = os.geteuid()
        self.held = look(self.uid)
        self.freed = 0
        self.removed: list[str] = []

    def remove(self, path: str) -> None:
        found = mine(path, self.uid)
        if found is None:
            return
        self.freed += size(path)
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.removed.append(path)

    def entries(self, folder: str) -> list[str]:
        """Paths in ``folder`` that are ours."""
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return []
        return [path for path in (f"{folder}/{name}" for name in names) if mine(path, self.uid)]

    def sessions(self, keep: int) -> None:
        """Leave the current session, those in use, and the ``keep`` newest of the others; their names sort by time."""
        root = self.options.temp_dir
        current = os.path.realpath(f"{root}/session_latest")
        ended = [
            path
            for path in self.entries(root)
            if SESSION.fullmatch(os.path.basename(path))
            and not os.path.islink(path)
            and os.path.realpath(path) != current
            and not self.held.below(path)
            and time.time() - os.lstat(path).st_mtime > GRACE_SECONDS
        ]
        for path in ended[: max(0, len(ended) - keep)]:
            self.remove(path)

    def spilled(self) -> None:
        """Objects that nodes spilled which no longer run; a restarted node has another id and never reads them."""
        for place in map(os.path.realpath, [f"{self.options.temp_dir}/session_latest", *self.options.spill_dir]):
            if on_network(place):
                continue
            for path in self.entries(place):
                node = SPILLED.fullmatch(os.path.basename(path))
                if node and node[1] not in self.held.nodes and age(path) > GRACE_SECONDS:
                    self.remove(path)

    def logs(self, limit_bytes: int) -> None:
        """Logs of the current session that nobody writes any more, the oldest first, until all together fit."""
        root = os.path.realpath(f"{self.options.temp_dir}/session_latest") + "/logs"
        files = {path: found for path, found in tree(root) if stat.S_ISREG(found.st_mode) and found.st_uid == self.uid}
        sizes = {path: found.st_blocks * 512 for path, found in files.items()}
        for path in sorted(self.held.paths & set(files)):
            # Not all of Ray's processes rotate their output. A log is appended to, so emptying it does no harm.
            if sizes[path] > 2 * self.options.log_file_bytes:
                os.truncate(path, 0)
                self.freed += sizes[path]
                self.removed.append(f"{path} (emptied)")
                sizes[path] = 0
        for path in sorted(set(files) - self.held.paths, key=lambda path: files[path].st_mtime):
            if sum(sizes.values()) > limit_bytes:
                del sizes[path]
                self.remove(path)

    def scratch(self) -> None:
        """What killed processes left in /tmp and in shared memory."""
        for place, oldest in ((self.options.tmp, self.options.tmp_hours * 3600), (self.options.shm, GRACE_SECONDS)):
            for path in self.entries(place):
                if not self.held.below(path) and age(path) > oldest:
                    self.remove(path)

    def caches(self, limit_bytes: int) -> None:
        """Whole caches of tools that no process uses, the oldest first, until all together fit."""
        home = self.options.home
        found = [*self.entries(f"{home}/{CACHES[0]}"), *(f"{home}/{name}" for name in CACHES[1:])]
        sizes = {path: size(path) for path in found if mine(path, self.uid)}
        for path in sorted(sizes, key=age, reverse=True):
            if sum(sizes.values()) > limit_bytes and not self.held.below(path):
                del sizes[path]
                self.remove(path)

    def short(self) -> Iterator[str]:
        """What to say of each disk that has less than its reserve free."""
        seen = set()
        for path in [self.options.temp_dir, *self.options.spill_dir, *self.options.watch]:
            with contextlib.suppress(FileNotFoundError):
                device = os.stat(path).st_dev
                left, there = free(path)
                if device not in seen and left < there * self.options.reserve_percent / 100:
                    yield (
                        f"{path}: {left:.1f} of {there:.1f} GiB are free, less than the reserve of "
                        f"{self.options.reserve_percent:g} %. Ray takes no more objects then, and a full disk ends the "
                        "node. To do: see docs/disk.md for what may go, or enlarge the disk"
                    )
                seen.add(device)

    def run(self) -> None:
        pressed = bool(list(self.short()))
        if not self.held.complete:
            print(f"{WARNING}what processes of uid {self.uid} have open could not be seen: nothing is removed")
        else:
            self.sessions(0 if pressed else self.options.keep_sessions)
            self.spilled()
            self.logs(0 if pressed else self.options.log_bytes)
            self.scratch()
            self.caches(0 if pressed else self.options.cache_bytes)
        if self.removed:
            print(f"{NOTICE}freed {self.freed / GIB:.3f} GiB: {', '.join(self.removed)}")
        for line in self.short():
            print(WARNING + line)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--temp-dir", required=True, help="ray's --temp-dir, with its sessions")
    made.add_argument("--home", required=True, help="home of the service user, with the caches")
    made.add_argument("--spill-dir", action="append", default=[], help="ray's --object-spilling-directory")
    made.add_argument("--watch", action="append", default=[], help="more places whose disk has to keep its reserve")
    made.add_argument("--keep-sessions", type=int, required=True, help="ended sessions that stay")
    made.add_argument("--log-bytes", type=int, required=True, help="of the current session's logs together")
    made.add_argument("--log-file-bytes", type=int, required=True, help="at which ray rotates a log")
    made.add_argument("--cache-bytes", type=int, required=True, help="of the caches together")
    made.add_argument("--tmp-hours", type=float, required=True, help="how long what nobody uses stays in /tmp")
    made.add_argument("--reserve-percent", type=float, required=True, help="of each disk that stays free")
    made.add_argument("--tmp", default="/tmp", help=argparse.SUPPRESS)
    made.add_argument("--shm", default="/dev/shm", help=argparse.SUPPRESS)
    return made


def main() -> None:
    options = parser().parse_args()
    if os.geteuid() == 0:
        sys.exit("run as the service user: of root's files none is ours")
    Sweep(options).run()


if __name__ == "__main__":
    main()

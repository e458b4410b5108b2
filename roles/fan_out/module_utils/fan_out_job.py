"""The job on one host: one at a time, its state for those who watch, and the trees that it sends and receives."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ansible.module_utils.fan_out_aria2 import Aria2
from ansible.module_utils.fan_out_torrent import PIECE_MIN_BYTES, info_hash
from ansible.module_utils.fan_out_tree import Files, Problem, carried, check_sizes, place, prepare, tree_id

TAKE_OVER_SECONDS = 20
STATUS_KEYS = ["status", "totalLength", "completedLength", "verifiedLength", "downloadSpeed", "uploadSpeed"]
STATUS_KEYS += ["verifyIntegrityPending", "connections", "errorMessage"]


def lock_path(directory: str) -> str:
    return os.path.join(directory, "lock")


def holder_of(lock: int, path: str) -> int:
    """The process id in the lock file, 0 unless that process really has the file open: ids are used again."""
    text = os.pread(lock, 20, 0).decode(errors="replace").strip()
    if not text.isdigit():
        return 0
    folder = f"/proc/{text}/fd"
    try:
        opened = [os.path.realpath(os.path.join(folder, name)) for name in os.listdir(folder)]
    except OSError:
        return 0
    return int(text) if os.path.realpath(path) in opened else 0


def take_lock(directory: str) -> int:
    """Become the one job of the host: a job of an earlier run is ended. The open lock; aria2c inherits it."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = lock_path(directory)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + TAKE_OVER_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            pid = holder_of(lock, path)
            if time.monotonic() > deadline:
                raise Problem(f"the job of an earlier run (process {pid}) does not end. To do: end it") from None
            if pid:
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.2)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    for name in os.listdir(directory):
        if name != os.path.basename(path):
            shutil.rmtree(os.path.join(directory, name), ignore_errors=True)
    return lock


def running(directory: str) -> bool:
    """Whether a job, or what it started, is still there."""
    try:
        lock = os.open(lock_path(directory), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def write_state(directory: str, state: dict[str, Any]) -> None:
    name = os.path.join(directory, "state.json")
    with open(f"{name}.new", "w", encoding="utf-8") as handle:
        json.dump(state, handle)
    os.replace(f"{name}.new", name)


class Tree:
    """One tree: received into <path>.partial, verified, put in place, and offered all the while."""

    def __init__(self, directory: str, given: dict[str, Any]) -> None:
        self.path, self.name, self.digest = given["path"], given["name"], given["digest"]
        self.files: Files = given["files"]
        self.torrent = base64.b64decode(given["torrent"])
        self.info_hash: bytes = info_hash(self.torrent)
        self.receive: bool = given["receive"]
        self.peers: list[dict[str, Any]] = given["peers"]
        self.partial = f"{self.path}.partial"
        self.id = tree_id(self.path, self.digest)
        self.gid = self.id[:16]
        self.total = sum(entry["size"] for entry in self.files.values())
        self.done = 0 if self.receive else self.total
        self.phase = "starting" if self.receive else "complete"
        self.rates = (0, 0)  # bytes a second: received, sent
        self._directory = directory
        self._place: Future[None] | None = None

    def _point_at(self, target: str) -> None:
        """aria2 opens <directory>/<id>/0, 1, …, which lead to the files wherever they are by now."""
        link = os.path.join(self._directory, f"{self.gid}.tree")
        os.symlink(target, f"{link}.new")
        os.replace(f"{link}.new", link)

    def begin(self, aria2: Aria2) -> None:
        known = prepare(self.partial, self.files) if self.receive else False
        if not self.receive:
            check_sizes(self.path, self.files)
        self._point_at(self.partial if self.receive else self.path)
        folder = os.path.join(self._directory, self.id)
        os.mkdir(folder)
        for index, name in enumerate(carried(self.files)):
            os.symlink(os.path.join("..", f"{self.gid}.tree", name), os.path.join(folder, str(index)))
        if not self.torrent:
            return
        # What is held is read, never checked and so never repaired: a piece that is wrong is refused by who gets it.
        options = {
            "dir": self._directory,
            "gid": self.gid,
            "check-integrity": "true" if known else "false",
            "bt-seed-unverified": "false" if self.receive else "true",
        }
        aria2.call("addTorrent", base64.b64encode(self.torrent).decode(), [], options)

    def _given_up(self, why: str) -> Problem:
        space = os.statvfs(os.path.dirname(self.path))
        free = space.f_bavail * space.f_frsize
        if self.receive and free < PIECE_MIN_BYTES * 16:
            why += f"; {free >> 20} MiB are free at {self.path}"
        return Problem(f"{self.name}: aria2c gave up: {why}. To do: correct it, and run again; it goes on from here")

    def look(self, aria2: Aria2, pool: ThreadPoolExecutor, ended: Callable[[], bool]) -> None:
        """Bring the state up to date, and do what is next. ``ended``: whether the job is to end."""
        if self.torrent:
            status = aria2.call("tellStatus", self.gid, STATUS_KEYS)
            # Who has all of it has nothing to lose when it cannot send any more.
            safe = self.receive and self.phase in ("verifying", "complete")
            if status["status"] in ("error", "removed") and not safe:
                raise self._given_up(status.get("errorMessage") or aria2.last_words())
            self.rates = (int(status["downloadSpeed"]), int(status["uploadSpeed"]))
            checking = "verifiedLength" in status or status.get("verifyIntegrityPending") == "true"
            arrived = not checking and status["completedLength"] == status["totalLength"] != "0"
            if self.phase in ("starting", "checking", "receiving"):
                self.done = int(status.get("verifiedLength") or status["completedLength"])
                self.phase = "checking" if checking else "receiving"
        else:
            arrived = True
        if self.phase in ("starting", "receiving") and arrived:
            self.phase = "verifying"
            self._place = pool.submit(place, self.partial, self.path, self.files, ended)
        if self.phase == "verifying" and self._place and self._place.done():
            try:
                self._place.result()
            except OSError as error:
                raise Problem(
                    f"{self.name} cannot be put in place: {error}. To do: correct it, and run again"
                ) from error
            self._point_at(self.path)
            self.phase = "complete"

    def state(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.total, "done": self.done, "phase": self.phase, "receive": self.receive}

"""A fetch of a model that goes on by itself on the host, and what is known of it from outside.

The job has a process of its own: neither a lost connection nor the end of Ansible cuts a download of hours. What it
holds is in ``<path>.partial``; ``<path>.fetch`` is locked for as long as it or a program that it started runs, and says
what it does. ``<path>`` appears when all is there and right.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

GB = 1e9
MEASURE_SECONDS = 1.0
BACKOFF_SECONDS = (1, 2, 4, 8, 16, 30)
# Nothing that trying again would mend.
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk has an error",
}
State = dict[str, Any]


class Problem(Exception):
    """What ends a fetch, in words for the operator."""


def disk_problem(error: OSError, path: str) -> Problem | None:
    """The problem where ``error`` is one of the disk at ``path``, else None."""
    if error.errno not in DISK_ERRORS:
        return None
    do = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see to the file system"
    return Problem(f"{path}: {DISK_ERRORS[error.errno]}. To do: {do}, or set model_store_root to another one")


def size_of(path: str) -> int:
    """Bytes of all files below ``path``; 0 where nothing is."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


class Job:
    """What a source uses while it fetches: where to, how much, how long to be patient."""

    def __init__(self, path: str, stall_seconds: int, lock: int) -> None:
        self.path, self.partial, self.lock, self.stall_seconds = path, f"{path}.partial", lock, stall_seconds
        self.state: State = {"pid": os.getpid(), "phase": "asking", "bytes": 0, "total": 0, "error": ""}
        self.complaint = "no answer"
        self._patient = True  # whether it is the network that is waited for
        self._tries = 0
        self._grown, self._most = time.monotonic(), 0
        self._writing = threading.Lock()

    def begin(self, phase: str, total: int | None = None) -> None:
        """Say what is done now; ``total`` in bytes. Of fetching alone is expected that bytes come."""
        self.state.update(phase=phase, **({} if total is None else {"total": total}))
        self._patient = phase in ("asking", "fetching")
        self._grown, self._most = time.monotonic(), 0
        self.tell()

    def need(self, total: int) -> None:
        """Stop before the first byte if there is no room for ``total`` bytes, with those that are there already."""
        need = total - size_of(self.partial)
        free = shutil.disk_usage(os.path.dirname(self.path)).free
        if need > free:
            root = os.path.dirname(os.path.dirname(self.path))
            raise Problem(
                f"{self.path} needs {need / GB:.3f} GB more, and {free / GB:.3f} GB are free at {root}. To do: free"
                " some space, or set model_store_root to a larger file system"
            )

    def wait(self, complaint: str, retry_after: float | None = None) -> None:
        """Wait before the next try, as long as the server says, or longer each time. Problem when patience ends."""
        self.complaint = complaint
        left = self.stall_seconds - (time.monotonic() - self._grown)
        delay = retry_after or BACKOFF_SECONDS[min(self._tries, len(BACKOFF_SECONDS) - 1)]
        self._tries += 1
        if retry_after and retry_after > left:
            raise Problem(f"{complaint}, and asks to wait {retry_after:.0f} s: longer than {self._limit()}")
        if left <= 0:
            raise self.stalled()
        time.sleep(min(delay, max(left, 0.1)))

    def stalled(self) -> Problem:
        text = f"nothing came for {self.stall_seconds} s. The last that was heard: {self.complaint}"
        return Problem(f"{text}. To do: see to the network or the server and run again, or raise {self._limit()}")

    def _limit(self) -> str:
        return f"model_store_stall_seconds ({self.stall_seconds})"

    def tell(self) -> None:
        text = json.dumps(self.state).encode()
        with self._writing, contextlib.suppress(OSError):  # of a full disk the source speaks
            os.pwrite(self.lock, text, 0)
            os.ftruncate(self.lock, len(text))

    def watch(self) -> None:
        """Measure for ever; end the job and the programs that it started when nothing comes any more."""
        while True:
            time.sleep(MEASURE_SECONDS)
            size = size_of(self.partial)
            if size > self._most:  # what is fetched over and over is no progress
                self._grown, self._most, self._tries = time.monotonic(), size, 0
            self.state["bytes"] = size
            # A little later than wait(), which has the better words.
            if self._patient and time.monotonic() - self._grown > self.stall_seconds + 2 * MEASURE_SECONDS:
                self.state["error"] = str(self.stalled())
                self.tell()
                os.killpg(0, signal.SIGKILL)
            self.tell()


@contextlib.contextmanager
def locked(path: str) -> Iterator[int | None]:
    """The lock of ``path``.fetch as a descriptor that children inherit; None where another has it."""
    while True:
        lock = os.open(f"{path}.fetch", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(f"{path}.fetch"), os.fstat(lock)):  # else it went while we came
                    yield lock
                    return
        finally:
            os.close(lock)


def look(path: str) -> State | None:
    """What the job of ``path`` says of itself, with ``running``; None where there is none."""
    try:
        with open(f"{path}.fetch", "rb+") as handle:
            try:
                state: State = json.load(handle)
            except ValueError:
                state = {}  # just begun, or a word in the middle of being written
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return {**state, "running": False}
            except BlockingIOError:
                return {**state, "running": True}
    except FileNotFoundError:
        return None


def work(job: Job, fetch: Callable[[Job], str]) -> None:
    """Fetch into ``job.partial``; ``fetch`` gives the directory in it that is the model. It is then put in place."""
    threading.Thread(target=job.watch, daemon=True).start()
    try:
        os.makedirs(job.partial, mode=0o755, exist_ok=True)
        tree = fetch(job)
        os.sync()  # a power cut must not leave names without bytes
        os.rename(tree, job.path)
        shutil.rmtree(job.partial, ignore_errors=True)
        os.unlink(f"{job.path}.fetch")
    except Problem as problem:
        job.state["error"] = str(problem)
    except OSError as error:
        job.state["error"] = str(disk_problem(error, error.filename or job.path) or repr(error))
    except Exception as error:  # noqa: BLE001 - it has no other way to tell anybody
        job.state["error"] = f"the fetch broke: {error!r}. To do: this is a defect, report it"
    job.tell()


def start(path: str, stall_seconds: int, fetch: Callable[[Job], str]) -> bool:
    """Begin a job for ``path``; False where one runs already, or where all is there."""
    with locked(path) as lock:
        if lock is None:
            return False
        if os.path.isdir(path):
            os.unlink(f"{path}.fetch")
            return False
        os.ftruncate(lock, 0)
        if os.fork():
            return True
        # From here on it is the job; it never returns into Ansible's code.
        try:
            os.umask(0o022)
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            os.chdir("/")
            work(Job(path, stall_seconds, lock), fetch)
        finally:
            os._exit(0)

#!/usr/bin/env python3
"""Run a Ray node as one thing: it lives as a whole, or every process of it ends and systemd starts it again.

`ray start --block` does not notice a raylet or a GCS that was ended by SIGTERM, an agent that was killed, or a process
that hangs; and a start that fails leaves processes behind. This runs it as its child and is the subreaper of all that
it starts, so that whatever a parent leaves behind is a descendant still. The node is dead when

- `ray start` ended,
- a process named by ``--process`` is gone, or did not appear within ``--start-seconds``,
- a page named by ``--page`` that answered once refuses connections for ``REFUSED_SECONDS`` or does not answer well for
  ``--dead-seconds``, or it did not answer within ``--start-seconds``.

Then the reason goes to standard error, every descendant is killed, and the exit status is 1. A stopped process
(SIGSTOP) would hold its requests for ever; one that is stopped for ``STOPPED_SECONDS`` is killed, and Ray replaces it.
SIGTERM and SIGINT are passed to `ray start`, which drains the node; when it ended, and after ``--stop-seconds`` at the
latest, the rest is killed.

Standard library only. Linux only: reads /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

TICK_SECONDS = 0.5
PAGE_SECONDS = 2.0  # between two looks at a page
ANSWER_SECONDS = 10  # one look at most
MISSED_LOOKS = 3
REFUSED_SECONDS = 10.0  # nobody listens: the process is gone, not busy
STOPPED_SECONDS = 20.0
PR_SET_CHILD_SUBREAPER = 36


def say(text: str) -> None:
    """A line for the journal."""
    print(f"ray_supervise: {text}", file=sys.stderr, flush=True)


def program(command: list[str]) -> str:
    """The name of what a command line runs; see ``descendants``."""
    name = os.path.basename(command[0])
    if name.startswith("python"):
        for before, argument in itertools.pairwise(command):
            if before == "-m":
                return argument
            if argument.endswith(".py"):
                return os.path.basename(argument)
    return name


def descendants(root: int) -> dict[int, tuple[str, str]]:
    """Process id -> (state, name of the program) of everything below ``root``; a zombie has no name.

    Of Python it is what Python runs: the name of the script, or of the module after ``-m``.
    """
    parents: dict[int, int] = {}
    seen: dict[int, tuple[str, str]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            rest = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        parents[int(name)] = int(rest[1])
        seen[int(name)] = (rest[0], program(command.decode(errors="replace").split("\0")))

    def below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == root:
                return True
        return False

    return {pid: what for pid, what in seen.items() if below(pid)}


class Page:
    """A health page, asked by a thread of its own: how long it has been silent."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = url
        self._clock = clock
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is no way to a node
        self.answered: float | None = None  # when it last answered well; None: not yet
        self.listened: float | None = None  # when somebody last took a connection
        self.missed = 0  # looks since it last answered well: a host that stood still has missed none

    def look(self) -> None:
        """Ask once. Any answer but 200 counts as none; a full backlog or a hung process is no refusal."""
        self.missed += 1
        try:
            with self._opener.open(self.url, timeout=ANSWER_SECONDS) as answer:
                well = answer.status == 200
        except urllib.error.HTTPError:
            well = False
        except OSError as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ConnectionRefusedError):
                return
            well = False
        self.listened = self._clock()
        if well:
            self.answered, self.missed = self.listened, 0

    def watch(self) -> None:
        """Ask for ever."""
        while True:
            self.look()
            time.sleep(PAGE_SECONDS)

    def problem(self, now: float, dead_seconds: float) -> str:
        """Why the node is dead by this page; empty while it is not, or has not answered yet."""
        if self.answered is None or self.listened is None or self.missed < MISSED_LOOKS:
            return ""
        if now - self.listened > REFUSED_SECONDS:
            return f"nobody listens at {self.url} any more"
        if now - self.answered > dead_seconds:
            return f"{self.url} has not answered well for {now - self.answered:.0f} s"
        return ""


class Judge:
    """Whether the node lives, from what is seen at each tick."""

    def __init__(
        self, processes: Iterable[str], pages: Iterable[Page], started: float, start_seconds: float, dead_seconds: float
    ) -> None:
        self.processes = dict.fromkeys(processes, False)  # name -> whether it was seen
        self.pages = list(pages)
        self.limit = started + start_seconds
        self.dead_seconds = dead_seconds

    def problem(self, now: float, programs: set[str]) -> str:
        """Why the node is dead; empty while it lives. ``programs``: names of what runs."""
        for name, was_there in self.processes.items():
            if name in programs:
                self.processes[name] = True
            elif was_there:
                return f"{name} is gone"
            elif now > self.limit:
                return f"{name} did not start"
        for page in self.pages:
            if problem := page.problem(now, self.dead_seconds):
                return problem
            if page.answered is None and now > self.limit:
                return f"{page.url} did not answer since the start"
        return ""


def end_all(root: int) -> None:
    """Kill and reap everything below ``root``, which is this process.

    Until all is reaped: a zombie may have threads that still end, and systemd waits a minute for what is left to it.
    """
    while below := descendants(root):
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.05)


def reap() -> dict[int, int]:
    """Take leave of the children that ended: process id -> exit status, negative for a signal."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def supervise(options: argparse.Namespace) -> int:
    """Run the command until the node is dead or was told to end; the exit status."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    told = threading.Event()
    told_at = child = 0

    def pass_on(number: int, _: object) -> None:
        nonlocal told_at
        told_at = told_at or int(time.monotonic())
        told.set()
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    # Only its number is kept: a Popen would reap behind our back.
    child = subprocess.Popen(options.command, stdin=subprocess.DEVNULL).pid
    pages = [Page(url) for url in options.page]
    for page in pages:
        threading.Thread(target=page.watch, daemon=True).start()
    judge = Judge(options.process, pages, time.monotonic(), options.start_seconds, options.dead_seconds)
    stopped: dict[int, float] = {}
    while True:
        ended = reap()
        if child in ended or (told.is_set() and time.monotonic() - told_at > options.stop_seconds):
            if not told.is_set():
                say(f"`ray start` ended with status {ended[child]}")
            elif child not in ended:
                say(f"`ray start` did not end within {options.stop_seconds:g} s: killed")
            end_all(os.getpid())
            return 0 if told.is_set() else 1
        if not told.is_set():
            below, now = descendants(os.getpid()), time.monotonic()
            if problem := judge.problem(now, {name for _, name in below.values()}):
                say(f"{problem}: ending the node, to be started again")
                end_all(os.getpid())
                return 1
            stopped = {pid: stopped.get(pid, now) for pid, (state, _) in below.items() if state == "T"}
            for pid, since in stopped.items():
                if now - since > STOPPED_SECONDS:
                    say(f"process {pid}, {below[pid][1]}, has been stopped for {now - since:.0f} s: killed")
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        time.sleep(TICK_SECONDS)  # a signal does not shorten it; its child's end is seen at the next tick


def main(arguments: list[str] | None = None) -> int:
    """Read the command line; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--process", action="append", default=[], help="program that must run")
    parser.add_argument("--page", action="append", default=[], help="address that must answer 200")
    parser.add_argument("--start-seconds", type=float, default=120)
    parser.add_argument("--dead-seconds", type=float, default=60)
    parser.add_argument("--stop-seconds", type=float, default=50)
    parser.add_argument("command", nargs="+", help="after --: what starts the node and stays")
    return supervise(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())

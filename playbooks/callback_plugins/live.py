"""A line that moves while a task runs, on a terminal; and, at the end, which tasks took longest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: live
type: notification
short_description: Say what runs, on which hosts, how long it has taken and how long it took the last time
description:
  - On a terminal, without C(-v), a task that takes more than two seconds is shown in one line, which is written over
    each second and gone when the task ends. Everywhere else the output is what it is without this plugin.
  - How long a task took is kept in C(.cache/live) beside C(ansible.cfg), one file for each inventory.
  - The tasks that took longest are named at the end of a run, if it took more than ten seconds.
author: Raymetal
"""

SHOWN_AFTER_SECONDS = 2.0
KEPT_FROM_SECONDS = 3.0  # a shorter task needs no forecast
SUMMARY_FROM_SECONDS = 10.0
SLOWEST = 5
HOSTS_NAMED = 3


def duration(seconds: float) -> str:
    """``83 s``, or ``4 min 05 s`` from two minutes on."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02} s"


def line(task: str, seconds: float, last: float | None, waiting: list[str], hosts: int, width: int) -> str:
    """What is shown of a task: its name, hosts that it still runs on, seconds since its start and of the last time."""
    names = ", ".join(waiting[:HOSTS_NAMED]) + (", …" if len(waiting) > HOSTS_NAMED else "")
    where = f" on {names}" if names else ""
    done = f", {hosts - len(waiting)} of {hosts} hosts done" if hosts > 1 else ""
    about = (
        f" of about {duration(last)}"
        if last and seconds <= last
        else f", {duration(last)} the last time"
        if last
        else ""
    )
    end = f"{where}: {duration(seconds)}{about}{done}"
    room = max(width - 1 - len(end) - 2, 10)
    return f"» {task if len(task) <= room else task[: room - 1] + '…'}{end}"[: width - 1]


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "live"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._task, self._since, self._begun = "", time.monotonic(), time.monotonic()
        self._hosts: set[str] = set()
        self._done: set[str] = set()
        self._seconds: dict[str, float] = {}
        self._file: Path | None = None
        self._last: dict[str, float] = {}
        self._painted = self._ended = False
        self._live = sys.stdout.isatty() and self._display.verbosity == 0 and os.environ.get("TERM") != "dumb"
        if self._live:
            self._display.display = self._clearing(self._display.display)  # type: ignore[method-assign]
            threading.Thread(target=self._paint, daemon=True).start()

    def _clearing(self, display: Callable[..., Any]) -> Callable[..., Any]:
        def show(*arguments: Any, **named: Any) -> Any:
            if os.getpid() != self._process:  # a worker, whose output goes through the main process
                return display(*arguments, **named)
            with self._lock:
                self._clear()
                return display(*arguments, **named)

        return show

    def _clear(self) -> None:
        if self._painted:
            self._write("\r\033[K")
            self._painted = False

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(1, text.encode())  # not by sys.stdout: a worker may be forked while its lock is held

    def _paint(self) -> None:
        while not self._ended:
            time.sleep(1)
            with self._lock:
                seconds = time.monotonic() - self._since
                if self._task and seconds > SHOWN_AFTER_SECONDS and not self._ended:
                    waiting = sorted(self._hosts - self._done)
                    width = shutil.get_terminal_size().columns
                    text = line(self._task, seconds, self._last.get(self._task), waiting, len(self._hosts), width)
                    self._write(f"\r\033[K{text}")
                    self._painted = True

    def _next(self, task: str) -> None:
        """The task before is over."""
        with self._lock:
            now = time.monotonic()
            if self._task:
                self._seconds[self._task] = self._seconds.get(self._task, 0) + now - self._since
            self._task, self._since = task, now
            self._hosts, self._done = set(), set()

    def v2_playbook_on_start(self, playbook: Any) -> None:
        from ansible import context

        inventory = sorted(map(os.path.abspath, context.CLIARGS.get("inventory") or [playbook._basedir]))
        folder = Path(constants.CONFIG_FILE).parent if constants.CONFIG_FILE else None
        if folder and (folder / "site.yml").exists():
            name = hashlib.sha256("\n".join(inventory).encode()).hexdigest()[:12]
            self._file = folder / ".cache/live" / f"{name}.json"
            with contextlib.suppress(OSError, ValueError):
                self._last = json.loads(self._file.read_text())

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._next(task.get_name().strip())

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self._next(task.get_name().strip())

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._hosts.add(host.get_name())

    def _host_done(self, result: Any, **_: Any) -> None:
        self._done.add(result._host.get_name())

    v2_runner_on_ok = v2_runner_on_failed = v2_runner_on_skipped = v2_runner_on_unreachable = _host_done

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._next("")
        self._ended = True
        with self._lock:
            self._clear()
        slowest = sorted(self._seconds.items(), key=lambda entry: entry[1], reverse=True)
        if self._file and (kept := {task: round(s, 1) for task, s in slowest if s >= KEPT_FROM_SECONDS}):
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.write_text(json.dumps({**self._last, **kept}, indent=1) + "\n")
        whole = time.monotonic() - self._begun
        if whole > SUMMARY_FROM_SECONDS:
            told = "; ".join(f"{task} {duration(seconds)}" for task, seconds in slowest[:SLOWEST] if seconds >= 1)
            self._display.display(f"\n{duration(whole)} in all. Slowest: {told}")

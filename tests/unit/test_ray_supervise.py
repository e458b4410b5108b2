"""The supervisor of a node: what is dead and what is not, and real processes that it runs and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from support import ROOT, http_server, load

FILE = ROOT / "roles/ray_node/files/ray_supervise.py"
supervise = load("roles/ray_node/files/ray_supervise.py")


class Clock:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def judge(*pages: object) -> object:
    return supervise.Judge(["raylet"], pages, started=0, start_seconds=60, dead_seconds=30)


@pytest.mark.parametrize(
    ("ticks", "problem"),
    [
        ([(1, set())], ""),
        ([(59, set()), (61, set())], "raylet did not start"),
        ([(1, {"raylet"}), (2, set())], "raylet is gone"),
        ([(1, {"raylet"}), (100, {"raylet", "ray"})], ""),
    ],
)
def test_a_process_that_is_gone_or_never_came(ticks: list[tuple[float, set[str]]], problem: str) -> None:
    judged = judge()
    assert [judged.problem(now, seen) for now, seen in ticks][-1] == problem  # type: ignore[attr-defined]


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """A server that takes a connection and says nothing until the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(2)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/opt/env/ray/raylet", "--x=1", ""], "raylet"),
        (["/opt/env/bin/python", "-u", "/opt/ray/_private/log_monitor.py", "--x", ""], "log_monitor.py"),
        (["/opt/env/bin/python3.11", "-m", "ray.util.client.server", "--x.py", ""], "ray.util.client.server"),
        (["python", ""], "python"),
        (["ray::ServeReplica:chat", ""], "ray::ServeReplica:chat"),
        ([""], ""),
    ],
)
def test_a_program_is_what_python_runs(command: list[str], name: str) -> None:
    assert supervise.program(command) == name


def test_a_page_that_answers_no_more() -> None:
    clock, status = Clock(), [200]
    with http_server(lambda *_: (status[0], {})) as url:
        page = supervise.Page(url, clock)
        assert judge(page).problem(61, {"raylet"}) == f"{url} did not answer since the start"  # type: ignore[attr-defined]
        page.look()
        assert page.problem(101, 30) == ""
        status[0] = 503
        clock.now = 120
        page.look()
        assert (page.listened, page.answered) == (120, 100)
        assert page.problem(125, 30) == ""
        clock.now = 131
        page.look()
        assert page.problem(1000, 30) == ""  # too few looks: it may be the host that stood still
        page.look()
        assert page.problem(131, 30) == f"{url} has not answered well for 31 s"
    clock.now = 200
    page.look()  # nobody listens any more: that is no answer, and no listener
    assert (page.listened, page.answered) == (131, 100)
    assert page.problem(140, 60) == ""
    assert page.problem(142, 60) == f"nobody listens at {url} any more"


def test_a_page_that_hangs_listens_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "ANSWER_SECONDS", 0.2)
    clock = Clock()
    with hanging() as url:
        page = supervise.Page(url, clock)
        page.look()
    assert (page.listened, page.answered) == (100, None)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the supervisor over a shell script; what is left at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(FILE), *options, "--", "sh", "-c", script]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# A daemon: its parent has ended, it is in a session of its own and it minds no SIGTERM.
DAEMON = "setsid sh -c 'trap \"\" TERM; echo $$ >daemon; exec sleep 300' & sleep 0.3; "


def daemon(tmp_path: Path) -> int:
    until(lambda: (tmp_path / "daemon").exists() and (tmp_path / "daemon").read_text().strip())
    return int((tmp_path / "daemon").read_text())


def test_a_start_that_fails_leaves_nothing(run: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = run(DAEMON + "exit 3")
    left = daemon(tmp_path)
    assert "`ray start` ended with status 3" in process.communicate(timeout=20)[1]
    assert process.returncode == 1 and not alive(left)


# Its main thread ends, so that the process looks like a zombie, and another one goes on.
HEADLESS = """
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(30,)).start()
open("headless", "w").write(str(os.getpid()))
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_without_its_main_thread_does_not_stay(
    run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Regression: systemd waited a minute for what the supervisor took for a zombie and left to it."""
    (tmp_path / "headless.py").write_text(HEADLESS)
    process = run(f"{sys.executable} headless.py & until [ -s headless ]; do sleep 0.1; done; sleep 0.5; exit 3")
    process.communicate(timeout=20)
    assert not Path(f"/proc/{(tmp_path / 'headless').read_text()}").exists()


def test_told_to_end_it_passes_it_on_and_ends_the_rest(
    run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = run(DAEMON + "trap 'echo drained >drained; exit 1' TERM; while :; do sleep 0.1; done")
    left = daemon(tmp_path)
    time.sleep(0.6)  # until the trap is set
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0 and (tmp_path / "drained").exists() and not alive(left)


def test_what_does_not_end_when_told_is_killed(run: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = run(DAEMON + "trap '' TERM; while :; do sleep 0.1; done", "--stop-seconds=1")
    left = daemon(tmp_path)
    time.sleep(0.6)
    process.terminate()
    assert "did not end within 1 s" in process.communicate(timeout=20)[1]
    assert process.returncode == 0 and not alive(left)


def test_a_process_that_ends_takes_the_node_with_it(run: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """Regression: `ray start --block` does not notice a raylet ended by SIGTERM."""
    os.mkfifo(tmp_path / "hold")
    process = run(DAEMON + "read line <hold", "--process=sleep")
    left = daemon(tmp_path)
    until(lambda: left in (below := supervise.descendants(process.pid)) and below[left][1] == "sleep")
    time.sleep(1.2)  # two looks at least
    assert process.poll() is None
    os.kill(left, signal.SIGKILL)
    assert "sleep is gone" in process.communicate(timeout=20)[1]
    assert process.returncode == 1


def test_a_stopped_process_is_killed_and_the_node_lives(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    text = FILE.read_text().replace("STOPPED_SECONDS = 20.0", "STOPPED_SECONDS = 1.0")
    assert text != FILE.read_text()
    copy = tmp_path / "ray_supervise.py"
    copy.write_text(text)
    monkeypatch.setitem(globals(), "FILE", copy)
    process = run(DAEMON + "while :; do sleep 0.1; done")
    left = daemon(tmp_path)
    os.kill(left, signal.SIGSTOP)
    until(lambda: not alive(left))
    assert process.poll() is None
    process.terminate()
    assert f"process {left}, sleep, has been stopped for" in process.communicate(timeout=20)[1]

"""What the hourly sweep removes and what it leaves: real files, real processes that hold some of them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

PYTHON = "/usr/bin/python3"  # what the unit calls
OLD = time.time() - 7200
MIB = 1024**2
# The sweep refuses root, and root may not look into every process of its own.
UID = 64813 if os.geteuid() == 0 else os.geteuid()
AS_USER: dict[str, Any] = {"user": UID, "group": UID, "extra_groups": []} if os.geteuid() == 0 else {}


class Node:
    """The places of a node, and a sweep over them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("ray", "home", "tmp", "shm", "spill"):
            (root / name).mkdir()
            os.chown(root / name, UID, -1)
        shutil.copy(ROOT / "roles/ray_node/files/ray_sweep.py", root)
        self.flags = {
            "temp-dir": root / "ray",
            "home": root / "home",
            "tmp": root / "tmp",
            "shm": root / "shm",
            "spill-dir": root / "spill",
            "keep-sessions": 1,
            "log-bytes": 4 * MIB,
            "log-file-bytes": MIB,
            "cache-bytes": 2 * MIB,
            "tmp-hours": 1,
            "reserve-percent": 0,
        }

    def file(self, path: str, size_bytes: int = 1, when: float = OLD) -> Path:
        made = self.root / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(b"x" * size_bytes)
        for below in [made, *made.parents]:
            if below == self.root:
                break
            os.chown(below, UID, -1)
            os.utime(below, (when, when))
        return made

    def session(self, number: int) -> str:
        name = f"session_2026-01-0{number}_00-00-00_000000_1"
        self.file(f"ray/{name}/logs/raylet.out")
        return name

    def current(self, name: str) -> None:
        (self.root / "ray/session_latest").symlink_to(self.root / "ray" / name)

    def command(self, **flags: object) -> list[str]:
        given = self.flags | {name.replace("_", "-"): value for name, value in flags.items()}
        return [PYTHON, str(self.root / "ray_sweep.py"), *(f"--{name}={value}" for name, value in given.items())]

    def sweep(self, **flags: object) -> list[str]:
        """Run it; the lines that it says."""
        done: subprocess.CompletedProcess[str]
        done = subprocess.run(self.command(**flags), capture_output=True, text=True, check=False, **AS_USER)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    def left(self, folder: str) -> set[str]:
        return {path.name for path in (self.root / folder).iterdir()}


@pytest.fixture
def node() -> Iterator[Node]:
    """In a place that the service user reaches, which tmp_path is not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Node(Path(folder))


@pytest.fixture
def holder() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def hold(started: list[subprocess.Popen[bytes]], path: Path, mapped: bool = False, *argv: str) -> None:
    """A process that has ``path`` open, or only mapped."""
    code = (
        "import mmap, sys; handle = open(sys.argv[1], 'r+b')\n"
        "kept = mmap.mmap(handle.fileno(), 0) if sys.argv[2] == 'True' else handle\n"
        "del handle; print('open', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [PYTHON, "-c", code, str(path), str(mapped), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        **AS_USER,
    )
    started.append(process)
    assert process.stdout and process.stdout.readline() == b"open\n"


def test_of_the_ended_sessions_the_newest_stay(node: Node) -> None:
    names = [node.session(number) for number in (1, 2, 3, 4)]
    node.current(names[1])  # the newest by name is not always the current one
    node.sweep(keep_sessions=1)
    assert node.left("ray") == {names[1], names[3], "session_latest"}


@pytest.mark.parametrize("keep", [3, 5])
def test_fewer_sessions_than_may_stay_all_stay(node: Node, keep: int) -> None:
    names = [node.session(number) for number in (1, 2, 3, 4)]
    node.current(names[3])
    node.sweep(keep_sessions=keep)
    assert node.left("ray") == {*names, "session_latest"}


def test_a_session_that_just_began_or_that_a_process_uses_stays(
    node: Node, holder: list[subprocess.Popen[bytes]]
) -> None:
    names = [node.session(number) for number in (1, 2, 3, 4)]
    node.current(names[3])
    hold(holder, node.root / "ray" / names[0] / "logs/raylet.out")
    os.utime(node.root / "ray" / names[1])
    node.sweep(keep_sessions=0)
    assert node.left("ray") == {names[0], names[1], names[3], "session_latest"}


def test_what_is_no_session_stays(node: Node) -> None:
    name = node.session(1)
    node.current(node.session(9))
    for foreign in ("session_notes", "prom_metrics_service_discovery.json", f"{name}.tar"):
        node.file(f"ray/{foreign}")
    (node.root / "elsewhere").mkdir()
    link = node.root / "ray/session_2026-01-02_00-00-00_000000_1"
    link.symlink_to(node.root / "elsewhere")
    os.lchown(link, UID, -1)
    node.sweep(keep_sessions=0)
    assert {"session_notes", "prom_metrics_service_discovery.json", f"{name}.tar", link.name} < node.left("ray")
    assert name not in node.left("ray") and (node.root / "elsewhere").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: root only")
def test_what_another_user_owns_stays(node: Node) -> None:
    for path in ("tmp/theirs", "shm/theirs", "ray/session_2026-01-01_00-00-00_000000_1"):
        os.chown(node.file(path), 65534, 65534)
    node.current(node.session(9))
    node.sweep(keep_sessions=0)
    assert node.left("tmp") == node.left("shm") == {"theirs"}
    assert "session_2026-01-01_00-00-00_000000_1" in node.left("ray")


def test_logs_that_nobody_writes_go_the_oldest_first(node: Node, holder: list[subprocess.Popen[bytes]]) -> None:
    session = node.session(1)
    node.current(session)
    for number in range(6):
        node.file(f"ray/{session}/logs/old/worker-{number}.out", MIB, OLD + number)
    hold(holder, node.root / "ray" / session / "logs/old/worker-0.out")
    node.sweep(log_bytes=4 * MIB + 4096)
    assert node.left(f"ray/{session}/logs/old") == {"worker-0.out", "worker-3.out", "worker-4.out", "worker-5.out"}


def test_a_log_that_its_process_does_not_rotate_is_emptied(node: Node, holder: list[subprocess.Popen[bytes]]) -> None:
    session = node.session(1)
    node.current(session)
    large = node.file(f"ray/{session}/logs/dashboard.err", 3 * MIB)
    within = node.file(f"ray/{session}/logs/raylet.err", MIB)
    for path in (large, within):
        hold(holder, path)
    said = node.sweep(log_file_bytes=MIB)
    assert (large.stat().st_size, within.stat().st_size) == (0, MIB)
    assert said == [f"<5>freed 0.003 GiB: {large} (emptied)"]


def test_objects_of_a_node_that_ended_go_those_of_a_running_one_stay(
    node: Node, holder: list[subprocess.Popen[bytes]]
) -> None:
    session = node.session(1)
    node.current(session)
    for place in (f"ray/{session}", "spill"):
        for number in ("aa11", "bb22", "cc33"):
            node.file(f"{place}/ray_spilled_objects_{number}/object", MIB, time.time() if number == "cc33" else OLD)
    node.file("spill/notes")
    hold(holder, node.file("lock"), False, "--node_id=bb22")
    node.sweep()
    expected = {"ray_spilled_objects_bb22", "ray_spilled_objects_cc33"}
    assert node.left("spill") == {*expected, "notes"}
    assert node.left(f"ray/{session}") == {*expected, "logs"}


def test_shared_memory_of_the_dead_goes_that_of_the_living_stays(
    node: Node, holder: list[subprocess.Popen[bytes]]
) -> None:
    for name in ("psm_dead", "psm_open", "sem.mapped"):
        node.file(f"shm/{name}")
    node.file("shm/psm_new", when=time.time())
    hold(holder, node.root / "shm/psm_open")
    hold(holder, node.root / "shm/sem.mapped", True)
    node.sweep()
    assert node.left("shm") == {"psm_open", "sem.mapped", "psm_new"}


def test_in_tmp_what_is_old_and_unused_goes_a_socket_that_is_listened_to_stays(node: Node) -> None:
    node.file("tmp/torchinductor/kernel.so")
    node.file("tmp/used_today/kernel.so", when=time.time())
    os.utime(node.root / "tmp/used_today", (OLD, OLD))
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as closed:
        listening.bind(str(node.root / "tmp/rpc"))
        listening.listen()
        closed.bind(str(node.root / "tmp/dead"))
        closed.close()
        for name in ("rpc", "dead"):
            os.chown(node.root / "tmp" / name, UID, -1)
            os.utime(node.root / "tmp" / name, (OLD, OLD))
        node.sweep(tmp_hours=1)
        assert node.left("tmp") == {"used_today", "rpc"}


def test_caches_beyond_their_bound_go_the_oldest_first_but_not_one_in_use(
    node: Node, holder: list[subprocess.Popen[bytes]]
) -> None:
    used = node.file("home/.cache/vllm/compiled.so", MIB, OLD)
    for number, path in enumerate((".cache/flashinfer/a", ".triton/b", ".cache/torch/c")):
        node.file(f"home/{path}", MIB, OLD + 1 + number)
    node.file("home/kept", 8 * MIB)
    hold(holder, used, True)
    node.sweep(cache_bytes=2 * MIB + 20000)
    assert node.left("home/.cache") == {"vllm", "torch"}
    assert node.left("home") == {".cache", "kept"}


def test_a_disk_below_its_reserve_is_said_once_and_all_that_is_not_in_use_goes(node: Node) -> None:
    names = [node.session(number) for number in (1, 2, 3)]
    node.current(names[2])
    said = node.sweep(keep_sessions=2, reserve_percent=100)
    assert node.left("ray") == {names[2], "session_latest"}
    assert said[0].startswith("<5>freed ")
    assert [line for line in said if line.startswith("<4>")] == said[1:] and len(said) == 2
    assert "less than the reserve of 100 %" in said[1] and "To do:" in said[1]


def test_with_room_and_nothing_to_do_nothing_is_said(node: Node) -> None:
    node.current(node.session(1))
    assert node.sweep() == []


def test_a_node_that_never_started_is_no_error(node: Node) -> None:
    shutil.rmtree(node.root / "ray")
    assert node.sweep() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="is about root")
def test_root_is_refused(node: Node) -> None:
    done = subprocess.run(node.command(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "run as the service user" in done.stderr

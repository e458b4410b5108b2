"""What a host still carries: real processes, files, sockets and a user that is made for the test and removed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import run_module

MODULE = "roles/gpu_host/library/leftovers.py"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("useradd"), reason="makes a user: root only")
LISTEN = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"


def look(**params: Any) -> dict[str, Any]:
    return run_module(MODULE, **{"cluster": "prod", **params})


def test_a_clean_host_has_none(tmp_path: Path) -> None:
    traces = [{"units": ["raymetal-none.*"], "paths": [str(tmp_path / "no*")], "tables": ["raymetal-none*"]}]
    found = look(user="no-such-user", home=str(tmp_path / "none"), traces=traces)
    assert (found["changed"], found["leftovers"], found["foreign"], found["uid"]) == (False, [], {}, 0)


def test_root_is_refused() -> None:
    assert "user root" in look(user="root", state="absent")["msg"]


def test_paths_are_found_by_glob_a_broken_link_too(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "gone")
    (tmp_path / "other").touch()
    traces = [{"paths": [str(tmp_path / "e*"), str(tmp_path / "current"), str(tmp_path / "nothing")]}]
    assert look(traces=traces)["leftovers"] == [str(tmp_path / "env"), str(tmp_path / "current")]


def test_what_belongs_to_another_cluster_is_left_out_and_named(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for place, name in ((ours, "prod"), (theirs, "other")):
        place.mkdir()
        (place / "cluster").write_text(f"{name}\n")
    traces = [{"marker": str(place / "cluster"), "paths": [str(place)]} for place in (ours, theirs)]
    found = look(traces=traces)
    assert (found["leftovers"], found["foreign"]) == ([str(ours)], {str(theirs / "cluster"): "other"})


def test_a_process_of_anybody_that_uses_a_path_is_found(tmp_path: Path) -> None:
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", "input()", f"--config={tmp_path}/a.cfg"], stdin=subprocess.PIPE
    ) as ours:
        found = look(traces=[{"paths": [str(tmp_path)]}])["leftovers"]
        beside = look(traces=[{"paths": [f"{tmp_path}-beside", str(tmp_path)[:-1]]}])["leftovers"]
        ours.kill()
    assert [line.split(":")[0] for line in found if line.startswith("process")] == [f"process {ours.pid}"]
    assert str(tmp_path) in found and not [line for line in beside if line.startswith("process")]


@pytest.fixture
def user() -> Iterator[str]:
    name = f"raymetal-l{os.getpid()}"
    subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name], check=True)
    uid = pwd.getpwnam(name).pw_uid
    yield name
    # Not those of containers, whose users have the same numbers.
    own = ["--ns", str(os.getpid()), "--nslist", "pid"]
    subprocess.run(["pkill", "-KILL", *own, "--uid", str(uid)], check=False)
    subprocess.run(["userdel", name], check=False)


@pytest.fixture
def places(user: str, tmp_path: Path) -> dict[str, Any]:
    """Temporary directories, each with a file, a directory and a link of the user, and a file of root."""
    uid = pwd.getpwnam(user).pw_uid
    (tmp_path / "target").touch()
    (tmp_path / "home").mkdir()
    for folder in (tmp_path / "tmp", tmp_path / "shm"):
        (folder / "cache/inner").mkdir(parents=True)
        (folder / "cache/inner/kernel.so").touch()
        (folder / "psm_1").touch()
        (folder / "theirs").touch()
        (folder / "link").symlink_to(tmp_path / "target")
        for path in (folder / "cache", folder / "psm_1", folder / "link"):
            os.lchown(path, uid, uid)
    os.chown(tmp_path / "home", uid, uid)
    temporary = [str(tmp_path / name) for name in ("tmp", "shm", "none")]
    return {"user": user, "home": str(tmp_path / "home"), "temporary": temporary}


@AS_ROOT
def test_user_group_files_processes_and_ports_are_found(user: str, places: dict[str, Any]) -> None:
    uid = pwd.getpwnam(user).pw_uid
    command = ["/usr/bin/python3", "-c", LISTEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=uid, cwd="/") as listening:
        assert listening.stdout
        port = int(listening.stdout.readline())
        found = look(**places)
        listening.kill()
    assert found["uid"] == uid and not found["changed"]
    process, *rest = found["leftovers"]
    assert process.startswith(f"process {listening.pid}: /usr/bin/python3 -c")
    assert rest == [
        f"port {port}",
        *(f"{folder}/{name}" for folder in places["temporary"][:2] for name in ("cache", "link", "psm_1")),
        f"user {user}",
        f"group {user}",
    ]


@AS_ROOT
@pytest.mark.parametrize("gone", [False, True])
def test_what_has_no_path_known_before_is_ended_and_removed(
    user: str, places: dict[str, Any], tmp_path: Path, gone: bool
) -> None:
    """Also when the user is gone already: the owner of its home is then its number."""
    uid = pwd.getpwnam(user).pw_uid
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen(["/usr/bin/python3", "-c", stubborn], stdout=subprocess.PIPE, user=uid, cwd="/") as process:
        assert process.stdout and process.stdout.readline() == b"\n"
        if gone:
            subprocess.run(["userdel", "--force", user], check=True)
        tried = run_module(MODULE, check=True, cluster="prod", state="absent", **places)
        assert tried["changed"] and process.poll() is None and (tmp_path / "tmp/psm_1").exists()
        done = look(state="absent", timeout_seconds=1, **places)
        assert process.wait(5) == -signal.SIGKILL
    assert done["changed"] and done["uid"] == uid and done["leftovers"] == tried["leftovers"]
    assert [path.name for name in ("tmp", "shm") for path in (tmp_path / name).iterdir()] == ["theirs", "theirs"]
    assert (tmp_path / "target").exists()
    again = look(state="absent", **places)
    assert (again["changed"], again["leftovers"]) == (False, [])


@AS_ROOT
def test_files_of_a_user_and_a_home_that_are_gone_are_found_by_their_number(
    user: str, places: dict[str, Any], tmp_path: Path
) -> None:
    uid = pwd.getpwnam(user).pw_uid
    subprocess.run(["userdel", user], check=True)
    (tmp_path / "home").rmdir()
    assert look(**places)["leftovers"] == []
    assert len(look(uid=uid, **places)["leftovers"]) == 6


@AS_ROOT
def test_a_home_that_somebody_else_has_by_now_names_nobody(places: dict[str, Any], tmp_path: Path) -> None:
    os.chown(tmp_path / "home", 65534, 65534)
    assert look(**{**places, "user": "no-such-user"})["uid"] == 0

"""The Ray processes of a user: real processes, of a user that is made for the test and removed."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import http_server, run_module

MODULE = "roles/ray_node/library/ray_processes.py"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("useradd"), reason="makes a user: root only")


def test_query_finds_the_processes_of_a_user() -> None:
    result = run_module(MODULE, user=getpass.getuser())
    assert os.getpid() in result["processes"]
    assert (result["changed"], result["node_id"], result["config"]) == (False, "", "")


@pytest.mark.parametrize("state", ["query", "absent"])
def test_a_user_that_does_not_exist_has_none(state: str) -> None:
    result = run_module(MODULE, user="no-such-user", state=state)
    assert (result["changed"], result["processes"]) == (False, [])


@pytest.mark.parametrize(
    ("params", "missing"), [({"state": "ready"}, "config, agent_url"), ({"state": "started"}, "config, command")]
)
def test_what_a_state_needs(params: dict[str, Any], missing: str) -> None:
    assert missing in run_module(MODULE, user="no-such-user", **params)["msg"]


@pytest.fixture(scope="module")
def made() -> Iterator[str]:
    """A system user of this run alone: the module ends every process of it."""
    name = f"raymetal-t{os.getpid()}"
    with pytest.raises(KeyError):
        pwd.getpwnam(name)
    subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name], check=True)
    yield name
    subprocess.run(["userdel", name], check=True)


@pytest.fixture
def user(made: str) -> Iterator[str]:
    yield made
    for pid in run_module(MODULE, user=made)["processes"]:
        os.kill(pid, 9)


def spawn(user: str, *argv: str, **environment: str) -> subprocess.Popen[bytes]:
    """A process of ``user`` in a session of its own."""
    whose: dict[str, Any] = {"user": user, "group": user, "extra_groups": []}
    return subprocess.Popen(argv, env={"PATH": "/usr/bin:/bin", **environment}, start_new_session=True, **whose)


def raylet(folder: Path, user: str, config: str) -> subprocess.Popen[bytes]:
    """A stand-in that looks like a raylet: its name, its node id, its environment."""
    folder.chmod(0o755)
    for parent in list(folder.parents)[:2]:
        parent.chmod(0o755)
    binary = folder / "raylet"
    shutil.copy(shutil.which("python3", path="/usr/bin") or "python3", binary)
    return spawn(user, str(binary), "-c", "import time; time.sleep(60)", "--node_id=abc", RAYMETAL_CONFIG=config)


def wait_for(user: str, count: int) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while True:
        result = run_module(MODULE, user=user)
        if len(result["processes"]) >= count or time.monotonic() > deadline:
            return result


@AS_ROOT
def test_absent_ends_all_of_them_and_says_so(user: str) -> None:
    polite = spawn(user, "sleep", "60")
    stubborn = spawn(user, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    other = subprocess.Popen(["sleep", "60"])
    try:
        assert len(wait_for(user, 2)["processes"]) >= 2
        dry = run_module(MODULE, check=True, user=user, state="absent")
        assert dry["changed"] and polite.poll() is None and stubborn.poll() is None
        assert run_module(MODULE, user=user, state="absent", timeout_seconds=1)["changed"]
        assert polite.wait(5) == -15 and stubborn.wait(5) == -9
        assert other.poll() is None  # nobody else's
        again = run_module(MODULE, user=user, state="absent")
        assert (again["changed"], again["processes"]) == (False, [])
    finally:
        other.kill()
        other.wait()


@AS_ROOT
def test_what_a_container_runs_under_the_same_number_is_left_alone(user: str) -> None:
    """Regression: the numbers of system users are those that images use, too (999 for one)."""
    enter = ["unshare", "--pid", "--fork", "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    contained = subprocess.Popen([*enter, "sleep", "60"])
    inside, deadline = "", time.monotonic() + 10
    find = ["pgrep", "-x", "-P", str(contained.pid), "sleep"]
    while not inside and time.monotonic() < deadline:
        inside = subprocess.run(find, capture_output=True, text=True, check=False).stdout
    try:
        result = run_module(MODULE, user=user, state="absent", timeout_seconds=1)
        assert (result["changed"], result["processes"]) == (False, [])
        assert contained.poll() is None
    finally:
        os.kill(int(inside), 9)
        contained.wait()


@AS_ROOT
def test_a_running_node_is_read_and_left_alone(user: str, tmp_path: Path) -> None:
    node = raylet(tmp_path, user, "c1")
    seen = wait_for(user, 1)
    assert (seen["node_id"], seen["config"]) == ("abc", "c1")
    started = run_module(MODULE, user=user, state="started", config="c1", command=["false"])
    assert not started["changed"] and node.poll() is None
    dry = run_module(MODULE, check=True, user=user, state="started", config="c2", command=["false"])
    assert dry["changed"] and node.poll() is None
    with http_server(lambda *_: (200, {})) as url:
        assert run_module(MODULE, user=user, state="ready", config="c1", agent_url=url)["node_id"] == "abc"
    late = run_module(MODULE, user=user, state="ready", config="c1", agent_url=url, timeout_seconds=0)
    assert late["failed"] and f"{url} does not answer" in late["msg"]
    node.kill()
    node.wait()


@AS_ROOT
def test_ready_says_that_nothing_runs(user: str) -> None:
    url = "http://127.0.0.1:9"
    result = run_module(MODULE, user=user, state="ready", config="c1", agent_url=url, timeout_seconds=0)
    assert result["failed"] and "no raylet runs" in result["msg"]


@AS_ROOT
def test_a_start_that_fails_is_cleaned_up_and_tried_again(user: str, tmp_path: Path) -> None:
    """The second try succeeds; what the first left behind is gone."""
    marker, script = tmp_path / "tried", tmp_path / "start"
    left = f"setpriv --reuid={user} --regid={user} --clear-groups sleep 60 & echo $! >> {marker}\n"
    left += f"until [ $(stat -c %u /proc/$!) = $(id -u {user}) ]; do :; done"  # it has become the user's
    script.write_text(f"#!/bin/sh\n{left}\n[ $(wc -l < {marker}) -ge 2 ] || {{ echo agent timed out; exit 1; }}\n")
    script.chmod(0o755)
    result = run_module(MODULE, user=user, state="started", config="c1", command=[str(script)])
    first, second = (int(line) for line in marker.read_text().split())
    assert result["changed"] and "start 1 of 3 failed and was cleaned up" in str(result["warnings"])
    assert first != second and result["processes"] == [second]


@AS_ROOT
def test_a_start_that_never_succeeds_gives_its_last_words(user: str) -> None:
    command = ["sh", "-c", "echo no space left; exit 3"]
    result = run_module(MODULE, user=user, state="started", config="c1", command=command, attempts=2)
    assert result["failed"] and "2 attempts" in result["msg"] and "no space left" in result["msg"]


@pytest.mark.parametrize("state", ["started", "absent"])
def test_it_never_ends_the_processes_of_root(state: str) -> None:
    params: dict[str, Any] = {"config": "c", "command": ["false"]} if state == "started" else {}
    result = run_module(MODULE, check=True, user="root", state=state, **params)  # a dry run, should the guard be gone
    assert result["failed"] and "every process of root" in result["msg"]

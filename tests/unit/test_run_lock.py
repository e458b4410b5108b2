"""The lock of a run: its module on a real file, its judgement of processes, and both as ansible-playbook runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, load, run_module

MODULE = "roles/run_lock/library/run_lock.py"
action = load("roles/run_lock/action_plugins/run_lock.py")


def holder(name: str) -> dict[str, str]:
    return {"id": name, "what": "site.yml", "user": "me", "host": "here", "since": "now"}


def take(path: Path, name: str, **more: Any) -> dict[str, Any]:
    return run_module(MODULE, path=str(path), state="taken", holder=holder(name), **more)


def release(path: Path, name: str) -> dict[str, Any]:
    return run_module(MODULE, path=str(path), state="released", holder=holder(name))


def test_one_holds_it_until_it_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert take(path, "a")["held"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert take(path, "a")["held"], "a run may take it twice"
    refused = take(path, "b")
    assert not refused["held"] and refused["other"]["id"] == "a" and not refused["changed"]
    assert release(path, "b")["other"]["id"] == "a" and path.exists(), "another's lock stays"
    assert not release(path, "a")["other"] and not path.exists()
    assert not release(path, "a")["other"], "given back already"
    assert take(path, "b")["held"]


@pytest.mark.parametrize("more", [{"gone": "a"}, {"take_over": True}])
def test_it_is_taken_from_the_dead_and_by_order(tmp_path: Path, more: dict[str, Any]) -> None:
    path = tmp_path / "lock"
    take(path, "a")
    taken = take(path, "b", **more)
    assert taken["held"] and taken["other"]["id"] == "a" and json.loads(path.read_text())["id"] == "b"


def test_it_is_not_taken_from_one_who_came_after_the_dead(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    take(path, "c")
    assert not take(path, "b", gone="a")["held"]


def test_a_dry_run_takes_nothing_and_stops_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not take(path, "a", check=True).get("failed") and not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_an_unreadable_lock_is_held(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lock"
    path.write_text(text)
    found = take(path, "a")
    assert not found["held"] and "unreadable" in found["other"]["what"]
    assert take(path, "a", take_over=True)["held"]


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    found = take(tmp_path / "none" / "lock", "a")
    assert found["failed"] and "cannot be written" in found["msg"] and "run_lock_path" in found["msg"]


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    path, held = tmp_path / "lock", []

    def one(name: str) -> None:
        if take(path, name)["held"]:
            held.append(name)

    threads = [threading.Thread(target=one, args=(str(number),)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and json.loads(path.read_text())["id"] == held[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]


def test_whether_a_holder_has_ended() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        lives = {"machine": action.machine(), "pid": process.pid, "ticks": action.started(process.pid)}
        assert lives["ticks"] and not action.ended(lives)
        assert action.ended({**lives, "ticks": "1"}), "another process has the number now"
        assert not action.ended({**lives, "machine": "another", "ticks": "1"}), "of others nothing is known"
        process.kill()
    assert action.ended(lives)
    assert not action.ended({"id": "unreadable"})


PLAY = """
- hosts: localhost
  gather_facts: false
  roles: [run_lock]
  tasks:
    - name: Work
      ansible.builtin.command: {{argv: [sh, -c, "touch {begun}; while [ ! -e {end} ]; do sleep 0.1; done"]}}
      changed_when: false
    - ansible.builtin.import_role: {{name: run_lock, tasks_from: release}}
"""


def play(folder: Path, path: Path, *more: str) -> list[str]:
    name = folder / "play.yml"
    name.write_text(PLAY.format(begun=folder / "begun", end=folder / "end"))
    values = {"run_lock_path": str(path), "ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    return [
        str(Path(sys.executable).parent / "ansible-playbook"),
        "-i",
        "localhost,",
        "-e",
        json.dumps(values),
        *more,
        str(name),
    ]


def test_two_runs_and_one_that_was_killed(tmp_path: Path) -> None:
    """As operators meet it: the second is told who the first is; a killed one stands in nobody's way."""
    path = tmp_path / "lock"
    settings = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_LOCALHOST_WARNING": "False"}
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    (folders[1] / "end").touch()

    def second(*more: str) -> tuple[int, str]:
        done = subprocess.run(
            play(folders[1], path, *more),
            env=settings,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    with subprocess.Popen(
        play(folders[0], path, "-e", "password=hidden"),
        env=settings,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as first:
        try:
            while not (folders[0] / "begun").exists():
                assert first.poll() is None
            status, said = second()
            assert status != 0 and f"process {first.pid}, since" in said and "first/play.yml of " in said, said
            assert "run_lock_take_over=true" in said and not (folders[1] / "begun").exists()
            assert "hidden" not in path.read_text()
            assert second("--check")[0] == 0, "a dry run is not stopped"
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            (folders[0] / "end").touch()  # its task is in a session of its own
    status, said = second()
    assert status == 0 and f"process {first.pid}" in said and "was taken over" in said, said
    assert not path.exists()

"""The line that moves: what it says, that a terminal alone sees it, and that it leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from support import ROOT, load

live = load("playbooks/callback_plugins/live.py")
PLAYBOOK = """\
- name: Take time
  hosts: all
  gather_facts: false
  tasks:
    - name: Take some seconds
      ansible.builtin.command: {argv: [sleep, "4"]}
    - name: Be quick
      ansible.builtin.command: {argv: ["true"]}
"""


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("Start it", 83.2, None, ["head"], 1, 80), "» Start it on head: 83 s"),
        (("Start it", 83.2, 120, ["head"], 1, 80), "» Start it on head: 83 s of about 2 min 00 s"),
        (("Start it", 183, 120, ["head"], 1, 80), "» Start it on head: 3 min 03 s, 2 min 00 s the last time"),
        (("Copy", 9, None, ["b", "c"], 3, 80), "» Copy on b, c: 9 s, 1 of 3 hosts done"),
        (("Copy", 9, None, list("abcd"), 9, 80), "» Copy on a, b, c, …: 9 s, 5 of 9 hosts done"),
        (("A name that is much too long for this", 9, None, ["a"], 1, 30), "» A name that is m… on a: 9 s"),
    ],
)
def test_line(given: tuple[str, float, float | None, list[str], int, int], text: str) -> None:
    assert live.line(*given) == text and len(text) < given[-1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of the form of ours, with one playbook that takes some seconds."""
    (tmp_path / "ansible.cfg").write_text(
        f"[defaults]\ncallback_plugins = {ROOT}/playbooks/callback_plugins\ncallbacks_enabled = live\n"
        "interpreter_python = /usr/bin/python3\n"
    )
    (tmp_path / "site.yml").write_text(PLAYBOOK)
    (tmp_path / "hosts").write_text("one ansible_connection=local\ntwo ansible_connection=local\n")
    return tmp_path


def command(project: Path, *more: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "ANSIBLE_CONFIG": str(project / "ansible.cfg"), "TERM": "xterm", "COLUMNS": "100"}
    return ["ansible-playbook", "-i", str(project / "hosts"), *more, str(project / "site.yml")], environment


def on_a_terminal(project: Path, *more: str) -> str:
    main, other = pty.openpty()
    argv, environment = command(project, *more)
    with subprocess.Popen(argv, env=environment, cwd=project, stdin=other, stdout=other, stderr=other) as process:
        os.close(other)
        seen = b""
        try:
            while part := os.read(main, 65536):
                seen += part
        except OSError:  # its other end is closed
            pass
    os.close(main)
    assert process.returncode == 0, seen.decode()
    return seen.decode()


def test_a_terminal_sees_it_move_and_go(project: Path) -> None:
    first = on_a_terminal(project)
    assert re.search(r"\r\033\[K» Take some seconds on [a-z, ]+: \d+ s", first), first
    assert "\r\033[K" in first.rpartition("\r\033[K» ")[2], "what was shown last is wiped"
    (kept,) = (project / ".cache/live").iterdir()
    kept.write_text('{"Take some seconds": 60}\n')
    assert re.search(r"Take some seconds on [a-z, ]+: \d+ s of about 60 s", on_a_terminal(project))


def test_elsewhere_nothing_moves(project: Path) -> None:
    argv, environment = command(project)
    done = subprocess.run(argv, env=environment, cwd=project, capture_output=True, text=True, check=True, timeout=60)
    assert "»" not in done.stdout and "\033" not in done.stdout
    assert "»" not in on_a_terminal(project, "-v")

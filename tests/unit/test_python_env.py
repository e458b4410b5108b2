"""Who builds an environment, and who takes it from another host."""

from __future__ import annotations

import pytest
from support import load

python_env = load("roles/python_env/filter_plugins/python_env.py")


def has(environment: bool = False, archive: bool = False, key: str = "x") -> dict[str, object]:
    return {"key": key, "environment": environment, "archive": archive}


@pytest.mark.parametrize(
    ("hosts", "builds", "packs", "takes"),
    [
        pytest.param({"a": has()}, ["a"], [], [], id="one host builds for itself"),
        pytest.param({"a": has(), "b": has(), "c": has()}, ["a"], ["a"], ["b", "c"], id="the first builds for all"),
        pytest.param({"a": has(), "b": has(True), "c": has()}, [], ["b"], ["a", "c"], id="who has it packs it"),
        pytest.param({"a": has(), "b": has(archive=True)}, [], ["b"], ["a"], id="who has the archive needs no other"),
        pytest.param({"a": has(True), "b": has(True)}, [], [], [], id="all have it"),
        pytest.param({"a": has(), "b": has(key="y"), "c": has(key="y")}, ["a", "b"], ["b"], ["c"], id="two locks"),
    ],
)
def test_parts(hosts: dict[str, dict[str, object]], builds: list[str], packs: list[str], takes: list[str]) -> None:
    parts = python_env.python_env_parts(hosts, True)
    for part, those in (("builds", builds), ("packs", packs), ("takes", takes)):
        assert [host for host in parts if parts[host][part]] == those
    for part in python_env.python_env_parts(hosts, False).values():
        assert part == {"builds": part["builds"], "packs": False, "takes": False}


def test_what_is_said() -> None:
    parts = python_env.python_env_parts({"a": has(), "b": has(), "c": has()}, True)
    told = ["a makes the environment: gigabytes, some minutes", "a packs it for others", "b, c take it from there"]
    assert python_env.python_env_said(parts) == told
    assert python_env.python_env_said(python_env.python_env_parts({"a": has(True)}, True)) == []


@pytest.mark.parametrize(
    ("keep", "used", "gone"),
    [
        (1, ["/e/c"], ["/e/a", "/e/b"]),  # the wanted one need not be the newest
        (1, ["/e/c", "/e/a"], ["/e/b"]),  # what runs stays
        (0, ["/e/c"], ["/e/a", "/e/b", "/e/d"]),
        (3, ["/e/c"], []),
        (9, [], []),
    ],
)
def test_environments_that_may_go(keep: int, used: list[str], gone: list[str]) -> None:
    found = [{"path": f"/e/{name}", "mtime": age} for age, name in enumerate("abcd")]
    assert python_env.python_env_removable(found, keep, used) == gone

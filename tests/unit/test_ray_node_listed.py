"""Waiting for the head to list a node, against a real HTTP server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import http_server, load, run_module

MODULE = "roles/ray_node/library/ray_node_listed.py"
module = load(MODULE)
NODE = {"node_id": "aa", "state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 2.0, "rack": 1.0}}
DEAD = {**NODE, "node_id": "dd", "state": "DEAD", "state_message": "health check failed"}


@pytest.mark.parametrize(
    ("node_id", "resources", "wrong"),
    [
        ("aa", {"CPU": 4, "GPU": 2, "rack": 1}, ""),
        ("aa", {"CPU": 0, "TPU": 0}, ""),
        ("aa", {}, ""),
        ("bb", {}, "the head does not list node bb"),
        ("dd", {}, "lists the node as DEAD: health check failed"),
        ("aa", {"CPU": 4, "GPU": 8, "row": 1}, "the node offers too little: GPU 2.0 of 8, row 0 of 1"),
    ],
)
def test_shortcomings(node_id: str, resources: dict[str, float], wrong: str) -> None:
    found, text = module.shortcomings([DEAD, NODE], node_id, resources)
    assert wrong in text and bool(text) == bool(wrong)
    assert (found or {}).get("node_id") == (None if node_id == "bb" else node_id)


class Head:
    """The state API of a head: ``answers`` one after the other, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[str] = []

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        self.asked.append(path)
        if headers.get("Authorization") != "Bearer secret":
            return 401, {"error": "Unauthorized"}
        status, nodes = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return status, {"data": {"result": {"result": nodes}}}


@pytest.fixture
def head() -> Head:
    return Head()


@pytest.fixture
def listed(head: Head, tmp_path: Path) -> Iterator[Any]:
    """Runs the module against the head."""
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "wrong").write_text("other\n")
    with http_server(head.answer) as url:

        def run(
            node_id: str = "aa", token: str = "token", seconds: int = 0, required: bool = True, **resources: float
        ) -> dict[str, Any]:
            path = str(tmp_path / token)
            asked: dict[str, Any] = {"node_id": node_id, "resources": resources, "required": required}
            asked["timeout_seconds"] = seconds
            return run_module(MODULE, url=url, token_path=path, **asked)

        yield run


def test_the_node_is_listed(head: Head, listed: Any) -> None:
    head.answers = [(200, [DEAD, NODE])]
    result = listed(GPU=2)
    assert not result["changed"] and result["node"]["node_id"] == "aa"
    assert "detail=1" in head.asked[0]  # without it no resources are told


def test_it_waits(head: Head, listed: Any) -> None:
    head.answers = [(500, []), (200, []), (200, [{**NODE, "resources_total": {}}]), (200, [NODE])]
    assert listed(seconds=20, GPU=2)["node"]["node_id"] == "aa"
    assert len(head.asked) == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"node_id": "dd"}, "DEAD: health check failed"),
        ({"node_id": "bb"}, "does not list node bb"),
        ({"GPU": 8}, "GPU 2.0 of 8"),
    ],
)
def test_it_says_what_is_wrong(head: Head, listed: Any, arguments: dict[str, Any], text: str) -> None:
    head.answers = [(200, [DEAD, NODE])]
    result = listed(**arguments)
    assert result["failed"] and result["msg"].startswith("after 0 s: ") and text in result["msg"]


def test_a_wrong_token_is_told_without_waiting(head: Head, listed: Any) -> None:
    head.answers = [(200, [NODE])]
    result = listed(token="wrong", seconds=60)
    assert result["failed"] and "answers 401" in result["msg"] and "To do: compare" in result["msg"]
    assert len(head.asked) == 1


def test_a_moment_without_an_answer_says_nothing_about_the_node(head: Head, listed: Any) -> None:
    """A node that serves must not be taken for one that is not listed."""
    head.answers = [(500, []), (503, []), (200, [NODE])]
    assert listed(seconds=20, required=False)["listed"]
    head.answers = [(500, [])]
    assert listed(required=False)["failed"]
    head.answers = [(200, [DEAD])]
    assert listed(required=False, seconds=20)["listed"] is False


def test_a_head_that_does_not_run_lists_nobody(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    asked: dict[str, Any] = {"node_id": "aa", "timeout_seconds": 20, "url": "http://127.0.0.1:9", "required": False}
    assert run_module(MODULE, token_path=str(tmp_path / "token"), **asked)["listed"] is False


def test_nobody_answers(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    asked: dict[str, Any] = {"node_id": "aa", "timeout_seconds": 0, "url": "http://127.0.0.1:9"}
    assert "does not answer" in run_module(MODULE, token_path=str(tmp_path / "token"), **asked)["msg"]

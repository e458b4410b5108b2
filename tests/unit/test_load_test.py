"""The load test without Locust: requests against a real server that fails on demand, options, records, bounds."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import select
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, load

# Its files find each other as they do for Locust, which runs them from their own directory.
sys.path.insert(0, str(ROOT / "files/load_test"))
from chat_client import Answer, ChatClient
from load_options import add_options, arrival_times, headers, option_problems, read_prompts, request_bodies
from load_records import Records, percentile, sentence, shortcomings

chat_server = load("molecule/load_test/files/chat_server.py")
load_test = load("roles/load_test/filter_plugins/load_test.py")
BODY: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def server() -> Iterator[Any]:
    found = chat_server.Server(("127.0.0.1", 0))
    found.handle_error = lambda *_: None  # a client that has gone away
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def client(server: Any, keep_alive: bool = False, timeout: float = 5, **more: str) -> ChatClient:
    address = f"http://127.0.0.1:{server.server_port}/some/prefix/"
    return ChatClient(address, "/v1/chat/completions", more, timeout, 0.4, keep_alive)


def ask(server: Any, stream: bool, timeout: float = 5) -> Answer:
    return client(server, timeout=timeout).ask({**BODY, "stream": stream}, time.perf_counter())


@pytest.mark.parametrize("keep_alive", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_good_answer(server: Any, stream: bool, keep_alive: bool) -> None:
    server.behaviour = {"gap_seconds": 0.02, "key": "sesame"}
    asking = client(server, keep_alive, Authorization="Bearer sesame")
    for _ in range(3):
        answer = asking.ask({**BODY, "stream": stream}, time.perf_counter() - 0.1)
        assert not answer.failure, answer.error
        assert (answer.status, answer.model, answer.fingerprint, answer.tokens) == (200, "chat", "fp-1", 5)
        assert answer.headers == {"x-revision": "r1"} and answer.answer == "Paris is the capital."
        assert 0.1 <= answer.lag_seconds <= answer.seconds, "the time counts from the scheduled arrival"
        assert (answer.first_token_seconds is not None) == stream
    assert server.count == 3 and len(asking.idle) == keep_alive
    asking.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "failure", "text"),
    [
        ("cut", "cut", "IncompleteRead"),
        ("no_finish", "cut", "without finish_reason after 5 tokens"),
        ("status", "status 500", "out of order"),
        ("malformed", "malformed", ""),
        ("error_event", "malformed", "engine died"),
        ("empty", "empty", "no token"),
        ("reset", "cut", "ConnectionResetError"),
        ("stall", "stall", "in which no part of the answer came"),
    ],
)
def test_each_fault_is_a_failure_and_nothing_is_asked_twice(
    server: Any, stream: bool, fault: str, failure: str, text: str
) -> None:
    server.behaviour = {"fault": fault, "stall_seconds": 0.5}
    answer = ask(server, stream)
    assert answer.failure == failure and text in answer.error
    assert server.count == 1 and answer.seconds > 0
    assert (answer.longest_gap_seconds >= 0.5) == (fault == "stall")


def test_a_stream_without_its_end(server: Any) -> None:
    server.behaviour = {"fault": "no_done"}
    answer = ask(server, True)
    assert answer.failure == "cut" and answer.error == "the answer ended without [DONE] after 5 tokens"


def test_time_over_and_nobody_there(server: Any) -> None:
    server.behaviour = {"fault": "stall", "stall_seconds": 0.6}
    answer = ask(server, True, timeout=0.3)
    assert answer.failure == "timeout" and 0.3 <= answer.seconds < 0.55 and answer.longest_gap_seconds >= 0.25
    nobody = ChatClient("http://127.0.0.1:9", "/v1/chat/completions", {}, 5, 5)
    assert nobody.ask(BODY, time.perf_counter()).failure == "refused"


def test_a_connection_that_the_server_closed_is_not_used_again(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server.Handler, "timeout", 0.05)
    asking = client(server, keep_alive=True)
    assert not asking.ask(BODY, time.perf_counter()).failure
    first = asking.idle[0].sock
    assert select.select([first], [], [], 5)[0], "the server has closed it"
    assert not asking.ask(BODY, time.perf_counter()).failure and asking.idle[0].sock is not first
    asking.close()


def options(*arguments: str, **locust: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    found = parser.parse_args(["--model", "chat", *arguments])
    base = {"host": "http://a:8000", "num_users": None, "master": False, "worker": False, "processes": None}
    vars(found).update({**base, **locust})
    return found


@pytest.mark.parametrize(
    ("arguments", "locust", "text"),
    [
        (("--model", ""), {}, "--model is missing"),
        ((), {"host": None}, "--host None: must be http"),
        (("--path", "v1"), {}, "--path v1"),
        (("--stream-share", "1.1"), {}, "--stream-share 1.1"),
        (("--max-in-flight", "0"), {}, "--max-in-flight 0: must be above 0"),
        (("--stall-seconds", "nan"), {}, "--stall-seconds nan"),
        (("--rate", "-1"), {}, "--rate -1.0: must not be below 0"),
        (("--rate", "1"), {"num_users": 2}, "--users 2"),
        ((), {"processes": 2}, "--processes"),
        (("--header", "nocolon"), {}, "--header nocolon"),
        (("--prompts", "/nowhere"), {}, "/nowhere"),
    ],
)
def test_option_problems(arguments: tuple[str, ...], locust: dict[str, Any], text: str) -> None:
    assert option_problems(options()) == []
    (problem,) = option_problems(options(*arguments, **locust))
    assert text in problem


def test_there_is_no_argument_for_a_key() -> None:
    assert not [name for name in vars(options()) if "key" in name and name != "keep_alive"]
    assert headers(options("--header", "X-Canary: 1"), "k") == {"X-Canary": "1", "Authorization": "Bearer k"}
    assert headers(options(), "") == {}


def test_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('"One"\n\n{"prompt": "Two", "max_tokens": 3}\n{"messages": [{"role": "system"}]}\n')
    assert [len(body["messages"]) for body in read_prompts(path)] == [1, 1, 1]
    bodies = list(itertools.islice(request_bodies(options("--prompts", str(path))), 60))
    assert {body["max_tokens"] for body in bodies} == {3, 32} and {body["model"] for body in bodies} == {"chat"}
    for text, problem in (("", "no prompt"), ("{}", "line 1: neither"), ('"a"\n{', "line 2: not JSON")):
        path.write_text(text)
        with pytest.raises(ValueError, match=problem):
            read_prompts(path)


@pytest.mark.parametrize(("share", "number"), [("0", 0), ("0.25", 25), ("0.5", 50), ("1", 100)])
def test_the_share_of_streams_is_exact(share: str, number: int) -> None:
    bodies = list(itertools.islice(request_bodies(options("--stream-share", share)), 100))
    assert sum(body["stream"] for body in bodies) == number
    again = list(itertools.islice(request_bodies(options("--stream-share", share)), 100))
    assert bodies == again, "the same seed, the same requests"


def test_arrivals() -> None:
    constant = list(itertools.islice(arrival_times(options("--rate", "20")), 101))
    assert constant[0] == 0 and constant[100] == pytest.approx(5)
    by_chance = list(itertools.islice(arrival_times(options("--rate", "20", "--arrivals", "poisson")), 4001))
    assert by_chance[4000] == pytest.approx(200, rel=0.1) and by_chance[1] != pytest.approx(0.05)


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", ""])
def test_records(tmp_path: Path, name: str) -> None:
    records = Records(str(tmp_path / "new" / name) if name else "")
    for number in range(1, 101):
        first = number / 1000
        records.add(
            Answer(True, 0, seconds=number / 100, first_token_seconds=first, tokens=2, model="m"), 1000 + number
        )
    records.add(Answer(False, 0, failure="cut", error="gone", longest_gap_seconds=7), 1101)
    if name:
        lines = (tmp_path / "new" / name).read_text().splitlines()
        assert len(lines) == 101 + name.endswith(".csv"), "each is there at once"
        assert "gone" in lines[-1] and (name == "r.csv" or json.loads(lines[0])["scheduled"] == 1001)
    records.close()
    summary = records.summary()
    assert (summary["requests"], summary["failures"], summary["failures_by_kind"]) == (101, 1, {"cut": 1})
    assert (summary["p50_seconds"], summary["p99_seconds"], summary["max_seconds"]) == (0.5, 0.99, 1.0)
    assert summary["longest_stall_seconds"] == 7 and summary["arrivals_per_second"] == 1 and summary["models"] == ["m"]
    assert "101 requests (100 streaming)" in sentence(summary) and "1 failed" in sentence(summary)
    assert shortcomings(summary, 200, 0.5, 0.5) == [
        "1 of 101 requests failed: 1 cut",
        "101 requests, at least 200 wanted",
        "p99_seconds is 0.99, at most 0.5 wanted",
    ]


def test_nothing_at_all_is_not_a_pass() -> None:
    summary = Records("").summary()
    assert shortcomings(summary, 1, 1, 0) == [
        "0 requests, at least 1 wanted",
        "p99_seconds is None, at most 1 wanted",
    ]
    assert "0 requests" in sentence(summary)
    assert percentile([3, 1, 2], 0.5) == 2


VALUES: dict[str, Any] = {
    "load_test_root": "/opt/raymetal-load-test", "load_test_user": "nobody", "load_test_url": "http://head:8000",
    "load_test_path": "/v1/chat/completions", "load_test_model": "chat", "load_test_stream_share": 0.5,
    "load_test_prompts_file": str(ROOT / "files/load_test/prompts.txt"), "load_test_users": 4, "load_test_rate": 0,
    "load_test_seconds": 60, "load_test_max_tokens": 32, "load_test_max_in_flight": 200, "load_test_stall_seconds": 5,
    "load_test_timeout_seconds": 60, "load_test_arguments": ["--keep-alive"], "load_test_warm_up_requests": 2,
    "load_test_max_users": 200, "load_test_max_rate": 200, "load_test_max_seconds": 3600,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("model", "", "no model is named"),
        ("url", "http://me:secret@head:8000", "without user and password"),
        ("url", "head:8000", "is not http"),
        ("path", "v1", "does not begin with /"),
        ("root", "/opt", "two levels deep"),
        ("root", "/opt/a/../..", "two levels deep"),
        ("user", "root", "needs no rights"),
        ("stream_share", 2, "from 0 to 1"),
        ("prompts_file", "/nowhere", "not a file"),
        ("max_in_flight", 0, "not above 0"),
        ("warm_up_requests", -1, "from 0 to 1000"),
        ("users", "201", "from 1 to load_test_max_users = 200"),
        ("rate", 1000, "from 0 to load_test_max_rate = 200"),
        ("seconds", 0, "from 1 to load_test_max_seconds = 3600"),
        ("arguments", ["--users=9000"], "--users has a variable of its own"),
    ],
)
def test_role_inputs(name: str, value: Any, text: str) -> None:
    assert load_test.load_test_problems(VALUES) == []
    (problem,) = load_test.load_test_problems({**VALUES, f"load_test_{name}": value})
    assert problem["variable"] == f"load_test_{name}" and text in problem["problem"] and problem["do"]


def test_the_role_owns_what_it_gives() -> None:
    text = (ROOT / "roles/load_test/vars/main.yml").read_text()
    given = set(re.findall(r"'(--[a-z][a-z0-9-]+)'", text))
    assert given and given <= load_test.OWNED

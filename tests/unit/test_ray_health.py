"""The pure parts of the health job, and the completion module against a real HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from support import load

job = load("files/ray_cluster_healthcheck.py")
completion = load("roles/ray_health/library/openai_completion.py")


def node(address: str = "10.0.0.4", **more: Any) -> dict[str, Any]:
    entry = {"address": address, "cpus": 2.0, "gpus": 2.0, "cpu_reserved": True, "gpus_busy": 0.0, "gpu_tasks": []}
    return {**entry, "gpu_checked": False, "store_ok": True, "hostname": "h", "pid": 1, "smi": {"absent": True}, **more}


def test_compare_accepts_what_is_expected() -> None:
    assert job.compare([{"address": "10.0.0.4", "cpus": 2, "gpus": 2}], [node()]) == ([], [])
    assert job.compare([{"address": "10.0.0.4", "cpus": None}], [node()]) == ([], [])


@pytest.mark.parametrize(
    ("expected", "nodes", "words"),
    [
        ([{"address": "10.0.0.5"}], [], "node 10.0.0.5 is not alive"),
        ([{"address": "10.0.0.4", "gpus": 8}], [node()], "has 2 GPUs in Ray, expected 8"),
        ([{"address": "10.0.0.4", "cpus": 4}], [node()], "has 2 CPUs in Ray, expected 4"),
        ([{"address": "10.0.0.4"}], [node(), node()], "runs 2 Ray nodes"),
    ],
)
def test_compare_names_the_problem(expected: list[Any], nodes: list[Any], words: str) -> None:
    problems, warnings = job.compare(expected, nodes)
    assert len(problems) == 1 and words in problems[0] and "do:" in problems[0]
    assert warnings == []


def test_compare_names_an_extra_node() -> None:
    problems, warnings = job.compare([], [node("10.0.0.9")])
    assert problems == [] and "10.0.0.9" in warnings[0]


@pytest.mark.parametrize("text", ["{}", '[{"cpus": 1}]', '[{"address": "a", "gpus": "2"}]', "nonsense"])
def test_load_expected_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        job.load_expected(text)


def test_judge_gpus() -> None:
    tasks = [{"gpu": "0", "smi": {"absent": True}}, {"gpu": "1", "smi": {"absent": True}}]
    assert job.judge_gpus(node(gpu_tasks=tasks)) == []
    assert "one GPU to two tasks" in job.judge_gpus(node(gpu_tasks=[tasks[0], tasks[0]]))[0]
    assert "nvidia-smi sees 1" in job.judge_gpus(node(smi={"gpus": ["0, constructed"]}))[0]
    assert "failed with 9" in job.judge_gpus(node(smi={"error": "nvidia-smi failed with 9"}))[0]


def test_render() -> None:
    report = {"ok": True, "seconds": 2.0, "nodes": [node()], "problems": [], "warnings": []}
    text = job.render(report)
    assert text.startswith("=== Ray Cluster Health Check ===\nAlive nodes: 1\n - 10.0.0.4 | CPUs=2.0 | GPUs=2.0")
    assert text.endswith("Ray Cluster health check completed successfully.")
    text = job.render({**report, "ok": False, "problems": ["node x is not alive"]})
    assert text.endswith("FAILED:\n - node x is not alive") and "successfully" not in text


def chat(text: str) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]})


class Server(ThreadingHTTPServer):
    """Answers the (status, body) pairs in `script` in turn, the last one for ever; keeps what it was asked."""

    script: list[tuple[int, str]]
    asked: list[tuple[str, dict[str, str], dict[str, Any]]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        status, text = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as instance:
        instance.asked = []
        threading.Thread(target=instance.serve_forever, daemon=True).start()
        yield instance
        instance.shutdown()


def ask(server: Server, script: list[tuple[int, str]], contains: str | None = None, **params: Any) -> dict[str, Any]:
    server.script = script
    url = f"http://127.0.0.1:{server.server_port}/chat/"
    target = {"url": url, "model": "m", "prompt": "Capital?", "contains": contains}
    defaults = {"targets": [target], "max_tokens": 8, "stream": False, "api_key": None, "timeout_seconds": 3}
    answer: dict[str, Any] = completion.ask_all({**defaults, **params})[0]
    return answer


def test_answer_and_request(server: Server) -> None:
    result = ask(server, [chat("It is Paris.")], contains="paris", api_key="k")
    assert result["answer"] == "It is Paris." and result["tries"] == 1
    path, headers, body = server.asked[0]
    assert path == "/chat/v1/chat/completions" and headers["Authorization"] == "Bearer k"
    assert body["temperature"] == 0 and body["max_tokens"] == 8


def test_503_is_tried_again(server: Server) -> None:
    assert ask(server, [(503, "no replica"), chat("Paris")])["tries"] == 2


def test_503_ends_with_the_timeout(server: Server) -> None:
    assert "status 503" in ask(server, [(503, "no replica")], timeout_seconds=1)["error"]


EVENT = 'data: {"choices": [{"delta": {"content": "Par"}}]}\n\n'


@pytest.mark.parametrize(
    ("script", "params", "words"),
    [
        (chat(" "), {}, "empty"),
        (chat("London"), {"contains": "paris"}, "does not contain 'paris'"),
        ((200, "<html>"), {}, "not a chat completion"),
        ((404, "model m does not exist"), {}, "status 404 after 1 tries; body: 'model m does not exist'"),
        ((500, "x" * 900), {}, "x" * 500 + "'"),
        ((200, EVENT), {"stream": True}, "ended after 1 events without [DONE]"),
        ((200, "data: [DONE]\n\n"), {"stream": True}, "empty"),
    ],
)
def test_bad_answers_are_named(server: Server, script: tuple[int, str], params: dict[str, Any], words: str) -> None:
    result = ask(server, [script], **params)
    assert words in result["error"] and "model m" in result["error"] and "do:" in result["error"]


def test_stream(server: Server) -> None:
    result = ask(server, [(200, EVENT + EVENT.replace("Par", "is") + "data: [DONE]\n\n")], stream=True)
    assert result["answer"] == "Paris"


def test_refused_connection_is_bounded() -> None:
    with Server(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    target = {"url": f"http://127.0.0.1:{port}", "model": "m", "prompt": "x"}
    params = {"max_tokens": 8, "stream": False, "api_key": None, "timeout_seconds": 1.2}
    result = completion.ask(target, params)
    assert result["tries"] > 1 and "status none" in result["error"]

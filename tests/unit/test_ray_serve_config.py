"""The Serve module: its pure steps, and the whole of it against a small server that keeps state as Serve does."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import http_server, load, run_module

MODULE = "roles/ray_serve/library/ray_serve_config.py"
module = load(MODULE)
APP = {"name": "hello", "route_prefix": "/hello", "import_path": "m:app"}
OTHER = {**APP, "name": "other", "route_prefix": "/other"}
HTTP = {"host": "127.0.0.1", "port": 8000}
CONFIG: dict[str, Any] = {"http_options": HTTP, "proxy_location": "EveryNode", "applications": [APP]}


def running(*apps: dict[str, Any], **more: Any) -> dict[str, Any]:
    entries = {app["name"]: {"status": "RUNNING", "deployed_app_config": app} for app in apps}
    return {"applications": entries, "http_options": HTTP, "proxy_location": "EveryNode", **more}


@pytest.mark.parametrize(
    ("apps", "state", "steps"),
    [
        ([APP], {}, {"hello": "add"}),
        ([APP], running(APP), {"hello": "unchanged"}),
        ([{**APP, "args": {"a": 1}}], running(APP), {"hello": "change"}),
        ([APP, OTHER], running(APP), {"hello": "unchanged", "other": "add"}),
        ([APP], running(APP, OTHER), {"hello": "unchanged", "other": "remove"}),
        ([], running(APP), {"hello": "remove"}),
        ([{"import_path": "m:app"}], {}, {"default": "add"}),
    ],
)
def test_plan(apps: list[Any], state: dict[str, Any], steps: dict[str, str]) -> None:
    assert module.plan({"applications": apps}, state) == steps


@pytest.mark.parametrize(
    ("config", "state", "found"),
    [
        (CONFIG, running(), []),
        (CONFIG, {}, []),  # nothing runs: everything may be set
        ({"http_options": {"port": 9000}}, running(), ["http_options.port is 8000 and should be 9000"]),
        ({"http_options": {"unknown": 1}}, running(), []),
        ({"proxy_location": "HeadOnly"}, running(), ["proxy_location is EveryNode and should be HeadOnly"]),
        (
            {"grpc_options": {"port": 9001}},
            running(grpc_options={"port": 9000}),
            ["grpc_options.port is 9000 and should be 9001"],
        ),
    ],
)
def test_fixed_options(config: dict[str, Any], state: dict[str, Any], found: list[str]) -> None:
    assert module.fixed_options(config, state) == found


@pytest.mark.parametrize(
    ("status", "failed", "waiting"),
    [
        ("RUNNING", [], []),
        ("DEPLOYING", [], ["hello"]),
        ("NOT_STARTED", [], ["hello"]),
        ("DEPLOY_FAILED", ["hello"], []),
        ("UNHEALTHY", ["hello"], []),
        (None, [], ["hello"]),
    ],
)
def test_states(status: str | None, failed: list[str], waiting: list[str]) -> None:
    state = {"applications": {"hello": {"status": status}} if status else {}}
    assert module.states(state, ["hello"]) == (failed, waiting)


def test_proxy_addresses() -> None:
    proxies = [("STARTING", "10.0.0.5"), ("HEALTHY", "10.0.0.4"), ("DRAINED", "10.0.0.6")]
    state = {"proxies": {str(i): {"status": s, "node_ip": ip} for i, (s, ip) in enumerate(proxies)}}
    assert module.proxy_addresses(state) == ["10.0.0.4", "10.0.0.5"]


PUSH = """
import json, sys, urllib.request
body = open(sys.argv[2], "rb").read()
urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/api/serve/applications/", body, method="PUT")).read()
"""


class Serve:
    """Dashboard and proxy in one: what is PUT runs, with ``status``; ``answers`` is what the applications answer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.state: dict[str, Any] = {}
        self.puts = 0
        self.status = "RUNNING"
        self.answers = [200]
        self.body = {"error": "boom"}
        self.requests: list[str] = []

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path.startswith("/api/v0/logs/file"):
            assert "node_id=n1" in path and path.endswith("filename=serve/replica.log")
            return 200, b"line 24\nCUDA out of memory"
        if path.startswith("/api/") and method == "PUT":
            self.puts += 1
            self.state = running(*json.loads(body)["applications"])
            return 200, {}
        if path.startswith("/api/"):
            if headers.get("Authorization") != "Bearer secret":
                return 401, {}
            return 200, self.seen()
        self.requests.append(f"{method} {path} {body.decode()}")
        return (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]), self.body

    def seen(self) -> dict[str, Any]:
        state = copy.deepcopy(self.state)
        replica = {"node_id": "n1", "node_ip": "10.0.0.4", "log_file_path": "/serve/replica.log"}
        deployment = {"name": "D", "status": "UNHEALTHY", "message": "could not start", "replicas": [replica]}
        for app in state.get("applications", {}).values():
            app.update(status=self.status, message="Deploying failed: boom", deployments={"D": deployment})
        return {**state, "proxies": {"n1": {"node_ip": "10.0.0.4", "status": "HEALTHY"}}}

    def run(self, *apps: dict[str, Any], check: bool = False, **params: Any) -> dict[str, Any]:
        """The module's result for a configuration with these applications."""
        config = {**CONFIG, "applications": list(apps), **params.pop("config", {})}
        (self.folder / "push.py").write_text(PUSH)
        (self.folder / "token").write_text("secret\n")
        (self.folder / "serve.json").write_text(json.dumps(config))
        command = [sys.executable, str(self.folder / "push.py"), self.url, str(self.folder / "serve.json")]
        asked = [{"application": a["name"], "method": "GET", "path": a["route_prefix"], "body": None} for a in apps]
        arguments: dict[str, Any] = {
            "config": config,
            "command": command,
            "url": self.url,
            "base_url": self.url,
            "token_path": str(self.folder / "token"),
            "requests": asked,
            "timeout_seconds": 20,
        }
        return run_module(MODULE, check=check, **{**arguments, **params})


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    made = Serve(tmp_path)
    with http_server(made.answer) as made.url:
        yield made


def test_a_dry_run_tells_and_does_nothing(serve: Serve) -> None:
    result = serve.run(APP, check=True)
    assert result["changed"] and result["plan"] == {"hello": "add"}
    assert "m:app" in result["diff"]["after"] and "m:app" not in result["diff"]["before"]
    assert (serve.puts, serve.requests) == (0, [])


def test_a_dry_run_before_there_is_a_cluster(serve: Serve, tmp_path: Path) -> None:
    nowhere: dict[str, Any] = {"url": "http://127.0.0.1:9", "token_path": str(tmp_path / "none")}
    assert serve.run(APP, check=True, **nowhere)["plan"] == {"hello": "add"}
    assert "is missing. To do: --tags cluster" in serve.run(APP, **nowhere)["msg"]
    assert "does not answer" in serve.run(APP, url="http://127.0.0.1:9")["msg"]


def test_it_applies_once(serve: Serve) -> None:
    first = serve.run(APP)
    assert first["changed"] and serve.puts == 1 and first["proxies"] == ["10.0.0.4"]
    assert serve.requests == ["GET /hello "] and first["answered_seconds"]["/hello"] >= 0
    again = serve.run(APP)
    assert not again["changed"] and serve.puts == 1 and again["diff"]["before"] == again["diff"]["after"]
    assert len(serve.requests) == 2  # that it answers is asked each time
    assert not serve.run(APP, check=True)["changed"]


def test_applications_vanish_with_consent_only(serve: Serve) -> None:
    serve.state = running(APP, OTHER)
    for check in (False, True):
        refused = serve.run(APP, check=check)
        assert refused["failed"] and "would vanish: other" in refused["msg"]
        assert "ray_serve_remove_applications: [other]" in refused["msg"]
    assert serve.puts == 0
    done = serve.run(APP, remove_applications=["other"])
    assert done["changed"] and done["plan"]["other"] == "remove" and list(serve.state["applications"]) == ["hello"]


def test_a_change_that_a_running_serve_ignores_is_refused(serve: Serve) -> None:
    serve.state = running(APP)
    result = serve.run(APP, config={"http_options": {**HTTP, "port": 9000}})
    assert result["failed"] and "http_options.port is 8000 and should be 9000" in result["msg"]
    assert "serve shutdown" in result["msg"] and serve.puts == 0


def test_a_failed_deployment_gives_reason_and_log(serve: Serve) -> None:
    serve.status = "DEPLOY_FAILED"
    result = serve.run(APP)
    assert result["failed"] and result["changed"]
    for text in ("hello: DEPLOY_FAILED", "Deploying failed: boom", "D: UNHEALTHY", "CUDA out of memory", "10.0.0.4"):
        assert text in result["msg"]


def test_one_that_never_runs_fails_in_time(serve: Serve) -> None:
    serve.status = "DEPLOYING"
    assert "hello: DEPLOYING" in serve.run(APP, timeout_seconds=1)["msg"]


def test_running_is_not_answering(serve: Serve) -> None:
    serve.answers = [500]
    result = serve.run(APP)
    assert result["failed"] and "it runs, and does not answer. GET /hello: 500" in result["msg"]
    assert "boom" in result["msg"] and "CUDA out of memory" in result["msg"] and len(serve.requests) == 1


def test_it_waits_for_the_route(serve: Serve) -> None:
    serve.answers = [404, 503, 200]
    result = serve.run(APP)
    assert not result.get("failed") and len(serve.requests) == 3


def test_an_answer_that_mentions_a_status_is_not_that_status(serve: Serve) -> None:
    serve.answers, serve.body = [500], {"error": "upstream: 404, connection refused"}
    body = {"application": "hello", "method": "POST", "path": "/hello", "body": {"a": 1}}
    assert serve.run(APP, requests=[body])["failed"] and serve.requests == ['POST /hello {"a": 1}']


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["sh", "-c", "echo no such schema >&2; exit 1"], "`serve deploy` failed: no such schema"),
        (["/nowhere/serve"], "`serve deploy` failed: "),
    ],
)
def test_a_push_that_fails_is_told(serve: Serve, command: list[str], text: str) -> None:
    result = serve.run(APP, command=command)
    assert result["failed"] and text in result["msg"]


def test_a_wrong_token_is_told(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    result = serve.run(APP, token_path=str(tmp_path / "other"))
    assert "answers 401: is" in result["msg"]

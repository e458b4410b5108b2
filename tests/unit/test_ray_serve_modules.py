"""The modules that plan, push and watch, against a small server that keeps state as Serve does."""

from __future__ import annotations

import copy
import fcntl
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import ray_serve_rest as rest
from support import http_server, load, run_module

PLAN, PUSH, WATCH = (f"roles/ray_serve/library/ray_serve_{name}.py" for name in ("plan", "push", "watch"))
NODES = "roles/ray_serve/library/ray_serve_nodes.py"
planning, watching, nodes = load(PLAN), load(WATCH), load(NODES)
App = dict[str, Any]
APP: App = {"name": "hello", "route_prefix": "/hello", "import_path": "m:app", "args": {"a": 1}}
OTHER = {**APP, "name": "other", "route_prefix": "/other"}
CHANGED = {**APP, "args": {"a": 2}}
GREEN = {**CHANGED, "name": "hello--green"}
HTTP = {"host": "127.0.0.1", "port": 8000}
ASK = {"method": "GET", "path": "", "body": None, "contains": None}
TAKES = {"D": {"replicas": 1, "ray_actor_options": {"num_cpus": 1, "num_gpus": 1}}}


def running(*apps: App, **more: Any) -> dict[str, Any]:
    entries = {app["name"]: {"status": "RUNNING", "deployed_app_config": app} for app in apps}
    return {"applications": entries, "http_options": HTTP, "proxy_location": "EveryNode", **more}


@pytest.mark.parametrize(
    ("config", "state", "found"),
    [
        ({"http_options": HTTP, "proxy_location": "EveryNode"}, running(), []),
        ({"http_options": HTTP}, {}, []),  # nothing runs: everything may be set
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
    assert planning.fixed_options(config, state) == found


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
    assert rest.states(state, ["hello"]) == (failed, waiting)


def test_proxy_addresses() -> None:
    proxies = [("STARTING", "10.0.0.5"), ("HEALTHY", "10.0.0.4"), ("DRAINED", "10.0.0.6")]
    state = {"proxies": {str(i): {"status": s, "node_ip": ip} for i, (s, ip) in enumerate(proxies)}}
    assert planning.proxy_addresses(state) == ["10.0.0.4", "10.0.0.5"]


DEPLOY = """
import sys, urllib.request
body = open(sys.argv[2], "rb").read()
urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/api/serve/applications/", body, method="PUT")).read()
"""


class Serve:
    """Dashboard and proxy in one: what is PUT runs, with ``status`` (name -> status, RUNNING for others).

    ``answers``: statuses of the applications' answers, one after the other, the last for all that follow.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.state: dict[str, Any] = {}
        self.puts: list[dict[str, Any]] = []
        self.status: dict[str, str] = {}
        self.node_state = "ALIVE"
        self.answers = [200]
        self.body: Any = {"text": "hello"}
        self.requests: list[str] = []
        self.token, self.state_path = folder / "token", folder / "state.json"
        self.token.write_text("secret\n")

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if not path.startswith("/api/"):
            self.requests.append(f"{method} {path} {body.decode()}")
            return (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]), self.body
        if method == "PUT":
            config = json.loads(body)
            self.puts.append(config)
            self.state = running(*config["applications"])
            return 200, {}
        if headers.get("Authorization") != "Bearer secret":
            return 401, {}
        if path.startswith("/api/v0/logs/file"):
            assert "node_id=n1" in path and path.endswith("filename=serve/replica.log")
            return 200, b"line 24\nCUDA out of memory"
        if path.startswith("/api/v0/nodes"):
            node = {"node_id": "n1", "node_ip": "10.0.0.4", "state": self.node_state}
            return 200, {"data": {"result": {"result": [{**node, "resources_total": {"CPU": 8.0, "GPU": 2.0}}]}}}
        if path.startswith("/api/v0/placement_groups"):
            names = self.state.get("applications") or {}
            bundle = {"node_id": "n1", "unit_resources": {"GPU": 1.0, "CPU": 1.0}}
            groups = [{"name": f"SERVE_REPLICA::{name}#D#r", "state": "CREATED", "bundles": [bundle]} for name in names]
            return 200, {"data": {"result": {"result": groups}}}
        if path == "/api/cluster_status":
            used = float(len(self.state.get("applications") or {}))
            usage = {"n1": {"CPU": [used, 8.0], "GPU": [used, 2.0]}}
            return 200, {"data": {"clusterStatus": {"loadMetricsReport": {"usageByNode": usage}}}}
        return 200, self.seen()

    def seen(self) -> dict[str, Any]:
        state = copy.deepcopy(self.state)
        for name, app in (state.get("applications") or {}).items():
            status = self.status.get(name, "RUNNING")
            good = status == "RUNNING"
            replica = {"node_id": "n1", "node_ip": "10.0.0.4", "log_file_path": "/serve/replica.log"}
            replica["actor_name"] = f"SERVE_REPLICA::{name}#D#r"
            deployment = {
                "name": "D",
                "status": "HEALTHY" if good else "UNHEALTHY",
                "message": "" if good else "could not start",
                "replicas": [{**replica, "state": "RUNNING" if status in ("RUNNING", "UNHEALTHY") else "STARTING"}],
                "deployment_config": {"name": "D", "ray_actor_options": {"num_cpus": 1}},
            }
            app.update(status=status, message="" if good else "Deploying failed: boom", deployments={"D": deployment})
        return {**state, "proxies": {"n1": {"node_ip": "10.0.0.4", "status": "HEALTHY"}}}

    def common(self) -> dict[str, Any]:
        names = ("hello", "other")
        return {
            "url": self.url,
            "base_url": self.url,
            "token_path": str(self.token),
            "state_path": str(self.state_path),
            "requests": {name: [ASK] for name in names},
        }

    def plan(self, *apps: App, check: bool = False, **params: Any) -> dict[str, Any]:
        config = {"http_options": HTTP, "applications": list(apps), **params.pop("config", {})}
        takes = {app["name"]: TAKES for app in apps}
        return run_module(PLAN, check=check, **{**self.common(), "config": config, "needs": takes, **params})

    def push(self, *apps: App, check: bool = False, **params: Any) -> dict[str, Any]:
        config = {"http_options": HTTP, "applications": list(apps)}
        asked = [app["name"] for app in apps]
        common = {**self.common(), "config": config, "ask": asked, "run": "this", "timeout_seconds": 20}
        return run_module(PUSH, check=check, **{**common, **params})

    def remembered(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.state_path.read_text())
        return found


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    made = Serve(tmp_path)
    with http_server(made.answer) as made.url:
        yield made


def test_a_plan_says_what_would_be_done_and_does_nothing(serve: Serve) -> None:
    serve.state = running(APP)
    made = serve.plan(CHANGED)
    assert made["actions"] == {"hello": "replace"} and made["steps"]["hello"]["way"] == "blue_green"
    assert (made["steps"]["hello"]["gpus_before"], made["steps"]["hello"]["gpus_peak"]) == (1, 2)
    assert made["names"] == {"hello": "hello--green"} and made["proxies"] == ["10.0.0.4"] and made["nodes"] == ["n1"]
    assert '"a": 1' in made["diff"]["before"] and '"a": 2' in made["diff"]["after"]
    assert made["changed"] and not made["problems"] and not serve.puts
    assert serve.requests == ["GET /hello "], "what runs is asked before it is changed"


def test_a_plan_before_there_is_a_cluster(serve: Serve, tmp_path: Path) -> None:
    nowhere: dict[str, Any] = {"url": "http://127.0.0.1:9", "token_path": str(tmp_path / "none")}
    made = serve.plan(APP, check=True, **nowhere)
    assert made["actions"] == {"hello": "add"} and not made["problems"]
    assert "is missing. To do: --tags cluster" in serve.plan(APP, **nowhere)["msg"]
    assert "does not answer" in serve.plan(APP, url="http://127.0.0.1:9")["msg"]


def test_a_wrong_token_is_told(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    assert "answers 401: is" in serve.plan(APP, token_path=str(tmp_path / "other"))["msg"]


def test_nothing_to_do_is_no_change(serve: Serve) -> None:
    serve.state = running(APP)
    made = serve.plan(APP)
    assert not made["changed"] and not made["waves"] and made["diff"]["before"] == made["diff"]["after"]


def test_a_change_that_a_running_serve_ignores_is_a_problem(serve: Serve) -> None:
    serve.state = running(APP)
    (problem,) = serve.plan(APP, config={"http_options": {**HTTP, "port": 9000}})["problems"]
    assert "http_options.port is 8000 and should be 9000" in problem and "serve shutdown" in problem


def test_what_is_sick_is_not_changed(serve: Serve) -> None:
    serve.state = running(APP, OTHER)
    serve.status = {"other": "UNHEALTHY"}
    (problem,) = serve.plan(CHANGED, {**OTHER, "args": {"a": 2}}, way="queue")["problems"]
    assert "application other is UNHEALTHY" in problem and "ray_serve_require_healthy: false" in problem
    assert not serve.plan(CHANGED, {**OTHER, "args": {"a": 2}}, way="queue", require_healthy=False)["problems"]
    serve.status = {}
    (problem,) = serve.plan(CHANGED, OTHER, way="queue", expected_nodes=["10.0.0.4", "10.0.0.5"])["problems"]
    assert "node 10.0.0.5 is not alive" in problem
    serve.answers = [500]
    (problem,) = serve.plan(CHANGED, OTHER, way="queue")["problems"]
    assert "application hello runs and does not answer. GET /hello: 500" in problem


def test_a_change_under_way_is_left_alone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BUSY_SECONDS", 0.1)
    lock = serve.state_path.with_suffix(".json.lock")
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "another run is changing Serve" in planning.other_run(str(serve.state_path))
        assert "another run is changing Serve" in serve.push(APP)["msg"] and not serve.puts
    assert planning.other_run(str(serve.state_path)) == ""


def test_a_push_waits_asks_and_remembers(serve: Serve) -> None:
    first = serve.push(APP, begin={"stage": "start", "config": {"applications": []}, "steps": {"hello": "add"}})
    assert not first.get("failed") and len(serve.puts) == 1 and first["answered_seconds"]["/hello"] >= 0
    begun = serve.remembered()["begun"]
    assert (
        begun["run"] == "this"
        and begun["stage"] == "start"
        and begun["since"]
        and serve.remembered()["seconds"]["hello"] >= 0
    )
    assert not serve.push(APP, begin={"stage": "final"}, done=True).get("failed")
    assert "begun" not in serve.remembered() and serve.remembered()["seconds"]
    assert serve.state_path.stat().st_mode & 0o777 == 0o600


def test_a_dry_run_pushes_nothing(serve: Serve) -> None:
    assert serve.push(APP, check=True)["changed"] and not serve.puts


def test_a_push_by_command(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "deploy.py").write_text(DEPLOY)
    (tmp_path / "serve.json").write_text(json.dumps({"applications": [APP]}))
    command = [sys.executable, str(tmp_path / "deploy.py"), serve.url, str(tmp_path / "serve.json")]
    assert not serve.push(APP, command=command).get("failed") and len(serve.puts) == 1


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["sh", "-c", "echo no such schema >&2; exit 1"], "`serve deploy` failed: no such schema"),
        (["/nowhere/serve"], "`serve deploy` failed: "),
    ],
)
def test_a_push_that_fails_is_told(serve: Serve, command: list[str], text: str) -> None:
    result = serve.push(APP, command=command)
    assert result["failed"] and text in result["msg"]


def test_a_failed_deployment_gives_reason_and_log(serve: Serve) -> None:
    serve.status = {"hello": "DEPLOY_FAILED"}
    result = serve.push(APP)
    assert result["failed"]
    for text in ("hello: DEPLOY_FAILED", "Deploying failed: boom", "D: UNHEALTHY", "CUDA out of memory", "10.0.0.4"):
        assert text in result["msg"]


def test_one_that_never_runs_fails_in_time(serve: Serve) -> None:
    serve.status = {"hello": "DEPLOYING"}
    assert "hello: DEPLOYING" in serve.push(APP, timeout_seconds=1)["msg"]


def test_a_node_that_is_lost_meanwhile_ends_the_wait(serve: Serve) -> None:
    serve.status, serve.node_state = {"hello": "DEPLOYING"}, "DEAD"
    assert "node 10.0.0.4 was lost in the middle of the change" in serve.push(APP, nodes=["n1"])["msg"]


def test_running_is_not_answering(serve: Serve) -> None:
    serve.answers, serve.body = [500], {"error": "boom"}
    result = serve.push(APP)
    assert result["failed"] and "runs, and does not answer as it should. GET /hello: 500" in result["msg"]
    assert "boom" in result["msg"] and len(serve.requests) == 1


def test_a_wrong_answer_is_told(serve: Serve) -> None:
    result = serve.push(APP, requests={"hello": [{**ASK, "contains": "Paris"}]})
    assert result["failed"] and "the answer does not contain 'Paris'" in result["msg"]


def test_it_waits_for_the_route(serve: Serve) -> None:
    serve.answers = [404, 503, 200]
    assert not serve.push(APP).get("failed") and len(serve.requests) == 3


def test_an_answer_that_mentions_a_status_is_not_that_status(serve: Serve) -> None:
    serve.answers, serve.body = [500], {"error": "upstream: 404, connection refused"}
    body = {"method": "POST", "path": "/v1", "body": {"a": 1}, "contains": None}
    assert serve.push(APP, requests={"hello": [body]})["failed"] and serve.requests == ['POST /hello/v1 {"a": 1}']


def test_a_candidate_is_asked_what_its_application_must_answer(serve: Serve) -> None:
    green = {**GREEN, "route_prefix": "/.raymetal/hello--green"}
    assert not serve.push(APP, green, ask=["hello--green"]).get("failed")
    assert serve.requests == ["GET /.raymetal/hello--green "]


def test_the_way_back_gives_the_routes_first_and_removes_then(serve: Serve) -> None:
    before = {"http_options": HTTP, "applications": [APP]}
    serve.push(APP)
    serve.push({**APP, "route_prefix": None}, GREEN, begin={"stage": "start", "config": before}, ask=["hello"])
    serve.puts.clear()
    result = serve.push(state="returned")
    assert result["outcome"] == "returned" and result["config"] == before and "begun" not in serve.remembered()
    routes = [{app["name"]: app["route_prefix"] for app in put["applications"]} for put in serve.puts]
    assert routes == [{"hello": "/hello", "hello--green": None}, {"hello": "/hello"}]
    assert serve.push(state="returned")["outcome"] == "untouched", "there is nothing to take back any more"


def test_each_step_is_noted_for_the_report(serve: Serve, tmp_path: Path) -> None:
    noted = str(tmp_path / "changes.jsonl")
    steps = {"stage": "start", "config": {"applications": [APP]}, "steps": {"hello": "replace"}}
    serve.push(APP, GREEN, begin=steps, changes_path=noted)
    serve.status["hello--green"] = "DEPLOY_FAILED"
    serve.push(APP, GREEN, begin={"stage": "switch"}, changes_path=noted)
    serve.push(APP, check=True, changes_path=noted)
    serve.push(state="returned", changes_path=noted)
    result = serve.plan(APP, changes_path=noted)
    told = [(line["run"], line["stage"]) for line in result["changes"]]
    assert told == [("this", "start"), ("this", "switch"), ("this", "back")]
    assert result["changes"][0]["actions"] == {"hello": "replace"} and result["changes"][2]["outcome"] == "returned"
    assert "CUDA out of memory" not in json.dumps(result["changes"]), "lines of a log may hold anything"
    deployment = {"status": "HEALTHY", "bounds": [1, 1], "replicas": {"10.0.0.4": 1}}
    assert result["serving"]["hello"]["deployments"] == {"D": deployment}
    assert result["serving"]["hello"]["route"] == "/hello" and "args" not in result["serving"]["hello"]


def test_the_way_back_says_what_it_did_not_do(serve: Serve) -> None:
    serve.push(APP, begin={"stage": "start", "config": {"applications": []}})
    serve.puts.clear()
    assert serve.push(state="returned", run="another")["outcome"] == "taken_over"
    assert serve.push(state="returned", run="another", continues="this")["outcome"] == "untouched"
    assert serve.push(state="returned")["outcome"] == "left", "nothing served before"
    serve.push(APP, begin={"stage": "start", "config": {"applications": [APP]}})
    serve.push(APP, begin={"stage": "final", "config": {"applications": [APP]}})
    serve.puts.clear()
    assert serve.push(state="returned")["outcome"] == "switched" and not serve.puts


def test_a_change_belongs_to_one_run(serve: Serve) -> None:
    """The next run may take over what was interrupted; the one that lost it does nothing more."""
    assert not serve.push(APP, begin={"stage": "start"}).get("failed")
    assert "another run has changed Serve meanwhile" in serve.push(APP, begin={"stage": "start"}, run="next")["msg"]
    assert not serve.push(APP, begin={"stage": "start"}, run="next", continues="this").get("failed")
    serve.puts.clear()
    assert "another run has changed Serve meanwhile" in serve.push(APP, begin={"stage": "switch"})["msg"]
    assert not serve.puts and serve.remembered()["begun"]["run"] == "next"
    assert not serve.push(APP, begin={"stage": "final"}, run="next", done=True).get("failed")
    assert "another run has changed" in serve.push(APP, begin={"stage": "final"}, run="next")["msg"], "it is over"


LATENCY = "ray_serve_http_request_latency_ms_"


class Metrics:
    """A node's metrics port: every look adds ``grows`` (status -> requests), each of ``ms``."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.grows: dict[str, int] = {}
        self.ms = 100.0
        self.sum = 0.0
        self.lock = threading.Lock()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path != "/metrics":
            return 200, {"text": "hello"}
        with self.lock:
            lines = [f'{LATENCY}sum{{application="hello--green"}} {self.sum}']
            for status, count in self.counts.items():
                lines.append(f'{LATENCY}count{{application="hello--green",status_code="{status}"}} {count}')
            lines.append(f'{LATENCY}count{{application="",status_code="404"}} 1000')
            for status, more in self.grows.items():
                self.counts[status] = self.counts.get(status, 0) + more
                self.sum += more * self.ms
        return 200, "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("grows", "ms", "text"),
    [
        ({"200": 100}, 100.0, ""),
        ({"200": 99, "500": 1}, 100.0, ""),
        ({"200": 90, "500": 10}, 100.0, "% of the requests fail, before 0.0 %"),
        ({"200": 80, "499": 20}, 100.0, ""),
        ({"200": 100}, 400.0, "ms in the mean, before 100 ms"),
        ({"200": 1, "500": 10}, 400.0, ""),  # too few to say anything
    ],
)
def test_watching(tmp_path: Path, grows: dict[str, int], ms: float, text: str) -> None:
    metrics = Metrics()
    metrics.grows, metrics.ms = grows, ms
    with http_server(metrics.answer) as url:
        discovery = tmp_path / "metrics.json"
        discovery.write_text(json.dumps([{"targets": [url.removeprefix("http://"), "127.0.0.1:9"]}]))
        result = run_module(
            WATCH,
            applications=["hello--green"],
            before={"hello--green": "hello"},
            config={"applications": [GREEN]},
            base_url=url,
            requests={"hello": [ASK]},
            discovery_path=str(discovery),
            baseline={"hello": {"requests": 1000, "errors": 0, "ms": 100000}},
            changes_path=str(tmp_path / "changes.jsonl"),
            seconds=1,
        )
    assert bool(result.get("failed")) == bool(text) and text in result.get("msg", "")
    line = json.loads((tmp_path / "changes.jsonl").read_text())
    assert line["stage"] == "watch" and bool(line.get("problem")) == bool(text)
    # What there was after both looks: all of it came since the change began.
    assert text or line["counted"] == {"requests": sum(grows.values()), "errors": grows.get("500", 0)}
    assert text or "own requests answered" in result["seen"][0]


def test_watching_fails_at_once_when_an_own_request_fails(serve: Serve, tmp_path: Path) -> None:
    serve.answers = [200, 500]
    result = run_module(
        WATCH,
        applications=["hello"],
        config={"applications": [APP]},
        base_url=serve.url,
        requests={"hello": [ASK]},
        discovery_path=str(tmp_path / "none"),
        seconds=30,
    )
    assert result["failed"] and "application hello fails under traffic. GET /hello: 500" in result["msg"]
    assert len(serve.requests) == 2


def test_a_head_that_does_not_tell_is_taken_for_one_that_serves(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "TELL_SECONDS", 0.1)
    params = {"addresses": [], "state_path": str(serve.state_path)}
    there = nodes.query(params, nodes.Serve(serve.url, "secret"))
    gone = nodes.query(params, nodes.Serve("http://127.0.0.1:9", "secret"))
    assert there["lost"] == [] and "nobody knows what serves" in gone["lost"][0]


def test_what_autoscaling_wants_beyond_what_ran_is_not_waited_for() -> None:
    replicas = [{"replica_id": "a", "state": "RUNNING"}, {"replica_id": "b", "state": "STARTING"}]
    state = running(APP)
    state["applications"]["hello"]["deployments"] = {"D": {"target_num_replicas": 2, "replicas": replicas}}
    cluster = planning.Cluster(state, {}, {})
    assert nodes.running(cluster, "hello") == {"D": 1}
    assert nodes.unwhole(cluster, {}) == ["hello/D has 1 of 2 replicas"] == nodes.unwhole(cluster, {"hello": {"D": 2}})
    assert nodes.unwhole(cluster, {"hello": {"D": 1}}) == []

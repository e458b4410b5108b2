"""A load that runs while something is changed: open loop, half of it streaming, without retries."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from testinfra import get_host
from testinfra.host import Host

MIN_REQUESTS, MIN_OVERLAP, STALL_SECONDS = 300, 20, 5.0
FOLDER, ROOT = "/var/tmp/load", "/opt/raymetal-load-test"
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
RESULTS = PROJECT / ".cache/molecule/upgrade.json"
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
WARMUP = {"path": "/v1/chat/completions", "body": {"model": "chat", **QUESTION}, "contains": "Paris"}
# The engine that serves shares two cores with the one that starts.
LIGHT = {"rate": 3, "tokens": 2}
# The hosts share the machine's cores: by itself each engine would bind its threads to the first one.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
Playbook = Callable[..., CompletedProcess[str]]


def host_of(name: str) -> Host:
    return get_host(f"ansible://{name}?sudo=true", ansible_inventory=str(INVENTORY))


class Load:
    """One load, from ``start`` to ``end``; ``records`` as files/load_test writes them."""

    def __init__(self, name: str) -> None:
        self.client, self.name, self.unit = host_of("edge"), name, f"load-{name}"
        self.file = f"{FOLDER}/{name}.jsonl"
        self.records: list[dict[str, Any]] = []
        self.window = (0.0, 0.0)  # of the change that it met
        self.runs = self.witnessed = False

    def start(
        self, rate: float = 10, port: int = 8000, at: str = "head", tokens: int = 12, model: str = "chat"
    ) -> None:
        """Send ``rate`` requests each second to a host's Serve proxy, or, port 8080 of edge, to the gateway."""
        # By address: the names' server of the containers' network pauses when a container goes.
        address = host_of(at).ansible.get_variables()["ansible_host"]
        locust = f"{ROOT}/env/bin/locust -f {ROOT}/locustfile.py"
        options = (
            f"--headless --only-summary --host http://{address}:{port} --model {model} --rate {rate} "
            f"--max-tokens {tokens} --stall-seconds {STALL_SECONDS} --timeout-seconds 60 --warm-up-requests 3 "
            f"--run-time 900s --requests-file {self.file}"
        )
        self.client.check_output(f"mkdir -p {FOLDER} && chown nobody {FOLDER} && rm -f {self.file}")
        unit = f"systemd-run --quiet --collect --uid nobody --property TimeoutStopSec=80 --unit {self.unit}"
        self.client.check_output(f"{unit} {locust} {options}")
        self.runs = True
        self.wait_for(30)

    def count(self) -> int:
        return int(self.client.check_output(f"cat {self.file} 2>/dev/null | wc -l"))

    def wait_for(self, number: int, seconds: float = 250) -> None:
        deadline = time.monotonic() + seconds
        while self.count() < number:
            assert time.monotonic() < deadline, self.client.run(f"journalctl -u {self.unit} -n 30").stdout
            time.sleep(0.5)

    def end(self, least: int = MIN_REQUESTS) -> None:
        """Let it reach its number, stop it, and read what it met."""
        self.wait_for(max(least, self.count() + 20))
        self.client.check_output(f"systemctl stop {self.unit}")
        self.runs = False
        self.records = [json.loads(line) for line in self.client.check_output(f"cat {self.file}").splitlines()]

    def stop(self) -> None:
        self.client.run(f"systemctl stop {self.unit}")

    def prints(self) -> set[str]:
        """Revisions that answered."""
        return {str(r["fingerprint"]) for r in self.records if r["fingerprint"]}

    def overlap(self) -> int:
        """Requests in flight while old and new were there together, give or take a second.

        As a witness saw it; else by what answered, where that differs; else while the run lasted.
        """
        begin, end = self.window
        if len(self.prints()) > 1 and not self.witnessed:
            first = {p: min(r["scheduled"] for r in self.records if r["fingerprint"] == p) for p in self.prints()}
            last = {
                p: max(r["scheduled"] + r["seconds"] for r in self.records if r["fingerprint"] == p)
                for p in self.prints()
            }
            begin, end = max(first.values()) - 1, min(last.values()) + 1
        return sum(r["scheduled"] <= end and r["scheduled"] + (r["seconds"] or 0) >= begin for r in self.records)

    def summary(self) -> dict[str, Any]:
        good = sorted(r["seconds"] for r in self.records if not r["failure"])
        return {
            "requests": len(self.records),
            "streaming": sum(bool(r["stream"]) for r in self.records),
            "failed": sum(bool(r["failure"]) for r in self.records),
            "overlap": self.overlap(),
            "p99_seconds": round(good[math.ceil(0.99 * len(good)) - 1], 3) if good else None,
            "longest_stall_seconds": round(max((r["longest_gap_seconds"] or 0 for r in self.records), default=0), 3),
            "change_seconds": round(self.window[1] - self.window[0], 1),
        }

    def failures(self) -> list[tuple[float, str, str]]:
        return [(r["scheduled"], r["failure"], r["error"]) for r in self.records if r["failure"]]

    def proven(self, least: int = MIN_REQUESTS) -> None:
        """No request failed, there were enough of them, and enough met the change."""
        found = self.summary()
        assert not self.failures(), (self.failures()[:5], found)
        assert found["requests"] >= least and found["overlap"] >= MIN_OVERLAP, found
        assert found["streaming"] >= 0.4 * found["requests"], found


class Trial:
    """The cluster as its operator and its clients see it."""

    def __init__(self, playbook: Playbook, load: Load, head: Host) -> None:
        self.playbook, self.load, self.head = playbook, load, head

    def base(self) -> dict[str, Any]:
        """The scenario's own configuration."""
        found: dict[str, Any] = copy.deepcopy(self.head.ansible.get_variables()["ray_serve_config"])
        return found

    def config(self, **args: Any) -> dict[str, Any]:
        """The configuration with what chat runs with now, and with ``args``."""
        found = self.base()
        found["applications"][0]["args"] = {**self.options(), **args}
        return found

    def options(self, path: str = "/") -> dict[str, Any]:
        """What the running process says of itself."""
        found: dict[str, Any] = json.loads(self.head.check_output(f"curl -sf -m 20 http://127.0.0.1:8000{path}"))
        return found

    def rest(self, path: str) -> Any:
        """An answer of the dashboard."""
        command = (
            f"curl -sf -m 20 -H \"Authorization: Bearer $(cat /etc/raymetal/auth_token)\" 'http://127.0.0.1:8265{path}'"
        )
        return json.loads(self.head.check_output(command))

    def running(self) -> dict[str, str]:
        """Application -> status."""
        return {name: app["status"] for name, app in self.rest("/api/serve/applications/")["applications"].items()}

    def deployed(self) -> dict[str, float]:
        """Application -> when it was deployed the last time."""
        applications = self.rest("/api/serve/applications/")["applications"]
        return {name: app["last_deployed_time_s"] for name, app in applications.items()}

    def replicas(self, application: str) -> list[dict[str, Any]]:
        deployments = self.rest("/api/serve/applications/")["applications"][application]["deployments"].values()
        return [replica for deployment in deployments for replica in deployment["replicas"]]

    def variables(self, config: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
        if config is None:
            return more
        asked = [app["name"] for app in config["applications"] if app["import_path"] == "chat:build"]
        return {"ray_serve_config": config, "ray_serve_warmups": dict.fromkeys(asked, WARMUP), **more}

    def run(
        self, config: dict[str, Any] | None, *arguments: str, tags: str = "serve", **variables: Any
    ) -> CompletedProcess[str]:
        """Run site.yml with other values, and note when."""
        begin = time.time()
        result = self.playbook("site.yml", "--tags", tags, *arguments, variables=self.variables(config, variables))
        if self.load.runs:
            self.load.window = (begin, time.time())
        return result

    def begin(self, folder: Path, config: dict[str, Any], tags: str = "serve") -> subprocess.Popen[str]:
        """The same, without waiting for its end; its output goes into ``folder``."""
        extra = folder / "variables.json"
        extra.write_text(json.dumps(self.variables(config, {})))
        command = ["ansible-playbook", "-i", str(INVENTORY), "-e", f"@{extra}", "site.yml", "--tags", tags]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
        with (folder / "output").open("w") as output:
            return subprocess.Popen(
                command, cwd=PROJECT, env=environment, stdout=output, text=True, start_new_session=True
            )

    @staticmethod
    def kill(run: subprocess.Popen[str]) -> None:
        """End it and all that it started, at once."""
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


class Witness(threading.Thread):
    """Notes, again and again, which replicas run: for the time in which old and new ones both did."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(daemon=True)
        self.trial, self.over = trial, threading.Event()
        self.seen: list[tuple[float, set[str], set[str]]] = []  # time, replicas that run, all that are there

    def run(self) -> None:
        while not self.over.wait(0.5):
            applications = self.trial.rest("/api/serve/applications/")["applications"].values()
            replicas = [r for app in applications for d in app["deployments"].values() for r in d["replicas"]]
            running = {r["replica_id"] for r in replicas if r["state"] == "RUNNING"}
            self.seen.append((time.time(), running, {r["replica_id"] for r in replicas}))

    def __enter__(self) -> Witness:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
        old, new = self.seen[0][1], self.seen[-1][1] - self.seen[0][1]
        begin = next((at for at, running, _ in self.seen if running & new), 0.0)
        end = max((at for at, _, there in self.seen if there & (old - self.seen[-1][1])), default=0.0)
        self.trial.load.window, self.trial.load.witnessed = (begin - 1, end + 1), True


def until(condition: Callable[[], bool], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


@pytest.fixture(scope="session", autouse=True)
def _fresh_results() -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("{}")


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    name = request.node.name.removeprefix("test_").replace("ansible://head", "")
    found = Load(re.sub(r"\W+", "-", name).strip("-"))
    yield found
    found.stop()
    if found.records:
        results = json.loads(RESULTS.read_text())
        RESULTS.write_text(json.dumps({**results, found.name: found.summary()}, indent=2) + "\n")


@pytest.fixture
def trial(playbook: Playbook, load: Load, host: Host) -> Trial:
    """Return the cluster; ``host``, the head, is asked for its journal where a test fails."""
    return Trial(playbook, load, host)


@pytest.fixture
def witness(trial: Trial) -> Witness:
    """``with witness: change()`` makes the load's window the time in which old and new replicas both ran."""
    return Witness(trial)


@pytest.fixture(scope="session")
def named() -> Callable[[str], Host]:
    """Return a function that gives a host by name."""
    return host_of


@pytest.fixture(scope="session")
def hosts_file() -> Path:
    """Return the scenario's own hosts; its group_vars are beside it."""
    return INVENTORY / "ansible_inventory.yml"


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    return until


@pytest.fixture(scope="session")
def said() -> Callable[[CompletedProcess[str]], str]:
    """Return a function that gives the output of a run without line breaks."""
    return lambda result: " ".join(result.stdout.split())


@pytest.fixture(scope="session")
def changed() -> Callable[[CompletedProcess[str]], set[str]]:
    """Return a function that gives what the recap says of changes, host by host."""
    return lambda result: set(re.findall(r"changed=(\d+)", result.stdout))


@pytest.fixture(scope="session")
def light() -> dict[str, int]:
    """What a load on an engine is started with."""
    return LIGHT


@pytest.fixture(scope="session")
def llm() -> Callable[..., dict[str, Any]]:
    """Return a function that gives an application of ray.serve.llm which serves models, by default one named chat."""

    def application(source: str, *, models: tuple[str, ...] = ("chat",), **engine: Any) -> dict[str, Any]:
        configs = [
            {
                "model_loading_config": {"model_id": model, "model_source": source},
                "placement_group_config": {"bundles": [{"CPU": 1}]},
                "engine_kwargs": {"max_model_len": 512, "dtype": "bfloat16", "enforce_eager": True, **engine},
                "runtime_env": {"env_vars": ENVIRONMENT},
            }
            for model in models
        ]
        bounds = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}
        app = {"name": "chat", "route_prefix": "/", "import_path": "ray.serve.llm:build_openai_app"}
        return {
            **app,
            "args": {"llm_configs": configs},
            "deployments": [{"name": f"LLMServer:{model}", **bounds} for model in models],
        }

    return application

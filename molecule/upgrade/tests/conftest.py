"""What changes while a load runs, and what it left behind: see molecule/shared/trial.py for the load itself."""

from __future__ import annotations

import copy
import json
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
from testinfra.host import Host
from trial import INVENTORY, PROJECT, Cluster, Load, host_of, until

RESULTS = PROJECT / ".cache/molecule/upgrade.json"
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
WARMUP = {"path": "/v1/chat/completions", "body": {"model": "chat", **QUESTION}, "contains": "Paris"}
# The engine that serves shares the cores with the one that starts, and with the health job's workers on every node.
LIGHT = {"rate": 1, "tokens": 2}
# The hosts share the machine's cores: by itself each engine would bind its threads to the first one.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
Playbook = Callable[..., CompletedProcess[str]]


class Trial(Cluster):
    """The cluster as its operator and its clients see it."""

    def __init__(self, playbook: Playbook, load: Load, head: Host) -> None:
        super().__init__(head)
        self.playbook, self.load = playbook, load

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

    def deployed(self) -> dict[str, float]:
        """Application -> when it was deployed the last time."""
        applications = self.rest("/api/serve/applications/")["applications"]
        return {name: app["last_deployed_time_s"] for name, app in applications.items()}

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
                "engine_kwargs": {"max_model_len": 512, "dtype": "float32", "enforce_eager": True, **engine},
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

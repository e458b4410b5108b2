"""Replicas by load, seen from outside: up to the maximum, down to the minimum, from none and back to none."""

import json
import os
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from trial import Cluster

UNITS = ("raymetal.service",)
pytestmark = pytest.mark.soak  # minutes
RESULTS = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / ".cache/molecule/autoscaling.json"
AT_ONCE, PATIENCE_SECONDS = 12, 60
QUICK = {
    "target_ongoing_requests": 2,
    "upscale_delay_s": 2,
    "downscale_delay_s": 5,
    "metrics_interval_s": 1,
    "look_back_period_s": 3,
}
# How the deployment is asked for, and how many replicas there are before, under load and after it.
CASES = {
    "one to three and back": ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 3, **QUICK}}, 1, 3, 1),
    "none to two and back": (
        {"autoscaling_config": {"min_replicas": 0, "max_replicas": 2, "downscale_to_zero_delay_s": 6, **QUICK}},
        0,
        2,
        0,
    ),
    "begins with two": (
        {"autoscaling_config": {"min_replicas": 1, "initial_replicas": 2, "max_replicas": 3, **QUICK}},
        2,
        3,
        1,
    ),
    "factors": (
        {
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 4,
                "upscaling_factor": 0.5,
                "downscaling_factor": 0.5,
                "aggregation_function": "max",
                **QUICK,
            }
        },
        1,
        4,
        1,
    ),
    "fractions of a GPU": (
        {
            "autoscaling_config": {"min_replicas": 1, "max_replicas": 4, **QUICK},
            "ray_actor_options": {"num_cpus": 0.1, "num_gpus": 0.5},
        },
        1,
        4,
        1,
    ),
    "a policy of its own": (
        {
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 5,
                "policy": {"policy_function": "scaled:steps"},
                **QUICK,
            }
        },
        1,
        3,
        1,
    ),
}


class Clients:
    """So many clients, each with one request under way at any time; nothing is repeated."""

    def __init__(self, url: str, number: int) -> None:
        self.url, self.failed, self.answered = url, 0, 0
        self.first_seconds = 0.0
        self._began = time.monotonic()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with urllib.request.urlopen(self.url, timeout=PATIENCE_SECONDS) as answer:
                    good = answer.status == 200
            except OSError:
                good = False
            with self._lock:
                self.answered += good
                self.failed += not good
                self.first_seconds = self.first_seconds or time.monotonic() - self._began

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module", autouse=True)
def as_it_was(playbook):
    """Serve what the scenario serves again: the other modules expect it."""
    yield
    done = playbook("site.yml", "--tags", "serve", variables={"ray_serve_remove_applications": ["scaled"]})
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.fixture
def scaled(host, playbook):
    """Return a function that serves the application with options of its deployment, and gives what is seen of it."""
    cluster = Cluster(host)

    def serve(options):
        deployment = {"name": "Scaled", "max_ongoing_requests": 100, "ray_actor_options": {"num_cpus": 0.1}, **options}
        application = {"name": "scaled", "route_prefix": "/scaled", "import_path": "scaled:build"}
        config = host.ansible.get_variables()["ray_serve_config"]
        wanted = {**config, "applications": [*config["applications"], {**application, "deployments": [deployment]}]}
        done = playbook("site.yml", "--tags", "serve", variables={"ray_serve_config": wanted})
        assert done.returncode == 0, done.stdout[-4000:]

    def running():
        return sum(replica["state"] == "RUNNING" for replica in cluster.replicas("scaled"))

    return serve, running


def seconds_until(condition, most):
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < most, "it did not happen in time"
        time.sleep(0.3)
    return round(time.monotonic() - begin, 1)


@pytest.mark.parametrize("case", CASES)
def test_replicas_follow_the_load(host, scaled, case):
    options, before, loaded, after = CASES[case]
    serve, running = scaled
    serve(options)
    seconds_until(lambda: running() == before, 60)
    clients = Clients(f"http://{host.ansible.get_variables()['ansible_host']}:8000/scaled", AT_ONCE)
    try:
        up = seconds_until(lambda: running() == loaded, 120)
        time.sleep(5)
        assert running() == loaded, "no more than the maximum, or what the policy says"
    finally:
        clients.end()
    down = seconds_until(lambda: running() == after, 120)
    outcome = {
        "replicas": [before, loaded, after],
        "up_seconds": up,
        "down_seconds": down,
        "first_answer_seconds": round(clients.first_seconds, 1),
        "answered": clients.answered,
        "failed": clients.failed,
    }
    print(json.dumps({case: outcome}))
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, case: outcome}, indent=2) + "\n")
    assert clients.failed == 0 and clients.answered > AT_ONCE, outcome


def test_num_replicas_auto(scaled):
    """Ray's own choice: from one replica to a hundred, here as many as there is room for."""
    serve, running = scaled
    serve({"num_replicas": "auto"})
    seconds_until(lambda: running() == 1, 60)

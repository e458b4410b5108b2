"""Requests per second through Serve as it comes, with the throughput profile, and of vLLM's own server, in one run.

Not in `make test`: it takes a quarter of an hour, and its numbers are for docs/throughput.md.
"""

import json
import os
import time
from pathlib import Path

import pytest
from testinfra import get_host

UNITS = ("raymetal.service",)
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
RESULTS = PROJECT / ".cache/molecule/throughput.json"
ROOT, FOLDER = "/opt/raymetal-load-test", "/var/tmp/load"
SECONDS = int(os.environ.get("RAYMETAL_THROUGHPUT_SECONDS", "40"))
USERS = (1, 16, 64)
OPTIMIZED = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


@pytest.fixture(scope="module")
def client():
    inventory = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
    return get_host("ansible://client?sudo=true", ansible_inventory=str(inventory))


@pytest.fixture
def measure(host, client):
    """Return a function that loads port 8000 (or another) of the head, and notes what came of it by name."""
    address = host.ansible.get_variables()["ansible_host"]

    def run(name, port=8000):
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[name] = {}
        for users in USERS:
            command = (
                f"mkdir -p {FOLDER} && chown nobody {FOLDER} && cd {FOLDER}"
                f" && runuser -u nobody -- {ROOT}/env/bin/locust -f {ROOT}/locustfile.py"
                f" --headless --only-summary --host http://{address}:{port} --model smollm2"
                f" --users {users} --spawn-rate 64 --run-time {SECONDS}s --max-tokens 16 --keep-alive"
                " --stall-seconds 30 --timeout-seconds 60 --warm-up-requests 8 --summary-file summary.json 2>&1"
            )
            client.run_expect([0], command)
            found = json.loads(client.file(f"{FOLDER}/summary.json").content_string)
            assert found["failures"] == 0 and found["requests"] > users, found
            keys = ("requests_per_second", "p50_seconds", "p99_seconds", "first_token_p50_seconds", "tokens_per_second")
            results[name][str(users)] = {key: found[key] for key in keys}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")

    return run


@pytest.fixture
def profile(playbook):
    """Return a function that brings the cluster to another profile."""

    def change(name, **environment):
        result = playbook(
            "site.yml",
            variables={
                "cluster_serve_profile": name,
                "ray_node_environment": environment,
                "cluster_accept_outage": True,
            },
        )
        assert result.returncode == 0, result.stdout[-5000:]

    return change


def test_default(measure):
    RESULTS.unlink(missing_ok=True)
    measure("default")


def test_throughput_profile(measure, profile):
    profile("throughput")
    measure("throughput")


def test_throughput_profile_with_rays_own_optimizations(measure, profile):
    profile("throughput", **OPTIMIZED)
    measure("throughput, RAY_SERVE_THROUGHPUT_OPTIMIZED")


def test_bare_server(host, measure):
    """The same engine arguments, the same user and environment, without Ray."""
    host.run_expect([0], "systemctl stop raymetal")
    environment = (
        "VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 HOME=/var/lib/raymetal"
    )
    settings = " ".join(f"--setenv {pair}" for pair in environment.split())
    host.run_expect(
        [0],
        f"systemd-run --quiet --unit bare --uid raymetal {settings} /opt/raymetal/env/current/bin/python -m "
        "vllm.entrypoints.openai.api_server --model /opt/raymetal/models/smollm2/1 --served-model-name smollm2 "
        "--max-model-len 512 --dtype bfloat16 --enforce-eager --port 8001",
    )
    deadline = time.monotonic() + 240
    while host.run("curl -sf -m 5 http://127.0.0.1:8001/v1/models").rc:
        assert time.monotonic() < deadline, host.run("journalctl -u bare -n 40").stdout
        time.sleep(1)
    try:
        measure("bare vLLM", port=8001)
    finally:
        host.run_expect([0], "systemctl stop bare")
    found = json.loads(RESULTS.read_text())
    for users in map(str, USERS):
        bare = found["bare vLLM"][users]["requests_per_second"]
        print({name: round(rows[users]["requests_per_second"] / bare, 2) for name, rows in found.items()})

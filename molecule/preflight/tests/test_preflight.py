"""Each fault is named, with the host that has it; who is left out holds nobody up; nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
PREFIX = f"{os.environ.get('MOLECULE_PREFIX') or 'raymetal'}-preflight"
PLAYBOOK = "playbooks/preflight.yml"
OBJECT_MANAGER = 6392
Preflight = Callable[..., tuple[subprocess.CompletedProcess[str], dict[str, Any]]]


@pytest.fixture(scope="module")
def inside(podman) -> Callable[..., str]:
    """Return a function that runs a command of the controller in a host's namespaces (n: network, m: mounts)."""
    as_root = [] if os.geteuid() == 0 else ["sudo"]

    def run(name: str, space: str, *command: str) -> str:
        pid = podman("inspect", "--format", "{{.State.Pid}}", f"{PREFIX}-{name}").strip()
        whole = [*as_root, "nsenter", "-t", pid, f"-{space}", *command]
        return subprocess.run(whole, check=True, capture_output=True, text=True).stdout

    return run


@pytest.fixture(scope="module")
def within(podman) -> Callable[..., str]:
    """Return a function that runs a command on a host, not by ssh."""
    return lambda name, *command: podman("exec", f"{PREFIX}-{name}", *command)


@pytest.fixture(scope="module")
def address(podman) -> Callable[[str], str]:
    """Return a function that gives the address of a host."""
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return lambda name: podman("inspect", "--format", form, f"{PREFIX}-{name}").strip()


@pytest.fixture(scope="module")
def preflight(playbook, tmp_path_factory: pytest.TempPathFactory) -> Preflight:
    """Return a function that runs the playbook, and gives what it printed and its result."""
    path = tmp_path_factory.mktemp("preflight") / "result.json"

    def run(**variables: Any) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        path.unlink(missing_ok=True)
        done = playbook(PLAYBOOK, "--diff", variables={"preflight_json": str(path), **variables})
        assert path.exists(), done.stdout + done.stderr
        return done, json.loads(path.read_text())

    return run


@pytest.fixture
def faults(within, inside, address) -> Iterator[None]:
    """One port from one host, a slow link, a name, a disk, an MTU: on two hosts; two are well."""
    rule = ["-s", address("worker2"), "-p", "tcp", "--dport", str(OBJECT_MANAGER), "-j", "DROP"]
    slow = ["root", "tbf", "rate", "40mbit", "burst", "64kb", "latency", "50ms"]
    inside("worker1", "n", "iptables", "-I", "INPUT", *rule)
    inside("worker1", "n", "tc", "qdisc", "add", "dev", "eth0", *slow)
    within("worker2", "sh", "-c", "cp /etc/hosts /run/hosts; sed 's/^/# /' /run/hosts > /etc/hosts")
    within("worker2", "sh", "-c", "echo 192.0.2.77 head >> /etc/hosts")
    inside("worker2", "m", "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/opt")
    inside("worker2", "n", "ip", "link", "set", "eth0", "mtu", "1400")
    yield
    inside("worker1", "n", "iptables", "-D", "INPUT", *rule)
    inside("worker1", "n", "tc", "qdisc", "del", "dev", "eth0", "root")
    within("worker2", "sh", "-c", "cat /run/hosts > /etc/hosts")
    inside("worker2", "m", "umount", "/opt")
    inside("worker2", "n", "ip", "link", "set", "eth0", "mtu", "1500")


@pytest.fixture
def deaf(within) -> Iterator[Callable[[str], None]]:
    """Return a function that stops a host's sshd until the end of the test."""
    stopped = []

    def stop(name: str) -> None:
        stopped.append(name)
        within(name, "sh", "-c", "systemctl stop ssh; pkill -KILL -x sshd; true")  # connections that are kept, too

    yield stop
    for name in stopped:
        within(name, "systemctl", "start", "ssh")


def told(result: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(p["host"], p["check"]): p["problem"] for p in result["problems"]}


def recap(output: str, name: str) -> dict[str, int]:
    line = next(line for line in output.splitlines() if line.startswith(f"{name} ") and "changed=" in line)
    return {key: int(value) for key, _, value in (word.partition("=") for word in line.split()[2:])}


@pytest.mark.usefixtures("faults")
def test_each_fault_is_named_and_nobody_else_is(preflight: Preflight, address: Callable[[str], str]) -> None:
    done, result = preflight(preflight_bandwidth_minimum_mbit=60)
    assert done.returncode == 2, done.stdout + done.stderr
    found = told(result)
    assert set(found) == {
        ("worker2", "ports"),
        ("worker1", "bandwidth"),
        ("worker2", "names"),
        ("worker2", "host"),
        ("worker2", "mtu"),
    }, json.dumps(result, indent=1)
    blocked = f"worker2 cannot reach port {OBJECT_MANAGER} (object manager) of worker1: no answer"
    assert found["worker2", "ports"] == blocked  # it fails anyway: nobody else is to be left out for it
    assert "Mbit/s arrive from worker1 at worker2" in found["worker1", "bandwidth"]
    assert found["worker2", "names"].startswith("resolves to 192.0.2.77, which is none of the addresses of head, ")
    assert found["worker2", "names"].endswith(address("head"))
    assert "0.1 GiB are free at /opt/raymetal, 1 are needed" in found["worker2", "host"]
    assert found["worker2", "mtu"] == "its MTU is 1400 bytes, that of most nodes 1500"
    assert result["leave_out"] == ["worker1", "worker2"]
    assert [row["name"] for row in result["hosts"] if row["ok"]] == ["head", "worker3"]
    for row in result["hosts"]:
        seen = recap(done.stdout, row["name"])
        assert (seen["changed"], seen["unreachable"], seen["failed"] > 0) == (0, 0, not row["ok"])
    assert """-e '{"cluster_left_out": ["worker1", "worker2"]}'""" in done.stdout


@pytest.mark.usefixtures("faults")
def test_without_them_the_rest_is_well(preflight: Preflight, deaf: Callable[[str], None]) -> None:
    deaf("worker1")  # no play touches it
    done, result = preflight(cluster_left_out=["worker1", "worker2"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert result["ok"] and [row["name"] for row in result["hosts"]] == ["head", "worker3"]
    assert result["pairs"] == 2 and "left out: worker1, worker2" in done.stdout


def test_who_does_not_answer_is_named_and_the_others_are_looked_at(
    preflight: Preflight, deaf: Callable[[str], None]
) -> None:
    deaf("worker2")
    done, result = preflight(preflight_format="json")
    assert done.returncode == 2 and '"leave_out": [' in done.stdout
    assert set(told(result)) == {("worker2", "host")} and "does not answer" in told(result)["worker2", "host"]
    assert result["pairs"] == 6 and result["leave_out"] == ["worker2"]


def test_a_run_that_is_killed_leaves_nothing_for_long(inside) -> None:
    def listening() -> set[str]:
        lines = inside("head", "n", "ss", "-Hltn").splitlines()
        return {line.split()[3].rpartition(":")[2] for line in lines}

    before = listening()
    assert str(OBJECT_MANAGER) not in before, "an earlier run has left a listener"
    # The kill comes in its middle: the bandwidth takes as long as it may.
    given = {"preflight_listen_seconds": 20, "preflight_bandwidth_bytes": 10**12, "preflight_bandwidth_seconds": 15}
    command = ["ansible-playbook", "-i", str(INVENTORY), "-e", json.dumps(given), PLAYBOOK]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")}
    running = subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    deadline = time.monotonic() + 120
    while str(OBJECT_MANAGER) not in listening():
        assert running.poll() is None and time.monotonic() < deadline, "it never listened"
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    deadline = time.monotonic() + 60
    while listening() != before:
        assert time.monotonic() < deadline, listening() - before
        time.sleep(0.5)

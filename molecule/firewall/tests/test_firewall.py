"""Who reaches which port of nodes and gateway, and that nothing of ours cuts a host off or touches what is others'."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra import get_host

UNITS = ("raymetal-firewall.service", "nftables.service")
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
PLAYBOOK = PROJECT / "playbooks/firewall.yml"
HOSTS = {
    name: get_host(f"ansible://{name}?sudo=true", ansible_inventory=str(INVENTORY))
    for name in ("head", "worker", "gate", "stranger")
}
ADDRESSES = {name: str(host.ansible.get_variables()["ansible_host"]) for name, host in HOSTS.items()}
OPERATOR = ADDRESSES["stranger"].rpartition(".")[0] + ".99"
HEAD = [6380, 6391, 6392, 6393, 6394, 6395, 6881, 8000, 8265, 10001, 10002, 19999, 40123, 44217, 44227, 52365]
OTHERS = [22, 9999]  # not of the cluster: left alone
OTHERS_OF_WORKER = [22, 6380, 8265, 9999, 10001]  # what is the head's in the plan would be somebody else's here
API, GATEWAY_METRICS, DRAWN = 8080, 8405, 40123
METRICS = [6395, 8265, 44217, 44227]
PROBED = sorted([*HEAD, *OTHERS, API, GATEWAY_METRICS])
FILES = ("/etc/raymetal", "/etc/systemd/system/raymetal-firewall.service", "/etc/systemd/system/nftables.service.d")


def reached(here: str, there: str, source: str = "-") -> list[int]:
    """Ports of ``there`` that answer ``here``; ``source``: the address to ask from."""
    command = f"/usr/local/bin/probe {source} {there} {' '.join(map(str, PROBED))}"
    found: list[int] = json.loads(HOSTS[here].check_output(command))
    return found


def rules(name: str) -> str:
    return str(HOSTS[name].check_output("nft --stateless list table inet raymetal"))


def answers(name: str) -> bool:
    """Whether sshd of the host accepts a connection from here."""
    try:
        socket.create_connection((ADDRESSES[name], 22), timeout=2).close()
    except OSError:
        return False
    return True


def changed(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Number of changes of each host; an AssertionError if the run failed."""
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    return {name: int(count) for name, count in re.findall(r"(?m)^(\w+) +: ok=\d+ +changed=(\d+)", done.stdout)}


def test_all_was_open_before() -> None:
    before = json.loads(HOSTS["stranger"].file("/root/before-head").content_string)
    assert before == [22, 6380, 6391, 8000, 8265, 9999, 40123, 44217]


def test_strangers_reach_only_what_is_published() -> None:
    assert reached("stranger", "head") == OTHERS
    assert reached("stranger", "worker") == OTHERS_OF_WORKER
    assert reached("stranger", "gate") == sorted([*OTHERS, API, DRAWN])
    last = ADDRESSES["head"].rpartition(".")[2]
    assert reached("stranger", f"fd00:77::{last}") == OTHERS


def test_nodes_and_gateways_reach_each_other() -> None:
    assert reached("worker", "head") == sorted([*HEAD, *OTHERS])
    assert reached("gate", "head") == sorted([*HEAD, *OTHERS])
    assert reached("head", "head") == sorted([*HEAD, *OTHERS])
    assert reached("head", "gate") == sorted([*OTHERS, API, GATEWAY_METRICS, DRAWN])


def test_operators_reach_metrics_and_dashboard() -> None:
    assert reached("stranger", "head", OPERATOR) == sorted([*OTHERS, *METRICS])
    assert reached("stranger", "gate", OPERATOR) == sorted([*OTHERS, API, GATEWAY_METRICS, DRAWN])


def test_a_run_for_one_host_shuts_nobody_out(playbook: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert changed(playbook(PLAYBOOK, "--limit", "worker")) == {"worker": 0}


@pytest.mark.soak
def test_a_dry_run_says_what_would_change_and_changes_nothing(
    playbook: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    before = rules("head")
    wanted = {"firewall_proxy_clients": ["198.51.100.0/24"]}
    done = playbook(PLAYBOOK, "--check", "--diff", variables=wanted)
    assert "+        ip saddr { 198.51.100.0/24 } tcp dport { 8000 } accept" in done.stdout
    assert {name for name, count in changed(done).items() if count} == {"head", "worker"}, "the gate has no proxy"
    assert rules("head") == before and changed(playbook(PLAYBOOK)) == {"head": 0, "worker": 0, "gate": 0}


def test_rules_that_somebody_took_away_come_back(playbook: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    before = rules("head")
    HOSTS["head"].check_output("nft flush chain inet raymetal input")
    assert changed(playbook(PLAYBOOK, "--check"))["head"] > 0
    assert changed(playbook(PLAYBOOK))["head"] > 0
    assert rules("head") == before


def test_rules_that_would_cut_the_host_off_are_taken_back(
    playbook: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    before = rules("worker")
    cutting = {"firewall_rules": ["tcp dport 22 drop"], "firewall_confirm_seconds": 8}
    done = playbook(PLAYBOOK, "--limit", "worker", variables=cutting)
    assert done.returncode != 0
    assert "the new rules let no new connection in within 8 s, and were taken back" in " ".join(done.stdout.split())
    assert rules("worker") == before and reached("stranger", "worker") == OTHERS_OF_WORKER
    assert changed(playbook(PLAYBOOK, "--limit", "worker"))["worker"] > 0
    assert changed(playbook(PLAYBOOK, "--limit", "worker")) == {"worker": 0}


def test_other_tables_stay_and_ours_outlives_what_debian_s_service_does() -> None:
    head = HOSTS["head"]
    before = rules("head")
    assert "counter" in head.check_output("nft list table inet others"), "made before the first run"
    for what in ("start", "reload", "restart", "stop"):
        head.check_output(f"systemctl {what} nftables.service")
        assert rules("head") == before, what
    assert reached("stranger", "head") == OTHERS


def test_the_ports_are_closed_after_a_reboot(podman: Callable[..., str]) -> None:
    before = rules("head")
    prefix = os.environ.get("MOLECULE_PREFIX") or "raymetal"
    podman("restart", "--time", "10", f"{prefix}-firewall-head")
    podman("exec", f"{prefix}-firewall-head", "sh", "-c", "systemctl is-system-running --wait || true")
    deadline = time.monotonic() + 60
    while not (answers("head") and reached("worker", "head")) and time.monotonic() < deadline:
        time.sleep(1)
    assert reached("stranger", "head") == OTHERS and reached("worker", "head") == sorted([*HEAD, *OTHERS])
    assert rules("head") == before


def test_without_it_nothing_is_left(playbook: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    without = {"firewall_enabled": False}
    dry = changed(playbook(PLAYBOOK, "--check", variables=without))
    assert all(dry[name] for name in ("head", "worker", "gate"))
    assert rules("gate")
    assert all(changed(playbook(PLAYBOOK, variables=without)).values())
    for name in ("head", "worker", "gate"):
        assert "raymetal" not in HOSTS[name].check_output("nft list tables")
        assert not [path for path in FILES if HOSTS[name].file(path).exists]
    assert reached("stranger", "head") == sorted([*HEAD, *OTHERS])
    assert changed(playbook(PLAYBOOK, variables=without)) == {"head": 0, "worker": 0, "gate": 0}

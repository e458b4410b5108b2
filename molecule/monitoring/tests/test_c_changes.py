"""What is changed takes effect without losing figures, and teardown takes ours and leaves what is others'."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

UNITS = ("raymetal-prometheus.service", "raymetal-alertmanager.service")
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
CONVERGE = PROJECT / "molecule/monitoring/converge.yml"
OURS = (
    "ls -d /etc/raymetal* /var/lib/raymetal* /run/raymetal* /etc/systemd/system/raymetal* /opt/raymetal-* 2>/dev/null"
)
OTHERS = ("/etc/prometheus.operator", "/etc/systemd/system/operator.service", "/etc/prometheus/prometheus.yml")
Playbook = Callable[..., subprocess.CompletedProcess[str]]


def test_a_threshold_is_changed_by_a_reload(host: Host, playbook: Playbook, get: Callable[[str], Any]) -> None:
    before = host.check_output("systemctl show -P MainPID raymetal-prometheus")
    done = playbook(CONVERGE, "--tags", "monitoring", variables={"monitoring_alert_queue": 77})
    assert done.returncode == 0, done.stdout[-3000:]
    rules = {
        rule["name"]: rule["query"] for group in get("9090/api/v1/rules")["data"]["groups"] for rule in group["rules"]
    }
    assert "77" in rules["QueueGrowing"]
    assert host.check_output("systemctl show -P MainPID raymetal-prometheus") == before


def test_what_was_written_and_not_loaded_is_loaded_by_the_next_run(host: Host, playbook: Playbook) -> None:
    """Regression: a run that is killed between the two left the old configuration running for good."""
    host.check_output("echo '# interrupted' >> /run/raymetal-prometheus/rules.yml")
    assert playbook(CONVERGE, "--tags", "monitoring", variables={"monitoring_alert_queue": 77}).returncode == 0
    host.check_output("cmp /etc/raymetal-monitoring/rules.yml /run/raymetal-prometheus/rules.yml")


def test_a_bad_input_is_told_before_anything_is_changed(playbook: Playbook) -> None:
    bad = {"monitoring_alert_disk_percent": 5, "monitoring_scrape_seconds": 90}
    done = playbook(PROJECT / "site.yml", "--tags", "monitoring", variables=bad)
    said = " ".join(done.stdout.split())
    assert done.returncode != 0 and "monitoring_alert_disk_percent" in said and "monitoring_scrape_seconds" in said


def test_another_cluster_s_is_left_alone(host: Host, playbook: Playbook) -> None:
    mark = "/etc/raymetal-monitoring/cluster"
    host.check_output(f"echo other > {mark}")
    try:
        refused = playbook(CONVERGE, "--tags", "monitoring")
        assert refused.returncode != 0 and "belongs to cluster other" in " ".join(refused.stdout.split())
        assert playbook(PROJECT / "playbooks/monitoring_off.yml", "--limit", "watch").returncode == 0
        assert host.service("raymetal-prometheus").is_running
    finally:
        host.check_output(f"echo trial > {mark}")


@pytest.mark.parametrize("twice", [False, True])
def test_teardown_takes_ours_and_nothing_else(hosts: dict[str, Host], playbook: Playbook, twice: bool) -> None:
    done = playbook(PROJECT / "teardown.yml", variables={"teardown_confirm": "trial"})
    assert done.returncode == 0, done.stdout[-3000:]
    watch = hosts["watch"]
    assert watch.run(OURS).stdout == ""
    assert all(watch.file(path).exists for path in OTHERS)
    assert watch.package("prometheus").is_installed, "others may use it by now"
    for host in hosts.values():
        assert not host.run("ss -H -ltn | grep -E ':(9090|9093|9100) '").stdout
        assert not host.run("systemctl list-units --all --plain --no-legend 'raymetal*'").stdout

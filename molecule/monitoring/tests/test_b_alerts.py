"""Two alerts from end to end: something breaks on a host, and who is to be told is told, also when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testinfra.host import Host

UNITS = ("raymetal-prometheus.service", "raymetal-alertmanager.service")
REPLICA = "pgrep -f ^ray::ServeReplica"


def test_all_is_quiet(ask: Callable[[str], Any]) -> None:
    firing = {one["metric"]["alertname"] for one in ask('ALERTS{alertstate="firing"}')}
    # The disk is the test machine's.
    assert firing <= {"DiskFull", "MemoryFull", "RequestsFailing"}, firing


def test_a_replica_that_dies(hosts: dict[str, Host], told: Callable[..., bool], wait: Callable[..., Any]) -> None:
    hosts["worker"].check_output(f"{REPLICA} | xargs kill -9")
    # Prometheus must have looked for five minutes before it says so.
    assert wait(lambda: told("firing", alertname="ReplicaFailing", application="chat", deployment="Chat"), 420)
    assert wait(lambda: hosts["worker"].run(REPLICA).rc == 0, 60), "Ray brings another"


def test_a_node_that_is_lost(hosts: dict[str, Host], told: Callable[..., bool], wait: Callable[..., Any]) -> None:
    hosts["worker"].check_output("systemctl stop raymetal.service")
    try:
        assert wait(lambda: told("firing", alertname="NodeLost", host="worker"), 120)
        assert not told("firing", alertname="HostLost", host="worker"), "the host itself is well"
    finally:
        hosts["worker"].check_output("systemctl start raymetal.service")
    assert wait(lambda: told("resolved", alertname="NodeLost", host="worker"), 240)

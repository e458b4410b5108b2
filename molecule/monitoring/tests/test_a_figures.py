"""What Prometheus knows of a cluster that serves: every query of every panel has data, or a reason why not here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from testinfra.host import Host

UNITS = ("raymetal-prometheus.service", "raymetal-alertmanager.service")
DASHBOARDS = "/etc/raymetal-monitoring/grafana/dashboards"
# Reason -> the queries that have no data here for it. docs/monitoring.md names them.
NOT_HERE = {
    "GPU": r"ray_node_gpu|ray_node_gram|ray_component_gpu|[Nn]ame=\"GPU\"|resource=.GPU",
    "TPU": r"ray_tpu_",
    "vLLM": r"ray_vllm_|ray_placement_groups",
    "gRPC": r"_grpc_",
    "multiplexed models": r"multiplexed",
    "nothing went wrong": (
        r"recently_failed_nodes|worker_eviction|unexpected_worker_failure|in_backoff|IsRetry!=\"0\""
    ),
    "nothing waits for resources": r"autoscaler_pending_resources",
    "no alert": r"ALERTS",
}
JOBS = {"ray": 2, "ray_autoscaler": 1, "ray_dashboard": 1, "gateway": 1, "node": 3, "prometheus": 1, "alertmanager": 1}
REQUESTS = (
    "for i in 1 2 3 4 5; do curl -s -o /dev/null -H 'Content-Type: application/json' {url} "
    '-d \'{{"model": "chat", "messages": []}}\'; curl -s -o /dev/null {url} -d broken; done'
)


def test_every_target_is_there_through_the_firewall(get: Callable[[str], Any], wait: Callable[..., Any]) -> None:
    def up() -> Any:
        found = get("9090/api/v1/targets?state=active")["data"]["activeTargets"]
        return found if all(target["health"] == "up" for target in found) else None

    found = wait(up, 60)
    assert found, get("9090/api/v1/targets?state=active")
    jobs = [target["labels"]["job"] for target in found]
    assert {job: jobs.count(job) for job in jobs} == JOBS
    assert {target["labels"]["host"] for target in found} == {"head", "worker", "watch"}


def test_every_query_of_every_panel_has_data_or_a_reason(hosts: dict[str, Host], wait: Callable[..., Any]) -> None:
    command = f"python3 /usr/local/bin/dashboards.py {DASHBOARDS} http://127.0.0.1:9090"
    matched: dict[str, set[str]] = {reason: set() for reason in NOT_HERE}
    empty: list[str] = []
    queries: list[tuple[str, str, int | str]] = []

    def without() -> bool:
        # Errors of the application are wanted, too: a body that is no JSON.
        hosts["head"].check_output(REQUESTS.format(url="http://127.0.0.1:8000/v1/chat/completions"))
        queries[:] = [tuple(query) for query in json.loads(hosts["watch"].check_output(command))]
        empty.clear()
        for name, expression, results in queries:
            assert not isinstance(results, str), (name, expression, results)
            reasons = [reason for reason, pattern in NOT_HERE.items() if re.search(pattern, expression)]
            for reason in reasons:
                matched[reason].add(name)
            if not results and not reasons:
                empty.append(name)
        return not empty

    assert wait(without, 180), empty
    assert len({name.partition(" | ")[0] for name, _, _ in queries}) == 5, "Ray, three of Serve, and the cluster's page"
    assert len(queries) > 180 and all(matched.values()), matched
    with_data = sum(1 for _, _, results in queries if results)
    print(f"{len(queries)} queries, {with_data} with data; without:", {k: len(v) for k, v in matched.items()})
    assert with_data > 90


def test_nobody_listens_where_nobody_is_to_come(hosts: dict[str, Host], addresses: dict[str, str]) -> None:
    def listens(name: str) -> set[str]:
        return {line.split()[3] for line in hosts[name].check_output("ss -H -ltn").splitlines()}

    assert {one for one in listens("watch") if not one.endswith(":22")} >= {
        "127.0.0.1:9090",
        "127.0.0.1:9093",
        "127.0.0.1:9100",
    }
    assert not [
        one for one in listens("watch") if re.search(r":(9090|9093|9094|9100)$", one) and not one.startswith("127.")
    ]
    for name in ("head", "worker"):
        assert [one for one in listens(name) if one.endswith(":9100")] == [f"{addresses[name]}:9100"]
    assert f"{addresses['head']}:8405" in listens("head")


def test_programs_of_prometheus_take_what_was_written(host: Host) -> None:
    host.check_output(
        "cd /etc/raymetal-monitoring && promtool check config prometheus.yml && amtool check-config alertmanager.yml"
    )
    mode = host.file("/etc/raymetal-monitoring/alertmanager.yml")
    assert (mode.mode, mode.group) == (0o640, "prometheus")


def test_when_certificates_end_is_known(ask: Callable[[str], Any]) -> None:
    found = {(one["metric"]["host"], one["metric"]["path"]): float(one["value"][1])
             for one in ask("raymetal_certificate_end_timestamp_seconds - time()")}  # fmt: skip
    assert 300 * 86400 < found["head", "/etc/raymetal/tls/gateway.pem"] < 366 * 86400
    assert ("head", "/etc/raymetal/authority/ca.pem") in found


def test_units_are_hardened(hosts: dict[str, Host]) -> None:
    limits = {
        "raymetal-prometheus": 1.5,
        "raymetal-alertmanager": 1.5,
        "raymetal-node-exporter": 2.4,
        "raymetal-certificates": 1.3,
    }
    for unit, limit in limits.items():
        line = hosts["watch"].check_output(f"systemd-analyze security --no-pager {unit}.service | tail -1")
        assert float(re.findall(r"(\d+\.\d)", line)[0]) <= limit, line

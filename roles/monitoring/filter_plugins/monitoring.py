"""What Prometheus asks, the cluster's own dashboard, and what is wrong with the inputs of monitoring."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

Problem = dict[str, Any]
LABEL = re.compile(r"<(\w+)>")
WILDCARDS = ("0.0.0.0", "::")
LARGEST_LATENCY_SECONDS = 600  # upper bound of the last bucket of Ray's histograms
ROW_WIDTH, PANEL_HEIGHT = 24, 8  # of Grafana's grid


def monitoring_join(address: str, port: Any) -> str:
    """``address`` and ``port`` as one text, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def monitoring_addresses(hosts: Iterable[str], sources: Iterable[Iterable[tuple[str, str]]]) -> dict[str, str]:
    """The address of each host by the first of ``sources`` (of host and address) that knows one, else its name."""
    known: dict[str, str] = {}
    for source in sources:
        for host, address in source:
            if address and host not in known:
                known[host] = str(address)
    return {host: known.get(host, host) for host in hosts}


def monitoring_ports(hosts: Iterable[str], variables: Mapping[str, Any], name: str) -> dict[str, int]:
    """Host -> the value of its variable ``name``; hosts where it is 0 or no number are left out."""
    found = {host: str(variables[host][name]) for host in hosts}
    return {host: int(port) for host, port in found.items() if port.isdecimal() and int(port)}


def monitoring_targets(
    ports: Mapping[str, int], addresses: Mapping[str, str], own: Mapping[str, str], cluster: str
) -> list[dict[str, Any]]:
    """The targets of a job as Prometheus' file_sd has them.

    ``addresses``: host -> its address in the cluster; ``own``: host -> what it listens on, where that is another one.
    """
    found = []
    for host, port in ports.items():
        address = own.get(host, "")
        if address in ("", *WILDCARDS):
            address = addresses[host]
        labels = {"host": host, "instance": addresses[host], "ray_io_cluster": cluster}
        found.append({"targets": [monitoring_join(address, port)], "labels": labels})
    return found


def monitoring_dashboard(panels: Iterable[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """A dashboard of Grafana from ``panels``: title, unit, width (of 24), queries (legend -> expression), type."""
    made: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(panels, 1):
        width = panel.get("width", ROW_WIDTH // 2)
        if x + width > ROW_WIDTH:
            x, y = 0, y + PANEL_HEIGHT
        targets = [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": LABEL.sub(r"{{\1}}", legend)}
            for index, (legend, expression) in enumerate(panel["queries"].items())
        ]
        made.append(
            {
                "id": number,
                "title": panel["title"],
                "type": panel.get("type", "timeseries"),
                "datasource": "${datasource}",
                "gridPos": {"x": x, "y": y, "w": width, "h": PANEL_HEIGHT},
                "fieldConfig": {"defaults": {"unit": panel.get("unit", "short"), "min": 0}, "overrides": []},
                "targets": targets,
            }
        )
        x += width
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 2}
    return {
        "uid": "raymetal-cluster",
        "title": title,
        "tags": ["raymetal"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": made,
    }


def monitoring_problems(values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the relations of the role's inputs; ``gateways`` and ``ray_ports`` are by host."""
    found: list[Problem] = []

    def tell(variable: str, value: Any, problem: str, do: str) -> None:
        found.append({"variable": variable, "value": value, "problem": problem, "do": do})

    address = values["monitoring_address"]
    if not _loopback(address) and not values["firewall_enabled"]:
        text = "Prometheus and Alertmanager ask nobody who he is, and no firewall closes their ports"
        tell("monitoring_address", address, text, "leave it at 127.0.0.1 and come by ssh -L, or set firewall_enabled")
    names = [receiver.get("name") for receiver in values["monitoring_receivers"]]
    if None in names or len(set(names)) < len(names):
        tell("monitoring_receivers", None, "each needs a name of its own", "see docs/monitoring.md")
    seen: dict[int, str] = {}
    for name, port in values["ports"].items():
        if int(port) in seen:
            tell(name, port, f"is also the port of {seen[int(port)]}", "choose another")
        seen[int(port)] = name
    reserve = values["cluster_disk_reserve_percent"]
    if float(values["monitoring_alert_disk_percent"]) <= float(reserve):
        text = f"is not above cluster_disk_reserve_percent = {reserve}: Ray takes no objects before anybody hears of it"
        tell("monitoring_alert_disk_percent", values["monitoring_alert_disk_percent"], text, "raise it")
    latency = values["monitoring_alert_latency_seconds"]
    if not 0 < float(latency) < LARGEST_LATENCY_SECONDS:
        text = f"is not between 0 and {LARGEST_LATENCY_SECONDS}, the longest that Ray's histograms tell apart"
        tell("monitoring_alert_latency_seconds", latency, text, "choose one between")
    if not 1 <= int(values["monitoring_scrape_seconds"]) <= 60:
        tell(
            "monitoring_scrape_seconds",
            values["monitoring_scrape_seconds"],
            "is not from 1 to 60",
            "choose one of them",
        )
    for host in sorted(set(values["nodes"]) - set(values["ray_ports"])):
        text = f"{host} draws it by lot, and Prometheus would not find it"
        tell("ray_node_options.metrics_export_port", 0, text, "fix it, or leave it at its default")
    for host, listens in values["gateways"].items():
        if _loopback(listens) and host != values["host"]:
            text = f"nobody but {host} itself reaches the gateway's metrics there"
            tell("gateway_metrics_address", listens, text, "leave it at its default, or name an address of the host")
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "monitoring_join": monitoring_join,
            "monitoring_addresses": monitoring_addresses,
            "monitoring_ports": monitoring_ports,
            "monitoring_targets": monitoring_targets,
            "monitoring_dashboard": monitoring_dashboard,
            "monitoring_problems": monitoring_problems,
        }

"""Servers, map and input checks of the gateway."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

Problem = dict[str, Any]
NAME = re.compile(r"[A-Za-z0-9_.-]+")
OWN_NAMES = {"waiting", "FRONTEND", "BACKEND"}  # server of the template, rows of HAProxy's statistics


def gateway_host(address: str) -> str:
    """An address as HAProxy writes it before a port."""
    return f"[{address}]" if ":" in address else address


def gateway_servers(
    nodes: Iterable[Mapping[str, str]], host: str, port: int, backups: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Name, address:port and backup of each node; a proxy that is bound to one address is reached there only.

    ``backups``: names of nodes that get a request only while no other is up.
    """
    wildcard, spare = host in ("0.0.0.0", "::"), set(backups)
    return [
        {
            "name": node["name"],
            "address": f"{gateway_host(node['address'] if wildcard else host)}:{port}",
            "backup": node["name"] in spare,
        }
        for node in nodes
    ]


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def gateway_problems(
    nodes: list[Mapping[str, str]], gateway: str, host: str, ports: Mapping[str, Any], others: Mapping[str, Any]
) -> list[Problem]:
    """Problems of the nodes and of the ports.

    ``gateway``: inventory name of the gateway; ``host``: what the proxies listen on; ``ports``: the gateway's, and
    ``others``: those that others own on the same host, variable -> port or [first, last].
    """
    found: list[Problem] = []

    def add(variable: str, value: Any, problem: str, do: str) -> None:
        found.append({"variable": variable, "value": value, "problem": problem, "do": do})

    names = [node["name"] for node in nodes]
    if not names:
        add("gateway_nodes", None, "there is no node behind the gateway", "put hosts into ray_cluster")
    for name in dict.fromkeys(names):
        if not NAME.fullmatch(name) or name in OWN_NAMES:
            do = "rename the host; letters, digits, dot, dash and underscore"
            add("gateway_nodes", name, "is no name for a node in HAProxy", do)
        if names.count(name) > 1:
            add("gateway_nodes", name, "stands there more than once", "name each node once")
    away = [name for name in names if name != gateway]
    if _loopback(host) and away:
        text = f"the proxies of {', '.join(away)} listen on their own loopback, where the gateway cannot reach them"
        do = "set it to 0.0.0.0; the firewall admits the gateway"
        add("ray_serve_config.http_options.host", host, text, do)
    elif host not in ("0.0.0.0", "::") and len(names) > 1:
        text = "is one address, and there are several nodes"
        add("ray_serve_config.http_options.host", host, text, "set it to 0.0.0.0")
    taken: dict[Any, str] = {}
    for name, port in others.items():
        first, last = port if isinstance(port, list) else (port, port)
        taken |= dict.fromkeys(range(first, last + 1), name)
    for name, port in ports.items():
        if not isinstance(port, int) or not 1 <= port <= 65535:
            add(name, port, "is no port", "write 1 to 65535")
        elif port in taken:
            add(name, port, f"is also the port of {taken[port]} on this host", "choose another")
        taken.setdefault(port, name)
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "gateway_host": gateway_host,
            "gateway_servers": gateway_servers,
            "gateway_problems": gateway_problems,
        }

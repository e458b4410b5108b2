"""The port plan of a host, what is wrong with it, and its rules in the words of nft."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

Problem = dict[str, Any]
Entry = dict[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PORT_MAX = 65535
# Whom each kind of access means, for people.
ACCESS = {
    "all": "everyone, not stopped",
    "clients": "firewall_clients, nodes, gateways",
    "local": "this host",
    "metrics": "monitoring hosts, firewall_operators, nodes, gateways",
    "operators": "firewall_operators, nodes, gateways",
    "peers": "nodes, gateways",
    "proxy_clients": "firewall_proxy_clients, nodes, gateways",
}


def _port(value: Any) -> int | None:
    """A port number, also one in text; None for what is none."""
    text = str(value).strip()
    return int(text) if text.isdecimal() and int(text) <= PORT_MAX else None


def _ranges(ports: Any) -> list[list[int]]:
    """First and last port of each range; none where the kernel draws one. What is no port is left to its role."""
    if isinstance(ports, str) and "," in ports:
        ports = ports.split(",")
    elif not isinstance(ports, (list, tuple)):
        ports = [ports]
    elif len(ports) == 2:
        first, last = map(_port, ports)
        return [[first, last]] if first and last and first <= last else []
    found = sorted({port for port in map(_port, ports) if port})
    return [[port, port] for port in found]


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def port_plan(processes: Iterable[Mapping[str, Any]], parts: list[str]) -> list[Entry]:
    """What listens on a host that is ``parts``, in the order of ``processes``.

    The parts are host, node, head, worker, gateway, watched, monitoring.

    Each entry has process, variable (empty where no setting moves it), protocol, ports (pairs of first and last; empty
    where the kernel draws one) and access.
    """
    return [
        {
            "process": entry["process"],
            "variable": entry["variable"],
            "protocol": "tcp",
            "ports": _ranges(entry["ports"]),
            "access": "local" if _loopback(entry.get("host", "")) else entry["access"],
        }
        for entry in processes
        if entry["part"] in parts and entry["ports"] is not None
    ]


def _span(ports: list[int]) -> str:
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


def port_problems(plan: list[Entry]) -> list[Problem]:
    """Two processes on one port."""
    found = []
    for index, entry in enumerate(plan):
        for other in plan[:index]:
            both = [(p, q) for p in entry["ports"] for q in other["ports"] if p[0] <= q[1] and q[0] <= p[1]]
            if not both:
                continue
            # What can be moved is named; of two, the one that is no range.
            fixed = not entry["variable"] or (other["variable"] and entry["ports"][0][0] < entry["ports"][-1][1])
            moved, stays = (other, entry) if fixed else (entry, other)
            mine, theirs = both[0] if moved is entry else both[0][::-1]
            named = stays["variable"] or "which no setting moves"
            found.append(
                {
                    "variable": moved["variable"],
                    "value": _span(mine),
                    "problem": f"is also a port of the {stays['process']}, {_span(theirs)} ({named})",
                    "do": "choose another; playbooks/ports.yml shows all",
                }
            )
    return found


def network_problems(variables: Mapping[str, Iterable[str]]) -> list[Problem]:
    """Entries of ``variables`` (name -> addresses or networks) that are none."""
    found = []
    for name, networks in variables.items():
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                found.append(
                    {
                        "variable": name,
                        "value": network,
                        "problem": f"is no address and no network ({error})",
                        "do": "write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32",
                    }
                )
    return found


def port_lines(plan: list[Entry]) -> list[str]:
    """The plan as a table, one line an entry, lowest port first."""
    rows = [
        (
            ", ".join(map(_span, entry["ports"])) or "drawn",
            entry["process"],
            ACCESS[entry["access"]],
            entry["variable"] or "no setting",
        )
        for entry in sorted(plan, key=lambda entry: entry["ports"] or [[PORT_MAX + 1]])
    ]
    table = [("tcp port", "process", "who may reach it", "variable"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def port_report(plans: Mapping[str, list[Entry]]) -> str:
    """The plans of all hosts (name -> plan); hosts with the same one share a table."""
    hosts: dict[str, list[str]] = {}
    for host, plan in plans.items():
        hosts.setdefault("\n".join(port_lines(plan)), []).append(host)
    return "\n\n".join(f"{', '.join(names)}:\n{table}" for table, names in hosts.items())


def nft_ports(plan: Iterable[Entry], access: str | None = None, more: Iterable[list[int]] = ()) -> str:
    """The ports of ``access`` (None: all that are closed to strangers) with ``more`` ranges, as nft writes a set."""
    wanted = [entry for entry in plan if (entry["access"] == access if access else entry["access"] != "all")]
    merged: list[list[int]] = []
    for first, last in sorted([*(ports for entry in wanted for ports in entry["ports"]), *more]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(last, merged[-1][1])
        else:
            merged.append([first, last])
    return ", ".join(map(_span, merged))


def _widest_first(network: Network) -> tuple[int, int]:
    return network.prefixlen, int(network.network_address)


def peer_addresses(hosts: Iterable[str], sources: list[Mapping[str, str]]) -> dict[str, list[str]]:
    """Addresses of each host, from ``sources`` (host -> address, empty where it knows none)."""
    return {host: [*dict.fromkeys(source[host] for source in sources if source.get(host))] for host in hosts}


def nft_sources(networks: Iterable[str]) -> list[str]:
    """Matches of nft for packets from ``networks``: none, or one for each family of addresses."""
    found = []
    for version, family in ((4, "ip"), (6, "ip6")):
        # nft takes no network beside one that it is part of.
        wide = sorted({n for n in map(ipaddress.ip_network, networks) if n.version == version}, key=_widest_first)
        those: list[Any] = []
        for network in wide:
            if not any(network.subnet_of(other) for other in those):
                those.append(network)
        if those and those[0].prefixlen == 0:
            found.append(f"meta nfproto ipv{version}")
        elif those:
            shown = (str(n.network_address if n.num_addresses == 1 else n) for n in sorted(those))
            found.append(f"{family} saddr {{ {', '.join(shown)} }}")
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "port_plan": port_plan,
            "port_problems": port_problems,
            "network_problems": network_problems,
            "port_report": port_report,
            "peer_addresses": peer_addresses,
            "nft_ports": nft_ports,
            "nft_sources": nft_sources,
        }

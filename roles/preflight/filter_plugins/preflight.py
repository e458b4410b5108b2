"""What hosts saw of one another, judged: problems, whom to leave out, the table."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Problem = dict[str, Any]
Host = Mapping[str, Any]
# What nodes need of one another, and what gateways need of nodes; the rest is for people and for the host itself.
DRAWN = "any other (replicas, NCCL)"
NEEDED = {"node": ("peers", "proxy_clients"), "gateway": ("proxy_clients",)}


def _problem(host: str, check: str, variable: str, value: Any, text: str, do: str) -> Problem:
    return {"host": host, "check": check, "variable": variable, "value": value, "problem": text, "do": do}


def preflight_ports(plan: Iterable[Mapping[str, Any]], asking: str | None = None) -> dict[int, str]:
    """Ports that are tried, port -> process: all of the plan that ``asking`` (node, gateway; None: either) needs.

    Of a range the first, the middle and the last. Entries without a port are tried by the one that the kernel draws.
    """
    access = NEEDED[asking] if asking else {name for names in NEEDED.values() for name in names}
    found: dict[int, str] = {}
    for entry in plan:
        if entry["access"] in access and entry["protocol"] == "tcp":
            for first, last in entry["ports"]:
                for port in sorted({first, (first + last) // 2, last}):
                    found.setdefault(port, entry["process"])
    return found


def preflight_peers(hosts: Mapping[str, Host], own: str) -> list[dict[str, Any]]:
    """The peers of host ``own`` for preflight_probe: all others that listen. Of gateways nobody needs anything."""
    part = hosts[own]["part"]
    return [
        {
            "name": name,
            "address": host["address"],
            "ports": list(preflight_ports(host["plan"], part)),
            "port": host["listener"]["port"],
        }
        for name, host in hosts.items()
        if name != own and host["listener"] and host["part"] == "node"
    ]


def preflight_next(hosts: Mapping[str, Host], own: str) -> str:
    """The peer after ``own`` in the ring of nodes; empty where there is none, and for a gateway."""
    names = [name for name, host in hosts.items() if host["listener"] and host["part"] == "node"]
    if own not in names or len(names) < 2:
        return ""
    return names[(names.index(own) + 1) % len(names)]


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _spoken(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _own(name: str, host: Host, names: Mapping[str, str], hosts: Mapping[str, Host]) -> Iterator[Problem]:
    """Problems of a host that are nobody else's."""
    ports = preflight_ports(host["plan"])
    for port, users in host["listener"]["users"].items():
        strangers = [user for user in users if user != host["user"]]
        if strangers:
            text = f"is taken by a process of user {_spoken(strangers)}"
            do = "stop it, or move the port (playbooks/ports.yml shows its variable)"
            yield _problem(name, "ports", f"port {port} ({ports.get(int(port), '')})", None, text, do)
    for port, reason in host["listener"]["failed_ports"].items():
        text = f"cannot be listened on: {reason}"
        yield _problem(name, "ports", f"port {port} ({ports.get(int(port), '')})", None, text, "choose another port")
    for asked, target in names.items():
        if _is_address(asked):
            continue
        found = host["probe"]["names"].get(asked, [])
        there = hosts.get(target, {}).get("addresses", [])
        if not found:
            text, do = "does not resolve", "correct DNS or /etc/hosts, or write an address"
            yield _problem(name, "names", f"name {asked}", None, text, do)
        elif there and (wrong := [address for address in found if address not in there]):
            text = f"resolves to {_spoken(wrong)}, which is none of the addresses of {target}, {_spoken(there)}"
            yield _problem(name, "names", f"name {asked}", None, text, "correct DNS or /etc/hosts, or write an address")
    for gpu in host["gpus"]:
        yield from _gpu(name, gpu)
    if host["gpu_error"]:
        do = "run nvidia-smi -q there; mend the driver"
        yield _problem(name, "gpus", "nvidia-smi -q -x", None, host["gpu_error"], do)


def _gpu(name: str, gpu: Mapping[str, Any]) -> Iterator[Problem]:
    which = f"{gpu['name']} {gpu['uuid']}"
    reset = "reset the GPU (nvidia-smi --gpu-reset) or reboot the host"
    if gpu["ecc_uncorrectable"]:
        text = f"{gpu['ecc_uncorrectable']} uncorrectable errors of its memory since the driver was loaded"
        yield _problem(name, "gpus", which, None, text, f"{reset}; replace it if they come back")
    if gpu["retirement_pending"] or gpu["remapping_pending"]:
        yield _problem(name, "gpus", which, None, "bad memory waits to be taken out of use", reset)
    if gpu["remapping_failed"]:
        yield _problem(name, "gpus", which, None, "bad memory could not be remapped", "replace the GPU")
    if gpu["reset_required"]:
        yield _problem(name, "gpus", which, None, "the driver asks for a reset", reset)
    if gpu["slowdowns"]:
        text, do = f"its clocks are held down: {_spoken(gpu['slowdowns'])}", "see to cooling and power"
        yield _problem(name, "gpus", which, None, text, do)


def _clocks(hosts: Mapping[str, Host], head: str, tolerance_seconds: float) -> Iterator[Problem]:
    """By the head's clock; if most others differ from it, it is the head's that is wrong."""
    ahead = {n: h["probe"]["clock_seconds"] for n, h in hosts.items() if h["probe"]["clock_seconds"] is not None}
    wrong = {name: seconds for name, seconds in ahead.items() if abs(seconds) > tolerance_seconds}
    do = "set up NTP (chrony, systemd-timesyncd)"
    if len(wrong) > 1 and len(wrong) * 2 > len(ahead):
        low, high = min(wrong.values()), max(wrong.values())
        text = f"the clock differs from that of {_spoken(wrong)}, which are {low:.1f} to {high:.1f} s ahead of it"
        yield _problem(head, "clock", "preflight_clock_tolerance_seconds", tolerance_seconds, text, do)
        return
    for name, seconds in wrong.items():
        text = f"the clock is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} that of {head}"
        yield _problem(name, "clock", "preflight_clock_tolerance_seconds", tolerance_seconds, text, do)


def _mtus(hosts: Mapping[str, Host]) -> Iterator[Problem]:
    """Who has another MTU than most nodes; of two halves the one without the first host."""
    nodes = {name: host["mtu"] for name, host in hosts.items() if host["part"] == "node" and host["mtu"]}
    if not nodes:
        return
    values = list(nodes.values())
    common = max(dict.fromkeys(values), key=values.count)
    for name, mtu in nodes.items():
        if mtu != common:
            text, do = f"its MTU is {mtu} bytes, that of most nodes {common}", f"set it to {common}, on switches too"
            yield _problem(name, "mtu", f"interface {hosts[name]['interface']}", None, text, do)


def _pairs(hosts: Mapping[str, Host], minimum_mbit: float) -> Iterator[tuple[str, str, Problem]]:
    """What is wrong between two hosts: who asked, or received, who was asked, and the problem without its host."""
    for name, host in hosts.items():
        probe = host["probe"]
        for peer, closed in probe["closed"].items():
            known = preflight_ports(hosts[peer]["plan"], host["part"])
            drawn = str(hosts[peer]["listener"]["port"])
            reasons: dict[str, list[str]] = {}
            for port, reason in closed.items():
                named = f"{port} ({known.get(int(port), '')})"
                reasons.setdefault(reason, []).append(DRAWN if str(port) == drawn else named)
            for reason, ports in reasons.items():
                shown = _spoken(ports[:4]) + (f" and {len(ports) - 4} more" if len(ports) > 4 else "")
                text = f"{{from}} cannot reach port {shown} of {{to}}: {reason}"
                do = "let nodes and gateways reach one another (firewall, routes)"
                yield name, peer, _problem("", "ports", "ports", None, text, do)
        for peer, fate in probe["packets"].items():
            if fate == "lost" and hosts[peer]["mtu"] >= host["mtu"]:
                text = f"packets of {host['mtu']} bytes, its MTU, do not arrive from {{from}} at {{to}}; small ones do"
                do = "give switches and tunnels between them this MTU, or the interfaces a smaller one"
                yield name, peer, _problem("", "mtu", f"interface {host['interface']}", None, text, do)
        stream = probe["stream"]
        if stream and stream["mbit_per_second"] < minimum_mbit:
            text = f"{stream['mbit_per_second']} Mbit/s arrive from {{to}} at {{from}}"
            do = "look at cable, switch and driver (ethtool), or lower it"
            variable = "preflight_bandwidth_minimum_mbit"
            yield host["next"], name, _problem("", "bandwidth", variable, minimum_mbit, text, do)


def _blamed(edges: list[tuple[str, str]], bad: set[str], head: str, order: list[str]) -> dict[tuple[str, str], str]:
    """Of each edge the host that is to blame: he of whom most complain; of two alike not the head, then who was asked.

    Edges of a host that is bad anyway are put on him.
    """
    blame = {edge: next(name for name in edge[::-1] if name in bad) for edge in edges if bad & set(edge)}
    while left := [edge for edge in edges if edge not in blame]:
        partners: dict[str, set[str]] = {}
        asked: dict[str, int] = {}
        for asking, answering in left:
            partners.setdefault(asking, set()).add(answering)
            partners.setdefault(answering, set()).add(asking)
            asked[answering] = asked.get(answering, 0) + 1
        worst = max(partners, key=lambda n: (len(partners[n]), n != head, asked.get(n, 0), order.index(n)))
        blame |= {edge: worst for edge in left if worst in edge}
    return blame


def _between(hosts: Mapping[str, Host], bad: set[str], head: str, minimum_mbit: float) -> Iterator[Problem]:
    """The problems of pairs, each put on one host; the same of many askers is one."""
    pairs = list(_pairs(hosts, minimum_mbit))
    links = {(asking, peer) for asking, peer, problem in pairs if problem["check"] == "bandwidth"}
    ways = {(asking, peer) for asking, peer, problem in pairs if problem["check"] != "bandwidth"}
    order = list(hosts)
    blame = {
        "ways": _blamed(sorted(ways), bad, head, order),
        "links": _blamed(sorted(links), set(), head, order),  # a slow link is slow to whomever is next
    }
    merged: dict[tuple[str, ...], list[str]] = {}
    for asking, peer, problem in pairs:
        kind = "links" if problem["check"] == "bandwidth" else "ways"
        fixed = (blame[kind][asking, peer], problem["check"], problem["variable"], str(problem["value"]))
        merged.setdefault((*fixed, problem["problem"], problem["do"], peer), []).append(asking)
    for (host, check, variable, value, text, do, peer), askers in merged.items():
        shown = _spoken(askers[:4]) + (f" and {len(askers) - 4} more" if len(askers) > 4 else "")
        filled = text.replace("{from}", shown).replace("{to}", peer)
        yield _problem(host, check, variable, None if value == "None" else value, filled, do)


def preflight_result(
    hosts: Mapping[str, Host],
    found: list[Problem],
    cluster: str,
    head: str,
    names: Mapping[str, str],
    settings: Mapping[str, Any],
    left_out: list[str],
) -> dict[str, Any]:
    """All that preflight says: cluster, ok, left_out, pairs, connections, hosts, problems, leave_out.

    ``hosts`` is name -> {part (node, gateway), user, address, addresses, interface, mtu (bytes, 0: unknown), plan,
    next, error, and listener, probe, gpus, gpu_error: what the modules told, null where they told nothing}; ``found``
    is what gate 2 says; ``names`` is name -> host that it must mean; ``settings`` has clock_tolerance_seconds and
    bandwidth_minimum_mbit.
    """
    problems = [{**p, "check": "host"} for p in found]
    known = {p["host"] for p in found}
    for name, host in hosts.items():
        if host["error"] and name not in known:
            do = "mend it, or leave it out"
            problems.append(_problem(name, "host", "ansible_host", host["address"], host["error"], do))
    heard = {name: host for name, host in hosts.items() if host["listener"] and host["probe"]}
    for name, host in heard.items():
        problems += _own(name, host, names, hosts)
    problems += [*_clocks(heard, head, settings["clock_tolerance_seconds"]), *_mtus(heard)]
    bad = {p["host"] for p in problems}
    problems += _between(heard, bad, head, settings["bandwidth_minimum_mbit"])
    failed = {p["host"] for p in problems}
    nodes = [name for name, host in heard.items() if host["part"] == "node"]
    return {
        "cluster": cluster,
        "ok": not problems,
        "left_out": left_out,
        "pairs": sum(1 for name in heard for node in nodes if name != node),
        "connections": sum(host["probe"]["connections"] for host in heard.values()),
        "hosts": [_row(name, host, name not in failed) for name, host in hosts.items()],
        "problems": problems,
        "leave_out": [name for name in hosts if name in failed and name != head],
    }


def _row(name: str, host: Host, ok: bool) -> dict[str, Any]:
    probe = host["probe"] or {}
    stream = probe.get("stream") or {}
    return {
        "name": name,
        "ok": ok,
        "address": host["address"],
        "interface": host["interface"],
        "mtu": host["mtu"] or None,
        "clock_seconds": probe.get("clock_seconds"),
        "gpus": len(host["gpus"] or []),
        "next": host["next"],
        "mbit_per_second": stream.get("mbit_per_second"),
    }


def preflight_text(result: Mapping[str, Any], lines: list[str]) -> str:
    """The result for people; ``lines`` are its problems as problem_lines tells them."""

    def cell(value: Any) -> str:
        return "-" if value in (None, "") else f"{value:+.3f}" if isinstance(value, float) else str(value)

    table: list[tuple[str, ...]] = [("host", "address", "interface", "MTU", "clock s", "GPUs", "Mbit/s", "to", "")]
    for host in result["hosts"]:
        keys = ("name", "address", "interface", "mtu", "clock_seconds", "gpus", "mbit_per_second", "next")
        table.append((*(cell(host[key]) for key in keys), "ok" if host["ok"] else "FAILED"))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    spoken = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
    head = f"Preflight of cluster {result['cluster']}: {result['pairs']} pairs, {result['connections']} connections"
    if result["left_out"]:
        head += f"; left out: {_spoken(result['left_out'])}"
    told = [head, "", *spoken]
    if not lines:
        return "\n".join([*told, "", "All is well."])
    told += ["", f"{len(lines)} problem(s), and nothing was changed:", *(f"- {line}" for line in lines)]
    if result["leave_out"]:
        names = _spoken(f'"{name}"' for name in [*result["left_out"], *result["leave_out"]])
        told += ["", f"Without {_spoken(result['leave_out'])}: -e '{{\"cluster_left_out\": [{names}]}}'"]
    return "\n".join(told)


def preflight_problems(positive: Mapping[str, float], names: Mapping[str, str], hosts: list[str]) -> list[Problem]:
    """Problems of numbers that must be above zero (variable -> value), and of preflight_names within ``hosts``."""
    found = [
        {"variable": variable, "value": value, "problem": "is not above zero", "do": "choose a larger number"}
        for variable, value in positive.items()
        if float(value) <= 0
    ]
    for name, host in names.items():
        if host not in hosts:
            text, do = f"{host} is no host of the inventory", "write name: inventory name"
            found.append({"variable": f"preflight_names {name}", "value": None, "problem": text, "do": do})
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "preflight_ports": preflight_ports,
            "preflight_peers": preflight_peers,
            "preflight_next": preflight_next,
            "preflight_problems": preflight_problems,
            "preflight_result": preflight_result,
            "preflight_text": preflight_text,
        }

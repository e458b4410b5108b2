"""Who holds what, who sends what to whom, and the input checks of fan_out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

Problem = dict[str, Any]
MIB = 1024**2


def fan_out_problems(
    trees: list[Mapping[str, Any]], port: int, numbers: Mapping[str, int], minimum: Mapping[str, int]
) -> list[Problem]:
    """Problems of the inputs. ``numbers``: variable -> value; ``minimum``: the least that each may be."""
    found: list[Problem] = []

    def add(variable: str, value: Any, problem: str, do: str) -> None:
        found.append({"variable": variable, "value": value, "problem": problem, "do": do})

    paths = [str(tree["path"]) for tree in trees]
    for index, path in enumerate(paths):
        variable = f"fan_out_trees[{index}].path"
        if not re.fullmatch(r"(/(?!\.{1,2}(/|$))[^/\0]+){2,}", path):
            do = "write it from the root, at least two levels deep, without . and .., doubled or closing slashes"
            add(variable, path, "is no absolute path of a directory", do)
        elif paths.count(path) > 1:
            add(variable, path, "stands there more than once", "name each tree once")
        elif other := next((o for o in paths if o != path and path.startswith(f"{o}/")), None):
            add(variable, path, f"lies within {other}", "name the outer tree only")
    if not 1 <= port <= 65535:
        add("fan_out_port", port, "is no port", "write 1 to 65535")
    for name, value in numbers.items():
        if value < minimum[name]:
            add(name, value, "is too small", f"write {minimum[name]} or more")
    return found


def fan_out_plan(hosts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is to be moved: for each tree that one host holds and another lacks a dict.

    path, name, digest, bytes, disk_bytes, holder (the first, which offers it), holders, receivers (names of hosts).
    ``hosts``: host -> result of fan_out_held. A host with something else at the path is neither.
    """
    moves = []
    for path in dict.fromkeys(tree["path"] for facts in hosts.values() for tree in facts["trees"]):
        known = {host: tree for host, facts in hosts.items() for tree in facts["trees"] if tree["path"] == path}
        holders = [host for host, tree in known.items() if tree["digest"]]
        receivers = [host for host, tree in known.items() if not tree["present"]]
        if holders and receivers:
            first = known[holders[0]]
            about = {key: first[key] for key in ("path", "name", "digest", "bytes", "disk_bytes")}
            moves.append({**about, "holder": holders[0], "holders": holders, "receivers": receivers})
    return moves


def fan_out_unequal(hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Trees that are not the same on all hosts that hold them, one sentence each."""
    found: dict[str, dict[str, list[str]]] = {}
    for host, facts in hosts.items():
        for tree in facts["trees"]:
            if tree["digest"]:
                found.setdefault(tree["path"], {}).setdefault(tree["digest"], []).append(host)
    return [
        f"fan_out_trees: {path} differs between hosts: "
        + "; ".join(f"{', '.join(names)}: {digest[:12]}" for digest, names in groups.items())
        + ". To do: remove it where it is wrong, with its .manifest.json, and run again"
        for path, groups in found.items()
        if len(groups) > 1
    ]


def fan_out_unfit(hosts: Mapping[str, Mapping[str, Any]], moves: list[dict[str, Any]], host: str) -> list[str]:
    """Why a host cannot take part: its address, or no room for what it is to receive."""
    facts = hosts[host]
    found = []
    if any(host in move["holders"] + move["receivers"] for move in moves):
        others = [other for other in hosts if other != host and hosts[other]["address"] == facts["address"]]
        do = "To do: set it to the host's own address on the network that the hosts share"
        if facts["address_problem"]:
            found.append(f"{host}: fan_out_address {facts['address_problem']}. {do}")
        elif others:
            found.append(f"{host}: fan_out_address {facts['address']} is also that of {', '.join(others)}. {do}")
        elif facts["address"].startswith("127.") or facts["address"] == "::1":
            found.append(f"{host}: fan_out_address {facts['address']} is the loopback. {do}")
    trees = {tree["path"]: tree for tree in facts["trees"]}
    needed: Counter[int] = Counter()
    for move in moves:
        if host in move["receivers"]:
            tree = trees[move["path"]]
            needed[tree["device"]] += max(0, move["disk_bytes"] - tree["partial_bytes"])
    for device, need in needed.items():
        mine = [trees[m["path"]] for m in moves if host in m["receivers"] and trees[m["path"]]["device"] == device]
        if need > mine[0]["room_bytes"]:
            names = ", ".join(tree["name"] for tree in mine)
            found.append(
                f"{host}: {names} needs {need / MIB:.0f} MiB more at {mine[0]['path']}, and "
                f"{mine[0]['room_bytes'] / MIB:.0f} MiB are free there. To do: free some space"
            )
    return found


def fan_out_job(
    moves: list[dict[str, Any]],
    host: str,
    hosts: Mapping[str, Mapping[str, Any]],
    offers: Mapping[str, Mapping[str, Any]],
    port: int,
) -> list[dict[str, Any]]:
    """The trees of the job of one host, as fan_out_job wants them; ``offers``: path -> torrent and files."""
    found = []
    for move in moves:
        members = [name for name in move["holders"] + move["receivers"] if name in hosts]
        if host in members and move["path"] in offers:
            peers = [{"address": hosts[name]["address"], "port": port} for name in members if name != host]
            about = {"path": move["path"], "name": move["name"], "digest": move["digest"]}
            receive = host in move["receivers"]
            found.append({**about, **offers[move["path"]], "receive": receive, "peers": peers})
    return found


def fan_out_said(moves: list[dict[str, Any]], host: str) -> list[str]:
    """What the host would receive, one sentence each."""
    return [
        f"{move['name']} ({move['bytes'] / MIB:.0f} MiB) would come from {', '.join(move['holders'])}"
        for move in moves
        if host in move["receivers"]
    ]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "fan_out_problems": fan_out_problems,
            "fan_out_plan": fan_out_plan,
            "fan_out_unequal": fan_out_unequal,
            "fan_out_unfit": fan_out_unfit,
            "fan_out_job": fan_out_job,
            "fan_out_said": fan_out_said,
        }

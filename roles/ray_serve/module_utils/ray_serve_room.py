"""Is there room: replicas as bundles of resources, and nodes with what is free on them. Pure functions.

A bundle is resource -> amount (GPUs may be fractions). A replica is {bundles: [...], strategy, per_node}: per_node is
how many of its kind a node may have, 0 for any number. One that runs has also {node, placed: [[node id, bundle], ...]}.
First fit, largest first: it may miss a packing that Ray's scheduler finds, and never promises one that does not exist.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

Bundle = dict[str, float]
Nodes = dict[str, Bundle]  # node id -> what is free on it
Replica = dict[str, Any]
EPSILON = 1e-6


def bundle_of(options: dict[str, Any] | None) -> Bundle:
    """What a replica without a placement group takes, from its ray_actor_options (Serve's default is one CPU)."""
    options = options or {}
    found = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0), "memory": options.get("memory", 0)}
    return {k: float(v) for k, v in {**found, **(options.get("resources") or {})}.items() if v}


def replica_of(entry: dict[str, Any]) -> Replica:
    """A replica of a deployment, from its entry in `deployments:` or in the answer of Serve's REST interface."""
    bundles = entry.get("placement_group_bundles")
    if bundles:
        bundles = [{k: float(v) for k, v in bundle.items() if v} for bundle in bundles]
    return {
        "bundles": bundles or [bundle_of(entry.get("ray_actor_options"))],
        "strategy": entry.get("placement_group_strategy") or "PACK",
        "per_node": entry.get("max_replicas_per_node") or 0,
    }


def _fits(node: Bundle, bundle: Bundle) -> bool:
    return all(node.get(name, 0) + EPSILON >= amount for name, amount in bundle.items())


def _add(node: Bundle, bundle: Bundle, sign: int) -> None:
    for name, amount in bundle.items():
        node[name] = node.get(name, 0) + sign * amount


def _total(bundles: list[Bundle]) -> Bundle:
    return {name: sum(b.get(name, 0) for b in bundles) for name in {name for b in bundles for name in b}}


def _place(nodes: Nodes, replica: Replica, full: set[str]) -> tuple[Nodes, set[str]] | None:
    """The nodes after one replica was placed, and which have it; none if it fits on no node that is not full."""
    bundles, strategy = replica["bundles"], replica["strategy"]
    if strategy == "STRICT_PACK":
        bundles = [_total(bundles)]
    nodes = copy.deepcopy(nodes)
    used: set[str] = set()
    for bundle in sorted(bundles, key=lambda b: (-b.get("GPU", 0), -sum(b.values()))):
        free = [n for n, node in nodes.items() if n not in full and _fits(node, bundle)]
        if strategy == "STRICT_SPREAD":
            free = [n for n in free if n not in used]
        if not free:
            return None
        spread = strategy == "SPREAD"
        # The fullest node that will do leaves the most for others.
        chosen = min(free, key=lambda n: ((n in used) == spread, nodes[n].get("GPU", 0), nodes[n].get("CPU", 0)))
        used.add(chosen)
        _add(nodes[chosen], bundle, -1)
    return nodes, used


def after(nodes: Nodes, replicas: list[Replica]) -> tuple[Nodes, Bundle]:
    """The nodes after all replicas were placed, and what is short: resource -> amount, empty if all have room.

    Replicas of one deployment are the same object. Short is what is missing in sum; where the sum would do, and no node
    has enough of it, what one replica asks for; where only ``per_node`` forbids it, nodes.
    """
    left: list[Replica] = []
    here: Counter[tuple[int, str]] = Counter()  # replicas of a deployment on a node
    for replica in sorted(replicas, key=lambda r: -_total(r["bundles"]).get("GPU", 0)):
        limit = replica.get("per_node") or len(replicas)
        found = _place(nodes, replica, {node for node in nodes if here[id(replica), node] >= limit})
        if found is None:
            left.append(replica)
        else:
            nodes, used = found
            here.update((id(replica), node) for node in used)
    if not left:
        return nodes, {}
    asked = _total([bundle for replica in left for bundle in replica["bundles"]])
    free = _total(list(nodes.values()))
    short = {name: round(amount - free.get(name, 0), 3) for name, amount in asked.items()}
    short = {name: amount for name, amount in short.items() if amount > EPSILON}
    if not short and all(_place(nodes, replica, set()) for replica in left):
        short = {"nodes by max_replicas_per_node": len(left)}
    return nodes, short or _total(left[0]["bundles"])


def freed(nodes: Nodes, replicas: list[Replica], sign: int = 1) -> Nodes:
    """The nodes as if the running replicas were gone."""
    nodes = copy.deepcopy(nodes)
    for replica in replicas:
        for node, bundle in replica["placed"]:
            if node in nodes:
                _add(nodes[node], bundle, sign)
    return nodes


def taken(nodes: Nodes, replicas: list[Replica]) -> Nodes:
    """What the running replicas leave of the nodes."""
    return freed(nodes, replicas, -1)


def lesser(first: Nodes, second: Nodes) -> Nodes:
    """Of each resource of ``first`` the smaller amount of both."""
    return {
        node: {name: min(amount, second[node].get(name, amount)) for name, amount in resources.items()}
        for node, resources in first.items()
    }


def gpus(replicas: list[Replica]) -> float:
    return round(float(sum(bundle.get("GPU", 0) for replica in replicas for bundle in replica["bundles"])), 3)


def words(short: dict[str, float]) -> str:
    """What is short, GPUs first: "2 GPU, 1 CPU"."""
    return ", ".join(
        f"{amount:g} {name}" for name, amount in sorted(short.items(), key=lambda s: (s[0] != "GPU", s[0]))
    )

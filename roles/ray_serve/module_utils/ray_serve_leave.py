"""What becomes of the replicas on nodes that leave for a while. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible.module_utils import ray_serve_room as room
from ansible.module_utils.ray_serve_planner import Cluster


@dataclass
class Leaving:
    """``moved``: replicas that start elsewhere before the old ones stop, application -> number. In words: ``reduced``:
    deployments with fewer replicas meanwhile; ``lost``: those that would serve nobody, or lose what they answer.
    """

    moved: dict[str, int] = field(default_factory=dict)
    stuck: int = 0  # replicas that have no room elsewhere
    reduced: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def leave(cluster: Cluster, nodes: list[str]) -> Leaving:
    """``nodes``: ids of those that leave together. Largest replicas first, as first fit wants it."""
    found = Leaving()
    free = {node: resources for node, resources in cluster.free.items() if node not in nodes}
    here = []
    for app in cluster.apps:
        for deployment, replicas in cluster.replicas(app).items():
            away = [r for r in replicas if r["node"] in nodes]
            across = [r for r in replicas if r not in away and any(node in nodes for node, _ in r["placed"])]
            if across:
                # Ray drains a node of the replicas whose actor is there, not of an engine's other workers.
                text = f"{len(across)} replica(s) of {app}/{deployment} span several nodes and cannot be moved"
                found.lost.append(f"{text}: what they answer at that moment is cut")
            here += [(app, deployment, len(replicas) - len(away) - len(across), r) for r in away]
    left: dict[tuple[str, str], int] = {}
    for app, deployment, others, replica in sorted(here, key=lambda h: -room.gpus([h[3]])):
        free, short = room.after(free, [replica])
        left.setdefault((app, deployment), others)
        if short:
            found.stuck += 1
        else:
            left[app, deployment] += 1
            found.moved[app] = found.moved.get(app, 0) + 1
    wanted = {(app, deployment): 0 for app, deployment, _, _ in here}
    for app, deployment, _, _ in here:
        wanted[app, deployment] += 1
    for (app, deployment), stays in left.items():
        others = next(o for a, d, o, _ in here if (a, d) == (app, deployment))
        missing = others + wanted[app, deployment] - stays
        if missing and stays:
            found.reduced.append(f"{app}/{deployment} has {stays} replica(s) instead of {stays + missing}")
        elif missing:
            found.lost.append(f"{app}/{deployment} has no replica: no other node has room for one")
    return found

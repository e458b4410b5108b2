"""How an application is replaced: which ways have room, and which one is taken. Pure functions.

blue_green  a second copy on a hidden route, judged before it gets traffic, then it takes the route over in one push
surge       each replica is started before one is stopped
roll        where nothing more has room: one replica after the other, of two or more
queue       the only replica stops before its successor starts; requests wait: only when the operator says so
"""

from __future__ import annotations

import math
from typing import Any

from ansible.module_utils import ray_serve_config as conf
from ansible.module_utils import ray_serve_room as room
from ansible.module_utils.ray_serve_planner import App, Cluster, Step

AUTOMATIC = ("blue_green", "surge", "roll")
WAYS = (*AUTOMATIC, "queue")


def new_replicas(app: App, needs: dict[str, Any], cluster: Cluster, live: str | None) -> dict[str, dict[str, Any]]:
    """Deployment -> {replica, first, count} of ``app``: how many it starts with, and how many beside or after ``live``.

    ``needs`` is what the judge saw when it built the application; where it could not, what runs now is taken, and of
    what does not run what `deployments:` says.
    """
    have, alike = cluster.replicas(live), cluster.made_alike(live, app)
    found = {}
    for name in needs or (have if alike else conf.entries(app)):
        entry = conf.entries(app).get(name, {})
        runs = (cluster.deployments(live)[name].get("deployment_config") or {}) if alike and name in have else {}
        need = needs.get(name) or {**runs, "replicas": 1}
        first, most = conf.bounds(entry, int(need.get("replicas") or 0))
        replica = room.replica_of({**need, **{key: value for key, value in entry.items() if value is not None}})
        if not needs and alike and have.get(name) and not conf.TAKES.intersection(entry):
            replica |= {key: have[name][0][key] for key in ("bundles", "strategy")}  # its placement group too
        found[name] = {"replica": replica, "first": first, "count": max(first, min(len(have.get(name, [])), most))}
    return found


def flat(new: dict[str, dict[str, Any]], count: str = "count") -> list[dict[str, Any]]:
    return [found["replica"] for found in new.values() for _ in range(found[count])]


def surge_percents(free: room.Nodes, new: dict[str, dict[str, Any]]) -> tuple[dict[str, int], room.Nodes]:
    """Deployment -> the largest max_surge_percent that has room, 0 where not one replica more has; what is left."""
    found = {}
    for name in sorted(new, key=lambda n: room.gpus([new[n]["replica"]])):  # the small ones first
        found[name] = 0
        for percent in (100, 50, 25, 1):
            extra = math.ceil(percent * max(new[name]["count"], 1) / 100)
            left, short = room.after(free, [new[name]["replica"]] * extra)
            if not short:
                found[name], free = percent, left
                break
    return found, free


def choose(
    name: str,
    step: Step,
    app: App,
    cluster: Cluster,
    needs: dict[str, Any],
    free: room.Nodes,
    asked: str,
    expected: str,
) -> tuple[room.Nodes, str]:
    """Put the way into ``step``; what is free while it lasts, and why there is none (empty if there is).

    ``asked`` is the operator's way or auto, ``expected`` how long an engine start takes, in words.
    """
    live, following = step["live"], step["next"]
    new = new_replicas(app, needs, cluster, live)
    old = cluster.replicas(live)
    there = following in cluster.apps
    mine = room.freed(free, cluster.all_replicas(following)) if there else free  # a candidate has its room already
    copied, short = room.after(mine, flat(new))
    percents, surged = surge_percents(mine, new)
    stuck = [deployment for deployment in new if not percents[deployment]]
    single = [deployment for deployment in stuck if len(old.get(deployment, [])) < 2]
    against = {"blue_green": f"no room for a second copy, short of {room.words(short)}" if short else ""}
    if conf.route_of(app) is None:
        against["blue_green"] = "it has no route: others call it by its name, which stays"
    if step.get("only"):
        against |= dict.fromkeys(("surge", "roll", "queue"), f"{step['why']}: in place it would be an outage")
    else:
        gone = room.freed(free, cluster.all_replicas(live))
        never = room.after(gone, flat(new))[1]
        nowhere = f"no room even without the old one, short of {room.words(never)}" if never else ""
        one = room.after(mine, [new[deployment]["replica"] for deployment in stuck])[1]
        no_surge = f"no room for one more replica of {', '.join(stuck)}, short of {room.words(one)}" if stuck else ""
        no_roll = f"{', '.join(single)} has fewer than two replicas" if single else ""
        against |= {"surge": nowhere or no_surge, "roll": nowhere or no_roll, "queue": nowhere}
    way = asked if asked != "auto" else next((w for w in AUTOMATIC if not against[w]), "")
    step |= {"gpus_before": cluster.gpus(live), "counts": {d: len(r) for d, r in old.items()}, "percents": percents}
    if not way or against[way]:
        return free, _refusal(name, asked, against, expected)
    better = AUTOMATIC[: AUTOMATIC.index(way)] if way in AUTOMATIC else AUTOMATIC
    reasons = "; ".join(f"{w}: {against[w]}" for w in better if against[w])
    step |= {"way": way, "chosen": "as told" if asked != "auto" else reasons}
    if way != "blue_green":
        step["next"] = live
    taken = {"blue_green": flat(new), "queue": []}.get(
        way, [r["replica"] for d, r in new.items() for _ in range(math.ceil(percents[d] * max(r["count"], 1) / 100))]
    )
    step["gpus_peak"] = step["gpus_before"] + room.gpus(taken)
    step["reduced"] = _reduced(way, stuck, expected)
    return {"blue_green": copied, "queue": free}.get(way, surged), ""


def _reduced(way: str, stuck: list[str], expected: str) -> str:
    if way == "roll":
        return f"one replica fewer of {', '.join(stuck)} for each engine start ({expected}), one after the other"
    return f"none serves for an engine start ({expected}); requests wait" if way == "queue" else "none"


def _refusal(name: str, asked: str, against: dict[str, str], expected: str) -> str:
    if asked != "auto":
        return f"application {name}: the way {asked} is impossible: {against[asked]}."
    reasons = "; ".join(f"{way}: {against[way]}" for way in AUTOMATIC)
    if against["queue"]:
        return f"application {name} cannot be replaced. {reasons}."
    do = f"free GPUs, add nodes or a second replica, or accept the wait: ray_serve_ways: {{{name}: queue}}"
    text = f"application {name} could only be replaced while requests wait for an engine start ({expected})"
    return f"{text}. {reasons}. To do: {do}."


def grow(step: Step, app: App, cluster: Cluster, needs: dict[str, Any], free: room.Nodes) -> tuple[room.Nodes, str]:
    """The room of what is added, restarted or scaled up: what is left, and what is short, in words."""
    new = new_replicas(app, needs, cluster, step["live"])
    have = cluster.replicas(step["live"])
    missing = {n: {**d, "count": max(0, d["first"] - len(have.get(n, [])))} for n, d in new.items()}
    left, short = room.after(free, flat(missing))
    step["gpus_before"] = cluster.gpus(step["live"])
    step["gpus_peak"] = step["gpus_before"] + room.gpus(flat(missing))
    known = bool(cluster.free)  # not in a dry run before the cluster is started
    return (free, room.words(short)) if short and known else (left, "")

"""What is done with each application. Pure functions.

From what runs (the answer of Serve's REST interface) and what is wanted to steps, one for each application of the
operator: {action, live, next, why, notes, …}, `live` and `next` being the names under which it runs before and after.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils import ray_serve_config as conf
from ansible.module_utils import ray_serve_room as room

App = dict[str, Any]
Step = dict[str, Any]
Steps = dict[str, Step]


class Cluster:
    """What runs, and what is free and all there is: node id -> resource -> amount.

    ``groups``: name of a replica's actor -> its placement group as [node id, bundle], …; Serve's REST interface tells
    of a deployment only what the replica's actor itself takes.
    """

    def __init__(
        self, running: dict[str, Any], free: room.Nodes, groups: dict[str, Any], total: room.Nodes | None = None
    ) -> None:
        found = running.get("applications") or {}
        # Applications that somebody started from a program are none of ours: a PUT leaves them alone.
        self.details = {name: app for name, app in found.items() if app.get("deployed_app_config")}
        self.apps: dict[str, App] = {name: app["deployed_app_config"] for name, app in self.details.items()}
        self.groups = groups
        # The report of what is free misses what took its place a moment ago, on a node that came back for instance.
        self.free = room.lesser(free, room.taken(total, self.all_replicas(*self.apps))) if total else free

    def made_alike(self, name: str | None, app: App) -> bool:
        """Whether what runs comes from the same code as ``app``: it can tell of deployments that no judge has seen."""
        return (self.apps.get(name or "") or {}).get("import_path") == app.get("import_path")

    def deployments(self, name: str | None) -> dict[str, dict[str, Any]]:
        return (self.details.get(name or "") or {}).get("deployments") or {}

    def replicas(self, name: str | None) -> dict[str, list[room.Replica]]:
        """Deployment -> its replicas, each with its node and where its bundles lie."""
        return {
            deployment: [
                self._replica(found.get("deployment_config") or {}, replica)
                for replica in found.get("replicas") or []
                if replica.get("state") != "STOPPING"
            ]
            for deployment, found in self.deployments(name).items()
        }

    def _replica(self, entry: dict[str, Any], replica: dict[str, Any]) -> room.Replica:
        node = str(replica.get("node_id"))
        made = room.replica_of(entry)
        placed = self.groups.get(str(replica.get("actor_name")))
        if placed:
            made["bundles"] = [bundle for _, bundle in placed]
        return {**made, "node": node, "placed": placed or [[node, bundle] for bundle in made["bundles"]]}

    def all_replicas(self, *names: str | None) -> list[room.Replica]:
        return [replica for name in names for replicas in self.replicas(name).values() for replica in replicas]

    def gpus(self, name: str | None) -> float:
        return float(room.gpus(self.all_replicas(name)))

    def serves(self, name: str) -> bool:
        replicas = [replica for found in self.deployments(name).values() for replica in found.get("replicas") or []]
        return self.details[name].get("status") == "RUNNING" or any(r.get("state") == "RUNNING" for r in replicas)

    def live(self, name: str) -> str | None:
        """The running name under which an operator's application serves."""
        names = [n for n in (name, name + conf.GREEN) if n in self.apps]
        return min(names, key=lambda n: (conf.is_hidden(self.apps[n]), not self.serves(n)), default=None)


def make_steps(
    cluster: Cluster, wanted: dict[str, App], removable: list[str], begun: dict[str, Any]
) -> tuple[Steps, list[str]]:
    """Steps and problems. ``removable``: names that may vanish; ``begun``: steps of an interrupted change, by name."""
    steps: Steps = {}
    problems: list[str] = []
    present = sorted({conf.operator_name(name) for name in cluster.apps} - wanted.keys())
    leaving = {name: str(cluster.live(name)) for name in present}
    found = {name: cluster.apps[live] for name, live in leaving.items()}
    by_route = {conf.route_of(app): name for name, app in found.items() if not conf.is_hidden(app)}
    for name, app in wanted.items():
        live = cluster.live(name)
        renamed = by_route.get(conf.route_of(app)) if live is None else None
        if renamed in leaving:
            steps[name] = _rename(str(renamed), name, app, cluster.apps[leaving[renamed]], leaving[renamed])
            del leaving[renamed]
        elif live is None:
            steps[name] = {"action": "add", "live": None, "next": name, "why": "it does not run yet", "notes": []}
        else:
            steps[name] = _step(cluster, name, app, live, begun)
    for name, live in leaving.items():
        why = "it is not in the configuration"
        steps[name] = {"action": "remove", "live": live, "next": None, "why": why, "notes": []}
        if name not in removable:
            do = f"add it to ray_serve_config.applications, or consent: ray_serve_remove_applications: [{name}]"
            problems.append(f"application {name} runs and would vanish. To do: {do}.")
    return steps, problems


def _rename(old: str, new: str, app: App, runs: App, live: str) -> Step:
    kind, keys = conf.difference(runs, app)
    why = f"{old} becomes {new} on the same route" + ("" if kind == "same" else f"; {_changed(keys)}")
    return {"action": "replace", "live": live, "next": new, "only": "blue_green", "why": why, "notes": []}


def _step(cluster: Cluster, name: str, app: App, live: str, begun: dict[str, Any]) -> Step:
    runs, other = cluster.apps[live], conf.other_name(live)
    kind, keys = conf.difference(runs, app)
    spare = other if other in cluster.apps else None
    step: Step = {"live": live, "next": live, "spare": spare, "notes": []}
    if not cluster.serves(live):
        status = cluster.details[live].get("status")
        return {**step, "action": "restart", "why": f"it is {status} and serves nobody"}
    if kind == "same":
        if spare or name in begun:
            return {**step, "action": "finish", "why": "an interrupted change is finished"}
        return {**step, "action": "unchanged", "why": ""}
    if kind == "light":
        return {**step, "action": "light", "why": f"{_changed(keys)}; nothing restarts"}
    step |= {"action": "replace", "next": other, "why": _changed(keys)}
    if set(conf.llm_models(runs)) != set(conf.llm_models(app)):
        step["only"] = "blue_green"
        step["why"] = f"other model ids: {', '.join(conf.llm_models(app)) or 'none'}"
    elif conf.llm_models(app) and runs.get("args") != app.get("args"):
        step["notes"].append("any change under llm_configs restarts every engine and the ingress of the application")
    if spare:
        step["notes"].append(f"{spare}, left by an interrupted change, is taken over")
    return step


def _changed(keys: list[str]) -> str:
    return "changed: " + ", ".join(keys)

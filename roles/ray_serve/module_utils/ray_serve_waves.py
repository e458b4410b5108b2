"""A plan as configurations to push one after the other. Pure functions.

Each wave: `prepare` (old replicas get time to drain), `start` (what is new, beside what serves), `switch` (routes
swapped in one push), `final` (what is no longer needed is gone); `ask`: running names that must answer, `gone`: those
that leave, `before`: new to old running name, `watched`: those to watch, `canary`: {name, route, hidden_route,
other_routes} of each candidate, for a gateway, `rounds`: how often replicas follow one another in place. What has room
together shares a wave.
"""

from __future__ import annotations

import math
from typing import Any

from ansible.module_utils import ray_serve_config as conf
from ansible.module_utils import ray_serve_room as room
from ansible.module_utils import ray_serve_ways as ways
from ansible.module_utils.ray_serve_planner import App, Cluster, Step, Steps, make_steps

Apps = dict[str, App]  # by running name
# What never got a request is not to be waited for: Ray would wait as long for a replica that has no room to start.
UNSERVED_SHUTDOWN_SECONDS = 20  # Serve's default


class Plan:
    """Steps, waves and problems for one configuration.

    ``options``: way and ways (application -> way), remove (names), begun (steps of an interrupted change), seconds
    (application -> length of its last start), drain_seconds.
    """

    def __init__(
        self, config: dict[str, Any], cluster: Cluster, needs: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self.cluster, self.needs, self.options = cluster, needs, options
        self.lifted: dict[str, list[str]] = {}
        self.wanted: Apps = {}
        for app in config.get("applications") or []:
            name = conf.name_of(app)
            self.wanted[name], moved = conf.lifted({**app, "name": name})
            if moved:
                self.lifted[name] = moved
        self.steps, self.problems = make_steps(
            cluster, self.wanted, options.get("remove") or [], options.get("begun") or {}
        )
        self.free = cluster.free
        self.now: Apps = dict(cluster.apps)  # what is pushed last
        self.waves: list[dict[str, Any]] = []
        self._grow()
        self._make_waves()

    def _grow(self) -> None:
        for name, step in self.steps.items():
            if step["action"] not in ("add", "light", "restart"):
                continue
            app, needs = self.wanted[name], self.needs.get(name) or {}
            self.free, short = ways.grow(step, app, self.cluster, needs, self.free)
            if short:
                does = "is added" if step["action"] == "add" else "grows"
                do = "ask for fewer replicas or GPUs, add nodes, or take something away first, in a run of its own"
                self.problems.append(f"application {name} {does} and has no room, short of {short}. To do: {do}.")

    def _make_waves(self) -> None:
        waiting = {name: step for name, step in self.steps.items() if step["action"] == "replace"}
        others = {n: s for n, s in self.steps.items() if s["action"] not in ("replace", "unchanged", "remove")}
        removed = {name: step for name, step in self.steps.items() if step["action"] == "remove"}
        while waiting or others or removed:
            chosen, refusals = self._together(waiting)
            if not chosen:
                self.problems += refusals
                waiting = {}
            waiting = {name: step for name, step in waiting.items() if name not in chosen}
            # What goes for good goes last: until then everything can be taken back.
            self._wave({**others, **chosen, **({} if waiting else removed)})
            for name, step in chosen.items():  # the old one's room is the next wave's
                self.free = room.freed(self.free, self.cluster.all_replicas(step["live"]))
                new = ways.new_replicas(self.wanted[name], self.needs.get(name) or {}, self.cluster, step["live"])
                self.free = room.after(self.free, ways.flat(new))[0]
            others, removed = {}, removed if waiting else {}

    def _together(self, waiting: Steps) -> tuple[Steps, list[str]]:
        """Of the replacements those that have room at the same time, and why the others have none."""
        chosen: Steps = {}
        free, refusals = self.free, []
        for name, step in waiting.items():
            asked = (self.options.get("ways") or {}).get(name) or self.options.get("way") or "auto"
            arguments = (name, step, self.wanted[name], self.cluster, self.needs.get(name) or {})
            alone = dict(step)
            # Its way is the best that it could have alone: a wave more costs less than a lesser way.
            _, refused = ways.choose(arguments[0], alone, *arguments[2:], self.free, asked, self.expected(name))
            if refused:
                refusals.append(refused)
                continue
            left, refused = ways.choose(*arguments, free, alone["way"], self.expected(name))
            if not refused:
                step["chosen"] = alone["chosen"]
                chosen[name], free = step, left
        return chosen, refusals

    def expected(self, name: str) -> str:
        seconds = (self.options.get("seconds") or {}).get(name)
        return f"{seconds:.0f} s the last time" if seconds else "not measured yet on this cluster"

    def _wave(self, steps: Steps) -> None:
        prepare, drains = self._prepared(steps)
        start = dict(prepare)
        final: Apps = {}
        gone: list[str] = []
        for name, step in steps.items():
            live, following, spare = step["live"], step["next"], step.get("spare")
            if step["action"] == "remove":
                gone += [n for n in (name, name + conf.GREEN) if n in start]  # both of an interrupted change
                continue
            app = self.cluster.apps[live] if step["action"] == "finish" else self.dressed(name, step)
            final[following] = conf.placed(app, following, conf.route_of(self.wanted[name]))
            if step.get("way") == "blue_green":
                gone.append(live)
            elif spare in start:
                gone.append(spare)
            if step["action"] != "finish":
                start[following] = self._first(name, step, app)
        swaps = {name: step for name, step in steps.items() if step.get("way") == "blue_green"}
        switch = self._switched(start, swaps)
        self.now = {name: final.get(name, app) for name, app in switch.items() if name not in gone}
        self.waves.append(
            {
                "number": len(self.waves) + 1,
                "applications": list(steps),
                "prepare": list(prepare.values()) if drains else [],
                "start": list(start.values()),
                "switch": list(switch.values()) if swaps else [],
                "final": list(self.now.values()),
                "ask": list(final),
                "gone": gone,
                "before": {s["next"]: s["live"] for s in steps.values() if s["action"] == "replace"},
                "canary": self._canaries(start, swaps),
                "rounds": self._rounds(steps),
                "watched": [s["next"] for s in steps.values() if s["action"] in ("replace", "finish")],
            }
        )

    @staticmethod
    def _rounds(steps: Steps) -> int:
        """How often replicas start and drain one after the other: 0 where nothing is replaced in place."""
        found = [0]
        for step in steps.values():
            if step.get("way") in ("surge", "roll", "queue"):
                for deployment, count in step["counts"].items():
                    percent = step["percents"].get(deployment) or 0
                    found.append(min(count, math.ceil(100 / percent)) if percent else count)
        return max(found)

    def _prepared(self, steps: Steps) -> tuple[Apps, bool]:
        """What serves, told to drain where it is to leave; and whether that needs a push of its own, as in place."""
        found, in_place = dict(self.now), False
        for step in steps.values():
            leaving = step.get("spare") if step["action"] == "finish" else step["live"]
            if not step["live"] or not leaving or step["action"] not in ("replace", "remove", "finish"):
                continue
            if (drained := self._drained(leaving)) != found[leaving]:
                found[leaving] = drained
                in_place = in_place or step.get("way") in ("surge", "roll", "queue")
        return found, in_place

    def _first(self, name: str, step: Step, app: App) -> App:
        """An application as it is started: a candidate beside the old one, or in place with no more than has room."""
        following, route = step["next"], conf.route_of(app)
        unserved = self.dressed(name, step, UNSERVED_SHUTDOWN_SECONDS)
        if step.get("way") == "blue_green":
            return conf.placed(conf.sized(unserved, step["counts"]), following, conf.hidden_route(following))
        if step.get("way"):
            return conf.placed(conf.held(app, step["counts"]), following, route)
        return conf.placed(unserved if step["action"] == "add" else app, following, route)

    def _switched(self, start: Apps, swaps: Steps) -> Apps:
        found = dict(start)
        for name, step in swaps.items():
            live, following = step["live"], step["next"]
            app = conf.sized(self.dressed(name, step), step["counts"])
            found[following] = conf.placed(app, following, conf.route_of(self.wanted[name]))
            found[live] = conf.aside(found[live])
        return found

    def _canaries(self, start: Apps, swaps: Steps) -> list[dict[str, Any]]:
        """What a gateway must know of each candidate; not of one with another model id, which is another question."""
        routes = [conf.route_of(app) for app in start.values() if conf.route_of(app) and not conf.is_hidden(app)]
        found = []
        for step in swaps.values():
            if not step.get("only"):
                route, candidate = conf.route_of(start[step["live"]]), step["next"]
                found.append(
                    {
                        "name": candidate,
                        "route": route,
                        "hidden_route": conf.hidden_route(candidate),
                        "other_routes": [other for other in routes if other != route],
                    }
                )
        return found

    def _drained(self, name: str) -> App:
        """A running application whose replicas, once told to stop, may finish what they answer."""
        seconds = int(self.options.get("drain_seconds") or 0)
        changes = {
            deployment: {"graceful_shutdown_timeout_s": seconds}
            for deployment, found in self.cluster.deployments(name).items()
            if ((found.get("deployment_config") or {}).get("graceful_shutdown_timeout_s") or 0) < seconds
        }
        return conf.with_entries(self.cluster.apps[name], changes) if changes else self.cluster.apps[name]

    def dressed(self, name: str, step: Step, drain_seconds: int | None = None) -> App:
        """The wanted application with what the role adds to `deployments:`, never over what the operator wrote."""
        app, seconds = self.wanted[name], self.options.get("drain_seconds")
        if seconds and drain_seconds:
            seconds = min(seconds, drain_seconds)
        alike = self.cluster.made_alike(step["live"], app)
        stated = conf.entries(app)
        changes: dict[str, dict[str, Any]] = {}
        for deployment in self.needs.get(name) or (self.cluster.deployments(step["live"]) if alike else stated):
            own: dict[str, Any] = {"graceful_shutdown_timeout_s": seconds} if seconds else {}
            if step.get("way") in ("surge", "roll"):
                own["max_surge_percent"] = step["percents"].get(deployment, 0)
            options = {key: value for key, value in own.items() if key not in stated.get(deployment, {})}
            if options:
                changes[deployment] = options
        return conf.with_entries(app, changes) if changes else app

    def back(self) -> list[App]:
        """What runs now, as it is to be pushed if the change is taken back: in the way that the change was made."""
        apps = dict(self.cluster.apps)
        for step in self.steps.values():
            if step.get("way") in ("surge", "roll"):
                live, percents = step["live"], step["percents"]
                changes = {deployment: {"max_surge_percent": percent} for deployment, percent in percents.items()}
                apps[live] = conf.with_entries(self._drained(live), changes)
        return list(apps.values())

    def names(self) -> dict[str, str]:
        """The mapping: operator's name -> the name that runs at the end."""
        return {name: str(step["next"]) for name, step in self.steps.items() if step["next"]}

    def lines(self) -> list[str]:
        """The plan for the operator's eyes."""
        found = []
        for name, step in self.steps.items():
            text = f"{name}: {step['action']}" + (f" by {step['way']}" if step.get("way") else "")
            found.append(text + (f" ({step['why']})" if step["why"] else ""))
            if step.get("chosen"):
                found.append(f"  why this way: {step['chosen']}")
            if step.get("way"):
                found.append(f"  less capacity meanwhile: {step['reduced']}")
            if (peak := step.get("gpus_peak")) is not None and (peak or step["gpus_before"]):
                found.append(f"  GPUs: {step['gpus_before']:g} now, {peak:g} at the peak")
            if step["next"] and step["next"] != name:
                found.append(f"  it runs under the name {step['next']}")
            found += [f"  {note}" for note in step["notes"]]
            if step["action"] != "unchanged" and name in self.lifted:
                found.append(
                    f"  moved to deployments:, where a change restarts nothing: {', '.join(self.lifted[name])}"
                )
        if len(self.waves) > 1:
            found.append("One after the other: " + " | ".join(", ".join(w["applications"]) for w in self.waves))
        return found

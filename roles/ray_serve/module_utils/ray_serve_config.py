"""Serve configurations as the role sees them: names, routes, and what a change of one means. Pure functions.

Facts about Ray 2.60 were read in ray/serve/_private/deploy_utils.py (get_app_code_version), application_state.py and
version.py: everything of an application is replaced when one of CODE_KEYS changes, or one of CODE_DEPLOYMENT_KEYS in
`deployments:`; a deployment is replaced when one of ACTOR_KEYS changes there; all else is applied to what runs.
"""

from __future__ import annotations

import copy
from typing import Any

App = dict[str, Any]

GREEN = "--green"  # an application X runs as X or as X--green
HIDDEN = "/.raymetal/"  # route prefix of an application that is not, or no longer, the one that serves
LLM_BUILDER = "ray.serve.llm:build_openai_app"
INGRESS = "OpenAiIngress"
LLM_TARGET = 1000000000  # what Ray sets for ray.serve.llm where no target_ongoing_requests is written
AUTO = {"min_replicas": 1, "max_replicas": 100, "target_ongoing_requests": 2}  # what `num_replicas: auto` means

CODE_KEYS = ("import_path", "runtime_env", "args", "autoscaling_policy")
CODE_DEPLOYMENT_KEYS = ("request_router_config", "deployment_actors")
ACTOR_KEYS = (
    "ray_actor_options",
    "placement_group_bundles",
    "placement_group_strategy",
    "placement_group_bundle_label_selector",
    "placement_group_fallback_strategy",
    "max_replicas_per_node",
    "gang_scheduling_config",
    "version",
)
TAKES = {"ray_actor_options", "placement_group_bundles"}  # what a replica takes
LIGHT_KEYS = (
    "num_replicas",
    "autoscaling_config",
    "max_ongoing_requests",
    "max_queued_requests",
    "user_config",
    "graceful_shutdown_wait_loop_s",
    "graceful_shutdown_timeout_s",
    "health_check_period_s",
    "health_check_timeout_s",
    "max_surge_percent",
    "rolling_update_percentage",
)
# Set by the role for the time of a change, where the operator says nothing; no difference that counts.
OWN_KEYS = ("max_surge_percent", "graceful_shutdown_timeout_s")


def name_of(app: App) -> str:
    return str(app.get("name", "default"))


def operator_name(running_name: str) -> str:
    return running_name.removesuffix(GREEN)


def other_name(running_name: str) -> str:
    """The second of the two names that an application runs under."""
    return operator_name(running_name) if running_name.endswith(GREEN) else running_name + GREEN


def route_of(app: App) -> str | None:
    route = app.get("route_prefix", "/")
    return None if route is None else str(route)


def hidden_route(running_name: str) -> str:
    return HIDDEN + running_name


def aside(app: App) -> App:
    """``app`` as it leaves its route to another: without one.

    Its replicas then answer what still reaches them. With a route of its own they would answer 404 until Ray's HAProxy,
    in the throughput profile, has been told (ray/serve/_private/replica.py: _direct_ingress_asgi).
    """
    return placed(app, name_of(app), None)


def is_hidden(app: App) -> bool:
    """Whether nobody finds it: a candidate, or one that was put aside."""
    route = route_of(app)
    return route is None or route.startswith(HIDDEN)


def placed(app: App, running_name: str, route: str | None) -> App:
    """``app`` under another name and route."""
    return {**copy.deepcopy(app), "name": running_name, "route_prefix": route}


def entries(app: App) -> dict[str, dict[str, Any]]:
    """`deployments:` of an application, by name."""
    return {str(entry["name"]): entry for entry in app.get("deployments") or []}


def with_entries(app: App, changes: dict[str, dict[str, Any]]) -> App:
    """``app`` with more options for some deployments, deployment name -> options."""
    app = copy.deepcopy(app)
    have = entries(app)
    for name, options in changes.items():
        have[name] = {**have.get(name, {"name": name}), **options}
    if have:
        app["deployments"] = list(have.values())
    return app


def llm_models(app: App) -> list[str]:
    """Model ids of an application of ray.serve.llm; none for others."""
    if app.get("import_path") != LLM_BUILDER:
        return []
    configs = (app.get("args") or {}).get("llm_configs") or []
    return [str(c["model_loading_config"]["model_id"]) for c in configs]


def fitting(requests: list[dict[str, Any]], runs: App) -> list[dict[str, Any]]:
    """``requests``, made for the wanted application, as the one that runs can answer them: its own models are asked."""
    models = llm_models(runs)
    if not models:
        return requests
    named = [r for r in requests if (r.get("body") or {}).get("model")]
    known = [r for r in requests if r not in named or r["body"]["model"] in models]
    others = [{**named[0], "body": {**named[0]["body"], "model": m}} for m in models] if named else []
    return known or others


def llm_deployment(model_id: str) -> str:
    """The deployment of a model, as ray.serve.llm names it (core/server/builder.py)."""
    return "LLMServer:" + model_id.replace("/", "--").replace(".", "_")


def lifted(app: App) -> tuple[App, list[str]]:
    """``app`` with replica bounds and the like moved from the arguments of ray.serve.llm into `deployments:`.

    There a change of them is applied to what runs; in the arguments it would restart every engine of the application.
    Each model gets an entry, bounds included: the first such entry is itself a change of code. Also: what was moved.
    """
    args = app.get("args") or {}
    if app.get("import_path") != LLM_BUILDER or not isinstance(args.get("llm_configs"), list):
        return app, []
    app = copy.deepcopy(app)
    moved: list[str] = []
    changes: dict[str, dict[str, Any]] = {}
    scaled_to_zero = []
    for index, config in enumerate(app["args"]["llm_configs"]):
        own = config.get("deployment_config") or {}
        if config.get("server_cls") or "name" in own:
            continue  # a class of the operator's own: Ray's names and defaults are not known
        found = _take(own, f"llm_configs[{index}].deployment_config", moved)
        if not own:
            config.pop("deployment_config", None)
        scaling = _scaling(found)
        changes[llm_deployment(config["model_loading_config"]["model_id"])] = {**found, "autoscaling_config": scaling}
        scaled_to_zero.append(scaling["min_replicas"] == 0)
    ingress = app["args"].get("ingress_deployment_config") or {}
    found = _take(ingress, "ingress_deployment_config", moved)
    if not ingress:
        app["args"].pop("ingress_deployment_config", None)
    if scaled_to_zero and all(scaled_to_zero):  # as Ray itself does, when it finds it in the arguments
        found["autoscaling_config"] = {"min_replicas": 0, **(found.get("autoscaling_config") or {})}
    if "autoscaling_config" in found or "num_replicas" in found:
        found["autoscaling_config"] = _scaling(found)
    if found:
        changes[INGRESS] = found
    for name, entry in entries(app).items():  # what the operator wrote there has the last word
        if name in changes:
            if "num_replicas" in entry and "autoscaling_config" not in entry:
                changes[name].pop("autoscaling_config", None)
            changes[name] = {**changes[name], **entry}
    return with_entries(app, changes), moved


def _take(options: dict[str, Any], where: str, moved: list[str]) -> dict[str, Any]:
    found = {key: options.pop(key) for key in LIGHT_KEYS if key in options}
    moved += [f"{where}.{key}" for key in found]
    return found


def _scaling(found: dict[str, Any]) -> dict[str, Any]:
    """Bounds in one form, num_replicas included: so that a change of form is no change of code either."""
    written = found.get("autoscaling_config") or {}
    if (fixed := found.pop("num_replicas", None)) == "auto":
        return {**AUTO, **written}
    base = {"min_replicas": 1, "max_replicas": max(1, written.get("min_replicas", 1))}
    if isinstance(fixed, int):
        base = {"min_replicas": fixed, "max_replicas": max(1, fixed)}
    return {**base, "target_ongoing_requests": LLM_TARGET, **written}


def _bare(app: App, like: App) -> App:
    """``app`` without name and without what the role sets in `deployments:` where ``like`` does not."""
    app = lifted(app)[0]
    wanted = entries(lifted(like)[0])
    kept = {}
    for name, entry in entries(app).items():
        stated = wanted.get(name, {})
        left = {key: value for key, value in entry.items() if key not in OWN_KEYS or key in stated}
        if set(left) != {"name"} or name in wanted:
            kept[name] = left
    result = {key: value for key, value in app.items() if key not in ("name", "deployments") and value is not None}
    return {**result, "deployments": kept}


def code_of(app: App) -> list[Any]:
    """What Ray hashes into the version of an application's code."""
    listed = list(entries(app).values())
    return [
        *({} if (value := app.get(key)) is None else value for key in CODE_KEYS),
        [e["autoscaling_config"].get("policy") for e in listed if isinstance(e.get("autoscaling_config"), dict)],
        *([e[key] for e in listed if e.get(key)] for key in CODE_DEPLOYMENT_KEYS),
    ]


def actors_of(app: App) -> dict[str, dict[str, Any]]:
    """What makes Ray replace the replicas of single deployments."""
    found = {name: {k: e[k] for k in ACTOR_KEYS if e.get(k) is not None} for name, e in entries(app).items()}
    return {name: options for name, options in found.items() if options}


def difference(runs: App, wanted: App) -> tuple[str, list[str]]:
    """How ``wanted`` differs from what runs, names aside: "same", "light" or "code", and the keys that differ."""
    before, after = _bare(runs, wanted), _bare(wanted, wanted)
    before["route_prefix"], after["route_prefix"] = route_of(runs), route_of(wanted)
    if before == after:
        return "same", []
    keys = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    # The running one as it is, not lifted: what it lacks in `deployments:` is a change of code, once.
    if code_of(runs) != code_of(wanted) or actors_of(runs) != actors_of(wanted):
        return "code", keys
    return "light", keys


def bounds(entry: dict[str, Any], default: int) -> tuple[int, int]:
    """Replicas that an entry of `deployments:` starts with, and its maximum; ``default``: those of the code."""
    scaling = entry.get("autoscaling_config")
    if entry.get("num_replicas") == "auto":
        scaling = {**AUTO, **(scaling or {})}
    if isinstance(scaling, dict):
        least = int(scaling.get("min_replicas", 1))
        first = int(scaling.get("initial_replicas") or least)
        return max(first, least), max(int(scaling.get("max_replicas", 1)), first)
    if isinstance(entry.get("num_replicas"), int):
        return entry["num_replicas"], entry["num_replicas"]
    return default, default


def sized(app: App, counts: dict[str, int]) -> App:
    """``app`` that starts with as many replicas as ``counts`` (deployment -> replicas), within its own maximum."""
    changes: dict[str, dict[str, Any]] = {}
    for name, entry in entries(app).items():
        first, most = bounds(entry, 1)
        scaling = entry.get("autoscaling_config")
        want = min(counts.get(name, first), most)
        if isinstance(scaling, dict) and want > first:
            changes[name] = {"autoscaling_config": {**scaling, "min_replicas": want, "initial_replicas": want}}
            if entry.get("num_replicas") == "auto":
                changes[name]["autoscaling_config"] = {**AUTO, **changes[name]["autoscaling_config"]}
    return with_entries(app, changes) if changes else app


def held(app: App, counts: dict[str, int]) -> App:
    """``app`` that starts with no more replicas than ``counts`` (deployment -> replicas) says.

    Serve stops no old replica while there are fewer than wanted, so in place without room it would wait for ever for
    more: they are added when the old ones are gone.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, entry in entries(app).items():
        first, _ = bounds(entry, 1)
        have, scaling = max(counts.get(name, first), 1), entry.get("autoscaling_config")
        if have >= first:
            continue
        if isinstance(scaling, dict) or entry.get("num_replicas") == "auto":
            base = {**AUTO, **(scaling or {})} if entry.get("num_replicas") == "auto" else dict(scaling or {})
            changes[name] = {"autoscaling_config": {**base, "min_replicas": have, "initial_replicas": have}}
        else:
            changes[name] = {"num_replicas": have}
    return with_entries(app, changes) if changes else app


FIRST_KEYS = ("name", "route_prefix", "import_path")


def canonical(value: Any) -> Any:
    """``value`` in one order of keys and one form of numbers, whether written by an operator or told by Serve."""
    if isinstance(value, dict):
        keys = [key for key in FIRST_KEYS if key in value] + sorted((k for k in value if k not in FIRST_KEYS), key=str)
        return {key: canonical(value[key]) for key in keys}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

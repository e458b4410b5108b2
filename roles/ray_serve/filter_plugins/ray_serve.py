"""What the controller can say of a Serve configuration, and the requests that prove it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LLM_BUILDER = "ray.serve.llm:build_openai_app"
WARMUP_KEYS = {"path", "method", "body", "contains"}
WAYS = ("auto", "blue_green", "surge", "roll", "queue")
GREEN, HIDDEN = "--green", "/.raymetal/"  # the role's own names and routes, see module_utils/ray_serve_config.py


def _applications(config: Mapping[str, Any]) -> list[Any]:
    applications = config.get("applications")
    return list(applications) if isinstance(applications, (list, tuple)) else []


def llm_models(application: Mapping[str, Any]) -> list[str]:
    """Model ids of an application of ray.serve.llm; none for others."""
    if application.get("import_path") != LLM_BUILDER:
        return []
    configs = (application.get("args") or {}).get("llm_configs") or []
    return [
        c["model_loading_config"]["model_id"] for c in configs if isinstance(c, Mapping) and "model_loading_config" in c
    ]


def ray_serve_problems(
    config: Mapping[str, Any], warmups: Mapping[str, Any], ways: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Problems that need no Ray to see: names, routes, warm-ups, ways. The rest is the judge's, on the head."""
    found: list[dict[str, Any]] = []

    def add(variable: str, value: Any, problem: str, do: str) -> None:
        found.append({"variable": variable, "value": value, "problem": problem, "do": do})

    options = config.get("http_options")
    port = options.get("port") if isinstance(options, Mapping) else None
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        add("ray_serve_config.http_options.port", port, "is no port", "write 1 to 65535")
    if not isinstance(config.get("applications"), (list, tuple)):
        do = "write a list of applications, [] for none"
        add("ray_serve_config.applications", config.get("applications"), "is not a list", do)
    names: set[Any] = set()
    routes: dict[Any, Any] = {}
    for index, application in enumerate(_applications(config)):
        here = f"ray_serve_config.applications[{index}]"
        if not isinstance(application, Mapping):
            add(here, application, "is not a mapping", "see Ray's ServeApplicationSchema")
            continue
        name, route = application.get("name", "default"), application.get("route_prefix", "/")
        if str(name) in names:
            add(f"{here}.name", name, "another application has the same name", "give each its own")
        names.add(str(name))
        if str(name).endswith(GREEN):
            add(f"{here}.name", name, f"{GREEN} at the end marks the second name of an application", "choose another")
        if route is None:
            continue
        if not isinstance(route, str) or not route.startswith("/") or (route != "/" and route.endswith("/")):
            add(f"{here}.route_prefix", route, "must start with a slash and not end with one", "write it like /app1")
        elif route.startswith(HIDDEN):
            add(f"{here}.route_prefix", route, f"{HIDDEN} is where candidates wait", "choose another")
        elif route in routes:
            add(f"{here}.route_prefix", route, f"is also the route of {routes[route]}", "give each its own")
        else:
            routes[route] = name
    for name, request in warmups.items():
        if name not in names:
            add(f"ray_serve_warmups.{name}", None, "no application has this name", "name an application")
        elif not isinstance(request, Mapping) or set(request) - WARMUP_KEYS:
            add(f"ray_serve_warmups.{name}", request, "is no request", "give path, method, body and contains only")
    for name, way in ways.items():
        if name not in names:
            add(f"ray_serve_ways.{name}", way, "no application has this name", "name an application")
        elif way not in WAYS:
            add(f"ray_serve_ways.{name}", way, "is no way", "write one of " + ", ".join(WAYS))
    return found


def ray_serve_profile_problems(config: Mapping[str, Any], profile: str) -> list[dict[str, Any]]:
    """What the profile throughput cannot serve: Ray refuses it when it builds the application."""
    found: list[dict[str, Any]] = []
    if profile not in ("default", "throughput"):
        do = "write default or throughput"
        return [{"variable": "cluster_serve_profile", "value": profile, "problem": "is no profile", "do": do}]
    for index, application in enumerate(_applications(config) if profile == "throughput" else []):
        if not isinstance(application, Mapping) or application.get("import_path") != LLM_BUILDER:
            continue
        here, args = f"ray_serve_config.applications[{index}].args", application.get("args") or {}
        if len(models := llm_models(application)) > 1:
            text = "cluster_serve_profile throughput serves one model per application"
            do = "give each model an application of its own, with a route of its own"
            found.append({"variable": f"{here}.llm_configs", "value": ", ".join(models), "problem": text, "do": do})
        for key in ("ingress_deployment_config", "ingress_cls_config"):
            if args.get(key):
                text = "cluster_serve_profile throughput has no ingress deployment"
                do = "leave it out, and configure deployment_config of the model"
                found.append({"variable": f"{here}.{key}", "value": None, "problem": text, "do": do})
    return found


def ray_serve_canary_problems(percent: int, header: str, gateways: list[str]) -> list[dict[str, Any]]:
    """Problems of a canary, which only a gateway can send requests to."""
    variable, value = ("ray_serve_canary_percent", percent) if percent else ("ray_serve_canary_header", header)
    if not 0 <= percent <= 100:
        return [{"variable": variable, "value": value, "problem": "is no share", "do": "write 0 to 100"}]
    if (percent or header) and not gateways:
        do = "put a host into group gateway, or leave the canary out"
        return [{"variable": variable, "value": value, "problem": "there is no gateway for a canary", "do": do}]
    return []


def ray_serve_canaries(candidates: list[dict[str, Any]], percent: int, header: str) -> list[dict[str, Any]]:
    """What gatewayctl is told of each candidate of a wave."""
    asked = {"percent": percent, "header": header}
    return [{**{key: one[key] for key in one if key != "name"}, **asked} for one in candidates]


def ray_serve_base_url(http_options: Mapping[str, Any], address: str) -> str:
    """Where a proxy is reached on ``address``; a proxy bound to one address is reached there only."""
    host = http_options.get("host")
    return f"http://{address if host in (None, '0.0.0.0', '::') else host}:{http_options['port']}"


def ray_serve_requests(
    config: Mapping[str, Any], warmups: Mapping[str, Any], question: str, contains: str
) -> dict[str, list[dict[str, Any]]]:
    """Application -> the requests that it must answer, one for each model of an application of ray.serve.llm.

    Each is {method, path, body, contains}, the path below the application's route.
    """
    requests: dict[str, list[dict[str, Any]]] = {}
    for application in _applications(config):
        name = str(application.get("name", "default"))
        if application.get("route_prefix", "/") is None:
            continue
        if name in warmups:
            own = warmups[name]
            path = "/" + own["path"].lstrip("/") if own.get("path") else ""
            method = own.get("method", "POST" if own.get("body") else "GET")
            asked = {"method": method, "path": path, "body": own.get("body"), "contains": own.get("contains")}
            requests[name] = [asked]
        elif models := llm_models(application):
            messages = [{"role": "user", "content": question}]
            requests[name] = [
                {
                    "method": "POST",
                    "path": "/v1/chat/completions",
                    "body": {
                        "model": model,
                        "max_tokens": 32 if contains else 1,
                        "temperature": 0,
                        "messages": messages,
                    },
                    "contains": contains or None,
                }
                for model in models
            ]
        else:
            requests[name] = [{"method": "GET", "path": "", "body": None, "contains": None}]
    return requests


def completion_targets(
    config: Mapping[str, Any], addresses: list[str], prompt: str, contains: str
) -> list[dict[str, Any]]:
    """A question to each model of ray.serve.llm through the proxy of each address: a list of ray_health's targets."""
    bases = dict.fromkeys(ray_serve_base_url(config["http_options"], address) for address in addresses)
    question = {"prompt": prompt, **({"contains": contains} if contains else {})}
    return [
        {"url": base + (application.get("route_prefix") or "/").rstrip("/"), "model": model, **question}
        for base in bases
        for application in _applications(config)
        for model in llm_models(application)
    ]


def ray_serve_operator_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as it ran, under the names of the inventory; candidates and what was being drained left out."""
    applications = [
        {**application, "name": str(application.get("name", "default")).removesuffix(GREEN)}
        for application in _applications(config)
        if not str(application.get("route_prefix", "/")).startswith(HIDDEN)
    ]
    # Of the two names of one application the one without a route was put aside.
    twice = {a["name"] for a in applications if sum(b["name"] == a["name"] for b in applications) > 1}
    applications = [a for a in applications if a["name"] not in twice or a.get("route_prefix", "/") is not None]
    return {**config, "applications": applications}


def ray_serve_previous(backups: Mapping[str, Mapping[str, Any]], current: Mapping[str, Any]) -> str:
    """The newest of the backups (name -> configuration) that is another than ``current``; empty if there is none.

    The last one is the same where a change was taken back.
    """

    def shape(config: Mapping[str, Any]) -> dict[str, Any]:
        applications = _applications(ray_serve_operator_config(config))
        return {str(app["name"]): {k: v for k, v in app.items() if v is not None} for app in applications}

    return next((name for name in sorted(backups, reverse=True) if shape(backups[name]) != shape(current)), "")


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "ray_serve_problems": ray_serve_problems,
            "ray_serve_profile_problems": ray_serve_profile_problems,
            "ray_serve_canary_problems": ray_serve_canary_problems,
            "ray_serve_canaries": ray_serve_canaries,
            "ray_serve_requests": ray_serve_requests,
            "ray_serve_base_url": ray_serve_base_url,
            "completion_targets": completion_targets,
            "ray_serve_operator_config": ray_serve_operator_config,
            "ray_serve_previous": ray_serve_previous,
        }

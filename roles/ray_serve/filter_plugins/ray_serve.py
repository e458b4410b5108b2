"""What the controller can say of a Serve configuration, and the requests that prove it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LLM_BUILDER = "ray.serve.llm:build_openai_app"
WARMUP_KEYS = {"path", "method", "body"}


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


def ray_serve_problems(config: Mapping[str, Any], warmups: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Problems that need no Ray to see: names, routes, warm-ups. The rest is the judge's, on the head."""
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
        if route is None:
            continue
        if not isinstance(route, str) or not route.startswith("/") or (route != "/" and route.endswith("/")):
            add(f"{here}.route_prefix", route, "must start with a slash and not end with one", "write it like /app1")
        elif route in routes:
            add(f"{here}.route_prefix", route, f"is also the route of {routes[route]}", "give each its own")
        else:
            routes[route] = name
    for name, request in warmups.items():
        if name not in names:
            add(f"ray_serve_warmups.{name}", None, "no application has this name", "name an application")
        elif not isinstance(request, Mapping) or set(request) - WARMUP_KEYS:
            add(f"ray_serve_warmups.{name}", request, "is no request", "give path, method and body only")
    return found


def ray_serve_base_url(http_options: Mapping[str, Any], address: str) -> str:
    """Where a proxy is reached on ``address``; a proxy bound to one address is reached there only."""
    host = http_options.get("host")
    return f"http://{address if host in (None, '0.0.0.0', '::') else host}:{http_options['port']}"


def ray_serve_requests(config: Mapping[str, Any], warmups: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One request for each application, for each model of an application of ray.serve.llm.

    A list of {application, method, path, body}, the path with the route.
    """
    requests: list[dict[str, Any]] = []
    for application in _applications(config):
        name, route = application.get("name", "default"), application.get("route_prefix", "/")
        if route is None:
            continue
        route = route.rstrip("/")
        if name in warmups:
            own = warmups[name]
            path = route + "/" + own.get("path", "").lstrip("/")
            method = own.get("method", "POST" if own.get("body") else "GET")
            requests.append({"application": name, "method": method, "path": path, "body": own.get("body")})
        elif models := llm_models(application):
            for model in models:
                body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
                path = f"{route}/v1/chat/completions"
                requests.append({"application": name, "method": "POST", "path": path, "body": body})
        else:
            requests.append({"application": name, "method": "GET", "path": route or "/", "body": None})
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


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "ray_serve_problems": ray_serve_problems,
            "ray_serve_requests": ray_serve_requests,
            "ray_serve_base_url": ray_serve_base_url,
            "completion_targets": completion_targets,
        }

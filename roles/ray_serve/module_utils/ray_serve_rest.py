"""Ray's dashboard and Serve's proxies over HTTP, as the modules of this role use them."""

from __future__ import annotations

import http.client
import json
import os
import select
import time
import urllib.error
import urllib.request
from typing import Any

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is no way to the cluster
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
UNREACHED = (OSError, http.client.HTTPException)
ANSWER_SECONDS = 180  # one request: the first to an engine may compile
UNHEALTHY_SECONDS = 120  # a replica that is being replaced makes an application UNHEALTHY for a moment


class Problem(Exception):
    """What stops a module, in words for the operator."""


def controller_gone() -> bool:
    """Whether nobody reads this module's answer any more: ansible-playbook was killed, and its connection with it."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def alive() -> None:
    if controller_gone():
        os._exit(3)  # the next run decides how to go on; two that act at once would not


def _camel(name: str) -> str:
    """A resource's name as /api/cluster_status spells it: custom_one -> customOne."""
    first, *others = name.split("_")
    return first + "".join(part.title() for part in others)


class Serve:
    """The dashboard's REST interface; ``token`` is Ray's."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.headers = url, {"Authorization": f"Bearer {token}"}

    def get(self, path: str, seconds: float = 30) -> bytes:
        with OPENER.open(urllib.request.Request(self.url + path, headers=self.headers), timeout=seconds) as answer:
            return bytes(answer.read())

    def put(self, config: dict[str, Any]) -> None:
        headers = {**self.headers, "Content-Type": "application/json"}
        body = json.dumps(config).encode()
        request = urllib.request.Request(self.url + "/api/serve/applications/", body, headers, method="PUT")
        try:
            with OPENER.open(request, timeout=60) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            raise Problem(f"Serve refuses the configuration: {error.code}. {error.read()[-2000:]!r}") from error
        except UNREACHED as error:
            raise Problem(f"{self.url} does not answer: {error}") from error

    def running(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.get("/api/serve/applications/"))
        return state

    def nodes(self) -> list[dict[str, Any]]:
        answer = json.loads(self.get("/api/v0/nodes?detail=1&limit=10000"))
        listed: list[dict[str, Any]] = answer["data"]["result"]["result"]
        return listed

    def groups(self) -> dict[str, list[Any]]:
        """Name of a replica's actor -> its placement group: [node id, bundle], …"""
        answer = json.loads(self.get("/api/v0/placement_groups?detail=1&limit=10000"))
        return {
            group["name"]: [[bundle.get("node_id"), bundle["unit_resources"]] for bundle in group.get("bundles") or []]
            for group in answer["data"]["result"]["result"]
            if group.get("name") and group["state"] != "REMOVED"
        }

    def total(self) -> dict[str, dict[str, float]]:
        """Node id -> resource -> all there is, of the nodes that are alive."""
        alive = [node for node in self.nodes() if node["state"] == "ALIVE"]
        return {n["node_id"]: {k: float(v) for k, v in (n.get("resources_total") or {}).items()} for n in alive}

    def free(self, total: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """Of ``total`` what is free; a few seconds old, as Ray's report is."""
        status = json.loads(self.get("/api/cluster_status"))["data"]["clusterStatus"] or {}
        usage = (status.get("loadMetricsReport") or {}).get("usageByNode") or {}
        used = {node: {name: float(pair[0]) for name, pair in found.items()} for node, found in usage.items()}
        return {
            node: {name: amount - used.get(node, {}).get(_camel(name), 0) for name, amount in resources.items()}
            for node, resources in total.items()
        }

    def reason(self, name: str, running: dict[str, Any]) -> str:
        """Why an application does not serve: Ray's messages and the last lines of a replica's log."""
        app = (running.get("applications") or {}).get(name) or {}
        lines = [f"{name}: {app.get('status', 'absent')}. {app.get('message', '')}"]
        for deployment in (app.get("deployments") or {}).values():
            lines.append(f"{deployment['name']}: {deployment['status']}. {deployment['message']}")
            if "to be scheduled" in deployment["message"]:
                lines.append("To do: the cluster has no room; add nodes, or ask for fewer replicas, GPUs or CPUs.")
            replicas = [*(deployment.get("recent_dead_replicas") or []), *(deployment.get("replicas") or [])]
            for replica in [r for r in replicas if r.get("log_file_path")][-1:]:
                lines.append(f"Last lines of {replica['log_file_path']} on {replica['node_ip']}:")
                path = f"/api/v0/logs/file?node_id={replica['node_id']}&lines=25&filename="
                try:
                    lines.append(self.get(path + replica["log_file_path"].lstrip("/")).decode(errors="replace"))
                except UNREACHED as error:
                    lines.append(f"(not to be read: {error})")
        return "\n".join(lines)


def states(running: dict[str, Any], names: list[str]) -> tuple[list[str], list[str]]:
    """Of the applications ``names``: those that failed, and those that do not run yet."""
    applications = running.get("applications") or {}
    status = {name: (applications.get(name) or {}).get("status", "absent") for name in names}
    failed = [name for name in names if status[name] in FAILED]
    return failed, [name for name in names if status[name] != "RUNNING" and name not in failed]


def wait_running(serve: Serve, names: list[str], gone: list[str], deadline: float, nodes: list[str]) -> None:
    """Wait until ``names`` run and ``gone`` are away; stop at once when one of ``nodes`` (ids) is lost."""
    unhealthy_since: dict[str, float] = {}
    while True:
        alive()
        try:
            running = serve.running()
            here = {node["node_id"]: node for node in serve.nodes()} if nodes else {}
        except UNREACHED as error:  # a busy dashboard misses a moment
            if time.monotonic() > deadline:
                raise Problem(f"{serve.url} does not answer: {error}") from error
            time.sleep(1)
            continue
        lost = [node for node in nodes if here.get(node, {}).get("state") != "ALIVE"]
        if lost:
            where = ", ".join(str(here.get(node, {}).get("node_ip") or node) for node in lost)
            raise Problem(f"node {where} was lost in the middle of the change. To do: bring it back, or take it out.")
        failed, waiting = states(running, names)
        waiting += [name for name in gone if name in (running.get("applications") or {})]
        now = time.monotonic()
        unhealthy_since = {name: unhealthy_since.get(name, now) for name in failed}
        final = [
            name
            for name in failed
            if running["applications"][name]["status"] == "DEPLOY_FAILED"
            or now - unhealthy_since[name] > UNHEALTHY_SECONDS
        ]
        if final or (now > deadline and (failed or waiting)):
            raise Problem("\n".join(serve.reason(name, running) for name in final or failed + waiting))
        if not failed and not waiting:
            return
        time.sleep(0.5)


def ask(base_url: str, request: dict[str, Any], seconds: float = ANSWER_SECONDS) -> tuple[str, bool, str]:
    """Send one request: what went wrong (empty: nothing), whether to ask again, and the answer.

    ``request``: method, path, body (dict or none), contains (text that the answer must have, or none).
    """
    body = None if request.get("body") is None else json.dumps(request["body"]).encode()
    headers = {"Content-Type": "application/json"} if body else {}
    sent = urllib.request.Request(base_url + request["path"], body, headers, method=request["method"])
    what = f"{request['method']} {request['path']}"
    try:
        with OPENER.open(sent, timeout=seconds) as answer:
            text = answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return f"{what}: {error.code}. {error.read()[:500].decode(errors='replace')}", error.code in (404, 503), ""
    except UNREACHED as error:
        return f"{what}: {error}", isinstance(getattr(error, "reason", error), ConnectionError), ""
    if request.get("contains") and request["contains"] not in text:
        return f"{what}: the answer does not contain {request['contains']!r}: {text[:500]}", False, text
    return "", False, text


def ask_until(base_url: str, request: dict[str, Any], deadline: float) -> tuple[str, float]:
    """Ask until it was answered, for a minute at most: routes reach the proxies a moment after an application runs.

    What went wrong (empty: nothing), and the seconds that the answer took.
    """
    first = time.monotonic()
    while True:
        alive()
        started = time.monotonic()
        wrong, retry, _ = ask(base_url, request)
        if not wrong:
            return "", round(time.monotonic() - started, 2)
        if not retry or time.monotonic() > min(deadline, first + 60):
            return wrong, 0.0
        time.sleep(0.2)

#!/usr/bin/python
"""Make Ray Serve run a configuration, and prove that it answers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_serve_config
short_description: Make Ray Serve run a configuration, and prove that it answers
description:
  - Runs on the head. Reads what runs (REST), compares, pushes with C(serve deploy) only on a difference, waits until
    every application is RUNNING and has answered a real request, since Serve says RUNNING while every request fails.
  - On failure it gives Ray's reason and the last lines of the replica's log, from whichever node has it.
options:
  config:
    description: The configuration in Ray's own schema.
    type: dict
    required: true
  command:
    description: The C(serve deploy) that pushes the same configuration from its file.
    type: list
    elements: str
    required: true
  url:
    description: The dashboard.
    type: str
    required: true
  token_path:
    description: File with Ray's authentication token.
    type: path
    required: true
  base_url:
    description: A Serve proxy, for the requests.
    type: str
    required: true
  requests:
    description: The requests to answer, each with application, method, path, body (dict or none).
    type: list
    elements: dict
    default: []
  remove_applications:
    description: Names of running applications that may be removed.
    type: list
    elements: str
    default: []
  timeout_seconds:
    description: For how long all applications together may take.
    type: int
    default: 1200
author: Raymetal
"""
EXAMPLES = r"""
- name: Serve the models
  ray_serve_config:
    config: "{{ config }}"
    command: [serve, deploy, /etc/raymetal/serve.yml]
    url: http://127.0.0.1:8265
    token_path: /etc/raymetal/auth_token
    base_url: http://127.0.0.1:8000
    requests:
      - {application: hello, method: GET, path: /hello, body: }
"""
RETURN = r"""
plan:
  description: Application name to what is done with it, C(unchanged), C(add), C(change) or C(remove).
  type: dict
  returned: always
proxies:
  description: Addresses of the nodes that have a proxy.
  type: list
  elements: str
  returned: always
answered_seconds:
  description: Path of each request to the seconds that it took.
  type: dict
  returned: when not in check mode
"""

import http.client
import json
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is no way to the cluster
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
DEPLOY_SECONDS = 300  # `serve deploy`, which does not wait for the applications
ANSWER_SECONDS = 180  # one request: the first to an engine may compile


class Problem(Exception):
    """What stops the module, in words for the operator."""


def plan(config: dict[str, Any], running: dict[str, Any]) -> dict[str, str]:
    """What is to be done with each application; ``running`` is the answer of GET /api/serve/applications/."""
    applications = running.get("applications") or {}
    wanted = {app.get("name", "default"): app for app in config.get("applications") or []}
    steps = {name: "remove" for name in applications if name not in wanted}
    for name, app in wanted.items():
        deployed = (applications.get(name) or {}).get("deployed_app_config")
        steps[name] = "add" if name not in applications else "unchanged" if deployed == app else "change"
    return steps


def fixed_options(config: dict[str, Any], running: dict[str, Any]) -> list[str]:
    """What differs from a running Serve and which it would only warn about, one sentence each."""
    found = []
    for group in ("http_options", "grpc_options"):
        have = running.get(group) or {}
        for key, value in (config.get(group) or {}).items():
            if have and have.get(key, value) != value:
                found.append(f"{group}.{key} is {have[key]} and should be {value}")
    location = running.get("proxy_location")
    if location and config.get("proxy_location", location) != location:
        found.append(f"proxy_location is {location} and should be {config['proxy_location']}")
    return found


def comparable(config: dict[str, Any], running: dict[str, Any]) -> tuple[str, str]:
    """Before and after of the applications as text, for the diff."""
    before = {name: app.get("deployed_app_config") for name, app in (running.get("applications") or {}).items()}
    after = {app.get("name", "default"): app for app in config.get("applications") or []}
    first, second = (json.dumps(state, indent=2, sort_keys=True) + "\n" for state in (before, after))
    return first, second


def states(running: dict[str, Any], names: list[str]) -> tuple[list[str], list[str]]:
    """Of the applications ``names``: those that failed, and those that do not run yet."""
    applications = running.get("applications") or {}
    status = {name: (applications.get(name) or {}).get("status", "absent") for name in names}
    failed = [name for name in names if status[name] in FAILED]
    return failed, [name for name in names if status[name] != "RUNNING" and name not in failed]


def proxy_addresses(running: dict[str, Any]) -> list[str]:
    """Addresses of the nodes that should have a proxy, a sick one included: it is to be asked, and to fail."""
    proxies = (running.get("proxies") or {}).values()
    return sorted(p["node_ip"] for p in proxies if p.get("status") not in ("DRAINING", "DRAINED"))


class Serve:
    """The dashboard's REST interface."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.headers = url, {"Authorization": f"Bearer {token}"}

    def get(self, path: str, seconds: float = 30) -> bytes:
        with OPENER.open(urllib.request.Request(self.url + path, headers=self.headers), timeout=seconds) as answer:
            return bytes(answer.read())

    def running(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.get("/api/serve/applications/"))
        return state

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
                except (OSError, http.client.HTTPException) as error:
                    lines.append(f"(not to be read: {error})")
        return "\n".join(lines)


def ask(base_url: str, request: dict[str, Any]) -> tuple[str, bool]:
    """Send one request: what went wrong, empty when answered with a status below 400, and whether to ask again."""
    body = None if request.get("body") is None else json.dumps(request["body"]).encode()
    headers = {"Content-Type": "application/json"} if body else {}
    sent = urllib.request.Request(base_url + request["path"], body, headers, method=request["method"])
    try:
        with OPENER.open(sent, timeout=ANSWER_SECONDS) as answer:
            answer.read()
        return "", False
    except urllib.error.HTTPError as error:
        wrong = f"{request['method']} {request['path']}: {error.code}. {error.read()[:500].decode(errors='replace')}"
        return wrong, error.code in (404, 503)
    except (OSError, http.client.HTTPException) as error:
        refused = isinstance(getattr(error, "reason", error), ConnectionError)
        return f"{request['method']} {request['path']}: {error}", refused


def wait_running(serve: Serve, names: list[str], leaving: list[str], deadline: float) -> None:
    unhealthy_since: dict[str, float] = {}
    while True:
        try:
            running = serve.running()
        except (OSError, http.client.HTTPException) as error:  # a busy dashboard misses a moment
            if time.monotonic() > deadline:
                raise Problem(f"{serve.url} does not answer: {error}") from error
            time.sleep(1)
            continue
        failed, waiting = states(running, names)
        waiting += [name for name in leaving if name in (running.get("applications") or {})]
        now = time.monotonic()
        # A replica that is being replaced makes an application UNHEALTHY for a moment; DEPLOY_FAILED is final.
        unhealthy_since = {name: unhealthy_since.get(name, now) for name in failed}
        final = [
            n
            for n in failed
            if running["applications"][n]["status"] == "DEPLOY_FAILED" or now - unhealthy_since[n] > 120
        ]
        if final or (now > deadline and (failed or waiting)):
            raise Problem("\n".join(serve.reason(name, running) for name in final or failed + waiting))
        if not failed and not waiting:
            return
        time.sleep(1)


def warm_up(serve: Serve, base_url: str, requests: list[dict[str, Any]], deadline: float) -> dict[str, float]:
    """Ask until each request was answered; routes reach the proxies a moment after an application runs."""
    took = {}
    for request in requests:
        while True:
            started = time.monotonic()
            wrong, retry = ask(base_url, request)
            if not wrong:
                took[request["path"]] = round(time.monotonic() - started, 2)
                break
            if time.monotonic() > deadline or not retry or time.monotonic() - started > 60:
                text = serve.reason(request["application"], serve.running())
                raise Problem(f"it runs, and does not answer. {wrong}\n{text}")
            time.sleep(0.5)
    return took


def read_state(module: AnsibleModule, serve: Serve) -> dict[str, Any]:
    try:
        return serve.running()
    except urllib.error.HTTPError as error:
        raise Problem(
            f"{module.params['url']} answers {error.code}: is {module.params['token_path']} its token?"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        if module.check_mode:
            return {}  # a dry run before the cluster is started
        raise Problem(f"{module.params['url']} does not answer: {error}. To do: --tags cluster") from error


def apply(module: AnsibleModule, serve: Serve, result: dict[str, Any], running: dict[str, Any]) -> None:
    config = module.params["config"]
    vanish = [
        n for n, step in result["plan"].items() if step == "remove" and n not in module.params["remove_applications"]
    ]
    if vanish:
        gone = ", ".join(vanish)
        do = f"add them to ray_serve_config.applications, or consent with ray_serve_remove_applications: [{gone}]"
        raise Problem(f"these applications run and would vanish: {gone}. To do: {do}.")
    if fixed := fixed_options(config, running):
        do = "change it back, or accept an outage: `serve shutdown -y` on the head, then run the playbook again"
        raise Problem(f"a running Serve ignores a change of these: {'; '.join(fixed)}. To do: {do}.")
    if module.check_mode:
        return
    deadline = time.monotonic() + module.params["timeout_seconds"]
    if result["changed"]:
        try:
            done = subprocess.run(
                module.params["command"], capture_output=True, text=True, timeout=DEPLOY_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Problem(f"`serve deploy` failed: {error}") from error
        if done.returncode:
            raise Problem(f"`serve deploy` failed: {(done.stdout + done.stderr)[-3000:]}")
    names = [name for name, step in result["plan"].items() if step != "remove"]
    leaving = [name for name, step in result["plan"].items() if step == "remove"]
    wait_running(serve, names, leaving, deadline)
    result["answered_seconds"] = warm_up(serve, module.params["base_url"], module.params["requests"], deadline)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "dict", "required": True},
            "command": {"type": "list", "elements": "str", "required": True},
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True, "no_log": False},
            "base_url": {"type": "str", "required": True},
            "requests": {"type": "list", "elements": "dict", "default": []},
            "remove_applications": {"type": "list", "elements": "str", "default": []},
            "timeout_seconds": {"type": "int", "default": 1200},
        },
        supports_check_mode=True,
    )
    result: dict[str, Any] = {"changed": False, "plan": {}, "proxies": []}
    try:
        try:
            with open(module.params["token_path"]) as handle:
                token = handle.read().strip()
        except FileNotFoundError as error:
            if not module.check_mode:
                raise Problem(f"{module.params['token_path']} is missing. To do: --tags cluster") from error
            token = ""
        serve = Serve(module.params["url"], token)
        running = read_state(module, serve)
        result["plan"] = plan(module.params["config"], running)
        result["changed"] = set(result["plan"].values()) - {"unchanged"} != set()
        before, after = comparable(module.params["config"], running)
        result["diff"] = {"before": before, "after": after, "before_header": "running", "after_header": "wanted"}
        apply(module, serve, result, running)
        result["proxies"] = proxy_addresses(read_state(module, serve))
    except Problem as problem:
        module.fail_json(msg=str(problem), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

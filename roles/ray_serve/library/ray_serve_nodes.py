#!/usr/bin/python
"""Say what becomes of what serves when nodes leave for a while, and wait until they are left or all is whole again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_serve_nodes
short_description: Say what becomes of what serves when nodes leave, and wait until they are left or all is whole again
description:
  - Runs on the head and changes nothing.
options:
  state:
    description:
      - C(query) says what would happen.
      - C(left) waits until at most I(remaining) replicas are on the nodes.
      - C(whole) waits until every application has all its replicas and answers.
    type: str
    choices: [query, left, whole]
    default: query
  addresses:
    description: Addresses of the nodes that leave together; empty for the whole cluster.
    type: list
    elements: str
    default: []
  remaining:
    description: How many replicas may stay, for instance C(stuck) of an earlier query.
    type: int
    default: 0
  replicas:
    description: Application to deployment to how many replicas must run again, for C(whole).
    type: dict
    default: {}
  url:
    description: The dashboard.
    type: str
    required: true
  token_path:
    description: File with Ray's authentication token.
    type: path
    required: true
  state_path:
    description: Where the role remembers how long engines take to start.
    type: path
    required: true
  base_url:
    description: A Serve proxy, for the requests.
    type: str
    required: true
  requests:
    description: Application (operator's name) to requests, each with method, path (below the route), body, contains.
    type: dict
    default: {}
  timeout_seconds:
    description: For how long to wait.
    type: int
    default: 1200
author: Raymetal
"""
EXAMPLES = r"""
- name: See what would happen
  ray_serve_nodes:
    addresses: [10.0.0.5]
    url: http://127.0.0.1:8265
    token_path: /etc/raymetal/auth_token
    state_path: /etc/raymetal/serve-state.json
    base_url: http://127.0.0.1:8000
"""
RETURN = r"""
serving:
  description: Applications that serve, by their running names.
  type: list
  elements: str
  returned: always
start_seconds:
  description: How long the slowest of them took to start the last time; 0 if it is not known.
  type: float
  returned: always
replicas:
  description: Application to deployment to how many replicas run.
  type: dict
  returned: always
stuck:
  description: How many replicas on the nodes have no room elsewhere.
  type: int
  returned: always
lines:
  description: What happens meanwhile, for people.
  type: list
  elements: str
  returned: always
lost:
  description: What would serve nobody or lose answers, for people; empty if nothing would.
  type: list
  elements: str
  returned: always
"""

import json
import time
from typing import Any

from ansible.module_utils import ray_serve_config as conf
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ray_serve_leave import leave
from ansible.module_utils.ray_serve_planner import Cluster
from ansible.module_utils.ray_serve_rest import UNREACHED, Problem, Serve, ask_until

POLL_SECONDS = 0.5
TELL_SECONDS = 60  # as long a busy dashboard may take
NOTHING: dict[str, Any] = {"serving": [], "start_seconds": 0.0, "stuck": 0, "replicas": {}, "lines": [], "lost": []}


def look(serve: Serve) -> tuple[Cluster, dict[str, str]]:
    """What runs, and the id of each node that is alive, by its address."""
    ids = {node["node_ip"]: node["node_id"] for node in serve.nodes() if node["state"] == "ALIVE"}
    total = serve.total()
    return Cluster(serve.running(), serve.free(total), serve.groups(), total), ids


def start_seconds(path: str, serving: list[str]) -> float:
    try:
        with open(path) as handle:
            known = json.load(handle).get("seconds") or {}
    except FileNotFoundError:
        return 0.0
    return float(max((known.get(conf.operator_name(name), 0) for name in serving), default=0))


def query(params: dict[str, Any], serve: Serve) -> dict[str, Any]:
    """What would become of what serves; a head that does not tell is taken for one that serves."""
    deadline = time.monotonic() + TELL_SECONDS
    while True:
        try:
            cluster, ids = look(serve)
            break
        except UNREACHED as error:
            if time.monotonic() > deadline:
                lost = [f"nobody knows what serves, {serve.url} does not tell ({error}), it may all end"]
                return {**NOTHING, "lost": lost}
            time.sleep(POLL_SECONDS)
    serving = [name for name in cluster.apps if cluster.serves(name)]
    result = {
        "serving": serving,
        "start_seconds": start_seconds(params["state_path"], serving),
        "replicas": {name: running(cluster, name) for name in cluster.apps},
    }
    if not params["addresses"]:
        return {**result, "stuck": 0, "lines": [], "lost": [f"{name} ends" for name in serving]}
    found = leave(cluster, [ids[address] for address in params["addresses"] if address in ids])
    lines = [f"{count} replica(s) of {app} start elsewhere first" for app, count in found.moved.items()]
    return {**result, "stuck": found.stuck, "lines": lines + found.reduced, "lost": found.lost}


def on_nodes(cluster: Cluster, nodes: list[str]) -> int:
    """Replicas on the nodes, those that are stopping included."""
    return sum(
        replica.get("node_id") in nodes
        for name in cluster.apps
        for deployment in cluster.deployments(name).values()
        for replica in deployment.get("replicas") or []
    )


def running(cluster: Cluster, name: str) -> dict[str, int]:
    """Deployment -> replicas that run."""
    return {
        deployment: sum(replica.get("state") == "RUNNING" for replica in details.get("replicas") or [])
        for deployment, details in cluster.deployments(name).items()
    }


def unwhole(cluster: Cluster, before: dict[str, dict[str, int]]) -> list[str]:
    """What is not as it was and should be, in words; what autoscaling wants beyond ``before`` is not waited for."""
    found = []
    for name, app in cluster.details.items():
        if app.get("status") != "RUNNING":
            found.append(f"application {name} is {app.get('status')}")
        for deployment, have in running(cluster, name).items():
            target = cluster.deployments(name)[deployment].get("target_num_replicas") or 0
            least = min(target, before.get(name, {}).get(deployment, target))
            if have < least:
                found.append(f"{name}/{deployment} has {have} of {least} replicas")
    return found


def wait(params: dict[str, Any], serve: Serve) -> None:
    """Raise Problem if what is waited for does not come in time."""
    deadline = time.monotonic() + params["timeout_seconds"]
    wrong = ["nothing was seen"]
    nodes: list[str] | None = None
    while wrong:
        try:
            cluster, ids = look(serve)
            if nodes is None:  # a node that comes back has another id
                nodes = [ids[address] for address in params["addresses"] if address in ids]
            if params["state"] == "whole":
                wrong = unwhole(cluster, params["replicas"])
            else:
                left, where = on_nodes(cluster, nodes), ", ".join(params["addresses"])
                wrong = [f"{left} replica(s) are still on {where}"] if left > params["remaining"] else []
        except UNREACHED as error:  # a busy dashboard misses a moment
            wrong = [f"{serve.url} does not answer: {error}"]
        if wrong:
            if time.monotonic() > deadline:
                raise Problem(f"after {params['timeout_seconds']} s: {'; '.join(wrong)}")
            time.sleep(POLL_SECONDS)
    if params["state"] == "whole":
        answer(params, cluster, deadline)


def answer(params: dict[str, Any], cluster: Cluster, deadline: float) -> None:
    for name, app in cluster.apps.items():
        route = conf.route_of(app)
        if route is None or conf.is_hidden(app):
            continue
        for request in conf.fitting(params["requests"].get(conf.operator_name(name)) or [], app):
            path = route.rstrip("/") + request["path"] or "/"
            wrong, _ = ask_until(params["base_url"], {**request, "path": path}, deadline)
            if wrong:
                raise Problem(f"application {name} does not answer as it should. {wrong}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["query", "left", "whole"], "default": "query"},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "remaining": {"type": "int", "default": 0},
            "replicas": {"type": "dict", "default": {}},
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True, "no_log": False},
            "state_path": {"type": "path", "required": True},
            "base_url": {"type": "str", "required": True},
            "requests": {"type": "dict", "default": {}},
            "timeout_seconds": {"type": "int", "default": 1200},
        },
        supports_check_mode=True,
    )
    try:
        with open(module.params["token_path"]) as handle:
            serve = Serve(module.params["url"], handle.read().strip())
        if module.params["state"] == "query":
            module.exit_json(changed=False, **query(module.params, serve))
        if not module.check_mode:
            wait(module.params, serve)
        module.exit_json(changed=False, **NOTHING)
    except FileNotFoundError:
        module.exit_json(changed=False, **NOTHING)  # there is no cluster yet
    except Problem as problem:
        module.fail_json(msg=str(problem))


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Say what a Serve configuration would change, how, and whether it can be done."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_serve_plan
short_description: Say what a Serve configuration would change, how, and whether it can be done
description:
  - Runs on the head and changes nothing. Reads what runs and what is free, compares, and plans each application's way
    so that no request fails. See module_utils/ray_serve_planner.py, ray_serve_ways.py and ray_serve_waves.py.
options:
  config:
    description: The wanted configuration in Ray's own schema, applications by the operator's names.
    type: dict
    required: true
  needs:
    description: Application to deployment to what one replica takes and how many the code starts, by the judge.
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
    description: Where a change that was begun is remembered.
    type: path
    required: true
  changes_path:
    description: Where the steps of changes are noted, see module_utils/ray_serve_changes.py; empty - nowhere.
    type: str
    default: ""
  base_url:
    description: A Serve proxy, for the requests that show that what runs is healthy.
    type: str
    required: true
  requests:
    description: Application to requests, each with method, path (below the route), body, contains.
    type: dict
    default: {}
  expected_nodes:
    description: Addresses of the nodes that must be alive before anything that serves is changed.
    type: list
    elements: str
    default: []
  remove_applications:
    description: Names of running applications that may be removed.
    type: list
    elements: str
    default: []
  way:
    description: How applications are replaced, C(auto) for the best that has room.
    type: str
    default: auto
  ways:
    description: The same for single applications, by name.
    type: dict
    default: {}
  drain_seconds:
    description: How long an old replica may finish what it answers.
    type: int
    default: 600
  require_healthy:
    description: Whether a sick cluster is left alone.
    type: bool
    default: true
author: Raymetal
"""
EXAMPLES = r"""
- name: Plan
  ray_serve_plan:
    config: "{{ config }}"
    url: http://127.0.0.1:8265
    token_path: /etc/raymetal/auth_token
    state_path: /etc/raymetal/serve-state.json
    base_url: http://127.0.0.1:8000
"""
RETURN = r"""
at:
  description: When it was made, UTC, as a name that sorts.
  type: str
  returned: always
actions:
  description: Application to what is done with it, for instance C(unchanged), C(add), C(light), C(replace), C(remove).
  type: dict
  returned: always
steps:
  description: Application to all that is known of its change, for instance way, gpus_peak, live and next name.
  type: dict
  returned: always
lines:
  description: The plan, for people.
  type: list
  elements: str
  returned: always
problems:
  description: What stands against it; empty if nothing does.
  type: list
  elements: str
  returned: always
waves:
  description: The configurations to push, wave after wave, see module_utils/ray_serve_waves.py.
  type: list
  elements: dict
  returned: always
config:
  description: The configuration as it runs at the end, applications by their running names.
  type: dict
  returned: always
names:
  description: Application to the name that runs at the end.
  type: dict
  returned: always
live:
  description: Application to the name that serves now.
  type: dict
  returned: always
before:
  description: The configuration as it runs now.
  type: dict
  returned: always
back:
  description: The same as it is to be pushed if the change is taken back.
  type: dict
  returned: always
serving:
  description: >-
    Running name to status, route, import_path, models (ids) and deployments, each with status, bounds and replicas
    (address of a node to how many run there).
  type: dict
  returned: always
changes:
  description: The steps of the last changes, the oldest first.
  type: list
  elements: dict
  returned: always
begun:
  description: The interrupted change that this one finishes or replaces, if there is one.
  type: dict
  returned: always
run:
  description: An id for the run that carries the plan out.
  type: str
  returned: always
nodes:
  description: Ids of the nodes that are alive.
  type: list
  elements: str
  returned: always
proxies:
  description: Addresses of the nodes that have a proxy.
  type: list
  elements: str
  returned: always
"""

import fcntl
import json
import time
import urllib.error
import uuid
from collections import Counter
from typing import Any

from ansible.module_utils import ray_serve_changes as changes
from ansible.module_utils import ray_serve_config as conf
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ray_serve_planner import Cluster
from ansible.module_utils.ray_serve_rest import UNREACHED, Problem, Serve, ask
from ansible.module_utils.ray_serve_waves import Plan

BUSY_SECONDS = 60  # what a killed run had sent to the head goes on to its end there


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


def comparable(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, str]:
    """Before and after of the applications as text, for the diff."""
    first, second = (
        json.dumps({conf.name_of(app): app for app in state.get("applications") or []}, indent=2, sort_keys=True) + "\n"
        for state in (before, after)
    )
    return first, second


def proxy_addresses(running: dict[str, Any]) -> list[str]:
    """Addresses of the nodes that should have a proxy, a sick one included: it is to be asked, and to fail."""
    proxies = (running.get("proxies") or {}).values()
    return sorted(p["node_ip"] for p in proxies if p.get("status") not in ("DRAINING", "DRAINED"))


def serving(running: dict[str, Any]) -> dict[str, Any]:
    """What runs, in few words: for the report, without arguments and environments."""

    def deployment(found: dict[str, Any]) -> dict[str, Any]:
        config = found.get("deployment_config") or {}
        scaling = config.get("autoscaling_config") or {}
        count = config.get("num_replicas") or 1
        replicas = [r.get("node_ip") for r in found.get("replicas") or [] if r.get("state") == "RUNNING"]
        bounds = [scaling.get("min_replicas", 1), scaling.get("max_replicas", 1)] if scaling else [count, count]
        return {"status": found.get("status"), "bounds": bounds, "replicas": dict(Counter(replicas))}

    found = {}
    for name, app in (running.get("applications") or {}).items():
        config = app.get("deployed_app_config") or {}
        deployments = {key: deployment(value) for key, value in (app.get("deployments") or {}).items()}
        route = app.get("route_prefix", conf.route_of(config))
        told = {"route": route, "import_path": config.get("import_path"), "deployments": deployments}
        found[name] = {"status": app.get("status"), "models": conf.llm_models(config), **told}
    return found


def sickness(cluster: Cluster, steps: dict[str, Any], nodes: list[dict[str, Any]], expected: list[str]) -> list[str]:
    """What is wrong with what runs, before it is changed; applications that this change sets right aside."""
    found = []
    here = {node.get("node_ip") for node in nodes if node.get("state") == "ALIVE"}
    found += [f"node {address} is not alive" for address in expected if address not in here]
    for name, step in steps.items():
        status = cluster.details[step["live"]].get("status") if step["live"] else "RUNNING"
        if status != "RUNNING" and step["action"] not in ("restart", "finish", "remove") and not step.get("spare"):
            found.append(f"application {name} is {status}")
    return found


def other_run(path: str) -> str:
    """Whether another run is changing Serve at this moment: in words, empty if not."""
    try:
        with open(path + ".lock") as handle:
            deadline = time.monotonic() + BUSY_SECONDS
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return ""
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        return "another run is changing Serve on this head. To do: wait until it has ended."
                    time.sleep(0.5)
    except OSError:
        return ""  # never changed yet


def read_state(path: str) -> dict[str, Any]:
    try:
        with open(path) as handle:
            state: dict[str, Any] = json.load(handle)
            return state
    except FileNotFoundError:
        return {}


def observe(module: AnsibleModule, serve: Serve) -> tuple[dict[str, Any], Cluster, list[dict[str, Any]]]:
    """What runs, what is free and the nodes; nothing in a dry run before the cluster is started."""
    try:
        running = serve.running()
        total = serve.total()
        return running, Cluster(running, serve.free(total), serve.groups(), total), serve.nodes()
    except urllib.error.HTTPError as error:
        raise Problem(
            f"{module.params['url']} answers {error.code}: is {module.params['token_path']} its token?"
        ) from error
    except UNREACHED as error:
        if module.check_mode:
            return {}, Cluster({}, {}, {}), []
        raise Problem(f"{module.params['url']} does not answer: {error}. To do: --tags cluster") from error


def make(module: AnsibleModule, serve: Serve) -> dict[str, Any]:
    params = module.params
    running, cluster, nodes = observe(module, serve)
    state = read_state(params["state_path"])
    begun = state.get("begun") or {}
    options = {
        "way": params["way"],
        "ways": params["ways"],
        "remove": params["remove_applications"],
        "begun": begun.get("steps") or {},
        "seconds": state.get("seconds") or {},
        "drain_seconds": params["drain_seconds"],
    }
    plan = Plan(params["config"], cluster, params["needs"], options)
    problems = list(plan.problems)
    if fixed := fixed_options(params["config"], running):
        do = "change it back, or accept an outage: `serve shutdown -y` on the head, then run the playbook again"
        problems.append(f"a running Serve ignores a change of these: {'; '.join(fixed)}. To do: {do}.")
    if plan.waves and (busy := other_run(params["state_path"])):
        problems.insert(0, busy)
    live = {name: step["live"] for name, step in plan.steps.items() if step["live"]}
    if cluster.apps and not problems and params["require_healthy"]:
        sick = sickness(cluster, plan.steps, nodes, params["expected_nodes"]) if plan.waves else []
        for name, running_name in live.items():
            if not sick and cluster.details[running_name].get("status") == "RUNNING":
                app = cluster.apps[running_name]
                asked = conf.fitting(params["requests"].get(name) or [], app)
                for request in asked[:1] if plan.steps[name]["action"] != "remove" else []:
                    path = (conf.route_of(app) or "").rstrip("/") + request["path"]
                    wrong = ask(params["base_url"], {**request, "path": path, "contains": None})[0]
                    sick += [f"application {name} runs and does not answer. {wrong}"] if wrong else []
        if sick:
            do = "set it right first, or go on all the same: ray_serve_require_healthy: false"
            problems.append(f"what runs is not healthy: {'; '.join(sick)}. To do: {do}.")
    rest = {key: value for key, value in params["config"].items() if key != "applications"}
    return {
        "at": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        "actions": {name: step["action"] for name, step in plan.steps.items()},
        "steps": plan.steps,
        "lines": plan.lines(),
        "problems": problems,
        "waves": plan.waves,
        "config": {**rest, "applications": conf.canonical(sorted(plan.now.values(), key=conf.name_of))},
        "names": plan.names(),
        "live": live,
        "before": {**rest, "applications": list(cluster.apps.values())},
        "back": {**rest, "applications": plan.back()},
        "serving": serving(running),
        "changes": changes.read(params["changes_path"]) if params["changes_path"] else [],
        "begun": begun,
        "run": uuid.uuid4().hex,
        "nodes": [node["node_id"] for node in nodes if node.get("state") == "ALIVE"],
        "proxies": proxy_addresses(running),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "dict", "required": True},
            "needs": {"type": "dict", "default": {}},
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True, "no_log": False},
            "state_path": {"type": "path", "required": True},
            "changes_path": {"type": "str", "default": ""},
            "base_url": {"type": "str", "required": True},
            "requests": {"type": "dict", "default": {}},
            "expected_nodes": {"type": "list", "elements": "str", "default": []},
            "remove_applications": {"type": "list", "elements": "str", "default": []},
            "way": {"type": "str", "default": "auto"},
            "ways": {"type": "dict", "default": {}},
            "drain_seconds": {"type": "int", "default": 600},
            "require_healthy": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        try:
            with open(module.params["token_path"]) as handle:
                token = handle.read().strip()
        except FileNotFoundError as error:
            if not module.check_mode:
                raise Problem(f"{module.params['token_path']} is missing. To do: --tags cluster") from error
            token = ""
        result = make(module, Serve(module.params["url"], token))
    except Problem as problem:
        module.fail_json(msg=str(problem))
    before, after = comparable(result["before"], result["config"])
    result["diff"] = {"before": before, "after": after, "before_header": "running", "after_header": "wanted"}
    module.exit_json(changed=bool(result["waves"]), **result)


if __name__ == "__main__":
    main()

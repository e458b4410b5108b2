#!/usr/bin/python
"""Watch applications under traffic, and fail if they are worse than what served before."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_serve_watch
short_description: Watch applications under traffic, and fail if they are worse than what served before
description:
  - Runs on the head and changes nothing. For a set time it asks each application twice a second and, at the end, reads
    what Serve itself counted on every node (Ray's metrics ports) of all requests, the users' included.
options:
  applications:
    description: Running names.
    type: list
    elements: str
    required: true
  before:
    description: Running name to the name that served before it, where it is another one.
    type: dict
    default: {}
  config:
    description: The configuration that runs, for the routes.
    type: dict
    required: true
  base_url:
    description: A Serve proxy.
    type: str
    required: true
  requests:
    description: Application (operator's name) to requests, each with method, path (below the route), body, contains.
    type: dict
    default: {}
  discovery_path:
    description: Ray's list of metrics ports, prom_metrics_service_discovery.json of the head.
    type: path
    required: true
  baseline:
    description: What C(totals) were before the change.
    type: dict
    default: {}
  run:
    description: Id of the run whose step this is.
    type: str
    default: ""
  stage:
    description: The step, C(canary) or C(watch).
    type: str
    default: watch
  changes_path:
    description: Where each step is noted, see module_utils/ray_serve_changes.py; empty - nowhere.
    type: str
    default: ""
  seconds:
    description: For how long; 0 reads the totals only.
    type: int
    required: true
  max_error_percent:
    description: By how many percent of all requests the share of errors may grow.
    type: float
    default: 1
  max_latency_ratio:
    description: How many times the mean latency of before is still good.
    type: float
    default: 3
author: Raymetal
"""
EXAMPLES = r"""
- name: Read the totals
  ray_serve_watch:
    applications: []
    config: {}
    base_url: http://127.0.0.1:8000
    discovery_path: /var/lib/raymetal/ray/prom_metrics_service_discovery.json
    seconds: 0
"""
RETURN = r"""
totals:
  description: Running name to requests, errors and ms (summed latency) since the replicas' proxies started.
  type: dict
  returned: always
seen:
  description: What was seen of each application, for people.
  type: list
  elements: str
  returned: success
"""

import time
from typing import Any

from ansible.module_utils import ray_serve_changes as changes
from ansible.module_utils import ray_serve_config as conf
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ray_serve_rest import Problem, alive, ask
from ansible.module_utils.ray_serve_totals import Totals, grown, read_totals

PROBE_SECONDS = 0.5
ENOUGH_REQUESTS = 20  # fewer say nothing about a share or a mean
ENOUGH_ERRORS = 3  # fewer are chance


def verdict(old: dict[str, float], new: dict[str, float], max_error: float, max_ratio: float) -> tuple[str, str]:
    """What is worse now (empty: nothing), and what was seen; ``old`` and ``new`` are requests, errors and ms."""
    if new["requests"] < ENOUGH_REQUESTS:
        return "", f"{new['requests']:.0f} requests of others, too few to compare"
    share, mean = 100 * new["errors"] / new["requests"], new["ms"] / new["requests"]
    seen = f"{new['requests']:.0f} requests of others, {share:.1f} % errors, {mean:.0f} ms in the mean"
    known = old.get("requests", 0) >= ENOUGH_REQUESTS
    share_before = 100 * old["errors"] / old["requests"] if known else 0.0
    if new["errors"] >= ENOUGH_ERRORS and share > share_before + max_error:
        return f"{share:.1f} % of the requests fail, before {share_before:.1f} %", seen
    if known and mean > max_ratio * (before := old["ms"] / old["requests"]):
        return f"a request takes {mean:.0f} ms in the mean, before {before:.0f} ms", seen
    return "", seen


def probe(params: dict[str, Any]) -> Totals:
    """Ask every application until the time is over; running name -> what the proxies counted of it."""
    routes = {conf.name_of(app): conf.route_of(app) for app in params["config"].get("applications") or []}
    answers: Totals = {name: {"requests": 0.0, "errors": 0.0, "ms": 0.0} for name in params["applications"]}
    deadline = time.monotonic() + params["seconds"]
    while time.monotonic() < deadline:
        started = time.monotonic()
        alive()
        for name in params["applications"]:
            for request in (params["requests"].get(conf.operator_name(name)) or [])[:1] if routes.get(name) else []:
                path = str(routes[name]).rstrip("/") + request["path"] or "/"
                asked = time.monotonic()
                wrong, _, _ = ask(params["base_url"], {**request, "path": path})
                if wrong:
                    raise Problem(f"application {name} fails under traffic. {wrong}")
                answers[name]["requests"] += 1
                answers[name]["ms"] += 1000 * (time.monotonic() - asked)
        time.sleep(max(0.0, min(PROBE_SECONDS - (time.monotonic() - started), deadline - time.monotonic())))
    return answers


def note(module: AnsibleModule, started: float, last: Totals, problem: str) -> None:
    """Note the step, with what all proxies counted of its applications, old and new, since the change began."""
    params = module.params
    names = {*params["applications"], *(params["before"].get(name, name) for name in params["applications"])}
    found = [grown(params["baseline"], last, name) for name in sorted(names)]
    counted = {key: int(sum(entry[key] for entry in found)) for key in ("requests", "errors")}
    line = changes.entry(params["run"], params["stage"], started, counted=counted, problem=problem)
    if params["changes_path"] and (wrong := changes.note(params["changes_path"], line)):
        module.warn(wrong)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "applications": {"type": "list", "elements": "str", "required": True},
            "before": {"type": "dict", "default": {}},
            "config": {"type": "dict", "required": True},
            "base_url": {"type": "str", "required": True},
            "requests": {"type": "dict", "default": {}},
            "discovery_path": {"type": "path", "required": True},
            "baseline": {"type": "dict", "default": {}},
            "run": {"type": "str", "default": ""},
            "stage": {"type": "str", "default": "watch"},
            "changes_path": {"type": "str", "default": ""},
            "seconds": {"type": "int", "required": True},
            "max_error_percent": {"type": "float", "default": 1},
            "max_latency_ratio": {"type": "float", "default": 3},
        },
        supports_check_mode=True,
    )
    params = module.params
    first = read_totals(params["discovery_path"])
    if not params["seconds"] or module.check_mode:
        module.exit_json(changed=False, totals=first, seen=[])
    started, last = time.time(), first
    try:
        answers = probe(params)
        last = read_totals(params["discovery_path"])
        lines = []
        for name in params["applications"]:
            old = params["baseline"].get(params["before"].get(name, name)) or {}
            others = {key: max(0.0, value - answers[name][key]) for key, value in grown(first, last, name).items()}
            worse, seen = verdict(old, others, params["max_error_percent"], params["max_latency_ratio"])
            if worse:
                raise Problem(f"application {name} is worse than what served before: {worse}.")
            lines.append(f"{name}: {answers[name]['requests']:.0f} own requests answered; {seen}")
    except Problem as problem:
        note(module, started, last, changes.first_line(problem))
        module.fail_json(msg=str(problem), totals=first)
    note(module, started, last, "")
    module.exit_json(changed=False, totals=last, seen=lines)


if __name__ == "__main__":
    main()

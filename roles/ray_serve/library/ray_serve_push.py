#!/usr/bin/python
"""Push one Serve configuration and wait until it serves, or take a begun change back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_serve_push
short_description: Push one Serve configuration and wait until it serves, or take a begun change back
description:
  - Runs on the head. Pushes, waits until the applications are RUNNING and those that leave are gone, and asks real
    requests, since Serve says RUNNING while every request fails. On failure it gives Ray's reason and the last lines of
    the replica's log, from whichever node has it.
  - Remembers in C(state_path) that a change is under way, and what served before it.
options:
  state:
    description: C(pushed), or C(returned) to what served before the change that was begun.
    type: str
    choices: [pushed, returned]
    default: pushed
  config:
    description: The configuration, applications by their running names.
    type: dict
    default: {}
  command:
    description: The C(serve deploy) that pushes the same configuration from its file; without it REST is used.
    type: list
    elements: str
    default: []
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
    description: Where each step is noted, see module_utils/ray_serve_changes.py; empty - nowhere.
    type: str
    default: ""
  base_url:
    description: A Serve proxy, for the requests.
    type: str
    required: true
  requests:
    description: Application (operator's name) to requests, each with method, path (below the route), body, contains.
    type: dict
    default: {}
  ask:
    description: Running names of the applications that must run and answer.
    type: list
    elements: str
    default: []
  gone:
    description: Running names of the applications that must be away.
    type: list
    elements: str
    default: []
  nodes:
    description: Ids of the nodes that must not be lost meanwhile.
    type: list
    elements: str
    default: []
  begin:
    description: What to remember before the push - C(stage), and C(config), C(steps) and C(backup) where they begin.
    type: dict
    default: {}
  run:
    description: Id of this run; a change that another run has begun or taken over is not touched.
    type: str
    required: true
  continues:
    description: Id of the interrupted run whose change this one takes over.
    type: str
    default: ""
  done:
    description: Whether the change is over when this has succeeded.
    type: bool
    default: false
  timeout_seconds:
    description: For how long all applications together may take.
    type: int
    default: 1200
author: Raymetal
"""
EXAMPLES = r"""
- name: Start the candidate
  ray_serve_push:
    config: "{{ config }}"
    url: http://127.0.0.1:8265
    token_path: /etc/raymetal/auth_token
    state_path: /etc/raymetal/serve-state.json
    base_url: http://127.0.0.1:8000
    ask: [chat--green]
    requests:
      chat: [{method: GET, path: /v1/models}]
"""
RETURN = r"""
answered_seconds:
  description: Path of each request to the seconds that it took.
  type: dict
  returned: success
outcome:
  description:
    - What became of a change that failed.
    - C(untouched) nothing had been pushed. C(returned) what served before serves again. C(left) nothing served
      before, and what was started is left. C(switched) the new one serves, old replicas may remain. C(taken_over)
      another run goes on.
  type: str
  returned: when the state is returned
config:
  description: What serves again.
  type: dict
  returned: when the outcome is returned
"""

import fcntl
import json
import os
import subprocess
import time
from typing import Any

from ansible.module_utils import ray_serve_changes as changes
from ansible.module_utils import ray_serve_config as conf
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ray_serve_rest import Problem, Serve, ask_until, wait_running

DEPLOY_SECONDS = 300  # `serve deploy`, which does not wait for the applications


class State:
    """The file that remembers a begun change; while it is open no other run may change Serve."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock = open(path + ".lock", "w")  # noqa: SIM115 (held until the module ends)
        os.chmod(path + ".lock", 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Problem("another run is changing Serve on this head. To do: wait until it has ended.") from error
        try:
            with open(path) as handle:
                self.content: dict[str, Any] = json.load(handle)
        except FileNotFoundError:
            self.content = {}

    def write(self) -> None:
        with open(self.path + ".new", "w", opener=lambda p, flags: os.open(p, flags, 0o600)) as handle:
            json.dump(self.content, handle, indent=2)
        os.replace(self.path + ".new", self.path)


def push(params: dict[str, Any], serve: Serve) -> None:
    if not params["command"]:
        serve.put(params["config"])
        return
    try:
        done = subprocess.run(params["command"], capture_output=True, text=True, timeout=DEPLOY_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Problem(f"`serve deploy` failed: {error}") from error
    if done.returncode:
        raise Problem(f"`serve deploy` failed: {(done.stdout + done.stderr)[-3000:]}")


def ask_all(params: dict[str, Any], serve: Serve, config: dict[str, Any], deadline: float) -> dict[str, float]:
    """Ask every application of C(ask) its requests, on the routes that ``config`` gives them."""
    apps = {conf.name_of(app): app for app in config.get("applications") or []}
    took = {}
    for name in params["ask"]:
        route = conf.route_of(apps[name]) if name in apps else None
        if route is None:
            continue
        for request in conf.fitting(params["requests"].get(conf.operator_name(name)) or [], apps[name]):
            path = route.rstrip("/") + request["path"] or "/"
            wrong, seconds = ask_until(params["base_url"], {**request, "path": path}, deadline)
            if wrong:
                text = serve.reason(name, serve.running())
                raise Problem(f"application {name} runs, and does not answer as it should. {wrong}\n{text}")
            took[path] = seconds
    return took


def owned(params: dict[str, Any], state: State) -> dict[str, Any]:
    """The change that this run begins, goes on with or takes over; Problem if it is another run's."""
    begun: dict[str, Any] | None = state.content.get("begun")
    first = params["begin"].get("stage") in ("prepare", "start")
    if begun is None and first:
        return {"since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    if begun is None or begun.get("run", "") not in (params["run"], params["continues"] if first else params["run"]):
        raise Problem("another run has changed Serve meanwhile; this one stops. To do: see what runs, and run again")
    return begun


def forward(params: dict[str, Any], serve: Serve, state: State) -> dict[str, Any]:
    started = time.monotonic()
    deadline = started + params["timeout_seconds"]
    if params["begin"]:
        state.content["begun"] = {**owned(params, state), **params["begin"], "run": params["run"]}
        state.write()
    if params["config"]:
        push(params, serve)
    wait_running(serve, params["ask"], params["gone"], deadline, params["nodes"])
    took = ask_all(params, serve, params["config"], deadline)
    steps = (state.content.get("begun") or {}).get("steps") or {}
    if params["begin"].get("stage") == "start":
        new = [n for n in map(conf.operator_name, params["ask"]) if steps.get(n) in ("add", "restart", "replace")]
        state.content["seconds"] = {
            **(state.content.get("seconds") or {}),
            **dict.fromkeys(new, round(time.monotonic() - started, 1)),
        }
    if params["done"]:
        state.content.pop("begun", None)
    state.write()
    return {"answered_seconds": took}


def back(params: dict[str, Any], serve: Serve, state: State) -> dict[str, Any]:
    """To what served before: its routes first, in one push, and only then is the rest drained and removed."""
    begun = state.content.get("begun") or {}
    if not begun:
        return {"answered_seconds": {}, "outcome": "untouched"}
    if (owner := begun.get("run", "")) != params["run"]:
        return {"answered_seconds": {}, "outcome": "untouched" if owner == params["continues"] else "taken_over"}
    if begun.get("stage") == "final":
        return {"answered_seconds": {}, "outcome": "switched"}
    config, deadline = begun["config"], time.monotonic() + params["timeout_seconds"]
    old = [conf.name_of(app) for app in config["applications"]]
    if not old:
        state.content.pop("begun")
        state.write()
        return {"answered_seconds": {}, "outcome": "left"}
    here = serve.running().get("applications") or {}
    extra = {n: a["deployed_app_config"] for n, a in here.items() if n not in old and a.get("deployed_app_config")}
    serve.put({**config, "applications": [*config["applications"], *map(conf.aside, extra.values())]})
    wait_running(serve, old, [], deadline, [])
    if extra:
        serve.put(config)
        wait_running(serve, old, list(extra), deadline, [])
    params["ask"] = old
    took = ask_all(params, serve, config, deadline)
    applications = conf.canonical(sorted(config["applications"], key=conf.name_of))
    state.content.pop("begun", None)
    state.write()
    return {"answered_seconds": took, "outcome": "returned", "config": {**config, "applications": applications}}


def note(module: AnsibleModule, started: float, more: dict[str, Any]) -> None:
    params = module.params
    stage = params["begin"].get("stage", "push") if params["state"] == "pushed" else "back"
    actions = params["begin"].get("steps") if stage in ("prepare", "start") else None
    line = changes.entry(params["run"], stage, started, actions=actions, **more)
    if params["changes_path"] and (wrong := changes.note(params["changes_path"], line)):
        module.warn(wrong)


def main() -> None:
    strings = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["pushed", "returned"], "default": "pushed"},
            "config": {"type": "dict", "default": {}},
            "command": strings,
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True, "no_log": False},
            "state_path": {"type": "path", "required": True},
            "changes_path": {"type": "str", "default": ""},
            "base_url": {"type": "str", "required": True},
            "requests": {"type": "dict", "default": {}},
            "ask": strings,
            "gone": strings,
            "nodes": strings,
            "begin": {"type": "dict", "default": {}},
            "run": {"type": "str", "required": True},
            "continues": {"type": "str", "default": ""},
            "done": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "int", "default": 1200},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True)
    started = time.time()
    try:
        with open(module.params["token_path"]) as handle:
            serve = Serve(module.params["url"], handle.read().strip())
        state = State(module.params["state_path"])
        act = forward if module.params["state"] == "pushed" else back
        result = act(module.params, serve, state)
    except Problem as problem:
        note(module, started, {"problem": changes.first_line(problem)})
        module.fail_json(msg=str(problem))
    note(module, started, {"outcome": result.get("outcome"), "done": module.params["done"]})
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()

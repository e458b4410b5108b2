#!/usr/bin/python
"""Say how far the job on a host is, and end it when all are done."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fan_out_state
short_description: Say how far the job on a host is, and end it when all are done
options:
  directory:
    description: The job's.
    type: path
    required: true
  run:
    description: The job's.
    type: str
    required: true
  seconds:
    description: How long to wait for the job to have received everything, or to have ended.
    type: int
    default: 0
  end:
    description: Whether to end the job; what it did not receive stays for the next run.
    type: bool
    default: false
author: Raymetal
"""
EXAMPLES = r"""
- name: End the job
  fan_out_state:
    directory: /run/raymetal-fan-out
    run: "1"
    end: true
"""
RETURN = r"""
finished:
  description: Whether there is nothing to wait for, all being received or the job ended.
  type: bool
  returned: always
trees:
  description: name, bytes, done, phase and receive of each tree.
  type: list
  elements: dict
  returned: always
received:
  description: With end, paths of the trees that were put in place.
  type: list
  elements: str
  returned: with end
rate:
  description: Bytes that arrive in a second.
  type: int
  returned: always
"""

import json
import os
import shutil
import signal
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fan_out_job import holder_of, lock_path, running

START_SECONDS = 60
END_SECONDS = 30


def read_state(directory: str) -> dict[str, Any]:
    try:
        with open(os.path.join(directory, "state.json"), encoding="utf-8") as handle:
            state: dict[str, Any] = json.load(handle)
            return state
    except FileNotFoundError:
        return {}


def wait(module: AnsibleModule, state_directory: str) -> dict[str, Any]:
    """The state, as soon as it is the last one, or when the time is over."""
    started = time.monotonic()
    while True:
        alive = running(module.params["directory"])  # asked first: its last act is to write the state
        state = read_state(state_directory)
        waited = time.monotonic() - started
        gone = not alive and (state or waited > START_SECONDS)
        complete = bool(state) and all(tree["phase"] == "complete" for tree in state["trees"])
        if gone or complete or state.get("ended"):
            return {**state, "finished": True}
        if state and waited >= module.params["seconds"]:
            return {**state, "finished": False}
        if not state and waited > START_SECONDS:
            return {"finished": True}
        time.sleep(0.2)


def end(directory: str) -> bool:
    """Tell the job of this run to end, and wait until it and what it started are gone."""
    deadline = time.monotonic() + END_SECONDS
    told = 0
    while running(directory):
        lock = os.open(lock_path(directory), os.O_RDWR)
        pid = holder_of(lock, lock_path(directory))
        os.close(lock)
        if pid and pid != told:
            os.kill(pid, signal.SIGTERM)
            told = pid
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "run": {"type": "str", "required": True},
            "seconds": {"type": "int", "default": 0},
            "end": {"type": "bool", "default": False},
        },
    )
    directory = module.params["directory"]
    state_directory = os.path.join(directory, module.params["run"])
    if not module.params["end"]:
        module.exit_json(changed=False, **{"trees": [], "rate": 0, **wait(module, state_directory)})
    state = read_state(state_directory)
    # Of another run, the lock is none of ours: a job that has begun has a state.
    if state and not state.get("ended") and not end(directory):
        module.fail_json(msg=f"the job does not end: its process stands in {lock_path(directory)}")
    state = read_state(state_directory)
    shutil.rmtree(state_directory, ignore_errors=True)
    received = state.get("received", [])
    result = {"trees": [], "rate": 0, **state, "finished": True, "received": received, "changed": bool(received)}
    if not state.get("ended"):
        module.fail_json(msg="the job was ended from outside. To do: run again, it goes on from here")
    if state["problem"]:
        module.fail_json(msg=state["problem"], received=received, changed=bool(received))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Fetch a model from the network into a directory, whole and right or not at all."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_fetch
short_description: Fetch a model from the network into a directory, whole and right or not at all
description:
  - Runs in the Python of the environment, which has the client of the Hugging Face hub. An action plugin of the same
    name reads the secrets on the controller, calls this until it is finished, and shows how far it is.
  - The fetch is a process of its own on the host. It goes on when the connection is lost; the next call finds it.
  - What is fetched is compared with the hashes that the source gives. It is in C(<path>.partial) until all is there.
options:
  path:
    description: Where the model directory is to appear.
    type: path
    required: true
  kind:
    description: What kind of source.
    type: str
    choices: [hub, archive, s3]
    required: true
  source:
    description: The source, as in C(model_store_models).
    type: dict
    required: true
  endpoint:
    description: Address of the hub; empty is the client's own default.
    type: str
    default: ''
  stall_seconds:
    description: How long nothing may come.
    type: int
    default: 300
  secret:
    description: Token of the hub, or keys of S3. Of the action plugin it is C(secret_file), a file of the controller.
    type: dict
  start:
    description: Whether to begin one if none runs.
    type: bool
    default: true
  wait_seconds:
    description: How long to wait for its end.
    type: float
    default: 10
author: Raymetal
"""
EXAMPLES = r"""
- name: Fetch a model
  model_fetch:
    path: /opt/raymetal/models/qwen3-8b/1
    kind: hub
    source: {repo: Qwen/Qwen3-8B, revision: b968826d9c46dd6066d109eabc6255188de91218}
    secret_file: /home/me/.hub-token
"""
RETURN = r"""
finished:
  description: Whether the model is there.
  type: bool
  returned: success
started:
  description: Whether this call began the fetch.
  type: bool
  returned: success
phase:
  description: What it does - asking, fetching, unpacking, verifying.
  type: str
  returned: while it runs
bytes:
  description: How many are on the disk.
  type: int
  returned: while it runs
total:
  description: How many there will be.
  type: int
  returned: while it runs
"""

import functools
import os
import time

from ansible.module_utils import model_store_archive, model_store_hub, model_store_job, model_store_s3
from ansible.module_utils.basic import AnsibleModule

SOURCES = {"hub": model_store_hub.fetch, "archive": model_store_archive.fetch, "s3": model_store_s3.fetch}
LOOK_SECONDS = 0.2


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "kind": {"type": "str", "choices": list(SOURCES), "required": True},
            "source": {"type": "dict", "required": True},
            "endpoint": {"type": "str", "default": ""},
            "stall_seconds": {"type": "int", "default": 300},
            "secret": {"type": "dict", "no_log": True},
            "start": {"type": "bool", "default": True},
            "wait_seconds": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    p = module.params
    path, started = p["path"], False
    if os.path.isdir(path):
        module.exit_json(changed=False, finished=True, started=False)
    if module.check_mode:
        module.exit_json(changed=True, finished=False, started=False)
    if p["start"]:
        fetch = functools.partial(
            SOURCES[p["kind"]], source=p["source"], secret=p["secret"] or {}, endpoint=p["endpoint"]
        )
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            started = model_store_job.start(path, p["stall_seconds"], fetch)
        except OSError as error:
            problem = model_store_job.disk_problem(error, error.filename or path)
            module.fail_json(msg=str(problem or repr(error)))
    end = time.monotonic() + p["wait_seconds"]
    while True:
        state = model_store_job.look(path)
        if os.path.isdir(path):
            module.exit_json(changed=True, finished=True, started=started)
        if not state or not state["running"]:
            if not started and p["start"]:  # of another run, which did not get to its end: begin at the next call
                module.exit_json(changed=False, finished=False, started=False)
            lost = "the fetch was ended from outside. To do: run again; what is there is not fetched again"
            module.fail_json(msg=(state or {}).get("error") or lost)
        if time.monotonic() > end:
            known = {key: state.get(key) for key in ("phase", "bytes", "total")}
            module.exit_json(changed=True, finished=False, started=started, **known)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()

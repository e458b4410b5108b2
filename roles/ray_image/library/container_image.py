#!/usr/bin/python
"""The image that the node of this host runs in."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_image
short_description: Make or pull an image where it is not there, prove it, and make it the current one
description:
  - An image that is there under I(name) is taken as it is; its name says what it is made of.
  - It becomes the current one, a second name for it, only after its Python and Ray were found to be those of the host.
    A run that is interrupted leaves the current one as it was.
options:
  engine:
    description: The program, C(podman) or C(docker).
    type: str
    required: true
  name:
    description: Name of the image, with a tag or a digest.
    type: str
    required: true
  command:
    description: What makes or pulls it.
    type: list
    elements: str
    required: true
  current:
    description: The second name.
    type: str
    required: true
  python:
    description: Python of the image that has Ray.
    type: str
    required: true
  host_python:
    description: Python of the host that has Ray; where there is none, nothing is compared.
    type: path
    required: true
author: Raymetal
"""
EXAMPLES = r"""
- name: Provide the image
  container_image:
    engine: podman
    name: registry.example/ray-vllm:2.60.0
    command: [podman, pull, --quiet, "registry.example/ray-vllm:2.60.0"]
    current: localhost/raymetal:current
    python: /opt/ray/bin/python
    host_python: /opt/raymetal/env/current/bin/python
"""
RETURN = r"""
image_id:
  description: Id of the image; empty in a dry run that would make it.
  type: str
  returned: success
versions:
  description: Versions of Python and Ray in it.
  type: str
  returned: when they were read
"""

import os
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule

VERSIONS = (
    "import platform, importlib.metadata as m; print('Python', platform.python_version(), 'Ray', m.version('ray'))"
)
LOOK_SECONDS, MAKE_SECONDS = 120, 3600


def run(command: list[str], seconds: int = LOOK_SECONDS) -> tuple[int, str]:
    """Exit status and output of a program, the last lines of both; 127 where it is missing, 124 where it hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{' '.join(command[:3])} did not end within {seconds} s"
    return done.returncode, (done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip()[-4000:]


def identify(engine: str, name: str) -> str:
    """Id of an image; empty without it."""
    status, text = run([engine, "image", "inspect", "--format", "{{.Id}}", name])
    return text.removeprefix("sha256:") if status == 0 else ""


def versions(module: AnsibleModule, command: list[str], whose: str) -> str:
    status, text = run([*command, "-I", "-c", VERSIONS])
    if status != 0:
        module.fail_json(msg=f"{whose} does not tell the versions of Python and Ray: {text}")
    return text


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "command": {"type": "list", "elements": "str", "required": True},
            "current": {"type": "str", "required": True},
            "python": {"type": "str", "required": True},
            "host_python": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    engine, name, current = given["engine"], given["name"], given["current"]
    wanted, before = identify(engine, name), identify(engine, current)
    found: dict[str, Any] = {"changed": wanted != before or not wanted, "image_id": wanted}
    found["diff"] = {"before": f"{before}\n", "after": f"{wanted or name}\n", "before_header": current}
    if module.check_mode or not found["changed"]:
        module.exit_json(**found)
    if not wanted:
        status, text = run(given["command"], MAKE_SECONDS)
        wanted = identify(engine, name)
        if status != 0 or not wanted:
            module.fail_json(
                msg=f"{name} could not be had: {text}. To do: see that this host reaches what it is made of"
                " (docs/containers.md), and run the playbook again"
            )
    inside = versions(module, [engine, "run", "--rm", "--network=none", wanted, given["python"]], name)
    if os.path.exists(given["host_python"]):
        outside = versions(module, [given["host_python"]], given["host_python"])
        if inside != outside:
            module.fail_json(
                msg=f"{name} has {inside}, the host's environment, from which the tools run, {outside}: one cluster has"
                " one of each. To do: take an image that has the same, or let it be built"
            )
    status, text = run([engine, "tag", wanted, current])
    if status != 0:
        module.fail_json(msg=f"{current} could not be made: {text}")
    module.exit_json(**{**found, "image_id": wanted, "versions": inside})


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Say which trees a host holds, and what it would need to take part in a fan-out."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fan_out_held
short_description: Say which trees a host holds, and what it would need to take part in a fan-out
description:
  - Reads manifests and sizes only, no content, and changes nothing.
options:
  trees:
    description: The trees, each with its path and, for messages, its name.
    type: list
    elements: dict
    required: true
  address:
    description: The host's address, or name, on the cluster's network.
    type: str
    required: true
author: Raymetal
"""
EXAMPLES = r"""
- name: Ask what the host holds
  fan_out_held:
    trees:
      - path: /opt/raymetal/models/qwen3-8b/1
    address: 10.0.0.11
"""
RETURN = r"""
trees:
  description: >-
    For each tree its path and name, present, digest (empty without a manifest), bytes, disk_bytes, room_bytes,
    partial_bytes, device.
  type: list
  elements: dict
  returned: success
address:
  description: The address in numbers.
  type: str
  returned: success
address_problem:
  description: Why peers could not reach the host there; empty where they can.
  type: str
  returned: success
installed:
  description: Whether aria2c is there.
  type: bool
  returned: success
"""

import ipaddress
import shutil
import socket

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fan_out_tree import Problem, held


def own_address(name: str) -> tuple[str, str]:
    """The address in numbers, and what is wrong with it (empty: nothing)."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        return name, f"does not resolve on the host ({error.strerror})"
    address = str(target[0])
    if ipaddress.ip_address(address).is_unspecified:
        return address, "is no address of one network"
    with socket.socket(family, kind) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return address, f"is no address of the host (it is {address} there)"
    return address, ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "trees": {"type": "list", "elements": "dict", "required": True},
            "address": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        trees = [{**held(t["path"]), "name": t.get("name") or t["path"]} for t in module.params["trees"]]
    except Problem as problem:
        module.fail_json(msg=str(problem))
    address, problem_text = own_address(module.params["address"])
    module.exit_json(
        changed=False,
        trees=trees,
        address=address,
        address_problem=problem_text,
        installed=shutil.which("aria2c") is not None,
    )


if __name__ == "__main__":
    main()

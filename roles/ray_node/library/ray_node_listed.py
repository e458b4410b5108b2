#!/usr/bin/python
"""Wait until the head lists a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_node_listed
short_description: Wait until the head lists a node alive with the resources asked for
description:
  - Runs on the head and asks its dashboard (the state API), which listens on the loopback there. Changes nothing.
options:
  url:
    description: The dashboard.
    type: str
    default: http://127.0.0.1:8265
  token_path:
    description: File with Ray's authentication token.
    type: path
    required: true
  node_id:
    description: The node, by the id that its raylet has.
    type: str
    required: true
  resources:
    description: What the node must offer at least, Ray's name of the resource to an amount.
    type: dict
    default: {}
  required:
    description: Whether it is an error that the node is not listed; if not, the answer is given at once, as C(listed).
    type: bool
    default: true
  timeout_seconds:
    description: For how long to wait.
    type: int
    default: 60
author: Raymetal
"""
EXAMPLES = r"""
- name: Wait until the head lists the node
  ray_node_listed:
    token_path: /etc/raymetal/auth_token
    node_id: "{{ running.node_id }}"
    resources: {GPU: 8}
  delegate_to: head
"""
RETURN = r"""
listed:
  description: Whether the head lists the node alive with the resources.
  type: bool
  returned: success
node:
  description: The node as the head lists it.
  type: dict
  returned: success
"""

import json
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def shortcomings(
    nodes: list[dict[str, Any]], node_id: str, resources: dict[str, Any]
) -> tuple[dict[str, Any] | None, str]:
    """The node among the head's ``nodes``, and what is wrong with it; empty text if nothing is."""
    found = next((node for node in nodes if node["node_id"] == node_id), None)
    if found is None:
        return None, f"the head does not list node {node_id}"
    if found["state"] != "ALIVE":
        return found, f"the head lists the node as {found['state']}: {found.get('state_message') or 'no reason given'}"
    offered = found.get("resources_total") or {}
    less = [
        f"{name} {offered.get(name, 0)} of {want}" for name, want in resources.items() if offered.get(name, 0) < want
    ]
    return found, f"the node offers too little: {', '.join(less)}" if less else ""


def listed(url: str, token: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/api/v0/nodes?detail=1&limit=10000", headers={"Authorization": f"Bearer {token}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=15) as answer:
        nodes: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
    return nodes


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8265"},
            "token_path": {"type": "path", "required": True, "no_log": False},
            "node_id": {"type": "str", "required": True},
            "resources": {"type": "dict", "default": {}},
            "required": {"type": "bool", "default": True},
            "timeout_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    try:
        with open(module.params["token_path"]) as handle:
            token = handle.read().strip()
    except FileNotFoundError:
        if module.params["required"]:
            raise
        module.exit_json(changed=False, listed=False, node=None)  # the head was never started
    deadline = time.monotonic() + module.params["timeout_seconds"]
    while True:
        node: dict[str, Any] | None = None
        answered = True
        try:
            nodes = listed(module.params["url"], token)
            node, wrong = shortcomings(nodes, module.params["node_id"], module.params["resources"])
        except urllib.error.HTTPError as error:
            wrong, answered = f"{module.params['url']} answers {error.code}: {error.read()[:300]!r}", False
            if error.code in (401, 403):  # waiting makes no other token of it
                module.fail_json(msg=f"{wrong}. To do: compare {module.params['token_path']} on the hosts")
        except (OSError, KeyError, ValueError) as error:
            wrong = f"{module.params['url']} does not answer: {error}"
            answered = isinstance(getattr(error, "reason", error), ConnectionRefusedError)  # that head does not run
        if not wrong:
            module.exit_json(changed=False, listed=True, node=node)
        if not module.params["required"] and answered:
            module.exit_json(changed=False, listed=False, node=node)
        if time.monotonic() > deadline:
            module.fail_json(msg=f"after {module.params['timeout_seconds']} s: {wrong}", node=node)
        time.sleep(0.5)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""The lock of a cluster: a file that names the run which changes it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_lock
short_description: Let one run at a time change the cluster
description:
  - The file is there as a whole or not at all, also when two runs come at the same moment.
  - Its action plugin, on the controller, says who the run is, and whether the holder's process still lives there.
  - In check mode nothing is taken, and nobody is stopped. Holding a lock is no change of the host.
options:
  path:
    description: The file, below a directory that a reboot empties.
    type: path
    required: true
  state:
    description:
      - C(taken) takes the lock unless another run holds it; C(released) gives it back if it is ours.
    type: str
    choices: [taken, released]
    required: true
  take_over:
    description: Take it from whoever holds it.
    type: bool
    default: false
  holder:
    description: Who the run is, with a unique C(id). The action plugin sets it.
    type: dict
  gone:
    description: Id of a holder whose process has ended; the lock is taken from it. Set by the action plugin.
    type: str
author: Raymetal
"""
EXAMPLES = r"""
- name: Take the lock of the cluster, or stop where another run holds it
  run_lock:
    path: /run/raymetal-prod.lock
    state: taken
"""
RETURN = r"""
held:
  description: Whether the run holds the lock now.
  type: bool
  returned: success
other:
  description: The run that held it before, or still does; empty without one.
  type: dict
  returned: success
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule


@contextlib.contextmanager
def guarded(path: str) -> Iterator[None]:
    """Nobody else reads and writes meanwhile: the directory is locked for this moment."""
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def read(path: str) -> dict[str, Any]:
    """The holder; empty without one."""
    try:
        with open(path) as handle:
            found = json.load(handle)
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    return (
        found if isinstance(found, dict) and found.get("id") else {"id": "unreadable", "what": f"{path} is unreadable"}
    )


def write(path: str, holder: dict[str, Any]) -> None:
    """All of it or nothing, readable by root alone."""
    handle, new = tempfile.mkstemp(dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}.")
    with os.fdopen(handle, "w") as file:
        json.dump(holder, file)
    os.replace(new, path)


def take(path: str, holder: dict[str, Any], gone: str, take_over: bool) -> dict[str, Any]:
    """Take the lock if it is free, ours, a dead run's (``gone``: its id), or to be taken over."""
    with guarded(path):
        found = read(path)
        if found and found["id"] not in (holder["id"], gone) and not take_over:
            return {"held": False, "other": found}
        if found.get("id") != holder["id"]:
            write(path, holder)
        return {"held": True, "other": {} if found.get("id") == holder["id"] else found}


def release(path: str, holder: dict[str, Any]) -> dict[str, Any]:
    """Give it back; a lock that another run took over meanwhile is that one's."""
    with guarded(path):
        found = read(path)
        if found.get("id") == holder["id"]:
            os.unlink(path)
            found = {}
        return {"held": False, "other": found}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["taken", "released"], "required": True},
            "take_over": {"type": "bool", "default": False},
            "holder": {"type": "dict", "required": True},
            "gone": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        module.exit_json(changed=False, held=False, other={})
    try:
        if params["state"] == "taken":
            result = take(params["path"], params["holder"], params["gone"], params["take_over"])
        else:
            result = release(params["path"], params["holder"])
    except OSError as error:
        module.fail_json(
            msg=f"the lock {params['path']} cannot be written: {error}. To do: run as root, see run_lock_path"
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()

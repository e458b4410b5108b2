#!/usr/bin/python
"""What a host still carries of a cluster that is removed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: leftovers
short_description: Find what a host still carries of a cluster, and end or remove what has no path known before
description:
  - Looks for processes, listening ports, files in temporary directories, user and group, systemd units, files and
    nftables tables. Reads only, unless I(state) is C(absent).
  - The service user is dedicated, so what it owns in C(/tmp), C(/var/tmp) and C(/dev/shm) belongs to the cluster. Of a
    user that is gone already, the owner of its I(home) is the number.
options:
  state:
    description:
      - C(query) only looks. C(absent) ends the user's processes, removes its files in the temporary directories, and
        lets systemd forget units whose files are gone.
    type: str
    choices: [query, absent]
    default: query
  cluster:
    description: Name of the cluster.
    type: str
    required: true
  user:
    description: The service user; empty where the host had none.
    type: str
    default: ""
  home:
    description: Its home.
    type: path
  uid:
    description: Its number, where neither the user nor the home is there any more to tell it; 0 for unknown.
    type: int
    default: 0
  traces:
    description: What to look for beside what the user owns. An entry of another cluster is left out.
    type: list
    elements: dict
    default: []
    options:
      group: {type: str, description: Inventory group whose hosts have it; for the reader.}
      marker: {type: path, description: File with the name of the cluster that this belongs to.}
      units: {type: list, elements: str, default: [], description: Patterns of systemd units.}
      paths: {type: list, elements: str, default: [], description: Globs of absolute paths.}
      tables: {type: list, elements: str, default: [], description: Patterns of names of nftables tables.}
  temporary:
    description: Directories in which files of the user are leftovers.
    type: list
    elements: path
    default: [/tmp, /var/tmp, /dev/shm]
  timeout_seconds:
    description: How long processes may take to end before they are killed.
    type: int
    default: 15
author: Raymetal
"""
EXAMPLES = r"""
- name: Prove that nothing is left
  leftovers:
    cluster: prod
    user: raymetal
    traces:
      - {units: [raymetal.service], paths: [/etc/raymetal], tables: ["raymetal*"]}
  register: found
  failed_when: found.leftovers | length > 0
"""
RETURN = r"""
leftovers:
  description: What was found, or with C(absent) what was there and was ended or removed; a line of text each.
  type: list
  elements: str
  returned: success
foreign:
  description: Clusters whose markers were found, so that their traces were left out, marker to name.
  type: dict
  returned: success
uid:
  description: Number of the service user, 0 if it is unknown.
  type: int
  returned: success
"""

import contextlib
import fnmatch
import glob
import grp
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule

UNIT_DIRECTORIES = ("/etc/systemd/system", "/run/systemd/system", "/run/systemd/transient")
KILL_SECONDS = 30  # what the kernel may take to end a killed process
SHOWN_LENGTH = 100


def read(path: str) -> str:
    """The file's text; empty where it is gone."""
    try:
        with open(path, "rb") as handle:
            return handle.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def run(*argv: str) -> str | None:
    """Output of a program; None where it is missing or fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def uid_of(user: str, home: str | None) -> int:
    """Number of ``user``; if there is no such user, that of the owner of ``home`` if it has no name; else 0."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(user).pw_uid
    if not user or not home or not os.path.isdir(home) or os.path.islink(home):
        return 0
    owner = os.lstat(home).st_uid
    try:
        pwd.getpwuid(owner)
    except KeyError:
        return owner
    return 0


def callers() -> set[int]:
    """This process and those above it."""
    found, pid = set(), os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        above = re.search(r"(?m)^PPid:\s+(\d+)", read(f"/proc/{pid}/status"))
        pid = int(above[1]) if above else 0
    return found


def processes(uid: int, paths: Iterable[str]) -> Iterator[tuple[int, bool, str]]:
    """Processes of ``uid``, and those of others that name one of ``paths``: id, whether of ``uid``, command.

    Zombies are left out, and what runs in containers under the same number.
    """
    above = callers()
    for name in filter(str.isdigit, os.listdir("/proc")):
        status = read(f"/proc/{name}/status")
        if int(name) in above or re.search(r"(?m)^State:\s+Z|^NSpid:\s+\d+\s+\d", status):
            continue
        owner = re.search(r"(?m)^Uid:\s+(\d+)", status)
        words = read(f"/proc/{name}/cmdline").split("\0")
        ours = bool(owner and uid and int(owner[1]) == uid)
        if ours or any(f"{word.rpartition('=')[2]}/".startswith(f"{path}/") for word in words for path in paths):
            yield int(name), ours, " ".join(words).strip()[:SHOWN_LENGTH]


def files(uid: int, temporary: Iterable[str]) -> Iterator[str]:
    """What ``uid`` owns in the directories; of a link the link itself counts."""
    for folder in temporary if uid else ():
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_uid == uid:
                        yield entry.path


def ports(uid: int) -> list[int]:
    """TCP ports on which a socket of ``uid`` listens."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in read(table).splitlines()[1:]:
            fields = line.split()
            if uid and fields[3] == "0A" and int(fields[7]) == uid:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return sorted(found)


def units(patterns: list[str]) -> Iterator[tuple[str, str]]:
    """Units that systemd knows by name, with their state: load, active, sub."""
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager"]
    listed = run(*command, *patterns) if patterns else ""
    for line in (listed or "").splitlines():
        name, *state = line.lstrip("● ").split()[:4]
        yield name, " ".join(state)


def unit_files(patterns: list[str]) -> Iterator[str]:
    """Files of units, their drop-ins, and the links by which they are enabled."""
    for folder in UNIT_DIRECTORIES:
        for pattern in patterns:
            for form in (pattern, f"{pattern}.d", f"{pattern}.wants", f"*.wants/{pattern}", f"*.requires/{pattern}"):
                yield from sorted(glob.glob(f"{folder}/{form}"))


def tables(patterns: list[str]) -> Iterator[str]:
    """nftables tables by name, as family and name."""
    listed = run("nft", "--json", "list", "tables") if patterns else None
    for entry in json.loads(listed)["nftables"] if listed else ():
        table = entry.get("table")
        if table and any(fnmatch.fnmatch(table["name"], pattern) for pattern in patterns):
            yield f"{table['family']} {table['name']}"


def accounts(user: str) -> Iterator[str]:
    for kind, find in (("user", pwd.getpwnam), ("group", grp.getgrnam)):
        with contextlib.suppress(KeyError):
            find(user)
            yield f"{kind} {user}"


def present(paths: Iterable[str]) -> Iterator[str]:
    """Paths that the globs match; a broken link is there, too."""
    for pattern in paths:
        yield from sorted(glob.glob(pattern))


def runs(pid: int) -> bool:
    return bool(re.search(r"(?m)^State:\s+[^ZX\s]", read(f"/proc/{pid}/status")))


def end(pids: list[int], seconds: float) -> None:
    """Ask processes to end, and kill those that are there after ``seconds``."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while left := list(filter(runs, pids)):
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline + KILL_SECONDS:
            raise TimeoutError(f"processes {left} survive SIGKILL. To do: reboot the host, then run the playbook again")
        time.sleep(0.1)


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def main() -> None:
    trace = {
        "group": {"type": "str"},
        "marker": {"type": "path"},
        "units": {"type": "list", "elements": "str", "default": []},
        "paths": {"type": "list", "elements": "str", "default": []},
        "tables": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["query", "absent"], "default": "query"},
            "cluster": {"type": "str", "required": True},
            "user": {"type": "str", "default": ""},
            "home": {"type": "path"},
            "uid": {"type": "int", "default": 0},
            "traces": {"type": "list", "elements": "dict", "default": [], "options": trace},
            "temporary": {"type": "list", "elements": "path", "default": ["/tmp", "/var/tmp", "/dev/shm"]},
            "timeout_seconds": {"type": "int", "default": 15},
        },
        supports_check_mode=True,
    )
    given: dict[str, Any] = module.params
    if given["user"] == "root":
        module.fail_json(msg="user root: all of its files would be leftovers. To do: name the dedicated service user")
    uid = uid_of(given["user"], given["home"]) or given["uid"]
    markers = {entry["marker"]: read(entry["marker"]).strip() for entry in given["traces"] if entry["marker"]}
    foreign = {marker: name for marker, name in markers.items() if name not in ("", given["cluster"])}
    traces = [entry for entry in given["traces"] if entry["marker"] not in foreign]
    patterns = {kind: [item for entry in traces for item in entry[kind]] for kind in ("units", "paths", "tables")}

    running = list(processes(uid, [path for path in patterns["paths"] if not glob.has_magic(path)]))
    temporary = list(files(uid, given["temporary"]))
    if given["state"] == "absent":
        ours = [(pid, command) for pid, own, command in running if own]
        known = [name for name, _ in units(patterns["units"])]
        forgotten = [name for name in known if not list(present(f"{folder}/{name}" for folder in UNIT_DIRECTORIES))]
        if not module.check_mode:
            end([pid for pid, _ in ours], given["timeout_seconds"])
            for path in files(uid, given["temporary"]):
                remove(path)
            if forgotten:
                run("systemctl", "daemon-reload")
                run("systemctl", "reset-failed", *patterns["units"])
        found = [f"process {pid}: {command}" for pid, command in ours] + [f"unit {name}" for name in forgotten]
        found += temporary
        module.exit_json(changed=bool(found), leftovers=found, foreign=foreign, uid=uid)

    found = [f"process {pid}: {command}" for pid, _, command in running]
    found += [f"port {port}" for port in ports(uid)]
    found += [f"unit {name}: {state}" for name, state in units(patterns["units"])]
    found += [*unit_files(patterns["units"]), *present(patterns["paths"]), *temporary]
    found += [f"nftables table {name}" for name in tables(patterns["tables"])]
    found += accounts(given["user"])
    module.exit_json(changed=False, leftovers=found, foreign=foreign, uid=uid)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""The files and directories of a program, all in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: managed_files
short_description: Write several files and directories in one call
description:
  - Does for a list what M(ansible.builtin.copy) and M(ansible.builtin.file) do for one path, with check mode and diffs.
    Each of their calls costs a host a third of a second of its processor, most of it before anything is looked at.
  - What is as wanted is left alone. A new content takes the place of the old one at one stroke, with owner and mode.
options:
  files:
    description: In this order; a directory before what lies in it.
    type: list
    elements: dict
    required: true
    options:
      path: {type: path, required: true, description: Absolute.}
      content: {type: str, description: Text of the file. Without one the path is a directory.}
      owner: {type: str, description: "Name of the owner; without one, as it is or, if new, who runs this."}
      group: {type: str, description: "Name of the group, likewise."}
      mode: {type: str, required: true, description: "Octal, as C('0644')."}
      force: {type: bool, default: true, description: Whether another content is replaced; a missing file is made.}
      validate: {type: str, default: "", description: "Command that judges a new content first; %s is its path."}
  show:
    description: Whether the diff shows contents.
    type: bool
    default: true
notes:
  - A link to a directory is as good as one. Directories that are missing above one have its owner and mode.
  - Fails where something else than a file or directory is in the way, where the judge refuses, or where a user or group
    is missing. In check mode, where the run would have made these before, the path counts as changed.
author: Raymetal
"""
EXAMPLES = r"""
- name: Write what the service is started with
  managed_files:
    files:
      - {path: /etc/service, mode: "0750"}
      - {path: /etc/service/config, mode: "0640", content: "{{ lookup('ansible.builtin.template', 'config.j2') }}"}
  register: written
"""
RETURN = r"""
changed_paths:
  description: Paths that were written, or had another owner or mode; in check mode, those that would.
  type: list
  elements: str
  returned: success
"""

import grp
import os
import pwd
import shlex
import stat
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule


class Module(AnsibleModule):  # type: ignore[misc]  # Ansible is untyped
    """Does not log its call: contents would stand in the journal, for more readers than the files' modes allow."""

    def _log_invocation(self) -> None:
        """Nothing."""


def identity(entry: dict[str, Any], found: os.stat_result | None) -> tuple[int, int] | None:
    """Numbers of the wanted owner and group; None where one does not exist."""
    uid, gid = (found.st_uid, found.st_gid) if found else (os.geteuid(), os.getegid())
    try:
        return (
            pwd.getpwnam(entry["owner"]).pw_uid if entry["owner"] else uid,
            grp.getgrnam(entry["group"]).gr_gid if entry["group"] else gid,
        )
    except KeyError:
        return None


def apply(module: AnsibleModule, entry: dict[str, Any], show: bool) -> dict[str, Any] | None:
    """Make one path as wanted; return the diff, or None where it is so."""
    path, content, mode = entry["path"], entry["content"], int(entry["mode"], 8)
    try:
        found = os.stat(path) if content is None else os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        found = None
    wanted = identity(entry, found)
    if wanted is None and not module.check_mode:
        module.fail_json(msg=f"{path}: there is no user {entry['owner']} or no group {entry['group']}")
    if found and not (stat.S_ISDIR if content is None else stat.S_ISREG)(found.st_mode):
        module.fail_json(msg=f"{path}: something else is there than a {'directory' if content is None else 'file'}")
    before = ""
    if found and content is not None:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            before = file.read()
    write = not found or (content is not None and entry["force"] and before != content)
    if write and not module.check_mode:
        assert wanted is not None
        make(module, entry, mode, wanted)
    attributes = not write and found and (wanted != (found.st_uid, found.st_gid) or stat.S_IMODE(found.st_mode) != mode)
    if attributes and not module.check_mode:
        assert wanted is not None
        os.chown(path, *wanted)
        os.chmod(path, mode)
    if not write and not attributes:
        return None
    if content is None or not write:
        was = f"{found.st_uid}:{found.st_gid} {stat.S_IMODE(found.st_mode):04o}\n" if found else ""
        then = f"{wanted[0]}:{wanted[1]}" if wanted else f"{entry['owner'] or ''}:{entry['group'] or ''}"
        return {"before_header": path, "after_header": path, "before": was, "after": f"{then} {mode:04o}\n"}
    if not show:
        before, content = "", "(not shown)\n"
    return {"before_header": path, "after_header": path, "before": before, "after": content}


def make(module: AnsibleModule, entry: dict[str, Any], mode: int, wanted: tuple[int, int]) -> None:
    """Make a directory, or put a new content in place."""
    path, content = entry["path"], entry["content"]
    if content is None:
        missing = [path]
        while not os.path.exists(parent := os.path.dirname(missing[-1])):
            missing.append(parent)
        for folder in reversed(missing):  # whatever the umask is, never wider than wanted
            os.mkdir(folder, 0o700)
            os.chown(folder, *wanted)
            os.chmod(folder, mode)
        return
    handle, name = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path))
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.chown(name, *wanted)
        os.chmod(name, mode)
        if entry["validate"]:
            rc, out, err = module.run_command(
                [name if word == "%s" else word for word in shlex.split(entry["validate"])]
            )
            if rc:
                module.fail_json(msg=f"{path}: refused by {entry['validate']}: {(err or out).strip()}")
        os.replace(name, path)
    finally:
        if os.path.exists(name):
            os.unlink(name)


def main() -> None:
    options = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str"},
        "owner": {"type": "str"},
        "group": {"type": "str"},
        "mode": {"type": "str", "required": True},
        "force": {"type": "bool", "default": True},
        "validate": {"type": "str", "default": ""},
    }
    module = Module(
        {
            "files": {"type": "list", "elements": "dict", "required": True, "options": options},
            "show": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    changed: list[str] = []
    diffs: list[dict[str, Any]] = []
    for entry in module.params["files"]:
        try:
            diff = apply(module, entry, module.params["show"])
        except OSError as error:
            module.fail_json(msg=f"{entry['path']}: {error.strerror or error}", changed_paths=changed)
        if diff:
            changed.append(entry["path"])
            diffs.append(diff)
    module.exit_json(changed=bool(changed), changed_paths=changed, diff=diffs)


if __name__ == "__main__":
    main()

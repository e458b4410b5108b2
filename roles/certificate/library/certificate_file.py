#!/usr/bin/python
"""A host's certificate with its key and the authority, in one file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: certificate_file
short_description: See whether the host needs a certificate, ask for one, and put it in place
description:
  - Key, certificate and the authority's certificate are one file, so that no moment has a pair that does not match.
  - Without I(certificate) it looks, and where one is needed makes a key beside the file and a request for it. With
    I(certificate) it joins the two.
options:
  path: {description: The file., type: path, required: true}
  names: {description: Names and addresses that it is for., type: list, elements: str, required: true}
  authority: {description: The authority's certificate. Empty in a dry run., type: str, required: true}
  renew_days: {description: It is renewed when fewer days are left., type: int, default: 60}
  certificate: {description: What the authority signed., type: str}
  owner: {description: Owner of the file., type: str, default: root}
  group: {description: Group of the file., type: str, default: root}
  mode: {description: Mode of the file., type: str, default: "0600"}
author: Raymetal
"""
EXAMPLES = r"""
- name: Ask
  certificate_file:
    path: /etc/raymetal/tls/gateway.pem
    names: [gate1]
    authority: "{{ known.authority }}"
"""
RETURN = r"""
needed: {description: Why a certificate is needed; empty if the one that is there will do., type: str, returned: always}
request: {description: The signing request; empty in a dry run., type: str, returned: when needed}
"""

import grp
import os
import pwd
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.certificate_openssl import (
    Problem,
    certified_key,
    certified_names,
    ends_within,
    new_key,
    openssl,
    public_key,
    san,
    scratch,
    signed_by,
    write,
)


def lacking(path: Path, names: list[str], authority: str, renew_days: int) -> str:
    """Why the file will not do, or nothing."""
    if not path.exists():
        return "there is none"
    if not authority:
        return "the authority is new"
    text = path.read_text()
    try:
        if public_key(text) != certified_key(text):
            return "key and certificate are no pair"
        if certified_names(text) != san(names):
            return f"it is for {', '.join(certified_names(text))}"
        if ends_within(text, renew_days):
            return f"it ends in less than {renew_days} days"
    except Problem as problem:
        return f"it cannot be read: {problem}"
    wrong: str = signed_by(text, authority)
    return wrong or ("" if authority.strip() in text else "the authority is another")


def ask(pending: Path, name: str) -> str:
    """Make a key, keep it beside the file, and return the request for it."""
    pending.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write(pending, new_key(), 0o600)
    with scratch("[req]\nprompt = no\ndistinguished_name = name\n[name]\nCN = " + name[:64]) as (config,):
        request: str = openssl("req", "-new", "-config", config, "-key", str(pending))
    return request


def join(path: Path, pending: Path, certificate: str, authority: str, mode: int, ids: tuple[int, int]) -> None:
    key = pending.read_text()
    if public_key(key) != certified_key(certificate):
        raise Problem("the signed certificate is for another key. To do: run again, one run at a time")
    if wrong := signed_by(certificate, authority):
        raise Problem(f"the new certificate is not good here: {wrong}. To do: compare the clocks of both hosts")
    write(path, key + certificate + authority, mode, *ids)
    pending.unlink()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "authority": {"type": "str", "required": True},
            "renew_days": {"type": "int", "default": 60},
            "certificate": {"type": "str"},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0600"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    given = module.params
    path, authority = Path(given["path"]), given["authority"]
    pending = path.with_name(f".{path.name}.key")
    result = {"needed": "", "request": ""}
    try:
        if given["certificate"]:
            ids = pwd.getpwnam(given["owner"]).pw_uid, grp.getgrnam(given["group"]).gr_gid
            if not module.check_mode:
                join(path, pending, given["certificate"], authority, int(given["mode"], 8), ids)
            module.exit_json(changed=True, **result)
        result["needed"] = lacking(path, given["names"], authority, given["renew_days"])
        if result["needed"] and not module.check_mode:
            result["request"] = ask(pending, given["names"][0])
    except KeyError as error:
        module.fail_json(msg=f"there is no such user or group: {error}. To do: create it first, or name another")
    except (Problem, OSError) as problem:
        module.fail_json(msg=str(problem))
    module.exit_json(changed=bool(result["needed"]), **result)


if __name__ == "__main__":
    main()

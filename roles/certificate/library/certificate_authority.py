#!/usr/bin/python
"""The cluster's own certificate authority."""

from __future__ import annotations

DOCUMENTATION = r"""
module: certificate_authority
short_description: Keep an authority on this host, and sign with it
description:
  - Makes a key (0600) and a certificate (0644) where there is none; the key never leaves the host.
  - With I(request) it signs that key for I(names), whatever names the request itself has.
options:
  directory: {description: Where key and certificate lie., type: path, required: true}
  common_name: {description: Name of a new authority., type: str}
  authority_days: {description: How long a new authority lasts., type: int, default: 3650}
  request: {description: A signing request., type: str}
  names: {description: Names and addresses that the certificate is for., type: list, elements: str}
  days: {description: How long the certificate lasts., type: int, default: 365}
author: Raymetal
"""
EXAMPLES = r"""
- name: Sign
  certificate_authority:
    directory: /etc/raymetal/authority
    request: "{{ asked.request }}"
    names: [gate1, 192.0.2.9]
"""
RETURN = r"""
authority: {description: The authority's certificate. In a dry run empty for a new one., type: str, returned: always}
certificate: {description: The certificate., type: str, returned: with request}
"""

import os
import secrets
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.certificate_openssl import (
    Problem,
    certified_key,
    ends_within,
    new_key,
    openssl,
    public_key,
    san,
    scratch,
    write,
)

AUTHORITY = """\
[req]
prompt = no
distinguished_name = name
x509_extensions = ca
[name]
CN = {name}
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""
LEAF = """\
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


def ensure(directory: Path, name: str, days: int, dry: bool) -> tuple[str, bool]:
    """The authority's certificate, and whether it was made. The key comes first: an interrupted run is finished."""
    key, certificate = directory / "ca.key", directory / "ca.pem"
    if key.exists() and certificate.exists():
        text = certificate.read_text()
        if public_key(key.read_text()) != certified_key(text):
            raise Problem(f"{key} and {certificate} are no pair. To do: put back the right one, or remove both")
        if ends_within(text, 0):
            raise Problem(f"the authority {certificate} has ended. To do: remove {directory}; clients need the new one")
        return text, False
    if certificate.exists():
        raise Problem(f"{certificate} is there without its key. To do: put {key} back, or remove {directory}")
    if dry:
        return "", True
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not key.exists():
        write(key, new_key(), 0o600)
    with scratch(AUTHORITY.format(name=name)) as (config,):
        text = openssl("req", "-x509", "-new", "-config", config, "-key", str(key), "-days", str(days))
    write(certificate, text, 0o644)
    return text, True


def sign(directory: Path, request: str, names: list[str], days: int) -> str:
    with scratch(LEAF.format(names=", ".join(san(names))), request) as (extensions, path):
        signed: str = openssl(
            *("x509", "-req", "-in", path, "-CA", str(directory / "ca.pem"), "-CAkey", str(directory / "ca.key")),
            *("-set_serial", f"0x{secrets.randbits(127):x}", "-days", str(days), "-extfile", extensions),
        )
    return signed


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "common_name": {"type": "str"},
            "authority_days": {"type": "int", "default": 3650},
            "request": {"type": "str"},
            "names": {"type": "list", "elements": "str"},
            "days": {"type": "int", "default": 365},
        },
        required_together=[("request", "names")],
        supports_check_mode=True,
    )
    os.umask(0o022)
    given = module.params
    directory = Path(given["directory"])
    try:
        name = given["common_name"] or "Raymetal"
        text, changed = ensure(directory, name, given["authority_days"], module.check_mode)
        result = {"authority": text}
        if given["request"] and not module.check_mode:
            result["certificate"] = sign(directory, given["request"], given["names"], given["days"])
    except (Problem, OSError) as problem:
        module.fail_json(msg=str(problem))
    module.exit_json(changed=changed, **result)


if __name__ == "__main__":
    main()

"""Certificates by the program openssl: what one is, and files that are whole or not there. Python 3.9."""

from __future__ import annotations

import ipaddress
import os
import re
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator  # noqa: UP035 - the hosts' Python

DAY_SECONDS = 86400


class Problem(Exception):
    """What could not be done, for the operator."""


def openssl(*arguments: str, text: str = "", accept: tuple[int, ...] = (0,)) -> str:
    """What openssl writes. Keys come by standard input or file, never as an argument. Raises Problem."""
    try:
        done = subprocess.run(["openssl", *arguments], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Problem("the program openssl is missing. To do: apt-get install openssl") from error
    if done.returncode not in accept:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Problem(f"openssl {arguments[0]}: {' / '.join(lines[-4:])}")
    return done.stdout


def new_key() -> str:
    return openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


def public_key(pem: str) -> str:
    """The public key of the private key in a PEM text."""
    return openssl("pkey", "-pubout", text=pem)


def certified_key(pem: str) -> str:
    """The public key of the first certificate in a PEM text."""
    return openssl("x509", "-noout", "-pubkey", text=pem)


def ends_within(pem: str, days: int) -> bool:
    """Whether the first certificate ends in so many days, or has ended."""
    return "will expire" in openssl("x509", "-noout", "-checkend", str(days * DAY_SECONDS), text=pem, accept=(0, 1))


def san(names: list[str]) -> list[str]:
    """Names and addresses as an extension has them, sorted: ``DNS:a``, ``IP:192.0.2.1``."""
    found = set()
    for name in names:
        try:
            found.add(f"IP:{ipaddress.ip_address(name)}")
        except ValueError:
            found.add(f"DNS:{name}")
    return sorted(found)


def certified_names(pem: str) -> list[str]:
    """The names of the first certificate in a PEM text, as ``san`` writes them."""
    text = openssl("x509", "-noout", "-ext", "subjectAltName", text=pem)
    return san(re.findall(r"(?:DNS|IP Address):([^,\s]+)", text))


@contextmanager
def scratch(*texts: str) -> Iterator[list[str]]:
    """Files with these texts, for the time of the block, that only their owner can read."""
    with tempfile.TemporaryDirectory(prefix="raymetal-certificate-") as directory:
        paths = []
        for number, text in enumerate(texts):
            path = Path(directory, str(number))
            path.write_text(text)
            paths.append(str(path))
        yield paths


def signed_by(pem: str, authority: str) -> str:
    """Empty if the first certificate is the authority's and its time is now, else what openssl says."""
    with scratch(authority, pem) as (roots, path):
        done = subprocess.run(
            ["openssl", "verify", "-no-CApath", "-no-CAstore", "-CAfile", roots, path],
            capture_output=True,
            text=True,
            check=False,
        )
    return "" if done.returncode == 0 else " / ".join(re.findall(r"error \d+ .*", done.stderr)) or "it does not verify"


def write(path: Path, text: str, mode: int, owner: int = -1, group: int = -1) -> None:
    """Replace a file at one stroke; nobody else can read it at any time. What an interruption left is overwritten."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chown(new, owner, group)
    os.chmod(new, mode)
    os.replace(new, path)

"""Relations between the inputs of conda."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

PLATFORMS = ("linux-64", "noarch")
PASSWORD = re.compile(r"://[^/@\s]+@|/t/[^/\s]+/")  # user:password@, and conda's way of a token in the path
LOCKED = re.compile(r"\w+://\S+/(?P<subdir>[\w-]+)/(?P<file>[^/#\s]+\.(?:conda|tar\.bz2))(?:#(?P<hash>\S*))?")
HASH = re.compile(r"[0-9a-f]{32}|(?:sha256:)?[0-9a-f]{64}")


def hidden(text: str) -> str:
    """``text`` without the secrets of the addresses in it."""
    return re.sub(r"/t/[^/\s]+/", "/t/***/", re.sub(r"://[^/@\s]+@", "://***@", text))


def conda_is_address(installer: str) -> bool:
    """Whether ``installer`` is an address and not a path on the controller."""
    return bool(re.match(r"(https?|file)://", installer))


def conda_addresses(lock: str, alias: str, packages: str = "") -> str:
    """An explicit lock with the addresses of a mirror, or of the directory ``packages`` (by platform) on the hosts."""
    if packages:
        return re.sub(r"(?m)^\w+://\S+/([\w-]+/[^/#\s]+)(?=#)", rf"file://{packages}/\1", lock)
    return lock.replace("https://conda.anaconda.org/", f"{alias}/")


def conda_packages(lock: str) -> list[dict[str, str]]:
    """The packages of an explicit lock: url, path (`<platform>/<file>`), checksum (`sha256:…` or `md5:…`)."""
    found = []
    for line in lock.splitlines():
        if match := LOCKED.fullmatch(line.strip()):
            digest = (match["hash"] or "").removeprefix("sha256:")
            checksum = f"{'md5' if len(digest) == 32 else 'sha256'}:{digest}"
            url = line.strip().partition("#")[0]
            found.append({"url": url, "path": f"{match['subdir']}/{match['file']}", "checksum": checksum})
    return found


def lock_problem(text: str, python: str) -> tuple[str, str] | None:
    """The first problem of an explicit lock and what to do, for Python of the minor version ``python``."""
    lines = [line.strip() for line in text.splitlines()]
    packages = [line for line in lines if line and not line.startswith(("#", "@"))]
    renew = "make it by `conda list --explicit --sha256` (docs/install.md)"
    if "@EXPLICIT" not in lines:
        return "is no explicit lock: it has no line @EXPLICIT", renew
    for line in packages:
        found = LOCKED.fullmatch(line)
        if not found:
            return f"has a line that is no package's address: {hidden(line)}", renew
        if PASSWORD.search(line):
            return f"carries a password, which lands on every host: {hidden(line)}", "leave it out"
        if not HASH.fullmatch(found["hash"] or ""):
            return f"has no hash for {found['file']}", renew
        if found["subdir"] not in PLATFORMS:
            return f"is for {found['subdir']}, and the hosts are {PLATFORMS[0]}", "make it on a host like these"
    if not any(re.search(rf"/python-{re.escape(python)}\.[^-/]*-[^/]*$", line.partition("#")[0]) for line in packages):
        return f"has no Python {python}, for which the pip lock is made", f"make it with python={python}"
    return None


def conda_problems(values: dict[str, Any], python: str) -> list[dict[str, Any]]:
    """Problems of ``values`` (the role's variables by name), for Python of the minor version ``python``."""
    found = []

    def add(variable: str, problem: str, do: str, value: Any = None) -> None:
        shown = hidden(str(values[variable] if value is None else value))
        found.append({"variable": variable, "value": shown, "problem": problem, "do": do})

    channels = values["conda_channels"]
    if not channels:
        add("conda_channels", "names no channel", "name one, for instance conda-forge")
    for channel in channels:
        if channel == "defaults" or "repo.anaconda.com" in channel:
            do = "name conda-forge, or a mirror that you may use"
            add("conda_channels", "Anaconda's own channels need a licence in most organisations", do, channel)
        elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)*|(https?|file)://\S+", channel):
            do = "write a name, for instance conda-forge, or an http(s):// or file:// address"
            add("conda_channels", "is neither a channel's name nor its address", do, channel)
    if not re.fullmatch(r"(https?|file)://\S+", values["conda_channel_alias"]):
        do = "write the address above the channels, for instance https://conda.anaconda.org"
        add("conda_channel_alias", "is no http(s):// or file:// address", do)
    for variable in ("conda_channels", "conda_channel_alias", "conda_installer"):
        for address in [values[variable]] if isinstance(values[variable], str) else values[variable]:
            if PASSWORD.search(address):
                problem = "carries a password, which the process list of every host would show during the install"
                do = "leave it out and give it to root on the hosts in /root/.netrc, mode 0600"
                add(variable, problem, do, address)
    if not re.fullmatch(rf"{re.escape(python)}(\.\d+)?", str(values["conda_python_version"])):
        problem = f"is no Python {python}, for which the pip lock is made"
        add("conda_python_version", problem, f"write {python} or {python}.x")
    if values["conda_lock"]:
        if not Path(values["conda_lock"]).is_file():
            add("conda_lock", "is no file on the controller", "correct the path, or empty the variable")
        elif wrong := lock_problem(Path(values["conda_lock"]).read_text(), python):
            add("conda_lock", *wrong)
    if values["conda_backend"] == "miniforge":
        installer, digest = values["conda_installer"], values["conda_installer_sha256"]
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            do = "write the 64 digits that stand beside the installer where it is published"
            add("conda_installer_sha256", "is no SHA-256", do)
        elif conda_is_address(installer):
            pass
        elif not Path(installer).is_file():
            do = "correct the path; a file on the hosts is file:///path"
            add("conda_installer", "is neither an address nor a file on the controller", do)
        elif hashlib.sha256(Path(installer).read_bytes()).hexdigest() != digest:
            do = "fetch it again, or set conda_installer_sha256 to what its publisher says"
            add("conda_installer", "has another SHA-256 than conda_installer_sha256", do)
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "conda_problems": conda_problems,
            "conda_is_address": conda_is_address,
            "conda_addresses": conda_addresses,
            "conda_packages": conda_packages,
        }

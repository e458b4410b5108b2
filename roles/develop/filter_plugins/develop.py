"""What an application's directory holds, what of it a host lacks, and the Serve configuration of a built one."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def develop_files(source: str, exclude: Sequence[str]) -> dict[str, Any]:
    """``files``: name -> SHA-256 of what is brought; ``left_out``, ``keys`` (hold a private key), ``bytes``."""
    found: dict[str, Any] = {"files": {}, "left_out": [], "keys": [], "bytes": 0}
    root = Path(source)
    for folder, folders, names in os.walk(root) if source else []:
        here = Path(folder)
        out = [name for name in folders + names if any(fnmatch(name, pattern) for pattern in exclude)]
        out += [name for name in folders + names if name not in out and (here / name).is_symlink()]
        folders[:] = sorted(set(folders) - set(out))
        found["left_out"] += [str((here / name).relative_to(root)) for name in sorted(out)]
        for name in sorted(set(names) - set(out)):
            content = (here / name).read_bytes()
            relative = str((here / name).relative_to(root))
            found["files"][relative] = hashlib.sha256(content).hexdigest()
            found["bytes"] += len(content)
            if PRIVATE_KEY.search(content):
                found["keys"].append(relative)
    return found


def develop_changes(files: Mapping[str, str], there: Sequence[Mapping[str, Any]], path: str) -> dict[str, list[str]]:
    """What to ``bring`` to ``path`` and what to ``remove`` there; ``there`` is what `find` saw, ``folders`` are new."""
    has = {os.path.relpath(item["path"], path): item["checksum"] for item in there}
    bring = sorted(name for name, digest in files.items() if has.get(name) != digest)
    folders = {str(folder) for name in bring for folder in Path(name).parents} - {"."}
    return {"bring": bring, "remove": sorted(has.keys() - files.keys()), "folders": sorted(folders)}


def develop_problems(values: Mapping[str, Any], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Problems of the role's variables, each with variable, value, problem and do."""
    told: list[dict[str, Any]] = []

    def tell(variable: str, problem: str, do: str) -> None:
        told.append({"variable": variable, "value": values[variable], "problem": problem, "do": do})

    if not values["develop_source"] or not Path(values["develop_source"]).is_dir():
        tell("develop_source", "is no directory on the controller", "name that of the application, -e develop_source=…")
    elif not found["files"]:
        tell("develop_source", "holds no file that is to be brought", "see develop_exclude")
    if found["keys"]:
        text = f"has a private key in {', '.join(found['keys'])}"
        tell("develop_source", text, "take it out: what is brought can be read by every application")
    if found["bytes"] > int(values["develop_max_mib"]) * 1024**2:
        text = f"is larger than develop_max_mib: {found['bytes'] / 1024**2:.0f} MiB"
        tell("develop_source", text, "leave out what is no code (develop_exclude); models are staged by model_store")
    if values["develop_source"] and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", values["develop_name"]):
        tell("develop_name", "is no name", "write letters, digits, dots, dashes and underscores")
    if values["develop_build"] and not re.fullmatch(r"[\w.]+:\w+", values["develop_build"]):
        tell("develop_build", "is not module:name", "write it like deepseek:llm_app")
    run = [word for word in values["develop_command"] if word == "serve" or word.endswith("/serve")]
    if run and "run" in values["develop_command"] and "--non-blocking" not in values["develop_command"]:
        text = "`serve run` would wait for ever, and shut Serve down at its end"
        tell("develop_command", text, "add --non-blocking; to reload as you write see docs/develop.md")
    return told


def develop_application(
    built: Mapping[str, Any], name: str, route_prefix: str, directory: str, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """The one application that `serve build` wrote, under its own name and with its code; ports are the inventory's."""
    (application,) = built["applications"]
    runtime_env: dict[str, Any] = {"working_dir": f"local://{directory}"}
    if environment:
        runtime_env["env_vars"] = {key: str(value) for key, value in environment.items()}
    return {"applications": [{**application, "name": name, "route_prefix": route_prefix, "runtime_env": runtime_env}]}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "develop_files": develop_files,
            "develop_changes": develop_changes,
            "develop_problems": develop_problems,
            "develop_application": develop_application,
        }

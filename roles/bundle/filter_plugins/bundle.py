"""What a bundle holds, and what of it the hosts lack."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def bundle_model_names(models: list[dict[str, Any]]) -> list[str]:
    """`name/revision` of the models that a bundle holds: those that do not lie on the hosts anyway."""
    return sorted({f"{model['name']}/{model['revision']}" for model in models if not model.get("host_path")})


def bundle_problems(bundle: str, wanted: dict[str, Any], source: str, destination: str = "") -> list[dict[str, Any]]:
    """Problems of the directory ``bundle`` for hosts that want what ``wanted`` (the record of such a bundle) says.

    ``source``: where Python comes from; ``destination``: the directory that is to be filled, if one is.
    """
    found: list[dict[str, Any]] = []

    def add(problem: str, do: str, variable: str = "bundle_path", value: str = bundle) -> None:
        found.append({"variable": variable, "value": value, "problem": problem, "do": do})

    if (bundle or destination) and source == "managed":
        do = "set it to host or conda"
        add("uv's builds of Python are not in a bundle", do, "python_env_python_source", source)
    if (bundle or destination) and source == "conda" and not wanted["conda"]:
        do = "make one as docs/install.md says"
        add("is no file, and a bundle holds the packages of a lock", do, "conda_lock", "")
    if not bundle:
        return found
    again = "run `make bundle` on a machine with internet, and copy it here"
    if not Path(bundle).is_absolute():
        add("is no absolute path", "write it from the root")
        return found
    try:
        record = json.loads((Path(bundle) / "bundle.json").read_text())
        (Path(bundle) / "SHA256SUMS").read_text()
    except (OSError, ValueError) as error:
        add(f"is no bundle, or an unfinished one: {error}", again)
        return found
    if record.get("format") != wanted["format"]:
        add(f"has format {record.get('format')}, and this version reads {wanted['format']}", again)
        return found
    for key in ("variant", "python", "platform", "lock", "tools", "conda"):
        has, want = (str(of.get(key) or "nothing")[:16] for of in (record, wanted))
        if record.get(key, "") != wanted[key]:
            add(f"was made for {key} {has}, and {want} is wanted", again)
    for model in sorted(set(wanted["models"]) - set(record.get("models", []))):
        add(f"has no model {model}", again)
    return found


def bundle_lacks(host: Mapping[str, Any]) -> dict[str, Any]:
    """What a host lacks, from its variables: whether it ``builds`` an environment, its ``models`` (`name/revision`)."""
    paths = host["ansible_facts"]["gpu_host"]["paths"]
    root = host["model_store_root"]
    models = [name for name in bundle_model_names(host["model_store_models"]) if not paths[f"{root}/{name}"]["exists"]]
    return {"builds": host["python_env_part"]["builds"], "models": models}


def bundle_wanted(bundle: str, lacks: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of the bundle's sums for what the hosts lack."""
    folders = set()
    for host in lacks:
        folders |= {f"{kind}/{model}/" for model in host["models"] for kind in ("models", "packages")}
        folders |= {"wheels/", "conda/"} if host["builds"] else set()
    lines = (Path(bundle) / "SHA256SUMS").read_text().splitlines() if folders else []
    return [line for line in lines if line[66:].startswith(tuple(folders))]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "bundle_model_names": bundle_model_names,
            "bundle_problems": bundle_problems,
            "bundle_lacks": bundle_lacks,
            "bundle_wanted": bundle_wanted,
        }

"""Relations between the inputs of model_store."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

SOURCES = ("host_path", "controller_path", "package")


def model_store_problems(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Problems of the models: names, sources, and what the controller can see of them."""
    found = []

    def add(index: int, key: str, value: Any, problem: str, do: str) -> None:
        variable = f"model_store_models[{index}]{key}"
        found.append({"variable": variable, "value": value, "problem": problem, "do": do})

    counts = Counter(model["name"] for model in models)
    for index, model in enumerate(models):
        if counts[model["name"]] > 1:
            add(index, ".name", model["name"], "another model has the same name", "give each its own")
        for key in ("name", "revision"):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(model[key])):
                add(index, f".{key}", model[key], "is no directory name", "use letters, digits, dot, dash, underscore")
        given = [source for source in SOURCES if model.get(source)]
        if len(given) != 1:
            do = "give exactly one of " + ", ".join(SOURCES)
            add(index, "", model["name"], f"has {len(given)} sources", do)
            continue
        if given == ["host_path"] and not str(model["host_path"]).startswith("/"):
            add(index, ".host_path", model["host_path"], "is no absolute path", "write it from the root")
        if given == ["controller_path"]:
            path = Path(model["controller_path"])
            if not path.is_dir():
                add(index, ".controller_path", str(path), "is no directory on the controller", "correct the path")
            elif not (path / "config.json").is_file():
                add(
                    index,
                    ".controller_path",
                    str(path),
                    "has no config.json: no model that vLLM loads",
                    "correct the path",
                )
        if given == ["package"] and not Path(model["package"]["requirements"]).is_file():
            value = model["package"]["requirements"]
            add(index, ".package.requirements", value, "is no file on the controller", "correct the path")
    return found


def model_store_unequal(hosts: dict[str, dict[str, str]]) -> list[str]:
    """Models (`name/revision`) whose digest is not the same on all hosts that hold them, one sentence each."""
    found = []
    for model in sorted({model for digests in hosts.values() for model in digests}):
        holders: dict[str, list[str]] = {}
        for host, digests in hosts.items():
            if digests.get(model):
                holders.setdefault(digests[model], []).append(host)
        if len(holders) > 1:
            groups = "; ".join(f"{', '.join(names)}: {digest[:12]}" for digest, names in holders.items())
            do = "remove it where it is wrong, with its .manifest.json, and run --tags models"
            found.append(f"model_store_models: {model} differs between hosts: {groups}. To do: {do}")
    return found


def model_store_named(config: Any, root: str) -> list[str]:
    """Model directories below ``root`` that a Serve configuration names anywhere in it."""
    if isinstance(config, dict):
        return sorted({path for value in config.values() for path in model_store_named(value, root)})
    if isinstance(config, (list, tuple)):
        return sorted({path for value in config for path in model_store_named(value, root)})
    found = re.match(rf"{re.escape(root.rstrip('/'))}/[^/\s]+/[^/\s]+", config) if isinstance(config, str) else None
    return [found[0]] if found else []


def model_store_of_host(
    paths: list[str], root: str, models: list[dict[str, Any]], everywhere: list[list[dict[str, Any]]]
) -> list[str]:
    """Of the model directories those that must be on a host, in whatever revision.

    Those of its own ``models``, and those of models that no host (``everywhere``: the models of each) names any more.
    """
    own, *all_of_them = ({f"{root.rstrip('/')}/{m['name']}" for m in found} for found in (models, *everywhere))
    known = own.union(*all_of_them)
    return [path for path in paths if path.rpartition("/")[0] in own or path.rpartition("/")[0] not in known]


def model_store_removable(manifests: list[dict[str, Any]], needed: list[str], keep: int) -> list[str]:
    """Staged revisions that may go: not ``needed``, and not among the ``keep`` newest of the others of their model.

    ``manifests`` are results of ansible.builtin.find; a manifest is as old as its revision was staged.
    """
    spare: dict[str, list[tuple[float, str]]] = {}
    for manifest in manifests:
        path = manifest["path"].removesuffix(".manifest.json")
        if path not in needed:
            spare.setdefault(path.rpartition("/")[0], []).append((float(manifest["mtime"]), path))
    return sorted(path for found in spare.values() for _, path in sorted(found, reverse=True)[keep:])


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "model_store_problems": model_store_problems,
            "model_store_unequal": model_store_unequal,
            "model_store_named": model_store_named,
            "model_store_of_host": model_store_of_host,
            "model_store_removable": model_store_removable,
        }

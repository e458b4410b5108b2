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


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"model_store_problems": model_store_problems}

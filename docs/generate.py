#!/usr/bin/env python3
"""Write docs/reference.md: every variable, from the roles' argument specs, defaults and the shared group_vars.

    docs/generate.py            write it
    docs/generate.py --check    exit 1 if it is not what would be written, change nothing

Needs PyYAML, which the control environment has.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"
DEFAULT_LENGTH_MAX = 70  # a longer one is an expression that the file shows better
SETTING = re.compile(r"([a-z]\w*):\s*(.*?)(?:\s+#\s+(.*))?$")
INTRODUCTION = """\
# Variables

Made by `docs/generate.py` from `roles/*/meta/argument_specs.yml`, `roles/*/defaults/main.yml` and `group_vars/all/`; do
not edit. `inventories/example` shows the same as a commented inventory. The types are Ansible's; the unit is part of
the name where there is one. A default marked *shared* stands in `group_vars/all/`, all others in the role; all are
overridden in the inventory, except what a playbook passes to a role: nodes, runs, environment and questions of
ray_health follow from the inventory and from `cluster_health_*`.
"""
Row = tuple[str, str, str, str]


def load(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, empty where there is no file."""
    return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def cell(text: str) -> str:
    """Return text for one cell of a Markdown table: one line, Ansible's C(x) as code."""
    return " ".join(re.sub(r"[CV]\(([^)]*)\)", r"`\1`", text).split()).replace("|", "\\|")


def shown(value: Any) -> str:
    """Return a value as YAML on one line, or where to look for it."""
    text = " ".join(str(value).split()) if isinstance(value, str) else one_line(value)
    if len(text) > DEFAULT_LENGTH_MAX:
        return "computed"
    return f"`{text}`" if text else '`""`'


def one_line(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def rows(options: dict[str, Any], defaults: dict[str, Any], shared: dict[str, Any], prefix: str = "") -> Iterator[Row]:
    """Yield (variable, type, default, description) of each option and of those nested in it."""
    for name, option in options.items():
        kind = option.get("type", "str")
        if kind == "list" and "elements" in option:
            kind = f"list of {option['elements']}"
        if "choices" in option:
            kind += ": " + ", ".join(map(str, option["choices"]))
        if not prefix and name in defaults:
            default = shown(defaults[name])
        elif not prefix and name in shared:
            default = f"{shown(shared[name])} (*shared*)"
        elif "default" in option:
            default = shown(option["default"])
        else:
            default = "**required**" if option.get("required") else ""
        description = option.get("description", "")
        yield prefix + name, kind, default, " ".join(description) if isinstance(description, list) else description
        inner = f"{prefix}{name}[]." if kind.startswith("list") else f"{prefix}{name}."
        yield from rows(option.get("options", {}), {}, {}, inner)


def role_section(role: Path, shared: dict[str, Any]) -> str:
    spec = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]
    text = spec.get("description", "")
    lines = [f"## {role.name}", "", spec["short_description"].rstrip(".") + "."]
    lines += (
        ["", re.sub(r"[CV]\(([^)]*)\)", r"`\1`", " ".join(text) if isinstance(text, list) else text)] if text else []
    )
    lines += ["", "| Variable | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in rows(spec["options"], load(role / "defaults" / "main.yml"), shared):
        lines.append(f"| `{name}` | {cell(kind)} | {cell(default)} | {cell(meaning)} |")
    return "\n".join(lines)


def shared_section(files: list[Path], owned: set[str]) -> str:
    """Return the table of the shared variables that belong to no role, with the comment beside or right above each."""
    lines = ["## Shared", "", "| Variable | Default | Meaning |", "|---|---|---|"]
    for path in files:
        values, comments, above = load(path), list[str](), False
        for line in path.read_text().splitlines():
            if line.startswith("#"):
                comments = [*(comments if above else []), line.lstrip("# ")]
                above = True
                continue
            above = False
            if (found := SETTING.match(line)) and found[1] in values and found[1] not in owned:
                meaning = found[3] or " ".join(comments)
                lines.append(f"| `{found[1]}` | {cell(shown(values[found[1]]))} | {cell(meaning)} |")
            # A comment speaks for all lines below it, up to a blank one or one with its own.
            if not line or (found and found[3]):
                comments = []
    return "\n".join(lines)


def page() -> str:
    """Return the whole page."""
    files = sorted((ROOT / "group_vars" / "all").glob("*.yml"))
    shared: dict[str, Any] = {}
    for path in files:
        shared |= load(path)
    roles = [path.parent.parent for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml"))]
    owned = {
        name
        for role in roles
        for name in load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    }
    sections = [INTRODUCTION.rstrip(), shared_section(files, owned), *(role_section(role, shared) for role in roles)]
    return "\n\n".join(sections) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Write docs/reference.md from the argument specs.")
    parser.add_argument("--check", action="store_true", help="exit 1 if the page is out of date, change nothing")
    check = parser.parse_args(arguments).check
    text = page()
    if not check:
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        print("docs/reference.md is out of date. To do: run docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

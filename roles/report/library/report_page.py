#!/usr/bin/python
"""Write the report of a cluster: one HTML page, and what it is made of beside it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: report_page
short_description: Write the report of a cluster as one HTML page that needs nothing else
description:
  - Runs on the controller. Keeps what runs told of the cluster in C(cluster.json) and of load tests in C(load_tests/),
    and makes C(index.html) of these files. What has not changed is not written.
  - A report that cannot be written is a warning, no failure.
options:
  path:
    description: Directory of the report.
    type: path
    required: true
  template:
    description: The page as a Jinja2 template.
    type: path
    required: true
  cluster:
    description: What the run knows of the cluster, see roles/report/vars/main.yml. Empty - what an earlier run told.
    type: dict
    default: {}
  lock:
    description: The lock that the hosts install from.
    type: path
  load_tests:
    description: Directories of finished load tests; those that are not there are left out.
    type: list
    elements: path
    default: []
  load_test:
    description: What the reports of the load tests do not say - url, model, path.
    type: dict
    default: {}
author: Raymetal
"""
EXAMPLES = r"""
- name: Add a load test to the report
  report_page:
    path: reports/prod
    template: roles/report/templates/page.html.j2
    load_tests: [.cache/load_test/20261128T100000Z-load1]
"""
RETURN = r"""
page:
  description: The page.
  type: str
  returned: when it is there
"""

import fcntl
import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

from ansible.module_utils import report_changes, report_facts, report_load
from ansible.module_utils.basic import AnsibleModule

KEPT = 10  # load tests


def write(path: Path, text: str, check: bool) -> bool:
    """Whether ``path`` had another content; it has this one then, or in a dry run would have."""
    if path.is_file() and path.read_text() == text:
        return False
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(text)
        os.replace(new, path)
    return True


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def remember(folder: Path, stable: dict[str, Any], seen: dict[str, Any], check: bool) -> dict[str, Any]:
    """What the page is to say of the cluster: what is written, where nothing but times is new."""
    file = folder / "cluster.json"
    try:
        written: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        written = {}
    if written.get("stable") == json.loads(json.dumps(stable)):
        return written
    found = {"stable": stable, "seen": {**seen, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}}
    write(file, as_json(found), check)
    return found


def add_tests(folder: Path, params: dict[str, Any], check: bool) -> None:
    for run in map(Path, params["load_tests"]):
        if (run / "summary.json").is_file():
            with (run / "requests.jsonl").open() as lines:
                found = report_load.series(json.loads(line) for line in lines)
            told = {"run": run.name, **params["load_test"], "summary": json.loads((run / "summary.json").read_text())}
            write(folder / f"{run.name}.json", as_json(report_facts.masked({**told, "series": found})), check)
    if not check:
        for old in sorted(folder.glob("*.json"), reverse=True)[KEPT:]:
            old.unlink()


def plotter() -> tuple[Any, str]:
    """The plots' module, or why there are none."""
    try:
        from ansible.module_utils import report_plots
    except ImportError as error:
        return None, f"the report has no plots: {error}. To do: make setup"
    return report_plots, ""


def render(template: Path, cluster: dict[str, Any], tests: list[dict[str, Any]], plots: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(template.parent)
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters["utc"] = lambda at: f"{at[:10]} {at[11:19]} UTC"
    changes = report_changes.changes(cluster["stable"]["changes"] if cluster else [], tests)
    return jinja.get_template(template.name).render(
        cluster=cluster.get("stable"), seen=cluster.get("seen"), changes=changes, tests=tests, plots=plots
    )


def report(params: dict[str, Any], check: bool) -> tuple[bool, list[str]]:
    """Whether the page is another one now, and warnings."""
    folder = Path(params["path"]).resolve()
    cluster: dict[str, Any] = {}
    if params["cluster"]:
        stable, seen = report_facts.cluster(params["cluster"], Path(params["lock"]).read_text())
        cluster = remember(folder, stable, seen, check)
    elif (folder / "cluster.json").is_file():
        cluster = json.loads((folder / "cluster.json").read_text())
    add_tests(folder / "load_tests", params, check)
    files = sorted((folder / "load_tests").glob("*.json"), reverse=True)
    tests = [json.loads(file.read_text()) for file in files]
    plots, warning = plotter()
    changed = write(folder / "index.html", render(Path(params["template"]), cluster, tests, plots), check)
    return changed, [warning] if warning else []


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "template": {"type": "path", "required": True},
            "cluster": {"type": "dict", "default": {}},
            "lock": {"type": "path"},
            "load_tests": {"type": "list", "elements": "path", "default": []},
            "load_test": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        if module.check_mode:
            changed, warnings = report(params, True)
        else:
            Path(params["path"]).mkdir(parents=True, exist_ok=True)
            # A load test may end while an upgrade goes on.
            with (Path(params["path"]) / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                changed, warnings = report(params, False)
    except Exception as error:  # noqa: BLE001 (whatever it is, it must not end the run of a cluster)
        where = traceback.extract_tb(error.__traceback__)[-1]
        module.warn(f"the report was not written: {type(error).__name__}: {error} ({where.name}, line {where.lineno})")
        module.exit_json(changed=False)
    for warning in warnings:
        module.warn(warning)
    module.exit_json(changed=changed, page=str(Path(params["path"]).resolve() / "index.html"))


if __name__ == "__main__":
    main()

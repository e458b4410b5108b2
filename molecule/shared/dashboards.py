"""The queries of Grafana dashboards, as Grafana would ask them with every variable on "All".

dashboards.py DIRECTORY URL    asks the Prometheus at URL all of them: JSON, name, expression, results or error
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What Grafana itself puts in.
BUILT_IN = {"__rate_interval": "2m", "__interval": "30s", "__range": "1h"}
VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)|\[\[(\w+)\]\]")


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    dashboard: str
    panel: str
    number: int
    expression: str

    @property
    def name(self) -> str:
        return f"{self.dashboard} | {self.panel} | {self.number}"


def _panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", []))


def _values(dashboard: Mapping[str, Any]) -> dict[str, str]:
    """Variable -> what "All" stands for; of one without it, what is chosen at first."""
    found = dict(BUILT_IN)
    for variable in dashboard["templating"]["list"]:
        chosen = variable.get("current", {}).get("value")
        if variable["type"] == "custom" and chosen not in (["$__all"], "$__all", None):
            found[variable["name"]] = chosen
        elif variable["type"] == "custom":
            found[variable["name"]] = f"({'|'.join(map(str.strip, variable['query'].split(',')))})"
        else:
            found[variable["name"]] = variable.get("allValue") or ".*"
    return found


def queries(dashboard: Mapping[str, Any]) -> Iterator[Query]:
    """Every query of every panel; raises KeyError for a variable that the dashboard does not have."""
    values = _values(dashboard)
    for panel in _panels(dashboard["panels"]):
        for number, target in enumerate(panel.get("targets", []), 1):
            expression = VARIABLE.sub(lambda found: values[found[1] or found[2] or found[3]], target["expr"])
            yield Query(dashboard["title"], panel["title"], number, expression)


def read(directory: Path) -> list[Query]:
    """The queries of all dashboards in ``directory``."""
    return [query for path in sorted(directory.glob("*.json")) for query in queries(json.loads(path.read_text()))]


def ask(url: str, expression: str) -> list[Any]:
    """What the Prometheus at ``url`` answers; raises urllib.error.HTTPError for an expression that it does not take."""
    with urllib.request.urlopen(
        f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=60
    ) as got:
        found: list[Any] = json.load(got)["data"]["result"]
    return found


def main(directory: str, url: str) -> None:
    told: list[tuple[str, str, int | str]] = []
    for query in read(Path(directory)):
        try:
            told.append((query.name, query.expression, len(ask(url, query.expression))))
        except urllib.error.HTTPError as error:
            told.append((query.name, query.expression, error.read().decode()))
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])

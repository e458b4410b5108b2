"""What Serve has counted since its start, from the metrics pages of all nodes."""

from __future__ import annotations

import json
import re

from ansible.module_utils.ray_serve_rest import OPENER, UNREACHED

SAMPLE = re.compile(r"^ray_serve_http_request_latency_ms_(count|sum)\{(.*)\} (\S+)$", re.MULTILINE)
REPLICA_SAMPLE = re.compile(
    r"^ray_serve_deployment_(processing_latency_ms_count|processing_latency_ms_sum|error_counter_total)\{(.*)\} (\S+)$",
    re.MULTILINE,
)
REPLICA_KEYS = {
    "processing_latency_ms_count": "requests",
    "processing_latency_ms_sum": "ms",
    "error_counter_total": "errors",
}
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Totals = dict[str, dict[str, float]]


def _entry(totals: Totals, name: str) -> dict[str, float]:
    return totals.setdefault(name, {"requests": 0.0, "errors": 0.0, "ms": 0.0})


def parse(text: str, totals: Totals) -> None:
    """Add the samples of one node to ``totals``. Errors: statuses from 400, but 499, a client that left."""
    for kind, labels, value in SAMPLE.findall(text):
        found = dict(LABEL.findall(labels))
        if not (name := found.get("application")):
            continue  # no application had this route
        entry = _entry(totals, name)
        if kind == "sum":
            entry["ms"] += float(value)
            continue
        entry["requests"] += float(value)
        status = found.get("status_code", "")
        if status.isdigit() and int(status) >= 400 and status != "499":
            entry["errors"] += float(value)


def parse_replicas(text: str, totals: Totals) -> None:
    """Add what the replicas of one node counted, by their ids. Errors: exceptions, whatever became of them in HTTP."""
    for kind, labels, value in REPLICA_SAMPLE.findall(text):
        _entry(totals, dict(LABEL.findall(labels)).get("replica", ""))[REPLICA_KEYS[kind]] += float(value)


def pages(discovery_path: str, seconds: float = 5) -> dict[str, str | None]:
    """Address -> metrics page, none where nobody answers; nothing at all where the list is not there."""
    found: dict[str, str | None] = {}
    try:
        with open(discovery_path) as handle:
            targets = [target for entry in json.load(handle) for target in entry["targets"]]
    except (FileNotFoundError, ValueError):
        return {}
    for target in targets:
        try:
            with OPENER.open(f"http://{target}/metrics", timeout=seconds) as answer:
                found[target] = answer.read().decode(errors="replace")
        except UNREACHED:
            found[target] = None
    return found


def read_totals(discovery_path: str) -> Totals:
    """Application -> what all nodes counted; a node that does not answer is left out."""
    totals: Totals = {}
    for text in pages(discovery_path).values():
        parse(text or "", totals)
    return totals


def grown(first: Totals, last: Totals, name: str) -> dict[str, float]:
    now, then = last.get(name, {}), first.get(name, {})
    return {key: max(0.0, now.get(key, 0.0) - then.get(key, 0.0)) for key in ("requests", "errors", "ms")}

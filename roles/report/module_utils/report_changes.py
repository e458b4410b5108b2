"""The steps of ray_serve_changes as changes, with the load that a test sent meanwhile. Pure functions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ansible.module_utils import report_load as load

MARGIN_SECONDS = 10  # of the load before and after a change that its plot shows
STAGES = {
    "prepare": "Old replicas get time to drain",
    "start": "The new one starts and is asked",
    "canary": "It answers a share of the requests",
    "switch": "The routes are switched",
    "watch": "It is watched under traffic",
    "final": "The old one drains and goes",
    "back": "Back to what served before",
    "push": "The configuration is pushed",
}
OUTCOMES = {
    "untouched": "failed, nothing was changed",
    "taken_over": "another run went on with it",
    "left": "failed, nothing had served before",
    "switched": "failed after the switch: the new one serves",
    "returned": "taken back",
}


def seconds_of(at: str) -> float:
    return datetime.strptime(at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def _outcome(steps: list[dict[str, Any]]) -> str:
    last = steps[-1]
    if last.get("outcome"):
        return OUTCOMES.get(last["outcome"], "failed")
    if last.get("done"):
        return "done"
    return "failed" if last.get("problem") else "not finished"


def changes(lines: list[dict[str, Any]], tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Changes, the newest first. ``lines``: the steps, the oldest first; ``tests``: load tests with their series."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        runs.setdefault(line["run"], []).append(line)
    return sorted((_change(steps, tests) for steps in runs.values()), key=lambda change: change["at"], reverse=True)


def _change(steps: list[dict[str, Any]], tests: list[dict[str, Any]]) -> dict[str, Any]:
    begin = seconds_of(steps[0]["at"])
    end = max(seconds_of(step["at"]) + step["seconds"] for step in steps)
    actions: dict[str, str] = {}
    for step in steps:
        actions |= {name: action for name, action in (step.get("actions") or {}).items() if action != "unchanged"}
    loads = [cut for test in tests if (cut := load.during(test, begin, end))]
    shown = [cut for test in tests if (cut := load.during(test, begin - MARGIN_SECONDS, end + MARGIN_SECONDS))]
    return {
        "run": steps[0]["run"],
        "at": steps[0]["at"],
        "begin": begin,
        "seconds": end - begin,
        "actions": actions,
        "outcome": _outcome(steps),
        "problems": [step["problem"] for step in steps if step.get("problem")],
        "stages": [
            {
                "name": STAGES.get(step["stage"], step["stage"]),
                "from": seconds_of(step["at"]) - begin,
                "seconds": step["seconds"],
                "counted": step.get("counted"),
                "problem": step.get("problem", ""),
            }
            for step in steps
        ],
        # Of several tests at once the one with the most requests.
        "load": max(loads, key=lambda cut: int(cut["requests"]), default=None),
        "load_shown": max(shown, key=lambda cut: int(cut["requests"]), default=None) if loads else None,
    }

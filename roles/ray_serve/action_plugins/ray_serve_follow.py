"""Print what the replicas of a deployment log, as it comes."""

from __future__ import annotations

import json
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

DOCUMENTATION = r"""
module: ray_serve_follow
short_description: Print what the replicas of a deployment log, as it comes
description:
  - Asks C(ray_serve_ask) for the end of the logs again and again, and prints the lines that are new. Replicas that come
    are followed, too; those that end are heard to their last line.
options:
  url: {type: str, required: true, description: The dashboard.}
  token_path: {type: path, required: true, description: File with Ray's token on the head.}
  deployment: {type: str, default: "", description: As for C(ray_serve_ask).}
  lines: {type: int, required: true, description: How many lines of each file come first.}
  follow_seconds: {type: int, required: true, description: When it ends by itself.}
  format: {type: str, choices: [text, json], required: true, description: C(json) prints one object a line.}
author: Raymetal
"""

POLL_SECONDS = 2
LINES_MAX = 1000  # of a file between two looks; older ones are lost
DISPLAY = Display()


def news(before: list[str], now: list[str]) -> list[str]:
    """Of the end of a file the lines that were not in its end ``before``."""
    for start in range(len(before) + 1):
        kept = before[start:]
        if now[: len(kept)] == kept:
            return now[len(kept) :]
    return now


def spoken(log: dict[str, Any], line: str, form: str) -> str:
    if form == "json":
        keys = ("application", "deployment", "replica", "node", "file")
        return json.dumps({**{key: log[key] for key in keys}, "line": line}, ensure_ascii=False)
    return f"{log['application']}/{log['deployment']} {log['replica']}: {line}"


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        given = dict(self._task.args)
        asked = {key: given[key] for key in ("url", "token_path", "deployment")}
        asked |= {"question": "logs", "lines": LINES_MAX}
        deadline = time.monotonic() + int(given["follow_seconds"])
        seen: dict[tuple[str, str], list[str]] = {}
        first = True
        while True:
            heard = self._execute_module("ray_serve_ask", asked, task_vars=task_vars or {})
            if heard.get("failed") and first:
                return dict(heard)
            for log in (heard.get("answer") or {}).get("logs") or []:
                key = (log["node"], log["file"])
                new = news(seen.get(key, []), log["lines"])
                for line in new[-int(given["lines"]) :] if first else new:
                    DISPLAY.display(spoken(log, line, given["format"]))
                if log["lines"]:
                    seen[key] = log["lines"]
            first = False
            if time.monotonic() > deadline:
                return {"changed": False}
            time.sleep(POLL_SECONDS)

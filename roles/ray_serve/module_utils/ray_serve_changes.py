"""What was done to Serve, a line of JSON for each step, in a file on the head; the oldest lines go."""

from __future__ import annotations

import json
import os
import time
from typing import Any

KEPT = 60  # lines; a change has three to seven


def entry(run: str, stage: str, started: float, **more: Any) -> dict[str, Any]:
    """A step of ``run`` that began at ``started`` (unix time) and ends now; of ``more`` what is not empty."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))
    told = {"run": run, "at": at, "seconds": round(time.time() - started, 1), "stage": stage}
    return {**told, **{key: value for key, value in more.items() if value}}


def first_line(problem: object) -> str:
    """Of a problem what stands before the lines of a log."""
    return str(problem).partition("\n")[0][:200]


def note(path: str, line: dict[str, Any]) -> str:
    """Add a line to the file; what went wrong in words, empty if nothing: it is no reason to stop a change."""
    try:
        with open(path, "a", opener=lambda p, flags: os.open(p, flags, 0o600)) as handle:
            handle.write(json.dumps(line) + "\n")
        if len(lines := _lines(path)) > 2 * KEPT:
            with open(path + ".new", "w", opener=lambda p, flags: os.open(p, flags, 0o600)) as handle:
                handle.writelines(lines[-KEPT:])
            os.replace(path + ".new", path)
    except OSError as error:
        return f"the step is not noted in {path}: {error}"
    return ""


def _lines(path: str) -> list[str]:
    try:
        with open(path) as handle:
            return handle.readlines()
    except FileNotFoundError:
        return []


def read(path: str) -> list[dict[str, Any]]:
    """The last lines, the oldest first, without one that a killed module left half written."""
    found = []
    for line in _lines(path)[-KEPT:]:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found

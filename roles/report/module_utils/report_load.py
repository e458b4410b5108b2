"""A load test in few numbers: what files/load_test wrote, by equal steps of time. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

STEPS = 120  # of one test, at most: as many as a plot can show
Record = dict[str, Any]


def _percentile(values: list[float], share: float) -> float | None:
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1] if values else None


def series(records: Iterable[Record]) -> dict[str, Any]:
    """From requests.jsonl: begin (unix time) and step (seconds); of each step, by when they were to be sent, how many
    requests were answered and failed, and p50 and the longest of the answered, in seconds."""
    found = list(records)
    if not found:
        return {"begin": 0.0, "step": 1, "answered": [], "failed": [], "p50": [], "longest": []}
    begin = min(record["scheduled"] for record in found)
    step = max(1, math.ceil((max(record["scheduled"] for record in found) - begin) / STEPS))
    count = int((max(record["scheduled"] for record in found) - begin) // step) + 1
    good: list[list[float]] = [[] for _ in range(count)]
    failed = [0] * count
    for record in found:
        index = int((record["scheduled"] - begin) // step)
        if record["failure"]:
            failed[index] += 1
        else:
            good[index].append(record["seconds"])
    return {
        "begin": begin,
        "step": step,
        "answered": [len(values) for values in good],
        "failed": failed,
        "p50": [_percentile(values, 0.5) for values in good],
        "longest": [max(values, default=None) for values in good],
    }


def during(test: dict[str, Any], first: float, last: float) -> dict[str, Any] | None:
    """The steps of a test (``series`` in it) that touch the time from ``first`` to ``last``; None if none does."""
    told = test["series"]
    begin, step = told["begin"], told["step"]
    chosen = [i for i in range(len(told["answered"])) if begin + i * step < last and begin + (i + 1) * step > first]
    if not chosen:
        return None
    cut = {key: told[key][chosen[0] : chosen[-1] + 1] for key in ("answered", "failed", "p50", "longest")}
    return {
        **cut,
        "begin": begin + chosen[0] * step,
        "step": step,
        "requests": sum(cut["answered"]) + sum(cut["failed"]),
        "errors": sum(cut["failed"]),
        "slowest": max((value for value in cut["longest"] if value is not None), default=None),
    }

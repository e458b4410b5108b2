"""The record of every request, and what they come to together."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from chat_client import Answer

FIELDS = [
    "scheduled", "stream", "status", "failure", "error", "seconds", "first_token_seconds", "longest_gap_seconds",
    "lag_seconds", "tokens", "tokens_per_second", "model", "fingerprint", "headers", "answer",
]  # fmt: skip


def percentile(values: list[float], share: float) -> float | None:
    """The smallest of ``values`` that at least ``share`` of them do not exceed; None of none."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1] if values else None


def record(answer: Answer, scheduled: float) -> dict[str, Any]:
    """One line of the requests file; ``scheduled`` in unix seconds. Durations are rounded to 0.1 ms."""
    line: dict[str, Any] = {name: getattr(answer, name, None) for name in FIELDS}
    line |= {"scheduled": scheduled, "tokens_per_second": answer.tokens / answer.seconds if answer.seconds else 0.0}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}


class Records:
    """Writes each record as it comes, in whole lines, and keeps the numbers of the summary."""

    def __init__(self, path: str) -> None:
        """``path``: ``*.csv``, else JSON lines; empty writes nothing."""
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.file = Path(path).open("w", newline="", buffering=1) if path else None  # noqa: SIM115
        self.table = csv.DictWriter(self.file, FIELDS) if self.file and path.endswith(".csv") else None
        if self.table:
            self.table.writeheader()
        self.failures: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.first_token_seconds: list[float] = []
        self.requests = self.streams = self.tokens = 0
        self.longest_stall_seconds = self.longest_lag_seconds = self.begin = self.last = self.end = 0.0

    def add(self, answer: Answer, scheduled: float) -> None:
        """``scheduled`` in unix seconds."""
        self.requests += 1
        self.streams += answer.stream
        self.tokens += answer.tokens
        self.begin = min(self.begin or scheduled, scheduled)
        self.last = max(self.last, scheduled)
        self.end = max(self.end, scheduled + answer.seconds)
        self.longest_stall_seconds = max(self.longest_stall_seconds, answer.longest_gap_seconds)
        self.longest_lag_seconds = max(self.longest_lag_seconds, answer.lag_seconds)
        self.models[answer.model] += bool(answer.model)
        if answer.failure:
            self.failures[answer.failure] += 1
        else:
            self.seconds.append(answer.seconds)
            if answer.first_token_seconds is not None:
                self.first_token_seconds.append(answer.first_token_seconds)
        if not self.file:
            return
        line = record(answer, scheduled)
        if self.table:
            self.table.writerow(line | {"headers": json.dumps(line["headers"])})
        else:
            self.file.write(json.dumps(line) + "\n")

    def summary(self) -> dict[str, Any]:
        """All durations in seconds; p50, p99 and maximum are those of the good answers."""
        length, arrivals = self.end - self.begin, self.last - self.begin
        found = {
            "requests": self.requests,
            "failures": self.failures.total(),
            "failures_by_kind": dict(self.failures),
            "streaming": self.streams,
            "seconds": length,
            "requests_per_second": self.requests / length if length else 0.0,
            "arrivals_per_second": (self.requests - 1) / arrivals if arrivals else 0.0,
            "p50_seconds": percentile(self.seconds, 0.5),
            "p99_seconds": percentile(self.seconds, 0.99),
            "max_seconds": max(self.seconds, default=None),
            "first_token_p50_seconds": percentile(self.first_token_seconds, 0.5),
            "first_token_p99_seconds": percentile(self.first_token_seconds, 0.99),
            "longest_stall_seconds": self.longest_stall_seconds,
            "longest_lag_seconds": self.longest_lag_seconds,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / length if length else 0.0,
            "models": [name for name, number in self.models.items() if number],
        }
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}

    def close(self) -> None:
        if self.file:
            self.file.close()


def shortcomings(summary: dict[str, Any], min_requests: int, p99: float, first_token_p99: float) -> list[str]:
    """Why a test with this summary is not passed; a limit of zero seconds is none."""
    found = []
    if summary["failures"]:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(summary["failures_by_kind"].items()))
        found.append(f"{summary['failures']} of {summary['requests']} requests failed: {kinds}")
    if summary["requests"] < min_requests:
        found.append(f"{summary['requests']} requests, at least {min_requests} wanted")
    for name, limit in (("p99_seconds", p99), ("first_token_p99_seconds", first_token_p99)):
        if limit and (summary[name] is None or summary[name] > limit):
            found.append(f"{name} is {summary[name]}, at most {limit:g} wanted")
    return found


def sentence(summary: dict[str, Any]) -> str:
    """The summary on one line."""
    s = {name: "-" if value is None else value for name, value in summary.items()}
    return (
        f"load test: {s['requests']} requests ({s['streaming']} streaming) in {s['seconds']} s, "
        f"{s['failures']} failed, p50 {s['p50_seconds']} s, p99 {s['p99_seconds']} s, "
        f"longest stall {s['longest_stall_seconds']} s, {s['requests_per_second']} requests/s, "
        f"{s['tokens_per_second']} tokens/s"
    )

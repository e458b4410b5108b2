"""The relations between the inputs of load_test: what must not start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# What the role gives Locust itself, and what would take a bound away.
OWNED = {
    "-f", "-H", "-u", "-r", "-t", "-L", "--locustfile", "--host", "--users", "--spawn-rate", "--run-time", "--headless",
    "--path", "--model", "--prompts", "--stream-share", "--max-tokens", "--warm-up-requests", "--max-in-flight",
    "--stall-seconds", "--timeout-seconds", "--min-requests", "--max-p99-seconds", "--requests-file", "--summary-file",
    "--logfile", "--csv", "--html", "--rate", "--arrivals", "--only-summary", "--exit-code-on-error", "--config",
    "--processes", "--master", "--worker",
}  # fmt: skip


def load_test_problems(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Problems of the role's variables (name -> value), each with variable, value, problem and do."""
    found: list[dict[str, Any]] = []

    def number(name: str) -> float:
        return float(values[f"load_test_{name}"])  # -e name=value gives text

    def tell(name: str, problem: str, do: str) -> None:
        found.append({"variable": name, "value": values[name], "problem": problem, "do": do})

    if not values["load_test_model"]:
        tell("load_test_model", "no model is named", "set it to the model's name in the API: GET <url>/v1/models")
    if not re.fullmatch(r"https?://[^/@\s]+(/\S*)?", values["load_test_url"]):
        tell("load_test_url", "is not http(s)://name:port, without user and password", "write it so")
    if not values["load_test_path"].startswith("/"):
        tell("load_test_path", "does not begin with /", "write the path with its route prefix")
    if not re.fullmatch(r"(/[\w.-]+){2,}", values["load_test_root"]) or "/.." in values["load_test_root"]:
        tell("load_test_root", "must be an absolute path, at least two levels deep", "choose a directory of its own")
    if values["load_test_user"] == "root":
        tell("load_test_user", "the load test needs no rights", "name another user")
    if not 0 <= number("stream_share") <= 1:
        tell("load_test_stream_share", "is not from 0 to 1", "0.5 streams every second request")
    if not Path(values["load_test_prompts_file"]).is_file():
        tell("load_test_prompts_file", "is not a file on the controller", "see docs/load-test.md")
    for name in ("max_tokens", "max_in_flight", "stall_seconds", "timeout_seconds"):
        if number(name) <= 0:
            tell(f"load_test_{name}", "is not above 0", "choose a larger number")
    if not 0 <= number("warm_up_requests") <= 1000:
        tell("load_test_warm_up_requests", "is not from 0 to 1000", "choose a smaller number")
    for name, smallest in (("users", 1), ("seconds", 1), ("rate", 0)):
        limit = number(f"max_{name}")
        if not smallest <= number(name) <= limit:
            text = f"is not from {smallest} to load_test_max_{name} = {limit:g}"
            tell(f"load_test_{name}", text, f"correct it; if it is meant, raise load_test_max_{name}")
    taken = sorted({str(text).partition("=")[0] for text in values["load_test_arguments"]} & OWNED)
    if taken:
        tell("load_test_arguments", f"{', '.join(taken)} has a variable of its own", "leave it out")
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"load_test_problems": load_test_problems}

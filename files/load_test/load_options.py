"""The command line of the load test, beside Locust's own, and the prompts."""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KEY_VARIABLE = "LOAD_TEST_API_KEY"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what Locust has not; host, users, time, reports and the web UI are Locust's own options."""
    add = parser.add_argument_group(
        "Load test", f"An API key comes from the environment, {KEY_VARIABLE}. Zero switches a limit off."
    ).add_argument
    add("--model", default="", help="name of the model in the API")
    add("--path", default="/v1/chat/completions", help="path of the API, route prefix included (default: %(default)s)")
    add("--prompts", default=str(HERE / "prompts.txt"), help="file: one prompt a line, or *.jsonl (see docs)")
    add("--stream-share", type=float, default=0.5, help="share of streaming requests, 0 to 1 (default: %(default)s)")
    add("--max-tokens", type=int, default=32, help="longest answer (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="of the sampling (default: %(default)s)")
    add("--header", action="append", default=[], help="'Name: value', sent along; repeatable; no secrets here")
    add("--rate", type=float, default=0.0, help="open loop: so many arrivals each second, whatever the answers do")
    add("--arrivals", choices=["constant", "poisson"], default="constant", help="spacing of the open loop's arrivals")
    add(
        "--max-in-flight",
        type=int,
        default=200,
        help="open loop: an arrival beyond is a failure (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of prompts and arrivals: the same seed, the same requests")
    add("--keep-alive", action="store_true", help="reuse connections; else each request has its own")
    add("--stall-seconds", type=float, default=5.0, help="a longer wait for a part of an answer is a failure")
    add("--timeout-seconds", type=float, default=60.0, help="limit of a whole request (default: %(default)s)")
    add("--warm-up-requests", type=int, default=0, help="sent one by one before the test, not counted, must succeed")
    add("--requests-file", default="", help="a record of every request: *.csv, else JSON lines")
    add("--summary-file", default="", help="the summary as JSON")
    add("--min-requests", type=int, default=1, help="fewer requests fail the test (default: %(default)s)")
    add("--max-p99-seconds", type=float, default=0.0, help="a longer p99 fails the test")
    add("--max-first-token-p99-seconds", type=float, default=0.0, help="a longer p99 to the first token fails the test")


def option_problems(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options, those of Locust included; each as a sentence."""
    found = []
    if not options.model:
        found.append("--model is missing")
    if not str(options.host or "").startswith(("http://", "https://")):
        found.append(f"--host {options.host}: must be http://… or https://…")
    if not options.path.startswith("/"):
        found.append(f"--path {options.path}: must begin with /")
    if not 0 <= options.stream_share <= 1:
        found.append(f"--stream-share {options.stream_share}: must be from 0 to 1")
    for name in ("max_tokens", "max_in_flight", "stall_seconds", "timeout_seconds"):
        if not 0 < getattr(options, name) < math.inf:
            found.append(f"--{name.replace('_', '-')} {getattr(options, name)}: must be above 0")
    for name in ("rate", "warm_up_requests", "min_requests", "max_p99_seconds", "max_first_token_p99_seconds"):
        if not 0 <= getattr(options, name) < math.inf:
            found.append(f"--{name.replace('_', '-')} {getattr(options, name)}: must not be below 0")
    if options.rate and (options.num_users or 1) != 1:
        found.append(f"--users {options.num_users}: with --rate the arrivals are the load; leave it out")
    if options.master or options.worker or options.processes:
        found.append("--master, --worker, --processes: arrivals and records belong to one process; start several tests")
    found += [f"--header {text}: must be 'Name: value'" for text in options.header if not text.partition(":")[2]]
    try:
        read_prompts(Path(options.prompts))
    except (OSError, ValueError) as error:
        found.append(f"--prompts: {error}")
    return found


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Parts of request bodies, each with ``messages``. Raises OSError or ValueError.

    A line of ``*.jsonl`` is a string, an object with ``prompt``, or an object with ``messages``; other keys of an
    object, for instance ``max_tokens``, go into the request. A line of any other file is a prompt.
    """
    bodies = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line) if path.suffix == ".jsonl" else line.strip()
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
        if isinstance(body, str):
            body = {"prompt": body}
        if isinstance(body, dict) and isinstance(body.get("prompt"), str):
            body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            raise ValueError(f"{path}, line {number}: neither a string nor an object with prompt or messages")
        bodies.append(body)
    if not bodies:
        raise ValueError(f"{path} has no prompt")
    return bodies


def request_bodies(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Bodies without end: prompts by chance, the streaming ones spread evenly in exactly the wanted share."""
    prompts, chance = read_prompts(Path(options.prompts)), random.Random(options.seed)
    for number in count():
        stream = math.floor((number + 1) * options.stream_share) > math.floor(number * options.stream_share)
        body = {"model": options.model, "max_tokens": options.max_tokens, "temperature": options.temperature}
        body |= chance.choice(prompts) | {"stream": stream}
        yield body | ({"stream_options": {"include_usage": True}} if stream else {})


def arrival_times(options: argparse.Namespace) -> Iterator[float]:
    """Seconds from the start of the open loop to each arrival, without end."""
    chance, at = random.Random(options.seed), 0.0
    while True:
        yield at
        at += chance.expovariate(options.rate) if options.arrivals == "poisson" else 1 / options.rate


def headers(options: argparse.Namespace, key: str) -> dict[str, str]:
    """The headers of every request; ``key`` may be empty."""
    pairs = (text.partition(":") for text in options.header)
    found = {name.strip(): value.strip() for name, _, value in pairs}
    return found | ({"Authorization": f"Bearer {key}"} if key else {})

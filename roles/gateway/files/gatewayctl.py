#!/usr/bin/python3
"""Talk to the running gateway, through the socket of HAProxy's master process. Needs root and nothing but Python.

    gatewayctl nodes                  state of each node, and what it answers just now
    gatewayctl drain NODE SECONDS     no new request for the node; wait until it answers nothing any more
    gatewayctl ready NODE…            put them back; each gets requests when its health check is good
    gatewayctl canary                 send a share of a route's requests to a candidate, as a JSON list on standard
                                      input says; [] ends it. Keys: route, hidden_route, percent, and if wanted header
                                      (the value that always goes there), other_routes (of applications to leave alone)
    gatewayctl running                print the id of the configuration that runs
    gatewayctl await ID SECONDS       wait until the configuration with this id runs
    gatewayctl save                   note who is up and who is drained, for the worker of the next reload

Exit code 0: done, and the last line says `changed` or `unchanged` where there was something to change; 1: not done, the
reason is on stderr.
"""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

RUN = Path(os.environ.get("GATEWAY_RUN_DIRECTORY", "/run/raymetal-gateway"))
MAP = Path(__file__).resolve().parent / "canary.map"
CURRENT = "@1"  # HAProxy's name for the worker of the last reload
BACKENDS = ("nodes", "candidate")
STEP_SECONDS = 0.2
QUEUE_SECONDS = 60
HIDDEN = "/.raymetal/"  # below it candidates wait
NO_HEADER = ","  # no single header value has a comma: nothing that a client sends equals it
KEYS = {"route", "hidden_route", "percent", "header", "other_routes"}


class Failed(Exception):
    """What could not be done, for the operator."""


def ask(command: str) -> str:
    """What HAProxy answers to a command."""
    parts = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        try:
            connection.connect(str(RUN / "master.sock"))
            connection.sendall(f"{command}\n".encode())
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                parts.append(part)
        except OSError as error:
            raise Failed(f"the gateway does not answer at {RUN}/master.sock: {error}") from error
    return b"".join(parts).decode()


def order(command: str) -> None:
    """A command that answers nothing when it is obeyed."""
    if answer := ask(command).strip():
        raise Failed(f"{command.splitlines()[0]}: {answer}")


def workers() -> list[str]:
    """The worker of the last reload and the older ones, which still finish what they began."""
    pids = re.findall(r"(?m)^(\d+)\s+worker\s", ask("show proc"))
    return [f"@!{pid}" for pid in pids]


def servers(worker: str) -> list[dict[str, str]]:
    """The rows of `show stat` that stand for nodes; none of a worker that has just ended."""
    lines = [line for line in ask(f"{worker} show stat").lstrip("# ").splitlines() if line]
    rows = [row for row in csv.DictReader(lines) if row.get("svname") not in ("FRONTEND", "BACKEND", "waiting", None)]
    return [row for row in rows if row["pxname"] in BACKENDS]


def node(name: str) -> dict[str, str]:
    """The row of a node in the current worker."""
    rows = {row["svname"]: row for row in servers(CURRENT) if row["pxname"] == BACKENDS[0]}
    if name not in rows:
        raise Failed(f"the gateway has no node {name}; it has {', '.join(rows) or 'none'}")
    return rows[name]


def busy(name: str) -> int:
    """Requests that the node has, in all workers, and that wait for it."""
    rows = (row for worker in workers() for row in servers(worker) if row["svname"] == name)
    return sum(int(row["scur"] or 0) + int(row["qcur"] or 0) for row in rows)


def drain(name: str, seconds: float) -> bool:
    """Whether the node was not drained already."""
    node(name)
    changed = not drained(name)
    order(f"{CURRENT} set server {BACKENDS[0]}/{name} state drain")
    deadline = time.monotonic() + seconds
    while left := busy(name):
        if time.monotonic() > deadline:
            raise Failed(f"node {name} still has {left} request(s) after {seconds:g} s; it gets no new ones")
        time.sleep(STEP_SECONDS)
    return changed


def drained(name: str) -> bool:
    """Whether the node was drained by order: srv_admin_state of `show servers state`, bit 8."""
    rows = (line.split() for line in ask(f"{CURRENT} show servers state {BACKENDS[0]}").splitlines())
    return any(int(row[6]) & 8 for row in rows if len(row) > 6 and row[3] == name)


def ready(name: str) -> bool:
    """Whether the node was drained by order."""
    node(name)
    changed = drained(name)
    order(f"{CURRENT} set server {BACKENDS[0]}/{name} state ready")
    return changed


def canary_lines(wanted: dict[str, Any]) -> list[str]:
    """The lines of HAProxy's map for one canary.

    A line is `expression percent header path`: the first expression that fits a path decides.
    """
    if unknown := set(wanted) - KEYS:
        raise Failed(f"a canary has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(KEYS))}")
    route, hidden, percent = wanted.get("route"), wanted.get("hidden_route"), wanted.get("percent", 0)
    others, header = wanted.get("other_routes") or [], wanted.get("header")
    for name, value in (("route", route), ("hidden_route", hidden), *(("other_routes", other) for other in others)):
        if not isinstance(value, str) or not re.fullmatch(r"/|(/[^/\s]+)+", value):
            raise Failed(f"{name} is {value!r}, which is no route like /chat")
    if not str(hidden).startswith(HIDDEN):
        raise Failed(f"hidden_route is {hidden!r}, which does not start with {HIDDEN}")
    if not isinstance(percent, int) or not 0 <= percent <= 100:
        raise Failed(f"percent is {percent!r}, not 0 to 100")
    if header and not re.fullmatch(r"[A-Za-z0-9_.-]+", header):
        raise Failed(f"header is {header!r}: letters, digits, dot, dash and underscore only")
    prefix = str(route).rstrip("/")
    # The longest route that fits is the application's, as in Serve.
    below = sorted((o for o in others if o != route and o.startswith(f"{prefix}/")), key=len, reverse=True)
    kept = [f"^{re.escape(other)}(/.*)?$ 0 {NO_HEADER} /" for other in below]
    return [*kept, f"^{re.escape(prefix)}(/.*)?$ {percent} {header or NO_HEADER} {hidden}\\1"]


def canary(text: str) -> bool:
    """Write the map, which the next reload reads, and take it over now, at one stroke; whether it was another."""
    try:
        wanted = sorted(json.loads(text), key=lambda one: -len(str(one.get("route"))))
    except (ValueError, TypeError, AttributeError) as error:
        raise Failed(f"standard input is no JSON list of mappings: {error}") from error
    lines = [line for one in wanted for line in canary_lines(one)]
    new = MAP.with_suffix(".new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.chmod(0o644)
    new.replace(MAP)
    shown = ask(f"{CURRENT} show map {MAP}").splitlines()
    if [line.split(" ", 1)[1] for line in shown if line.startswith("0x")] == lines:
        return False
    prepared = re.search(r"New version created: (\d+)", ask(f"{CURRENT} prepare map {MAP}"))
    if not prepared:
        raise Failed(f"the gateway has no map {MAP}")
    version = prepared[1]
    for line in lines:
        # As a payload, in which nothing is special.
        order(f"{CURRENT} add map @{version} {MAP} <<\n{line}\n")
    order(f"{CURRENT} commit map @{version} {MAP}")
    # What was already sent to the candidate and waits for room on a node must reach its route while it is there.
    deadline = time.monotonic() + QUEUE_SECONDS
    while not lines and any(int(row["qcur"] or 0) for row in servers(CURRENT) if row["pxname"] == BACKENDS[1]):
        if time.monotonic() > deadline:
            raise Failed(f"after {QUEUE_SECONDS} s requests still wait for the candidate; no new ones go there")
        time.sleep(STEP_SECONDS)
    return True


def running() -> str:
    """The id in the configuration of the current worker."""
    found = re.search(r"(?m)^description: (\S+)", ask(f"{CURRENT} show info"))
    return found[1] if found else ""


def await_running(wanted: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (found := running()) != wanted:
        if time.monotonic() > deadline:
            text = f"the gateway runs configuration {found}, not {wanted}: see journalctl -u raymetal-gateway"
            raise Failed(f"{text}; what ran before goes on")
        time.sleep(STEP_SECONDS)


def save() -> None:
    new = RUN / "servers.new"
    new.write_text(ask(f"{CURRENT} show servers state"))
    new.replace(RUN / "servers")


def main(arguments: list[str]) -> int:
    said = {True: "changed", False: "unchanged"}
    try:
        if arguments == ["nodes"]:
            rows = [row for row in servers(CURRENT) if row["pxname"] == BACKENDS[0]]
            print("\n".join(f"{r['svname']}\t{r['status']}\t{r['check_status']}\t{busy(r['svname'])}" for r in rows))
        elif arguments == ["running"]:
            print(running())
        elif arguments == ["canary"]:
            print(said[canary(sys.stdin.read())])
        elif arguments == ["save"]:
            save()
        elif len(arguments) == 3 and arguments[0] == "await":
            await_running(arguments[1], float(arguments[2]))
        elif len(arguments) == 3 and arguments[0] == "drain":
            print(said[drain(arguments[1], float(arguments[2]))])
        elif len(arguments) > 1 and arguments[0] == "ready":
            changed = [ready(name) for name in arguments[1:]]
            print(said[any(changed)])
        else:
            print(__doc__, file=sys.stderr)
            return 1
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

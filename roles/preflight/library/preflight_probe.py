#!/usr/bin/python
"""Look from this host at all others."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_probe
short_description: Try the ports of all peers, names, clocks, sizes of packets, and the bandwidth to one peer
description:
  - Peers have a C(preflight_listener). Everything is bounded; ports are tried at once, 256 at a time.
  - Changes nothing, and does the same in check mode.
options:
  run:
    description: Secret of the listeners.
    type: str
    required: true
  peers:
    description: Dicts with name, address, ports (TCP), and port, the one on which the listener answers.
    type: list
    elements: dict
    default: []
  names:
    description: Names to resolve.
    type: list
    elements: str
    default: []
  clock_of:
    description: Name of the peer whose clock this host's is compared with; empty for none.
    type: str
    default: ""
  mtu:
    description: Bytes of the largest packet that this host's interface sends; 0 tries none.
    type: int
    default: 0
  stream_to:
    description: Name of the peer to which the bandwidth is measured; empty for none.
    type: str
    default: ""
  stream_bytes:
    description: Bytes sent for it, at most.
    type: int
    default: 268435456
  stream_seconds:
    description: Seconds spent on it, at most.
    type: float
    default: 3
  connect_seconds:
    description: What a connection may take.
    type: float
    default: 3
author: Raymetal
"""
EXAMPLES = r"""
- name: Look at the peers
  preflight_probe:
    run: "{{ run }}"
    peers: [{name: gpu2, address: 10.0.0.12, ports: [6391, 6392], port: 43210}]
    clock_of: gpu2
    stream_to: gpu2
    mtu: 1500
"""
RETURN = r"""
closed:
  description: What could not be reached, peer to port to reason.
  type: dict
  returned: always
names:
  description: Addresses of each name, sorted; none where it has none.
  type: dict
  returned: always
clock_seconds:
  description: How much this host's clock is ahead of the peer's, seconds; null where it was not measured.
  type: float
  returned: always
packets:
  description: >-
    Of each peer C(whole) if datagrams of the MTU that may not be split arrive, C(lost) if only small ones do, C(none)
    if no datagram does.
  type: dict
  returned: always
stream:
  description: What arrived, with bytes, seconds and mbit_per_second; null where nothing did.
  type: dict
  returned: always
connections:
  description: How many were tried.
  type: int
  returned: always
"""

import errno
import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.preflight_wire import (
    DATAGRAM_BYTES_MAX,
    HEADER_BYTES,
    IP_MTU_DISCOVER,
    IPV6_MTU_DISCOVER,
    PING_BYTES,
    PMTUDISC_PROBE,
    family_of,
    read_line,
    write_line,
)

AT_ONCE = 256
TRIES, TRY_SECONDS = 4, 0.7  # of a datagram, whose answer takes milliseconds
CLOCK_ROUNDS = 5
CHUNK_BYTES = 1024 * 1024
REASONS = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "no route to the host",
    errno.ENETUNREACH: "no route to its network",
    errno.EACCES: "forbidden by a rule",
    errno.EPERM: "forbidden by a rule",
}
Target = tuple[str, str, int]  # peer, address, port


def reason(number: int) -> str:
    return REASONS.get(number, os.strerror(number))


def closed_ports(targets: Iterable[Target], seconds: float) -> dict[str, dict[int, str]]:
    """Those of ``targets`` that do not accept a connection within ``seconds``, peer -> port -> reason."""
    waiting, found = deque(targets), dict[str, dict[int, str]]()
    pending: dict[socket.socket, tuple[Target, float]] = {}

    def done(target: Target, number: int) -> None:
        if number:
            text = "no answer" if number == errno.ETIMEDOUT else reason(number)
            found.setdefault(target[0], {})[target[2]] = text

    with selectors.DefaultSelector() as watched:
        while waiting or pending:
            while waiting and len(pending) < AT_ONCE:
                target = waiting.popleft()
                trying = socket.socket(family_of(target[1]))
                trying.setblocking(False)
                # Closed by a reset: thousands of connections would linger otherwise.
                trying.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                number = trying.connect_ex((target[1], target[2]))
                if number in (0, errno.EINPROGRESS):
                    watched.register(trying, selectors.EVENT_WRITE)
                    pending[trying] = (target, time.monotonic() + seconds)
                else:
                    done(target, number)
                    trying.close()
            first = min((until for _, until in pending.values()), default=0.0)
            ready = {key.fileobj for key, _ in watched.select(max(0.0, first - time.monotonic()))} if pending else set()
            now = time.monotonic()
            for trying, (target, until) in list(pending.items()):
                if trying not in ready and until > now:
                    continue
                late = trying not in ready
                done(target, errno.ETIMEDOUT if late else trying.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                watched.unregister(trying)
                trying.close()
                del pending[trying]
    return found


def addresses(name: str) -> list[str]:
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except OSError:
        return []


def answered(run: str, peers: dict[str, tuple[str, int]], mtu: int) -> set[str]:
    """Those of ``peers`` (name -> address, port) that answer a datagram; ``mtu`` is its size with headers, 0: small."""
    left = {os.urandom(PING_BYTES): name for name in peers}
    got: set[str] = set()
    families = {family_of(address) for address, _ in peers.values()}
    sockets = {family: socket.socket(family, socket.SOCK_DGRAM) for family in families}
    with selectors.DefaultSelector() as watched:
        for family, opened in sockets.items():
            level, option = (
                (socket.IPPROTO_IP, IP_MTU_DISCOVER)
                if family == socket.AF_INET
                else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
            )
            opened.setsockopt(level, option, PMTUDISC_PROBE)  # not to be split, whatever is known of the path
            opened.setblocking(False)
            watched.register(opened, selectors.EVENT_READ)
        for _ in range(TRIES):
            for nonce, name in left.items():
                family = family_of(peers[name][0])
                size = min(mtu, DATAGRAM_BYTES_MAX) - HEADER_BYTES[family]
                try:
                    sockets[family].sendto((run.encode() + nonce).ljust(size, b"\0"), peers[name])
                except OSError:  # too large for the way, or an earlier one was refused
                    continue
            until = time.monotonic() + TRY_SECONDS
            while left and (rest := until - time.monotonic()) > 0:
                for key, _ in watched.select(rest):
                    try:
                        nonce = key.fileobj.recv(PING_BYTES)  # type: ignore[union-attr]
                    except OSError:
                        continue
                    if nonce in left:
                        got.add(left.pop(nonce))
    for opened in sockets.values():
        opened.close()
    return got


def packets(run: str, peers: dict[str, tuple[str, int]], mtu: int) -> dict[str, str]:
    small = answered(run, peers, 0)
    whole = answered(run, {name: peers[name] for name in small}, mtu)
    return {name: "whole" if name in whole else "lost" if name in small else "none" for name in peers}


def clock_seconds(run: str, where: tuple[str, int], seconds: float) -> float | None:
    """How much this clock is ahead, by the exchange that took the least time; null where there was none."""
    best: tuple[float, float] | None = None
    try:
        with socket.create_connection(where, seconds) as connection:
            for _ in range(CLOCK_ROUNDS):
                sent, started = time.time(), time.monotonic()
                write_line(connection, run=run, want="time")
                there = read_line(connection).get("time")
                took = time.monotonic() - started
                if isinstance(there, float) and (best is None or took < best[0]):
                    best = took, sent + took / 2 - there
    except OSError:
        pass
    return round(best[1], 4) if best else None


def stream(run: str, where: tuple[str, int], params: dict[str, Any]) -> dict[str, Any] | None:
    chunk, sent = bytes(CHUNK_BYTES), 0
    try:
        with socket.create_connection(where, params["connect_seconds"]) as connection:
            connection.settimeout(params["stream_seconds"] + params["connect_seconds"])
            write_line(connection, run=run, want="take")
            until = time.monotonic() + params["stream_seconds"]
            while sent < params["stream_bytes"] and time.monotonic() < until:
                sent += connection.send(chunk)
            connection.shutdown(socket.SHUT_WR)
            told = read_line(connection)
    except OSError:
        return None
    if not told.get("bytes") or not told.get("seconds"):
        return None
    return {**told, "mbit_per_second": round(told["bytes"] * 8 / told["seconds"] / 1e6)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "run": {"type": "str", "required": True, "no_log": False},
            "peers": {"type": "list", "elements": "dict", "default": []},
            "names": {"type": "list", "elements": "str", "default": []},
            "clock_of": {"type": "str", "default": ""},
            "mtu": {"type": "int", "default": 0},
            "stream_to": {"type": "str", "default": ""},
            "stream_bytes": {"type": "int", "default": 268435456},
            "stream_seconds": {"type": "float", "default": 3},
            "connect_seconds": {"type": "float", "default": 3},
        },
        supports_check_mode=True,
    )
    params = module.params
    targets = [(p["name"], p["address"], int(port)) for p in params["peers"] for port in [*p["ports"], p["port"]]]
    closed = closed_ports(targets, params["connect_seconds"])
    heard = {
        p["name"]: (str(p["address"]), int(p["port"]))
        for p in params["peers"]
        if int(p["port"]) not in closed.get(p["name"], {})
    }
    clock, to = heard.get(params["clock_of"]), heard.get(params["stream_to"])
    module.exit_json(
        changed=False,
        closed=closed,
        connections=len(targets),
        names={name: addresses(name) for name in params["names"]},
        clock_seconds=clock_seconds(params["run"], clock, params["connect_seconds"]) if clock else None,
        packets=packets(params["run"], heard, params["mtu"]) if params["mtu"] else {},
        stream=stream(params["run"], to, params) if to else None,
    )


if __name__ == "__main__":
    main()

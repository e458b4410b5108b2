#!/usr/bin/python
"""Send and receive trees host to host, by aria2."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fan_out_job
short_description: Send and receive trees host to host, by aria2
description:
  - To be run with async on all hosts at once. It goes on until C(fan_out_state) ends it, or by itself when nothing was
    sent or received for a while; a job of an earlier run is ended first.
  - A received tree is verified against its manifest and put in place, whole or not at all, with its manifest.
options:
  directory:
    description: Where the state is, for C(fan_out_state); files of the user are elsewhere.
    type: path
    required: true
  run:
    description: A name for this run.
    type: str
    required: true
  address:
    description: The host's address on the cluster's network.
    type: str
    required: true
  port:
    description: TCP port at which peers reach the host.
    type: int
    required: true
  limit_bytes_per_second:
    description: Most bytes that the host sends in a second; 0 for no limit.
    type: int
    default: 0
  encrypt:
    description: Whether what is sent is encrypted (RC4), not only the handshake.
    type: bool
    default: false
  stall_seconds:
    description: How long nothing may arrive before the job gives up.
    type: int
    default: 120
  trees:
    description: path, name, digest, files, torrent (base64), receive (whether it comes here), peers (address, port).
    type: list
    elements: dict
    required: true
author: Raymetal
"""
EXAMPLES = r"""
- name: Send and receive
  fan_out_job:
    directory: /run/raymetal-fan-out
    run: "1"
    address: 10.0.0.11
    port: 6881
    trees: []
  async: 3600
  poll: 0
"""
RETURN = r"""
received:
  description: Paths of the trees that were put in place.
  type: list
  elements: str
  returned: success
"""

import os
import shutil
import signal
import socket
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fan_out_aria2 import Aria2, Tracker
from ansible.module_utils.fan_out_job import Tree, take_lock, write_state
from ansible.module_utils.fan_out_tree import Problem

LOOK_SECONDS = 0.5
START_SECONDS = 15  # until aria2c answers
IDLE_STALLS = 5  # who has everything waits as many stall times for others, who may still be checking what they have
END = threading.Event()


def check_port(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            do = "To do: end what listens there, or set fan_out_port"
            raise Problem(f"port {port} at {address} is not to be had: {error.strerror}. {do}") from error


def begin(trees: list[Tree], aria2: Aria2) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            aria2.call("getVersion")
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise Problem(f"aria2c does not answer: {aria2.last_words()}") from error
            time.sleep(0.1)
    for tree in trees:
        tree.begin(aria2)


def stalled(trees: list[Tree], seconds: int, port: int) -> Problem:
    missing = ", ".join(
        f"{tree.total - tree.done} of {tree.total} bytes of {tree.name}" for tree in trees if tree.phase == "receiving"
    )
    hosts = ", ".join(sorted({peer["address"] for tree in trees if tree.phase == "receiving" for peer in tree.peers}))
    do = (
        f"To do: look whether they are up and reach one another at TCP port {port}, and run again; it goes on from here"
    )
    return Problem(f"no byte came for {seconds} s from any of {hosts}; missing: {missing}. {do}")


def transfer(params: dict[str, Any], trees: list[Tree], aria2: Aria2, state_directory: str) -> None:
    """Until it is told to end, or nothing moves any more."""
    moved = time.monotonic()
    before: list[Any] = []
    with ThreadPoolExecutor(max(1, len(trees))) as pool:
        begin(trees, aria2)
        while not END.is_set():
            for tree in trees:
                # Busy with a slow disk, aria2c may be silent for a moment; the stall limit is for longer silence.
                with suppress(OSError):
                    tree.look(aria2, pool, END.is_set)
            write_state(state_directory, {"trees": [tree.state() for tree in trees], "rate": rates(trees)})
            now = [(tree.phase, tree.done, tree.rates[1] > 0) for tree in trees]
            if now != before or any(sending or phase == "verifying" for phase, _, sending in now):
                before, moved = now, time.monotonic()
            quiet = time.monotonic() - moved
            if quiet > params["stall_seconds"] and any(tree.phase == "receiving" for tree in trees):
                raise stalled(trees, params["stall_seconds"], params["port"])
            if quiet > params["stall_seconds"] * IDLE_STALLS:
                return
            END.wait(LOOK_SECONDS)


def rates(trees: list[Tree]) -> int:
    return sum(tree.rates[0] for tree in trees)


def run(params: dict[str, Any], trees: list[Tree], state_directory: str, lock: int) -> None:
    check_port(params["address"], params["port"])
    with Tracker({tree.info_hash: tree.peers for tree in trees if tree.torrent}) as tracker:
        aria2 = Aria2(state_directory, params, tracker, lock)
        try:
            transfer(params, trees, aria2, state_directory)
        finally:
            aria2.end()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "run": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "limit_bytes_per_second": {"type": "int", "default": 0},
            "encrypt": {"type": "bool", "default": False},
            "stall_seconds": {"type": "int", "default": 120},
            # Half a megabyte that no log needs.
            "trees": {"type": "list", "elements": "dict", "required": True, "no_log": True},
        },
    )
    params = module.params
    signal.signal(signal.SIGTERM, lambda *_: END.set())
    os.umask(0o022)
    os.nice(10)  # whoever serves on the host goes first
    state_directory = os.path.join(params["directory"], params["run"])
    trees: list[Tree] = []
    wrong = ""
    try:
        lock = take_lock(params["directory"])
        os.mkdir(state_directory, 0o700)
        trees = [Tree(state_directory, given) for given in params["trees"]]
        run(params, trees, state_directory, lock)
    except (Problem, OSError) as problem:
        wrong = str(problem)
    except Exception:  # noqa: BLE001 - whoever watches is to hear of it too
        wrong = traceback.format_exc()
    received = [tree.path for tree in trees if tree.receive and tree.phase == "complete"]
    if not wrong and (lost := [tree.name for tree in trees if tree.phase != "complete"]):
        wrong = f"ended before {', '.join(lost)} was complete. To do: run again, it goes on from here"
    shutil.rmtree(state_directory, ignore_errors=True)
    os.makedirs(state_directory, mode=0o700)
    state = {"trees": [tree.state() for tree in trees], "rate": 0, "ended": True, "problem": wrong}
    write_state(state_directory, {**state, "received": received})
    if wrong:
        module.fail_json(msg=wrong, received=received, changed=bool(received))
    module.exit_json(changed=bool(received), received=received)


if __name__ == "__main__":
    main()

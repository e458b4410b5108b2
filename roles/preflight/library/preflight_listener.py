#!/usr/bin/python
"""Listen for a short time on the ports that the cluster will use."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_listener
short_description: Listen on the ports of a plan that are not in use, for peers that try them
description:
  - A process of its own, in memory only, listens until it is told to end or its time is over, whatever becomes of
    Ansible. An earlier one of the same cluster is ended first. It accepts and closes; on one more port, which the
    kernel draws, it answers who knows C(run) with its clock, with datagrams, and by taking bytes for nothing.
  - Nothing on the host changes, so it does the same in check mode.
options:
  state:
    description: Whether it listens.
    type: str
    choices: [present, absent]
    default: present
  cluster:
    description: Name of the cluster.
    type: str
    required: true
  run:
    description: Secret of this run. With state C(absent) another run's listener is left alone.
    type: str
    required: true
  address:
    description: The host's address, where it listens.
    type: str
    default: ""
  ports:
    description: TCP ports.
    type: list
    elements: int
    default: []
  seconds:
    description: When it ends by itself.
    type: int
    default: 300
author: Raymetal
"""
EXAMPLES = r"""
- name: Listen
  preflight_listener:
    cluster: prod
    run: "{{ run }}"
    address: 10.0.0.11
    ports: [6391, 6392]
"""
RETURN = r"""
port:
  description: The port that the kernel drew.
  type: int
  returned: state present
users:
  description: Who listened on one of the ports before, port to names of users.
  type: dict
  returned: state present
failed_ports:
  description: Ports on which it could not listen, port to reason; those in use are not among them.
  type: dict
  returned: state present
held:
  description: Whether this run's listener was still there.
  type: bool
  returned: state absent
"""

import errno
import os
import pwd
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.preflight_wire import (
    DATAGRAM_BYTES_MAX,
    PING_BYTES,
    control_name,
    family_of,
    read_line,
    write_line,
)

LISTENING = "0A"  # of /proc/net/tcp
QUIET_SECONDS = 15  # of one who asks and says no more
TALKS_MAX = 256
TAKE_BYTES = 1024 * 1024
TAKE_SECONDS_MAX = 60


def parse_listeners(text: str) -> list[tuple[int, int]]:
    """Port and owner's number of each listening socket, from the text of /proc/net/tcp or tcp6."""
    rows = (line.split() for line in text.splitlines()[1:])
    return [(int(row[1].rpartition(":")[2], 16), int(row[7])) for row in rows if row[3] == LISTENING]


def listeners() -> dict[int, list[str]]:
    """Names of the users that listen, by port, on whatever address."""
    found: dict[int, set[str]] = {}
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(path):
            with open(path) as handle:
                for port, number in parse_listeners(handle.read()):
                    found.setdefault(port, set()).add(user_name(number))
    return {port: sorted(names) for port, names in found.items()}


def user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def tell(cluster: str, run: str) -> bool:
    """End the listener of ``run`` (empty: whosever it is); whether there was one. Returns when it is gone."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(QUIET_SECONDS)
        try:
            control.connect(control_name(cluster))
            write_line(control, run=run)
            ended = bool(read_line(control).get("ends"))
            control.recv(1)  # the end of the process
        except OSError:
            return False
    return ended


def listen(address: str, port: int) -> socket.socket:
    opened = socket.socket(family_of(address))
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, port))
        opened.listen(1024)
    except OSError:
        opened.close()
        raise
    return opened


def talk(connection: socket.socket, run: str, room: threading.Semaphore) -> None:
    """Answer one who knows the run, until it closes."""
    with room, connection:
        connection.settimeout(QUIET_SECONDS)
        try:
            while (said := read_line(connection)).get("run") == run:
                if said.get("want") == "time":
                    write_line(connection, time=time.time())
                elif said.get("want") == "take":
                    taken, seconds = take(connection)
                    write_line(connection, bytes=taken, seconds=seconds)
        except OSError:
            return


def take(connection: socket.socket) -> tuple[int, float]:
    """Bytes, and seconds from the first of them to the end, of what the other side sends until it ends."""
    room, taken, first, last = bytearray(TAKE_BYTES), 0, 0.0, 0.0
    while got := connection.recv_into(room):
        last = time.monotonic()
        first = first or last
        taken += got
        if last - first > TAKE_SECONDS_MAX:
            break
    return taken, last - first


class Listener:
    """The process that listens."""

    def __init__(self, cluster: str, run: str, address: str, seconds: int) -> None:
        self.run, self.until = run, time.monotonic() + seconds
        self.room = threading.Semaphore(TALKS_MAX)
        self.control = socket.socket(socket.AF_UNIX)
        self.control.bind(control_name(cluster))
        self.control.listen(4)
        self.data = listen(address, 0)
        self.port = int(self.data.getsockname()[1])
        self.datagrams = socket.socket(family_of(address), socket.SOCK_DGRAM)
        self.datagrams.bind((address, self.port))
        self.ports: list[socket.socket] = []

    def ends(self) -> bool:
        """Whether root on this host wants the end."""
        asking, _ = self.control.accept()
        asking.settimeout(1)
        try:
            _, user, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            ends = user == os.geteuid() and read_line(asking).get("run") in ("", self.run)
            write_line(asking, ends=ends)
        except OSError:
            ends = False
        if ends:  # who asked hears of the end when the ports are free
            for opened in (self.control, self.data, self.datagrams, *self.ports):
                opened.close()
        asking.close()
        return ends

    def serve(self) -> None:
        watched = selectors.DefaultSelector()
        for opened in (self.control, self.data, self.datagrams, *self.ports):
            watched.register(opened, selectors.EVENT_READ)
        while (left := self.until - time.monotonic()) > 0:
            for key, _ in watched.select(left):
                try:
                    if key.fileobj is self.control:
                        if self.ends():
                            return
                    elif key.fileobj is self.datagrams:
                        datagram, sender = self.datagrams.recvfrom(DATAGRAM_BYTES_MAX)
                        if datagram.startswith(self.run.encode()):
                            nonce = datagram[len(self.run) : len(self.run) + PING_BYTES]
                            self.datagrams.sendto(nonce, sender)
                    elif key.fileobj is self.data:
                        connection, _ = self.data.accept()
                        threading.Thread(target=talk, args=(connection, self.run, self.room), daemon=True).start()
                    else:
                        for opened in self.ports:
                            if opened is key.fileobj:
                                opened.accept()[0].close()
                except OSError:  # of one who asks; the next may be better
                    continue


def detach() -> bool:
    """Whether this is the process that goes on without its parents, its session and its terminal."""
    sys.stdout.flush()
    if child := os.fork():
        os.waitpid(child, 0)
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    os.chdir("/")
    for number in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    return True


def start(module: AnsibleModule, params: dict[str, Any]) -> None:
    tell(params["cluster"], "")
    before = listeners()
    try:
        listener = Listener(params["cluster"], params["run"], params["address"], params["seconds"])
    except OSError as error:
        module.fail_json(msg=f"cannot listen on {params['address']}: {error.strerror}")
    failed: dict[int, str] = {}
    for port in sorted(set(params["ports"])):
        try:
            listener.ports.append(listen(params["address"], port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port not in before:
                failed[port] = str(error.strerror)
    if detach():
        try:
            listener.serve()
        finally:
            os._exit(0)
    users = {port: before[port] for port in params["ports"] if port in before}
    module.exit_json(changed=False, port=listener.port, users=users, failed_ports=failed)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "cluster": {"type": "str", "required": True},
            "run": {"type": "str", "required": True, "no_log": False},
            "address": {"type": "str", "default": ""},
            "ports": {"type": "list", "elements": "int", "default": []},
            "seconds": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    if module.params["state"] == "present":
        start(module, module.params)
    module.exit_json(changed=False, held=tell(module.params["cluster"], module.params["run"]))


if __name__ == "__main__":
    main()

"""What listener and probe of preflight say to one another."""

from __future__ import annotations

import json
import socket
from typing import Any

LINE_BYTES_MAX = 512
PING_BYTES = 24  # nonce; what follows in a datagram only makes it as large as it is to be
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_PROBE = 10, 23, 3  # linux/in.h and in6.h; Python has no names for them
HEADER_BYTES = {socket.AF_INET: 28, socket.AF_INET6: 48}  # of IP and UDP
DATAGRAM_BYTES_MAX = 65535


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def control_name(cluster: str) -> str:
    """The abstract unix socket by which root on the host ends its listener: no file, gone with the process."""
    return f"\0raymetal-preflight-{cluster}"


def read_line(connection: socket.socket) -> dict[str, Any]:
    """The next JSON object; empty where the other side has closed, or says something else."""
    text = b""
    while not text.endswith(b"\n") and len(text) < LINE_BYTES_MAX:
        byte = connection.recv(1)
        if not byte:
            return {}
        text += byte
    try:
        said = json.loads(text)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def write_line(connection: socket.socket, **said: Any) -> None:
    connection.sendall(json.dumps(said).encode() + b"\n")

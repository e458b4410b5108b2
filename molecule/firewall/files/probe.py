#!/usr/bin/python3
"""Print which ports answer as JSON: probe SOURCE HOST PORT…; SOURCE is an own address, or - for the kernel's choice."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

source, host, *ports = sys.argv[1:]


def answers(port: str) -> bool:
    try:
        mine = None if source == "-" else (source, 0)
        with socket.create_connection((host, int(port)), timeout=2, source_address=mine) as connection:
            return bool(connection.recv(1))
    except OSError:
        return False


with ThreadPoolExecutor(32) as pool:
    print(json.dumps([int(port) for port, there in zip(ports, pool.map(answers, ports), strict=True) if there]))

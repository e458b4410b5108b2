"""The virtual address: what gate 1 refuses, and when a gateway yields to another, asked of real HTTP servers."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from support import ROOT, load

virtual = load("roles/gateway/filter_plugins/gateway_virtual.py")
GATES = {"gate1": "192.0.2.10", "gate2": "192.0.2.11"}
GOOD = {
    "virtual": "192.0.2.9/24",
    "listens": "0.0.0.0",
    "gateway": "gate1",
    "gateways": GATES,
    "nodes": [{"name": "head1", "address": "192.0.2.20"}],
}


@pytest.mark.parametrize(
    ("change", "variable", "text"),
    [
        ({"virtual": "api.example.com"}, "gateway_virtual_address", "is no IP address"),
        ({"virtual": "127.0.0.5"}, "gateway_virtual_address", "is no address that a gateway could have"),
        ({"virtual": "224.0.0.9"}, "gateway_virtual_address", "is no address that a gateway could have"),
        ({"listens": "127.0.0.1"}, "gateway_address", "would not listen on gateway_virtual_address, 192.0.2.9"),
        ({"listens": "192.0.2.9"}, "gateway_address", "would not listen"),
        ({"gateways": {"gate1": "192.0.2.10"}}, "gateway_virtual_address", "there is one gateway, not 2 to 50"),
        ({"gateways": {**GATES, "gate1": "gate1"}}, "gateway_own_address", "is no IP address"),
        ({"gateways": {**GATES, "gate1": "2001:db8::1"}}, "gateway_own_address", "another version of IP"),
        ({"gateways": {**GATES, "gate2": "192.0.2.9"}}, "gateway_virtual_address", "own address of gate2"),
        ({"virtual": "192.0.2.20"}, "gateway_virtual_address", "is the own address of head1"),
    ],
)
def test_problems(change: dict[str, Any], variable: str, text: str) -> None:
    for fine in ({}, {"virtual": ""}, {"virtual": "192.0.2.9"}, {"listens": "::"}):
        assert virtual.gateway_virtual_problems(**{**GOOD, **fine}) == []
    (problem,) = virtual.gateway_virtual_problems(**{**GOOD, **change})
    assert problem["variable"] == variable and text in problem["problem"] and problem["do"]


@pytest.fixture
def gateway() -> Iterator[Callable[[str, int], None]]:
    """Return a function that lets a host, of 127.0.0.0/8, answer its health page by a status."""
    servers: list[HTTPServer] = []

    def answer(host: str, status: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/-/healthz" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = HTTPServer((host, servers[0].server_port if servers else 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()

    answer("127.0.0.1", 404)  # takes the port
    answer.port = str(servers[0].server_port)  # type: ignore[attr-defined]
    yield answer
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("own", "peers", "yields"),
    [
        (200, [200], False),
        (200, [None], False),
        (503, [200], True),
        (503, [503, 200], True),
        (503, [503], False),
        (503, [None], False),
        (None, [200], True),
        (None, [503], True),
        (None, [None], False),
    ],
)
def test_yields_to_who_does_better(gateway: Any, own: int | None, peers: list[int | None], yields: bool) -> None:
    hosts = [f"127.0.7.{number}" for number in range(1 + len(peers))]
    for host, status in zip(hosts, [own, *peers], strict=True):
        if status:
            gateway(host, status)
    command = ["sh", str(ROOT / "roles/gateway/files/gateway_check.sh"), "http", gateway.port, *hosts]
    assert subprocess.run(command, check=False).returncode == int(yields)

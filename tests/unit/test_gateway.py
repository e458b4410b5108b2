"""Servers, map and input checks of the gateway; gatewayctl against a socket that answers as HAProxy does."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, load

gateway = load("roles/gateway/filter_plugins/gateway.py")
gatewayctl = load("roles/gateway/files/gatewayctl.py")
Control = Callable[..., tuple[int, str, list[str]]]
NODES = [{"name": "n1", "address": "10.0.0.4"}, {"name": "n2", "address": "fd00::5"}]
PORTS = {"gateway_port": 8080, "gateway_metrics_port": 8405}


def test_servers_are_reached_where_the_proxies_listen() -> None:
    assert [s["address"] for s in gateway.gateway_servers(NODES, "0.0.0.0", 8000)] == [
        "10.0.0.4:8000",
        "[fd00::5]:8000",
    ]
    assert [s["address"] for s in gateway.gateway_servers(NODES[:1], "127.0.0.1", 8000)] == ["127.0.0.1:8000"]
    spare = gateway.gateway_servers(NODES, "0.0.0.0", 8000, [NODES[0]["name"]])
    assert [s["backup"] for s in spare] == [True] + [False] * (len(NODES) - 1)


@pytest.mark.parametrize(
    ("change", "variable", "text"),
    [
        ({"nodes": []}, "gateway_nodes", "no node behind"),
        ({"nodes": [*NODES, NODES[0]]}, "gateway_nodes", "more than once"),
        ({"nodes": [{"name": "a b", "address": "x"}]}, "gateway_nodes", "no name for a node"),
        ({"nodes": [{"name": "waiting", "address": "x"}]}, "gateway_nodes", "no name for a node"),
        ({"host": "127.0.0.1"}, "ray_serve_config.http_options.host", "proxies of n1, n2 listen on their own loopback"),
        ({"host": "::1", "gateway": "n1"}, "ray_serve_config.http_options.host", "proxies of n2 listen"),
        ({"host": "10.0.0.4"}, "ray_serve_config.http_options.host", "several nodes"),
        ({"ports": {"gateway_port": 0}}, "gateway_port", "is no port"),
        ({"ports": {"gateway_port": 1, "gateway_metrics_port": 1}}, "gateway_metrics_port", "port of gateway_port"),
        ({"others": {"ports": [8000, 8100]}}, "gateway_port", "also the port of ports on this host"),
        ({"others": {"the_port": 8080}}, "gateway_port", "also the port of the_port on this host"),
    ],
)
def test_problems(change: dict[str, Any], variable: str, text: str) -> None:
    good = {"nodes": NODES, "gateway": "gate", "host": "0.0.0.0", "ports": PORTS, "others": {"the_port": 8000}}
    assert gateway.gateway_problems(**good) == []
    ((found, problem, do),) = [
        (p["variable"], p["problem"], p["do"]) for p in gateway.gateway_problems(**{**good, **change})
    ]
    assert found == variable and text in problem and do


def test_the_only_node_may_be_on_its_own_loopback() -> None:
    assert gateway.gateway_problems(NODES[:1], "n1", "127.0.0.1", PORTS, {}) == []


def mapped(lines: list[str], path: str) -> str | None:
    """What HAProxy's map_regm makes of a path: the first expression that fits decides."""
    for line in lines:
        expression, value = line.split(" ", 1)
        if found := re.search(expression, path):
            return re.sub(r"\\1", lambda _: found[1] or "", value)
    return None


@pytest.mark.parametrize(
    ("route", "path", "value"),
    [
        ("/", "/v1/x", "10 green /.raymetal/chat--green/v1/x"),
        ("/", "/", "10 green /.raymetal/chat--green/"),
        ("/", "/other", "0 , /"),
        ("/", "/other/x", "0 , /"),
        ("/", "/others", "10 green /.raymetal/chat--green/others"),
        ("/chat", "/chat", "10 green /.raymetal/chat--green"),
        ("/chat", "/chat/v1", "10 green /.raymetal/chat--green/v1"),
        ("/chat", "/chat/inner/x", "0 , /"),
        ("/chat", "/chatter", None),
        ("/chat", "/other", None),
        ("/a.b", "/aXb", None),
    ],
)
def test_map_sends_what_is_below_the_route_and_belongs_to_no_other(route: str, path: str, value: str | None) -> None:
    canary = {"route": route, "hidden_route": "/.raymetal/chat--green", "percent": 10, "header": "green"}
    lines = gatewayctl.canary_lines({**canary, "other_routes": ["/", "/other", "/chat/inner"]})
    assert mapped(lines, path) == value


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"route": None}, "route is None"),
        ({"route": "/a/"}, "no route like"),
        ({"route": "/a b"}, "no route like"),
        ({"hidden_route": "/green"}, "does not start with"),
        ({"percent": 101}, "not 0 to 100"),
        ({"header": "a,b"}, "letters, digits"),
        ({"other_routes": ["x"]}, "no route like"),
        ({"share": 3}, "a canary has no share"),
    ],
)
def test_a_canary_that_cannot_be(change: dict[str, Any], text: str) -> None:
    with pytest.raises(gatewayctl.Failed, match=text):
        gatewayctl.canary_lines({"route": "/", "hidden_route": "/.raymetal/a", **change})


STAT = "# pxname,svname,scur,qcur,status,check_status,last_chk\n"
STATE = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state\n3 nodes 1 n1 10.0.0.4 2 {admin}\n"


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    """Run gatewayctl against answers (command -> text); gives exit code, output and the commands that were sent."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "master.sock"))
    server.listen()
    answers: dict[str, str] = {}
    sent: list[str] = []

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                command = connection.makefile("rb").read().decode().removesuffix("\n")
                if command == "end":
                    return
                sent.append(command)
                connection.sendall(answers.get(command, "").encode())

    thread = threading.Thread(target=serve)
    thread.start()
    program = tmp_path / "gatewayctl"
    program.write_text((ROOT / "roles/gateway/files/gatewayctl.py").read_text())

    def run(given: dict[str, str], *words: str, text: str = "") -> tuple[int, str, list[str]]:
        answers.clear()
        answers.update(given)
        sent.clear()
        done = subprocess.run(
            [sys.executable, str(program), *words],
            env={**os.environ, "GATEWAY_RUN_DIRECTORY": str(tmp_path)},
            input=text,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).strip(), list(sent)

    yield run
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(tmp_path / "master.sock"))
        end.sendall(b"end")
        end.shutdown(socket.SHUT_WR)
    thread.join()
    server.close()


def answers(old: int, admin: int = 0, status: str = "UP") -> dict[str, str]:
    """A current worker without requests and an old one with ``old`` on n1."""
    rows = f"nodes,n1,{{}},0,{status},L7OK,\nnodes,waiting,9,9,no check,,\nnodes,BACKEND,9,9,UP,,\n"
    return {
        "show proc": "#<PID> <type>\n10 master 1\n# workers\n12 worker 0\n# old workers\n11 worker 1\n# programs\n",
        "@1 show stat": STAT + rows.format(0),
        "@!12 show stat": STAT + rows.format(0),
        "@!11 show stat": STAT + rows.format(old) + "candidate,n1,1,0,UP,,\n" * bool(old),
        "@1 show servers state nodes": STATE.format(admin=admin),
    }


def test_drain_counts_the_requests_of_every_worker_and_backend(control: Control) -> None:
    code, text, sent = control(answers(2), "drain", "n1", "0.3")
    assert (code, text) == (1, "node n1 still has 3 request(s) after 0.3 s; it gets no new ones")
    assert "@1 set server nodes/n1 state drain" in sent


@pytest.mark.parametrize(("admin", "text"), [(0, "changed"), (8, "unchanged")])
def test_drain_says_whether_it_changed(control: Control, admin: int, text: str) -> None:
    assert control(answers(0, admin), "drain", "n1", "1")[:2] == (0, text)


def test_ready_puts_back_and_a_node_that_is_not_there_is_told(control: Control) -> None:
    assert control(answers(0, 8), "ready", "n1")[:2] == (0, "changed")
    assert control(answers(0), "ready", "n1")[:2] == (0, "unchanged")
    code, said, *_ = control(answers(0, 8), "ready", "n1", "n1")
    assert (code, said) == (0, "changed")
    assert control(answers(0), "drain", "n3", "1")[:2] == (1, "the gateway has no node n3; it has n1")


def test_canary_is_taken_over_at_one_stroke_and_once(control: Control, tmp_path: Path) -> None:
    path, line = tmp_path / "canary.map", "^(/.*)?$ 10 , /.raymetal/a\\1"
    wanted = json.dumps([{"route": "/", "hidden_route": "/.raymetal/a", "percent": 10}])
    prepared = {f"@1 prepare map {path}": "New version created: 3\n"}
    code, text, sent = control(prepared, "canary", text=wanted)
    assert (code, text) == (0, "changed") and path.read_text() == f"{line}\n"
    assert sent[-3:] == [f"@1 prepare map {path}", f"@1 add map @3 {path} <<\n{line}\n", f"@1 commit map @3 {path}"]
    shown = {f"@1 show map {path}": f"0x55 {line}\n\n"}
    assert control(shown, "canary", text=wanted)[:2] == (0, "unchanged")
    assert control({}, "canary", text=wanted)[:2] == (1, f"the gateway has no map {path}")
    assert control({**shown, **prepared}, "canary", text="[]")[:2] == (0, "changed") and path.read_text() == ""
    assert "is no JSON list" in control({}, "canary", text="now")[1] and path.read_text() == ""


def test_of_two_canaries_the_longer_route_decides(control: Control, tmp_path: Path) -> None:
    below = {"route": "/a", "hidden_route": "/.raymetal/a", "percent": 10}
    root = {"route": "/", "hidden_route": "/.raymetal/r", "percent": 20, "other_routes": ["/a"]}
    prepared = {f"@1 prepare map {tmp_path}/canary.map": "New version created: 3\n"}
    assert control(prepared, "canary", text=json.dumps([root, below]))[0] == 0
    lines = (tmp_path / "canary.map").read_text().splitlines()
    assert mapped(lines, "/a/x") == "10 , /.raymetal/a/x" and mapped(lines, "/b") == "20 , /.raymetal/r/b"


def test_wrong_words_and_no_gateway(control: Control, tmp_path: Path) -> None:
    assert control({}, "drain")[0] == 1
    assert control({"@1 show info": "Name: HAProxy\ndescription: abc\n"}, "running")[:2] == (0, "abc")
    code, text, _ = control({"@1 show info": "description: abc\n"}, "await", "def", "0.3")
    assert code == 1 and "runs configuration abc, not def" in text

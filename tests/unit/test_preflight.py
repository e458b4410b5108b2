"""Listener and probe against one another on loopback addresses, the GPUs' health, and the judgement."""

from __future__ import annotations

import copy
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import load, run_module

LISTENER = "roles/preflight/library/preflight_listener.py"
PROBE = "roles/preflight/library/preflight_probe.py"
GPUS = "roles/preflight/library/preflight_gpus.py"
SAMPLES = Path(__file__).parent / "samples"  # where each is from: samples/README.md
RUN = "0123456789abcdef"
filters = load("roles/preflight/filter_plugins/preflight.py")
listener_module = load(LISTENER)
probe_module = load(PROBE)
gpus_module = load(GPUS)


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """Two peers, each with a listener on one port of its plan."""
    made = []
    for name, address in (("a", "127.0.0.2"), ("b", "127.0.0.3")):
        port = free_port(address)
        cluster = f"{name}-{tmp_path.name}"
        told = run_module(LISTENER, cluster=cluster, run=RUN, address=address, ports=[port], seconds=60)
        assert told == {**told, "changed": False, "users": {}, "failed_ports": {}}
        made.append({"name": name, "address": address, "ports": [port], "port": told["port"], "cluster": cluster})
    yield made
    for peer in made:
        run_module(LISTENER, state="absent", cluster=peer["cluster"], run=RUN)


def probe(peers: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    plain = [{key: value for key, value in peer.items() if key != "cluster"} for peer in peers]
    return run_module(PROBE, run=RUN, peers=plain, **more)


def test_all_is_seen(peers: list[dict[str, Any]]) -> None:
    names = ["localhost", "nowhere.invalid"]
    saw = probe(peers, names=names, clock_of="a", mtu=1500, stream_to="b", stream_bytes=5_000_000, stream_seconds=5)
    assert (saw["closed"], saw["connections"]) == ({}, 4)
    assert saw["names"]["nowhere.invalid"] == [] and "127.0.0.1" in saw["names"]["localhost"]
    assert abs(saw["clock_seconds"]) < 0.5
    assert saw["packets"] == {"a": "whole", "b": "whole"}
    assert saw["stream"]["bytes"] >= 5_000_000 and saw["stream"]["mbit_per_second"] > 0


def test_in_check_mode_it_does_the_same(peers: list[dict[str, Any]]) -> None:
    plain = [{key: value for key, value in peer.items() if key != "cluster"} for peer in peers]
    assert run_module(PROBE, check=True, run=RUN, peers=plain)["closed"] == {}


def test_a_closed_port_and_a_peer_that_is_gone(peers: list[dict[str, Any]]) -> None:
    shut = free_port("127.0.0.2")
    peers[0]["ports"].append(shut)
    assert run_module(LISTENER, state="absent", cluster=peers[1]["cluster"], run=RUN)["held"]
    saw = probe(peers, clock_of="b", mtu=1500, stream_to="b")
    gone = {str(port): "refused" for port in [*peers[1]["ports"], peers[1]["port"]]}
    assert saw["closed"] == {"a": {str(shut): "refused"}, "b": gone}
    assert (saw["clock_seconds"], saw["stream"], saw["packets"]) == (None, None, {"a": "whole"})


def test_who_does_not_know_the_run_learns_nothing(peers: list[dict[str, Any]]) -> None:
    where = (peers[0]["address"], peers[0]["port"])
    with socket.create_connection(where, 5) as asking:
        asking.sendall(b'{"run": "another", "want": "time"}\n')
        assert asking.recv(1) == b""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.3)
        asking.sendto(b"x" * 100, where)
        with pytest.raises(TimeoutError):
            asking.recv(1)


def test_another_run_ends_it_only_by_taking_its_place(peers: list[dict[str, Any]]) -> None:
    peer = peers[0]
    assert not run_module(LISTENER, state="absent", cluster=peer["cluster"], run="another")["held"]
    assert probe(peers)["closed"] == {}
    # A run that was killed left its listener: the next one has the ports again.
    told = run_module(LISTENER, cluster=peer["cluster"], run=RUN, address=peer["address"], ports=peer["ports"])
    assert (told["users"], told["failed_ports"]) == ({}, {})
    assert probe([{**peer, "port": told["port"]}])["closed"] == {}


def test_it_ends_by_itself(tmp_path: Path) -> None:
    cluster, port = f"short-{tmp_path.name}", free_port("127.0.0.4")
    run_module(LISTENER, cluster=cluster, run=RUN, address="127.0.0.4", ports=[port], seconds=1)
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.4", port), 5).close()
        except ConnectionRefusedError:
            break
        assert time.monotonic() < deadline, "it still listens"
        time.sleep(0.1)
    assert not run_module(LISTENER, state="absent", cluster=cluster, run=RUN)["held"]


def test_a_port_in_use_is_left_alone_and_told(tmp_path: Path) -> None:
    cluster = f"taken-{tmp_path.name}"
    with socket.create_server(("127.0.0.5", 0)) as taken:
        port = taken.getsockname()[1]
        told = run_module(LISTENER, cluster=cluster, run=RUN, address="127.0.0.5", ports=[port], seconds=60)
        me = listener_module.user_name(os.geteuid())
        assert told["users"] == {str(port): [me]} and told["failed_ports"] == {}
        peer = {"name": "a", "address": "127.0.0.5", "ports": [port], "port": told["port"]}
        assert probe([peer])["closed"] == {}
    run_module(LISTENER, state="absent", cluster=cluster, run=RUN)


def test_an_address_that_is_not_its_own(tmp_path: Path) -> None:
    told = run_module(LISTENER, cluster=f"x-{tmp_path.name}", run=RUN, address="192.0.2.99", ports=[])
    assert told["failed"] and "cannot listen on 192.0.2.99" in told["msg"]


def test_parse_listeners() -> None:
    text = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:18EC 00000000:0000 0A 00000000:00000000 00:00000000 00000000   107        0 31337 1 0 100 0 0 10 0
   1: 0B99ED0A:D2F0 0C99ED0A:18EC 01 00000000:00000000 00:00000000 00000000     0        0 31338 1 0 20 4 30 10 -1
"""
    assert listener_module.parse_listeners(text) == [(6380, 107)]


def test_no_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog drops further connections, as a firewall does."""
    with socket.create_server(("127.0.0.6", 0), backlog=0) as full:
        address, port = full.getsockname()
        held = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((address, port))
            held.append(filler)
        started = time.monotonic()
        assert probe_module.closed_ports([("a", address, port)], 0.3) == {"a": {port: "no answer"}}
        assert time.monotonic() - started < 5
        for filler in held:
            filler.close()


HEALTHY = {
    "ecc_uncorrectable": 0,
    "retirement_pending": False,
    "remapping_pending": False,
    "remapping_failed": False,
    "reset_required": False,
    "slowdowns": [],
}


def test_parse_health() -> None:
    well, ill, old = gpus_module.parse_health((SAMPLES / "health.xml").read_text())
    assert {key: well[key] for key in HEALTHY} == HEALTHY
    assert ill == {
        **ill,
        "ecc_uncorrectable": 3,
        "remapping_pending": True,
        "remapping_failed": True,
        "reset_required": True,
        "slowdowns": ["too hot (hardware)", "hardware slowdown"],
    }
    assert old == {**old, "ecc_uncorrectable": None, "retirement_pending": True, "slowdowns": ["power brake"]}


@pytest.mark.parametrize(
    ("script", "count", "error"),
    [
        (f"cat {SAMPLES}/health.xml", 3, ""),
        ("echo 'Unable to determine the device handle'; exit 255", 0, "Unable to determine the device handle"),
        ("echo '<nvidia_smi_log'", 0, "nvidia-smi: unclosed token"),
        (None, 0, "No such file"),
    ],
)
def test_asking_the_gpus(tmp_path: Path, script: str | None, count: int, error: str) -> None:
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    told = run_module(GPUS, env={**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert len(told["gpus"]) == count and error in told["error"]


PLAN = [
    {"process": "sshd", "variable": "", "protocol": "tcp", "ports": [[22, 22]], "access": "all"},
    {"process": "GCS", "variable": "ray_node_port", "protocol": "tcp", "ports": [[6380, 6380]], "access": "peers"},
    {"process": "workers", "variable": "", "protocol": "tcp", "ports": [[10002, 10010]], "access": "peers"},
    {"process": "replicas", "variable": "", "protocol": "tcp", "ports": [], "access": "peers"},
    {"process": "Serve proxy", "variable": "", "protocol": "tcp", "ports": [[8000, 8000]], "access": "proxy_clients"},
    {"process": "dashboard", "variable": "", "protocol": "tcp", "ports": [[8265, 8265]], "access": "operators"},
    {"process": "Redis", "variable": "", "protocol": "tcp", "ports": [[6379, 6379]], "access": "local"},
]
SETTINGS = {"clock_tolerance_seconds": 1, "bandwidth_minimum_mbit": 500}


def test_ports_that_are_tried() -> None:
    assert list(filters.preflight_ports(PLAN)) == [6380, 10002, 10006, 10010, 8000]
    assert filters.preflight_ports(PLAN, "gateway") == {8000: "Serve proxy"}


def cluster(count: int = 4) -> dict[str, dict[str, Any]]:
    """A head, h0, and workers, all well."""
    names = [f"h{number}" for number in range(count)]
    return {
        name: {
            "part": "node",
            "user": "raymetal",
            "address": f"10.0.0.{number}",
            "addresses": ["127.0.0.1", f"10.0.0.{number}"],
            "interface": "eth0",
            "mtu": 1500,
            "plan": PLAN,
            "next": names[(number + 1) % count],
            "error": "",
            "gpus": [],
            "gpu_error": "",
            "listener": {"port": 40000 + number, "users": {}, "failed_ports": {}},
            "probe": {
                "closed": {},
                "names": {"head": ["10.0.0.0"], "10.9.9.9": ["10.9.9.9"]},
                "clock_seconds": 0.001 if number else None,
                "packets": {peer: "whole" for peer in names if peer != name},
                "stream": {"bytes": 1, "seconds": 1, "mbit_per_second": 900},
                "connections": 18,
            },
        }
        for number, name in enumerate(names)
    }


def judged(hosts: dict[str, Any], found: list[dict[str, Any]] | None = None, **settings: Any) -> dict[str, Any]:
    names = {"head": "h0", "10.9.9.9": "h0"}
    given = json.loads(json.dumps(hosts))  # as facts are: keys are text
    result: dict[str, Any] = filters.preflight_result(
        given, found or [], "prod", "h0", names, {**SETTINGS, **settings}, []
    )
    assert result["ok"] == (not result["problems"])
    return result


def told(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(p["host"], p["check"], p["problem"]) for p in result["problems"]]


def test_all_is_well() -> None:
    result = judged(cluster())
    assert told(result) == [] and (result["pairs"], result["connections"], result["leave_out"]) == (12, 72, [])
    text = filters.preflight_text(result, [])
    assert "12 pairs, 72 connections" in text and text.endswith("All is well.") and "FAILED" not in text
    assert "h1    10.0.0.1  eth0       1500  +0.001   0     900     h2  ok" in text


@pytest.mark.parametrize(
    ("host", "path", "value", "expected"),
    [
        ("h2", "probe.names", {"head": []}, ("h2", "names", "does not resolve")),
        ("h2", "probe.names", {"head": ["10.0.0.7"]}, ("h2", "names", "resolves to 10.0.0.7, which is none of")),
        ("h2", "probe.clock_seconds", -61.5, ("h2", "clock", "the clock is 61.5 s behind that of h0")),
        ("h2", "mtu", 1400, ("h2", "mtu", "its MTU is 1400 bytes, that of most nodes 1500")),
        ("h2", "listener.users", {6380: ["redis"]}, ("h2", "ports", "is taken by a process of user redis")),
        ("h2", "listener.failed_ports", {80: "Permission denied"}, ("h2", "ports", "cannot be listened on")),
        (
            "h2",
            "probe.stream",
            {"bytes": 1, "seconds": 1, "mbit_per_second": 94},
            ("h2", "bandwidth", "94 Mbit/s arrive from h2 at h3"),
        ),
        (
            "h2",
            "probe.packets",
            {"h0": "whole", "h1": "whole", "h3": "lost"},
            ("h3", "mtu", "packets of 1500 bytes, its MTU, do not arrive from h2 at h3"),
        ),
        (
            "h2",
            "probe.closed",
            {"h3": {6380: "no answer", 40003: "no answer", 10002: "refused"}},
            ("h3", "ports", "h2 cannot reach port 6380 (GCS), any other (replicas, NCCL) of h3: no answer"),
        ),
        ("h0", "probe.closed", {"h1": {8000: "refused"}}, ("h1", "ports", "h0 cannot reach port 8000 (Serve proxy)")),
        ("h1", "probe.closed", {"h0": {6380: "refused"}}, ("h1", "ports", "h1 cannot reach port 6380 (GCS) of h0")),
        ("h2", "gpu_error", "timeout", ("h2", "gpus", "timeout")),
        ("h2", "error", "another preflight", ("h2", "host", "another preflight")),
    ],
)
def test_one_fault_is_put_on_one_host(host: str, path: str, value: Any, expected: tuple[str, str, str]) -> None:
    hosts = cluster()
    there: Any = hosts[host]
    *parents, last = path.split(".")
    for step in parents:
        there = there[step]
    there[last] = value
    result = judged(hosts)
    found = told(result)
    assert (found[0][:2], {name for name, _, _ in found}) == (expected[:2], {expected[0]})
    assert expected[2] in found[0][2]
    assert result["leave_out"] == [expected[0]]
    assert [row["name"] for row in result["hosts"] if not row["ok"]] == [expected[0]]


def test_a_fault_of_the_head_is_named_and_does_not_condemn_the_others() -> None:
    hosts = cluster(5)
    for name in ("h1", "h2", "h3", "h4"):
        hosts[name]["probe"]["closed"] = {"h0": {6380: "no answer"}}
        hosts[name]["probe"]["clock_seconds"] = 30.0
    result = judged(hosts)
    assert told(result) == [
        ("h0", "clock", "the clock differs from that of h1, h2, h3, h4, which are 30.0 to 30.0 s ahead of it"),
        ("h0", "ports", "h1, h2, h3, h4 cannot reach port 6380 (GCS) of h0: no answer"),
    ]
    assert result["leave_out"] == []


def test_who_cannot_reach_many_is_to_blame_himself() -> None:
    hosts = cluster(5)
    hosts["h3"]["probe"]["closed"] = {peer: {6380: "no answer"} for peer in ("h0", "h1", "h2", "h4")}
    hosts["h1"]["probe"]["closed"] = {"h3": {6380: "no answer"}}
    assert {name for name, _, _ in told(judged(hosts))} == {"h3"}


def test_a_way_from_a_host_that_is_bad_anyway_condemns_no_other() -> None:
    hosts = cluster()
    hosts["h1"]["mtu"] = 1400
    hosts["h1"]["probe"]["closed"] = {"h2": {6380: "no answer"}}
    hosts["h2"]["probe"]["closed"] = {"h1": {6380: "no answer"}}
    assert judged(hosts)["leave_out"] == ["h1"]


def test_a_slow_link_is_its_sender_s_even_to_a_host_that_is_bad_anyway() -> None:
    hosts = cluster()
    hosts["h2"]["mtu"] = 1400
    hosts["h1"]["probe"]["stream"] = {"bytes": 1, "seconds": 1, "mbit_per_second": 3}
    assert {(host, check) for host, check, _ in told(judged(hosts))} == {("h2", "mtu"), ("h1", "bandwidth")}


def test_a_slow_link_is_not_judged_without_a_minimum() -> None:
    hosts = cluster()
    hosts["h1"]["probe"]["stream"] = {"bytes": 1, "seconds": 1, "mbit_per_second": 3}
    assert judged(hosts, bandwidth_minimum_mbit=0)["ok"]


def test_who_did_not_answer_is_told_once() -> None:
    hosts = cluster()
    hosts["h2"] |= {"listener": None, "probe": None, "address": "", "error": "looking at it failed, as told above"}
    assert told(judged(hosts)) == [("h2", "host", "looking at it failed, as told above")]
    found = [{"host": "h2", "variable": "ansible_host", "value": "10.0.0.2", "problem": "no answer", "do": "look"}]
    result = judged(hosts, found)
    assert told(result) == [("h2", "host", "no answer")]
    text = filters.preflight_text(result, ["h2: it"])
    assert "1 problem(s), and nothing was changed:\n- h2: it\n" in text
    assert text.endswith("""Without h2: -e '{"cluster_left_out": ["h2"]}'""")


def test_the_health_of_gpus_is_judged() -> None:
    hosts = cluster()
    hosts["h1"]["gpus"] = [
        {"name": "H100", "uuid": "GPU-1", **HEALTHY},
        {
            "name": "H100",
            "uuid": "GPU-2",
            "ecc_uncorrectable": 2,
            "retirement_pending": False,
            "remapping_pending": True,
            "remapping_failed": True,
            "reset_required": True,
            "slowdowns": ["too hot (driver)"],
        },
    ]
    result = judged(hosts)
    assert [p["problem"].split(" ")[0] for p in result["problems"]] == ["2", "bad", "bad", "the", "its"]
    assert {p["variable"] for p in result["problems"]} == {"H100 GPU-2"}


def test_a_gateway_needs_the_proxies_only_and_is_needed_by_none() -> None:
    hosts = cluster()
    hosts["gate"] = {**copy.deepcopy(hosts["h1"]), "part": "gateway", "next": "", "mtu": 9000}
    assert {p["name"]: p["ports"] for p in filters.preflight_peers(hosts, "gate")} == {
        name: [8000] for name in ("h0", "h1", "h2", "h3")
    }
    assert [p["name"] for p in filters.preflight_peers(hosts, "h0")] == ["h1", "h2", "h3"]
    assert filters.preflight_next(hosts, "h3") == "h0"
    assert filters.preflight_next(hosts, "gate") == ""
    assert judged(hosts)["ok"]


def test_inputs() -> None:
    assert filters.preflight_problems({"preflight_listen_seconds": 300}, {"head": "h0"}, ["h0"]) == []
    found = filters.preflight_problems({"preflight_listen_seconds": 0}, {"head": "h9"}, ["h0"])
    assert [p["variable"] for p in found] == ["preflight_listen_seconds", "preflight_names head"]

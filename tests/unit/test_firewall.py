"""The port plan: what listens where, who may reach it, what clashes, and how nft is told."""

from __future__ import annotations

from typing import Any

import pytest
from support import load

firewall = load("roles/firewall/filter_plugins/firewall.py")


def process(ports: Any, access: str = "peers", part: str = "node", **more: Any) -> dict[str, Any]:
    return {"part": part, "process": "it", "variable": "the_port", "access": access, "ports": ports, **more}


def entry(process: str, variable: str, *ports: list[int], access: str = "peers") -> dict[str, Any]:
    return {"process": process, "variable": variable, "protocol": "tcp", "ports": [*ports], "access": access}


@pytest.mark.parametrize(
    ("given", "ports"),
    [
        (6380, [[6380, 6380]]),
        ("6380", [[6380, 6380]]),
        (0, []),
        ([30000, 31000], [[30000, 31000]]),
        ([0, 0], []),
        ([20000, 10000], []),
        ("20001,20000", [[20000, 20000], [20001, 20001]]),
        ([1, 5, 9], [[1, 1], [5, 5], [9, 9]]),
        (70000, []),
        (-1, []),
        ("none", []),
        (True, []),
    ],
)
def test_ports(given: Any, ports: list[list[int]]) -> None:
    (found,) = firewall.port_plan([process(given)], ["node"])
    assert found["ports"] == ports


def test_a_plan_has_what_the_host_is() -> None:
    processes = [process(1), process(2, part="head"), process(3, part="gateway"), process(None)]
    assert [e["ports"] for e in firewall.port_plan(processes, ["node", "head"])] == [[[1, 1]], [[2, 2]]]


@pytest.mark.parametrize(
    ("host", "access"),
    [("127.0.0.1", "local"), ("localhost", "local"), ("::1", "local"), ("0.0.0.0", "peers"), ("10.0.0.1", "peers")],
)
def test_what_listens_on_loopback_is_for_this_host(host: str, access: str) -> None:
    assert firewall.port_plan([process(1, host=host)], ["node"])[0]["access"] == access


WORKERS = entry("workers", "ray_node_options.min_worker_port", [10002, 19999])
METRICS = entry("metrics of the dashboard", "", [44227, 44227])
SSH = entry("sshd", "ansible_port", [22, 22], access="all")


@pytest.mark.parametrize(
    ("plan", "variable", "value", "text"),
    [
        ([entry("GCS", "a", [1, 1]), entry("x", "b", [1, 1])], "b", "1", "is also a port of the GCS, 1 (a)"),
        ([WORKERS, entry("x", "b", [10500, 10500])], "b", "10500", "of the workers, 10002-19999 (ray_node_options."),
        ([entry("x", "b", [10500, 10500]), WORKERS], "b", "10500", "of the workers, 10002-19999"),
        ([METRICS, entry("x", "b", [44227, 44227])], "b", "44227", "(which no setting moves)"),
        ([entry("x", "b", [44227, 44227]), METRICS], "b", "44227", "(which no setting moves)"),
        ([WORKERS, METRICS, entry("r", "R", [40000, 45000])], "R", "40000-45000", "(which no setting moves)"),
        ([METRICS, entry("workers", "w", [40000, 45000])], "w", "40000-45000", "(which no setting moves)"),
        ([SSH, entry("gateway, the API", "gateway_port", [22, 22])], "gateway_port", "22", "sshd, 22 (ansible_port)"),
    ],
)
def test_two_on_one_port(plan: list[dict[str, Any]], variable: str, value: str, text: str) -> None:
    (problem,) = firewall.port_problems(plan)
    assert (problem["variable"], problem["value"]) == (variable, value) and text in problem["problem"]


def test_no_two_on_one_port() -> None:
    assert firewall.port_problems([SSH, WORKERS, METRICS, entry("x", "b"), entry("y", "c")]) == []


@pytest.mark.parametrize("network", ["192.0.2.0/33", "192.0.2.1/24", "example.com", ""])
def test_what_is_no_network(network: str) -> None:
    (problem,) = firewall.network_problems({"firewall_peers": ["10.0.0.0/8", "::/0", network]})
    assert problem["variable"] == "firewall_peers" and "is no address and no network" in problem["problem"]


def test_report_puts_equal_hosts_together() -> None:
    plans = {"a": [WORKERS, SSH], "b": [METRICS, entry("replicas", "")], "c": [WORKERS, SSH]}
    first, second = firewall.port_report(plans).split("\n\n")
    lines = [line.split("  ") for line in first.splitlines()]
    assert lines[0] == ["a, c:"] and [line[0] for line in lines[1:]] == ["tcp port", "22", "10002-19999"]
    assert second.splitlines()[-1].startswith("drawn     replicas")


@pytest.mark.parametrize(
    ("access", "more", "ports"),
    [
        ("all", [], "22"),
        ("peers", [], "10002-19999"),
        ("clients", [], ""),
        (None, [], "10002-19999, 44227"),
        (None, [[32768, 60999]], "10002-19999, 32768-60999"),
        (None, [[20000, 20001], [15000, 20000]], "10002-20001, 44227"),
    ],
)
def test_ports_in_the_words_of_nft(access: str | None, more: list[list[int]], ports: str) -> None:
    plan = [SSH, WORKERS, {**METRICS, "access": "operators"}]
    assert firewall.nft_ports(plan, access, more) == ports


@pytest.mark.parametrize(
    ("networks", "sources"),
    [
        ([], []),
        (["0.0.0.0/0", "::/0"], ["meta nfproto ipv4", "meta nfproto ipv6"]),
        (["0.0.0.0/0", "10.0.0.1"], ["meta nfproto ipv4"]),
        (["10.0.0.1", "10.0.0.1/32", "10.0.0.0/24", "192.0.2.7"], ["ip saddr { 10.0.0.0/24, 192.0.2.7 }"]),
        (["10.0.0.3", "10.0.0.2"], ["ip saddr { 10.0.0.2, 10.0.0.3 }"]),
        (["2001:db8::1", "10.0.0.1"], ["ip saddr { 10.0.0.1 }", "ip6 saddr { 2001:db8::1 }"]),
    ],
)
def test_sources_in_the_words_of_nft(networks: list[str], sources: list[str]) -> None:
    assert firewall.nft_sources(networks) == sources


def test_addresses_of_a_host_are_all_that_are_known() -> None:
    told = [{"a": "", "b": "10.9.0.2"}, {"a": "10.0.0.1", "b": "10.0.0.2", "x": "10.0.0.9"}, {"c": ""}]
    assert firewall.peer_addresses(["a", "b", "c"], told) == {"a": ["10.0.0.1"], "b": ["10.9.0.2", "10.0.0.2"], "c": []}

"""The shape of the inventory, and how problems are told."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, load

filters = load("roles/validate/filter_plugins/validate_inventory.py")
GROUPS = {"ray_head": ["h"], "ray_workers": ["w1", "w2"], "ray_cluster": ["h", "w1", "w2"]}
ADDRESSES = {"h": "10.0.0.1", "w1": "10.0.0.2", "w2": "10.0.0.3"}


@pytest.mark.parametrize(
    ("groups", "addresses", "wrong"),
    [
        ({}, {}, []),
        ({"ray_workers": [], "ray_cluster": ["h"]}, {}, []),
        ({"ray_head": []}, {}, [("-", "group ray_head", "has no host")]),
        ({"ray_head": ["h", "w1"], "ray_workers": ["w2"]}, {}, [("h,w1", "group ray_head", "has 2 hosts")]),
        ({}, {"w2": "10.0.0.2"}, [("w2", "ansible_host", "2 hosts have the same address: w1, w2")]),
        ({"ray_workers": ["h", "w1", "w2"]}, {}, [("h", "groups", "is head and worker")]),
        ({"ray_cluster": ["h", "w1"]}, {}, [("w2", "group ray_cluster", "is not in the group")]),
        (
            {"ray_head": [], "ray_cluster": ["w1"]},
            {},
            [("-", "group ray_head", "no host"), ("w2", "group ray_cluster", "not in the group")],
        ),
    ],
)
def test_inventory(groups: dict[str, list[str]], addresses: dict[str, str], wrong: list[tuple[str, ...]]) -> None:
    found = filters.inventory_problems({**GROUPS, **groups}, {**ADDRESSES, **addresses})
    assert [(p["host"], p["variable"]) for p in found] == [w[:2] for w in wrong]
    assert all(w[2] in p["problem"] for p, w in zip(found, wrong, strict=True))


def test_a_head_that_works_is_permitted_when_meant() -> None:
    both = {**GROUPS, "ray_workers": ["h", "w1", "w2"]}
    assert filters.inventory_problems(both, ADDRESSES, head_and_worker=True) == []


@pytest.mark.parametrize(
    ("left_out", "wrong"),
    [
        ([], []),
        (["w1", "w2", "gate"], []),
        ("w1", [("cluster", "is no list of inventory names")]),
        ([{"name": "w1"}], [("cluster", "is no list of inventory names")]),
        (["w1", "w9"], [("cluster", "w9 is no host of the inventory")]),
        (["h"], [("h", "is the head")]),
    ],
)
def test_left_out(left_out: Any, wrong: list[tuple[str, str]]) -> None:
    found = filters.left_out_problems({**GROUPS, "all": ["h", "w1", "w2", "gate"]}, left_out)
    assert [(p["host"], p["variable"]) for p in found] == [(host, "cluster_left_out") for host, _ in wrong]
    assert all(text in p["problem"] for p, (_, text) in zip(found, wrong, strict=True))


def test_a_host_that_is_left_out_is_unknown_to_the_others(tmp_path: Path) -> None:
    play = [
        {"hosts": "head1", "gather_facts": False, "tasks": [{"copy": {"content": "{{ seen }}", "dest": "{{ to }}"}}]}
    ]
    (tmp_path / "play.yml").write_text(json.dumps(play))
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    seen = ["cluster_nodes", "gateway_hosts", "firewall_hosts"]
    given = {
        "seen": "{{ {" + ", ".join(f"'{name}': {name}" for name in seen) + ", 'nodes': gateway_nodes} | to_json }}",
        "to": str(tmp_path / "seen.json"),
        "cluster_left_out": ["gpu1", "gate2"],
        "validate_node": {"address": "{{ ansible_host }}"},
        "ansible_connection": "local",
        "ansible_become": False,
    }
    (tmp_path / "gateways.yml").write_text("gateway: {hosts: {gate1: , gate2: }}")
    command = ["ansible-playbook", "-i", str(ROOT / "inventories/example"), "-i", str(tmp_path / "gateways.yml")]
    done = subprocess.run(
        [*command, "-e", json.dumps(given), str(tmp_path / "play.yml")],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "seen.json").read_text()) == {
        "cluster_nodes": ["head1", "gpu2"],
        "gateway_hosts": ["gate1"],
        "firewall_hosts": ["head1", "gpu2", "gate1"],
        "nodes": [{"name": "head1", "address": "192.0.2.10"}, {"name": "gpu2", "address": "192.0.2.12"}],
    }


def told(host: str, **more: Any) -> dict[str, Any]:
    return {"host": host, "variable": "v", "value": 1, "problem": "is wrong.", "do": "mend it", **more}


def test_problem_lines() -> None:
    lines = filters.problem_lines([told("a"), told("b"), told("a"), told("c", value=None), told("d", value="x" * 500)])
    assert lines[:2] == ["a, b: v = 1: is wrong. To do: mend it.", "c: v: is wrong. To do: mend it."]
    assert len(lines) == 3 and len(lines[2]) < 200


def test_role_problems_takes_only_what_validate_left() -> None:
    facts = [{"validate_a": [told("h")], "gpu_host": {}}, {"validate_a": [], "validate_b": [told("w")]}]
    assert [p["host"] for p in filters.role_problems(facts)] == ["h", "w"]


def test_report_counts_and_promises() -> None:
    assert filters.problem_report(["one", "two"], "gate 1").splitlines() == [
        "gate 1: 2 problem(s), and nothing that runs was changed",
        "- one",
        "- two",
    ]

"""Options of `ray start`: their flags, and what is refused."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest
import yaml
from support import ROOT, load

filters = load("roles/ray_node/filter_plugins/ray_node.py")
KNOWN = yaml.safe_load((ROOT / "roles/ray_node/vars/main/options.yml").read_text())["__ray_node_known_options"]
PORTS = {
    "ray_node_port": 6380,
    "ray_node_dashboard_port": 8265,
}


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, []),
        ({"head": True}, ["--head"]),
        ({"head": False}, []),
        ({"include_dashboard": True}, ["--include-dashboard=true"]),
        ({"include_dashboard": False}, ["--include-dashboard=false"]),
        ({"num_cpus": 0}, ["--num-cpus=0"]),
        ({"resources": {"b": 2, "a": 0.5}}, ['--resources={"a": 0.5, "b": 2}']),
        ({"labels": {"zone": "a", "rack": 1}}, ["--labels=zone=a,rack=1"]),
        ({"worker_port_list": [20000, 20001]}, ["--worker-port-list=20000,20001"]),
        ({"num_gpus": "omit", "memory": None}, []),
        ({"node_name": "n 1", "num_cpus": 2}, ["--node-name=n 1", "--num-cpus=2"]),
        ({"num_cpus": 2, "address": "h:1"}, ["--address=h:1", "--num-cpus=2"]),
    ],
)
def test_flags(options: dict[str, Any], flags: list[str]) -> None:
    assert filters.ray_start_flags(options, KNOWN) == flags


def problems(options: dict[Any, Any], **ports: Any) -> list[str]:
    found = filters.ray_start_problems(options, KNOWN, {**PORTS, **ports})
    return [f"{p['variable']}: {p['problem']}. {p['do']}" for p in found]


@pytest.mark.parametrize(
    ("option", "value", "problem", "do"),
    [
        ("num_gpu", 1, "no such option", "did you mean num_gpus?"),
        ("num-cpus", 1, "no such option", "did you mean num_cpus?"),
        ("zzzzzzzz", 1, "no such option", "see `ray start --help`"),
        (7, 1, "no such option", "--help"),
        ("redis_port", 6379, "no longer has it", "ray_node_port"),
        ("webui_host", "0.0.0.0", "no longer has it", "use dashboard_host"),
        ("head", True, "belongs to the role", "group ray_head"),
        ("block", True, "belongs to the role", "systemd"),
        ("dashboard_port", 8265, "belongs to the role", "ray_node_dashboard_port"),
        ("num_cpus", "4", "is not a whole number", ""),
        ("num_cpus", 4.0, "is not a whole number", ""),  # click refuses 4.0
        ("num_cpus", math.inf, "is not a whole number", ""),
        ("num_cpus", True, "is not a whole number", ""),
        ("num_cpus", -1, "is negative", "zero or more"),
        ("object_store_memory", -5, "is negative", ""),
        ("system_reserved_cpu", "1", "is not a number", ""),
        ("system_reserved_cpu", -0.5, "is negative", ""),
        ("include_dashboard", "yes", "is not true or false", ""),
        ("no_monitor", 1, "is not true or false", ""),
        ("log_color", "blue", "is none of its choices", "auto, false, true"),
        ("node_name", datetime.date(2026, 1, 2), "is not text", ""),
        ("node_manager_port", 70000, "is no port", "1 to 65535"),
        ("node_manager_port", -1, "is no port", "1 to 65535"),
        ("min_worker_port", 20000, "is above max_worker_port, 19999", "swap"),
        ("max_worker_port", 70000, "is no port", ""),
        ("resources", "rack", "is not a mapping", ""),
        ("resources", {"rack": datetime.date(2026, 1, 2)}, "cannot be written as JSON", "plain names and numbers"),
        ("resources", {datetime.date(2026, 1, 2): 1}, "cannot be written as JSON", ""),
        ("resources", {"rack": math.nan}, "cannot be written as JSON", ""),
        ("resources", {"rack": "many"}, "amounts of rack are not numbers", "name: amount"),
        ("resources", {"rack": -1, "row": True}, "amounts of rack, row are not numbers", ""),
        ("resources", {"GPU": 8}, "an option of its own", "num_gpus"),
        ("labels", ["a"], "is not a mapping", ""),
        ("system_config", "{}", "is not a mapping", ""),
    ],
)
def test_one_problem(option: Any, value: Any, problem: str, do: str) -> None:
    (line,) = problems({option: value})
    assert line.startswith(f"ray_node_options.{option}: ") and problem in line and do in line


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 8, "num_gpus": 0, "resources": {"rack": 1, "half": 0.5}, "labels": {"zone": "a"}},
        {"num_cpus": "omit", "log_style": None},
        {"node_manager_port": 0, "object_manager_port": 0},  # 0: Ray chooses
        {"node_manager_port": 10500, "worker_port_list": "20000,20001"},
        {"node_manager_port": 15000, "min_worker_port": 20000, "max_worker_port": 30000},
        {"min_worker_port": 0, "max_worker_port": 0},
        {"log_color": False, "include_dashboard": True, "no_monitor": False, "verbose": 1},
        {"system_config": {"a": {"b": 1}}, "system_reserved_cpu": 0.5},
    ],
)
def test_no_problem(options: dict[str, Any]) -> None:
    assert problems(options) == []


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_set_elsewhere_is_one(port: int) -> None:
    assert problems({}, ray_node_port=port) == ["ray_node_port: is no port. write 1 to 65535"]


def test_all_problems_at_once() -> None:
    options = {"num_cpus": -1, "head": True, "nope": 1, "node_manager_port": -1, "min_worker_port": 20000}
    assert len(problems(options, ray_node_dashboard_port=0)) == 6


def test_tables_agree_with_the_pinned_ray() -> None:
    """What is owned exists, what is removed does not."""
    assert set(filters.OWNED) <= set(KNOWN)
    assert not set(filters.REMOVED) & set(KNOWN)


@pytest.mark.parametrize(
    ("environment", "variables"),
    [
        ({"HF_TOKEN": "x", "RAY_BACKEND_LOG_LEVEL": "info"}, []),
        ({"RAY_USE_TLS": "1"}, ["ray_node_environment.RAY_USE_TLS"]),
        (
            {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "never told"},
            ["ray_node_environment.RAY_AUTH_MODE", "ray_node_environment.RAY_AUTH_TOKEN"],
        ),
    ],
)
def test_what_belongs_to_the_role_is_not_the_operators(environment: dict[str, str], variables: list[str]) -> None:
    found = filters.ray_authentication_problems(False, False, "head", environment)
    assert [problem["variable"] for problem in found] == variables and "never told" not in str(found)


def test_tls_is_of_the_whole_cluster() -> None:
    assert filters.ray_authentication_problems(True, True, "head", {}) == []
    assert [p["variable"] for p in filters.ray_authentication_problems(True, False, "head", {})] == ["ray_node_tls"]

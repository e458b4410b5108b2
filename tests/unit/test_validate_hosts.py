"""Gate 2: each problem alone, from one good host."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from support import load

host_problems = load("roles/validate/filter_plugins/validate_hosts.py").host_problems
GIB = 1024**3
DISK = {"device": 1, "free_bytes": 100 * GIB, "total_bytes": 400 * GIB, "read_only": False}
GPU = {"index": 0, "uuid": "GPU-0", "name": "NVIDIA H100", "memory_mib": 81559}
GOOD: dict[str, Any] = {
    "address": "10.0.0.1",
    "error": "",
    "facts": {
        "os": {"id": "debian", "version": "12"},
        "arch": "x86_64",
        "cpus": 16,
        "memory_bytes": 64 * GIB,
        "shm_bytes": 32 * GIB,
        "systemd": True,
        "packages": ["libnuma1", "python3-venv"],
        "python": {"path": "/usr/bin/python3.11", "version": "3.11.2"},
        "clock_difference_seconds": 0.2,
        "cluster": "raymetal",
        "interfaces": {
            "eth0": {"addresses": ["10.0.0.1"], "mtu": 1500, "up": True},
            "eth1": {"addresses": [], "mtu": 9000, "up": True},
            "eth2": {"addresses": ["10.1.0.1"], "mtu": 1500, "up": False},
        },
        "user": {"uid": 999, "shell": "/usr/sbin/nologin", "home": "/var/lib/raymetal"},
        "disks": dict.fromkeys(("/opt/raymetal", "/var/lib/raymetal", "/models"), DISK),
        "paths": {
            "/opt/raymetal/env/0123456789ab": {"exists": False, "directory": False, "config_json": False},
            "/models/m": {"exists": True, "directory": True, "config_json": True},
        },
        "driver_version": "580.65.06",
        "driver_cuda": "13.0",
        "gpu_error": None,
        "gpus": [GPU, {**GPU, "index": 1}],
    },
    "wanted": {
        "supported_os": {"debian": ["12", "13"], "ubuntu": ["24.04"]},
        "memory_minimum_gib": 4,
        "disk_minimum_gib": 10,
        "disk_reserve_percent": 5,
        "clock_tolerance_seconds": 60,
        "required_gpus": 0,
        "equal_gpus": True,
        "root": "/opt/raymetal",
        "state_dir": "/var/lib/raymetal",
        "model_root": "/models",
        "environment": "/opt/raymetal/env/0123456789ab",
        "cluster": "raymetal",
        "head_address": "10.0.0.1",
        "interface": "",
        "user": "raymetal",
        "packages": ["libnuma1"],
        "variant": "cuda",
        "python_source": "auto",
        "python_version": "3.11",
        "lock_cuda": "13.0.88",
        "supervisor": "auto",
        "runtime": "host",
        "firewall": True,
        "logical_gpus": False,
        "num_gpus": None,
        "num_cpus": None,
        "object_store_memory": None,
        "address": "10.0.0.1",
        "models": [{"name": "m", "host_path": "/models/m"}],
        "cluster_size": 2,
    },
}
NO_GPU: dict[str, Any] = {"facts.gpus": [], "facts.driver_cuda": None, "facts.driver_version": None}
OUT_OF_ORDER = "NVIDIA-SMI has failed\nMake sure"


def host(**changes: Any) -> dict[str, Any]:
    """The good host with some values changed, each named by its path."""
    made = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split(".")
        there = made
        for step in parents:
            there = there[step]
        there[last] = value
    return made


def applications(**engine_kwargs: Any) -> list[dict[str, Any]]:
    return [{"name": "a", "args": {"llm_configs": [{"engine_kwargs": engine_kwargs}]}}]


def test_the_good_host_is_good() -> None:
    assert host_problems({"h": host(), "w": host(address="10.0.0.2")}, applications(tensor_parallel_size=4)) == []


@pytest.mark.parametrize(
    ("changes", "variable", "problem"),
    [
        ({"facts.os": {"id": "debian", "version": "11"}}, "gpu_host_supported_os", "is not supported"),
        ({"facts.os": {"id": "alpine", "version": "3"}}, "gpu_host_supported_os", "is not supported"),
        ({"facts.cluster": "prod"}, "cluster_name", "carries cluster prod"),
        ({"facts.arch": "aarch64"}, "python_env_lock", "x86_64"),
        ({"facts.memory_bytes": 3 * GIB}, "gpu_host_memory_minimum_gib", "has 3.0 GiB of memory"),
        (
            {"facts.disks": {**GOOD["facts"]["disks"], "/opt/raymetal": {**DISK, "free_bytes": 2 * GIB}}},
            "gpu_host_disk_minimum_gib",
            "2.0 GiB are free at /opt/raymetal, 10 are needed and 20.0 are to stay free",
        ),
        (
            {"facts.disks": {**GOOD["facts"]["disks"], "/opt/raymetal": {**DISK, "free_bytes": 29 * GIB}}},
            "cluster_disk_reserve_percent",
            "29.0 GiB are free at /opt/raymetal, 10 are needed and 20.0 are to stay free",
        ),
        (
            {"facts.disks": {**GOOD["facts"]["disks"], "/models": {**DISK, "device": 2, "free_bytes": 19 * GIB}}},
            "cluster_disk_reserve_percent",
            "19.0 GiB are free at /models, 0 are needed and 20.0 are to stay free",
        ),
        (
            {"facts.disks": {**GOOD["facts"]["disks"], "/models": {**DISK, "read_only": True}}},
            "model_store_root",
            "is on a file system that is read-only",
        ),
        ({"facts.shm_bytes": GIB // 2}, "/dev/shm", "has only 0.50 GiB"),
        ({"wanted.object_store_memory": 40 * GIB}, "ray_node_options.object_store_memory", "has only 32.00 GiB"),
        ({"facts.clock_difference_seconds": -90.0}, "gpu_host_clock_tolerance_seconds", "differs by -90.0 s"),
        (
            {"facts.user": {"uid": 1000, "shell": "/bin/bash", "home": "/home/raymetal"}},
            "cluster_user",
            "/home/raymetal",
        ),
        ({"facts.python": None, "wanted.python_source": "host"}, "python_env_python_version", "no such Python"),
        ({"wanted.packages": ["zstd", "libnuma1"]}, "cluster_debian_mirror", "no Debian mirror and lacks zstd"),
        (
            {"facts.systemd": False, "wanted.supervisor": "systemd", "wanted.firewall": False},
            "ray_node_supervisor",
            "not systemd",
        ),
        ({"facts.systemd": False}, "firewall_enabled", "not systemd"),
        (
            {"facts.paths": {**GOOD["facts"]["paths"], "/models/m": {"directory": False, "config_json": False}}},
            "model_store_models m.host_path",
            "is no directory",
        ),
        (
            {"facts.paths": {**GOOD["facts"]["paths"], "/models/m": {"directory": True, "config_json": False}}},
            "model_store_models m.host_path",
            "has no config.json",
        ),
        ({"wanted.interface": "eth9"}, "cluster_interface", "the host has eth0, eth1, eth2"),
        ({"wanted.interface": "eth1"}, "cluster_interface", "has no address"),
        ({"wanted.interface": "eth2"}, "cluster_interface", "is down"),
        ({"wanted.address": "127.0.0.1"}, "ray_node_address", "is a loopback address"),
        ({"wanted.address": "127.0.1.1", "wanted.cluster_size": 1}, "ray_node_address", "is a loopback address"),
        ({"wanted.address": "head.example"}, "ray_node_address", "is no IP address"),
        ({"wanted.address": ""}, "ray_node_address", "no address on the route to the head"),
        ({"wanted.num_gpus": 4}, "ray_node_options.num_gpus", "the host has 2 GPUs"),
        ({"wanted.required_gpus": 8}, "gpu_host_required_gpus", "the host has 2 GPUs"),
        ({"facts.driver_cuda": "12.8"}, "python_env_lock", "serves CUDA 12.8, the lock is built for CUDA 13.0.88"),
        ({"facts.driver_cuda": None}, "python_env_lock", "serves CUDA None"),
        (
            {**NO_GPU, "facts.gpu_error": OUT_OF_ORDER, "wanted.required_gpus": 1},
            "gpu_host_required_gpus",
            "has 0 GPUs (NVIDIA-SMI has failed)",
        ),
        ({"facts": None, "error": "Connection refused"}, "ansible_host", "does not answer: Connection refused"),
    ],
)
def test_one_problem(changes: dict[str, Any], variable: str, problem: str) -> None:
    (found,) = host_problems({"h": host(**changes)}, [])
    assert (found["host"], found["variable"]) == ("h", variable)
    assert problem in found["problem"] and found["do"]


def test_the_driver_to_install_is_named() -> None:
    (found,) = host_problems({"h": host(**{"facts.driver_cuda": "12.8"})}, [])
    assert found["do"] == "install a driver for CUDA 13: 580 or newer"


@pytest.mark.parametrize(
    "changes",
    [
        {"facts.user": None},
        {"facts.python": None},  # auto: uv's managed build then
        {"facts.systemd": False, "wanted.firewall": False},
        {"wanted.address": "127.0.0.1", "wanted.cluster_size": 1, "wanted.head_address": "127.0.0.1"},
        {"wanted.address": "fd00::1"},
        {"wanted.num_gpus": 4, "wanted.logical_gpus": True},
        {"wanted.num_gpus": "omit", "wanted.num_cpus": "omit", "wanted.object_store_memory": "omit"},
        {"wanted.models": [{"name": "p", "package": {}}]},
        {"facts.driver_cuda": "13.3"},
        {
            "wanted.disk_reserve_percent": 0,
            "facts.disks": {path: {**DISK, "free_bytes": 10 * GIB} for path in GOOD["facts"]["disks"]},
        },
        {**NO_GPU, "wanted.lock_cuda": None, "wanted.variant": "cpu"},
        {  # what is installed is not asked for again
            "facts.disks": {**GOOD["facts"]["disks"], "/opt/raymetal": {**DISK, "free_bytes": 22 * GIB}},
            "facts.paths": {**GOOD["facts"]["paths"], "/opt/raymetal/env/0123456789ab": {"exists": True}},
        },
    ],
)
def test_no_problem(changes: dict[str, Any]) -> None:
    assert host_problems({"h": host(**changes)}, []) == []


H200 = {"index": 0, "uuid": "GPU-0", "name": "NVIDIA H200", "memory_mib": 143771}


@pytest.mark.parametrize(
    ("changes", "variable", "text"),
    [
        (
            {"facts.python": {"version": "3.11.9"}},
            "python_env_python_source",
            "hosts differ in Python: 3.11.2 on h; 3.11.9 on w",
        ),
        ({"facts.python": None}, "python_env_python_source", "none on w"),
        ({"facts.gpus": [H200, H200]}, "gpu_host_equal_gpus", "NVIDIA H200 143771 MiB, driver 580.65.06 on w"),
        ({"facts.gpus": [H200, GPU]}, "gpu_host_equal_gpus", "NVIDIA H100 81559 MiB and NVIDIA H200 143771 MiB"),
        ({"facts.driver_version": "580.95.05"}, "gpu_host_equal_gpus", "driver 580.95.05 on w"),
    ],
)
def test_hosts_that_differ(changes: dict[str, Any], variable: str, text: str) -> None:
    (found,) = host_problems({"h": host(), "w": host(**changes)}, [])
    assert (found["host"], found["variable"]) == ("cluster", variable) and text in found["problem"]


@pytest.mark.parametrize(
    "changes",
    [
        {"facts.python": {"version": "3.11.9"}, "wanted.python_source": "managed"},
        {"facts.gpus": [H200], "wanted.equal_gpus": False},
        NO_GPU,  # a head without GPUs beside workers that have some
        {"facts.gpus": [GPU]},
    ],
)
def test_hosts_that_may_differ(changes: dict[str, Any]) -> None:
    assert host_problems({"h": host(), "w": host(**changes)}, []) == []


@pytest.mark.parametrize(
    ("engine_kwargs", "changes", "text"),
    [
        ({"tensor_parallel_size": 8}, {}, "needs 8, the cluster has 2 GPUs"),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, {}, "needs 4, the cluster has 2 GPUs"),
        ({"tensor_parallel_size": 2}, {"wanted.num_gpus": 1}, "needs 2, the cluster has 1 GPUs"),
        ({"tensor_parallel_size": 1}, NO_GPU, "needs 1, the cluster has 0 GPUs"),
        (
            {"tensor_parallel_size": 32},
            {**NO_GPU, "wanted.variant": "cpu", "wanted.lock_cuda": None},
            "needs 32, the cluster has 16 CPUs",
        ),
    ],
)
def test_a_replica_must_have_room(engine_kwargs: dict[str, int], changes: dict[str, Any], text: str) -> None:
    (found,) = host_problems({"h": host(**changes)}, applications(**engine_kwargs))
    assert found["variable"] == (
        "ray_serve_config.applications[0].args.llm_configs[0].engine_kwargs.tensor_parallel_size"
    )
    assert text in found["problem"]


@pytest.mark.parametrize("odd", [[None], [{}], [{"args": []}], [{"args": {"llm_configs": ["file.yaml", {}]}}]])
def test_odd_applications_are_left_to_the_judge(odd: list[Any]) -> None:
    assert host_problems({"h": host()}, odd) == []


def test_room_is_not_judged_while_a_host_is_silent() -> None:
    silent = host(facts=None, error="timed out")
    (found,) = host_problems({"h": host(), "w": silent}, applications(tensor_parallel_size=4))
    assert found["host"] == "w"


def test_every_problem_of_every_host_is_told_at_once() -> None:
    bad = {"facts.arch": "arm", "facts.memory_bytes": 0, "wanted.num_gpus": 9}
    assert len(host_problems({"h": host(**bad), "w": host(**bad)}, [])) == 6

"""The facts of a host: the parsers on recorded output, and the whole module as Ansible runs it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from support import load, run_module

MODULE = "roles/gpu_host/library/gpu_host_facts.py"
SAMPLES = Path(__file__).parent / "samples"  # where each is from: samples/README.md
module = load(MODULE)


def sample(name: str) -> str:
    return (SAMPLES / name).read_text()


@pytest.mark.parametrize(
    ("name", "count", "first", "driver", "cuda"),
    [
        ("two_gpus", 2, ("Quadro RTX 4000", 8192), "535.129.03", "12.2"),
        ("610", 2, ("NVIDIA B200", 183359), "610.43.02", "13.3"),
        ("unified_memory", 1, ("NVIDIA GB10", None), "580.126.09", "13.0"),
    ],
)
def test_parse_gpus(name: str, count: int, first: tuple[str, int | None], driver: str, cuda: str) -> None:
    found = module.parse_gpus(sample(f"query_{name}.csv"), sample(f"banner_{name}.txt"))
    assert (found["driver_version"], found["driver_cuda"]) == (driver, cuda)
    assert [gpu["index"] for gpu in found["gpus"]] == list(range(count))
    assert len({gpu["uuid"] for gpu in found["gpus"]}) == count
    assert (found["gpus"][0]["name"], found["gpus"][0]["memory_mib"]) == first


@pytest.mark.parametrize("name", ["no_devices.txt", "driver_down.txt", "driver_mismatch.txt"])
def test_parse_gpus_of_an_error_text_is_none(name: str) -> None:
    assert module.parse_gpus(sample(name), sample(name)) == {"gpus": [], "driver_version": None, "driver_cuda": None}


def facts(**env: str) -> dict[str, Any]:
    result = run_module(
        MODULE,
        env={**os.environ, **env},
        python_version="3.11",
        controller_time=time.time() - 100,
        user="nobody",
        peer="127.0.0.1",
        marker="/nonexistent/cluster",
        paths=["/", "/nowhere/at/all", "relative"],
    )
    assert not result["changed"] and not result.get("failed"), result
    found: dict[str, Any] = result["ansible_facts"]["gpu_host"]
    return found


def fake_smi(directory: Path, query: str, banner: str, status: int = 0) -> str:
    """A PATH on which nvidia-smi prints the samples."""
    smi = directory / "nvidia-smi"
    smi.write_text(f'#!/bin/sh\ncase "$*" in *--query-gpu*) cat {SAMPLES / query};; *) cat {SAMPLES / banner};; esac\n')
    with smi.open("a") as script:
        script.write(f"exit {status}\n")
    smi.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_a_host_without_nvidia_smi(tmp_path: Path) -> None:
    found = facts(PATH=str(tmp_path))
    assert (found["gpus"], found["driver_version"], found["driver_cuda"]) == ([], None, None)
    assert found["gpu_error"] == "nvidia-smi is not installed"
    assert 99 < found["clock_difference_seconds"] < 130
    assert found["memory_bytes"] > 2**28 and found["cpus"] == os.cpu_count() and found["shm_bytes"] >= 0
    assert found["route_address"] == "127.0.0.1"
    assert found["user"]["uid"] > 0 and found["user"]["group"]
    assert found["interfaces"] == {}  # there is no ip either
    assert found["paths"]["/"] == {"exists": True, "directory": True, "config_json": False}
    assert not found["paths"]["/nowhere/at/all"]["exists"]
    # The file system of a path is that of its nearest existing parent; a relative one ended in a loop once.
    assert found["disks"]["/nowhere/at/all"]["device"] == found["disks"]["relative"]["device"] == os.stat("/").st_dev


def test_a_host_with_gpus(tmp_path: Path) -> None:
    found = facts(PATH=fake_smi(tmp_path, "query_610.csv", "banner_610.txt"))
    assert len(found["gpus"]) == 2 and found["driver_cuda"] == "13.3" and found["gpu_error"] is None


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("no_devices.txt", 6, "No devices were found"),
        ("no_devices.txt", 0, "No devices were found"),  # some drivers say it and succeed
        ("driver_down.txt", 9, "couldn't communicate with the NVIDIA driver"),
        ("driver_mismatch.txt", 18, "version mismatch"),
    ],
)
def test_a_host_whose_gpus_cannot_be_asked(tmp_path: Path, name: str, status: int, says: str) -> None:
    found = facts(PATH=fake_smi(tmp_path, name, name, status))
    assert found["gpus"] == [] and says in found["gpu_error"]


def test_parse_interfaces() -> None:
    assert module.parse_interfaces(sample("ip_address.json")) == {
        "lo": {"addresses": ["127.0.0.1", "::1"], "mtu": 65536, "up": True},
        "eth0": {"addresses": ["10.237.153.11"], "mtu": 1500, "up": True},
        "eth1": {"addresses": [], "mtu": 9000, "up": False},
    }


def test_installed_packages() -> None:
    status = "Package: dpkg\nEssential: yes\nStatus: install ok installed\nArchitecture: amd64\n\nPackage: zstd\n"
    status += "Status: deinstall ok config-files\n\nPackage: g++\nStatus: hold ok installed\n"
    assert module.installed_packages(status) == ["dpkg", "g++"]


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ('NAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\n', {"id": "debian", "version": "12"}),
        ('ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n', {"id": "ubuntu", "version": "24.04"}),
        ("PRETTY_NAME=x\n", {"id": "unknown", "version": "unknown"}),
    ],
)
def test_os_release(text: str, system: dict[str, str]) -> None:
    assert module.os_release(text) == system


def test_meminfo() -> None:
    assert module.meminfo("MemTotal:       16384 kB\nHugePages_Total:       0\n") == {"MemTotal": 16384 * 1024}


def test_a_program_that_hangs_is_ended() -> None:
    status, text = module.run(["sleep", "20"], seconds=0.2)
    assert status == 124 and "did not answer" in text

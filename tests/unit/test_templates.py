"""What the templates make, by Ansible itself, against the files of golden/ (UPDATE_GOLDEN=1 pytest renews them)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from support import ROOT

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with <host>-<template>."""
    project, made = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("rendered")
    for name in ("roles", "group_vars", "files"):
        (project / name).symlink_to(ROOT / name)
    shutil.copy(HERE / "render.yml", project)
    # Outside of the role its files are not found.
    extra = [f"-e render_to={made}", "-e __ray_node_supervisor_text=text"]
    command = ["ansible-playbook", "-i", str(HERE / "render_hosts.yml"), *extra, "render.yml"]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_ROLES_PATH": str(ROOT / "roles")}
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.mark.parametrize(
    "name",
    [
        "head-raymetal.service",
        "worker-raymetal.service",
        "worker-raymetal-sweep.service",
        "worker-raymetal-sweep.timer",
        "head-ray-start",
        "worker-ray-start",
        "contained-raymetal.service",
        "contained-ray-container",
        "head-ray.env",
        "head-serve.yml",
        "head-limits.conf",
    ],
)
def test_golden(rendered: Path, name: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.copyfile(rendered / name, GOLDEN / f"{name}.txt")
    assert (rendered / name).read_text() == (GOLDEN / f"{name}.txt").read_text()


def test_environment_file_is_read_back_as_it_was_given(rendered: Path) -> None:
    """By sh, as the start script does; systemd takes the same escapes within double quotes (systemd.exec(5))."""
    hosts = yaml.safe_load((HERE / "render_hosts.yml").read_text())
    given = hosts["ray_cluster"]["children"]["ray_workers"]["hosts"]["worker"]["ray_node_environment"]
    done = subprocess.run(
        ["sh", "-c", 'set -eua; . "$1"; exec env -0', "sh", str(rendered / "worker-ray.env")],
        env={"HOME": "/not-expanded", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
    )
    read = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)
    assert {name: read.get(name) for name in given} == {name: str(value) for name, value in given.items()}
    assert read["RAY_AUTH_MODE"] == "token" and len(read["RAYMETAL_CONFIG"]) == 16
    network = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "VLLM_HOST_IP")
    assert [read[name] for name in network] == ["=eth1", "eth1", "10.0.0.5"]


@pytest.mark.parametrize("host", ["head", "worker"])
def test_start_script_passes_each_flag_as_one_word(rendered: Path, host: str, tmp_path: Path) -> None:
    script = (rendered / f"{host}-ray-start").read_text()
    call = script[script.index("exec runuser") :].replace("exec runuser", 'printf "%s\\0"', 1)
    words = subprocess.run(["sh", "-c", call], capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    assert words[:3] == ["-u", "raymetal", "--"] and words[4] == "start"
    assert all(word.startswith("--") for word in words[5:])
    if host == "worker":
        assert "--node-name=it's 100% $HOME C:\\new" in words and '--resources={"rack_a": 1}' in words
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_the_pushed_configuration_is_the_one_that_was_given(rendered: Path) -> None:
    config = yaml.safe_load((rendered / "head-serve.yml").read_text())
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert config["applications"][0]["args"] == {"greeting": "Grüß dich: 100%"}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("host", ["head", "worker"])
def test_systemd_accepts_the_unit(rendered: Path, host: str, tmp_path: Path) -> None:
    """With a program and a user that this machine has; what remains is the unit's own."""
    unit = (rendered / f"{host}-raymetal.service").read_text()
    unit = unit.replace("/opt/raymetal/env/0123456789ab/bin/python", "/bin/true")
    unit = unit.replace("User=raymetal", "User=root").replace("Group=raymetal", "Group=root")
    (tmp_path / "raymetal.service").write_text(unit)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "raymetal.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "raymetal.service" in line]
    assert (done.returncode, complaints) == (0, [])

"""What playbooks/develop.yml brings, refuses and writes; Ray itself is scenario ray_serve's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT, load

develop = load("roles/develop/filter_plugins/develop.py")
EXCLUDE = yaml.safe_load((ROOT / "roles/develop/defaults/main.yml").read_text())["develop_exclude"]
GOOD: dict[str, Any] = {"develop_name": "app", "develop_build": "", "develop_command": [], "develop_max_mib": 1}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An application with code, and with what must not leave the controller."""
    for name in (
        "app.py",
        "part/inner.py",
        ".env",
        ".git/config",
        "part/server.key",
        "hf_token",
        "__pycache__/app.pyc",
    ):
        (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / name).write_text(name)
    (tmp_path / "app/link").symlink_to("/etc/passwd")
    return tmp_path / "app"


def problems(source: Path | str, **values: Any) -> list[str]:
    found = develop.develop_files(str(source), EXCLUDE)
    return [p["problem"] for p in develop.develop_problems({**GOOD, "develop_source": str(source), **values}, found)]


def test_code_is_brought_and_secrets_are_not(source: Path) -> None:
    found = develop.develop_files(str(source), EXCLUDE)
    assert sorted(found["files"]) == ["app.py", "part/inner.py"]
    assert found["left_out"] == [".env", ".git", "__pycache__", "hf_token", "link", "part/server.key"]
    assert problems(source) == []


def test_only_what_is_another_is_brought(source: Path) -> None:
    files = develop.develop_files(str(source), EXCLUDE)["files"]
    there = [{"path": f"/x/{name}", "checksum": digest} for name, digest in files.items()]
    assert develop.develop_changes(files, there, "/x") == {"bring": [], "remove": [], "folders": []}
    there[1]["checksum"] = "another"
    there.append({"path": "/x/old.py", "checksum": "any"})
    assert develop.develop_changes(files, there, "/x") == {
        "bring": ["part/inner.py"],
        "remove": ["old.py"],
        "folders": ["part"],
    }


def test_what_is_refused(source: Path) -> None:
    assert problems("") == problems(source / "none") == ["is no directory on the controller"]
    assert problems(source, develop_name="../etc") == ["is no name"]
    assert problems(source, develop_build="deepseek.py") == ["is not module:name"]
    assert problems(source, develop_max_mib=0) == ["is larger than develop_max_mib: 0 MiB"]
    (source / "settings.py").write_text("KEY = '''-----BEGIN RSA PRIVATE KEY-----'''")
    assert problems(source) == ["has a private key in settings.py"]


def test_a_command_that_ends_serve_is_refused(source: Path) -> None:
    (text,) = problems(source, develop_command=["serve", "run", "app:app"])
    assert "shut Serve down" in text
    assert problems(source, develop_command=["serve", "run", "--non-blocking", "app:app"]) == []


def test_a_built_application_has_its_name_and_its_code() -> None:
    built = {
        "http_options": {"host": "0.0.0.0"},
        "applications": [{"name": "app1", "route_prefix": "/", "import_path": "a:b", "runtime_env": {}}],
    }
    assert develop.develop_application(built, "mine", "/mine", "/x/mine-1", {"N": 1}) == {
        "applications": [
            {
                "name": "mine",
                "route_prefix": "/mine",
                "import_path": "a:b",
                "runtime_env": {"working_dir": "local:///x/mine-1", "env_vars": {"N": "1"}},
            }
        ]
    }


def run(inventory: Path, *arguments: str) -> str:
    command = ["ansible-playbook", "-i", str(inventory), "playbooks/develop.yml", *arguments]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="the files belong to root on the hosts: needs root")
def test_the_playbook_brings_changed_files_only(source: Path, tmp_path: Path) -> None:
    """This machine is the node, with directories of its own, and the commands of Ray are stand-ins."""
    for folder in ("etc", "bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "etc/cluster").write_text("trial\n")
    for name in ("serve", "ray"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho {name} "$@" in $PWD with $RAY_ADDRESS $GREETING\n')
        (tmp_path / "bin" / name).chmod(0o755)
    variables = {
        "ansible_connection": "local",
        "ansible_host": "127.0.0.1",
        "cluster_name": "trial",
        "cluster_user": "root",
        "cluster_root": str(tmp_path / "root"),
        "cluster_config_dir": str(tmp_path / "etc"),
        "run_lock_path": str(tmp_path / "lock"),
        "python_env_prefix": str(tmp_path),
        "develop_source": str(source),
    }
    children = {"ray_head": {"hosts": {"localhost": None}}, "ray_workers": None}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"ray_cluster": {"vars": variables, "children": children}}))
    node = tmp_path / "root/applications/app"

    run(inventory)
    assert sorted(str(p.relative_to(node)) for p in node.rglob("*") if p.is_file()) == ["app.py", "part/inner.py"]
    first = (node / "app.py").stat()
    assert first.st_mode & 0o777 == 0o640

    (source / "part/inner.py").write_text("another")
    (source / "app.py").touch()
    said = run(inventory, "-e", '{"develop_command": ["serve", "status"], "develop_environment": {"GREETING": "hi"}}')
    assert (node / "part/inner.py").read_text() == "another"
    assert (node / "app.py").stat().st_ino == first.st_ino and (node / "app.py").stat().st_mtime == first.st_mtime
    assert f"serve status in {node} with 127.0.0.1:6380 hi" in " ".join(said.split()), said

    shutil.rmtree(source / "part")
    said = run(inventory, "-e", '{"develop_command": ["python", "deploy.py"], "develop_as_job": true}')
    assert not (node / "part/inner.py").exists()
    assert "ray job submit --address http://127.0.0.1:8265 -- env --chdir=" in " ".join(said.split()), said

    (tmp_path / "etc/cluster").write_text("another\n")
    assert "does not carry cluster trial" in " ".join(run(inventory).split())

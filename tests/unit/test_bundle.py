"""A bundle for other hosts, an unfinished one, and what of a good one is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import load

bundle = load("roles/bundle/filter_plugins/bundle.py")
RECORD: dict[str, Any] = {
    "format": 1,
    "lock": "a" * 64,
    "variant": "cpu",
    "python": "3.11",
    "platform": "x86_64",
    "tools": "t" * 64,
    "conda": "",
    "models": ["m/1", "n/2"],
}
SUM = "0" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "bundle.json").write_text(json.dumps(RECORD))
    names = ("wheels/a.whl", "wheels/b.whl", "control/c.whl", "models/m/1/config.json", "models/m/11/config.json")
    (tmp_path / "SHA256SUMS").write_text("".join(f"{SUM}  {name}\n" for name in names))
    return tmp_path


def problems(path: Path | str, source: str = "auto", **wanted: Any) -> list[str]:
    return [p["problem"] for p in bundle.bundle_problems(str(path), {**RECORD, **wanted}, source)]


def test_a_bundle_that_fits(path: Path) -> None:
    assert problems(path) == problems(path, models=["m/1"]) == problems("") == []


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"variant": "cuda"}, "was made for variant cpu, and cuda is wanted"),
        ({"python": "3.12"}, "was made for python 3.11, and 3.12 is wanted"),
        ({"platform": "aarch64"}, "was made for platform x86_64, and aarch64 is wanted"),
        ({"lock": "b" * 64}, "was made for lock aaaaaaaaaaaaaaaa, and bbbbbbbbbbbbbbbb is wanted"),
        ({"conda": "rattler " + "b" * 64}, "was made for conda nothing, and rattler bbbbbbbb is wanted"),
        ({"source": "conda"}, "is no file, and a bundle holds the packages of a lock"),
        ({"models": ["m/1", "m/2"]}, "has no model m/2"),
        ({"format": 2}, "has format 1, and this version reads 2"),
        ({"source": "managed"}, "uv's builds of Python are not in a bundle"),
    ],
)
def test_a_bundle_that_does_not_fit(path: Path, wanted: dict[str, Any], text: str) -> None:
    (found,) = problems(path, **wanted)
    assert text in found


def test_what_a_bundle_cannot_be_made_for() -> None:
    (found,) = bundle.bundle_problems("", RECORD, "managed", "/srv/bundle")
    assert found["variable"] == "python_env_python_source"
    assert bundle.bundle_problems("", RECORD, "managed") == [], "no bundle is meant"


def test_no_bundle(path: Path) -> None:
    assert problems("bundle") == ["is no absolute path"]
    (path / "SHA256SUMS").unlink()
    (found,) = problems(path)
    assert "is no bundle, or an unfinished one" in found and "SHA256SUMS" in found
    (path / "bundle.json").write_text("{")
    assert "is no bundle" in problems(path)[0]


def test_what_the_hosts_lack_is_read_and_no_more(path: Path) -> None:
    models = [{"name": "m", "revision": "1"}, {"name": "n", "revision": "2"}, {"name": "h", "revision": "1"}]
    models[2]["host_path"] = "/srv/h"
    host = {
        "ansible_facts": {"gpu_host": {"paths": {"/models/m/1": {"exists": False}, "/models/n/2": {"exists": True}}}},
        "model_store_root": "/models",
        "model_store_models": models,
        "python_env_part": {"builds": False},
    }
    lacks = bundle.bundle_lacks(host)
    assert lacks == {"builds": False, "models": ["m/1"]}
    assert bundle.bundle_wanted(str(path), [lacks]) == [f"{SUM}  models/m/1/config.json"]
    wheels = [f"{SUM}  wheels/a.whl", f"{SUM}  wheels/b.whl"]
    assert bundle.bundle_wanted(str(path), [{"builds": True, "models": []}]) == wheels
    assert bundle.bundle_wanted("/no/bundle", [{"builds": False, "models": []}]) == []

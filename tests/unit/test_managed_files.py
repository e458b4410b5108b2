"""Files and directories, written for real."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from support import run_module

MODULE = "roles/gpu_host/library/managed_files.py"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user: root only")


def write(*files: dict[str, Any], **params: Any) -> dict[str, Any]:
    return run_module(MODULE, files=list(files), **params)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_all_is_made_and_then_left_alone(tmp_path: Path) -> None:
    folder, file = tmp_path / "a/b", tmp_path / "a/b/c"
    files = {"path": str(folder), "mode": "0750"}, {"path": str(file), "mode": "0640", "content": "ä\r\n\n"}
    first = write(*files)
    assert first["changed_paths"] == [str(folder), str(file)]
    assert mode(folder.parent) == 0o750, "what was missing above it is no wider"
    assert (mode(folder), mode(file), file.read_bytes()) == (0o750, 0o640, "ä\r\n\n".encode())
    before = file.stat()
    assert write(*files) == {**first, "changed": False, "changed_paths": [], "diff": []}
    assert file.stat() == before
    assert os.listdir(folder) == ["c"]


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    same, other, open_ = (tmp_path / name for name in ("same", "other", "open"))
    for file in (same, other, open_):
        file.write_text("old\n")
        file.chmod(0o600)
    wanted = [{"path": str(file), "mode": "0600", "content": "old\n"} for file in (same, other, open_)]
    wanted[1]["content"], wanted[2]["mode"] = "new\n", "0644"
    result = write(*wanted)
    assert result["changed_paths"] == [str(other), str(open_)]
    assert (other.read_text(), mode(other), mode(open_)) == ("new\n", 0o600, 0o644)
    assert [(d["before"], d["after"]) for d in result["diff"][:1]] == [("old\n", "new\n")]


def test_a_dry_run_tells_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old\n")
    missing = {"path": str(tmp_path / "none/file"), "mode": "0600", "content": "x", "owner": "no-such-user"}
    result = write({"path": str(file), "mode": "0600", "content": "new\n"}, missing, check=True)
    assert result["changed_paths"] == [str(file), str(tmp_path / "none/file")]
    assert file.read_text() == "old\n" and os.listdir(tmp_path) == ["file"]


def test_a_content_that_is_kept_back_is_in_no_diff(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret-one")
    result = write({"path": str(file), "mode": "0600", "content": "secret-two"}, show=False)
    assert "secret" not in str(result["diff"]) and file.read_text() == "secret-two"


def test_no_content_is_written_to_the_log_of_the_host(tmp_path: Path) -> None:
    """With the log of Ansible's modules led into a file, and a module that writes to it beside."""
    log = tmp_path / "log"
    lead = f"import syslog\nsyslog.syslog = lambda *words: open({str(log)!r}, 'a').write(repr(words))\n"
    (tmp_path / "sitecustomize.py").write_text(lead)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run_module("roles/ray_node/library/ray_processes.py", env=env, user="nobody")
    assert "nobody" in log.read_text()
    file = {"path": str(tmp_path / "file"), "mode": "0600", "content": "for few eyes"}
    assert run_module(MODULE, env=env, files=[file])["changed"] and "for few eyes" not in log.read_text()


def test_what_is_only_to_be_there_keeps_its_content(tmp_path: Path) -> None:
    file = tmp_path / "file"
    wanted = {"path": str(file), "mode": "0600", "content": "first", "force": False}
    assert write(wanted)["changed"] and file.read_text() == "first"
    file.write_text("grown")
    assert not write(wanted)["changed"] and file.read_text() == "grown"


def test_a_content_that_is_refused_does_not_take_the_place(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("good")
    result = write({"path": str(file), "mode": "0600", "content": "bad", "validate": "grep -q good %s"})
    assert result["failed"] and "refused by grep -q good %s" in result["msg"]
    assert file.read_text() == "good" and os.listdir(tmp_path) == ["file"]
    assert write({"path": str(file), "mode": "0600", "content": "too good", "validate": "grep -q good %s"})["changed"]


@pytest.mark.parametrize(
    ("path", "content", "more", "said"),
    [
        ("folder", "x", {}, "something else is there than a file"),
        ("file", None, {}, "something else is there than a directory"),
        ("link", "x", {}, "something else is there than a file"),
        ("none/file", "x", {}, "No such file or directory"),
        ("file", "x", {"owner": "no-such-user"}, "there is no user no-such-user"),
    ],
)
def test_what_cannot_be_is_said(
    tmp_path: Path, path: str, content: str | None, more: dict[str, str], said: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    result = write({"path": str(tmp_path / path), "mode": "0600", "content": content, **more})
    assert result["failed"] and said in result["msg"] and str(tmp_path / path) in result["msg"], result


def test_a_link_to_a_directory_is_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("data")
    assert not write({"path": str(tmp_path / "link"), "mode": "0755"})["changed"]


@AS_ROOT
def test_the_owner_is_as_wanted_before_it_is_in_place_and_left_where_none_is(tmp_path: Path) -> None:
    file = tmp_path / "file"
    named = {"path": str(file), "mode": "0600", "content": "x", "owner": "nobody", "group": "nogroup"}
    assert write(named)["changed"] and file.owner() == "nobody" and file.group() == "nogroup"
    assert not write({"path": str(file), "mode": "0600", "content": "x"})["changed"]
    assert write({**named, "owner": "root"})["changed"] and file.owner() == "root" and file.group() == "nogroup"

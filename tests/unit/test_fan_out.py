"""Torrents, trackers, trees and the plan of fan_out; transfers are molecule/fan_out."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import fan_out_aria2, fan_out_job, fan_out_torrent, fan_out_tree
from support import load, run_module

fan_out = load("roles/fan_out/filter_plugins/fan_out.py")
watch = load("roles/fan_out/action_plugins/fan_out_watch.py")
manifest_module = load("roles/model_store/library/model_manifest.py")
HELD, OFFER, STATE = (f"roles/fan_out/library/fan_out_{name}.py" for name in ("held", "offer", "state"))
Files = dict[str, dict[str, Any]]


def write_manifest(tree: Path) -> Files:
    files: Files = {}
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "sha256": digest}
        files[str(path.relative_to(tree))] = entry
    Path(f"{tree}.manifest.json").write_text(json.dumps({"files": files}))
    return files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two files with bytes, one of them deep and oddly named, and an empty one."""
    path = tmp_path / "trees" / "m" / "1"
    (path / "sub dir").mkdir(parents=True)
    (path / "b.bin").write_bytes(b"b" * 1500)
    (path / "sub dir" / "ä, 'x'.txt").write_bytes(b"a" * 700)
    (path / "empty").touch()
    write_manifest(path)
    return path


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        # BEP 3's own examples.
        ("spam", b"4:spam"),
        (3, b"i3e"),
        (-3, b"i-3e"),
        (["spam", "eggs"], b"l4:spam4:eggse"),
        ({"cow": "moo", "spam": "eggs"}, b"d3:cow3:moo4:spam4:eggse"),
        ({"spam": ["a", "b"]}, b"d4:spaml1:a1:bee"),
        ({"z": 0, "a": b"\xff"}, b"d1:a1:\xff1:zi0ee"),
        ("ü", b"2:\xc3\xbc"),
    ],
)
def test_bencode(value: Any, encoded: bytes) -> None:
    assert fan_out_torrent.bencode(value) == encoded


def test_bencode_refuses_what_has_no_encoding() -> None:
    with pytest.raises(TypeError, match="float"):
        fan_out_torrent.bencode(1.5)


@pytest.mark.parametrize(
    ("total", "length"),
    [(1, 1 << 20), (1 << 34, 1 << 20), ((1 << 34) + 1, 1 << 21), (60 * 10**9, 1 << 22), (10**12, 1 << 26)],
)
def test_a_torrent_stays_small_enough_for_a_variable(total: int, length: int) -> None:
    assert fan_out_torrent.piece_length(total) == length
    assert -(-total // length) * 20 * 4 / 3 < 500_000


def test_pieces_run_across_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [b"a" * 5, b"b" * 17, b"c", b"d" * 8]
    paths = [tmp_path / str(index) for index in range(4)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    whole = b"".join(contents)
    found = fan_out_torrent.piece_hashes([str(p) for p in paths], [len(c) for c in contents], 8)
    assert found == b"".join(hashlib.sha1(whole[begin : begin + 8]).digest() for begin in range(0, len(whole), 8))
    paths[1].write_bytes(b"b")
    with pytest.raises(EOFError, match="1"):
        fan_out_torrent.piece_hashes([str(p) for p in paths], [len(c) for c in contents], 8)


def test_a_torrent_is_what_others_would_make_of_it(tmp_path: Path) -> None:
    """Byte for byte, by hand after BEP 3 and BEP 27; names of files are no part of it."""
    (tmp_path / "x").write_bytes(b"hello ")
    (tmp_path / "y").write_bytes(b"world")
    torrent = fan_out_torrent.make("t", [str(tmp_path / "x"), str(tmp_path / "y")], [6, 5])
    files = b"5:filesld6:lengthi6e4:pathl1:0eed6:lengthi5e4:pathl1:1eee"
    rest = b"4:name1:t12:piece lengthi1048576e6:pieces20:" + hashlib.sha1(b"hello world").digest() + b"7:privatei1e"
    info = b"d" + files + rest + b"e"
    assert torrent == b"d4:info" + info + b"e"
    assert fan_out_torrent.info_hash(torrent) == hashlib.sha1(info).digest()


def test_the_tracker_names_the_peers_that_ansible_named() -> None:
    peers = [{"address": "10.0.0.2", "port": 6881}, {"address": "fd00::3", "port": 6881}]
    name = bytes(range(236, 256))
    with fan_out_aria2.Tracker({name: peers}) as url:
        assert url.startswith("http://127.0.0.1:")
        quoted = "".join(f"%{byte:02x}" for byte in name)
        with urllib.request.urlopen(f"{url}?info_hash={quoted}&port=6881&compact=1") as answer:
            known = answer.read()
        with urllib.request.urlopen(f"{url}?info_hash=other") as answer:
            unknown = answer.read()
    assert b"5:peers6:\x0a\x00\x00\x02\x1a\xe1" in known
    assert b"6:peers618:\xfd\x00" + bytes(13) + b"\x03\x1a\xe1" in known
    assert unknown == b"d14:failure reason15:unknown torrente"


def held(tree: Path) -> dict[str, Any]:
    result = run_module(HELD, trees=[{"path": str(tree)}], address="127.0.0.1")
    assert "trees" in result, result
    found: dict[str, Any] = result["trees"][0]
    return found


def test_a_host_holds_what_has_a_manifest(tree: Path, tmp_path: Path) -> None:
    found = held(tree)
    assert found["present"] and found["bytes"] == 2200 and found["room_bytes"] > 0 and found["name"] == str(tree)
    files = json.loads(Path(f"{tree}.manifest.json").read_text())["files"]
    assert found["digest"] == manifest_module.digest_of(files), "the same word for the same tree as model_store's"
    link = tmp_path / "link"
    link.symlink_to(tree)
    assert held(link)["present"] and not held(link)["digest"], "a link without a manifest: somebody's own"
    Path(f"{link}.manifest.json").write_text(Path(f"{tree}.manifest.json").read_text())
    assert held(link)["digest"] == found["digest"]
    link.unlink()
    assert not held(link)["present"] and not held(link)["digest"], "a manifest alone promises nothing"
    link.symlink_to("nowhere")
    assert held(link)["present"] and not held(link)["digest"]


def test_what_a_run_before_left_counts_as_room(tree: Path) -> None:
    other = tree.parent / "2"
    partial = Path(f"{other}.partial")
    partial.mkdir()
    (partial / "b").write_bytes(b"x" * 100_000)
    assert not held(other)["present"] and held(other)["partial_bytes"] >= 100_000


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is broken"),
        ("[]", "is broken"),
        ('{"files": {"a": {"size": 1}}}', "is broken"),
        ('{"files": {"../a": {"size": 1, "sha256": ""}}}', "which is no file below the tree"),
        ('{"files": {"/etc/passwd": {"size": 1, "sha256": ""}}}', "which is no file below the tree"),
        ('{"files": {"a//b": {"size": 1, "sha256": ""}}}', "which is no file below the tree"),
    ],
)
def test_a_manifest_that_cannot_be_followed(tree: Path, content: str, text: str) -> None:
    Path(f"{tree}.manifest.json").write_text(content)
    result = run_module(HELD, trees=[{"path": str(tree)}], address="127.0.0.1")
    assert result["failed"] and text in result["msg"] and "To do: " in result["msg"]


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("127.0.0.1", ""),
        ("192.0.2.7", "is no address of the host"),
        ("0.0.0.0", "is no address of one network"),
        ("no-such-host.invalid", "does not resolve"),
    ],
)
def test_the_address_is_the_hosts_own(address: str, text: str) -> None:
    result = run_module(HELD, trees=[], address=address)
    assert (text in result["address_problem"]) if text else not result["address_problem"]
    assert isinstance(result["installed"], bool)


def test_an_offer_is_the_torrent_and_the_manifest(tree: Path) -> None:
    offer = run_module(OFFER, paths=[str(tree)])["offers"][str(tree)]
    assert offer["torrent"] and set(offer["files"]["b.bin"]) == {"size", "sha256"}
    (tree / "b.bin").unlink()
    (tree / "sub dir" / "ä, 'x'.txt").unlink()
    write_manifest(tree)
    assert run_module(OFFER, paths=[str(tree)])["offers"][str(tree)]["torrent"] == "", "nothing but an empty file"


def test_the_same_bytes_at_two_paths_are_two_trees(tree: Path) -> None:
    """Regression: two names for one commit of a model had one torrent, and no host's job began."""
    other = tree.with_name("other")
    shutil.copytree(tree, other)
    shutil.copy(f"{tree}.manifest.json", f"{other}.manifest.json")
    offers = run_module(OFFER, paths=[str(tree), str(other)])["offers"]
    hashes = {fan_out_torrent.info_hash(base64.b64decode(offer["torrent"])) for offer in offers.values()}
    assert len(hashes) == 2


def test_what_is_not_as_written_down_is_not_offered(tree: Path) -> None:
    (tree / "b.bin").write_bytes(b"b" * 1499)
    assert "has 1499 bytes and 1500 by its manifest" in run_module(OFFER, paths=[str(tree)])["msg"]
    (tree / "b.bin").unlink()
    assert "b.bin cannot be offered" in run_module(OFFER, paths=[str(tree)])["msg"]


def received(tree: Path) -> tuple[Path, Path, Files]:
    """As if all had come: <2>.partial, <2>, files."""
    target = tree.parent / "2"
    partial = Path(f"{target}.partial")
    subprocess.run(["cp", "-r", str(tree), str(partial)], check=True)
    files = fan_out_tree.read_manifest(str(tree))
    assert files is not None
    return partial, target, files


def test_what_is_there_of_an_earlier_run_is_cleaned_and_kept(tree: Path, tmp_path: Path) -> None:
    partial, _, files = received(tree)
    (tmp_path / "precious").write_text("mine")
    (partial / "b.bin").unlink()
    (partial / "b.bin").symlink_to(tmp_path / "precious")
    (partial / "old" / "deep").mkdir(parents=True)
    (partial / "old" / "deep" / "file").touch()
    (partial / "empty").write_bytes(b"too long")
    (partial / "away").symlink_to(tmp_path)
    assert fan_out_tree.prepare(str(partial), files) is True
    assert sorted(str(path.relative_to(partial)) for path in partial.rglob("*")) == [
        "empty",
        "sub dir",
        "sub dir/ä, 'x'.txt",
    ]
    assert (partial / "empty").stat().st_size == 0 and (tmp_path / "precious").read_text() == "mine"
    assert fan_out_tree.prepare(str(tree.parent / "new.partial"), files) is False


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to root")
def test_a_tree_is_placed_whole_with_its_manifest(tree: Path) -> None:
    partial, target, files = received(tree)
    (partial / "b.bin").chmod(0o600)
    fan_out_tree.place(str(partial), str(target), files)
    assert not partial.exists() and (target / "b.bin").stat().st_mode & 0o777 == 0o644
    now = json.loads(Path(f"{target}.manifest.json").read_text())["files"]
    assert now["b.bin"] == {**files["b.bin"], "mtime_ns": (target / "b.bin").stat().st_mtime_ns}


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to root")
@pytest.mark.parametrize("size", [1500, 1499])
def test_a_changed_byte_never_becomes_a_tree(tree: Path, size: int) -> None:
    partial, target, files = received(tree)
    (partial / "b.bin").write_bytes(b"b" * (size - 1) + b"X")
    with pytest.raises(fan_out_tree.Problem, match=r"b\.bin is not what the manifest of the host"):
        fan_out_tree.place(str(partial), str(target), files)
    assert partial.exists() and not target.exists() and not Path(f"{target}.manifest.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to root")
def test_what_appeared_meanwhile_is_left_alone(tree: Path) -> None:
    partial, target, files = received(tree)
    target.symlink_to(tree)
    with pytest.raises(fan_out_tree.Problem, match="appeared meanwhile"):
        fan_out_tree.place(str(partial), str(target), files)
    assert target.is_symlink() and [p.name for p in tree.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to root")
def test_the_same_tree_that_appeared_meanwhile_is_as_good(tree: Path) -> None:
    """Regression: the job of a killed run went on and placed the tree while the next run received it."""
    partial, target, files = received(tree)
    shutil.copytree(partial, target)
    Path(f"{target}.manifest.json").write_text(json.dumps({"files": files}))
    fan_out_tree.place(str(partial), str(target), files)
    assert not partial.exists() and (target / "b.bin").exists()


HOLDS_THE_LOCK = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
os.write(lock, sys.argv[2].replace("own", str(os.getpid())).encode())
print("locked", flush=True)
time.sleep(60)
"""


def test_a_new_job_ends_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "old-run").mkdir()
    before = subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path / "lock"), "own"], stdout=subprocess.PIPE
    )
    with before:
        assert before.stdout and before.stdout.readline() == b"locked\n"
        assert fan_out_job.running(str(tmp_path))
        lock = fan_out_job.take_lock(str(tmp_path))
        assert before.wait(5) < 0
    assert (tmp_path / "lock").read_text() == str(os.getpid()) and not (tmp_path / "old-run").exists()
    os.close(lock)
    assert not fan_out_job.running(str(tmp_path))


def test_a_process_that_is_none_of_ours_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is held, and the number in it is that of another process: one whose number was used again."""
    monkeypatch.setattr(fan_out_job, "TAKE_OVER_SECONDS", 0.5)
    command = [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path / "lock"), "{}"]
    with subprocess.Popen(["sleep", "60"]) as other:
        command[-1] = str(other.pid)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
            assert holder.stdout and holder.stdout.readline() == b"locked\n"
            with pytest.raises(fan_out_tree.Problem, match="does not end"):
                fan_out_job.take_lock(str(tmp_path))
            assert other.poll() is None and holder.poll() is None
            holder.kill()
        other.kill()


def test_the_end_says_how_it_went(tmp_path: Path) -> None:
    def end() -> dict[str, Any]:
        return run_module(STATE, directory=str(tmp_path), run="r", end=True)

    assert "ended from outside" in end()["msg"]
    (tmp_path / "r").mkdir()
    state: dict[str, Any] = {"trees": [], "rate": 0, "ended": True, "problem": "no byte came", "received": []}
    fan_out_job.write_state(str(tmp_path / "r"), state)
    result = end()
    assert result["failed"] and result["msg"] == "no byte came" and not (tmp_path / "r").exists()
    (tmp_path / "r").mkdir()
    fan_out_job.write_state(str(tmp_path / "r"), {**state, "problem": "", "received": ["/srv/m/1"]})
    assert end()["changed"]


def facts(*trees: tuple[str, str, int], address: str = "10.0.0.1", **more: Any) -> dict[str, Any]:
    """path, digest (- for something else there), free bytes of each."""
    found = [
        {
            "path": path,
            "name": path,
            "present": bool(digest),
            "digest": digest.strip("-"),
            "bytes": 1000 if digest else 0,
            "disk_bytes": 5096 if digest else 0,
            "room_bytes": room,
            "partial_bytes": 0,
            "device": 1,
        }
        for path, digest, room in trees
    ]
    return {"trees": found, "address": address, "address_problem": "", "installed": True, **more}


MIB = 1024**2


def test_the_plan_is_from_who_holds_to_who_lacks() -> None:
    hosts = {
        "a": facts(("/m/1", "d", MIB), ("/m/2", "", MIB)),
        "b": facts(("/m/1", "", MIB), ("/m/2", "", MIB)),
        "c": facts(("/m/1", "d", MIB)),
        "d": facts(("/m/1", "-", MIB)),
    }
    (move,) = fan_out.fan_out_plan(hosts)
    assert move["path"] == "/m/1" and move["bytes"] == 1000
    assert (move["holder"], move["holders"], move["receivers"]) == ("a", ["a", "c"], ["b"])
    assert fan_out.fan_out_plan({"a": hosts["a"]}) == []
    assert fan_out.fan_out_said([move], "b") == ["/m/1 (0 MiB) would come from a, c"]
    assert fan_out.fan_out_said([move], "a") == []


def test_a_job_knows_its_peers_and_only_trees_that_were_offered() -> None:
    hosts = {name: facts(("/m/1", digest, MIB), address=f"10.0.0.{name}") for name, digest in (("1", "d"), ("2", ""))}
    moves = fan_out.fan_out_plan(hosts)
    offers = {"/m/1": {"torrent": "t", "files": {}}}
    (job,) = fan_out.fan_out_job(moves, "2", hosts, offers, 6881)
    assert job["receive"] and job["peers"] == [{"address": "10.0.0.1", "port": 6881}]
    assert fan_out.fan_out_job(moves, "1", hosts, offers, 6881)[0]["receive"] is False
    assert fan_out.fan_out_job(moves, "2", hosts, {}, 6881) == []


def test_two_truths_are_an_error_that_names_the_hosts() -> None:
    hosts = {"a": facts(("/m/1", "d1", 0)), "b": facts(("/m/1", "d2", 0)), "c": facts(("/m/1", "d1", 0))}
    (text,) = fan_out.fan_out_unequal(hosts)
    assert "/m/1 differs between hosts: a, c: d1; b: d2" in text and "To do: " in text
    assert fan_out.fan_out_unequal({"a": hosts["a"], "c": hosts["c"]}) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, ""),
        ({"address_problem": "is no address of the host (it is 10.0.0.9 there)"}, "is no address of the host"),
        ({"address": "10.0.0.1"}, "is also that of a"),
        ({"address": "127.0.1.1"}, "is the loopback"),
    ],
)
def test_a_host_that_cannot_be_reached_by_its_peers(change: dict[str, Any], text: str) -> None:
    hosts = {"a": facts(("/m/1", "d", MIB)), "b": {**facts(("/m/1", "", MIB), address="10.0.0.2"), **change}}
    moves = fan_out.fan_out_plan(hosts)
    found = fan_out.fan_out_unfit(hosts, moves, "b")
    assert len(found) == bool(text) and all(f.startswith("b: ") and text in f and "To do: " in f for f in found)
    assert fan_out.fan_out_unfit(hosts, [], "b") == [], "where nothing is to be moved, nobody minds"


@pytest.mark.parametrize(("room", "partial", "fits"), [(10192, 0, True), (10191, 0, False), (9192, 500, True)])
def test_trees_on_one_file_system_need_room_together(room: int, partial: int, fits: bool) -> None:
    hosts = {
        "a": facts(("/m/1", "d", 0), ("/m/2", "e", 0)),
        "b": facts(("/m/1", "", room), ("/m/2", "", room), address="10.0.0.2"),
    }
    for tree in hosts["b"]["trees"]:
        tree["partial_bytes"] = partial
    found = fan_out.fan_out_unfit(hosts, fan_out.fan_out_plan(hosts), "b")
    assert (found == []) is fits
    assert fits or "b: /m/1, /m/2 needs" in found[0]


def problems(*paths: str, port: int = 6881, **numbers: int) -> list[tuple[str, str]]:
    found = fan_out.fan_out_problems([{"path": path} for path in paths], port, numbers, dict.fromkeys(numbers, 1))
    assert all(set(p) == {"variable", "value", "problem", "do"} and p["do"] for p in found)
    return [(p["variable"], p["problem"]) for p in found]


@pytest.mark.parametrize(
    ("paths", "variable", "text"),
    [
        (["/opt/m", "/opt/.hidden/m", "/opt/m2"], "", ""),
        (["opt/m"], "[0].path", "no absolute path"),
        (["/opt/m", "/"], "[1].path", "no absolute path"),
        (["/opt"], "[0].path", "no absolute path"),
        (["/opt/../etc"], "[0].path", "no absolute path"),
        (["/opt/./m"], "[0].path", "no absolute path"),
        (["/opt/m/"], "[0].path", "no absolute path"),
        (["/opt//m"], "[0].path", "no absolute path"),
        ([""], "[0].path", "no absolute path"),
        (["/opt/m", "/opt/m/1"], "[1].path", "lies within /opt/m"),
    ],
)
def test_paths(paths: list[str], variable: str, text: str) -> None:
    found = problems(*paths)
    assert [name for name, _ in found] == ([f"fan_out_trees{variable}"] if variable else [])
    assert all(text in problem for _, problem in found)


def test_numbers() -> None:
    assert problems("/opt/m", "/opt/m") == [(f"fan_out_trees[{i}].path", "stands there more than once") for i in (0, 1)]
    assert [name for name, _ in problems(port=0)] == ["fan_out_port"] == [name for name, _ in problems(port=65536)]
    assert problems(fan_out_stall_seconds=0) == [("fan_out_stall_seconds", "is too small")]


def test_the_line_that_says_how_far_it_is() -> None:
    def state(done: int, phase: str, rate: int, finished: bool = False) -> dict[str, Any]:
        tree = {"name": "m/1", "bytes": 1000_000_000, "done": done, "phase": phase, "receive": True}
        return {"trees": [tree], "rate": rate, "finished": finished}

    hosts = ["a", "b", "c"]
    half = {"a": state(500_000_000, "receiving", 10**8), "b": state(10**9, "complete", 5, True)}
    assert watch.line(half, hosts) == "fan_out m/1: 75 %, 100 MB/s, 1 of 3 hosts complete, about 5 s left"
    late = {"a": state(10**9, "verifying", 0), "b": state(10**9, "complete", 0, True)}
    assert watch.line(late, hosts) == "fan_out m/1: 100 %, 0 MB/s, 1 of 3 hosts complete, verifying"

"""Models from the network: the official client of the hub, and archives, against a real HTTP server with faults."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import model_store_archive as archive
from ansible.module_utils import model_store_job as job
from support import load, run_module

MODULE = "roles/model_store/library/model_fetch.py"
hub_server = load("molecule/model_store/files/hub.py")
COMMIT = "b" * 40
MIB = 1 << 20
WEIGHTS = bytes(range(256)) * (3 * MIB // 256)
FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "sub/vocab.txt": b"a b c",
    "original/consolidated.00.pth": b"x" * 5000,
    "model.gguf": b"x" * 5000,
}
WANTED = {"config.json", "model.safetensors", "sub/vocab.txt"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    root = tmp_path / "hub"
    for owner in ("org", "gated"):
        for name, data in FILES.items():
            path = root / "repos" / owner / "m" / COMMIT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (root / "files").mkdir()
    server = hub_server.Hub(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "m" / "1"


def fetch(target: Path, kind: str = "hub", source: Any = None, **more: Any) -> dict[str, Any]:
    """The end of a fetch: what the action plugin would see last."""
    arguments = {"path": str(target), "kind": kind, "source": source, "stall_seconds": 6, "wait_seconds": 20, **more}
    return run_module(MODULE, **arguments)


def from_hub(hub: Any, target: Path, repo: str = "org/m", revision: str = COMMIT, **more: Any) -> dict[str, Any]:
    patterns: dict[str, Any] = {key: more.pop(key) for key in ("allow_patterns", "ignore_patterns") if key in more}
    source = {"repo": repo, "revision": revision, **patterns}
    return fetch(target, source=source, endpoint=hub.endpoint, **more)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def whole(target: Path) -> bool:
    """The model is there and right, and nothing else is left."""
    beside = [path.name for path in target.parent.iterdir()]
    return names(target) == WANTED and (target / "model.safetensors").read_bytes() == WEIGHTS and beside == ["1"]


def asked(hub: Any, text: str, method: str = "GET") -> list[dict[str, str]]:
    return [entry for entry in hub.log if text in entry["path"] and entry["method"] == method]


def test_a_model_of_the_hub(hub: Any, target: Path) -> None:
    result = from_hub(hub, target)
    assert result.get("changed") and result["finished"], result
    assert whole(target)
    assert (target / "model.safetensors").stat().st_mode & 0o777 == 0o644
    hub.log.clear()
    again = from_hub(hub, target)
    assert again["finished"] and not again["changed"] and hub.log == []


BUSY = {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}, "times": 1}


def test_faults_that_pass(hub: Any, target: Path) -> None:
    hub.faults, began = (
        [
            {"path": "/tree/", **BUSY},
            {"path": "/resolve/", "kind": "status", "status": 503, "times": 1},
            {"path": "resolve/.*config", "kind": "wrong", "times": 2},
            {"path": "/cdn/", **BUSY},
            {"path": "/cdn/", "kind": "drop", "times": 1},
        ],
        time.monotonic(),
    )
    result = from_hub(hub, target, stall_seconds=20)
    assert result.get("finished") and whole(target), result
    assert all(fault["times"] == 0 for fault in hub.faults)
    assert time.monotonic() - began > 2, "it waited as long as it was told to, twice"
    assert f"bytes={MIB}-" in {entry["range"] for entry in asked(hub, "/cdn/")}, "half of it came, in whole MiB"


def test_wrong_bytes_and_servers_without_ranges(hub: Any, target: Path) -> None:
    hub.faults = [{"path": "/cdn/", "kind": kind, "times": 1} for kind in ("drop", "norange", "wrong")]
    result = from_hub(hub, target, stall_seconds=20)
    assert result.get("finished") and whole(target), result


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"path": "/tree/", "kind": "status", "status": 429, "headers": {"Retry-After": "1"}}, "Error 429 thrown"),
        ({"path": "/cdn/", "kind": "status", "status": 429, "headers": {"Retry-After": "3600"}}, "Waiting 3601.0s"),
        ({"path": "/cdn/", "kind": "hang", "seconds": 9}, "nothing came for 2 s"),
        ({"path": "/cdn/", "kind": "wrong"}, "model.safetensors came with other bytes than http"),
        ({"path": "/tree/", "kind": "status", "status": 403}, "forbids to read org/m (403)"),
        (
            {"path": "vocab", "kind": "status", "status": 404, "headers": {"X-Error-Code": "EntryNotFound"}},
            "has not all of org/m (404)",
        ),
    ],
)
def test_faults_that_stay_end_it_in_time(hub: Any, target: Path, fault: dict[str, Any], text: str) -> None:
    hub.faults, began = [fault], time.monotonic()
    result = from_hub(hub, target, stall_seconds=2)
    assert result.get("failed") and text in result["msg"] and "To do: " in result["msg"], result
    assert "Signature" not in result["msg"], "the addresses of the CDN are signed"
    assert time.monotonic() - began < 12 and not target.exists()
    if fault["kind"] == "wrong":
        hub.faults = []
        assert from_hub(hub, target)["finished"] and whole(target)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"repo": "org/none"}, "does not exist, or is private (401). To do: correct hub.repo"),
        (
            {"repo": "org/none", "secret": {"token": "hf_letmein"}},
            "(404). To do: correct hub.repo; if it is private, give",
        ),
        ({"revision": "c" * 40}, f"has no commit {'c' * 40} (404). To do: correct hub.revision"),
        ({"repo": "gated/m"}, "is gated, and no token was given (401). To do: accept its terms at http"),
        ({"secret": {"token": "hf_wrong"}}, "does not accept the token (401)"),
        ({"allow_patterns": ["*.none"]}, "has 5 files, and the patterns leave none of them"),
        ({"endpoint": "http://127.0.0.1:1"}, "nothing came for 2 s. The last that was heard: '[Errno 111]"),
        ({"path": "/proc/none/m/1"}, "No such file"),
    ],
)
def test_refusals(hub: Any, target: Path, more: dict[str, Any], text: str) -> None:
    repo, revision = more.pop("repo", "org/m"), more.pop("revision", COMMIT)
    source = {"repo": repo, "revision": revision, "allow_patterns": more.pop("allow_patterns", None)}
    arguments = {"path": str(target), "endpoint": hub.endpoint, "stall_seconds": 2, "wait_seconds": 30, **more}
    result = run_module(MODULE, kind="hub", source=source, **arguments)
    assert result.get("failed") and text in result["msg"], result
    assert not target.exists() and "hf_" not in json.dumps(result)


def test_the_token_goes_to_the_hub_only_and_stays_nowhere(hub: Any, target: Path) -> None:
    result = from_hub(hub, target, repo="gated/m", secret={"token": "hf_letmein"})
    assert result.get("finished") and whole(target), result
    assert {entry["auth"] for entry in asked(hub, "/resolve/")} == {"Bearer hf_letmein"}
    assert {entry["auth"] for entry in asked(hub, "/cdn/")} == {""}
    assert "hf_letmein" not in json.dumps(result)
    assert b"hf_letmein" not in b"".join(p.read_bytes() for p in target.parent.rglob("*") if p.is_file())


def test_patterns_choose_the_files(hub: Any, target: Path) -> None:
    assert from_hub(hub, target, ignore_patterns=["sub/*"])["finished"]
    assert names(target) == {"config.json", "model.safetensors", "original/consolidated.00.pth", "model.gguf"}


def begun(hub: Any, target: Path, **more: Any) -> int:
    """Process id of a fetch that is in the middle of the weights."""
    hub.faults = [{"path": "/cdn/", "kind": "slow", "bytes_per_second": 900_000}]
    result = from_hub(hub, target, wait_seconds=2, **more)
    assert not result.get("failed") and not result["finished"] and result["started"], result
    pid: int = json.loads(Path(f"{target}.fetch").read_text())["pid"]
    return pid


def test_it_goes_on_when_nobody_watches_and_another_call_finds_it(hub: Any, target: Path) -> None:
    begun(hub, target)
    time.sleep(1)  # the job measures once a second
    middle = from_hub(hub, target, wait_seconds=0)
    assert not middle["started"] and middle["phase"] == "fetching", "one runs already"
    assert 0 < middle["bytes"] <= middle["total"] + 10_000
    assert from_hub(hub, target)["finished"] and whole(target)
    assert len(asked(hub, "/cdn/")) == 1


def test_killed_in_the_middle_it_looks_not_whole_and_the_next_fetches_the_rest(hub: Any, target: Path) -> None:
    os.kill(begun(hub, target), signal.SIGKILL)
    assert not target.exists()
    lost = from_hub(hub, target, start=False)
    assert "was ended from outside. To do: run again" in lost["msg"]
    hub.faults, hub.log = [], []
    assert from_hub(hub, target)["finished"] and whole(target)
    assert [e["path"] for e in asked(hub, "/resolve/", "HEAD")] == [f"/org/m/resolve/{COMMIT}/model.safetensors"]


def test_what_another_state_left_is_not_taken_for_the_model(hub: Any, target: Path) -> None:
    partial = Path(f"{target}.partial")
    (partial / "sub").mkdir(parents=True)
    (partial / "config.json").write_bytes(b"[]")
    (partial / "sub" / "old.txt").write_bytes(b"of before")
    assert from_hub(hub, target)["finished"] and whole(target)


def tar(members: Sequence[tuple[str, bytes | tarfile.TarInfo]], mode: str = "w:gz") -> bytes:
    """A tar archive of names with their bytes, or of ready entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as out_tar:  # type: ignore[call-overload]
        for name, content in members:
            entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.name = name
            if isinstance(content, bytes):
                entry.size = len(content)
            out_tar.addfile(entry, io.BytesIO(content if isinstance(content, bytes) else b""))
    return out.getvalue()


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo()
    entry.type, entry.linkname = kind, target
    return entry


GOOD = [(f"./m-1/{name}", FILES[name]) for name in sorted(WANTED)]


def from_archive(hub: Any, target: Path, data: bytes, sha256: str = "", **more: Any) -> dict[str, Any]:
    (hub.root / "files" / "m.tar").write_bytes(data)
    source = {"url": f"{hub.endpoint}/files/m.tar", "sha256": sha256 or hashlib.sha256(data).hexdigest()}
    return fetch(target, "archive", source, **more)


def unpack(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "m.tar").write_bytes(data)
    (tmp_path / "tree").mkdir()
    archive.unpack(str(tmp_path / "m.tar"), str(tmp_path / "tree"))
    return tmp_path / "tree"


def test_an_archive(hub: Any, target: Path) -> None:
    result = from_archive(hub, target, tar(GOOD))
    assert result.get("finished") and whole(target), result


@pytest.mark.parametrize("mode", ["w", "w:bz2", "w:xz", "zst"])
def test_compressions(tmp_path: Path, mode: str) -> None:
    data = tar(GOOD, "w" if mode == "zst" else mode)
    if mode == "zst":
        if not shutil.which("zstd"):
            pytest.skip("no zstd here")
        data = subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout
    assert names(unpack(tmp_path, data) / "m-1") == WANTED


def test_an_archive_without_a_directory_around_it_and_with_links_within(hub: Any, target: Path) -> None:
    members: list[Any] = [
        ("config.json", b"{}"),
        ("blobs/w", WEIGHTS),
        ("sub/vocab.txt", link(tarfile.SYMTYPE, "../blobs/v")),
        ("blobs/v", b"a b c"),
        ("model.safetensors", link(tarfile.LNKTYPE, "blobs/w")),
    ]
    assert from_archive(hub, target, tar(members)).get("finished")
    assert (target / "sub/vocab.txt").read_bytes() == b"a b c" and (
        target / "model.safetensors"
    ).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (("../evil", b"x"), "../evil: it leads out of the directory"),
        (("a/../../evil", b"x"), "it leads out of the directory"),
        (("/etc/evil", b"x"), "/etc/evil: it leads out of the directory"),
        (("evil", link(tarfile.SYMTYPE, "/etc/passwd")), "it leads out of the directory (/etc/passwd)"),
        (("m/evil", link(tarfile.SYMTYPE, "../../x")), "m/evil: it leads out of the directory"),
        (("evil", link(tarfile.LNKTYPE, "../models")), "evil: it leads out of the directory"),
        (("evil", link(tarfile.SYMTYPE, "none")), "evil: it is a link to nothing in the archive"),
        (("evil", link(tarfile.CHRTYPE, "")), "evil: it is a device or a pipe"),
    ],
)
def test_an_archive_that_would_leave_its_place(tmp_path: Path, member: Any, text: str) -> None:
    with pytest.raises(job.Problem) as caught:
        unpack(tmp_path, tar([*GOOD, member]))
    assert text in str(caught.value) and "To do: make the archive of plain files" in str(caught.value)
    assert not list(tmp_path.rglob("evil"))


def test_of_an_archive_that_is_refused_nothing_is_kept(hub: Any, target: Path) -> None:
    result = from_archive(hub, target, tar([*GOOD, ("../evil", b"x")]))
    assert "../evil: it leads out of the directory" in result["msg"]
    assert not target.exists() and names(Path(f"{target}.partial")) == {"archive"}


@pytest.mark.parametrize(
    ("data", "more", "text"),
    [
        (tar(GOOD), {"sha256": "0" * 64}, f"and archive.sha256 is {'0' * 64}. Nothing was unpacked"),
        (b"no archive at all" * 99, {}, "is no tar archive, or a broken one"),
        (tar(GOOD)[:-900], {}, "is no tar archive, or a broken one"),
        (b"\x28\xb5\x2f\xfd" + bytes(99), {"env": {"PATH": "/none"}}, "compressed with zstd, which the host has not"),
    ],
)
def test_archives_that_are_wrong(hub: Any, target: Path, data: bytes, more: dict[str, Any], text: str) -> None:
    result = from_archive(hub, target, data, **more)
    assert result.get("failed") and text in result["msg"] and "To do: " in result["msg"], result
    assert not target.exists()


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"kind": "status", "status": 404}, "answers 404 Not Found. To do: correct archive.url"),
        ({"kind": "status", "status": 401}, "To do: give the login to root on the hosts in ~/.netrc"),
        (
            {"kind": "status", "status": 429, "headers": {"Retry-After": "99"}},
            "asks to wait 99 s: longer than model_store",
        ),
        ({"kind": "hang", "seconds": 6}, "nothing came for 2 s"),
        ({"kind": "huge"}, "1 needs 2000000.000 GB more, and "),
    ],
)
def test_servers_that_do_not_give_an_archive(hub: Any, target: Path, fault: dict[str, Any], text: str) -> None:
    hub.faults, began = [{"path": "/files/", **fault}], time.monotonic()
    result = from_archive(hub, target, tar(GOOD), stall_seconds=2)
    assert result.get("failed") and text in result["msg"], result
    assert not target.exists() and time.monotonic() - began < 8


def test_an_archive_is_fetched_on_from_where_it_was_cut(hub: Any, target: Path) -> None:
    data = tar(GOOD, "w")
    hub.faults = [{"path": "/files/", "kind": "drop", "times": 1}]
    assert from_archive(hub, target, data, stall_seconds=20).get("finished") and whole(target)
    assert [entry["range"] for entry in hub.log] == ["", f"bytes={len(data) // 2}-"]


def test_an_archive_whose_job_was_killed_is_fetched_on_by_the_next(hub: Any, target: Path) -> None:
    hub.faults = [{"path": "/files/", "kind": "slow", "bytes_per_second": 900_000}]
    data = tar(GOOD, "w")
    assert not from_archive(hub, target, data, wait_seconds=1.5)["finished"]
    os.kill(json.loads(Path(f"{target}.fetch").read_text())["pid"], signal.SIGKILL)
    hub.faults = []
    assert from_archive(hub, target, data).get("finished") and whole(target)
    assert int(hub.log[-1]["range"].removeprefix("bytes=").rstrip("-")) > 100_000


def test_the_login_of_an_archive_is_taken_from_netrc(hub: Any, target: Path, tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password letmein\n")
    netrc.chmod(0o600)
    from_archive(hub, target, tar(GOOD), env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    assert hub.log[0]["auth"].startswith("Basic ")

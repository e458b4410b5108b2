"""What conda's filters find in its inputs, and what its program for the hosts makes of locks and of failures."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conda_package_handling.api import create
from support import ROOT, http_server, load

conda = load("roles/conda/filter_plugins/conda.py")
create_prefix = load("roles/conda/files/create_prefix.py")
HASH = "0" * 64
URL = "https://conda.anaconda.org/conda-forge/linux-64/"
LOCK = f"""\
# platform: linux-64
@EXPLICIT
{URL}python-3.11.14-hd63d673_3_cpython.conda#{HASH}
{URL}zlib-1.3.1-hb9d3cd8_2.tar.bz2#{"a" * 32}
https://conda.anaconda.org/conda-forge/noarch/pip-26.0-pyh8b19718_0.conda#sha256:{HASH}
"""
GOOD: dict[str, Any] = {
    "conda_backend": "miniforge",
    "conda_channels": ["conda-forge"],
    "conda_channel_alias": "https://conda.anaconda.org",
    "conda_lock": "",
    "conda_python_version": "3.11.14",
    "conda_installer": "https://mirror.example/Miniforge3.sh",
    "conda_installer_sha256": HASH,
}


@pytest.mark.parametrize(
    ("change", "variable", "text"),
    [
        ({"conda_channels": []}, "conda_channels", "names no channel"),
        ({"conda_channels": ["defaults"]}, "conda_channels", "need a licence"),
        ({"conda_channels": ["https://repo.anaconda.com/pkgs/main"]}, "conda_channels", "need a licence"),
        ({"conda_channels": ["conda forge"]}, "conda_channels", "neither a channel's name nor its address"),
        ({"conda_channels": ["https://me:secret@mirror.example/c"]}, "conda_channels", "carries a password"),
        ({"conda_channel_alias": "mirror.example"}, "conda_channel_alias", "is no http(s):// or file:// address"),
        ({"conda_channel_alias": "https://mirror.example/t/secret/c"}, "conda_channel_alias", "carries a password"),
        ({"conda_python_version": "3.12"}, "conda_python_version", "is no Python 3.11"),
        ({"conda_python_version": "3.110"}, "conda_python_version", "is no Python 3.11"),
        ({"conda_lock": "/nowhere.lock"}, "conda_lock", "is no file"),
        ({"conda_lock": "{tmp}/empty"}, "conda_lock", "no line @EXPLICIT"),
        ({"conda_installer": "{tmp}/none.sh"}, "conda_installer", "neither an address nor a file"),
        ({"conda_installer": "{tmp}/empty"}, "conda_installer", "has another SHA-256"),
        ({"conda_installer": "https://me:secret@mirror.example/x.sh"}, "conda_installer", "carries a password"),
        ({"conda_installer_sha256": "sha256:" + HASH}, "conda_installer_sha256", "is no SHA-256"),
        ({"conda_installer_sha256": ""}, "conda_installer_sha256", "is no SHA-256"),
    ],
)
def test_problems(tmp_path: Path, change: dict[str, Any], variable: str, text: str) -> None:
    (tmp_path / "empty").write_text("")
    change = yaml.safe_load(yaml.safe_dump(change).replace("{tmp}", str(tmp_path)))
    assert conda.conda_problems(GOOD, "3.11") == []
    (problem,) = conda.conda_problems({**GOOD, **change}, "3.11")
    assert problem["variable"] == variable and text in problem["problem"] and problem["do"]
    assert "secret" not in json.dumps(problem)


def test_a_good_installer_on_the_controller_and_one_that_rattler_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text("x")
    installer = {"conda_installer": str(tmp_path / "x.sh"), "conda_installer_sha256": hashlib.sha256(b"x").hexdigest()}
    assert conda.conda_problems({**GOOD, **installer}, "3.11") == []
    assert conda.conda_problems({**GOOD, "conda_installer": "none", "conda_backend": "rattler"}, "3.11") == []


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("@EXPLICIT", "# name: x", "no line @EXPLICIT"),
        (f"cpython.conda#{HASH}", "cpython.conda", "has no hash for python-3.11.14"),
        (f"cpython.conda#{HASH}", "cpython.conda#0000", "has no hash for python-3.11.14"),
        ("linux-64/zlib", "osx-arm64/zlib", "is for osx-arm64"),
        ("linux-64/zlib", "linux-aarch64/zlib", "is for linux-aarch64"),
        ("python-3.11.14", "python-3.12.1", "has no Python 3.11"),
        ("python-3.11.14", "python-dateutil-3.11.14", "has no Python 3.11"),
        (f"{URL}zlib", "zlib", "no package's address: zlib-1.3.1"),
        (f"{URL}zlib", f"{URL.replace('//', '//me:secret@')}zlib", "carries a password"),
    ],
)
def test_locks(old: str, new: str, text: str) -> None:
    assert conda.lock_problem(LOCK, "3.11") is None
    assert old in LOCK
    problem, do = conda.lock_problem(LOCK.replace(old, new), "3.11")
    assert text in problem and do and "secret" not in problem


def test_both_read_the_same_lines_of_a_lock() -> None:
    assert [digest.hex() for _, digest in create_prefix.locked(LOCK)] == [HASH, "a" * 32, HASH]


@pytest.mark.parametrize(
    ("text", "do"),
    [
        # As conda prints them: exceptions.py of conda, and public issues; the program itself was not run.
        ("NoSpaceLeftError: No space left on devices.", "make room"),
        ("ChecksumMismatchError: Conda detected a mismatch between the expected content", "what the mirror serves"),
        (
            "CondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://c/noarch/repodata.json>",
            "see that this host reaches C",
        ),
        ("UnavailableInvalidChannel: HTTP 404 NOT FOUND for channel x <https://c/x>", "see that C is a channel"),
        ("PackagesNotFoundError: The following packages are not available from current channels:", "set conda_python"),
        ("LibMambaUnsatisfiableError: - nothing provides requested python 3.11.99**", "set conda_python"),
        (
            "CondaSSLError: Encountered an SSL error. Most likely a certificate verification issue.",
            "name the CA",
        ),
        ("EnvironmentNotWritableError: The current user does not have write permissions", "let root write to /p"),
        ("something\nelse", "read the message"),
    ],
)
def test_what_conda_says_and_what_to_do(text: str, do: str) -> None:
    line = create_prefix.told(text, "/p", ["C"])
    assert "\n" not in line and " ".join(text.split()).rstrip(".") in line and f"To do: {do}" in line


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A channel with a small noarch package in it."""
    root, made = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("channel")
    (root / "info").mkdir()
    (root / "hello.txt").write_text("hello\n")
    index = {"name": "python", "version": "3.11.7", "build": "0", "build_number": 0, "subdir": "noarch", "depends": []}
    path = {"_path": "hello.txt", "path_type": "hardlink", "size_in_bytes": 6}
    path["sha256"] = hashlib.sha256(b"hello\n").hexdigest()
    (root / "info/index.json").write_text(json.dumps({**index, "noarch": "generic"}))
    (root / "info/paths.json").write_text(json.dumps({"paths": [path], "paths_version": 1}))
    (made / "noarch").mkdir()
    create(str(root), None, "python-3.11.7-0.conda", str(made / "noarch"))
    # In a process of its own: py-rattler's threads sometimes abort an ordinary end.
    index_it = (
        "import asyncio, os, sys; from rattler.index import index_fs; asyncio.run(index_fs(sys.argv[1])); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", index_it, str(made)], check=True, timeout=60)
    return made


@pytest.fixture
def mirror(channel: Path) -> Iterator[str]:
    """The channel at /c, and at /private for user me with password pw."""

    def answer(_method: str, path: str, headers: Any, _body: bytes) -> tuple[int, Any]:
        if path.startswith("/private/"):
            if headers.get("Authorization", headers.get("authorization")) != f"Basic {b64encode(b'me:pw').decode()}":
                return 401, b""
            path = path.replace("/private/", "/c/")
        file = channel / path.removeprefix("/c/")
        return (200, file.read_bytes()) if path.startswith("/c/") and file.is_file() else (404, b"")

    with http_server(answer) as address:
        yield address


def run(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "roles/conda/files/create_prefix.py"), *arguments]
    command += [f"--prefix={tmp_path}/made"] + ([] if "--conda" in arguments[0] else [f"--cache={tmp_path}/cache"])
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_prefix_and_its_lock_and_the_prefix_of_that_lock(tmp_path: Path, mirror: str) -> None:
    done = run(tmp_path, f"--channel={mirror}/c", "python=3.11")
    assert (done.returncode, done.stderr) == (0, "")
    lock = (tmp_path / "made/conda-meta/explicit.lock").read_text()
    assert re.fullmatch(
        rf"# platform: linux-\S+\n@EXPLICIT\n{mirror}/c/noarch/python-3.11.7-0.conda#[0-9a-f]{{64}}\n", lock
    )
    assert conda.lock_problem(lock, "3.11") is None
    (tmp_path / "lock").write_text(lock)
    assert run(tmp_path, f"--file={tmp_path}/lock").returncode == 0
    assert (tmp_path / "made/hello.txt").read_text() == "hello\n"


def test_a_password_comes_from_the_netrc_alone(tmp_path: Path, mirror: str) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pw\n")
    arguments = [f"--channel={mirror}/private", "python=3.11"]
    assert run(tmp_path, *arguments, NETRC=str(tmp_path / "netrc")).returncode == 0
    refused = run(tmp_path, *arguments, NETRC="/nowhere")
    assert refused.returncode == 1 and "401" in refused.stderr and "may read it" in refused.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "nothing at home"


@pytest.mark.parametrize(
    ("arguments", "text", "do"),
    [
        (["--channel={url}/c", "python=3.99"], "No candidates were found for python 3.99", "set conda_python_version"),
        (["--channel={url}/none", "python"], "404", "see that {url}/none is a channel"),
        (["--file={tmp}/sha256.lock"], "hash mismatch", "what the mirror serves is not"),
        (["--file={tmp}/md5.lock"], "hash mismatch", "what the mirror serves is not"),
        (["--file={tmp}/gone.lock"], "404", "see that the lock's addresses"),
        (["--file={tmp}/none.lock"], "No such file", "read the message"),
        (["--conda=/nowhere/conda", "python"], "No such file", "read the message"),
        (["--conda=/bin/false", "python"], "conda ended with 1", "read the message"),
    ],
)
def test_failures_are_one_line(tmp_path: Path, mirror: str, arguments: list[str], text: str, do: str) -> None:
    package = f"{mirror}/c/noarch/python-3.11.7-0.conda"
    for name, line in {
        "sha256": f"{package}#{HASH}",
        "md5": f"{package}#{'0' * 32}",
        "gone": f"{package.replace('7-0', '8-0')}#{HASH}",
    }.items():
        (tmp_path / f"{name}.lock").write_text(f"@EXPLICIT\n{line}\n")
    done = run(tmp_path, *(word.format(url=mirror, tmp=tmp_path) for word in arguments))
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert text in done.stderr and f"To do: {do.format(url=mirror)}" in done.stderr, done.stderr

"""A model as an archive at an HTTP(S) address, with its sha256."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import lzma
import netrc
import os
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from ansible.module_utils.model_store_job import DISK_ERRORS, Problem

if TYPE_CHECKING:
    from ansible.module_utils.model_store_job import Job

CHUNK_BYTES = 1 << 20
READ_SECONDS = 60
ZSTD = b"\x28\xb5\x2f\xfd"
AGAIN = (408, 425, 429, 500, 502, 503, 504)
BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


def request(url: str, have: int) -> urllib.request.Request:
    asked = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if have:
        asked.add_header("Range", f"bytes={have}-")
    with contextlib.suppress(FileNotFoundError, netrc.NetrcParseError):
        if found := netrc.netrc().authenticators(urllib.parse.urlsplit(url).hostname or ""):
            login = base64.b64encode(f"{found[0]}:{found[2]}".encode()).decode()
            asked.add_unredirected_header("Authorization", f"Basic {login}")  # not for where it may lead
    return asked


def download(job: Job, url: str, target: str) -> None:
    """Fetch ``url`` into the file ``target``, on from where an earlier run ended."""
    total = None
    while True:
        have = os.path.getsize(target) if os.path.exists(target) else 0
        if have and have == total:
            return
        try:
            with urllib.request.urlopen(request(url, have), timeout=READ_SECONDS) as answer:
                length = answer.headers.get("Content-Length")
                have = have if answer.status == 206 else 0  # a server without ranges gives all again
                total = have + int(length) if length else None
                job.need(2 * (total or 0))  # the archive, and what comes out of it: weights hardly shrink
                job.begin("fetching", total)
                with open(target, "ab" if have else "wb", buffering=0) as handle:
                    while chunk := answer.read1(CHUNK_BYTES):
                        handle.write(chunk)
                if total is None or os.path.getsize(target) == total:
                    return
                job.wait(f"{url} ended too soon")
        except urllib.error.HTTPError as error:
            if error.code == 416:  # all was there, or it is another file now: the sha256 tells
                if str(error.headers.get("Content-Range", "")).endswith(f"/{have}"):
                    return
                os.unlink(target)
            elif error.code not in AGAIN:
                do = {401: "give the login to root on the hosts in ~/.netrc", 403: "ask its owner for access"}
                text = do.get(error.code, "correct archive.url")
                raise Problem(f"archive.url {url} answers {error.code} {error.reason}. To do: {text}") from error
            else:
                seconds = str(error.headers.get("Retry-After", ""))
                job.wait(f"{url} answers {error.code}", float(seconds) if seconds.isdigit() else None)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            job.wait(f"{url} does not answer: {error}")


def check_sha256(path: str, wanted: str, url: str) -> None:
    total = hashlib.sha256()
    with open(path, "rb", buffering=0) as handle:
        while chunk := handle.read(CHUNK_BYTES):
            total.update(chunk)
    if total.hexdigest() != wanted.lower():
        os.unlink(path)
        text = f"archive.url {url} has sha256 {total.hexdigest()}, and archive.sha256 is {wanted}"
        raise Problem(f"{text}. Nothing was unpacked. To do: correct the one that is wrong")


@contextlib.contextmanager
def opened(path: str) -> Iterator[tarfile.TarFile]:
    """The tar file, whatever it is compressed with."""
    with open(path, "rb") as handle:
        zstd = handle.read(4) == ZSTD
    if not zstd:
        with tarfile.open(path, "r:*") as tar:
            yield tar
        return
    program = shutil.which("zstd")
    if not program:
        do = "install it (apt install zstd), or offer the archive as .tar or .tar.gz"
        raise Problem(f"the archive is compressed with zstd, which the host has not. To do: {do}")
    with subprocess.Popen([program, "-dc", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield tar
        if process.stdout:
            while process.stdout.read(CHUNK_BYTES):  # what is after the end of the tar file
                pass
        if process.wait():
            raise tarfile.ReadError("zstd says that it is broken")


def inside(name: str, member: str) -> str:
    """``name`` without ``./``; Problem where it leads out of the directory."""
    clean = os.path.normpath(name)
    if name.startswith("/") or clean.split("/")[0] == ".." or ".." in name.split("/"):
        raise refused(member, f"it leads out of the directory ({name})")
    return clean


def refused(member: str, why: str) -> Problem:
    do = "make the archive of plain files and directories with relative names"
    return Problem(f"the archive is refused: {member}: {why}. Nothing of it was kept. To do: {do}")


def unpack(archive: str, target: str) -> None:
    """Unpack plain files, directories and links within; nothing else, and no owner, mode or time."""
    links = []  # made last, so that nothing is written through one
    with opened(archive) as tar:
        for member in tar:
            path = os.path.join(target, inside(member.name, member.name))
            if member.isdir():
                os.makedirs(path, mode=0o755, exist_ok=True)
            elif member.isfile():
                os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
                write(tar.extractfile(member), path)
            elif member.issym() or member.islnk():
                base = os.path.dirname(member.name) if member.issym() else ""
                if member.linkname.startswith("/"):
                    raise refused(member.name, f"it leads out of the directory ({member.linkname})")
                joined = os.path.normpath(os.path.join(base, member.linkname))
                links.append((member.name, os.path.join(target, inside(joined, member.name)), path))
            else:
                raise refused(member.name, "it is a device or a pipe")
    for name, source, path in links:
        if not os.path.isfile(source):
            raise refused(name, "it is a link to nothing in the archive")
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.link(source, path)  # either kind: the same file under two names


def write(source: IO[bytes] | None, path: str) -> None:
    with open(path, "wb") as handle:
        while source and (chunk := source.read(CHUNK_BYTES)):
            handle.write(chunk)
    os.chmod(path, 0o644)


def fetch(job: Job, source: dict[str, Any], **_: Any) -> str:
    """Download, compare the sha256, unpack; gives the directory, without a single directory around it."""
    archive, tree = os.path.join(job.partial, "archive"), os.path.join(job.partial, "tree")
    shutil.rmtree(tree, ignore_errors=True)
    for name in os.listdir(job.partial):
        if name != "archive":
            raise Problem(f"{job.partial} has {name}, which no archive left. To do: remove {job.partial}")
    download(job, source["url"], archive)
    job.begin("verifying")
    check_sha256(archive, source["sha256"], source["url"])
    job.begin("unpacking")
    os.mkdir(tree, mode=0o755)
    try:
        unpack(archive, tree)
    except BROKEN as error:
        shutil.rmtree(tree, ignore_errors=True)
        do = "offer the model directory as .tar, .tar.gz, .tar.xz or .tar.zst"
        raise Problem(
            f"archive.url {source['url']} is no tar archive, or a broken one: {error}. To do: {do}"
        ) from error
    except (Problem, OSError):
        shutil.rmtree(tree, ignore_errors=True)
        raise
    os.unlink(archive)
    names = os.listdir(tree)
    only = os.path.join(tree, names[0]) if len(names) == 1 else ""
    return only if os.path.isdir(only) else tree

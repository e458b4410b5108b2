#!/usr/bin/env python3
"""A small hub: what the client of the Hugging Face hub uses of its HTTP API to fetch a model, with faults on request.

usage: hub.py ROOT PORT

It serves ROOT/repos/<owner>/<name>/<commit>/... as repositories, and ROOT/files/... as plain files at /files/.
Files from LFS_BYTES on are in "LFS": their address redirects to another host name, as the hub's does to its CDN.
Repositories of owner `gated` want the token `hf_letmein`. Source of the API: what huggingface_hub 2.4 asks and reads.

POST /-/faults with a list of faults, each {"path": regular expression, "kind": ..., "times": how often, else for ever}:
  status  answers `status` with `headers`      drop   sends half and cuts the connection
  wrong   sends a byte that is another         hang   answers after `seconds`
  slow    sends `bytes_per_second`             norange  takes no notice of Range
  huge    says that a petabyte comes
GET /-/log gives the requests since the faults were set: method, path, range, auth.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LFS_BYTES = 1000
TOKEN = "hf_letmein"
ALIAS = "localhost"  # the CDN: the same server under another name
Answer = tuple[int, dict[str, str], bytes]


def blob_id(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server; ``faults`` and ``log`` as in the module's own text."""

    daemon_threads = True

    def __init__(self, root: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.root = root
        self.faults: list[dict[str, Any]] = []
        self.log: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that left is none of our business."""

    def fault(self, path: str) -> dict[str, Any]:
        """The fault for a request, counted down."""
        with self.lock:
            for fault in self.faults:
                if re.search(fault["path"], path) and fault.get("times", 1) > 0:
                    if "times" in fault:
                        fault["times"] -= 1
                    return fault
        return {"kind": ""}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.faults, self.server.log = json.loads(body), []
        self._send(200, {}, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        auth, ranges = self.headers.get("Authorization", ""), self.headers.get("Range", "")
        if self.path == "/-/log":
            self._send(200, {}, json.dumps(self.server.log).encode())
            return
        self.server.log.append({"method": self.command, "path": self.path, "range": ranges, "auth": auth})
        fault = self.server.fault(self.path)
        if fault["kind"] == "hang":
            time.sleep(fault["seconds"])
        if fault["kind"] == "status":
            self._send(fault["status"], fault.get("headers", {}), b"")
            return
        status, headers, data = self._answer(auth.removeprefix("Bearer "))
        if fault["kind"] == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if status == 200 and fault["kind"] != "norange" and (found := re.match(r"bytes=(\d+)-", ranges)):
            first = int(found[1])
            if first >= len(data):
                self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
                return
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[first:]
        if fault["kind"] == "huge":
            headers["Content-Length"], self.close_connection = str(10**15), True
        self._send(status, headers, data, fault)

    def _send(self, status: int, headers: dict[str, str], data: bytes, fault: dict[str, Any] | None = None) -> None:
        fault = fault or {"kind": ""}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault["kind"] == "drop":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        step = max(fault.get("bytes_per_second", 0) // 10, 1) if fault["kind"] == "slow" else max(len(data), 1)
        for begin in range(0, len(data), step):
            self.wfile.write(data[begin : begin + step])
            if fault["kind"] == "slow":
                time.sleep(0.1)

    def _answer(self, token: str) -> Answer:
        path = self.path.partition("?")[0]
        if token and token != TOKEN:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        if found := re.fullmatch(r"/files/([^?]+)", path):
            return self._file(self.server.root / "files" / found[1])
        if found := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            return next(self._blobs(found[1]), (404, {}, b""))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:tree|revision)/([^/]+)", path):
            return self._listing(found[1], found[2], token, tree="/tree/" in path)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*found.groups(), token)
        return 404, {}, b""

    def _file(self, path: Path) -> Answer:
        return (200, {"Accept-Ranges": "bytes"}, path.read_bytes()) if path.is_file() else (404, {}, b"")

    def _blobs(self, sha256: str) -> Iterator[Answer]:
        for path in (self.server.root / "repos").rglob("*"):
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                yield self._file(path)

    def _folder(self, repo: str, revision: str, token: str) -> Path | Answer:
        base = self.server.root / "repos" / repo
        if not base.is_dir():  # nobody without a token is told whether it exists
            return (404 if token else 401), {"X-Error-Code": "RepoNotFound"}, b""
        folder = base / revision
        return folder if folder.is_dir() else (404, {"X-Error-Code": "RevisionNotFound"}, b"")

    def _listing(self, repo: str, revision: str, token: str, tree: bool) -> Answer:
        folder = self._folder(repo, revision, token)
        if not isinstance(folder, Path):
            return folder
        entries = []
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_dir():
                entries.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
                continue
            data = path.read_bytes()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob_id(data)}
            if len(data) >= LFS_BYTES:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        siblings = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
        answer = entries if tree else {"id": repo, "sha": revision, "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def _resolve(self, repo: str, revision: str, name: str, token: str) -> Answer:
        folder = self._folder(repo, revision, token)
        if not isinstance(folder, Path):
            return folder
        if repo.startswith("gated/") and token != TOKEN:
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        headers = {"X-Repo-Commit": revision}
        if not (folder / name).is_file():
            return 404, {**headers, "X-Error-Code": "EntryNotFound"}, b""
        data = (folder / name).read_bytes()
        if len(data) < LFS_BYTES:
            return 200, {**headers, "ETag": f'"{blob_id(data)}"'}, data
        sha256 = hashlib.sha256(data).hexdigest()
        place = f"http://{ALIAS}:{self.server.server_port}/cdn/{sha256}?Signature=secret"
        return 302, {**headers, "Location": place, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}, b""


if __name__ == "__main__":
    Hub(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()

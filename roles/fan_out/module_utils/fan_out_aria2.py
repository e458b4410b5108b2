"""aria2 as one process for all trees of a host, and the tracker that tells it its peers.

aria2 learns of peers from trackers only, and a tracker for the cluster would be one more service to secure: so each
host has its own, on the loopback and as short-lived as the job, and it names those hosts that Ansible named.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ansible.module_utils.fan_out_torrent import bencode
from ansible.module_utils.fan_out_tree import Problem

ASK_AGAIN_SECONDS = 2  # a peer that was not up yet is tried again as soon
ANSWER_SECONDS = 20
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is not for the loopback
Peer = dict[str, Any]  # address, port


def announced(peers: list[Peer]) -> bytes:
    """A tracker's answer in the compact form of BEP 23 and BEP 7."""
    packed = {socket.AF_INET: b"", socket.AF_INET6: b""}
    for peer in peers:
        family = socket.AF_INET6 if ":" in peer["address"] else socket.AF_INET
        packed[family] += socket.inet_pton(family, peer["address"]) + int(peer["port"]).to_bytes(2, "big")
    seconds = {"interval": ASK_AGAIN_SECONDS, "min interval": ASK_AGAIN_SECONDS}
    answer: bytes = bencode({**seconds, "peers": packed[socket.AF_INET], "peers6": packed[socket.AF_INET6]})
    return answer


class Tracker:
    """``with Tracker({info hash: peers}) as url``: a tracker on the loopback."""

    def __init__(self, swarms: dict[bytes, list[Peer]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = parse_qs(urlsplit(self.path).query, encoding="latin-1")
                name = asked.get("info_hash", [""])[0].encode("latin-1")
                known = name in swarms
                body = announced(swarms[name]) if known else bencode({"failure reason": "unknown torrent"})
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}/announce"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Aria2:
    """aria2c, spoken to by JSON-RPC on the loopback; its token is in a file that only root reads.

    ``given``: address, port, limit_bytes_per_second, encrypt; ``keep_open``: a descriptor that it inherits.
    """

    def __init__(self, directory: str, given: dict[str, Any], tracker: str, keep_open: int) -> None:
        address = given["address"]
        self._log = os.path.join(directory, "aria2.log")
        self._token, rpc_port = secrets.token_urlsafe(), free_port()
        self._url = f"http://127.0.0.1:{rpc_port}/jsonrpc"
        settings = {
            # Only the peers that were named, only at the cluster's address. The handshake is always encrypted: it would
            # show the torrent's hash, which is all that a stranger needs to be served.
            "interface": address,
            "listen-port": given["port"],
            "disable-ipv6": "false" if ":" in address else "true",
            "enable-dht": "false",
            "enable-dht6": "false",
            "bt-enable-lpd": "false",
            "enable-peer-exchange": "false",
            "bt-tracker": tracker,
            "bt-tracker-interval": ASK_AGAIN_SECONDS,
            "bt-require-crypto": "true",
            "bt-min-crypto-level": "arc4" if given["encrypt"] else "plain",
            "bt-max-peers": 0,
            "max-overall-upload-limit": given["limit_bytes_per_second"],
            "max-concurrent-downloads": 1000,
            "seed-ratio": "0.0",
            "file-allocation": "none",
            "allow-overwrite": "true",
            "auto-save-interval": 0,
            "enable-rpc": "true",
            "rpc-listen-all": "false",
            "rpc-listen-port": rpc_port,
            "rpc-secret": self._token,
            "rpc-max-request-size": "8M",
            "rpc-save-upload-metadata": "false",
            "stop-with-process": os.getpid(),
            "log": self._log,
            "log-level": "notice",
            "quiet": "true",
        }
        conf = os.path.join(directory, "aria2.conf")
        with open(os.open(conf, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as handle:
            handle.writelines(f"{key}={value}\n" for key, value in settings.items())
        self._process = subprocess.Popen(
            # Root, since what it brings is root's, but with nothing of what root may do besides.
            ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "aria2c", f"--conf-path={conf}"],
            cwd=directory,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": directory},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[keep_open],
        )

    def last_words(self) -> str:
        """The end of aria2's log on one line."""
        try:
            with open(self._log, encoding="utf-8", errors="replace") as handle:
                return " / ".join(line.strip() for line in handle.readlines()[-5:] if line.strip())
        except OSError:
            return "it wrote no log"

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of aria2.<method>; OSError while it does not answer, Problem for what it refuses."""
        if self._process.poll() is not None:
            raise Problem(f"aria2c ended with code {self._process.returncode}: {self.last_words()}")
        params = [f"token:{self._token}", *arguments]
        body = json.dumps({"jsonrpc": "2.0", "id": "1", "method": f"aria2.{method}", "params": params}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        try:
            with OPENER.open(request, timeout=ANSWER_SECONDS) as answer:
                return json.load(answer)["result"]
        except urllib.error.HTTPError as error:
            raise Problem(f"aria2c refused {method}: {error.read().decode(errors='replace')}") from error

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

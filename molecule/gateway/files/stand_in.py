#!/usr/bin/python3
"""Stands in for a Serve proxy: health that can be told to drain, an echo of the path, slow answers and streams.

Arguments: name, address, port. While /run/stand-in/draining exists the health check answers 503 and requests are served
on, as Ray's proxy does. SIGTERM closes the listening socket and lets what is under way finish. Query of a request:
`seconds` before the answer; `events` and `pause` for a stream; `status` of the answer; `headers` tells what came.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

DRAINING = Path("/run/stand-in/draining")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: float(values[0]) for name, values in parse_qs(url.query).items()}
        if url.path == "/-/healthz":
            self._send(503, b"This node is being drained.") if DRAINING.exists() else self._send(200, b"success")
            return
        time.sleep(query.get("seconds", 0))
        told: dict[str, object] = {"node": sys.argv[1], "path": self.path, "bytes": len(body)}
        if "headers" in query:
            told["headers"] = dict(self.headers.items())
        if "events" not in query:
            self._send(int(query.get("status", 200)), json.dumps(told).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(int(query["events"])):
            self._chunk(f"data: {json.dumps({**told, 'event': number})}\n\n".encode())
            time.sleep(query.get("pause", 0))
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    do_GET = do_POST = _answer

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128


if __name__ == "__main__":
    server = Server((sys.argv[2], int(sys.argv[3])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.05)
    server.server_close()

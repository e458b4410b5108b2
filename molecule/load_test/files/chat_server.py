"""Chat completions with server-sent events and faults on demand: a server to test the load test against.

    chat_server.py PORT

POST /v1/chat/completions (below any prefix) answers; PUT /behaviour with a JSON object changes how, until the next
PUT; GET /count says how many requests there were since. Keys of the behaviour, all optional:
fault: cut, no_done, no_finish, status, malformed, error_event, empty, reset, stall;
every: only each so many-th request has the fault; key: the API key that is asked for;
delay_seconds: before the first byte; gap_seconds: between two chunks; stall_seconds: in the middle, with fault stall.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["Paris", " is", " the", " capital", "."]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, Handler)
        self.behaviour: dict[str, Any] = {}
        self.count = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a reused connection waits 40 ms for each answer
    server: Server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _json(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Revision", "r1")
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._json({"count": self.server.count})

    def do_PUT(self) -> None:
        self.server.behaviour = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.count = 0
        self._json({})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.count += 1
            number = self.server.count
        behaviour = dict(self.server.behaviour)
        if number % behaviour.get("every", 1):
            behaviour["fault"] = ""
        time.sleep(behaviour.get("delay_seconds", 0))
        fault = behaviour.get("fault", "")
        if self.headers.get("Authorization") != (f"Bearer {behaviour['key']}" if "key" in behaviour else None):
            self._json({"error": {"message": "who are you?"}}, 401)
        elif fault == "status":
            self._json({"error": {"message": "out of order"}}, 500)
        elif fault == "reset":
            # With no time to linger a close is a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif request.get("stream"):
            self._stream(request, fault, behaviour)
        else:
            self._plain(request, fault, behaviour)

    def _event(self, data: str) -> None:
        line = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def _head(self, request: dict[str, Any], kind: str) -> dict[str, Any]:
        return {"id": "1", "object": kind, "model": request["model"], "system_fingerprint": "fp-1"}

    def _stream(self, request: dict[str, Any], fault: str, behaviour: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("X-Revision", "r1")
        self.end_headers()
        head = self._head(request, "chat.completion.chunk")
        for number, word in enumerate([] if fault == "empty" else WORDS):
            if number:
                time.sleep(behaviour.get("gap_seconds", 0))
            if number == 2 and fault == "stall":
                time.sleep(behaviour["stall_seconds"])
            if number == 2 and fault == "cut":
                self.close_connection = True
                return
            if number == 2 and fault == "error_event":
                self._event(json.dumps({"error": {"message": "engine died"}}))
            self._event("{half" if number == 2 and fault == "malformed" else json.dumps(head | chunk(word)))
        if fault != "no_finish":
            self._event(json.dumps(head | chunk("", "stop")))
        if (request.get("stream_options") or {}).get("include_usage") and fault != "empty":
            self._event(json.dumps(head | {"choices": [], "usage": {"completion_tokens": len(WORDS)}}))
        if fault != "no_done":
            self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _plain(self, request: dict[str, Any], fault: str, behaviour: dict[str, Any]) -> None:
        if fault == "stall":
            time.sleep(behaviour["stall_seconds"])
        text, tokens = ("", 0) if fault == "empty" else ("".join(WORDS), len(WORDS))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        choice["finish_reason"] = None if fault in ("no_finish", "no_done") else "stop"
        content: Any = self._head(request, "chat.completion") | {"choices": [choice]}
        content["usage"] = {"completion_tokens": tokens}
        if fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())
            self.close_connection = True
        elif fault in ("malformed", "error_event"):
            self._json("half" if fault == "malformed" else {"error": {"message": "engine died"}})
        else:
            self._json(content)


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


if __name__ == "__main__":
    Server(("0.0.0.0", int(sys.argv[1]))).serve_forever()

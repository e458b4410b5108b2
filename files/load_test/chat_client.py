"""One chat completion over HTTP, timed and judged. No retries: what fails once has failed.

Only the standard library: clients that pool connections repeat some requests by themselves. Locust makes the sockets
cooperative before this module is imported; it works with plain threads as well.
"""

from __future__ import annotations

import json
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

PIECE_BYTES = 65536
ERROR_LENGTH_MAX = 500
ANSWER_LENGTH_MAX = 80


class RequestFailed(Exception):
    """``kind`` is one of few words, to count by; the message says the rest."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message[:ERROR_LENGTH_MAX])
        self.kind = kind


@dataclass
class Answer:
    """What became of one request. All durations are in seconds; those of the whole count from its scheduled arrival.

    ``failure`` is empty for a good answer, else ``refused``, ``connect``, ``timeout``, ``cut``, ``protocol``,
    ``status <number>``, ``malformed``, ``empty``, ``stall`` or ``not sent``. ``status`` is 0 without an HTTP answer.
    """

    stream: bool
    scheduled: float  # on the clock of time.perf_counter
    lag_seconds: float = 0.0  # sent so much later than scheduled: the lateness of the load generator itself
    first_token_seconds: float | None = None  # of a streamed answer
    seconds: float = 0.0
    longest_gap_seconds: float = 0.0  # longest time in which no part of the answer came
    status: int = 0
    failure: str = ""
    error: str = ""
    model: str = ""
    fingerprint: str = ""
    tokens: int = 0
    length: int = 0  # bytes of the body
    answer: str = ""  # its first characters
    headers: dict[str, str] = field(default_factory=dict)  # those that begin with x-
    finished: bool = False  # a finish_reason was seen
    done: bool = False  # the stream said [DONE]

    def heard(self) -> None:
        """Note that a part of the answer is here, or its end."""
        now = time.perf_counter() - self.scheduled
        self.longest_gap_seconds, self.seconds = max(self.longest_gap_seconds, now - self.seconds), now

    def take(self, text: bytes | str) -> None:
        """Read a completion, or one chunk of it. Raises RequestFailed."""
        try:
            event = json.loads(text)
        except ValueError as error:
            raise RequestFailed("malformed", f"not JSON: {text[:200]!r}") from error
        try:
            if event.get("error"):
                raise RequestFailed("malformed", f"an error in place of the answer: {event['error']}")
            self.model = event.get("model") or self.model
            self.fingerprint = event.get("system_fingerprint") or self.fingerprint
            brought = False
            for choice in event["choices"]:
                self.finished |= choice.get("finish_reason") is not None
                part = choice.get("delta") or choice.get("message") or {}
                texts = [part[name] for name in ("reasoning_content", "reasoning", "content") if part.get(name)]
                brought |= bool(texts or part.get("tool_calls"))
                self.answer = (self.answer + "".join(texts))[:ANSWER_LENGTH_MAX]
            used = (event.get("usage") or {}).get("completion_tokens")
        except (AttributeError, LookupError, TypeError) as error:
            raise RequestFailed("malformed", f"not a chat completion: {text[:200]!r}") from error
        # What the server counts, where it does; else a chunk with content is a token.
        self.tokens = used if used is not None else self.tokens + brought
        if brought and self.stream and self.first_token_seconds is None:
            self.first_token_seconds = self.seconds


class ChatClient:
    """Asks one endpoint. ``timeout_seconds`` limits a whole request, ``stall_seconds`` each wait for a part of it."""

    def __init__(
        self,
        host: str,
        path: str,
        headers: dict[str, str],
        timeout_seconds: float,
        stall_seconds: float,
        keep_alive: bool = False,
    ) -> None:
        """``host``: http(s)://name[:port], with or without a route prefix; ``path`` follows it."""
        parts = urlsplit(host)
        self.connection_type = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.address = (parts.hostname or "", parts.port)
        self.path = parts.path.rstrip("/") + path
        self.headers = {"Content-Type": "application/json", "Connection": "keep-alive" if keep_alive else "close"}
        self.headers |= headers
        self.timeout_seconds, self.stall_seconds, self.keep_alive = timeout_seconds, stall_seconds, keep_alive
        self.idle: list[HTTPConnection] = []

    def ask(self, body: dict[str, Any], scheduled: float) -> Answer:
        """Send ``body`` and read the whole answer. ``scheduled``: when it should have been sent (perf_counter)."""
        answer = Answer(bool(body.get("stream")), scheduled)
        answer.lag_seconds = time.perf_counter() - scheduled
        connection = self._connection()
        try:
            response = self._send(connection, body, answer)
            self._read(connection, response, answer)
        except RequestFailed as error:
            answer.failure, answer.error = error.kind, str(error)
        except TimeoutError:
            answer.failure, answer.error = "timeout", f"no complete answer in {self.timeout_seconds:g} s"
        except (HTTPException, OSError) as error:  # a reset, or bytes that are no HTTP
            broken = isinstance(error, (IncompleteRead, ConnectionError))
            answer.failure, answer.error = "cut" if broken else "protocol", repr(error)
        answer.heard()
        if not answer.failure and answer.longest_gap_seconds > self.stall_seconds:
            answer.failure = "stall"
            answer.error = f"{answer.longest_gap_seconds:.2f} s in which no part of the answer came"
        if self.keep_alive and not answer.failure and not response.will_close:
            response.close()  # its side of it: the connection stays
            self.idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Close the connections that are kept."""
        while self.idle:
            self.idle.pop().close()

    def _connection(self) -> HTTPConnection:
        while self.idle:
            connection = self.idle.pop()
            # Readable while idle means that the server has closed it: looked at before, not repeated after.
            if not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
        return self.connection_type(*self.address)

    def _wait(self, connection: HTTPConnection, answer: Answer) -> None:
        """Let the next operation on the socket take what is left of the time."""
        left = max(answer.scheduled + answer.lag_seconds + self.timeout_seconds - time.perf_counter(), 0.001)
        connection.timeout = left
        if connection.sock:
            connection.sock.settimeout(left)

    def _send(self, connection: HTTPConnection, body: dict[str, Any], answer: Answer) -> HTTPResponse:
        self._wait(connection, answer)
        if not connection.sock:
            try:
                connection.connect()
            except TimeoutError:
                raise
            except ConnectionRefusedError as error:
                raise RequestFailed("refused", str(error)) from error
            except OSError as error:
                raise RequestFailed("connect", str(error)) from error
        connection.request("POST", self.path, json.dumps(body), self.headers)
        self._wait(connection, answer)
        response = connection.getresponse()
        answer.status = response.status
        answer.headers = {name.lower(): value for name, value in response.getheaders() if name.lower().startswith("x-")}
        return response

    def _read(self, connection: HTTPConnection, response: HTTPResponse, answer: Answer) -> None:
        """Read the answer to its end and judge whether it is whole."""
        if response.status != 200:
            text = b"".join(self._pieces(connection, response, answer)).decode(errors="replace")
            raise RequestFailed(f"status {response.status}", f"{response.reason}: {text}")
        if answer.stream:
            try:
                self._read_events(connection, response, answer)
            except IncompleteRead:  # of what follows [DONE] nobody misses a part
                if not answer.done:
                    raise
        else:
            pieces = []
            for piece in self._pieces(connection, response, answer):
                answer.heard()
                pieces.append(piece)
            answer.take(b"".join(pieces))
        if not answer.finished or (answer.stream and not answer.done):
            missing = "finish_reason" if not answer.finished else "[DONE]"
            raise RequestFailed("cut", f"the answer ended without {missing} after {answer.tokens} tokens")
        if not answer.tokens:
            raise RequestFailed("empty", "the answer has no token")

    def _read_events(self, connection: HTTPConnection, response: HTTPResponse, answer: Answer) -> None:
        rest = b""
        for piece in self._pieces(connection, response, answer):
            *lines, rest = (rest + piece).split(b"\n")
            # Comments, which keep a connection open, are no part of the answer.
            events = [line[5:].strip() for line in lines if line.startswith(b"data:")]
            if events:
                answer.heard()
            for event in events:
                if event == b"[DONE]":
                    answer.done = True
                else:
                    answer.take(event)

    def _pieces(self, connection: HTTPConnection, response: HTTPResponse, answer: Answer) -> Iterator[bytes]:
        """The body as it comes. Raises IncompleteRead when it ends before its announced end."""
        while True:
            self._wait(connection, answer)
            piece = response.read1(PIECE_BYTES)
            if not piece:
                break
            answer.length += len(piece)
            yield piece
        if response.length:
            raise IncompleteRead(b"", response.length)

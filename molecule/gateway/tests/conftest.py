"""An open load on the gateway: each request leaves at its time, is never repeated, and every other one is a stream."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

PORT = 8080
EVENTS = 5  # of a stream under load


@dataclass
class Outcome:
    """One request; seconds from its sending to its end."""

    path: str
    seconds: float
    node: str = ""
    served_path: str = ""
    error: str = ""


def request(address: str, path: str, headers: dict[str, str] | None = None, timeout: float = 60) -> tuple[int, str]:
    """Status and body of a POST; http.client raises for an answer that is cut short."""
    connection = http.client.HTTPConnection(address, PORT, timeout=timeout)
    try:
        connection.request("POST", path, body=b"{}", headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@dataclass
class Load:
    """``with Load(address) as load: change()``; ``outcomes`` is complete after the block."""

    address: str
    per_second: float = 20
    path: str = "/v1/chat"
    outcomes: list[Outcome] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def _one(self, number: int) -> None:
        stream = number % 2 == 1
        path = self.path + (f"?events={EVENTS}&pause=0.1" if stream else "?seconds=0.1")
        started, outcome = time.monotonic(), Outcome(path, 0)
        try:
            status, body = request(self.address, path)
            parts = [line.removeprefix("data: ") for line in body.splitlines() if line]
            if status != 200:
                outcome.error = f"{status} {body[:200]}"
            elif stream and (len(parts) != EVENTS + 1 or parts[-1] != "[DONE]"):
                outcome.error = f"a stream of {len(parts)} parts"
            else:
                told = json.loads(parts[0])
                outcome.node, outcome.served_path = told["node"], told["path"]
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome.error = repr(error)
        outcome.seconds = time.monotonic() - started
        self.outcomes.append(outcome)

    def _send(self) -> None:
        started, number = time.monotonic(), 0
        while not self._stop.wait(max(0.0, started + number / self.per_second - time.monotonic())):
            thread = threading.Thread(target=self._one, args=(number,))
            thread.start()
            self._threads.append(thread)
            number += 1

    def __enter__(self) -> Load:
        self._sender = threading.Thread(target=self._send)
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sender.join()
        for thread in self._threads:
            thread.join()

    def nodes(self, last: int) -> set[str]:
        """Who answered the last requests that have ended."""
        return {outcome.node for outcome in self.outcomes[-last:]}

    def proven(self, name: str, least: int, stall_seconds: float) -> None:
        """Stop unless enough requests went well; say how long they took."""
        failed = [outcome for outcome in self.outcomes if outcome.error]
        seconds = sorted(outcome.seconds for outcome in self.outcomes)
        p99 = seconds[int(len(seconds) * 0.99) - 1] if seconds else 0
        print(f"{name}: {len(seconds)} requests, {len(failed)} failed, p99 {p99:.2f} s, longest {seconds[-1]:.2f} s")
        assert not failed, failed[:5]
        assert len(seconds) >= least
        assert seconds[-1] < stall_seconds


@pytest.fixture(scope="session")
def open_load() -> type[Load]:
    """Return the class of loads: ``with open_load(address) as load``."""
    return Load


@pytest.fixture(scope="session")
def post() -> Callable[..., tuple[int, str]]:
    """Return a function that sends one request."""
    return request

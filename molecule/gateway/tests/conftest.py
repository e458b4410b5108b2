"""An open load on the gateway: each request leaves at its time, is never repeated, and every other one is a stream."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

PORT = 8080
KEYS = {  # of molecule.yml
    "load": "load-key-that-nobody-else-knows-0001",
    "slow": "slow-key-that-nobody-else-knows-0002",
    "small": "small-key-that-nobody-else-knows-003",
}
TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nobody's certificates until the authority's is known
EVENTS = 5  # of a stream under load


@dataclass
class Outcome:
    """One request; seconds from its sending, a time of time.monotonic(), to its end."""

    path: str
    sent: float
    seconds: float = 0
    node: str = ""
    served_path: str = ""
    error: str = ""


def request(address: str, path: str, headers: dict[str, str] | None = None, timeout: float = 60) -> tuple[int, str]:
    """Status and body of a POST; http.client raises for an answer that is cut short, and for a wrong certificate."""
    connection = http.client.HTTPSConnection(address, PORT, timeout=timeout, context=TRUST)
    try:
        connection.request(
            "POST", path, body=b"{}", headers={"Authorization": f"Bearer {KEYS['load']}", **(headers or {})}
        )
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
        outcome = Outcome(path, time.monotonic())
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
        outcome.seconds = time.monotonic() - outcome.sent
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


@pytest.fixture(scope="session", autouse=True)
def authority(podman) -> str:
    """Trust the authority of the gateway, as a client would that was given its certificate; return that (PEM)."""
    prefix = os.environ.get("MOLECULE_PREFIX") or "raymetal"
    gate = f"{prefix}-{os.environ['MOLECULE_SCENARIO_NAME']}-gate"
    text: str = podman("exec", gate, "cat", "/etc/raymetal/authority/ca.pem")
    TRUST.load_verify_locations(cadata=text)
    return text


@pytest.fixture(scope="session")
def keys() -> dict[str, str]:
    """Return the API keys by name."""
    return KEYS


@pytest.fixture(scope="session")
def trust() -> ssl.SSLContext:
    """Return the context of clients that know the authority."""
    return TRUST


@pytest.fixture(scope="module")
def address(host):
    return host.ansible.get_variables()["ansible_host"]


@pytest.fixture
def reloaded_without_loss(host, address, post, open_load, playbook):
    """Return a function that runs the playbook under load and four streams, and stops if one of them is hurt."""

    def run(name, *arguments, variables=None):
        master = host.check_output("systemctl show -p MainPID --value raymetal-gateway")
        streams = []
        threads = [
            threading.Thread(target=lambda: streams.append(post(address, "/long?events=16&pause=0.5")))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        with open_load(address) as load:
            result = playbook("playbooks/gateway.yml", "--diff", *arguments, variables=variables)
            assert result.returncode == 0, result.stdout[-3000:]
            reached = len(load.outcomes)
            while len(load.outcomes) < max(reached + 20, 100):
                time.sleep(0.1)
        for thread in threads:
            thread.join()
        load.proven(name, 100, 4)
        assert len(streams) == 4 and all(s == 200 and b.count("data: ") == 17 for s, b in streams)
        assert host.check_output("systemctl show -p MainPID --value raymetal-gateway") == master
        return result

    return run

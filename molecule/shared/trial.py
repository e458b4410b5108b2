"""Shared by the tests of a cluster under load: pytest finds it by `pythonpath` of pyproject.toml.

A load that runs while something happens: open loop, half of it streaming, without retries; and what the cluster says of
itself meanwhile.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testinfra import get_host
from testinfra.host import Host

MIN_REQUESTS, MIN_OVERLAP, STALL_SECONDS = 300, 20, 5.0
FOLDER, ROOT = "/var/tmp/load", "/opt/raymetal-load-test"
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"


def host_of(name: str) -> Host:
    return get_host(f"ansible://{name}?sudo=true", ansible_inventory=str(INVENTORY))


def until(condition: Callable[[], bool], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


class Load:
    """One load, from ``start`` to ``end``; ``records`` as files/load_test writes them."""

    def __init__(self, name: str) -> None:
        self.client, self.name, self.unit = host_of("edge"), name, f"load-{name}"
        self.file = f"{FOLDER}/{name}.jsonl"
        self.records: list[dict[str, Any]] = []
        self.window = (0.0, 0.0)  # of the change that it met
        self.runs = self.witnessed = False

    def start(
        self, rate: float = 10, port: int = 8000, at: str = "head", tokens: int = 12, model: str = "chat"
    ) -> None:
        """Send ``rate`` requests each second to a host's Serve proxy, or, port 8080 of edge, to the gateway."""
        # By address: the names' server of the containers' network pauses when a container goes.
        address = host_of(at).ansible.get_variables()["ansible_host"]
        locust = f"{ROOT}/env/bin/locust -f {ROOT}/locustfile.py"
        options = (
            f"--headless --only-summary --host http://{address}:{port} --model {model} --rate {rate} "
            f"--max-tokens {tokens} --stall-seconds {STALL_SECONDS} --timeout-seconds 60 --warm-up-requests 3 "
            f"--run-time 900s --requests-file {self.file}"
        )
        self.client.check_output(f"mkdir -p {FOLDER} && chown nobody {FOLDER} && rm -f {self.file}")
        unit = f"systemd-run --quiet --collect --uid nobody --property TimeoutStopSec=80 --unit {self.unit}"
        self.client.check_output(f"{unit} {locust} {options}")
        self.runs = True
        self.wait_for(30)

    def count(self) -> int:
        return int(self.client.check_output(f"cat {self.file} 2>/dev/null | wc -l"))

    def wait_for(self, number: int, seconds: float = 250) -> None:
        deadline = time.monotonic() + seconds
        while self.count() < number:
            assert time.monotonic() < deadline, self.client.run(f"journalctl -u {self.unit} -n 30").stdout
            time.sleep(0.5)

    def end(self, least: int = MIN_REQUESTS) -> None:
        """Let it reach its number, stop it, and read what it met."""
        self.wait_for(max(least, self.count() + 20))
        self.client.check_output(f"systemctl stop {self.unit}")
        self.runs = False
        self.records = [json.loads(line) for line in self.client.check_output(f"cat {self.file}").splitlines()]

    def stop(self) -> None:
        self.client.run(f"systemctl stop {self.unit}")

    def prints(self) -> set[str]:
        """Revisions that answered."""
        return {str(r["fingerprint"]) for r in self.records if r["fingerprint"]}

    def overlap(self) -> int:
        """Requests in flight while old and new were there together, give or take a second.

        As a witness saw it; else by what answered, where that differs; else while the run lasted.
        """
        begin, end = self.window
        if len(self.prints()) > 1 and not self.witnessed:
            first = {p: min(r["scheduled"] for r in self.records if r["fingerprint"] == p) for p in self.prints()}
            last = {
                p: max(r["scheduled"] + r["seconds"] for r in self.records if r["fingerprint"] == p)
                for p in self.prints()
            }
            begin, end = max(first.values()) - 1, min(last.values()) + 1
        return sum(r["scheduled"] <= end and r["scheduled"] + (r["seconds"] or 0) >= begin for r in self.records)

    def summary(self) -> dict[str, Any]:
        good = sorted(r["seconds"] for r in self.records if not r["failure"])
        return {
            "requests": len(self.records),
            "streaming": sum(bool(r["stream"]) for r in self.records),
            "failed": sum(bool(r["failure"]) for r in self.records),
            "overlap": self.overlap(),
            "p99_seconds": round(good[math.ceil(0.99 * len(good)) - 1], 3) if good else None,
            "longest_stall_seconds": round(max((r["longest_gap_seconds"] or 0 for r in self.records), default=0), 3),
            "change_seconds": round(self.window[1] - self.window[0], 1),
        }

    def failures(self) -> list[tuple[float, str, str]]:
        return [(r["scheduled"], r["failure"], r["error"]) for r in self.records if r["failure"]]

    def proven(self, least: int = MIN_REQUESTS) -> None:
        """No request failed, there were enough of them, and enough met the change."""
        found = self.summary()
        assert not self.failures(), (self.failures()[:5], found)
        assert found["requests"] >= least and found["overlap"] >= MIN_OVERLAP, found
        assert found["streaming"] >= 0.4 * found["requests"], found


class Cluster:
    """The cluster as its dashboard shows it, asked on the head."""

    def __init__(self, head: Host) -> None:
        self.head = head

    def rest(self, path: str) -> Any:
        """An answer of the dashboard."""
        command = (
            f"curl -sf -m 20 -H \"Authorization: Bearer $(cat /etc/raymetal/auth_token)\" 'http://127.0.0.1:8265{path}'"
        )
        return json.loads(self.head.check_output(command))

    def running(self) -> dict[str, str]:
        """Application -> status."""
        return {name: app["status"] for name, app in self.rest("/api/serve/applications/")["applications"].items()}

    def replicas(self, application: str) -> list[dict[str, Any]]:
        deployments = self.rest("/api/serve/applications/")["applications"][application]["deployments"].values()
        return [replica for deployment in deployments for replica in deployment["replicas"]]

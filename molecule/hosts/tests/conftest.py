"""Operators and their playbooks: how a run ended, what it changed, and what the cluster was like meanwhile."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from testinfra.host import Host
from trial import INVENTORY, PROJECT, Cluster, Load, host_of, until

KILLED = PROJECT / ".cache/molecule/killed.json"
Playbook = Callable[..., CompletedProcess[str]]


class Hosts(Cluster):
    """The cluster, and the playbooks for its hosts."""

    def __init__(self, playbook: Playbook, head: Host, folder: Path) -> None:
        super().__init__(head)
        self.playbook, self.folder = playbook, folder

    def run(self, name: str, *arguments: str, **variables: Any) -> CompletedProcess[str]:
        path = "site.yml" if name == "site" else f"playbooks/{name}.yml"
        return self.playbook(path, *arguments, variables=variables)

    def begin(self, *arguments: str, **variables: Any) -> tuple[subprocess.Popen[str], Path]:
        """site.yml, without waiting for its end, and the file with what it says."""
        said = self.folder / "said"
        environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
        with said.open("w") as output:
            command = ["ansible-playbook", "-i", str(INVENTORY), "site.yml", *arguments, "-e", json.dumps(variables)]
            run = subprocess.Popen(
                command, cwd=PROJECT, env=environment, stdout=output, text=True, start_new_session=True
            )
        return run, said

    @staticmethod
    def kill(run: subprocess.Popen[str]) -> None:
        """End it and all that it started, at once."""
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()

    def alive(self) -> dict[str, str]:
        """Name of the host -> Ray's id of the node that is alive there."""
        names = {host_of(name).ansible.get_variables()["ansible_host"]: name for name in ("head", "worker1", "worker2")}
        listed = self.rest("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        return {names[n["node_ip"]]: n["node_id"] for n in listed if n["state"] == "ALIVE"}

    def behind_gateway(self) -> dict[str, str]:
        """Name -> state of the nodes behind the gateway."""
        lines = host_of("edge").check_output("/etc/raymetal/gateway/gatewayctl nodes").splitlines()
        return {line.split("\t")[0]: line.split("\t")[1] for line in lines}

    def serves(self) -> bool:
        return [replica["state"] for replica in self.replicas("chat")] == ["RUNNING"] * 2


class Killed:
    """The runs that were killed, kept by seed: a call that was broken off is gone on with.

    The file is ``.cache/molecule/killed.json``; another ``RAYMETAL_SEED`` begins anew.
    """

    def __init__(self) -> None:
        entries = json.loads(KILLED.read_text()) if KILLED.exists() else []
        last = entries[-1]["seed"] if entries else int(time.time())
        self.seed = int(os.environ.get("RAYMETAL_SEED", last))
        self.entries = [entry for entry in entries if entry["seed"] == self.seed]
        self.draw = random.Random(f"{self.seed} {len(self.entries)}")

    def left(self, kind: str, trials: int) -> range:
        """Numbers of the trials that are still to be made; one at least."""
        done = sum(entry["kind"] == kind for entry in self.entries)
        return range(min(done, trials - 1) + 1, trials + 1)

    def note(self, kind: str, after: float, whole: float, task: str) -> None:
        entry = {
            "seed": self.seed,
            "kind": kind,
            "measured": datetime.now(UTC).date().isoformat(),
            "after_seconds": round(after, 1),
            "whole_seconds": round(whole, 1),
            "task": task,
        }
        print(json.dumps(entry))
        self.entries.append(entry)
        KILLED.parent.mkdir(parents=True, exist_ok=True)
        KILLED.write_text(json.dumps(self.entries, indent=2) + "\n")


@pytest.fixture
def killed() -> Killed:
    return Killed()


@pytest.fixture
def hosts(playbook: Playbook, host: Host, tmp_path: Path) -> Hosts:
    return Hosts(playbook, host, tmp_path)


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    found = Load(re.sub(r"\W+", "-", request.node.name.removeprefix("test_")).strip("-"))
    yield found
    found.stop()
    if found.records:
        print(json.dumps({found.name: found.summary()}))


@pytest.fixture(scope="session")
def said() -> Callable[[CompletedProcess[str]], str]:
    """Return a function that gives the output of a run without line breaks."""
    return lambda result: " ".join(result.stdout.split())


@pytest.fixture(scope="session")
def changes() -> Callable[[CompletedProcess[str]], dict[str, int]]:
    """Return a function that gives what the recap says of changes, host by host."""
    return lambda result: {
        name: int(count) for name, count in re.findall(r"(?m)^(\S+)\s+: ok=\d+\s+changed=(\d+)", result.stdout)
    }


@pytest.fixture(scope="session")
def named() -> Callable[[str], Host]:
    """Return a function that gives a host by name."""
    return host_of


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    return until

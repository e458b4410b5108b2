"""Shared by tests of what operators do to a cluster: their playbooks, run to the end or killed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

from testinfra.host import Host
from trial import INVENTORY, PROJECT, Cluster, host_of

SOAK = bool(os.environ.get("RAYMETAL_SOAK"))
KILLED = PROJECT / ".cache/molecule/killed.json"
Playbook = Callable[..., CompletedProcess[str]]


class Hosts(Cluster):
    """The cluster, and the playbooks for its hosts."""

    # What the last whole run of site.yml with these tags took; at first a guess.
    seconds: ClassVar[dict[str, float]] = {"all": 100.0, "serve": 40.0}

    def __init__(self, playbook: Playbook, head: Host, folder: Path) -> None:
        super().__init__(head)
        self.playbook, self.folder = playbook, folder

    def run(self, name: str, *arguments: str, **variables: Any) -> CompletedProcess[str]:
        path = "site.yml" if name == "site" else f"playbooks/{name}.yml"
        begin = time.time()
        done = self.playbook(path, *arguments, variables=variables)
        if name == "site" and done.returncode == 0 and arguments[:1] == ("--tags",):
            self.seconds[arguments[1]] = time.time() - begin
        return done

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
        """Whether the application has its two replicas, by whatever name a change of it left behind."""
        names = self.rest("/api/serve/applications/")["applications"]
        return [replica["state"] for name in names for replica in self.replicas(name)] == ["RUNNING"] * 2


class Killed:
    """The runs that were killed, kept by seed in ``.cache/molecule/killed.json``.

    `make soak` goes on with a call that was broken off; another ``RAYMETAL_SEED`` begins anew. `make test` always does,
    and kills three runs, one after the other, before it lets one finish.
    """

    in_a_row = 1 if SOAK else 3

    def __init__(self) -> None:
        self.all = json.loads(KILLED.read_text()) if KILLED.exists() else []
        last = self.all[-1]["seed"] if SOAK and self.all else int(time.time())
        self.seed = int(os.environ.get("RAYMETAL_SEED", last))
        self.draw = random.Random(f"{self.seed} {len(self.all)}")

    def number(self) -> int:
        """A number that no run before had."""
        return len(self.all) + 1

    def left(self, kind: str, trials: int) -> int:
        """How many trials are still to be made, of so many in `make soak`; one at least."""
        done = sum((entry["seed"], entry["kind"]) == (self.seed, kind) for entry in self.all)
        return max(trials - done, 1) if SOAK else 1

    def note(self, kind: str, struck: list[tuple[float, float, str]]) -> None:
        """Keep runs that were killed and then finished: after how many seconds, of how many, in which task."""
        for after, whole, task in struck:
            entry = {
                "seed": self.seed,
                "kind": kind,
                "measured": datetime.now(UTC).date().isoformat(),
                "after_seconds": round(after, 1),
                "whole_seconds": round(whole, 1),
                "task": task,
            }
            print(json.dumps(entry))
            self.all.append(entry)
        KILLED.parent.mkdir(parents=True, exist_ok=True)
        KILLED.write_text(json.dumps(self.all, indent=2) + "\n")

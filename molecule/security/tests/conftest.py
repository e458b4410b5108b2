"""The hosts as those see them who have no rights there: user guest of a node, and a host of no cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

PYTHON = "/opt/raymetal/env/current/bin/python"
TOKEN = "/etc/raymetal/auth_token"
PROJECT = os.environ["MOLECULE_PROJECT_DIRECTORY"]
NODES = ("head", "worker1")
Done = subprocess.CompletedProcess[str]
# What a process is by its command line; the first that fits.
PROCESSES = {
    r"^(/\S*/)?sshd": "sshd",
    r"^/usr/sbin/haproxy ": "gateway",
    r"^/\S*/gcs_server ": "GCS",
    r"^/\S*/raylet/raylet ": "raylet",
    r"^ray::DashboardAgent|dashboard/agent\.py": "dashboard agent",
    r"^ray::RuntimeEnvAgent|runtime_env/agent/main\.py": "runtime environment agent",
    r"^ray-dashboard-|dashboard/dashboard\.py": "dashboard",
    r"autoscaler/\S*monitor\.py": "autoscaler",
    r"ray\.util\.client\.server": "Ray client server",
    r"^ray::ProxyActor": "Serve proxy",
    r"^ray::ServeReplica": "Serve replica",
    r"^ray::": "Ray worker",
}
LIST = 'for p in /proc/[0-9]*; do echo "${p#/proc/} $(tr "\\0" " " < $p/cmdline | head -c 300)"; done 2>/dev/null'


@dataclass(frozen=True, order=True)
class Listener:
    """A listening TCP socket of a node."""

    process: str
    address: str
    port: int


def named(command: str) -> str:
    return next((name for pattern, name in PROCESSES.items() if re.search(pattern, command)), command)


class Place:
    """A host, entered without ssh and sudo: these would log what is run there."""

    def __init__(self, podman: Callable[..., str], name: str) -> None:
        self.podman, self.name = podman, name
        self.container = f"{os.environ.get('MOLECULE_PREFIX') or 'raymetal'}-security-{name}"
        self.address = self.run("hostname", "-i").stdout.split()[0]

    def run(self, *command: str, user: str = "root", input: str = "") -> Done:
        given = ["exec", "-i", "--user", user, "--workdir", "/tmp", self.container, *command]
        try:
            return subprocess.CompletedProcess(command, 0, self.podman(*given, input=input.encode()), "")
        except subprocess.CalledProcessError as error:
            return subprocess.CompletedProcess(
                command, error.returncode, error.stdout.decode(), error.stderr.decode(errors="replace")
            )

    def read(self, path: str) -> str:
        return self.run("cat", path).stdout

    def token(self) -> str:
        return self.read(TOKEN).strip()

    def listeners(self) -> set[Listener]:
        """All of them, by process; one that belongs to nobody known is named by its command."""
        processes = dict(line.split(" ", 1) for line in self.run("sh", "-c", LIST).stdout.splitlines())
        found: dict[tuple[str, int], str] = {}
        # Only a process's own user, with the capabilities that it has, sees in a container what belongs to it.
        user, more = ("haproxy", "+net_bind_service") if self.name == "edge" else ("raymetal", "-all")
        own = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        for who in ([], [*own, f"--inh-caps={more}", f"--ambient-caps={more}"]):
            for line in self.run(*who, "ss", "-H", "-ltnp").stdout.splitlines():
                local, owners = line.split()[3], re.findall(r"pid=(\d+)", line)
                address, _, port = local.rpartition(":")
                address = address.strip("[]").removeprefix("::ffff:").partition("%")[0]
                address = self.address if address in ("0.0.0.0", "*", "::") else address
                key = (address, int(port))
                found[key] = named(processes[owners[0]]) if owners else found.get(key, "unknown")
        return {Listener(process, address, port) for (address, port), process in found.items()}

    def probe(self, listeners: set[Listener], *tokens: str) -> list[dict[Listener, dict[str, Any]]]:
        """What each listener answers to this host's guest, once for each token; an empty one is none."""
        wanted = sorted(listeners)
        given = {"listeners": [[one.address, one.port] for one in wanted], "tokens": tokens}
        done = self.run(PYTHON, "/srv/strange/probe.py", user="guest", input=json.dumps(given))
        assert done.returncode == 0, done.stderr
        return [dict(zip(wanted, json.loads(line), strict=True)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def place(podman: Callable[..., str]) -> Callable[[str], Place]:
    """Return a function that gives a host by name."""
    made: dict[str, Place] = {}
    return lambda name: made.setdefault(name, Place(podman, name))


@pytest.fixture(scope="session")
def secrets(place: Callable[[str], Place]) -> dict[str, str]:
    """Everything that is secret, by name: what molecule.yml says, the token, and lines of private keys."""
    with open(f"{PROJECT}/molecule/security/molecule.yml") as file:
        markers = re.findall(r"secret-marker-[a-z0-9-]+", file.read())
    found = {marker: marker for marker in markers} | {"token": place("head").token()}
    for name, path in {"gateway's key": "tls/gateway.pem", "authority's key": "authority/ca.key"}.items():
        key = re.search(r"PRIVATE KEY-----\n(\S+)\n", place("edge").read(f"/etc/raymetal/{path}"))
        assert key, path
        found[name] = key[1]
    assert len(markers) == 3 and all(len(text) > 30 for text in found.values()), found.keys()
    return found


@pytest.fixture(scope="session")
def variables() -> dict[str, Any]:
    """The scenario's own variables."""
    with open(f"{PROJECT}/molecule/security/molecule.yml") as file:
        found: dict[str, Any] = yaml.safe_load(file)["provisioner"]["inventory"]["group_vars"]["all"]
    return found

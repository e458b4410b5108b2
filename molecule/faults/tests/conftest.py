"""The cluster's hosts from outside: what operators do, what breaks them, and whether all of it is well."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from operations import Hosts, Killed
from testinfra.host import Host
from trial import PROJECT, Load, host_of, until

RESULTS = PROJECT / ".cache/molecule/faults.json"
WORKERS = ("worker1", "worker2")
NODES = ("head", *WORKERS)
# What a node consists of, by the command lines of its processes; a replica and a proxy are on every worker.
ON_EACH_NODE = {
    "raylet": r"\S*/raylet/raylet ",
    "dashboard agent": r"\S*python\S* .*dashboard/agent\.py|ray::DashboardAgent",
    "runtime env agent": r"\S*python\S* .*runtime_env/agent/main\.py|ray::RuntimeEnvAgent",
    "log monitor": r"\S*python\S* .*log_monitor\.py",
    "proxy": r"ray::ProxyActor",
}
ON_THE_HEAD = {
    "gcs_server": r"\S*/gcs/gcs_server ",
    "dashboard": r"\S*python\S* .*dashboard/dashboard\.py",
    "autoscaler": r"\S*python\S* .*/monitor\.py",
    "client server": r"\S*python\S* -m ray\.util\.client\.server",
    "controller": r"ray::ServeController",
}
ON_A_WORKER = {"replica": r"ray::ServeReplica:"}
PROCESSES = {**ON_EACH_NODE, **ON_THE_HEAD, **ON_A_WORKER}
MARK = "-- next --"
SETTLED_SECONDS = 5.0  # it was well for so long: then it had been well since the first look of these
# What each host says of itself: its processes, an answer through its proxy, and, on the head, what the dashboard knows.
LOOK = f"""ps -u raymetal -o stat=,args= -ww
echo '{MARK}'; curl -sf -m 4 http://127.0.0.1:8000/
echo; echo '{MARK}'"""
LOOK_OF_HEAD = f"""{LOOK}
for path in /api/v0/nodes /api/serve/applications/; do
  curl -sf -m 8 -H "Authorization: Bearer $(cat /etc/raymetal/auth_token)" "http://127.0.0.1:8265$path"
  echo; echo '{MARK}'
done"""


class Site:
    """The hosts, by the containers that they are."""

    def __init__(self, podman: Callable[..., str]) -> None:
        self.podman = podman
        prefix = os.environ.get("MOLECULE_PREFIX") or "raymetal"
        self._prefix = f"{prefix}-{os.environ['MOLECULE_SCENARIO_NAME']}"
        self.addresses = {name: host_of(name).ansible.get_variables()["ansible_host"] for name in (*NODES, "edge")}

    def container(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def run(self, name: str, command: str) -> str:
        """Run a command on a host as root; raises CalledProcessError."""
        return self.podman("exec", self.container(name), "sh", "-c", command)

    def signal(self, name: str, process: str, signal: str) -> float:
        """Send a signal to a process of PROCESSES on a host; return when."""
        pattern = PROCESSES[process]
        listed = self.run(name, "ps -u raymetal -o pid=,args= -ww")
        found = [line.split()[0] for line in listed.splitlines() if re.match(pattern, line.split(maxsplit=1)[1])]
        assert found, f"{name} has no {process}:\n{listed}"
        return float(self.run(name, f"kill -{signal} {' '.join(found)} && date +%s.%N"))

    def enter(self, name: str, kind: str, *command: str) -> None:
        """Run a program of the controller within a host's network (``--net``) or file systems (``--mount``)."""
        process = self.podman("inspect", "--format", "{{.State.Pid}}", self.container(name)).strip()
        as_root = [] if os.geteuid() == 0 else ["sudo"]
        command = (*as_root, "nsenter", "--target", process, kind, *command)
        subprocess.run(command, check=True, capture_output=True, text=True)

    def drop(self, name: str, *rule: str, peer: str = "", remove: bool = False) -> None:
        """Let a host drop packets by iptables, those that ``rule`` matches, of all or of one peer; or no more."""
        for chain, side in (("INPUT", "-s"), ("OUTPUT", "-d")):
            match = [side, self.addresses[peer], *rule] if peer else rule
            action = "-D" if remove else "-I"
            self.enter(name, "--net", "iptables", "-w", action, chain, *match, "-j", "DROP")

    def problems(self) -> list[str]:
        """What is not well: nodes, their processes, the replicas, each proxy, the gateway."""
        with ThreadPoolExecutor(len(NODES) + 1) as pool:
            looks = {name: pool.submit(self._look, name) for name in NODES}
            gateway = pool.submit(self._gateway)
            found = [problem for name in NODES for problem in looks[name].result()]
            return found + gateway.result()

    def _look(self, name: str) -> list[str]:
        try:
            parts = self.run(name, LOOK_OF_HEAD if name == "head" else LOOK).split(MARK)
        except subprocess.CalledProcessError:
            return [f"{name} is off"]
        wanted = {**ON_EACH_NODE, **(ON_THE_HEAD if name == "head" else ON_A_WORKER)}
        running = [line.split(maxsplit=1)[1] for line in parts[0].splitlines() if line and line[0] not in "TZ"]
        found = [
            f"{name}: no {process}"
            for process, pattern in wanted.items()
            if not any(re.match(pattern, line) for line in running)
        ]
        if not parts[1].strip():
            found.append(f"{name}: no answer through its proxy")
        return found + (self._listed(parts[2], parts[3]) if name == "head" else [])

    def _listed(self, nodes: str, serve: str) -> list[str]:
        try:
            states = {n["node_ip"]: n["state"] for n in sorted_by_life(json.loads(nodes)["data"]["result"]["result"])}
            told = json.loads(serve)
            replicas = [
                replica["state"]
                for application in told["applications"].values()
                for deployment in application["deployments"].values()
                for replica in deployment["replicas"]
            ]
            applications = {name: app["status"] for name, app in told["applications"].items()}
            proxies = {proxy["node_ip"]: proxy["status"] for proxy in told["proxies"].values()}
        except (ValueError, KeyError, TypeError) as error:
            return [f"the dashboard does not answer as it should: {error!r}"]
        found = [f"{name} is not listed as alive" for name in NODES if states.get(self.addresses[name]) != "ALIVE"]
        if list(applications.values()) != ["RUNNING"] or replicas != ["RUNNING"] * 2:
            found.append(f"applications: {applications}, replicas: {replicas}")
        healthy = all(proxies.get(self.addresses[name]) == "HEALTHY" for name in NODES)
        return found + ([] if healthy else [f"proxies: {proxies}"])

    def _gateway(self) -> list[str]:
        try:
            self.run("edge", "curl -sf -m 4 http://127.0.0.1:8080/")
        except subprocess.CalledProcessError:
            return ["no answer through the gateway"]
        return []

    def well_since(self, seconds: float) -> tuple[float | None, list[str]]:
        """Wait until all is well and stays so; return since when, or None and what is not well after ``seconds``."""
        deadline, since, problems = time.time() + seconds, 0.0, ["not looked"]
        while time.time() < deadline or since:
            began = time.time()
            problems = self.problems()
            since = 0.0 if problems else since or began
            if since and time.time() - since > SETTLED_SECONDS:
                return since, []
            time.sleep(0.5)
        return None, problems


def sorted_by_life(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A node that came back is listed twice: the dead one first."""
    return sorted(nodes, key=lambda node: node["state"] == "ALIVE")


@dataclass
class Outcome:
    """What came of a fault; times are of this machine's clock."""

    began: float  # when the fault struck
    ended: float  # when it was taken away; when it struck, where nothing was
    well: float  # since when all is well
    by_itself: bool


COLUMNS = (
    "fault",
    "requests",
    "failed_in_flight",
    "failed",
    "failed_until_seconds",
    "lasted_seconds",
    "well_after_seconds",
)


class Results:
    """What was measured, kept across runs; beside it the same as rows of a table."""

    def note(self, fault: Any, load: Load, outcome: Outcome) -> dict[str, Any]:
        failed = [record for record in load.records if record["failure"]]
        beyond = [record for record in failed if record["scheduled"] > outcome.began]
        kinds = [record["failure"] for record in beyond]
        entry = {
            "fault": fault.said,
            "measured": datetime.now(UTC).date().isoformat(),
            "requests": sum(record["scheduled"] > outcome.began for record in load.records),
            "failed_in_flight": len(failed) - len(beyond),
            "failed": len(beyond),
            "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "failed_until_seconds": round(
                max((r["scheduled"] for r in beyond), default=outcome.began) - outcome.began, 1
            ),
            "lasted_seconds": round(outcome.ended - outcome.began, 1),
            "well_after_seconds": round(max(outcome.well - outcome.ended, 0), 1),
            "by_itself": outcome.by_itself,
        }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        entries = {**before, fault.id: entry}
        RESULTS.write_text(json.dumps(entries, indent=2) + "\n")
        rows = (
            [str(e[c]) for c in COLUMNS] + ["yes" if e["by_itself"] else "no", e["measured"]] for e in entries.values()
        )
        RESULTS.with_suffix(".md").write_text("".join(f"| {' | '.join(row)} |\n" for row in rows))
        return entry


@pytest.fixture(scope="session")
def site(podman: Callable[..., str]) -> Site:
    return Site(podman)


@pytest.fixture(scope="session")
def results() -> Results:
    return Results()


@pytest.fixture
def killed() -> Killed:
    return Killed()


@pytest.fixture
def hosts(playbook: Callable[..., subprocess.CompletedProcess[str]], host: Host, tmp_path: Path) -> Hosts:
    return Hosts(playbook, host, tmp_path)


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    name = request.node.name.removeprefix("test_").replace("ansible://head", "")
    found = Load(re.sub(r"\W+", "-", name).strip("-"))
    yield found
    found.stop()
    if found.records:
        print(json.dumps({found.name: found.summary()}))


@pytest.fixture(scope="session")
def said() -> Callable[[subprocess.CompletedProcess[str]], str]:
    """Return a function that gives the output of a run without line breaks."""
    return lambda result: " ".join(result.stdout.split())


@pytest.fixture(scope="session")
def changes() -> Callable[[subprocess.CompletedProcess[str]], dict[str, int]]:
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


@pytest.fixture(scope="session")
def spread(playbook: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    """One replica on each worker; return the variables that say so."""
    config = host_of("head").ansible.get_variables()["ray_serve_config"]
    config["applications"][0]["deployments"][0]["max_replicas_per_node"] = 1
    variables = {"ray_serve_config": config, "cluster_accept_outage": True}
    done = playbook("site.yml", "--tags", "serve", variables=variables)
    assert done.returncode == 0, done.stdout[-4000:]
    return variables


@pytest.fixture
def mend(
    site: Site, spread: dict[str, Any], playbook: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., float | None]:
    """Return a function that brings all back as an operator would, by site.yml, and gives since when all is well."""

    def run(seconds: float = 120, **variables: Any) -> float | None:
        done = playbook("site.yml", "--tags", "gateway,cluster,serve", variables={**spread, **variables})
        assert done.returncode == 0, done.stdout[-4000:]
        return site.well_since(seconds)[0]

    return run


@pytest.fixture
def strike(
    site: Site, load: Load, mend: Callable[..., float | None], results: Results
) -> Iterator[Callable[[Any], dict[str, Any]]]:
    """Return a function that makes a fault under load, and notes what came of it.

    All is well before, or brought back by site.yml; so it is, too, where a fault leaves something broken.
    """
    changed = {}

    def run(fault: Any) -> dict[str, Any]:
        changed.update(fault.variables)
        assert (not changed and site.well_since(120)[0]) or mend(**changed)
        load.start(at="edge", port=8080)
        began = ended = fault.make(site) or time.time()
        if fault.undo:
            time.sleep(max(began + fault.lasts - time.time(), 0))  # the fault lasts
            ended = fault.undo(site) or time.time()
        since, problems = site.well_since(fault.seconds)
        by_itself = since is not None
        since = since or mend(**changed)
        load.end(0)
        assert since, problems
        entry = results.note(fault, load, Outcome(began, ended, since, by_itself))
        assert by_itself == fault.by_itself, (problems, entry)
        return entry

    yield run
    if changed:
        assert mend()

"""Faults, one by one, while clients ask: what they saw, and how long it took until all was well again.

Load: ten requests each second through the gateway, half of them streamed, none repeated. A request that was under way
when a fault struck may fail; of those sent later no more than the table allows. What was measured is in
`.cache/molecule/faults.json`, and in faults.md beside it as rows of docs/faults.md.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from signal import SIGKILL
from typing import Any

import pytest

UNITS = ("raymetal.service",)
RATE = 10
Act = Callable[..., float | None]


@dataclass(frozen=True)
class Fault:
    """``make`` may return when the fault struck; ``undo``, what takes it away after ``lasts`` seconds."""

    id: str
    said: str
    make: Act
    seconds: float  # until all is well, counted from its end
    failed: int = 0  # so many requests may fail of those sent while it lasts and until all is well
    undo: Act | None = None
    lasts: float = 0
    soak: bool = True
    by_itself: bool = True
    variables: dict[str, Any] = field(default_factory=dict)  # another set-up than that of molecule.yml


def signal(host: str, process: str, name: str) -> Act:
    return lambda site: site.signal(host, process, name)


def each(action: str, *hosts: str) -> Act:
    """`podman kill` and `podman start` are power off and on."""

    def act(site) -> float:
        now = time.time()
        site.podman(action, *(site.container(host) for host in hosts))
        return now

    return act


def unit(host: str, action: str) -> Act:
    def act(site) -> float:
        now = time.time()
        site.run(host, f"systemctl {action} raymetal")
        return now

    return act


def cut(host: str, peer: str, remove: bool = False) -> Act:
    return lambda site: site.drop(host, peer=peer, remove=remove)


def lose(host: str, share: float, remove: bool = False) -> Act:
    rule = ("-m", "statistic", "--mode", "random", "--probability", str(share))
    return lambda site: site.drop(host, *rule, remove=remove)


def process(host: str, what: str, name: str, seconds: float = 60, failed: int = 0, soak: bool = True) -> Fault:
    return Fault(
        f"{'head-' if (host, what) == ('head', 'raylet') else ''}{what.replace(' ', '-')}-{name}",
        f"{what} of {'the head' if host == 'head' else 'a worker'} ends by SIG{name}",
        signal(host, what, name),
        seconds,
        failed,
        soak=soak,
    )


IN_MEMORY = {"ray_node_gcs_storage": "memory"}
FAULTS = [
    process("worker1", "replica", "KILL", soak=False),
    process("worker1", "replica", "TERM"),
    Fault("replica-hangs", "a replica hangs (SIGSTOP)", signal("worker1", "replica", "STOP"), 90, 30 * RATE),
    Fault("raylet-hangs", "the raylet of a worker hangs", signal("worker1", "raylet", "STOP"), 120, 30 * RATE),
    Fault("gcs-hangs", "the gcs_server hangs", signal("head", "gcs_server", "STOP"), 150, 10),
    process("worker1", "raylet", "TERM", 180, 20, soak=False),
    process("worker1", "raylet", "KILL", 180, 20),
    process("head", "gcs_server", "TERM", 240, 10),
    process("head", "gcs_server", "KILL", 180, 10),
    process("worker1", "dashboard agent", "TERM", 180, 20),
    process("worker1", "dashboard agent", "KILL", 180, 20),
    process("worker1", "runtime env agent", "TERM", 180, 20),
    process("worker1", "runtime env agent", "KILL", 180, 20),
    process("worker1", "log monitor", "TERM", 180, 20),
    process("worker1", "log monitor", "KILL", 180, 20),
    process("head", "dashboard", "TERM", 120, 10),
    process("head", "dashboard", "KILL", 120, 10),
    process("head", "autoscaler", "TERM", 120, 10),
    process("head", "autoscaler", "KILL", 120, 10),
    process("head", "client server", "TERM", 120, 10),
    process("head", "client server", "KILL", 120, 10),
    process("head", "raylet", "TERM", 180, 10),
    process("head", "raylet", "KILL", 180, 10),
    process("head", "controller", "TERM"),
    process("head", "controller", "KILL"),
    process("worker1", "proxy", "TERM", failed=10),  # it takes requests while it ends, for a second
    process("worker1", "proxy", "KILL"),
    Fault("unit-stopped", "the unit of a worker is stopped, and started after 20 s",
          unit("worker1", "stop"), 90, 20, unit("worker1", "start"), 20),
    Fault("worker-off", "a worker loses power, and has it again after 20 s",
          each("kill", "worker1"), 120, 150, each("start", "worker1"), 20),
    Fault("head-off", "the head loses power, and has it again after 60 s",
          each("kill", "head"), 120, 10, each("start", "head"), 60, soak=False),
    Fault("all-off", "head and workers lose power, and have it again after 10 s",
          each("kill", "head", "worker1", "worker2"), 240, 250 * RATE, each("start", "head", "worker1", "worker2"), 10),
    Fault("cut-from-head", "head and worker are cut from one another for 30 s",
          cut("worker1", "head"), 90, 20, cut("worker1", "head", remove=True), 30),
    Fault("cut-from-gateway", "gateway and worker are cut from one another for 30 s",
          cut("worker1", "edge"), 30, 30, cut("worker1", "edge", remove=True), 30),
    Fault("loss", "a worker loses 5 % of all packets for 60 s",
          lose("worker1", 0.05), 60, 30, lose("worker1", 0.05, remove=True), 60),
    Fault("gcs-KILL-without-store", "gcs_server of the head ends by SIGKILL, ray_node_gcs_storage: memory",
          signal("head", "gcs_server", "KILL"), 90, 250 * RATE, by_itself=False, variables=IN_MEMORY),
    Fault("head-off-without-store", "the head loses power for 60 s, ray_node_gcs_storage: memory",
          each("kill", "head"), 90, 300 * RATE, each("start", "head"), 60, by_itself=False, variables=IN_MEMORY),
]  # fmt: skip


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=fault.id, marks=[pytest.mark.soak] if fault.soak else []) for fault in FAULTS],
)
def test_fault(fault, strike):
    outcome = strike(fault)
    assert outcome["failed"] <= fault.failed, outcome


@pytest.fixture
def small_disk(site):
    """Ray's directory on a worker is a small file system of its own, and afterwards what it was."""
    worker, folder = "worker1", "/var/lib/raymetal/ray"

    def between_stop_and_start(*command):
        site.run(worker, "systemctl stop raymetal")
        site.enter(worker, "--mount", *command)
        site.run(worker, f"chown raymetal: {folder} && systemctl start raymetal")
        assert site.well_since(120)[0]

    between_stop_and_start("mount", "-t", "tmpfs", "-o", "size=64m,mode=0750", "tmpfs", folder)
    yield folder
    between_stop_and_start("umount", folder)


@pytest.mark.soak
def test_a_full_disk(small_disk, site, strike):
    """Ray's own directory on a worker has no byte left for 30 s."""

    def fill(site):
        site.run("worker1", f"dd if=/dev/zero of={small_disk}/filler bs=64k 2>/dev/null; test -s {small_disk}/filler")

    def clear(site):
        site.run("worker1", f"rm {small_disk}/filler")

    outcome = strike(Fault("disk-full", "Ray's disk on a worker is full for 30 s", fill, 90, 100, clear, 30))
    assert outcome["failed"] <= 100, outcome


# Takes memory until the kernel kills something of this host: a worker of Ray, or itself where Ray ended those before.
TAKE = """
def killed():
    return open("/sys/fs/cgroup/memory/memory.oom_control").read().split()[-1]
before, held = killed(), []
while killed() == before:
    held.append(b"x" * (32 << 20))
"""


@pytest.mark.soak
def test_out_of_memory(site, strike):
    """A stranger on the worker takes all memory of it: Ray and the kernel end what Ray offers them first."""

    def take(site):
        begin = time.time()
        try:
            site.podman("exec", "-i", site.container("worker1"), "python3", "-", input=TAKE.encode())
        except subprocess.CalledProcessError as error:
            if error.returncode != 128 + SIGKILL:
                raise
        return begin

    outcome = strike(Fault("out-of-memory", "a worker is out of memory", take, 90, 100))
    assert outcome["failed"] <= 100, outcome


@pytest.fixture
def faked_time(site):
    """The library that gives a process another clock, and nothing of it afterwards."""
    folder = "/run/systemd/system/raymetal.service.d"
    site.run(
        "worker1", f"apt-get -qq update && apt-get -qq install --no-install-recommends libfaketime && mkdir -p {folder}"
    )
    yield f"{folder}/clock.conf"
    site.run("worker1", f"rm -r {folder} && systemctl daemon-reload && systemctl restart raymetal")
    assert site.well_since(700)[0]  # ray_serve_drain_seconds and more: see docs/faults.md


@pytest.mark.soak
def test_a_wrong_clock(faked_time, site, strike):
    """All of Ray on a worker lives ten minutes ahead: what is counted is its restart with that clock."""
    library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
    lines = f"[Service]\nEnvironment=LD_PRELOAD={library} FAKETIME=+10m\n"

    def turn(site):
        site.run("worker1", f"printf '{lines}' > {faked_time} && systemctl daemon-reload && systemctl restart raymetal")

    outcome = strike(Fault("wrong-clock", "a worker restarts with a clock that is ten minutes ahead", turn, 120, 100))
    assert outcome["failed"] <= 100, outcome
    asked = "runuser -u raymetal -- grep -cz FAKETIME=+10m /proc/$(pgrep -o -x raylet)/environ"
    assert site.run("worker1", asked).strip() == "1"

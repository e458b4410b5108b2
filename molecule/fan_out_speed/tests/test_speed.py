"""500 MB to one host and to eight, each link 200 Mbit/s in both directions, and the same by scp beside it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra import get_host

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
RESULTS = PROJECT / ".cache/molecule/fan_out.json"
TREE, RATE, MOST_TIMES = "/srv/trees/model", "200mbit", 2.0
LOAD = os.getloadavg()[0]
NAMES = [f"fan{number}" for number in range(1, 10)]
RECEIVERS = NAMES[1:]
HOSTS = {name: get_host(f"ansible://{name}?sudo=true", ansible_inventory=str(INVENTORY)) for name in NAMES}


def as_root(*command: str) -> str:
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    return subprocess.run([*sudo, *command], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def shaped_links(podman) -> None:
    """What a host sends is shaped at its own end of the link, what it gets at the other end."""
    prefix = os.environ.get("MOLECULE_PREFIX") or "raymetal"
    shape = ["root", "tbf", "rate", RATE, "burst", "256kb", "latency", "50ms"]
    for name in NAMES:
        process = podman("inspect", "-f", "{{.State.Pid}}", f"{prefix}-fan_out_speed-{name}").strip()
        inside = ["nsenter", "-t", process, "-n"]
        (inner,) = json.loads(as_root(*inside, "ip", "-json", "link", "show", "eth0"))
        links = json.loads(as_root("ip", "-json", "link"))
        (outer,) = (link["ifname"] for link in links if link["ifindex"] == inner["link_index"])
        as_root(*inside, "tc", "qdisc", "replace", "dev", "eth0", *shape)
        as_root("tc", "qdisc", "replace", "dev", outer, *shape)


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, float]]:
    """Seconds by what was done; written down at the end."""
    found: dict[str, float] = {}
    yield found
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    about = {"bytes": 500_000_000, "link": RATE, "load_before": LOAD}
    RESULTS.write_text(json.dumps({**about, "seconds": found}, indent=1))


@pytest.fixture(scope="module", autouse=True)
def keys() -> None:
    """fan1 may log in at the others, for scp."""
    HOSTS["fan1"].run_expect([0], "test -e /root/.ssh/push || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/push")
    public = HOSTS["fan1"].file("/root/.ssh/push.pub").content_string.strip()
    for name in RECEIVERS:
        HOSTS[name].run_expect([0], f"echo '{public}' >> /root/.ssh/authorized_keys")


def forget() -> None:
    for name in RECEIVERS:
        HOSTS[name].run_expect([0], f"rm -rf {TREE} {TREE}.manifest.json")


def bring(playbook, *receivers: str) -> tuple[float, float]:
    """Seconds of the run, and of the job from the first start to the last tree in place; all bytes are the same."""
    forget()
    started = time.monotonic()
    limit = ",".join(["fan1", *receivers])
    variables = {"fan_out_trees": [{"path": TREE, "name": "model"}]}
    done = playbook("molecule/fan_out_speed/converge.yml", "--limit", limit, variables=variables)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout[-3000:]
    print(*[line for line in done.stdout.splitlines() if line.startswith("fan_out ")], sep="\n")
    wanted = HOSTS["fan1"].check_output(f"cd {TREE} && sha256sum *")
    assert [HOSTS[name].check_output(f"cd {TREE} && sha256sum *") for name in receivers] == [wanted] * len(receivers)
    began = min(float(HOSTS[n].check_output("stat -c %.Y /run/raymetal-fan-out/lock")) for n in ["fan1", *receivers])
    ended = max(float(HOSTS[n].check_output(f"stat -c %.Y {TREE}.manifest.json")) for n in receivers)
    return seconds, ended - began


def push(*receivers: str, together: bool) -> float:
    forget()
    copy = "scp -q -r -i /root/.ssh/push -o StrictHostKeyChecking=accept-new"
    lines = [f"{copy} {TREE} {name}:/srv/trees/ {'&' if together else '&&'}" for name in receivers]
    started = time.monotonic()
    HOSTS["fan1"].run_expect([0], " ".join([*lines, "wait" if together else "true"]))
    return time.monotonic() - started


def test_eight_hosts_take_at_most_twice_the_time_of_one(playbook, figures) -> None:
    figures["one host: run"], figures["one host"] = bring(playbook, "fan2")
    figures["eight hosts: run"], figures["eight hosts"] = bring(playbook, *RECEIVERS)
    print(figures)
    assert figures["eight hosts"] <= MOST_TIMES * figures["one host"]


def test_a_naive_push_is_slower(figures) -> None:
    figures["scp to one host"] = push("fan2", together=False)
    figures["scp to eight hosts at once"] = push(*RECEIVERS, together=True)
    figures["scp to eight hosts, one after the other"] = push(*RECEIVERS, together=False)
    print(figures)
    assert min(figures["scp to eight hosts at once"], figures["scp to eight hosts, one after the other"]) > (
        MOST_TIMES * figures["eight hosts"]
    )

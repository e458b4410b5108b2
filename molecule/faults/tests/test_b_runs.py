"""Runs that meet one another, are killed, or lose a host on their way."""

import copy
import itertools
import json
import os
import re
import signal
import subprocess
import time

import pytest
from operations import SOAK
from trial import host_of

UNITS = ("raymetal.service",)
LOCK = "/run/raymetal-trial.lock"


def well(result):
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    return result


def begins(run, output, wait_until, text):
    """Wait until a run has said ``text``."""
    wait_until(lambda: re.search(text, output.read_text()) or run.poll() is not None, 240)
    assert run.poll() is None, output.read_text()[-3000:]


def test_a_second_run_is_told_of_the_first(hosts, host, said, wait_until):
    begin = time.time()
    first, output = hosts.begin()
    begins(first, output, wait_until, r"(?s)run_lock : Take the lock.*?TASK")
    os.killpg(first.pid, signal.SIGSTOP)  # it takes its time
    try:
        second = hosts.run("drain", host="worker2")
        dry = hosts.run("site", "--check", "--tags", "health")
        assert host.file(LOCK).mode == 0o600 and host.file(LOCK).user == "root"
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    assert second.returncode != 0, second.stdout[-2000:]
    for text in ("another run changes the cluster", f"process {first.pid}, since", "run_lock_take_over=true"):
        assert text in said(second), second.stdout[-2000:]
    assert dry.returncode == 0, dry.stdout[-2000:]
    assert first.wait(600) == 0, output.read_text()[-3000:]
    hosts.seconds["all"] = time.time() - begin
    assert not host.file(LOCK).exists


def converge(hosts, number):
    """Another value each time: there is something to be done, a restart of a worker, at every fifth of all nodes."""
    nodes = ["worker1"] if number % 5 else ["head", "worker1", "worker2"]
    backups = f"{{{{ {40 + number} if inventory_hostname in {nodes} else 5 }}}}"
    wanted = {"ray_node_log_backups": backups, "ray_node_drain_seconds": 2, "cluster_accept_outage": True}
    line = f'RAY_ROTATION_BACKUP_COUNT="{40 + number}"'
    return wanted, lambda: line in host_of("worker1").check_output("cat /etc/raymetal/ray.env").splitlines()


def upgrade(hosts, number):
    """Another revision of the application each time."""
    config = copy.deepcopy(hosts.head.ansible.get_variables()["ray_serve_config"])
    config["applications"][0]["args"] = {"revision": f"killed-{number}"}
    return (
        {"ray_serve_config": config},
        lambda: (
            json.loads(hosts.head.check_output("curl -sf -m 20 http://127.0.0.1:8000/"))["revision"]
            == f"killed-{number}"
        ),
    )


@pytest.mark.parametrize(("change", "tags", "trials"), [(converge, "all", 20), (upgrade, "serve", 10)])
def test_runs_killed_at_any_moment_are_finished_by_the_next(hosts, host, changes, killed, change, tags, trials):
    numbers = itertools.count(killed.number())
    for _ in range(killed.left(change.__name__, trials)):
        struck = []
        wanted, is_there = change(hosts, next(numbers))
        while len(struck) < killed.in_a_row:
            whole = hosts.seconds[tags]
            begin, after = time.time(), killed.draw.uniform(0.05, 0.9) * whole
            run, output = hosts.begin("--tags", tags, **wanted)
            try:
                assert run.wait(after) == 0, output.read_text()[-4000:]
                hosts.seconds[tags] = time.time() - begin
                wanted, is_there = change(hosts, next(numbers))  # it was quicker than the last one: another is killed
            except subprocess.TimeoutExpired:
                hosts.kill(run)
                tasks = re.findall(r"(?m)^TASK \[(.+?)\]", output.read_text())
                struck.append((after, whole, tasks[-1] if tasks else ""))
            if change is upgrade:
                host.check_output("curl -sf -m 20 http://127.0.0.1:8000/")  # the one before, or the new one
        well(hosts.run("site", "--tags", tags, **wanted))
        assert is_there() and hosts.serves() and not host.file(LOCK).exists
        killed.note(change.__name__, struck)
    if SOAK or change is upgrade:
        again = well(hosts.run("site", "--tags", tags, **wanted))
        assert set(changes(again).values()) == {0}, changes(again)


@pytest.mark.soak
def test_a_worker_lost_on_the_way_stops_nobody_and_is_named(hosts, host, named, site, podman, wait_until):
    container = site.container("worker2")
    well(hosts.run("site", cluster_accept_outage=True))
    for name in ("worker1", "worker2"):
        named(name).check_output("systemctl stop raymetal.service")
    first, output = hosts.begin()
    begins(first, output, wait_until, r"TASK \[ray_node : start \|")
    podman("kill", container)
    try:
        status = first.wait(600)
        text = " ".join(output.read_text().split())
        assert status != 0, text[-3000:]
        assert (
            "1 host(s) were lost on the way" in text
            and "worker2: did not answer any more while nodes were started" in text
        )
        assert "add.yml -e host=worker2" in text
        assert "worker1" in hosts.alive() and hosts.serves() and not host.file(LOCK).exists
    finally:
        podman("start", container)
    state = "systemctl is-system-running --wait || true"  # not by ssh: it may not answer yet
    wait_until(lambda: site.run("worker2", state).strip() in ("running", "degraded"))
    well(hosts.run("add", host="worker2"))
    assert set(hosts.alive()) == {"head", "worker1", "worker2"}

"""What a node leaves on the disk stays within bounds, while it runs."""

import json

import pytest

UNITS = ("raymetal.service", "raymetal-sweep.service")
DETACHED = "worker2"
RAY = "/var/lib/raymetal/ray"
ENDED = f"{RAY}/session_2099-01-0%d_00-00-00_000000_1"
# What a task prints is the log of its worker; twice the bound, and a bit.
PRINTS = """
import ray
ray.init(address="auto", logging_level="error", log_to_driver=False)
@ray.remote
def prints():
    for number in range(2600):
        print(str(number) * 1024, flush=True)
    import os
    return os.getpid()
print(ray.get(prints.remote()))
"""


def name(host):
    return host.backend.get_hostname()


def as_service(host, command):
    return host.check_output("cd / && set -a && . /etc/raymetal/ray.env && set +a && runuser -u raymetal -- " + command)


def sweep(host):
    """The sweep as the host has it: the unit, or the line of the start script."""
    if name(host) == DETACHED:
        return host.check_output("sed -n '/ray_sweep.py/,/^  ||/p' /etc/raymetal/ray-start | sh")
    host.run_expect([0], "systemctl start raymetal-sweep")
    return host.check_output("journalctl --no-pager -o cat -u raymetal-sweep")


def test_a_worker_rotates_its_log(host):
    if name(host) != "head":
        pytest.skip("is asked on head")
    pid = as_service(host, f"/opt/raymetal/env/current/bin/python -c '{PRINTS}'").splitlines()[-1]
    listed = host.check_output(f"find {RAY}/session_latest/logs -name 'worker-*-{pid}.out*' -printf '%s '").split()
    assert len(listed) > 1 and all(int(size) <= 1048576 for size in listed), listed


def test_no_core_dump_is_written(host):
    assert host.check_output("grep 'core file' /proc/$(pgrep -o -x raylet)/limits").split()[4:6] == ["0", "0"]


def test_the_sweep_runs_every_hour_and_at_each_start(host):
    if name(host) == DETACHED:
        assert "ray_sweep.py" in host.file("/etc/raymetal/ray-start").content_string
        return
    assert host.service("raymetal-sweep.timer").is_running and host.service("raymetal-sweep.timer").is_enabled
    assert "raymetal-sweep.service" in host.check_output("systemctl show -P Wants raymetal.service").split()


def test_the_sweep_removes_what_ended_and_leaves_what_runs_and_what_is_not_ours(host):
    before = host.check_output("pgrep -u raymetal | sort")
    spilled, running = (f"{RAY}/session_latest/ray_spilled_objects_{number}" for number in ("dead", "0123"))
    ours = [*(ENDED % number + "/logs" for number in (1, 2, 3)), spilled, running, "/dev/shm/psm_left"]
    host.run_expect([0], "install -d -o raymetal -g raymetal " + " ".join(ours))
    host.run_expect([0], f"chown raymetal {' '.join(ENDED % number for number in (1, 2, 3))}")
    host.run_expect([0], "install -d /dev/shm/psm_root /tmp/raymetal_root && touch /dev/shm/psm_root/x")
    node = host.check_output("tr '\\0' '\\n' < /proc/$(pgrep -o -x raylet)/cmdline | sed -n 's/--node_id=//p'")
    host.run_expect([0], f"mv {running} {RAY}/session_latest/ray_spilled_objects_{node} 2>/dev/null || rmdir {running}")
    old = [ENDED % number for number in (1, 2, 3)] + [
        "/dev/shm/psm_left",
        "/dev/shm/psm_root",
        "/tmp/raymetal_root",
        spilled,
    ]
    host.run_expect([0], "find " + " ".join(old) + " -exec touch -d '3 days ago' {} +")
    said = sweep(host)
    left = host.check_output(f"ls {RAY} {RAY}/session_latest/ /dev/shm /tmp").split()
    assert (ENDED % 1).rpartition("/")[2] not in left and (ENDED % 2).rpartition("/")[2] in left
    assert "psm_left" not in left and "ray_spilled_objects_dead" not in left
    assert {"psm_root", "raymetal_root", f"ray_spilled_objects_{node}"} < set(left)
    assert "freed 0.0" in said and ENDED % 1 in said
    assert host.check_output("pgrep -u raymetal | sort") == before
    assert host.run("curl -sf http://127.0.0.1:52365/api/local_raylet_healthz").rc == 0


def test_a_disk_below_its_reserve_is_a_warning_in_the_journal(host):
    if name(host) == DETACHED:
        pytest.skip("has no journal")
    command = host.check_output("systemctl show -P ExecStart raymetal-sweep.service").partition("argv[]=")[2]
    command = command.partition(" ;")[0].replace("--reserve-percent=5", "--reserve-percent=100")
    host.run_expect([0], f"systemd-run --quiet --wait --unit=trial-sweep --property=User=raymetal {command}")
    lines = host.check_output("journalctl --no-pager -o json -u trial-sweep -p warning").splitlines()
    messages = [json.loads(line)["MESSAGE"] for line in lines]
    assert [message for message in messages if "less than the reserve of 100 %" in message and RAY in message], messages

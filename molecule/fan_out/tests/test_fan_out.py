"""What one host holds is on all of them afterwards, whatever befalls a host, the operator or a byte on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testinfra import get_host

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
MODEL, ARCHIVE, PORT = "/srv/trees/model/1", "/srv/trees/archive", 6881
NAMES = ["fan1", "fan2", "fan3", "fan4"]
HOSTS = {name: get_host(f"ansible://{name}?sudo=true", ansible_inventory=str(INVENTORY)) for name in NAMES}


def sums(name: str, tree: str) -> str:
    return str(HOSTS[name].check_output(f"cd {tree} && find -L . -type f -print0 | sort -z | xargs -0 sha256sum"))


def forget(name: str, *trees: str) -> None:
    for tree in trees:
        HOSTS[name].run_expect([0], f"rm -rf {tree} {tree}.partial {tree}.manifest.json")


def new_tree(tree: str, size: int) -> None:
    """A tree that fan1 alone holds."""
    for name in NAMES:
        forget(name, tree)
    HOSTS["fan1"].run_expect([0], f"make_trees {tree} {size}")


def wait_for(name: str, command: str, seconds: float = 30) -> None:
    def holds() -> bool:
        try:
            return bool(HOSTS[name].run(command).rc == 0)
        except RuntimeError:  # sshd is not up yet
            return False

    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{name}: {command}"
        time.sleep(0.3)


def variables(*trees: str, **more: Any) -> dict[str, Any]:
    return {"fan_out_trees": [{"path": tree} for tree in trees], **more}


@contextmanager
def in_the_background(given: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """The shared converge, running; ended by force if the test has not waited for it."""
    command = ["ansible-playbook", "-i", str(INVENTORY), "-e", json.dumps(given), "molecule/shared/converge.yml"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)


def recap(output: str) -> dict[str, str]:
    """Host -> its line of the recap."""
    lines = output.partition("PLAY RECAP")[2].splitlines()
    return {line.split()[0]: line for line in lines if " : ok=" in line}


def assert_nothing_is_left(*names: str, records: bool = False) -> None:
    """``records``: Ansible was killed, and what it remembers of its job is there still, as with every job."""
    for name in names or NAMES:
        host = HOSTS[name]
        assert host.run("pgrep -x aria2c").rc == 1, f"{name}: aria2c still runs"
        assert str(PORT) not in host.check_output("ss -Hlntu"), f"{name}: something listens"
        assert host.check_output("find /srv/trees /run/raymetal-fan-out -name '*.partial' -o -name '.manifest-*'") == ""
        assert host.check_output("ls /run/raymetal-fan-out") == "lock"
        assert records or host.check_output("find /root/.ansible_async -type f 2>/dev/null; true") == ""
        host.run_expect([0], "rm -rf /root/.ansible_async")


def test_all_hosts_hold_the_same_bytes() -> None:
    for tree in (MODEL, ARCHIVE):
        first = sums("fan1", tree)
        assert len(first.splitlines()) == (6 if tree == MODEL else 1)
        assert [sums(name, tree) for name in NAMES[1:]] == [first] * 3
    assert_nothing_is_left()


def test_what_came_belongs_to_root_is_readable_and_has_a_manifest_of_its_own() -> None:
    for name in NAMES[1:]:
        modes = HOSTS[name].check_output(f"find {MODEL} {MODEL}.manifest.json -printf '%y %m %U\\n' | sort -u")
        assert modes.splitlines() == ["d 755 0", "f 644 0"], "no link, and nobody's umask"
        files = json.loads(HOSTS[name].file(f"{MODEL}.manifest.json").content_string)["files"]
        found = HOSTS[name].check_output(f"cd {MODEL} && find . -type f -printf '%P\\t%s\\t%T@\\n'")
        there = {line.split("\t")[0]: line.split("\t")[1:] for line in found.splitlines()}
        assert files.keys() == there.keys()
        for file, (size, changed) in there.items():
            seconds, _, fraction = changed.partition(".")
            assert files[file]["size"] == int(size)
            assert files[file]["mtime_ns"] == int(seconds) * 10**9 + int(fraction[:9]), "model_manifest reads it again"


def test_the_holder_was_only_read() -> None:
    assert HOSTS["fan1"].file(f"{MODEL}/model-00001.safetensors").is_symlink
    assert HOSTS["fan1"].file(f"{MODEL}/config.json").mode == 0o600


def test_a_dry_run_names_who_would_receive_what(playbook) -> None:
    forget("fan3", ARCHIVE)
    done = playbook("molecule/shared/converge.yml", "--check")
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{ARCHIVE} (6 MiB) would come from fan1, fan2, fan4" in done.stdout
    assert ["changed=1" in line for line in recap(done.stdout).values()] == [False, False, True, False]
    assert not HOSTS["fan3"].file(ARCHIVE).exists and not HOSTS["fan3"].file(f"{ARCHIVE}.partial").exists


def test_a_holder_whose_bytes_are_others_than_its_manifest_says_is_not_believed(apply_role) -> None:
    """Size and time are those of before, so fan2 passes for a holder; only the hashes of the pieces tell."""
    forget("fan3", ARCHIVE)
    file = f"{ARCHIVE}/all.tar.zst"
    time_of = HOSTS["fan2"].check_output(f"stat -c %y {file}")
    change = f"head -c 3000000 /dev/urandom | dd of={file} conv=notrunc && touch -d '{time_of}' {file}"
    HOSTS["fan2"].run_expect([0], change)
    wrong = sums("fan2", ARCHIVE)
    done = apply_role("fan_out", {})
    assert done.returncode == 0, done.stdout[-3000:]
    assert sums("fan3", ARCHIVE) == sums("fan1", ARCHIVE)
    assert sums("fan2", ARCHIVE) == wrong, "a holder's tree is never written to"
    assert_nothing_is_left()


def test_ansible_killed_in_the_middle_and_a_changed_byte_meanwhile(apply_role) -> None:
    tree = "/srv/trees/killed"
    new_tree(tree, 40_000_000)
    # So slow that the job is still at it when the next run comes.
    given = variables(tree, fan_out_limit_bytes_per_second=1_000_000)
    with in_the_background(given) as running:
        wait_for("fan3", f"test $(du -m {tree}.partial | cut -f1) -ge 3")
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert HOSTS["fan3"].run("pgrep -x aria2c").rc == 0, "the job goes on; the next run takes over"
    HOSTS["fan3"].run_expect([0], f"ln -s /etc/passwd {tree}.partial/link && mkdir {tree}.partial/odd")
    # What is there may be a hole of the file yet, or a piece that came: either way it is not what it should be.
    HOSTS["fan3"].run_expect([0], f"printf 0123456789 | dd of={tree}.partial/all.tar.zst bs=1 seek=5 conv=notrunc")
    done = apply_role("fan_out", variables(tree))
    assert done.returncode == 0, done.stdout[-3000:]
    assert [sums(name, tree) for name in NAMES[1:]] == [sums("fan1", tree)] * 3
    assert_nothing_is_left(records=True)


def test_a_lost_host_and_a_full_disk_stop_neither_the_others_nor_the_next_run(apply_role, podman) -> None:
    """fan3's file system is full in the middle, fan4 is killed there, fan2 gets it all."""
    tree = "/dev/shm/trees/lost"
    new_tree(tree, 40_000_000)
    prefix = os.environ.get("MOLECULE_PREFIX") or "raymetal"
    with in_the_background(variables(tree, fan_out_limit_bytes_per_second=3_000_000)) as running:
        wait_for("fan4", f"test $(du -m {tree}.partial | cut -f1) -ge 2")
        podman("kill", f"{prefix}-fan_out-fan4")
        HOSTS["fan3"].run("cat /dev/zero > /dev/shm/full")
        output, _ = running.communicate(timeout=120)
    lines = recap(output)
    assert running.returncode != 0
    assert "failed=0" in lines["fan2"] and "unreachable=0" in lines["fan2"], output[-5000:]
    assert "failed=1" in lines["fan3"] and "MiB are free at" in output, output[-5000:]
    assert "unreachable=1" in lines["fan4"], output[-5000:]
    assert "fan_out /dev/shm/trees/lost: " in output and " of 3 hosts complete" in output, "progress is seen"
    assert sums("fan2", tree) == sums("fan1", tree)
    assert not HOSTS["fan3"].file(tree).exists and not HOSTS["fan3"].file(f"{tree}.manifest.json").exists
    assert_nothing_is_left("fan1", "fan2", "fan3")

    full = apply_role("fan_out", variables(tree))
    text = " ".join(full.stdout.split())
    assert full.returncode != 0 and f"fan3: {tree} needs" in text and "MiB are free there" in text, full.stdout[-3000:]

    podman("start", f"{prefix}-fan_out-fan4")
    wait_for("fan4", "true", 60)
    HOSTS["fan3"].run_expect([0], "rm /dev/shm/full")
    again = apply_role("fan_out", variables(tree))
    assert again.returncode == 0, again.stdout[-3000:]
    assert [sums(name, tree) for name in NAMES[1:]] == [sums("fan1", tree)] * 3
    assert "changed=0" in recap(again.stdout)["fan2"]
    assert_nothing_is_left(records=True)


def test_without_anybody_who_sends_the_run_ends_and_says_what_is_missing() -> None:
    tree = "/srv/trees/stalled"
    new_tree(tree, 20_000_000)
    with in_the_background(variables(tree, fan_out_limit_bytes_per_second=500_000, fan_out_stall_seconds=4)) as running:
        wait_for("fan2", f"test $(du -m {tree}.partial | cut -f1) -ge 1")
        HOSTS["fan1"].run_expect([0], "pkill -x aria2c")
        output, _ = running.communicate(timeout=120)
    text = " ".join(output.split())
    assert ["failed=1" in line for line in recap(output).values()] == [True] * 4, output[-5000:]
    assert "aria2c ended with code" in text and f"of 20000000 bytes of {tree}" in text
    assert "no byte came for 4 s from any of" in text
    for name in NAMES[1:]:
        assert not HOSTS[name].file(tree).exists and HOSTS[name].file(f"{tree}.partial").exists
        forget(name, tree)
    assert_nothing_is_left()


def test_nothing_to_bring_is_a_matter_of_seconds(apply_role) -> None:
    started = time.monotonic()
    done = apply_role("fan_out", {})
    seconds = time.monotonic() - started
    assert done.returncode == 0 and all("changed=0" in line for line in recap(done.stdout).values())
    assert "aria2" not in done.stdout and seconds < 15, seconds

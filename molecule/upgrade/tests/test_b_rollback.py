"""Changes that go wrong: the old one keeps serving, the run says why, and the next run is sane."""

import os
import time

import pytest

UNITS = ("raymetal.service",)
RATE = 10


@pytest.fixture
def fails(trial, load, said, changed):
    """Return a function: ``new`` fails with ``texts`` under load, what served serves on, and the next run is sane."""

    def run(new, *texts, may_fail=False, **variables):
        before = trial.options()
        load.start(rate=RATE)
        result = trial.run(new, ray_serve_watch_seconds=10, **variables)
        load.end()
        assert result.returncode != 0, result.stdout[-4000:]
        for text in texts:
            assert text in said(result), result.stdout[-4000:]
        assert trial.options() == before and list(trial.running().values()) == ["RUNNING"]
        if not may_fail:
            load.proven()
        again = trial.run(trial.config())
        assert again.returncode == 0 and changed(again) == {"0"}, again.stdout[-4000:]
        return said(result)

    return run


def test_a_new_one_that_crashes_at_start(trial, fails):
    new = trial.config(revision="crash", crash=True)
    fails(new, "told to crash at start", "What served before serves again: chat")


@pytest.mark.soak
def test_a_new_one_that_crashes_in_place(trial, fails):
    new = trial.config(revision="crash", crash=True)
    fails(new, "told to crash at start", ray_serve_way="surge")


@pytest.mark.soak
def test_a_new_one_that_answers_wrongly(trial, load, fails):
    new = trial.config(revision="wrong", answer="Rome")
    fails(new, "does not contain 'Paris'", "What served before serves again: chat")
    assert "wrong" not in load.prints(), "it got traffic before it was judged"


@pytest.mark.soak
def test_no_room(trial, said, load):
    new = trial.config(revision="roomless")
    new["applications"][0]["deployments"][0]["ray_actor_options"]["num_gpus"] = 2
    before = trial.options()
    result = trial.run(new, ray_serve_ways={"chat": "blue_green"})
    assert result.returncode != 0
    assert "the way blue_green is impossible" in said(result) and "short of 2 GPU" in said(result)
    assert trial.options() == before


@pytest.mark.soak
def test_a_new_one_that_fails_under_load(trial, load, fails):
    """It answers one at a time; of the users' requests, many at once, some fail until it is taken back."""
    new = trial.config(revision="weak", fail_above=1)
    text = fails(new, "What served before serves again: chat", may_fail=True)
    # Seen by Serve's own count, or by a request of the run's own that happened to be one of them.
    assert any(word in text for word in ("of the requests fail", "fails under traffic", "does not answer as it should"))
    assert {r["fingerprint"] for r in load.records if r["failure"]} <= {"weak", "", None}


@pytest.mark.soak
def test_a_canary_that_fails_under_load_meets_its_share_only(trial, load, said):
    """The same with a canary of half of the requests: the switch never comes."""
    before = trial.options()
    load.start(rate=RATE, at="edge", port=8080)
    result = trial.run(
        trial.config(revision="weak", fail_above=1), ray_serve_canary_percent=50, ray_serve_canary_seconds=10
    )
    load.end()
    assert result.returncode != 0 and "fail" in said(result), result.stdout[-3000:]
    assert trial.options() == before
    failed = [r for r in load.records if r["failure"]]
    assert failed and {r["fingerprint"] for r in failed} <= {"weak", "", None}
    last = max(r["scheduled"] for r in load.records if r["fingerprint"] == "weak" or r["failure"])
    assert last < load.records[-1]["scheduled"] - 1, "after the way back all is well"


@pytest.mark.soak
def test_a_new_one_that_is_slow_under_load(trial, fails):
    new = trial.config(revision="slow", slow_above=0)
    fails(new, "ms in the mean, before")


@pytest.mark.soak
@pytest.mark.parametrize("goes_on", [True, False], ids=["finished", "taken-back"])
def test_ansible_is_killed_in_the_middle(trial, load, said, changed, wait_until, tmp_path, goes_on):
    before = trial.options()
    new = trial.config(revision="after-kill" if goes_on else "never", start_seconds=15)
    old = trial.config()
    load.start(rate=RATE)
    run = trial.begin(tmp_path, new)
    wait_until(lambda: len(trial.running()) == 2)
    trial.kill(run)
    assert trial.options() == before
    result = trial.run(new if goes_on else old)
    load.end()
    assert result.returncode == 0, result.stdout[-4000:]
    assert "An earlier change was interrupted" in said(result)
    assert trial.options()["revision"] == ("after-kill" if goes_on else before["revision"])
    assert len(trial.running()) == 1
    load.proven()
    again = trial.run(new if goes_on else old)
    assert again.returncode == 0 and changed(again) == {"0"} and "interrupted" not in said(again)


@pytest.mark.soak
def test_back_to_the_one_before(trial, load, playbook):
    """playbooks/rollback.yml, under load."""
    before = trial.options()
    load.start(rate=RATE)
    begin = time.time()
    result = playbook("playbooks/rollback.yml", variables=trial.variables(trial.config(), {}))
    load.window = (begin, time.time())
    load.end()
    assert result.returncode == 0, result.stdout[-4000:]
    assert trial.options()["revision"] != before["revision"]
    load.proven()


@pytest.mark.soak
def test_back_to_one_that_is_not_there(trial, playbook, said):
    result = playbook("playbooks/rollback.yml", variables={**trial.variables(trial.config(), {}), "rollback_to": "x"})
    assert result.returncode != 0 and "has no configuration x. To do: name one of 20" in said(result)


@pytest.mark.soak
def test_a_host_is_lost_in_the_middle(trial, load, named, podman, wait_until, tmp_path):
    """The node of a candidate's replica goes: the old one serves on, and the run ends with the node's address."""
    address = named("worker2").ansible.get_variables()["ansible_host"]
    container = f"{os.environ.get('MOLECULE_PREFIX') or 'raymetal'}-{os.environ['MOLECULE_SCENARIO_NAME']}-worker2"
    before = trial.options()
    (serving,) = trial.running()
    load.start(rate=RATE)
    run = trial.begin(tmp_path, trial.config(revision="lost", start_seconds=30))
    wait_until(lambda: len(trial.running()) == 2)
    old_ones_there = any(r["node_ip"] == address for r in trial.replicas(serving))
    begin = time.time()
    podman("kill", container)
    run.wait(timeout=300)
    load.window = (begin, time.time())
    load.end()
    podman("start", container)
    text = " ".join((tmp_path / "output").read_text().split())
    assert run.returncode != 0 and f"node {address} was lost" in text, text[-3000:]
    assert trial.options() == before
    # Serve believes what it knows of a replica's load for ten seconds (RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S): what it
    # sent to the lost host until then waits or is lost. All else is answered; all, where no old replica was there.
    met = [r for r in load.records if begin - 5 < r["scheduled"] < begin + 11]
    late = [r for r in load.records if r["failure"] and r["scheduled"] > begin + 11]
    assert not late, late[:5]
    assert len(load.failures()) <= (0.8 * len(met) if old_ones_there else 0), load.summary()
    wait_until(lambda: "running" in podman("exec", container, "sh", "-c", "systemctl is-system-running --wait; true"))
    back = trial.run(trial.config(), tags="cluster,serve")
    assert back.returncode == 0, back.stdout[-4000:]

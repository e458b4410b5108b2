"""Hosts come and go while a load runs through the gateway: no request fails, and nobody else is touched."""

import re
import time

import pytest

UNITS = ("raymetal.service",)
LEFT = (
    "ls -d /etc/raymetal /var/lib/raymetal /etc/systemd/system/raymetal.service /etc/security/limits.d/60-raymetal.conf"
)


def well(result):
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    return result


def test_only_workers_can_be_named(hosts, said):
    for name in ("head", "worker1,nobody", "worker*"):
        result = hosts.run("remove", host=name)
        assert result.returncode != 0 and "is no worker; nothing was changed" in said(result), result.stdout[-2000:]
    assert "no worker is named" in said(hosts.run("drain"))


def test_a_drained_worker_serves_nothing_and_add_brings_it_back(hosts, load, named, changes):
    before = hosts.alive()
    load.start(at="edge", port=8080)
    begin = time.time()
    well(hosts.run("drain", host="worker2"))
    load.window = (begin, time.time())
    assert set(hosts.alive()) == {"head", "worker1"} and hosts.serves()
    assert not named("worker2").service("raymetal.service").is_enabled
    assert hosts.behind_gateway()["worker2"] != "UP"
    assert set(changes(well(hosts.run("drain", host="worker2"))).values()) == {0}, "drained is drained"
    added = well(hosts.run("add", host="worker2"))
    load.end()
    load.proven()
    assert {name for name, count in changes(added).items() if count} == {"worker2"}, changes(added)
    after = hosts.alive()
    assert {name: after[name] for name in ("head", "worker1")} == {name: before[name] for name in ("head", "worker1")}
    assert after["worker2"] != before["worker2"]
    assert set(changes(well(hosts.run("add", host="worker2"))).values()) == {0}, "added is added"


@pytest.mark.soak
def test_a_removed_worker_carries_nothing_and_the_last_one_is_not_removed(hosts, load, named, said):
    load.start(at="edge", port=8080)
    begin = time.time()
    result = well(hosts.run("remove", host="worker2"))
    load.window = (begin, time.time())
    load.end()
    load.proven()
    assert "To do: take it out of the inventory" in said(result)
    gone = named("worker2")
    assert not gone.user("raymetal").exists and gone.run(LEFT).stdout == ""
    assert set(hosts.behind_gateway()) == {"head", "worker1"} and hosts.serves()
    refused = hosts.run("remove", host="worker1")
    assert refused.returncode != 0 and "there is no room for all that serves" in said(refused), refused.stdout[-2000:]
    assert "cluster_accept_no_room=true" in said(refused) and set(hosts.alive()) == {"head", "worker1"}


@pytest.mark.soak
def test_a_worker_takes_the_place_of_another(hosts, load, named):
    load.start(at="edge", port=8080)
    begin = time.time()
    well(hosts.run("replace", old="worker1", new="worker2"))
    load.window = (begin, time.time())
    load.end()
    load.proven()
    assert set(hosts.alive()) == {"head", "worker2"} and hosts.serves()
    assert not named("worker1").user("raymetal").exists
    well(hosts.run("add", host="worker1"))
    assert set(hosts.alive()) == {"head", "worker1", "worker2"}


@pytest.mark.soak
def test_another_token_goes_to_all_nodes_with_consent(hosts, named, said, wait_until):
    def tokens():
        return {named(name).check_output("sha256sum < /etc/raymetal/auth_token") for name in nodes}

    well(hosts.run("add", host="worker2"))  # it was removed, and may come back
    nodes = hosts.alive()
    before = tokens()
    assert set(nodes) == {"head", "worker1", "worker2"}
    # As a run that was killed has left it.
    named("edge").check_output("/etc/raymetal/gateway/gatewayctl drain head 1 || true")
    refused = hosts.run("rotate_token")
    assert refused.returncode != 0 and "cluster_accept_outage=true accepts it" in said(refused), refused.stdout[-2000:]
    assert tokens() == before and hosts.alive() == nodes
    old = named("head").check_output("cat /etc/raymetal/auth_token")
    begin = time.time()
    result = well(hosts.run("rotate_token", cluster_accept_outage=True))
    print(f"another token, and all serves again: {time.time() - begin:.0f} s")
    assert len(tokens()) == 1 and tokens() != before
    assert set(hosts.alive()) == set(nodes) and not set(hosts.alive().values()) & set(nodes.values())
    wait_until(lambda: hosts.behind_gateway()["head"] == "UP")
    new = named("head").check_output("cat /etc/raymetal/auth_token")
    assert not re.search(f"{old}|{new}", result.stdout + result.stderr), "no token is told"
    code = "curl -s -o /dev/null -w '%%{http_code}' -H 'Authorization: Bearer %s' http://127.0.0.1:8265/api/version"
    assert named("head").check_output(code, old) == "403" and named("head").check_output(code, new) == "200"

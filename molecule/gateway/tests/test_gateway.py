"""The gateway seen from outside, under an open load, while nodes drain, stop, return and the configuration changes."""

import json
import threading
import time

import pytest
import testinfra

UNITS = ("raymetal-gateway.service",)
LEAST = 100  # requests of a case
SERVES = 0.6  # seconds that the longest request takes by itself


def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return result


@pytest.fixture(scope="module")
def node(host):
    """Return a function that runs a command on a node."""
    inventory = host.backend.ansible_inventory
    hosts = {n: testinfra.get_host(f"ansible://{n}?sudo=true", ansible_inventory=inventory) for n in ("node1", "node2")}
    return lambda name, command: hosts[name].check_output(command)


@pytest.fixture(scope="module")
def control(host):
    """Return a function that runs gatewayctl and returns its result."""
    return lambda *words: host.run("/etc/raymetal/gateway/gatewayctl " + " ".join(words))


@pytest.fixture
def state(control):
    """Return a function that tells a node's state, as HAProxy names it."""

    def of(name):
        rows = [line.split("\t") for line in control("nodes").stdout.splitlines()]
        return next(row[1] for row in rows if row[0] == name)

    return of


@pytest.fixture(autouse=True)
def whole(control, node):
    """Both nodes up before and after each test, no canary."""

    def both():
        return control("nodes").stdout.count("\tUP\t") == 2

    until(both)
    yield
    for name in ("node1", "node2"):
        node(name, "rm -f /run/stand-in/draining; systemctl start stand-in")
        assert control("ready", name).rc == 0
    until(both)


@pytest.fixture
def tasks(playbook, tmp_path):
    """Return a function that runs a tasks file of the role, as a play of the project would."""

    def run(name, *arguments, **variables):
        play = {
            "name": "Call the role",
            "hosts": "gateway",
            "gather_facts": False,
            "become": True,
            "tasks": [{"name": name, "ansible.builtin.import_role": {"name": "gateway", "tasks_from": name}}],
        }
        (tmp_path / "play.yml").write_text(json.dumps([play]))
        return playbook(
            tmp_path / "play.yml",
            *arguments,
            variables={**variables, "gateway_hosts": ["gate"], "cluster_config_dir": "/etc/raymetal"},
        )

    return run


@pytest.fixture
def told(address, post):
    """Return a function that gives status and parsed answer of a path."""

    def of(path, headers=None):
        status, body = post(address, path, headers)
        return status, json.loads(body)

    return of


def test_requests_go_to_both_nodes_with_their_bodies(told):
    answers = [told("/v1/x?a=1")[1] for _ in range(20)]
    assert {answer["node"] for answer in answers} == {"node1", "node2"}
    assert {(answer["path"], answer["bytes"]) for answer in answers} == {("/v1/x?a=1", 2)}


def test_a_draining_node_gets_nothing_then_stops_and_returns(address, node, state, open_load):
    with open_load(address) as load:
        until(lambda: len(load.outcomes) > 20)
        node("node1", "touch /run/stand-in/draining")
        until(lambda: state("node1") == "NOLB", 5)
        left = len(load.outcomes)
        until(lambda: len(load.outcomes) > left + 40)
        assert load.nodes(20) == {"node2"}
        node("node1", "systemctl stop stand-in")
        until(lambda: state("node1") == "DOWN")
        stopped = len(load.outcomes)
        until(lambda: len(load.outcomes) > stopped + 40)
        assert load.nodes(20) == {"node2"}
        node("node1", "rm -f /run/stand-in/draining; systemctl start stand-in")
        until(lambda: state("node1") == "UP")
        until(lambda: load.nodes(10) == {"node1", "node2"})
    load.proven("drain, stop, return", LEAST, SERVES + 3)


def test_requests_wait_while_no_node_is_up(address, node, state, open_load):
    """They are answered late, not with 503; the load goes on all the time."""
    for name in ("node1", "node2"):
        node(name, "touch /run/stand-in/draining")
    with open_load(address) as load:
        until(lambda: state("node1") == state("node2") == "NOLB", 5)
        node("node1", "systemctl stop stand-in")
        node("node2", "systemctl stop stand-in")
        time.sleep(3)  # the time without a node is what is tested
        node("node2", "rm -f /run/stand-in/draining; systemctl start stand-in")
        until(lambda: state("node2") == "UP")
        until(lambda: len(load.outcomes) > LEAST)
    load.proven("no node for three seconds and more", LEAST, SERVES + 10)
    assert max(outcome.seconds for outcome in load.outcomes) > 2


@pytest.mark.soak
def test_a_backup_has_requests_only_while_no_other_node_is_up(address, node, state, playbook, open_load):
    result = playbook("playbooks/gateway.yml", variables={"gateway_backup_nodes": ["node1"]})
    assert result.returncode == 0, result.stdout[-3000:]
    try:
        with open_load(address) as load:
            until(lambda: load.nodes(20) == {"node2"})
            node("node2", "touch /run/stand-in/draining")
            until(lambda: state("node2") == "NOLB", 5)
            until(lambda: load.nodes(10) == {"node1"})
            node("node2", "rm -f /run/stand-in/draining")
            until(lambda: state("node2") == "UP")
            until(lambda: len(load.outcomes) > LEAST and load.nodes(10) == {"node2"})
        load.proven("a backup takes over and gives back", LEAST, SERVES + 3)
    finally:
        result = playbook("playbooks/gateway.yml")
    assert result.returncode == 0, result.stdout[-3000:]


def test_a_changed_list_of_nodes_cuts_no_stream(host, address, playbook, open_load, post):
    """A stream that lasts longer than any silence allowed goes on in the old worker."""
    master = host.check_output("systemctl show -p MainPID --value raymetal-gateway")
    streams = []

    def stream():
        streams.append(post(address, "/long?events=40&pause=0.5"))

    threads = [threading.Thread(target=stream) for _ in range(4)]
    with open_load(address) as load:
        for thread in threads:
            thread.start()
        one = {"gateway_nodes": [{"name": "node2", "address": "node2"}]}
        result = playbook("playbooks/gateway.yml", variables=one)
        assert result.returncode == 0, result.stdout[-3000:]
        until(lambda: load.nodes(10) == {"node2"})
        result = playbook("playbooks/gateway.yml")
        assert result.returncode == 0, result.stdout[-3000:]
        until(lambda: load.nodes(10) == {"node1", "node2"})
        for thread in threads:
            thread.join()
    load.proven("two reloads with another list of nodes", LEAST, SERVES + 3)
    assert len(streams) == 4 and all(s == 200 and b.count("data: ") == 41 for s, b in streams)
    assert host.check_output("systemctl show -p MainPID --value raymetal-gateway") == master


def test_drain_waits_for_streams_of_old_workers_and_survives_a_reload(
    host, address, control, state, tasks, open_load, post
):
    streams = []
    threads = [
        threading.Thread(target=lambda: streams.append(post(address, "/long?events=12&pause=0.5"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    until(lambda: control("nodes").stdout.count("\t2") == 2)
    host.run_expect([0], "systemctl reload raymetal-gateway")
    assert control("drain", "node1", "1").rc == 1, "an old worker still has two streams on it"
    with open_load(address) as load:
        result = tasks("drain", gateway_node="node1")
        assert result.returncode == 0, result.stdout[-3000:]
        assert control("nodes").stdout.splitlines()[0].endswith("\t0")
        host.run_expect([0], "systemctl reload raymetal-gateway")
        until(lambda: len(load.outcomes) > LEAST)
        assert load.nodes(60) == {"node2"} and state("node1").startswith("DRAIN")
        again = tasks("drain", gateway_node="node1")
        assert again.returncode == 0 and "changed=0" in again.stdout
        result = tasks("ready", gateway_node="node1")
        assert result.returncode == 0 and "changed=1" in result.stdout, result.stdout[-3000:]
        until(lambda: load.nodes(10) == {"node1", "node2"})
    for thread in threads:
        thread.join()
    load.proven("drain, reload, ready", LEAST, SERVES + 3)
    assert all(status == 200 and body.count("data: ") == 13 for status, body in streams)


def test_drain_and_ready_say_what_is_wrong(tasks):
    for name in ("drain", "ready"):
        result = tasks(name, gateway_node="node9")
        text = " ".join(result.stdout.split())
        assert result.returncode != 0 and "has no node node9; it has node1, node2" in text


CANARY = {"route": "/", "hidden_route": "/.raymetal/chat--green", "percent": 30, "header": "green"}


@pytest.fixture
def canary(host):
    """Return a function that gives gatewayctl canaries as JSON and returns its result."""
    return lambda *wanted: host.run("echo %s | /etc/raymetal/gateway/gatewayctl canary", json.dumps(wanted))


def test_canary_by_share_and_by_header_is_switched_under_load(host, address, canary, open_load, told):
    reloads = host.check_output("systemctl show -p ExecMainStartTimestamp --value raymetal-gateway")
    workers = host.check_output("pgrep -u haproxy -f raymetal")
    with open_load(address, per_second=40) as load:
        assert canary({**CANARY, "other_routes": ["/", "/other"]}).stdout == "changed\n"
        begun = len(load.outcomes)
        assert canary({**CANARY, "other_routes": ["/", "/other"]}).stdout == "unchanged\n"
        until(lambda: len(load.outcomes) > begun + 400, 30)
        asked = [told("/v1/x?b=2", {"X-Raymetal-Canary": "green"})[1]["path"] for _ in range(10)]
        other = [told("/other/x", {"X-Raymetal-Canary": "green"})[1]["path"] for _ in range(10)]
        metrics = host.check_output("curl -s http://127.0.0.1:8405/metrics")
        assert canary().stdout == "changed\n"
    load.proven("canary on and off", 400, SERVES + 3)
    sent = [outcome.served_path.startswith("/.raymetal/chat--green/v1/chat?") for outcome in load.outcomes[begun:]][
        :400
    ]
    share = sum(sent) / len(sent)
    print(f"canary: {share:.1%} of {len(sent)} requests instead of 30 %")
    assert 0.2 < share < 0.4
    assert set(asked) == {"/.raymetal/chat--green/v1/x?b=2"} and set(other) == {"/other/x"}
    assert 'haproxy_backend_http_responses_total{proxy="candidate",code="2xx"}' in metrics
    paths = {told("/v1/x", {"X-Raymetal-Canary": "green"})[1]["path"] for _ in range(20)}
    assert paths == {"/v1/x"}
    assert host.check_output("pgrep -u haproxy -f raymetal") == workers, "no reload"
    assert host.check_output("systemctl show -p ExecMainStartTimestamp --value raymetal-gateway") == reloads


def test_canary_below_a_route_and_across_a_reload(host, canary, told):
    assert canary({"route": "/chat", "hidden_route": "/.raymetal/chat--green", "percent": 100}).rc == 0
    host.run_expect([0], "systemctl reload raymetal-gateway")
    for path, served in (("/chat", ""), ("/chat/", "/"), ("/chat/v1/x", "/v1/x")):
        assert told(path)[1]["path"] == f"/.raymetal/chat--green{served}"
    assert told("/chatter/x")[1]["path"] == "/chatter/x"
    assert canary().rc == 0


def test_a_canary_that_cannot_be_is_refused(canary, host):
    result = canary({**CANARY, "percent": 101})
    assert result.rc == 1 and "percent is 101" in result.stderr
    assert host.file("/etc/raymetal/gateway/canary.map").size == 0


@pytest.mark.soak
def test_another_cluster_leads_it_over_when_told_and_no_request_fails(host, address, playbook, open_load, node):
    """The procedure of docs/upgrades.md: a second cluster behind the same gateway, here of one node of the two."""
    other = {"cluster_name": "next", "gateway_nodes": [{"name": "node2", "address": "node2"}]}
    with open_load(address) as load:
        refused = playbook("playbooks/gateway.yml", variables=other)
        text = " ".join(refused.stdout.split())
        assert refused.returncode != 0 and "belongs to cluster trial. To do: -e gateway_take_over=true" in text
        assert "changed=0" in refused.stdout and host.file("/etc/raymetal/gateway/cluster").content_string == "trial\n"
        led = playbook("playbooks/gateway.yml", "-e", "gateway_take_over=true", variables=other)
        assert led.returncode == 0, led.stdout[-3000:]
        until(lambda: load.nodes(10) == {"node2"})
        node("node1", "systemctl stop stand-in")  # the first cluster goes
        left = len(load.outcomes)
        until(lambda: len(load.outcomes) > left + 40)
        node("node1", "systemctl start stand-in")
        back = playbook("playbooks/gateway.yml", variables={"gateway_take_over": True})
        assert back.returncode == 0, back.stdout[-3000:]
        until(lambda: load.nodes(10) == {"node1", "node2"})
    load.proven("led over to another cluster and back", LEAST, SERVES + 3)


@pytest.mark.parametrize(
    "path",
    [
        "/.raymetal/chat--green/v1/x",
        "/.raymetal",
        "//.raymetal/x",
        "/%2eraymetal/x",
        "/%2E%72aymetal/x",
        "/a/../.raymetal/x",
    ],
)
def test_hidden_routes_are_closed(path, told):
    status, answer = told(path)
    assert status == 404 and answer["error"]["type"] == "invalid_request_error"


def test_a_silent_node_is_given_up_with_an_error_like_openais(told):
    started = time.monotonic()
    status, answer = told("/slow?seconds=8")
    assert status == 504 and answer["error"]["code"] == "504" and "did not answer in time" in answer["error"]["message"]
    assert 4 < time.monotonic() - started < 7


def test_an_error_of_the_application_passes_unchanged_and_unrepeated(told):
    status, answer = told("/v1/x?status=503")
    assert status == 503 and answer["path"] == "/v1/x?status=503"


def test_health_and_metrics(host, address, post):
    assert post(address, "/-/healthz", {"Authorization": "none"})[0] == 200
    metrics = host.check_output("curl -s http://127.0.0.1:8405/metrics")
    assert 'haproxy_server_status{proxy="nodes",server="node1",state="UP"} 1' in metrics


def test_what_runs_where_and_as_whom(host):
    listening = host.check_output("ss -Hltn").split()
    assert {"0.0.0.0:8080", "0.0.0.0:8405"} <= set(listening)
    assert host.file("/run/raymetal-gateway/master.sock").mode == 0o600
    assert host.file("/run/raymetal-gateway").mode == 0o700
    assert host.check_output("ps -o user= -C haproxy | sort | uniq").split() == ["haproxy"]
    assert not host.service("haproxy").is_running and not host.service("haproxy").is_enabled


@pytest.mark.parametrize(
    ("variables", "messages"),
    [
        ({"gateway_port": 8405}, ["gateway_metrics_port = 8405: is also the port of gateway_port"]),
        ({"gateway_port": 70000, "gateway_silence_seconds": "long"}, ["gateway_silence_seconds = long"]),
        ({"gateway_port": 70000}, ["gateway_port = 70000: is no port"]),
        ({"gateway_node_host": "127.0.0.1"}, ["node1, node2 listen on their own loopback"]),
        ({"gateway_nodes": []}, ["there is no node behind the gateway"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_changed(host, playbook, variables, messages):
    before = host.check_output("sha256sum /etc/raymetal/gateway/*")
    result = playbook("playbooks/gateway.yml", variables=variables)
    text = " ".join(result.stdout.split())
    assert result.returncode != 0 and "gate 1:" in text
    assert not [message for message in messages if message not in text], result.stdout[-3000:]
    assert host.check_output("sha256sum /etc/raymetal/gateway/*") == before


def test_a_configuration_that_haproxy_refuses_never_takes_the_place(host, playbook, told):
    before = host.check_output("sha256sum /etc/raymetal/gateway/haproxy.cfg")
    result = playbook("playbooks/gateway.yml", variables={"gateway_canary_header": "a) b"})
    assert result.returncode != 0 and "refused by /usr/sbin/haproxy" in result.stdout
    assert host.check_output("sha256sum /etc/raymetal/gateway/haproxy.cfg") == before
    assert told("/v1/x")[0] == 200


@pytest.mark.soak
def test_a_port_that_is_taken_leaves_what_runs(host, playbook, told):
    result = playbook("playbooks/gateway.yml", variables={"gateway_port": 22})
    assert result.returncode != 0, result.stdout[-3000:]
    assert told("/v1/x")[0] == 200
    result = playbook("playbooks/gateway.yml")
    assert result.returncode == 0, result.stdout[-3000:]
    assert told("/v1/x")[0] == 200


def test_a_dry_run_changes_nothing(host, playbook):
    before = host.check_output("sha256sum /etc/raymetal/gateway/*; pgrep -u haproxy")
    result = playbook("playbooks/gateway.yml", "--check", "--diff", variables={"gateway_max_connections": 300})
    assert result.returncode == 0 and "+    maxconn 300" in result.stdout, result.stdout[-3000:]
    assert host.check_output("sha256sum /etc/raymetal/gateway/*; pgrep -u haproxy") == before

"""What would make the cluster somebody else's, tried without the token: by Ray's own tools, and by its REST."""

from __future__ import annotations

import json
import re
import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest

UNITS = ("raymetal.service",)
BIN = "/opt/raymetal/env/current/bin"
# The token, if there is one, comes on standard input: on a command line all would see it.
SHELL = """read -r RAY_AUTH_TOKEN; [ -n "$RAY_AUTH_TOKEN" ] && export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
[ -n "$RAY_AUTH_TOKEN" ] || export RAY_AUTH_MODE=disabled
export PATH=/opt/raymetal/env/current/bin:$PATH HOME=/tmp RAY_USAGE_STATS_ENABLED=0; exec timeout 90 "$@" 2>&1"""
CODE = {
    "write the GCS": "from ray._raylet import GcsClient; GcsClient('{gcs}').internal_kv_put(b'a', b'b', True, None)",
    "be a driver": "import ray; ray.init('{gcs}')",
    "be a Ray client": "import ray; ray.init('ray://{head}:10001')",
}
TOOLS = {
    "ray status": "ray status --address {gcs}",
    "ray job submit": "ray job submit --address http://{dashboard} -- id",
    "ray drain-node": "ray drain-node --address {gcs} --node-id {node} --reason DRAIN_NODE_REASON_PREEMPTION"
    " --reason-message no --deadline-remaining-seconds 9",
    "join as a worker": "ray start --address {gcs} --temp-dir /tmp/strange",
}
WRONG = "0" * 64
# Each tool takes seconds of work to begin with: from outside, where the firewall is in the way; from a node, where only
# the token is missing; and with a wrong one.
WAYS = {
    ("stranger", ""): ("write the GCS", "be a Ray client"),
    ("head", WRONG): ("write the GCS", "ray job submit", "ray drain-node"),
    ("worker1", ""): ("write the GCS", "be a driver", "be a Ray client", "ray status", "join as a worker"),
}
# Ray's client does not say why: with the token it gets in, below.
REFUSED = "(?i)unauthenticated|token|ray client connection timeout"
EMPTY = '{"applications": []}'
REST = {
    "GET http://{dashboard}/api/serve/applications/": "",
    "PUT http://{dashboard}/api/serve/applications/": EMPTY,
    "DELETE http://{dashboard}/api/serve/applications/": "",
    "POST http://{dashboard}/api/v1/applications/chat/deployments/Chat/scale": '{"target_num_replicas": 0}',
    "POST http://{dashboard}/api/jobs/": '{"entrypoint": "id"}',
    "GET http://{dashboard}/api/jobs/": "",
    "GET http://{dashboard}/api/v0/actors": "",
    "GET http://{dashboard}/api/v0/logs/file?node_id={node}&filename=raylet.out": "",
    "GET http://{dashboard}/worker/traceback?pid=1&ip={head}&node_id={node}": "",
    "POST http://{head}:52365/api/job_agent/jobs/": '{"entrypoint": "id"}',
    "POST http://{worker}:52365/api/job_agent/jobs/": '{"entrypoint": "id"}',
}


def rest(place, path):
    """What the dashboard answers to its operator."""
    command = f"curl -sf -m 20 -H @- 'http://127.0.0.1:8265{path}'"
    head = place("head")
    done = head.run("sh", "-c", command, input=f"Authorization: Bearer {head.token()}\n")
    assert done.returncode == 0, path
    return json.loads(done.stdout)


def state(place):
    """What an attack could change."""
    serve = rest(place, "/api/serve/applications/")["applications"]
    nodes = rest(place, "/api/v0/nodes")["data"]["result"]["result"]
    return {
        "applications": {name: (app["status"], app["last_deployed_time_s"]) for name, app in serve.items()},
        "replicas": serve["chat"]["deployments"]["Chat"]["target_num_replicas"],
        "nodes": {node["node_id"]: node["state"] for node in nodes},
        "jobs": sorted(job["submission_id"] or "" for job in rest(place, "/api/jobs/")),
    }


def attempt(here, command, token):
    done = here.run("sh", "-c", SHELL, "sh", *command, user="guest", input=f"{token}\n")
    return done.returncode, done.stdout[-3000:]


@pytest.fixture(scope="module")
def words(place):
    """What the placeholders above stand for."""
    head = place("head").address
    node = next(n["node_id"] for n in rest(place, "/api/v0/nodes")["data"]["result"]["result"] if n["is_head_node"])
    return {"head": head, "gcs": f"{head}:6380", "worker": place("worker1").address, "node": node}


def command(name, words, host):
    """From the head itself the dashboard can be reached; from elsewhere it is tried all the same."""
    known = {**words, "dashboard": f"{'127.0.0.1' if host == 'head' else words['head']}:8265"}
    if name in CODE:
        return [f"{BIN}/python", "-c", CODE[name].format(**known)]
    if name in TOOLS:
        return TOOLS[name].format(**known).split()
    method, url = name.format(**known).split()
    asked = ["curl", "-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}\\n", "-X", method, url]
    return asked + (["-H", "Content-Type: application/json", "--data", REST[name]] if REST[name] else [])


def ask_all(place, words, host, token):
    """The status of each request of REST."""
    header = ["-H", f"Authorization: Bearer {token}"] if token else []
    script = "\n".join(shlex.join([*command(name, words, host), *header]) + " || :" for name in REST)
    lines = place(host).run("sh", "-c", script, user="guest").stdout.split()
    return dict(zip(REST, lines, strict=True))


@pytest.fixture(scope="module")
def tried(place, words):
    """What the tools said, what the REST said, and the cluster's state before and after."""
    before = state(place)
    with ThreadPoolExecutor(12) as pool:
        tools = {
            (host, name): pool.submit(attempt, place(host), command(name, words, host), token)
            for (host, token), names in WAYS.items()
            for name in names
        }
        statuses = {way: pool.submit(ask_all, place, words, *way) for way in WAYS}
        found = {key: job.result() for key, job in tools.items()}, {way: job.result() for way, job in statuses.items()}
    return *found, before, state(place)


def test_no_tool_of_ray_gets_in(tried):
    assert not {key: said for key, (code, said) in tried[0].items() if code == 0}
    unclear = {
        key: said for key, (_, said) in tried[0].items() if key[0] != "stranger" and not re.search(REFUSED, said)
    }
    assert not unclear


def test_the_rest_does_nothing(tried):
    """401 without, 403 with a wrong token; 000 where nobody can connect: by the firewall, or to the dashboard."""
    for (host, token), statuses in tried[1].items():
        for name, status in statuses.items():
            far = host == "stranger" or ("{dashboard}" in name and host != "head")
            assert status == ("000" if far else "403" if token else "401"), (host, name)


def test_nothing_has_changed(tried):
    assert tried[2] == tried[3]
    assert list(tried[2]["nodes"].values()) == ["ALIVE"] * 2


def test_with_the_token_the_same_is_done(place, words, tried):
    """So it was the token that was missing: tried from the head, by the same user."""
    head = place("head")
    wanted = ("ray status", "ray job submit", "write the GCS", "be a Ray client")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda name: attempt(head, command(name, words, "head"), head.token()), wanted))
    assert [code for code, _ in done] == [0] * 4, done
    assert submitted(state(place)) == submitted(tried[3]) + 1


def submitted(seen):
    """Number of jobs that `ray job submit` made; drivers are listed beside them, without such a name."""
    return sum(map(bool, seen["jobs"]))

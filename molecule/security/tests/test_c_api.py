"""The public API, from a host of no cluster: who has no key, the wrong one, or sends what no client sends."""

import json
import time

import pytest

UNITS = ("raymetal-gateway.service",)
BODY = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "What is the capital of France?"}]})
MARK = "/v1/smuggled-0815"
INNER = f"PATCH {MARK} HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def keys(variables):
    return {one["name"]: one["key"] for one in variables["gateway_api_keys"]}


@pytest.fixture(scope="module")
def send(place):
    """Return a function that sends requests as they are from the stranger, and returns status and body of each answer.

    A connection that was reset has status 0.
    """
    stranger, edge = place("stranger"), place("edge")
    stranger.run("sh", "-c", "cat > /srv/strange/ca.pem", input=edge.read("/etc/raymetal/authority/ca.pem"))

    def run(*requests):
        command = ["python3", "/srv/strange/send.py", edge.address, "8080", "/srv/strange/ca.pem"]
        done = stranger.run(*command, user="guest", input=json.dumps(requests))
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)
        return [(int(a.split()[1]) if a else 0, a.partition("\r\n\r\n")[2]) for a in answers]

    return run


def post(key="", body=BODY, length=None, headers=(), path="/v1/chat/completions"):
    lines = [f"POST {path} HTTP/1.1", "Host: edge", "Connection: close", "Content-Type: application/json", *headers]
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, f"Content-Length: {len(body) if length is None else length}", "", body])


def test_with_a_key_the_model_answers(send, keys):
    ((status, body),) = send(post(keys["full"]))
    assert status == 200 and json.loads(body)["choices"][0]["message"]["content"] == "Paris"


def test_everybody_else_is_refused_in_the_shape_of_openai(send, keys):
    asked = {
        "no key": (post(), 401, "invalid_api_key"),
        "a wrong key": (post("0" * 40), 401, "invalid_api_key"),
        "the hash of nothing": (post("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), 401, None),
        "a key for another model": (post(keys["other"]), 403, "model_not_found"),
        "an oversized body": (post(keys["full"], length=10_485_761), 413, "request_too_large"),
        "no key, for the routes": (post(path="/-/routes"), 401, "invalid_api_key"),
        "no key, for a hidden route": (post(path="/.raymetal/chat"), 404, None),
    }
    answers = dict(zip(asked, send(*(request for request, _, _ in asked.values())), strict=True))
    for name, (_, status, code) in asked.items():
        assert answers[name][0] == status, (name, answers[name])
        error = json.loads(answers[name][1])["error"]
        assert set(error) == {"message", "type", "param", "code"} and code in (None, error["code"]), name


def test_headers_that_do_not_fit_are_refused(send, keys):
    answers = send(
        post(keys["full"], headers=[f"X-Long: {'x' * 1_200_000}"]),
        post(keys["full"], headers=[f"X-{number}: y" for number in range(500)]),
    )
    # What is still on its way when the gateway closes may end the connection before its answer is read.
    assert {status for status, _ in answers} <= {0, 400}, answers


def test_no_request_is_smuggled_within_another(send, keys, place):
    """Whatever is answered, no node has seen what was hidden in a body, or in a header."""
    full = keys["full"]
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: edge\r\nAuthorization: Bearer {full}\r\n"
    chunked = f"0\r\n\r\n{INNER}"
    asked = {
        "CL.TE": f"{head}Content-Length: {len(chunked)}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}",
        "TE.CL": f"{head}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{len(INNER):x}\r\n{INNER}\r\n0\r\n\r\n",
        "TE.TE": f"{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\nContent-Length: 4\r\n\r\n{chunked}",
        "a space before the colon": f"{head}Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n{chunked}",
        "a vertical tab": f"{head}Transfer-Encoding:\x0bchunked\r\nContent-Length: 5\r\n\r\n{chunked}",
        "two lengths": f"{head}Content-Length: 0\r\nContent-Length: {len(INNER)}\r\n\r\n{INNER}",
        "a list of lengths": f"{head}Content-Length: 0, {len(INNER)}\r\n\r\n{INNER}",
        "a length with a sign": f"{head}Content-Length: +{len(INNER)}\r\n\r\n{INNER}",
        "an empty length": f"{head}Content-Length: \r\n\r\n{INNER}",
        "a line end in a header": f"{head}X-A: b\rX-B: c\r\nContent-Length: 0\r\n\r\n{INNER}",
        "an empty header name": f"{head}: a\r\nContent-Length: 0\r\n\r\n{INNER}",
    }
    statuses = {name: status for name, (status, _) in zip(asked, send(*asked.values()), strict=True)}
    print(statuses)
    assert all(status in (400, 411, 413) for status in statuses.values()), statuses
    # A node that saw it would have logged its method, as it does with one that comes by another way.
    logged = "cat /var/lib/raymetal/ray/session_latest/logs/serve/*.log | grep -c 'PATCH /'"

    def seen():
        return sum(int(place(node).run("sh", "-c", logged).stdout) for node in ("head", "worker1"))

    assert seen() == 0
    place("worker1").run("curl", "-s", "-m", "20", "-X", "PATCH", f"http://127.0.0.1:8000{MARK}")
    deadline = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < deadline, "no log tells of methods"


def test_of_two_requests_on_one_connection_the_second_needs_a_key_too(send, keys):
    first = post(keys["full"]).replace("Connection: close", "Connection: keep-alive")
    ((status, body),) = send(first + post())
    assert status == 200 and " 401 " in body and '"Paris"' in body, body


def test_plain_http_and_old_tls_get_nothing(place):
    edge, stranger = place("edge").address, place("stranger")
    assert stranger.run("curl", "-s", "-m", "10", f"http://{edge}:8080/v1/models").returncode != 0
    old = ["curl", "-sk", "-m", "10", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"]
    assert stranger.run(*old, f"https://{edge}:8080/v1/models").returncode == 35
    assert stranger.run("curl", "-s", "-m", "10", f"https://{edge}:8080/v1/models").returncode == 60


def test_the_metrics_of_the_gateway_are_its_own(place):
    edge = place("edge")
    assert place("stranger").run("curl", "-s", "-m", "10", f"http://{edge.address}:8405/metrics").returncode == 28
    assert edge.run("curl", "-sf", "-m", "10", "http://127.0.0.1:8405/metrics").returncode == 0

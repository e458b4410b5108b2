"""Every listening port of head and worker, found as it is, and what it answers to somebody without the token."""

from __future__ import annotations

import pytest

UNITS = ("raymetal.service",)
NODES = ("head", "worker1")
# Health pages, for everybody; and the dashboard's first page, which is empty without the token.
OPEN_PATHS = {"/": ("dashboard",)} | dict.fromkeys(
    ("/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz"), ("dashboard", "dashboard agent")
)
# What each process may have. A listener that is not here, or answers otherwise, stops the test: docs/security.md.
EXPECTED = {
    "sshd": {"ssh"},
    "GCS": {"gRPC, token"},
    "raylet": {"gRPC, token"},
    "dashboard": {"HTTP, token", "gRPC, token", "metrics"},
    "dashboard agent": {"HTTP, token", "gRPC, token", "metrics"},
    "runtime environment agent": {"HTTP, token"},
    "autoscaler": {"metrics"},
    "Ray client server": {"gRPC, token"},
    "Serve proxy": {"open HTTP", "gRPC, token"},
    "Serve replica": {"gRPC, token"},
    "Ray worker": {"gRPC, token"},
}


def judged(process, answer):
    """What a listener is, by what it answers without a token."""
    if answer["kind"] == "http":
        closed = {path: status for path, status in answer["http"].items() if process not in OPEN_PATHS.get(path, ())}
        if set(closed.values()) <= {401, 403}:
            return "HTTP, token"
        return "metrics" if answer["metrics"] else "open HTTP"
    if answer["kind"] == "grpc":
        codes = set(answer["grpc"].values())
        return "gRPC, token" if codes == {"UNAUTHENTICATED", "UNIMPLEMENTED"} else f"gRPC: {codes}"
    return answer["kind"]


@pytest.fixture(scope="module", params=NODES)
def answers(request, place):
    """What guest is answered on a node: without a token, with a wrong one, with the right one."""
    here = place(request.param)
    listeners = here.listeners()
    print(f"{here.name}: {len(listeners)} listeners")
    return here.probe(listeners, "", "0" * 64, place("head").token())


def test_what_listens_asks_for_the_token_or_is_known_not_to(answers):
    found = {one: judged(one.process, answer) for one, answer in answers[0].items()}
    for one, what in sorted(found.items()):
        print(f"{one.process:26} {one.address}:{one.port} {what}")
    assert not {one: what for one, what in found.items() if what not in EXPECTED.get(one.process, ())}
    missing = {"sshd", "raylet", "dashboard agent", "runtime environment agent"} - {one.process for one in found}
    assert not missing


def test_a_wrong_token_is_as_good_as_none(answers):
    for one, answer in answers[1].items():
        assert judged(one.process, answer) in EXPECTED[one.process], (one, answer)


def test_with_the_token_each_of_them_answers(answers):
    """So the refusals above are the token's."""
    for one, answer in answers[2].items():
        if one.process != "sshd":
            assert not {401, 403} & set(answer["http"].values()), (one, answer)
            assert "UNAUTHENTICATED" not in answer["grpc"].values(), (one, answer)
            assert answer["http"] or set(answer["grpc"].values()) - {"UNIMPLEMENTED"}, (one, answer)


def test_the_dashboard_with_its_jobs_is_on_the_loopback(place):
    assert {one.address for one in place("head").listeners() if one.port == 8265} == {"127.0.0.1"}


def test_a_stranger_reaches_ssh_and_the_api_only(place):
    """What the token does not cover is closed by the firewall: metrics, and the Serve proxies, which ask for no key."""
    hosts = [place(name) for name in (*NODES, "edge")]
    listeners = {one for here in hosts for one in here.listeners() if one.address == here.address}
    (answers,) = place("stranger").probe(listeners, "")
    found = {(one.process, one.address, one.port) for one, answer in answers.items() if answer["kind"] != "closed"}
    assert found == {("sshd", here.address, 22) for here in hosts} | {("gateway", place("edge").address, 8080)}
    # The gateway itself reaches the proxies.
    assert place("edge").run("curl", "-sf", "-m", "10", f"http://{place('worker1').address}:8000/").returncode == 0

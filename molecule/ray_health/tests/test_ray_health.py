"""The health job works on every node both ways, and fails when something is missing."""

import json

import pytest

UNITS = ("raymetal.service",)
JOB = (
    "cd /etc/raymetal/health && set -a && . /etc/raymetal/ray.env && RAY_ADDRESS={head}:6380 "
    "runuser -u raymetal -- /opt/raymetal/env/current/bin/python ray_cluster_healthcheck.py "
    "--timeout 40 --json - {more}"
)


@pytest.fixture
def job(host):
    """Run the job by hand on the head; returns exit status, text and report."""
    if host.backend.get_hostname() != "head":
        pytest.skip("is asked on head")
    address = host.ansible.get_variables()["ansible_host"]

    def run(more):
        done = host.run("bash -c '" + JOB.format(head=address, more=more) + "'")
        line = [text for text in done.stdout.splitlines() if text.startswith('{"ok":')][-1]
        return done.rc, done.stdout, json.loads(line)

    return run


def test_every_node_and_logical_gpu_did_work(job):
    status, text, report = job("--expect expected_nodes.json")
    assert status == 0 and report["ok"] and len(report["nodes"]) == 2
    assert [len(node["gpu_tasks"]) for node in report["nodes"]] == [2, 2]
    assert all(node["store_ok"] for node in report["nodes"])
    assert "[CPU] Tasks ran on 2 unique hosts" in text and "completed successfully" in text


def test_a_missing_node_and_a_missing_gpu_are_named(job, host):
    address = host.ansible.get_variables()["ansible_host"]
    expected = json.dumps([{"address": address, "gpus": 3}, {"address": "192.0.2.9", "gpus": 0}]).replace('"', '\\"')
    status, _, report = job(f'--expect-json "{expected}"')
    problems = " ".join(report["problems"])
    assert status == 1 and not report["ok"]
    assert "192.0.2.9" in problems and address in problems and "3" in problems

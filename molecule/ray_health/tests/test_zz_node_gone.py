"""The playbook fails and says which node is gone; last, as the worker is away for a while after it."""

import pytest

UNITS = ("raymetal.service",)


def test_the_playbook_fails_when_a_node_is_gone(host, playbook):
    if host.backend.get_hostname() != "worker":
        pytest.skip("is asked on worker")
    address = host.ansible.get_variables()["ansible_host"]
    host.run_expect([0], "systemctl stop raymetal")
    result = playbook("site.yml", "--tags", "health", variables={"cluster_health_runs": ["python"]})
    host.run_expect([0], "systemctl start raymetal")
    assert result.returncode != 0
    assert f"ray_health: node {address} is not alive; do:" in " ".join(result.stdout.split()), result.stdout[-3000:]

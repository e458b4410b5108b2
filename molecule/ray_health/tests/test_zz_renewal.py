"""New certificates for all of Ray's processes, on a cluster that runs."""

import re

import pytest
from trial import host_of

UNITS = ("raymetal.service",)
PEM = "/etc/raymetal/tls/ray.pem"
LONGER = {"ray_node_tls_days": 2900, "certificate_renew_days": 2000, "cluster_health_runs": ["python"]}
SHOWN = (
    f"openssl s_client -alpn h2 -tls1_2 -connect {{address}}:6392 -cert {PEM} -key {PEM} </dev/null 2>/dev/null"
    " | openssl x509 -noout -checkend 216000000"  # 2,500 days
)


@pytest.mark.soak
def test_certificates_are_renewed_by_a_restart_of_all_nodes(host, playbook):
    if host.backend.get_hostname() != "head":
        pytest.skip("is asked on head")
    nodes = {name: host_of(name) for name in ("head", "worker")}
    before = {name: node.check_output(f"sha256sum {PEM}") for name, node in nodes.items()}
    for expected in ({True}, {False}):
        result = playbook("molecule/ray_health/converge.yml", variables={**LONGER, "cluster_accept_outage": True})
        assert result.returncode == 0, result.stdout[-4000:]
        recap = re.findall(r"(?m)^(head|worker)\s+: ok=\d+\s+changed=(\d+)", result.stdout)
        assert {count != "0" for _, count in recap} == expected, result.stdout[-3000:]
    for name, node in nodes.items():
        assert node.check_output(f"sha256sum {PEM}") != before[name]
        address = node.ansible.get_variables()["ansible_host"]
        assert "will not expire" in node.check_output(SHOWN.format(address=address)), "the process has the new one"

"""Last: what the role made is removed, and only that."""

import json

import pytest

OURS = "find /etc/raymetal /run/raymetal-gateway /etc/systemd/system -name '*raymetal*' -o -path '/etc/raymetal/*'"


@pytest.fixture
def remove(playbook, tmp_path):
    def run(cluster):
        # As teardown.yml does.
        tasks = [
            {"name": "Remove", "ansible.builtin.import_role": {"name": "gateway", "tasks_from": "remove"}},
            {
                "name": "Remove its certificate",
                "ansible.builtin.import_role": {"name": "certificate", "tasks_from": "remove"},
                "vars": {"certificate_path": "{{ gateway_certificate_file }}"},
                "when": "__gateway_cluster.stdout in ['', cluster_name]",
            },
        ]
        play = {
            "name": "Remove the gateway",
            "hosts": "gateway",
            "gather_facts": False,
            "become": True,
            "tasks": tasks,
        }
        (tmp_path / "play.yml").write_text(json.dumps([play]))
        variables = {
            "cluster_name": cluster,
            "cluster_config_dir": "/etc/raymetal",
            "certificate_authority_host": "gate",
        }
        return playbook(tmp_path / "play.yml", variables=variables)

    return run


def test_the_gateway_of_another_cluster_stays(host, remove):
    result = remove("other")
    assert result.returncode == 0 and "belongs to cluster trial and stays" in result.stdout, result.stdout[-3000:]
    assert "changed=0" in result.stdout and host.service("raymetal-gateway").is_running


def test_nothing_is_left(host, remove):
    assert remove("trial").returncode == 0
    assert host.run(OURS).stdout == ""
    assert host.run("pgrep haproxy").rc == 1
    assert not {"0.0.0.0:8080", "0.0.0.0:8405"} & set(host.check_output("ss -Hltn").split())
    again = remove("trial")
    assert again.returncode == 0 and "changed=0" in again.stdout, again.stdout[-3000:]

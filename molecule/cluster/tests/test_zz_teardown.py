"""What a teardown asks, removes, and leaves. The hosts of a module are taken one after the other, head first."""

import time

import pytest


def only(host, name):
    if host.backend.get_hostname() != name:
        pytest.skip(f"is asked on {name}")


def test_teardown_asks_for_the_name(host, playbook):
    only(host, "head")
    result = playbook("teardown.yml", variables={"teardown_confirm": "another"})
    assert result.returncode != 0 and "is not the name of this cluster, nothing was changed" in " ".join(
        result.stdout.split()
    )
    assert host.service("raymetal").is_running


# The shared volume at /opt/raymetal belongs to the tests: a directory of the same form stands for it here.
TEARDOWN = {"teardown_confirm": "trial", "gpu_host_root": "/srv/raymetal", "model_store_root": "/srv/raymetal/models"}


def test_teardown_leaves_nothing(host, playbook):
    if host.backend.get_hostname() == "head":
        playbook("molecule/cluster/make_root.yml")
        started = time.monotonic()
        result = playbook("teardown.yml", variables=TEARDOWN)
        assert result.returncode == 0, result.stdout[-4000:]
        print(f"teardown took {time.monotonic() - started:.0f} s")
    assert host.run("ps -eo args | grep -E '[r]aylet|[r]ay::|[V]LLM|[g]cs_server|[h]aproxy'").stdout == ""
    listening = host.check_output("ss -ltnH | awk '{print $4}' | sed 's/.*://' | sort -u").split()
    assert set(listening) <= {"22", "53"}, listening
    assert not host.user("raymetal").exists and host.check_output("nft list tables") == ""
    for path in (
        "/etc/raymetal",
        "/var/lib/raymetal",
        "/etc/systemd/system/raymetal.service",
        "/etc/systemd/system/raymetal-firewall.service",
        "/srv/raymetal/env",
        "/etc/systemd/system/raymetal-gateway.service",
    ):
        assert not host.file(path).exists, path
    assert host.file("/srv/raymetal/models/smollm2/1/config.json").exists, "models stay unless asked for"


def test_another_teardown_takes_the_models_if_asked(host, playbook):
    """That another one changes nothing else is a test of ray_node."""
    only(host, "worker2")  # the last host: the others have been looked at
    result = playbook("teardown.yml", variables={**TEARDOWN, "gpu_host_remove_models": True})
    assert result.returncode == 0 and not host.file("/srv/raymetal").exists, result.stdout[-4000:]

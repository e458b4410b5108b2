"""The host is prepared: a user that nobody logs in as, directories that others cannot read, limits."""

import json


def test_service_user_cannot_log_in(host):
    user = host.user("raymetal")
    assert user.exists and user.shell == "/usr/sbin/nologin" and user.uid < 1000
    assert user.home == "/var/lib/raymetal"


def test_directories_belong_to_whom_they_should(host):
    for path, owner, group, mode in (
        ("/opt/raymetal", "root", "root", 0o755),
        ("/etc/raymetal", "root", "raymetal", 0o751),
        ("/var/lib/raymetal", "raymetal", "raymetal", 0o750),
    ):
        found = host.file(path)
        assert (found.user, found.group, found.mode) == (owner, group, mode), path


def test_limits_hold_in_a_session_of_the_user(host):
    limits = host.check_output("runuser -u raymetal -- sh -c 'ulimit -n; ulimit -l'").split()
    assert limits == ["16384", "64"]


def test_facts_of_a_host_without_gpu_say_none_and_do_not_fail(host):
    arguments = "python_version=3.11 controller_time=0 user=raymetal marker=/etc/raymetal/cluster peer=127.0.0.1"
    facts = host.ansible("gpu_host_facts", arguments, become=True, check=False)["ansible_facts"]["gpu_host"]
    assert facts["gpus"] == [] and "nvidia-smi" in facts["gpu_error"]
    assert facts["systemd"] and facts["os"]["id"] == "debian" and facts["python"]["version"].startswith("3.11.")
    assert facts["cluster"] == "raymetal"
    assert facts["memory_bytes"] > 2**30 and facts["route_address"] == "127.0.0.1"
    assert json.dumps(facts)

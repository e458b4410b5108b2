"""Ray's own processes speak TLS, with the cluster's authority only, and refuse who has no certificate of it."""

import re

import pytest

UNITS = ("raymetal.service",)
PEM, AUTHORITY = "/etc/raymetal/tls/ray.pem", "/etc/raymetal/tls/ray-authority.pem"
# TLS 1.2, where a refusal is part of the handshake.
CONNECT = (
    f"timeout 20 openssl s_client -tls1_2 -CAfile {AUTHORITY} -no-CApath -no-CAstore -verify_return_error "
    "-verify_ip {address} -connect {address}:{port} {more} </dev/null"
)
GRPC = {"gcs_server": 1, "raylet": 2}  # process -> least number of its ports: GCS; node manager and object manager


@pytest.fixture(scope="module")
def address(host):
    return host.ansible.get_variables()["ansible_host"]


@pytest.fixture(scope="module")
def ports(host):
    """The ports that the processes listen on for others: process -> ports."""
    found = {}
    for line in host.check_output("ss -Hltnp").splitlines():
        port, process = re.search(r":(\d+) .*\(\(\"([^\"]+)", line).groups()
        if not line.split()[3].startswith("127."):
            found.setdefault(process, set()).add(int(port))
    return found


def test_ports_of_gcs_and_raylet_want_a_certificate(host, address, ports):
    wanted = GRPC if host.backend.get_hostname() == "head" else {"raylet": GRPC["raylet"]}
    assert {name for name in GRPC if name in ports} == set(wanted)
    for name, least in wanted.items():
        assert len(ports[name]) >= least
        for port in ports[name]:
            good = host.run(CONNECT.format(address=address, port=port, more=f"-cert {PEM} -key {PEM}"))
            assert good.rc == 0 and "Verify return code: 0 (ok)" in good.stdout, (name, port, good.stdout + good.stderr)
            bare = host.run(CONNECT.format(address=address, port=port, more=""))
            assert bare.rc == 1 and "alert" in bare.stderr, (name, port, bare.stdout + bare.stderr)


def test_a_certificate_of_another_authority_is_refused(host, address, ports):
    host.run_expect(
        [0],
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN={address} "
        "-keyout /tmp/other.pem -out /tmp/other.crt && cat /tmp/other.crt >> /tmp/other.pem",
    )
    try:
        for port in ports["raylet"]:
            more = "-cert /tmp/other.pem -key /tmp/other.pem"
            refused = host.run(CONNECT.format(address=address, port=port, more=more))
            assert refused.rc == 1 and "alert" in refused.stderr, (port, refused.stdout + refused.stderr)
    finally:
        host.run_expect([0], "rm /tmp/other.pem /tmp/other.crt")


def test_only_the_service_user_reads_the_key(host):
    file = host.file(PEM)
    assert (file.user, file.group, file.mode) == ("raymetal", "raymetal", 0o600)
    assert "PRIVATE KEY" not in host.file(AUTHORITY).content_string
    assert host.run(f"runuser -u nobody -- cat {PEM}").rc != 0


def test_tools_work_by_it_and_not_without(host, address):
    if host.backend.get_hostname() != "head":
        pytest.skip("is asked on head")
    tool = (
        "set -a && . /etc/raymetal/ray.env && {change} "
        f"timeout 25 runuser -u raymetal -- /opt/raymetal/env/current/bin/ray status --address {address}:6380"
    )
    assert "/4.0 CPU" in host.check_output("bash -c '" + tool.format(change="") + "'")
    assert host.run("bash -c '" + tool.format(change="RAY_USE_TLS=0") + "'").rc != 0

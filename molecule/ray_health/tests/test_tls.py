"""Ray's own processes speak TLS, with the cluster's authority only, and refuse who has no certificate of it."""

import re

import pytest

UNITS = ("raymetal.service",)
PEM, AUTHORITY = "/etc/raymetal/tls/ray.pem", "/etc/raymetal/tls/ray-authority.pem"
# TLS 1.2, where a refusal is part of the handshake; gRPC hangs up on who does not offer HTTP/2.
CONNECT = (
    f"timeout 20 openssl s_client -alpn h2 -tls1_2 -CAfile {AUTHORITY} -no-CApath -no-CAstore -verify_return_error "
    "-verify_ip {address} -connect {address}:{port} {more} </dev/null"
)
NODE, HEAD = {6391, 6392, 6393}, {6380, 10001}  # node manager, object manager, agent; GCS, Ray client
WORKERS = range(10002, 20000)


@pytest.fixture(scope="module")
def address(host):
    return host.ansible.get_variables()["ansible_host"]


@pytest.fixture(scope="module")
def ports(host):
    """The ports of gRPC that are open."""
    found = {int(line.split()[3].rsplit(":", 1)[1]) for line in host.check_output("ss -Hltn").splitlines()}
    return {port for port in found if port in NODE | HEAD or port in WORKERS}


def test_ports_want_a_certificate(host, address, ports):
    assert ports >= (NODE | HEAD if host.backend.get_hostname() == "head" else NODE)
    for port in ports:
        good = host.run(CONNECT.format(address=address, port=port, more=f"-cert {PEM} -key {PEM}"))
        assert good.rc == 0, (port, good.stdout + good.stderr)
        bare = host.run(CONNECT.format(address=address, port=port, more=""))
        assert bare.rc == 1 and re.search("alert|unexpected eof", bare.stderr), (port, bare.stdout + bare.stderr)


def test_a_certificate_of_another_authority_is_refused(host, address):
    host.run_expect(
        [0],
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN={address} "
        "-keyout /tmp/other.pem -out /tmp/other.crt && cat /tmp/other.crt >> /tmp/other.pem",
    )
    try:
        for port in NODE:
            more = "-cert /tmp/other.pem -key /tmp/other.pem"
            refused = host.run(CONNECT.format(address=address, port=port, more=more))
            assert refused.rc == 1 and re.search("alert|unexpected eof", refused.stderr), (
                port,
                refused.stdout + refused.stderr,
            )
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
        "cd / && set -a && . /etc/raymetal/ray.env && {change} "
        f"timeout 25 runuser -u raymetal -- /opt/raymetal/env/current/bin/ray status --address {address}:6380"
    )
    assert "/4.0 CPU" in host.check_output("bash -c '" + tool.format(change="") + "'")
    assert host.run("bash -c '" + tool.format(change="RAY_USE_TLS=0") + "'").rc != 0

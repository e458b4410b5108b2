"""The gateway's TLS: versions, chain and name; renewal and replacement of certificates, which cut nothing."""

import socket
import ssl
import warnings

import pytest

UNITS = ("raymetal-gateway.service",)
PORT = 8080
PEM = "/etc/raymetal/tls/gateway.pem"


def test_tls_12_and_13_and_no_older(address, trust):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for version, good in (("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
            connection = socket.create_connection((address, PORT), 10)
            if good:
                with context.wrap_socket(connection) as tls:
                    assert tls.version() == version.replace("_", ".")
            else:
                with connection, pytest.raises(OSError, match=r"PROTOCOL_VERSION|protocol version"):
                    context.wrap_socket(connection)


def test_clients_verify_the_chain_and_the_name(address, trust):
    for context, name, text in (
        (ssl.create_default_context(), address, "unable to get local issuer|self-signed"),
        (trust, "elsewhere.example", "mismatch"),
    ):
        with socket.create_connection((address, PORT), 10) as connection, pytest.raises(ssl.SSLError, match=text):
            context.wrap_socket(connection, server_hostname=name)
    for name in (address, "gate", "localhost"):
        with trust.wrap_socket(socket.create_connection((address, PORT), 10), server_hostname=name):
            pass


def test_plain_http_and_http_2_are_not_answered(address, trust):
    with socket.create_connection((address, PORT), 10) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert b"200" not in connection.recv(999)
    with trust.wrap_socket(socket.create_connection((address, PORT), 10), server_hostname=address) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert b"400 Bad Request" in connection.recv(999)


def serial(address, trust):
    with trust.wrap_socket(socket.create_connection((address, PORT), 10), server_hostname=address) as connection:
        return connection.getpeercert()["serialNumber"]


def test_a_certificate_is_renewed_in_time_and_cuts_no_stream(host, address, trust, playbook, reloaded_without_loss):
    before, key = serial(address, trust), host.check_output(f"openssl pkey -in {PEM} | sha256sum")
    late = {"certificate_renew_days": 365, "certificate_days": 400}
    dry = playbook("playbooks/gateway.yml", "--check", "--diff", variables=late)
    assert dry.returncode == 0 and "changed=1" in dry.stdout and serial(address, trust) == before, dry.stdout[-3000:]
    reloaded_without_loss("renewal", "--tags", "gateway", variables=late)
    assert serial(address, trust) != before
    assert host.check_output(f"openssl pkey -in {PEM} | sha256sum") != key
    again = playbook("playbooks/gateway.yml", variables=late)
    assert again.returncode == 0 and "changed=0" in again.stdout, again.stdout[-3000:]


@pytest.mark.soak
def test_other_names_are_another_certificate(address, trust, playbook):
    more = {"gateway_certificate_names": ["gate", address, "localhost", "api.example", "fd00::5"]}
    result = playbook("playbooks/gateway.yml", variables=more)
    assert result.returncode == 0, result.stdout[-3000:]
    with trust.wrap_socket(socket.create_connection((address, PORT), 10), server_hostname="api.example") as connection:
        assert ("IP Address", "FD00:0:0:0:0:0:0:5") in connection.getpeercert()["subjectAltName"]
    again = playbook("playbooks/gateway.yml", variables=more)
    assert "changed=0" in again.stdout, again.stdout[-3000:]


@pytest.fixture(scope="module")
def own(host, address):
    """Return a function that gives the text of an operator's certificate with chain and key, by the scenario's CA."""

    def make(days):
        script = f"""set -e; cd $(mktemp -d)
            openssl req -newkey rsa:2048 -nodes -keyout key -subj /CN=gate -out request 2>/dev/null
            printf 'subjectAltName=DNS:gate,IP:{address}' > extensions
            openssl x509 -req -in request -CA /etc/raymetal/authority/ca.pem -CAkey /etc/raymetal/authority/ca.key \
                -CAcreateserial -CAserial serial -days {days} -extfile extensions -out certificate 2>/dev/null
            cat certificate /etc/raymetal/authority/ca.pem key"""
        return host.check_output(script) + "\n"

    return make


@pytest.mark.soak
def test_an_own_certificate_takes_its_place_and_is_replaced_by_its_file(
    host, address, trust, own, tmp_path, playbook, reloaded_without_loss
):
    path, variables = tmp_path / "own.pem", {"gateway_certificate": str(tmp_path / "own.pem")}
    serials = [serial(address, trust)]
    for days in (30, 90):
        path.write_text(own(days))
        result = reloaded_without_loss(f"own certificate of {days} days", "--tags", "gateway", variables=variables)
        serials.append(serial(address, trust))
        private = path.read_text().split("PRIVATE KEY-----")[1].split()[0]
        assert private not in result.stdout + result.stderr
    assert len(set(serials)) == 3
    assert host.file("/etc/raymetal/gateway/operator.pem").mode == 0o640
    back = playbook("playbooks/gateway.yml")
    assert back.returncode == 0, back.stdout[-3000:]
    assert serial(address, trust) not in serials[1:]


@pytest.mark.soak
def test_an_interrupted_renewal_is_finished(host, address, trust, playbook):
    """Killed after the key was made, while a file was written, and after the certificate came but before the reload."""
    before = serial(address, trust)
    host.check_output(
        "cd /etc/raymetal/tls; openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 > .gateway.pem.key;"
        " head -c 100 gateway.pem > .gateway.pem.new"
    )
    assert serial(address, trust) == before
    result = playbook("playbooks/gateway.yml", variables={"certificate_renew_days": 399, "certificate_days": 400})
    assert result.returncode == 0, result.stdout[-3000:]
    assert host.check_output("ls -A /etc/raymetal/tls") == "gateway.pem" and serial(address, trust) != before
    # A pair that does not match is replaced; what runs goes on until then.
    other = f"openssl genpkey -algorithm RSA 2>/dev/null; sed -n '/BEGIN CERT/,$p' {PEM}"
    host.check_output(f"({other}) > /root/mixed; cat /root/mixed > {PEM}; rm /root/mixed")
    assert host.run("haproxy -c -q -f /etc/raymetal/gateway/haproxy.cfg").rc == 1
    result = playbook("playbooks/gateway.yml")
    assert result.returncode == 0, result.stdout[-3000:]
    assert host.run("haproxy -c -q -f /etc/raymetal/gateway/haproxy.cfg").rc == 0
    assert "changed=0" in playbook("playbooks/gateway.yml").stdout


@pytest.mark.soak
def test_an_authority_without_its_key_is_not_replaced_in_silence(host, playbook):
    host.check_output("mv /etc/raymetal/authority/ca.key /root/")
    try:
        result = playbook("playbooks/gateway.yml")
        assert result.returncode != 0 and "is there without its key. To do: put" in " ".join(result.stdout.split())
    finally:
        host.check_output("mv /root/ca.key /etc/raymetal/authority/")
    assert "changed=0" in playbook("playbooks/gateway.yml").stdout

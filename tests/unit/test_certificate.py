"""The authority and the certificates of hosts, by openssl itself; each module as Ansible runs it."""

from __future__ import annotations

import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import load, run_module

certificate = load("roles/certificate/filter_plugins/certificate.py")
AUTHORITY = "roles/certificate/library/certificate_authority.py"
FILE = "roles/certificate/library/certificate_file.py"
NAMES = ["gate1", "192.0.2.9", "fd00::5"]


class Host:
    """One host with an authority and a file; ``run`` does what the role does."""

    def __init__(self, root: Path) -> None:
        self.authority, self.path = root / "authority", root / "tls/gateway.pem"

    def made(self, check: bool = False, **params: Any) -> dict[str, Any]:
        return run_module(AUTHORITY, check=check, directory=str(self.authority), **params)

    def asked(self, authority: str, check: bool = False, **params: Any) -> dict[str, Any]:
        given = {"path": str(self.path), "names": NAMES, "authority": authority, **params}
        return run_module(FILE, check=check, **given)

    def run(self, **params: Any) -> tuple[str, bool]:
        """Why there was a new certificate, and whether anything changed."""
        known = self.made()
        asked = self.asked(known["authority"], **params)
        if asked.get("request"):
            names = params.get("names", NAMES)
            signed = self.made(request=asked["request"], names=names, days=params.pop("days", 365))
            done = self.asked(known["authority"], certificate=signed["certificate"], **params)
            assert done.get("changed"), done
        assert "needed" in asked, asked
        return asked["needed"], asked["changed"] or known["changed"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_whole_file_that_openssl_takes_as_key_certificate_and_authority(host: Host) -> None:
    assert host.run() == ("there is none", True)
    assert host.run() == ("", False)
    assert (host.path.stat().st_mode & 0o777, (host.authority / "ca.key").stat().st_mode & 0o777) == (0o600, 0o600)
    assert sorted(os.listdir(host.path.parent)) == ["gateway.pem"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(host.path, host.path)
    context.load_verify_locations(host.path)
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(host.authority / "ca.pem")]
    subprocess.run([*verify, "-verify_ip", "fd00::5", str(host.path)], check=True, capture_output=True)


def test_a_dry_run_says_and_makes_nothing(host: Host) -> None:
    known = host.made(check=True)
    assert known["changed"] and known["authority"] == "" and not host.authority.exists()
    assert host.asked("", check=True)["needed"] == "there is none" and not host.path.parent.exists()
    host.run()
    assert not host.made(check=True)["changed"]
    before = host.path.read_bytes()
    told = host.asked((host.authority / "ca.pem").read_text(), check=True, renew_days=366)
    assert told["changed"] and told["request"] == "" and host.path.read_bytes() == before


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"renew_days": 366}, "it ends in less than 366 days"),
        ({"names": ["gate1"]}, "it is for DNS:gate1, IP:192.0.2.9"),
    ],
)
def test_renewed_in_time_and_for_other_names(host: Host, params: dict[str, Any], text: str) -> None:
    host.run()
    needed, changed = host.run(**params)
    assert needed.startswith(text) and changed


def test_what_is_broken_is_made_anew(host: Host) -> None:
    host.run()
    text = host.path.read_text()
    other = subprocess.run(["openssl", "genpkey", "-algorithm", "ED25519"], capture_output=True, text=True, check=True)
    for broken in (other.stdout + text[text.index("-----BEGIN CERT") :], text[: len(text) // 4], "", text[:100]):
        host.path.write_text(broken)
        assert host.run()[1]
        assert host.run() == ("", False)


def test_another_authority_is_another_certificate(host: Host) -> None:
    host.run()
    for name in ("ca.key", "ca.pem"):
        (host.authority / name).unlink()
    assert "error" in host.run()[0] and host.run() == ("", False)


def test_interrupted_runs_are_finished(host: Host) -> None:
    host.authority.mkdir()
    key = subprocess.run(["openssl", "genpkey", "-algorithm", "ED25519"], capture_output=True, text=True, check=True)
    (host.authority / "ca.key").write_text(key.stdout)  # killed before its certificate came
    host.path.parent.mkdir()
    (host.path.parent / ".gateway.pem.key").write_text("half")
    (host.path.parent / ".gateway.pem.new").write_text("half")
    host.run()
    assert (host.authority / "ca.key").read_text() == key.stdout
    assert host.run() == ("", False) and os.listdir(host.path.parent) == ["gateway.pem"]


def test_what_must_not_pass(host: Host) -> None:
    host.run()
    known = host.made()["authority"]
    asked = host.asked(known, names=["gate2"])
    signed = host.made(request=asked["request"], names=["gate2"])["certificate"]
    host.asked(known, names=["gate3"])  # another run at the same time
    failed = host.asked(known, names=["gate2"], certificate=signed)
    assert failed["failed"] and "is for another key" in failed["msg"]
    (host.authority / "ca.key").rename(host.authority / "away")
    assert "is there without its key" in host.made()["msg"]
    (host.authority / "ca.key").write_text(host.path.read_text())
    assert "are no pair" in host.made()["msg"]


def test_the_authority_decides_the_names_not_the_request(host: Host) -> None:
    config = host.path.parent.parent / "request.cnf"
    config.write_text(
        "[req]\nprompt=no\ndistinguished_name=n\nreq_extensions=e\n[n]\nCN=x\n[e]\nsubjectAltName=DNS:bank\n"
    )
    make = ["openssl", "req", "-new", "-newkey", "ed25519", "-nodes", "-keyout", "/dev/null", "-config", str(config)]
    request = subprocess.run(make, capture_output=True, text=True, check=True).stdout
    signed = host.made(request=request, names=["gate1"])["certificate"]
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-text"], input=signed, capture_output=True, text=True, check=True
    )
    assert "DNS:gate1" in text.stdout and "bank" not in text.stdout and "CA:FALSE" in text.stdout


@pytest.mark.parametrize(
    ("change", "variable", "text"),
    [
        ({"names": []}, "certificate_names", "for no name"),
        ({"names": ["a, DNS:b"]}, "certificate_names", "neither a host name nor an address"),
        ({"names": ["a\nb"]}, "certificate_names", "neither a host name nor an address"),
        ({"authority_host": "x"}, "certificate_authority_host", "no host of the inventory"),
        ({"renew_days": 365}, "certificate_renew_days", "below certificate_days"),
        ({"authority_days": 100}, "certificate_authority_days", "certificate_days, 365"),
    ],
)
def test_problems(change: dict[str, Any], variable: str, text: str) -> None:
    good = {
        "names": ["gate1", "*.example.com", "192.0.2.1", "fd00::1"],
        "authority_host": "h",
        "hosts": ["h"],
        "days": 365,
        "renew_days": 60,
        "authority_days": 3650,
    }
    assert certificate.certificate_problems(**good) == []
    (problem,) = certificate.certificate_problems(**{**good, **change})
    assert problem["variable"] == variable and text in problem["problem"] and problem["do"]

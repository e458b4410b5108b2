"""What is published, to whom, and under which certificate: relations between the gateway's inputs."""

from __future__ import annotations

import datetime
import ipaddress
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

Problem = dict[str, Any]
DER = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def gateway_certificate_problem(pem: str, now: datetime.datetime | None = None) -> tuple[str, str] | None:
    """What is wrong with a PEM text of certificate, chain and key, and what to do; nothing of the key is in it."""
    now = now or datetime.datetime.now(datetime.UTC)
    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        return (
            "has no certificate in PEM form",
            "put the certificate first, then its chain, then the key",
        )
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except TypeError:
        return "its key has a passphrase, which nobody could type", "remove it: openssl pkey -in KEY -out PLAIN"
    except Exception:  # noqa: BLE001 - the library has many, and their texts may quote the file
        return "has no private key that can be read", "put the certificate first, then its chain, then the key"
    leaf = chain[0]
    if leaf.public_key().public_bytes(*DER) != key.public_key().public_bytes(*DER):
        return (
            "its key does not belong to its first certificate",
            "put the gateway's own certificate first",
        )
    for certificate in chain:
        whose = certificate.subject.rfc4514_string() or "the certificate"
        if certificate.not_valid_after_utc <= now:
            return f"{whose} ended on {certificate.not_valid_after_utc:%Y-%m-%d}", "get a new one"
        if certificate.not_valid_before_utc > now:
            begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            return f"{whose} begins at {begins}", "wait, or correct the controller's clock"
    return None


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def gateway_publish_problems(
    address: str, keys: int, is_open: bool, tls: bool, path: str, pem: str | None, limits: dict[str, int]
) -> list[Problem]:
    """Problems of address, keys (their number), certificate (path, and text or None without a file) and ``limits``.

    ``limits``: variable -> value; all must be above 0, and gateway_body_buffer_bytes below gateway_body_limit_bytes.
    """
    found: list[Problem] = []

    def add(variable: str, value: Any, problem: str, do: str) -> None:
        found.append({"variable": variable, "value": value, "problem": problem, "do": do})

    if not _loopback(address) and not keys and not is_open:
        do = "set gateway_api_keys; or, where every client of the network may use the models, gateway_open: true"
        add("gateway_address", address, "publishes the API, and there is no API key", do)
    if keys and is_open:
        add("gateway_open", True, "there are API keys, and it would be open to all", "leave one of the two out")
    if path and not tls:
        add("gateway_certificate", path, "gateway_tls is false", "leave one of the two out")
    elif path and pem is None:
        add("gateway_certificate", path, "is no file on the controller", "write the path of a PEM file")
    elif path and pem is not None and (wrong := gateway_certificate_problem(pem)):
        add("gateway_certificate", path, *wrong)
    for name, value in limits.items():
        if value < 1:
            add(name, value, "is not above 0", "choose a larger number")
    if limits["gateway_body_buffer_bytes"] > limits["gateway_body_limit_bytes"]:
        text = f"is above gateway_body_limit_bytes, {limits['gateway_body_limit_bytes']}"
        add("gateway_body_buffer_bytes", limits["gateway_body_buffer_bytes"], text, "choose a smaller number")
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"gateway_publish_problems": gateway_publish_problems}

"""API keys and certificates of the gateway: the maps that HAProxy reads, and what gate 1 refuses."""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT, load

keys = load("roles/gateway/filter_plugins/gateway_keys.py")
publish = load("roles/gateway/filter_plugins/gateway_publish.py")
validate_role = load("roles/validate/action_plugins/validate_role.py")
KEY = "0123456789abcdef0123456789abcdef"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
GOOD = {"name": "a", "key": KEY}
LIMITS = {"gateway_body_limit_bytes": 100, "gateway_body_buffer_bytes": 10, "gateway_request_seconds": 1}


def test_maps() -> None:
    given = [
        {**GOOD, "requests_per_minute": "6"},
        {"name": "b", "key_sha256": "f" * 64, "models": ["small", "small:lora"]},
    ]
    assert keys.gateway_key_lines(given) == [f"{DIGEST} a 6 0", f"{'f' * 64} b 0 1"]
    assert keys.gateway_model_lines(given) == ["b/small 1", "b/small:lora 1"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "a b"}, "its name is not"),
        ({"name": "a/b"}, "its name is not"),
        ({"key": KEY[1:]}, "shorter than 32"),
        ({"key": f"{KEY} x"}, "characters that no bearer token"),
        ({"key": f"{KEY}ß"}, "characters that no bearer token"),
        ({"key": None}, "neither key nor key_sha256"),
        ({"key_sha256": DIGEST}, "has key and key_sha256"),
        ({"key": None, "key_sha256": DIGEST.upper()}, "is not 64 hexadecimal digits in lower case"),
        ({"models": []}, "names no model"),
        ({"models": ["a b"]}, "has blanks"),
        ({"models": ["#a"]}, "has blanks"),
        ({"models": ["large"]}, "the model large is not served; served are small"),
        ({"requests_per_minute": 0}, "is 0, not 1 to"),
    ],
)
def test_a_wrong_key_is_told_without_it(change: dict[str, Any], text: str) -> None:
    assert keys.gateway_key_problems([{**GOOD, "models": ["small:lora"]}], ["small"]) == []
    (problem,) = keys.gateway_key_problems([{**GOOD, **change}], ["small"])
    assert problem["variable"] == "gateway_api_keys[0]" and text in problem["problem"] and problem["do"]
    assert KEY[1:] not in str(problem) and DIGEST not in str(problem)


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"name": "a", "key": KEY[::-1]}, "another key has the same name"),
        ({"name": "b", "key": KEY}, "is the same key as that of a"),
        ({"name": "b", "key_sha256": DIGEST}, "is the same key as that of a"),
    ],
)
def test_two_keys_that_are_one(second: dict[str, str], text: str) -> None:
    (problem,) = keys.gateway_key_problems([GOOD, second], [])
    assert problem["variable"] == "gateway_api_keys[1]" and text in problem["problem"]


def test_models_are_known_only_where_all_applications_tell_them() -> None:
    llm = {"args": {"llm_configs": [{"model_loading_config": {"model_id": "small"}}]}}
    assert keys.gateway_served_models([llm]) == ["small"]
    for other in ({}, {"args": None}, {"args": {"llm_configs": "x.yml"}}, {"args": {"llm_configs": ["x.yml"]}}):
        assert keys.gateway_served_models([llm, other]) == []


SPEC = yaml.safe_load((ROOT / "roles/gateway/meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
NEEDED = {"gateway_nodes": [], "gateway_backup_nodes": [], "gateway_node_host": "h", "gateway_node_port": 1}


@pytest.mark.parametrize(
    "given",
    ["hush-hush", ["hush-hush"], [{"name": "a", "key": {"x": "hush-hush"}}], [{"name": "a", "kee": "hush-hush"}]],
)
def test_a_key_in_a_wrong_place_is_not_shown(given: Any) -> None:
    values = {**NEEDED, "gateway_api_keys": given}
    problems = validate_role.spec_problems("gateway", SPEC, values)
    told = json.dumps(validate_role.hide(problems, values))
    assert "hush" not in told
    # A key that is a mapping is text to the spec; the rules find it.
    assert problems or keys.gateway_key_problems(given, [])


def test_names_and_models_of_keys_are_shown() -> None:
    values = {"gateway_api_keys": [{"name": "search-team", "key": "hush-hush", "models": ["qwen3-8b"]}]}
    assert validate_role.secrets_of(values) == {"hush-hush"}


@pytest.mark.parametrize(
    ("change", "variable", "text"),
    [
        ({"address": "0.0.0.0"}, "gateway_address", "there is no API key"),
        ({"address": "::"}, "gateway_address", "there is no API key"),
        ({"address": "gate1"}, "gateway_address", "there is no API key"),
        ({"keys": 1, "is_open": True}, "gateway_open", "open to all"),
        ({"path": "/a.pem"}, "gateway_certificate", "is no file"),
        ({"path": "/a.pem", "pem": "x", "tls": False}, "gateway_certificate", "gateway_tls is false"),
        ({"path": "/a.pem", "pem": "x"}, "gateway_certificate", "no certificate in PEM form"),
        ({"limits": {**LIMITS, "gateway_request_seconds": 0}}, "gateway_request_seconds", "is not above 0"),
        ({"limits": {**LIMITS, "gateway_body_buffer_bytes": 101}}, "gateway_body_buffer_bytes", "is above"),
    ],
)
def test_what_is_published(change: dict[str, Any], variable: str, text: str) -> None:
    good = {
        "address": "127.0.0.1",
        "keys": 0,
        "is_open": False,
        "tls": True,
        "path": "",
        "pem": None,
        "limits": LIMITS,
    }
    for fine in ({}, {"address": "0.0.0.0", "keys": 1}, {"address": "0.0.0.0", "is_open": True}, {"address": "::1"}):
        assert publish.gateway_publish_problems(**{**good, **fine}) == []
    (problem,) = publish.gateway_publish_problems(**{**good, **change})
    assert problem["variable"] == variable and text in problem["problem"] and problem["do"]


def test_certificates(tmp_path: Path) -> None:
    def openssl(*arguments: str) -> str:
        done = subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    key = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    other = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    (tmp_path / "key").write_text(key)
    certificate = openssl("req", "-x509", "-new", "-key", "key", "-days", "10", "-subj", "/CN=gate")
    locked = openssl("pkey", "-in", "key", "-aes256", "-passout", "pass:hush")
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    for pem, when, text in (
        (certificate + key, now, None),
        (key + certificate, now, None),
        (key, now, "no certificate"),
        (certificate, now, "no private key"),
        (certificate + other, now, "does not belong"),
        (certificate + locked, now, "passphrase"),
        (certificate + key, now + 11 * day, "CN=gate ended on"),
        (certificate + key, now - day, "CN=gate begins at"),
    ):
        found = publish.gateway_certificate_problem(pem, when)
        assert (found is None) if text is None else (found and text in found[0]), (text, found)

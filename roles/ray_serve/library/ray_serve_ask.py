#!/usr/bin/python
"""Ask a running cluster one question, and change nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_serve_ask
short_description: Ask a running cluster one question, and change nothing
description:
  - Runs on the head, where the token is. What it answers holds no secret that is named or shaped like one; the fields
    are those of module_utils/ray_serve_answers.py.
options:
  question:
    description:
      - C(status) is nodes and applications with replicas, requests and errors. C(list) is the applications alone.
      - C(config) is what runs in the schema that C(serve deploy) takes.
      - C(logs) is the end of the logs of the replicas of I(deployment).
      - C(memory) is memory of nodes, object stores, GPUs and processes, and references to objects.
      - C(timeline) is the trace of the tasks for chrome://tracing. C(tasks) and C(actors) list those.
    type: str
    choices: [status, list, config, logs, memory, timeline, tasks, actors]
    required: true
  url:
    description: The dashboard.
    type: str
    required: true
  token_path:
    description: File with Ray's authentication token.
    type: path
    required: true
  discovery_path:
    description: Ray's list of metrics pages, for C(status).
    type: path
  seconds:
    description: For how long requests are counted, for C(status). Ray tells its counts every ten seconds.
    type: float
    default: 0
  deployment:
    description: A deployment, an application, or application/deployment, for C(logs). Empty for all.
    type: str
    default: ""
  lines:
    description: Last lines of each file, for C(logs).
    type: int
    default: 50
  limit:
    description: Most rows of C(memory), C(tasks) and C(actors).
    type: int
    default: 100
author: Raymetal
"""
EXAMPLES = r"""
- name: Ask what serves
  ray_serve_ask:
    question: status
    url: http://127.0.0.1:8265
    token_path: /etc/raymetal/auth_token
    discovery_path: /var/lib/raymetal/ray/prom_metrics_service_discovery.json
"""
RETURN = r"""
answer:
  description: The answer, see module_utils/ray_serve_answers.py.
  type: dict
  returned: success
"""

import json
import time
import urllib.error
import urllib.parse
from collections.abc import Callable
from typing import Any

from ansible.module_utils import ray_serve_answers as answers
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ray_serve_rest import UNREACHED, Problem, Serve
from ansible.module_utils.ray_serve_totals import Totals, pages, parse, parse_replicas

Answer = dict[str, Any]
Params = dict[str, Any]
PAGE_SECONDS = 30  # as long a busy agent may take for its metrics
WORKER_LOGS = ("worker_err", "worker_out")  # what an engine prints itself


def listed(serve: Serve, path: str) -> tuple[list[dict[str, Any]], int]:
    """Rows of the state API, and how many there are."""
    result = json.loads(serve.get(path))["data"]["result"]
    return result["result"] or [], int(result["total"])


def addresses(serve: Serve) -> dict[str, str]:
    return {node["node_id"]: node["node_ip"] for node in serve.nodes()}


def totals(discovery_path: str) -> tuple[Totals, Totals, list[str]]:
    """What applications and replicas counted, and the addresses of the pages that did not come."""
    apps: Totals = {}
    replicas: Totals = {}
    found = pages(discovery_path, PAGE_SECONDS)
    for text in found.values():
        parse(text or "", apps)
        parse_replicas(text or "", replicas)
    return apps, replicas, [target for target, text in found.items() if text is None]


def status(serve: Serve, params: Params) -> Answer:
    first, replicas_first, _ = totals(params["discovery_path"])
    began = time.monotonic()
    time.sleep(params["seconds"])
    last, replicas_last, silent = totals(params["discovery_path"])
    seconds = time.monotonic() - began if params["seconds"] else 0.0
    counted = {"first": first, "last": last, "replicas_first": replicas_first, "replicas_last": replicas_last}
    running, total = serve.running(), serve.total()
    health = running.get("controller_health_metrics") or {}
    return {
        "ray": json.loads(serve.get("/api/version"))["ray_version"],
        "seconds": round(seconds, 1),
        "silent": silent,
        "controller": {
            "node": (running.get("controller_info") or {}).get("node_ip"),
            "uptime_seconds": int(health.get("uptime_s") or 0),
            "loops_per_second": round(health.get("loops_per_second") or 0, 1),
        },
        "nodes": answers.nodes(serve.nodes(), total, serve.free(total), running),
        "applications": answers.applications(running, {**counted, "seconds": seconds}),
    }


def applications(serve: Serve, params: Params) -> Answer:
    return {"applications": answers.applications(serve.running())}


def config(serve: Serve, params: Params) -> Answer:
    return {"config": answers.config(serve.running())}


def read(serve: Serve, node: str, file: str, lines: int) -> tuple[list[str], str]:
    """The last lines of a log, and why there are none."""
    query = urllib.parse.urlencode({"node_id": node, "lines": lines, "filename": file.lstrip("/")})
    try:
        return serve.get(f"/api/v0/logs/file?{query}").decode(errors="replace").splitlines(), ""
    except UNREACHED as error:
        return [], str(error)


def worker_files(serve: Serve, replica: dict[str, Any]) -> list[str]:
    """Files that a replica's process prints into; none where its node is gone."""
    query = urllib.parse.urlencode({"node_id": replica["node_id"], "glob": f"*{replica['worker_id']}*"})
    try:
        found = json.loads(serve.get(f"/api/v0/logs?{query}"))["data"]["result"] or {}
    except UNREACHED:
        return []
    return [file for kind in WORKER_LOGS for file in found.get(kind) or []]


def logs(serve: Serve, params: Params) -> Answer:
    running = serve.running()
    replicas = answers.wanted_replicas(running, params["deployment"])
    if not replicas and params["deployment"]:
        have = sorted({f"{name}/{deployment}" for name, deployment, _ in answers.all_replicas(running)})
        raise Problem(
            f"no replica of {params['deployment']} runs or has run lately. To do: name one of {', '.join(have) or '-'}"
        )
    found = []
    for name, deployment, replica in replicas:
        if not replica.get("node_id"):
            continue  # it waits for room
        about = {"application": name, "deployment": deployment, "replica": replica["replica_id"]}
        about |= {"node": replica["node_ip"], "state": "DEAD" if replica["dead"] else replica["state"]}
        # What its process prints first: Serve's own lines are there, too, and are told once.
        files = worker_files(serve, replica) if replica.get("worker_id") else []
        printed = {file: read(serve, replica["node_id"], file, params["lines"]) for file in files}
        if own := (replica.get("log_file_path") or "").lstrip("/"):
            told = read(serve, replica["node_id"], own, params["lines"])
            printed = {
                own: told,
                **{file: (answers.printed(more, told[0]), error) for file, (more, error) in printed.items()},
            }
        for file, (lines, error) in printed.items():
            if lines or error:
                found.append({**about, "file": file, "lines": answers.masked(lines), "error": error})
    return {"logs": found}


def memory(serve: Serve, params: Params) -> Answer:
    alive = [node["node_id"] for node in serve.nodes() if node["state"] == "ALIVE"]
    details = [json.loads(serve.get(f"/nodes/{node}"))["data"]["detail"] for node in alive]
    rows, total = listed(serve, "/api/v0/objects?limit=10000")
    objects = answers.objects(rows)
    return {
        "nodes": answers.memory([detail for detail in details if detail]),
        "references": total,
        "references_bytes": sum(max(0, row["bytes"] or 0) for row in objects),
        "objects": objects[: params["limit"]],
    }


def timeline(serve: Serve, params: Params) -> Answer:
    return {"traceEvents": answers.masked(json.loads(serve.get("/api/v0/tasks/timeline")))}


def tasks(serve: Serve, params: Params) -> Answer:
    rows, total = listed(serve, "/api/v0/tasks?detail=1&limit=10000")
    found = answers.tasks(rows, addresses(serve))
    counts = answers.counts(found, "name")
    recent = sorted(found, key=lambda row: (row["state"] == "FINISHED", row["state"]))[: params["limit"]]
    return {"total": total, "counts": counts, "tasks": recent}


def actors(serve: Serve, params: Params) -> Answer:
    rows, total = listed(serve, "/api/v0/actors?detail=1&limit=10000")
    found = answers.actors(rows, addresses(serve))
    shown = sorted(found, key=lambda row: (row["state"] == "DEAD", row["class"], row["name"]))[: params["limit"]]
    return {"total": total, "counts": answers.counts(found, "class"), "actors": shown}


QUESTIONS: dict[str, Callable[[Serve, Params], Answer]] = {
    "status": status,
    "list": applications,
    "config": config,
    "logs": logs,
    "memory": memory,
    "timeline": timeline,
    "tasks": tasks,
    "actors": actors,
}


def ask(params: Params) -> Answer:
    """Raise Problem where nothing answers."""
    do = "--tags cluster, or see `systemctl status raymetal` on the head"
    try:
        with open(params["token_path"]) as handle:
            serve = Serve(params["url"], handle.read().strip())
        return QUESTIONS[params["question"]](serve, params)
    except FileNotFoundError as error:
        raise Problem(f"{params['token_path']} is missing: is there a cluster? To do: {do}") from error
    except urllib.error.HTTPError as error:
        reason = f"is {params['token_path']} its token?" if error.code in (401, 403) else error.read()[:500].decode()
        raise Problem(f"{params['url']} answers {error.code} to {params['question']}: {reason}") from error
    except UNREACHED as error:
        raise Problem(f"{params['url']} does not answer: {error}. To do: {do}") from error


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "question": {"type": "str", "choices": list(QUESTIONS), "required": True},
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True, "no_log": False},
            "discovery_path": {"type": "path"},
            "seconds": {"type": "float", "default": 0},
            "deployment": {"type": "str", "default": ""},
            "lines": {"type": "int", "default": 50},
            "limit": {"type": "int", "default": 100},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, answer=ask(module.params))
    except Problem as problem:
        module.fail_json(msg=str(problem))


if __name__ == "__main__":
    main()

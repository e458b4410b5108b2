"""What the dashboard tells, in the few fields that an operator asks for. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils import ray_serve_config as conf
from ansible.module_utils.ray_serve_totals import Totals, grown

Row = dict[str, Any]

SECRET_NAME = re.compile(
    r"(?i)(?:^|[_-])(?:token|secret|passw(?:or)?d|passphrase|credentials?|api_?keys?|access_?key)(?:$|[_-])"
)
SECRET = re.compile(r"\b(?:hf_|sk-|gh[ps]_|glpat-|xox[abp]-|AKIA|ASIA)[A-Za-z0-9_-]{8,}|(?<=://)[^/@\s]*(?=@)")
WORKERS_SHOWN = 10  # the largest of a node


def masked(value: Any) -> Any:
    """``value`` without what stands under the name of a secret, or looks like one."""
    if isinstance(value, str):
        return SECRET.sub("***", value)
    if isinstance(value, Mapping):
        return {k: "***" if isinstance(v, str) and v and SECRET_NAME.search(k) else masked(v) for k, v in value.items()}
    return [masked(inner) for inner in value] if isinstance(value, list) else value


def rates(first: Totals, last: Totals, name: str, seconds: float) -> Row:
    """Requests and errors, those since the start and those a second, and the mean time of a request."""
    total, new = last.get(name) or {}, grown(first, last, name)
    found: Row = {key: int(total.get(key, 0)) for key in ("requests", "errors")}
    for key in ("requests", "errors"):
        found[f"{key}_per_second"] = round(new[key] / seconds, 2) if seconds else None
    spoken = new if new["requests"] else total
    found["mean_ms"] = round(spoken["ms"] / spoken["requests"], 1) if spoken.get("requests") else None
    return found


def nodes(
    listed: list[Row], total: dict[str, dict[str, float]], free: dict[str, dict[str, float]], running: Row
) -> list[Row]:
    """The nodes that are alive, and those that are gone and have not come back."""
    alive = {node["node_ip"] for node in listed if node["state"] == "ALIVE"}
    replicas = Counter(replica["node_id"] for _, _, replica in all_replicas(running))
    proxies = running.get("proxies") or {}
    found = []
    for node in listed:
        if node["state"] != "ALIVE" and node["node_ip"] in alive:
            continue
        have, left = total.get(node["node_id"], {}), free.get(node["node_id"], {})
        resources = {
            name: {"used": round(have[name] - left.get(name, 0), 3), "total": have[name]}
            for name in sorted(have)
            if not name.startswith("node:")
        }
        found.append(
            {
                "address": node["node_ip"],
                "node_id": node["node_id"],
                "head": node["is_head_node"],
                "state": node["state"],
                "message": node.get("state_message") or "",
                "resources": resources,
                "replicas": replicas[node["node_id"]],
                "proxy": (proxies.get(node["node_id"]) or {}).get("status"),
            }
        )
    return sorted(found, key=lambda node: (not node["head"], node["address"]))


def all_replicas(running: Row, dead: bool = False) -> list[tuple[str, str, Row]]:
    """(application, deployment, replica) of all that run; with ``dead`` also of those that ended a while ago."""
    keys = ("recent_dead_replicas", "replicas") if dead else ("replicas",)
    return [
        (name, deployment, {**replica, "dead": key != "replicas"})
        for name, app in (running.get("applications") or {}).items()
        for deployment, details in (app.get("deployments") or {}).items()
        for key in keys
        for replica in details.get(key) or []
    ]


def applications(running: Row, counted: Mapping[str, Any] | None = None) -> list[Row]:
    """What serves; ``counted``: first, last, replicas_first, replicas_last (totals) and seconds, for the rates."""
    found = []
    for name, app in sorted((running.get("applications") or {}).items()):
        config = app.get("deployed_app_config")
        row: Row = {
            "name": conf.operator_name(name),
            "runs_as": name,
            "route": app.get("route_prefix"),
            "status": app.get("status"),
            "message": app.get("message") or "",
            "models": conf.llm_models(config or {}),
            "by_program": not config,  # serve.run() or `serve run`: no configuration
        }
        if counted:
            row |= rates(counted["first"], counted["last"], name, counted["seconds"])
        row["deployments"] = [deployment(details, counted) for details in (app.get("deployments") or {}).values()]
        found.append(row)
    return found


def deployment(details: Row, counted: Mapping[str, Any] | None) -> Row:
    replicas = []
    for replica in details.get("replicas") or []:
        row = {"id": replica["replica_id"], "state": replica["state"], "node": replica.get("node_ip")}
        row["pid"] = replica.get("pid")
        if counted:
            ways = counted["replicas_first"], counted["replicas_last"]
            row |= rates(*ways, replica["replica_id"], counted["seconds"])
        replicas.append(row)
    return {
        "name": details["name"],
        "status": details["status"],
        "trigger": details.get("status_trigger"),
        "message": details.get("message") or "",
        "target": details.get("target_num_replicas"),
        "running": sum(replica["state"] == "RUNNING" for replica in replicas),
        "replicas": replicas,
    }


def config(running: Row) -> Row:
    """What runs in the schema that `serve deploy` takes, without what is not set, and without secrets."""

    def stated(options: Row | None) -> Row:
        return {key: value for key, value in (options or {}).items() if value not in (None, "", [], {})}

    apps = [app["deployed_app_config"] for app in (running.get("applications") or {}).values()]
    found = {
        "proxy_location": running.get("proxy_location"),
        "http_options": stated(running.get("http_options")),
        "applications": conf.canonical(sorted((app for app in apps if app), key=conf.name_of)),
    }
    if (grpc := running.get("grpc_options") or {}).get("grpc_servicer_functions"):
        found["grpc_options"] = stated(grpc)
    kept: Row = masked({key: value for key, value in found.items() if value is not None})
    return kept


def wanted_replicas(running: Row, wanted: str) -> list[tuple[str, str, Row]]:
    """Replicas of a deployment, named by itself, by its application, or as application/deployment; empty: of all."""
    return [
        (name, deployment, replica)
        for name, deployment, replica in all_replicas(running, dead=True)
        if wanted in ("", name, conf.operator_name(name), deployment, f"{name}/{deployment}")
        or wanted == f"{conf.operator_name(name)}/{deployment}"
    ]


def printed(lines: list[str], told: list[str]) -> list[str]:
    """Of what a replica's process prints the lines that are not in Serve's log of it, nor marks of Ray."""
    known = set(told)
    return [line for line in lines if line not in known and not line.startswith((":job_id:", ":actor_name:"))]


def memory(details: list[Row]) -> list[Row]:
    """Memory of nodes, of their object stores, GPUs and largest processes, in bytes; ``details`` from /nodes/<id>."""
    found = []
    for node in details:
        raylet = node.get("raylet") or {}
        store = raylet.get("storeStats") or {}
        total, available = (node.get("mem") or [0, 0])[:2]
        workers = [
            {
                "pid": worker.get("pid"),
                "name": (worker.get("cmdline") or ["?"])[0],  # Ray's own title; arguments may hold secrets
                "bytes": int((worker.get("memoryInfo") or {}).get("rss") or 0),
                "gpu_mib": worker.get("gpuMemoryUsage") or 0,
            }
            for worker in node.get("workers") or []
        ]
        found.append(
            {
                "address": node["ip"],
                "head": bool(raylet.get("isHeadNode")),
                "used_bytes": int(total - available),
                "total_bytes": int(total),
                "shm_bytes": int(node.get("shm") or 0),
                "store_used_bytes": int(store.get("objectStoreBytesUsed") or 0),
                "store_total_bytes": int(store.get("objectStoreBytesAvail") or 0),
                "store_objects": int(store.get("numLocalObjects") or 0),
                "spilled_bytes": int(store.get("spilledBytesTotal") or 0),
                "gpus": [
                    {
                        "index": gpu.get("index"),
                        "name": gpu.get("name"),
                        "used_mib": gpu.get("memoryUsed"),
                        "total_mib": gpu.get("memoryTotal"),
                        "utilization_percent": gpu.get("utilizationGpu"),
                    }
                    for gpu in node.get("gpus") or []
                ],
                "processes": sorted(workers, key=lambda worker: -worker["bytes"])[:WORKERS_SHOWN],
            }
        )
    return sorted(found, key=lambda node: (not node["head"], node["address"]))


def objects(listed: list[Row]) -> list[Row]:
    """References to objects, the largest first."""
    keys = {"object_id": "id", "object_size": "bytes", "reference_type": "reference", "task_status": "status"}
    keys |= {"type": "holder", "pid": "pid", "ip": "node", "call_site": "call_site"}
    found = [{ours: row.get(rays) for rays, ours in keys.items()} for row in listed]
    return sorted(found, key=lambda row: -(row["bytes"] or 0))


def tasks(listed: list[Row], addresses: Mapping[str, str]) -> list[Row]:
    found = []
    for row in listed:
        start, end = row.get("start_time_ms"), row.get("end_time_ms")
        found.append(
            {
                "id": row["task_id"],
                "name": row["name"],
                "state": row["state"],
                "type": row["type"],
                "error": row.get("error_type"),
                "node": addresses.get(row.get("node_id") or "", row.get("node_id")),
                "pid": row.get("worker_pid"),
                "seconds": round((end - start) / 1000, 3) if start and end else None,
            }
        )
    return found


def actors(listed: list[Row], addresses: Mapping[str, str]) -> list[Row]:
    return [
        {
            "id": row["actor_id"],
            "name": row.get("name") or "",
            "class": row["class_name"],
            "state": row["state"],
            "node": addresses.get(row.get("node_id") or "", row.get("node_id")),
            "pid": row.get("pid") or None,
            "restarts": int(row.get("num_restarts") or 0),
            "resources": row.get("required_resources") or {},
        }
        for row in listed
    ]


def counts(rows: Iterable[Row], key: str) -> list[Row]:
    """How many rows have the same ``key`` and state."""
    found = Counter((row[key], row["state"]) for row in rows)
    return [{key: name, "state": state, "count": count} for (name, state), count in sorted(found.items())]

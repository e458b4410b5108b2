"""Options of `ray start` as data: their flags, and what is wrong with them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Problem = dict[str, Any]

# Owned by the role: where the value comes from instead.
OWNED = {
    "head": "it follows from the group ray_head",
    "address": "it follows from ray_node_head_address and ray_node_port",
    "block": "the role decides: systemd needs it, a detached start must not have it",
    "port": "set ray_node_port",
    "dashboard_port": "set ray_node_dashboard_port",
    "node_ip_address": "set ray_node_address",
    "temp_dir": "set cluster_state_dir",
    "redis_password": "a flag would show it in the process list; an external Redis with a password is not supported",
}
# Gone from Ray since older tutorials: what replaced them.
REMOVED = {
    "gcs_server_port": "the GCS listens on ray_node_port",
    "redis_port": "the GCS listens on ray_node_port",
    "num_redis_shards": "the GCS keeps its data in memory, or in one Redis named by RAY_REDIS_ADDRESS",
    "redis_max_memory": "the GCS keeps its data in memory, or in one Redis named by RAY_REDIS_ADDRESS",
    "storage": "removed from Ray; give storage paths to the library that uses them",
    "webui_host": "use dashboard_host",
    "include_webui": "use include_dashboard",
    "internal_config": "use system_config",
    "plasma_store_socket_name": "sockets lie below cluster_state_dir",
    "raylet_socket_name": "sockets lie below cluster_state_dir",
    "huge_pages": "use plasma_directory",
    "use_pickle5": "always on",
    "code_search_path": "use runtime_env in the Serve configuration",
    "load_code_from_local": "use runtime_env in the Serve configuration",
    "java_worker_options": "use runtime_env in the Serve configuration",
    "dashboard_grpc_port": "removed: the dashboard serves HTTP only, on ray_node_dashboard_port",
}
PORT_MAX = 65535


def ray_start_flags(options: Mapping[str, Any], known: Mapping[str, Mapping[str, str]]) -> list[str]:
    """`ray start` arguments of ``options`` (name with `_` -> value), sorted by name.

    ``known`` is option -> {flag, type}. A true switch is a bare flag and a false one nothing, `omit` drops the option,
    a list is comma-joined, a mapping is JSON (labels: key=value pairs, as Ray wants them).
    """
    flags = []
    for name, value in sorted(options.items()):
        flag = known[name]["flag"]
        if value == "omit" or value is None:
            continue
        if known[name]["type"] == "switch":
            flags += [flag] if value is True else []
            continue
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, Mapping):
            pairs = (f"{key}={item}" for key, item in value.items())
            value = ",".join(pairs) if name == "labels" else json.dumps(dict(value), sort_keys=True)
        elif isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        flags.append(f"{flag}={value}")
    return flags


def _value_problem(name: str, value: Any, kind: str) -> tuple[str, str] | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind in ("switch", "boolean") and not isinstance(value, bool):
        return "is not true or false", "write true or false"
    if kind == "integer" and not whole:
        return "is not a whole number", "write a whole number"
    if kind == "float" and not whole and not isinstance(value, float):
        return "is not a number", "write a number"
    if kind in ("integer", "float") and value < 0 and not name.endswith("_port"):
        return "is negative", "write zero or more, or leave it out for what Ray finds"
    if name == "ray_client_server_port" and value < 1024:
        return "Ray refuses it, and has no way to switch this port off", f"write 1024 to {PORT_MAX}"
    if name.endswith("_port") and not 0 <= value <= PORT_MAX:
        return "is no port", f"write 1 to {PORT_MAX}"
    if name in ("resources", "system_config", "labels"):
        if not isinstance(value, Mapping):
            return "is not a mapping", "write it as YAML, name: amount"
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            return f"cannot be written as JSON ({error})", "use plain names and numbers"
    if name == "resources":
        wrong = [k for k, v in value.items() if isinstance(v, bool) or not isinstance(v, (int, float)) or v < 0]
        if wrong:
            return f"amounts of {', '.join(map(str, wrong))} are not numbers of zero or more", "write name: amount"
        if {"CPU", "GPU", "memory", "object_store_memory"} & set(value):
            return (
                "names a resource that has an option of its own",
                "use num_cpus, num_gpus, memory, object_store_memory",
            )
    if kind == "text" and not isinstance(value, (str, int, float, list, Mapping)):
        return "is not text", "write text"
    if kind.startswith("choice:") and str(value).lower() not in kind.removeprefix("choice:").split("|"):
        return "is none of its choices", "write one of " + ", ".join(kind.removeprefix("choice:").split("|"))
    return None


def _port_problems(options: Mapping[str, Any], fixed: Mapping[str, int]) -> Iterator[Problem]:
    """Ports that are none. Whose is also another's is a matter of the port plan (roles/firewall)."""
    for name, port in fixed.items():
        if not 0 < port <= PORT_MAX:
            yield {"variable": name, "value": port, "problem": "is no port", "do": f"write 1 to {PORT_MAX}"}
    workers = [options.get("min_worker_port", 10002), options.get("max_worker_port", 19999)]
    if all(isinstance(w, int) for w in workers) and workers[0] > workers[1] and 0 not in workers:
        text = f"is above max_worker_port, {workers[1]}"
        yield {"variable": "ray_node_options.min_worker_port", "value": workers[0], "problem": text, "do": "swap them"}


def ray_start_problems(
    options: Mapping[str, Any], known: Mapping[str, Mapping[str, str]], ports: Mapping[str, int]
) -> list[Problem]:
    """Problems of the operator's options; ``ports`` are those set elsewhere, variable -> port."""
    found: list[Problem] = []
    for raw, value in options.items():
        name = str(raw)
        here = {"variable": f"ray_node_options.{name}", "value": value}
        if name in OWNED:
            found.append({**here, "problem": "belongs to the role", "do": OWNED[name]})
        elif name in REMOVED:
            found.append({**here, "problem": "this version of `ray start` no longer has it", "do": REMOVED[name]})
        elif name not in known:
            near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            do = f"did you mean {near[0]}?" if near else "see `ray start --help`"
            found.append({**here, "problem": "`ray start` has no such option", "do": do})
        elif value not in ("omit", None) and (wrong := _value_problem(name, value, known[name]["type"])):
            found.append({**here, "problem": wrong[0], "do": wrong[1]})
    return found + list(_port_problems(options, ports))


def ray_node_bound_problems(bounds: Mapping[str, Sequence[float]]) -> list[Problem]:
    """Problems of values out of bounds; ``bounds`` is variable -> [least, value] or [least, value, most]."""
    found = []
    for variable, (least, value, *most) in bounds.items():
        if value < least or (most and value > most[0]):
            do = f"write {least} to {most[0]}" if most else f"write {least} or more"
            found.append({"variable": variable, "value": value, "problem": "is out of bounds", "do": do})
    return found


def ray_node_runtime_problems(
    runtime: str, supervisor: str, unit_options: Mapping[str, Any], volumes: Sequence[str]
) -> list[Problem]:
    """Problems of a node in a container: what holds for a node on the host alone, and volumes that are none."""
    found: list[Problem] = []
    if runtime != "container":
        return found
    if supervisor == "detached":
        do = "set it to auto, and let PID 1 be systemd, or ray_node_runtime to host"
        found.append(
            {"variable": "ray_node_supervisor", "value": supervisor, "problem": "a container has a unit", "do": do}
        )
    if unit_options:
        text, do = "the unit runs the engine, not the node", "give ray_node_container_options instead"
        found.append({"variable": "ray_node_unit_options", "value": dict(unit_options), "problem": text, "do": do})
    for volume in volumes:
        if not re.fullmatch(r"/[^:]*:/[^:]*(:[a-zA-Z,]+)?", volume):
            here = {"variable": "ray_node_container_volumes", "value": volume}
            found.append({**here, "problem": "is no volume", "do": "write /on/the/host:/in/the/container:ro"})
    return found


def ray_authentication_problems(tls: bool, heads: bool, head: str, environment: Mapping[str, Any]) -> list[Problem]:
    """Problems of ``ray_node_tls`` of a node, beside that of the ``head``, and in the operator's ``environment``.

    The names of Ray's TLS and of its token authentication belong to the role.
    """
    found: list[Problem] = []
    if tls != heads:
        text = f"of {head} it is {str(heads).lower()}, and a node with TLS and one without cannot speak to each other"
        do = "set it for the whole group ray_cluster"
        found.append({"variable": "ray_node_tls", "value": tls, "problem": text, "do": do})
    for name in sorted(
        {"RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"} & set(environment)
    ):
        here = {"variable": f"ray_node_environment.{name}", "value": environment[name]}
        found.append({**here, "problem": "the tools would not know of it", "do": "set ray_node_tls"})
    for name in sorted({"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(environment)):
        here = {"variable": f"ray_node_environment.{name}", "value": "(not shown)"}
        text = "it would part the node from the others and the tools, or open it to everybody"
        found.append({**here, "problem": text, "do": "remove it; playbooks/rotate_token.yml makes another token"})
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "ray_start_flags": ray_start_flags,
            "ray_start_problems": ray_start_problems,
            "ray_node_bound_problems": ray_node_bound_problems,
            "ray_node_runtime_problems": ray_node_runtime_problems,
            "ray_authentication_problems": ray_authentication_problems,
        }

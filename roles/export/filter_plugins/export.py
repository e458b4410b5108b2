"""The cluster in the words of `ray up` and of KubeRay."""

from __future__ import annotations

import copy
import ipaddress
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Node = Mapping[str, Any]

# Set by whoever starts Ray there, or of no use without what stays behind: TLS, and the store of the head.
OTHERS_OWN = {"PATH", "HOME", "VLLM_HOST_IP", "RAY_USE_TLS", "RAY_gcs_rpc_server_reconnect_timeout_s"}
# What KubeRay says by authOptions, and what is of a host's network.
PODS_OWN = {"RAY_AUTH_MODE", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
# Resources of a node in KubeRay's names.
POD_RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
# Options of `ray start` that mean the same in a pod. Ports, addresses and paths are those of hosts.
POD_OPTIONS = ("object_store_memory", "system_config")
NAME_LENGTH_MAX = 47  # of a RayService: KubeRay makes longer names of it


def export_environment(
    environment: Mapping[str, Any], secret: Iterable[str], directories: Sequence[str]
) -> dict[str, str]:
    """What of a node's ``environment`` may be written down elsewhere: no name of ``secret``, no path below
    ``directories``, which are the service user's."""
    own = tuple(f"{directory.rstrip('/')}/" for directory in directories)
    return {
        name: str(value)
        for name, value in sorted(environment.items())
        if name not in OTHERS_OWN | set(secret) and not f"{value}/".startswith(own)
    }


def _common_environment(nodes: Sequence[Node]) -> dict[str, str]:
    first, *others = (node["environment"] for node in nodes)
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def ray_up_start(nodes: Sequence[Node]) -> dict[str, Any]:
    """How `ray up` starts ``nodes``: the environment, the head's flags, those of all workers, and by the worker's
    address those of one (none where all are alike: the local provider has one command for all)."""
    head, *workers = nodes
    address = head["node_address"] or head["address"]
    flags = head["flags"] + ([f"--node-ip-address={address}"] if _is_address(address) else [])
    given = {
        node["address"]: node["flags"] + ([f"--node-ip-address={node['node_address']}"] if node["node_address"] else [])
        for node in workers
    }
    common = [flag for flag in next(iter(given.values()), []) if all(flag in other for other in given.values())]
    each = {address: [flag for flag in own if flag not in common] for address, own in given.items()}
    return {
        "environment": _common_environment(nodes),
        "head": sorted(flags),
        "workers": common,
        "each": each if any(each.values()) else {},
    }


def export_missing(nodes: Sequence[Node], ray_up: bool) -> list[str]:
    """What the inventory says of ``nodes`` and the file, of `ray up` or KubeRay, cannot."""
    lines = ["ray_node_tls: Ray's processes speak without TLS"] if any(node["tls"] for node in nodes) else []
    if not ray_up:
        return lines
    head = nodes[0]
    for node in nodes:
        if node["user"] != head["user"]:
            lines.append(f"ansible_user of {node['name']}, {node['user']}: one ssh user for all, {head['user']}")
        if int(node["port"]) != 22:
            lines.append(
                f"ansible_port of {node['name']}, {node['port']}: write it into ~/.ssh/config, on the head too"
            )
        if node["ssh_arguments"]:
            lines.append(f"ansible_ssh_common_args of {node['name']}: write them into ~/.ssh/config, on the head too")
    differing = sorted({name for node in nodes for name in node["environment"]} - set(_common_environment(nodes)))
    return lines + [f"{name}: differs between the nodes" for name in differing]


def kuberay_name(cluster: str) -> str:
    """``cluster`` as a name of Kubernetes, a DNS label that begins with a letter."""
    name = re.sub(r"[^a-z0-9]+", "-", cluster.lower()).strip("-")
    name = name if re.match("[a-z]", name) else f"ray-{name}".rstrip("-")
    return name[:NAME_LENGTH_MAX].rstrip("-")


def _group(node: Node) -> dict[str, Any]:
    """A group of KubeRay without its pods: what Ray is told of a node."""
    options = node["options"]
    resources = {name: str(options[option]) for option, name in POD_RESOURCES.items() if option in options}
    resources |= {name: str(amount) for name, amount in options.get("resources", {}).items()}
    # KubeRay writes them into a shell's command line as they are.
    params = {name.replace("_", "-"): shlex.quote(json.dumps(options[name])) for name in POD_OPTIONS if name in options}
    labels = {name: str(value) for name, value in options.get("labels", {}).items()}
    group = {"rayStartParams": params, "resources": resources, "labels": labels}
    return {name: value for name, value in group.items() if value or name == "rayStartParams"}


def _pod(node: Node, common: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    ports = {"serve": common["serve_port"]}
    if node["type"] == "head":
        ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, **ports}
    limits = {**({"nvidia.com/gpu": node["gpus"]} if node["gpus"] else {}), **node["pod_resources"]}
    container = {
        "name": f"ray-{node['type']}",
        "image": common["image"],
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "env": [{"name": name, "value": value} for name, value in environment.items() if name not in PODS_OWN],
        "envFrom": [{"secretRef": {"name": common["secret"]}}] if common["secret"] else [],
        "resources": {"limits": {name: str(amount) for name, amount in limits.items()}} if limits else {},
        "volumeMounts": [
            {"name": volume["name"], "mountPath": volume["path"], "readOnly": True} for volume in common["volumes"]
        ],
    }
    spec = {
        "containers": [{name: value for name, value in container.items() if value}],
        "volumes": [{"name": volume["name"], **copy.deepcopy(volume["source"])} for volume in common["volumes"]],
    }
    return {"spec": {name: value for name, value in spec.items() if value}}


def kuberay_workers(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """The workers among ``nodes`` by the name of their group; those that are alike are one."""
    alike: dict[str, list[Node]] = {}
    for node in nodes[1:]:
        key = json.dumps([_group(node), node["gpus"], node["pod_resources"]], sort_keys=True)
        alike.setdefault(key, []).append(node)
    names = ["workers"] if len(alike) == 1 else [f"workers-{number}" for number in range(1, len(alike) + 1)]
    return dict(zip(names, alike.values(), strict=True))


def kuberay_cluster(nodes: Sequence[Node], version: str, common: Mapping[str, Any]) -> dict[str, Any]:
    """The ``rayClusterConfig`` of ``nodes``, the head first; ``common`` is image, secret, volumes and serve_port."""
    environment = _common_environment(nodes)
    return {
        "rayVersion": version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {**_group(nodes[0]), "template": _pod(nodes[0], common, environment)},
        "workerGroupSpecs": [
            {
                "groupName": name,
                **{count: len(group) for count in ("replicas", "minReplicas", "maxReplicas")},
                **_group(group[0]),
                "template": _pod(group[0], common, environment),
            }
            for name, group in kuberay_workers(nodes).items()
        ],
    }


def kuberay_volumes(models: Sequence[Mapping[str, Any]], root: str, source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Volumes with ``models`` at the paths that the Serve configuration names; on hosts also where links lead to."""
    if not models:
        return []
    elsewhere = dict.fromkeys(model["host_path"] for model in models if "host_path" in model)
    return [{"name": "models", "path": root, "source": dict(source)}] + [
        {"name": f"models-{number}", "path": path, "source": {"hostPath": {"path": path, "type": "Directory"}}}
        for number, path in enumerate(elsewhere if "hostPath" in source else (), 1)
    ]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "export_environment": export_environment,
            "export_missing": export_missing,
            "ray_up_start": ray_up_start,
            "kuberay_cluster": kuberay_cluster,
            "kuberay_name": kuberay_name,
            "kuberay_volumes": kuberay_volumes,
            "kuberay_workers": kuberay_workers,
        }

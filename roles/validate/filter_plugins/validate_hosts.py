"""What the hosts must be, from read-only facts: each by itself, and who differs from whom."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Problem = dict[str, Any]
GIB = 1024**3
INSTALLED_DISK_GIB = 1  # what a host that has its environment still needs for logs and sessions
SHM_MINIMUM_GIB = 1
# The first driver for each major version of CUDA, from docs.nvidia.com/deploy/cuda-compatibility.
DRIVER_MINIMUM = {"11": 450, "12": 525, "13": 580}


def _problem(host: str, variable: str, value: Any, text: str, do: str) -> Problem:
    return {"host": host, "variable": variable, "value": value, "problem": text, "do": do}


def _asked(want: Mapping[str, Any], option: str) -> Any:
    """What the operator asks of an option of the node; None where Ray is to find it."""
    return None if want[option] == "omit" else want[option]


def _machine(host: str, facts: Mapping[str, Any], want: Mapping[str, Any]) -> Iterator[Problem]:
    system = facts["os"]
    if system["version"] not in want["supported_os"].get(system["id"], []):
        known = "; ".join(f"{name} {', '.join(versions)}" for name, versions in want["supported_os"].items())
        name = f"{system['id']} {system['version']}"
        yield _problem(host, "gpu_host_supported_os", name, "is not supported", f"use one of {known}")
    if facts["arch"] != "x86_64":
        yield _problem(host, "python_env_lock", facts["arch"], "the locks are for x86_64", "use an x86_64 host")
    memory = facts["memory_bytes"] / GIB
    if memory < want["memory_minimum_gib"]:
        text = f"the host has {memory:.1f} GiB of memory"
        yield _problem(host, "gpu_host_memory_minimum_gib", want["memory_minimum_gib"], text, "use a larger host")
    need = INSTALLED_DISK_GIB if facts["paths"][want["environment"]]["exists"] else want["disk_minimum_gib"]
    places = {"cluster_root": "root", "cluster_state_dir": "state_dir", "model_store_root": "model_root"}
    devices = set()
    for variable, key in places.items():
        disk, writes, percent = facts["disks"][want[key]], need if key == "root" else 0, want["disk_reserve_percent"]
        free, reserve = disk["free_bytes"] / GIB, disk["total_bytes"] / GIB * percent / 100
        if disk["read_only"]:
            text, do = "is on a file system that is read-only", "mount it writable, or choose another place"
            yield _problem(host, variable, want[key], text, do)
        elif free < writes + reserve and disk["device"] not in devices:
            text = f"{free:.1f} GiB are free at {want[key]}, {writes} are needed and {reserve:.1f} are to stay free"
            do = f"free some space (docs/disk.md), or set {variable} to a larger file system"
            if free < writes:
                yield _problem(host, "gpu_host_disk_minimum_gib", writes, text, do)
            else:
                yield _problem(host, "cluster_disk_reserve_percent", percent, text, do)
        devices.add(disk["device"])
    store, shm = _asked(want, "object_store_memory"), facts["shm_bytes"]
    if shm < (store or SHM_MINIMUM_GIB * GIB):
        variable = "ray_node_options.object_store_memory" if store else "/dev/shm"
        do = "enlarge it (mount -o remount,size=…, and /etc/fstab), or ask for a smaller object store"
        yield _problem(host, variable, store, f"/dev/shm has only {shm / GIB:.2f} GiB", do)
    if abs(facts["clock_difference_seconds"]) > want["clock_tolerance_seconds"]:
        text = f"the clock differs by {facts['clock_difference_seconds']} s from the controller's"
        yield _problem(host, "gpu_host_clock_tolerance_seconds", want["clock_tolerance_seconds"], text, "set up NTP")
    if facts["cluster"] not in (None, want["cluster"]):
        text = f"the host carries cluster {facts['cluster']}"
        do = "use that cluster's inventory, or tear it down first"
        yield _problem(host, "cluster_name", want["cluster"], text, do)
    user = facts["user"]
    if user and user["home"] != want["state_dir"]:
        text = f"exists with home {user['home']}: it was not made for this cluster, whose teardown ends all it runs"
        yield _problem(host, "cluster_user", want["user"], text, "name a user that does not exist, or that we made")


def _network(host: str, facts: Mapping[str, Any], want: Mapping[str, Any]) -> Iterator[Problem]:
    if name := want["interface"]:
        interface = facts["interfaces"].get(name)
        known = ", ".join(facts["interfaces"]) or "none"
        if not interface:
            yield _problem(host, "cluster_interface", name, f"the host has {known}", "name one of them")
        elif not interface["up"] or not interface["addresses"]:
            text = "is down" if not interface["up"] else "has no address"
            yield _problem(host, "cluster_interface", name, text, "set it up, or name another interface")


def _software(host: str, facts: Mapping[str, Any], want: Mapping[str, Any]) -> Iterator[Problem]:
    if want["python_source"] == "host" and not facts["python"]:
        do = f"install python{want['python_version']}, or set python_env_python_source to managed"
        yield _problem(host, "python_env_python_version", want["python_version"], "the host has no such Python", do)
    if lacking := sorted(set(want["packages"]) - set(facts["packages"])):
        text = f"the host sees no Debian mirror and lacks {', '.join(lacking)}"
        yield _problem(host, "cluster_debian_mirror", False, text, "install them, or set it to true if apt works there")
    if want["supervisor"] == "systemd" and not facts["systemd"]:
        yield _problem(host, "ray_node_supervisor", "systemd", "PID 1 is not systemd", "set it to auto or detached")
    if want["runtime"] == "container" and not facts["systemd"]:
        do = "set it to host, where `ray start` needs no unit"
        yield _problem(host, "ray_node_runtime", "container", "PID 1 is not systemd, which runs the container", do)
    if want["firewall"] and not facts["systemd"]:
        do = "set it to false for this host, and close its ports where its network comes from"
        yield _problem(host, "firewall_enabled", True, "PID 1 is not systemd, which loads the rules", do)
    for model in want["models"]:
        path = model.get("host_path")
        if path and not facts["paths"][path]["directory"]:
            yield _problem(host, f"model_store_models {model['name']}.host_path", path, "is no directory", "correct it")
        elif path and not facts["paths"][path]["config_json"]:
            text = "has no config.json: no model that vLLM loads"
            yield _problem(host, f"model_store_models {model['name']}.host_path", path, text, "correct it")
    try:
        loopback = ipaddress.ip_address(want["address"]).is_loopback
    except ValueError:
        text = "no address on the route to the head was found" if not want["address"] else "is no IP address"
        yield _problem(host, "ray_node_address", want["address"], text, "set ray_node_address")
    else:
        if loopback and (want["cluster_size"] > 1 or not want["head_address"].startswith("127.")):
            text = "is a loopback address, and cluster_head_address does not say that this machine is the whole cluster"
            do = "set ansible_host or cluster_head_address to the address on the cluster's network"
            yield _problem(host, "ray_node_address", want["address"], text, do)


def _gpus(host: str, facts: Mapping[str, Any], want: Mapping[str, Any]) -> Iterator[Problem]:
    count, reason = len(facts["gpus"]), facts["gpu_error"] or ""
    hint = f" ({reason.splitlines()[0]})" if reason else ""
    wish = _asked(want, "num_gpus") or 0
    if wish > count and not want["logical_gpus"]:
        text = f"the host has {count} GPUs{hint}"
        yield _problem(host, "ray_node_options.num_gpus", wish, text, f"set it to {count} or leave it out")
    if count < want["required_gpus"]:
        text = f"the host has {count} GPUs{hint}"
        do = "mend the driver or the card, or take the host out of the inventory"
        yield _problem(host, "gpu_host_required_gpus", want["required_gpus"], text, do)
    if count and want["lock_cuda"]:
        has = facts["driver_cuda"]
        major = want["lock_cuda"].split(".")[0]
        # Within one major version of CUDA newer libraries run on older drivers (NVIDIA: minor version compatibility).
        if has is None or int(has.split(".")[0]) < int(major):
            text = f"driver {facts['driver_version']} serves CUDA {has}, the lock is built for CUDA {want['lock_cuda']}"
            floor = f": {DRIVER_MINIMUM[major]} or newer" if major in DRIVER_MINIMUM else ""
            do = f"install a driver for CUDA {major}{floor}"
            yield _problem(host, "python_env_lock", want["lock_cuda"], text, do)


def _differences(hosts: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    def differ(variable: str, what: str, values: Mapping[str, str], do: str) -> Iterator[Problem]:
        if len(set(values.values())) > 1:
            by_value = {v: [h for h in values if values[h] == v] for v in dict.fromkeys(values.values())}
            text = "hosts differ in " + what + ": " + "; ".join(f"{v} on {', '.join(h)}" for v, h in by_value.items())
            yield _problem("cluster", variable, None, text, do)

    own = {h: d for h, d in hosts.items() if d["wanted"]["python_source"] in ("auto", "host")}
    versions = {h: (d["facts"]["python"] or {}).get("version", "none") for h, d in own.items()}
    do = "upgrade them alike, or set python_env_python_source: managed (Ray refuses nodes of another patch level)"
    yield from differ("python_env_python_source", "Python", versions, do)
    cards = {
        h: " and ".join(sorted({f"{g['name']} {g['memory_mib']} MiB" for g in d["facts"]["gpus"]}))
        + f", driver {d['facts']['driver_version']}"
        for h, d in hosts.items()
        if d["wanted"]["equal_gpus"] and d["facts"]["gpus"]
    }
    yield from differ("gpu_host_equal_gpus", "GPUs", cards, "make them alike, or set gpu_host_equal_gpus: false")


def _room(hosts: Mapping[str, Mapping[str, Any]], applications: list[Any]) -> Iterator[Problem]:
    """One replica of each model must fit; ``applications`` as in the Serve configuration."""

    def total(option: str, found: Callable[[Mapping[str, Any]], int]) -> float:
        asked = ((_asked(d["wanted"], option), found(d["facts"])) for d in hosts.values())
        return float(sum(there if wish is None else wish for wish, there in asked))

    gpus = total("num_gpus", lambda facts: len(facts["gpus"]))
    cuda = any(d["wanted"]["variant"] == "cuda" for d in hosts.values())
    room, unit = (gpus, "GPUs") if cuda or gpus else (total("num_cpus", lambda facts: int(facts["cpus"])), "CPUs")
    for index, application in enumerate(applications):
        args = application.get("args") if isinstance(application, Mapping) else None
        configs = args.get("llm_configs") if isinstance(args, Mapping) else None
        for number, config in enumerate(configs if isinstance(configs, (list, tuple)) else []):
            engine = config.get("engine_kwargs") if isinstance(config, Mapping) else None
            sizes = [(engine or {}).get(key, 1) for key in ("tensor_parallel_size", "pipeline_parallel_size")]
            if all(isinstance(size, int) for size in sizes) and sizes[0] * sizes[1] > room:
                engine_kwargs = f"ray_serve_config.applications[{index}].args.llm_configs[{number}].engine_kwargs"
                needs = f"with pipeline_parallel_size {sizes[1]} one replica needs {sizes[0] * sizes[1]}"
                text, do = f"{needs}, the cluster has {room:g} {unit}", "lower it or add hosts"
                yield _problem("cluster", f"{engine_kwargs}.tensor_parallel_size", sizes[0], text, do)


def host_problems(hosts: Mapping[str, Mapping[str, Any]], applications: list[Any]) -> list[Problem]:
    """Problems of ``hosts``, and of what shall run there.

    ``hosts`` is name -> {facts (see gpu_host_facts) or null, wanted, address, error}.
    """
    found = []
    for host, data in hosts.items():
        if not data["facts"]:
            do = (
                "check the address, the network, the ssh user and key, and the host key, or name it in cluster_left_out"
            )
            text = f"the host does not answer: {data['error']}"
            found.append(_problem(host, "ansible_host", data["address"], text, do))
            continue
        for check in (_machine, _network, _software, _gpus):
            found += check(host, data["facts"], data["wanted"])
    answering = {host: data for host, data in hosts.items() if data["facts"]}
    # What the cluster has room for is known when all hosts have been heard.
    room = _room(hosts, applications) if len(answering) == len(hosts) else []
    return [*found, *_differences(answering), *room]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"host_problems": host_problems}

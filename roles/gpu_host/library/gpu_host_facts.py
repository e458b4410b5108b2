#!/usr/bin/python
"""Read-only facts about a host that is to run Ray and vLLM."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_host_facts
short_description: Read what Ray and vLLM need to know of a host, GPUs included, and change nothing
description:
  - One call in place of the full fact gathering. Where there is no C(nvidia-smi), or it sees no device, the list of
    GPUs is empty and C(gpu_error) says why; the module does not fail.
options:
  paths:
    description: Paths to describe, for example model directories.
    type: list
    elements: str
    default: []
  python_version:
    description: Minor version of Python to look for, for example 3.11.
    type: str
    required: true
  controller_time:
    description: The controller's clock when the task was sent, seconds since the epoch.
    type: float
    required: true
  user:
    description: The service user that the cluster will use.
    type: str
    required: true
  marker:
    description: File with the name of the cluster that the host carries.
    type: path
    required: true
  peer:
    description: An address; the host's own address on the route to it is reported as C(route_address).
    type: str
    required: true
author: Raymetal
"""
EXAMPLES = r"""
- name: Look at the host
  gpu_host_facts:
    python_version: "3.11"
    controller_time: "{{ now(utc=true).timestamp() }}"
    user: raymetal
    marker: /etc/raymetal/cluster
    peer: 10.0.0.10
    paths: [/data/models/qwen3]
"""
RETURN = r"""
ansible_facts:
  description: >-
    One key, C(gpu_host), with os (id, version), arch, cpus, memory_bytes, swap_bytes, shm_bytes, systemd (bool: PID 1),
    packages (names of the Debian packages that are installed), python (path and version, or null),
    clock_difference_seconds, user (uid, group, shell, home, comment; or null), cluster (name or null), route_address,
    interfaces (by name: addresses, mtu in bytes, up), disks and paths (by path), driver_version, driver_cuda,
    gpu_error, and gpus, a list of dicts with index, uuid, name, memory_mib.
  type: dict
  returned: always
"""

import grp
import json
import os
import platform
import pwd
import re
import shutil
import socket
import subprocess
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
GPU_QUERY = ["--query-gpu=index,uuid,name,memory.total,driver_version", "--format=csv,noheader,nounits"]


def run(argv: list[str], seconds: float = 30) -> tuple[int, str]:
    """Exit status and output of a program; 127 where it is missing, 124 where it hangs."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        return 127, f"{argv[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]} did not answer within {seconds:.0f} s"
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def parse_gpus(query: str, banner: str) -> dict[str, Any]:
    """GPUs, driver and the driver's CUDA version from ``nvidia-smi``'s query output and its banner."""
    gpus, driver = [], None
    for line in query.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 5 or not fields[0].isdigit():
            continue
        memory = int(fields[3]) if fields[3].isdigit() else None  # "[N/A]" where memory is shared with the CPU
        gpus.append({"index": int(fields[0]), "uuid": fields[1], "name": fields[2], "memory_mib": memory})
        driver = fields[4]
    cuda = re.search(r"CUDA (?:\w+ )?Version\s*:\s*([0-9]+\.[0-9]+)", banner)
    return {"gpus": gpus, "driver_version": driver, "driver_cuda": cuda[1] if cuda else None}


def gpu_facts() -> dict[str, Any]:
    none: dict[str, Any] = {"gpus": [], "driver_version": None, "driver_cuda": None}
    status, query = run(["nvidia-smi", *GPU_QUERY])
    if status != 0:
        return {**none, "gpu_error": query.strip()[:500]}
    found = parse_gpus(query, run(["nvidia-smi"])[1])
    return {**found, "gpu_error": None if found["gpus"] else query.strip()[:500]}


def meminfo(text: str) -> dict[str, int]:
    """Bytes by name from the text of /proc/meminfo."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def os_release(text: str) -> dict[str, str]:
    fields = dict(re.findall(r"^(\w+)=\"?([^\"\n]*)\"?$", text, re.MULTILINE))
    return {"id": fields.get("ID", "unknown"), "version": fields.get("VERSION_ID", "unknown")}


def installed_packages(status: str) -> list[str]:
    """Names of the packages that dpkg's status file (deb822 paragraphs) calls installed."""
    installed = (text for text in status.split("\n\n") if re.search(r"^Status: \w+ ok installed$", text, re.MULTILINE))
    return sorted({name[1] for text in installed if (name := re.search(r"^Package: (\S+)$", text, re.MULTILINE))})


def find_python(version: str) -> dict[str, str] | None:
    path = shutil.which(f"python{version}", path=SYSTEM_PATH)
    if not path:
        return None
    status, text = run([path, "-c", "import platform; print(platform.python_version())"])
    return {"path": path, "version": text.strip()} if status == 0 else None


def user_facts(name: str) -> dict[str, Any] | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    try:
        group = grp.getgrgid(entry.pw_gid).gr_name
    except KeyError:
        group = ""
    return {
        "uid": entry.pw_uid,
        "group": group,
        "shell": entry.pw_shell,
        "home": entry.pw_dir,
        "comment": entry.pw_gecos,
    }


def disk_facts(path: str) -> dict[str, Any]:
    """Device, free and total bytes, read_only: of the file system of ``path`` or its nearest existing parent."""
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    usage = os.statvfs(path)
    return {
        "device": os.stat(path).st_dev,
        "free_bytes": usage.f_bavail * usage.f_frsize,
        "total_bytes": usage.f_blocks * usage.f_frsize,
        "read_only": bool(usage.f_flag & os.ST_RDONLY),
    }


def path_facts(path: str) -> dict[str, Any]:
    config = os.path.join(path, "config.json")
    return {"exists": os.path.exists(path), "directory": os.path.isdir(path), "config_json": os.path.isfile(config)}


def route_address(peer: str) -> str | None:
    """The source address that the kernel would use towards ``peer``; nothing is sent."""
    try:
        family, _, _, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def parse_interfaces(text: str) -> dict[str, Any]:
    """Addresses (without those of link scope), MTU in bytes and state by name, from ``ip -json address show``."""
    return {
        link["ifname"]: {
            "addresses": [a["local"] for a in link["addr_info"] if "local" in a and a["scope"] != "link"],
            "mtu": link["mtu"],
            "up": "LOWER_UP" in link["flags"],
        }
        for link in json.loads(text)
        if "ifname" in link
    }


def interfaces() -> dict[str, Any]:
    status, text = run(["ip", "-json", "address", "show"])
    return parse_interfaces(text) if status == 0 else {}


def shm_bytes() -> int:
    try:
        usage = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return usage.f_blocks * usage.f_frsize


def read(path: str) -> str:
    with open(path) as handle:
        return handle.read()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "default": []},
            "python_version": {"type": "str", "required": True},
            "controller_time": {"type": "float", "required": True},
            "user": {"type": "str", "required": True},
            "marker": {"type": "path", "required": True},
            "peer": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    now = time.time()
    memory = meminfo(read("/proc/meminfo"))
    facts: dict[str, Any] = {
        "os": os_release(read("/etc/os-release")),
        "arch": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory.get("MemTotal", 0),
        "swap_bytes": memory.get("SwapTotal", 0),
        "shm_bytes": shm_bytes(),
        "systemd": os.path.isdir("/run/systemd/system"),
        "packages": installed_packages(read("/var/lib/dpkg/status")),
        "python": find_python(module.params["python_version"]),
        "clock_difference_seconds": round(now - module.params["controller_time"], 1),
        "user": user_facts(module.params["user"]),
        "cluster": read(module.params["marker"]).strip() if os.path.exists(module.params["marker"]) else None,
        "route_address": route_address(module.params["peer"]),
        "interfaces": interfaces(),
        "disks": {path: disk_facts(path) for path in ["/", *module.params["paths"]]},
        "paths": {path: path_facts(path) for path in module.params["paths"]},
        **gpu_facts(),
    }
    module.exit_json(changed=False, ansible_facts={"gpu_host": facts})


if __name__ == "__main__":
    main()

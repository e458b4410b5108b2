"""What the shape of the inventory must be, and how problems are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Problem = dict[str, Any]


def problem(host: str, variable: str, value: Any, text: str, do: str) -> Problem:
    return {"host": host, "variable": variable, "value": value, "problem": text, "do": do}


def inventory_problems(
    groups: Mapping[str, list[str]], addresses: Mapping[str, str], head_and_worker: bool = False
) -> list[Problem]:
    """Problems of the groups (name -> hosts) and of the hosts' addresses (host -> address).

    ``head_and_worker`` permits a host in both groups.
    """
    heads, workers = groups.get("ray_head", []), groups.get("ray_workers", [])
    problems = []
    if len(heads) != 1:
        text = "the group has no host" if not heads else f"the group has {len(heads)} hosts"
        problems.append(problem(",".join(heads) or "-", "group ray_head", heads, text, "put exactly one host in it"))
    both = [] if head_and_worker else sorted(set(heads) & set(workers))
    for host in both:
        problems.append(
            problem(
                host, "groups", ["ray_head", "ray_workers"], "the host is head and worker", "leave it in ray_head only"
            )
        )
    names = groups.get("ray_cluster", [])
    for host in sorted((set(heads) | set(workers)) - set(names)):
        do = "make ray_head and ray_workers children of ray_cluster"
        problems.append(problem(host, "group ray_cluster", None, "the host is not in the group", do))
    for address, count in Counter(addresses[name] for name in names if name in addresses).items():
        same = [name for name in names if addresses.get(name) == address]
        if count > 1:
            text = f"{count} hosts have the same address: {', '.join(same)}"
            problems.append(problem(same[-1], "ansible_host", address, text, "name each machine once"))
    return problems


def left_out_problems(groups: Mapping[str, list[str]], left_out: Any) -> list[Problem]:
    """Problems of ``cluster_left_out`` within the groups (name -> hosts)."""
    name = "cluster_left_out"
    if not isinstance(left_out, list) or not all(isinstance(host, str) for host in left_out):
        do = f"""write a list, on the command line -e '{{"{name}": ["host1"]}}'"""
        return [problem("cluster", name, left_out, "is no list of inventory names", do)]
    problems = []
    for host in left_out:
        if host not in groups.get("all", []):
            text, do = f"{host} is no host of the inventory", "write inventory names"
            problems.append(problem("cluster", name, None, text, do))
        elif host in groups.get("ray_head", []):
            text = "is the head, and without it there is no cluster"
            problems.append(problem(host, name, None, text, "mend it, or put another host into ray_head"))
    return problems


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """One line a problem: host, variable, value, what is wrong, what to do. The same line of many hosts becomes one."""
    lines: dict[str, list[str]] = {}
    for p in problems:
        value = "" if p["value"] is None else f" = {str(p['value'])[:120]}"
        line = f"{p['variable']}{value}: {str(p['problem']).rstrip('.')}. To do: {p['do']}."
        lines.setdefault(line, []).append(str(p["host"]))
    return [f"{', '.join(dict.fromkeys(hosts))}: {line}" for line, hosts in lines.items()]


def role_problems(facts: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """What ``validate_role`` left in the facts of each host, one list."""
    return [p for host in facts for name, found in host.items() if name.startswith("validate_") for p in found]


def problem_report(lines: list[str], gate: str) -> str:
    """All problems of a gate as one message."""
    return "\n".join(
        [f"{gate}: {len(lines)} problem(s), and nothing that runs was changed", *(f"- {line}" for line in lines)]
    )


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "inventory_problems": inventory_problems,
            "left_out_problems": left_out_problems,
            "problem_lines": problem_lines,
            "role_problems": role_problems,
            "problem_report": problem_report,
        }

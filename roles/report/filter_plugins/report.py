"""Of all that is known of a host, what the report says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FACTS = ("os", "arch", "cpus", "memory_bytes", "gpus", "gpu_error", "driver_version", "driver_cuda")


def report_host(variables: Mapping[str, Any]) -> dict[str, Any]:
    """From a host's variables; one that was lost on the way may lack each of them."""
    looked = variables.get("__validate_host") or {}
    facts = looked.get("facts") or {}
    wanted = looked.get("wanted") or {}
    return {
        "facts": {name: facts[name] for name in FACTS if name in facts},
        "node": dict(variables.get("validate_node") or {}),
        "environment": wanted.get("environment", ""),
        "models": list(wanted.get("models") or []),
        "lost": variables.get("cluster_lost_while", ""),
    }


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"report_host": report_host}

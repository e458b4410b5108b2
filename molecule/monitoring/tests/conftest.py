"""The three hosts, and what the one that looks knows."""

from __future__ import annotations

import json
import os
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra import get_host
from testinfra.host import Host

INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"


@pytest.fixture(scope="session")
def hosts() -> dict[str, Host]:
    return {
        name: get_host(f"ansible://{name}?sudo=true", ansible_inventory=str(INVENTORY))
        for name in ("head", "worker", "watch")
    }


@pytest.fixture(scope="session")
def addresses(hosts: dict[str, Host]) -> dict[str, str]:
    return {name: str(host.ansible.get_variables()["ansible_host"]) for name, host in hosts.items()}


@pytest.fixture(scope="session")
def get(hosts: dict[str, Host]) -> Callable[[str], Any]:
    """Return a function that gets JSON from a program on the monitoring host's loopback."""
    return lambda path: json.loads(hosts["watch"].check_output("curl -sS -f %s", f"http://127.0.0.1:{path}"))


@pytest.fixture(scope="session")
def ask(get: Callable[[str], Any]) -> Callable[[str], list[dict[str, Any]]]:
    """Return a function that asks Prometheus."""
    return lambda text: get(f"9090/api/v1/query?{urllib.parse.urlencode({'query': text})}")["data"]["result"]


@pytest.fixture(scope="session")
def wait() -> Callable[..., Any]:
    """Return a function that waits until another gives something, and returns that."""

    def until(look: Callable[[], Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := look()) and time.monotonic() < deadline:
            time.sleep(2)
        return found

    return until


@pytest.fixture(scope="session")
def told(hosts: dict[str, Host]) -> Callable[..., bool]:
    """Return a function that says whether somebody was told of an alert with such labels."""

    def look(status: str, **labels: str) -> bool:
        lines = hosts["watch"].run("cat /var/lib/hook").stdout.splitlines()
        wanted = {"status": status, **labels}.items()
        return any(wanted <= json.loads(line).items() for line in lines)

    return look

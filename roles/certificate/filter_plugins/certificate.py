"""The relations between the inputs of certificate."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}$)(\*\.)?{LABEL}(\.{LABEL})*")


def _names(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return bool(HOST_NAME.fullmatch(name))


def certificate_problems(
    names: list[str], authority_host: str, hosts: list[str], days: int, renew_days: int, authority_days: int
) -> list[dict[str, Any]]:
    """Problems of the names, of the authority's host (``hosts``: who takes part) and of the times in days."""
    found: list[dict[str, Any]] = []

    def add(variable: str, value: Any, problem: str, do: str) -> None:
        found.append({"variable": variable, "value": value, "problem": problem, "do": do})

    if not names:
        add("certificate_names", None, "it would be for no name", "write the names and addresses that clients use")
    for name in names:
        if not _names(name):
            add("certificate_names", name, "is neither a host name nor an address", "correct it")
    if authority_host not in hosts:
        text = "is no host of the inventory, or left out (cluster_left_out)"
        add("certificate_authority_host", authority_host, text, "name one that is, and stays")
    if not 1 <= renew_days < days:
        text = f"is not from 1 to below certificate_days, {days}"
        add("certificate_renew_days", renew_days, text, "choose a smaller number")
    if not days <= authority_days <= 36500:
        text = f"is not from certificate_days, {days}, to 36500"
        add("certificate_authority_days", authority_days, text, "choose another number")
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"certificate_problems": certificate_problems}

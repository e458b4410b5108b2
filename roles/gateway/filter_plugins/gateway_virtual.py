"""The virtual address of several gateways: relations between the inputs."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

Problem = dict[str, Any]
MOST = 50  # gateways: each has a priority of its own


def gateway_virtual_problems(
    virtual: str, listens: str, gateway: str, gateways: Mapping[str, str], nodes: list[Mapping[str, str]]
) -> list[Problem]:
    """Problems of the virtual address, with or without /prefix; empty: there is none, and nothing to say.

    ``listens``: address of HAProxy; ``gateway``: whose problems these are; ``gateways``: inventory name -> own address;
    ``nodes``: {name, address} of those behind.
    """
    if not virtual:
        return []
    found: list[Problem] = []

    def add(variable: str, value: Any, problem: str, do: str) -> None:
        found.append({"variable": variable, "value": value, "problem": problem, "do": do})

    try:
        address = ipaddress.ip_interface(virtual).ip
    except ValueError:
        do = "write an address that no host has, in the gateways' network"
        add("gateway_virtual_address", virtual, "is no IP address", do)
        return found
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        add("gateway_virtual_address", virtual, "is no address that a gateway could have", "choose another")
    if listens != "::" and not (listens == "0.0.0.0" and address.version == 4):
        do = f"set it to {'0.0.0.0' if address.version == 4 else '::'}"
        add("gateway_address", listens, f"the gateway would not listen on gateway_virtual_address, {address}", do)
    if not 2 <= len(gateways) <= MOST:
        text = f"there {'is one gateway' if len(gateways) == 1 else f'are {len(gateways)} gateways'}, not 2 to {MOST}"
        add("gateway_virtual_address", virtual, text, "change the hosts of group gateway, or leave it out")
    try:
        own = ipaddress.ip_address(gateways[gateway])
    except ValueError:
        do = "set it to the gateway's address in the network of gateway_virtual_address"
        add("gateway_own_address", gateways[gateway], "is no IP address", do)
    else:
        if own.version != address.version:
            text = f"is of another version of IP than gateway_virtual_address, {address}"
            add("gateway_own_address", str(own), text, "write both in the same")
    for name, taken in {**{node["name"]: node["address"] for node in nodes}, **gateways}.items():
        if taken == str(address):
            do = "choose one that no host has"
            add("gateway_virtual_address", virtual, f"is the own address of {name}", do)
    return found


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"gateway_virtual_problems": gateway_virtual_problems}

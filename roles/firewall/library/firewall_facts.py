#!/usr/bin/python
"""What the firewall of a cluster must know of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall_facts
short_description: The address of a host on the route to the head, and the ports that must not be guessed
description: Reads, sends nothing and changes nothing. Without C(become), so that sudo does not hide the connection.
options:
  peer:
    description: An address or name, the head's.
    type: str
    required: true
author: Raymetal
"""
EXAMPLES = r"""
- name: Look at the host
  firewall_facts:
    peer: 10.0.0.10
  become: false
"""
RETURN = r"""
address:
  description: The host's own address on the route to the peer, empty where there is none.
  type: str
  returned: always
ssh_ports:
  description: Port of the ssh connection that this came by, as the host sees it; none without ssh.
  type: list
  returned: always
drawn_ports:
  description: First and last of the ports that the kernel draws for who asks for none.
  type: list
  returned: always
"""

import os
import socket

from ansible.module_utils.basic import AnsibleModule

DRAWN_PORTS = "/proc/sys/net/ipv4/ip_local_port_range"


def route_address(peer: str) -> str:
    """The source address that the kernel would use towards ``peer``; nothing is sent."""
    try:
        family, _, _, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def main() -> None:
    module = AnsibleModule(argument_spec={"peer": {"type": "str", "required": True}}, supports_check_mode=True)
    connection = os.environ.get("SSH_CONNECTION", "").split()
    with open(DRAWN_PORTS) as handle:
        drawn = [int(port) for port in handle.read().split()]
    module.exit_json(
        changed=False,
        address=route_address(module.params["peer"]),
        ssh_ports=[int(connection[3])] if len(connection) == 4 else [],
        drawn_ports=drawn,
    )


if __name__ == "__main__":
    main()

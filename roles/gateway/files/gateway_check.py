#!/usr/bin/python3
"""Whether this gateway may hold the virtual address: exit code 1 if another gateway does better just now.

    gateway_check OWN-HOST PORT http|https PEER-HOST...

A gateway that has a node is better than one without, and that better than one that does not answer: two that are alike
leave the address where it is, so that it answers also while no node is up. Needs no rights.
"""

from __future__ import annotations

import http.client
import ssl
import sys

NO_ANSWER, NO_NODE, SERVES = range(3)
TIMEOUT_SECONDS = 1


def state(host: str, port: int, scheme: str) -> int:
    """What the health page of a gateway says. Its certificate is not looked at: it is asked nothing secret."""
    page = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    if scheme == "https":
        context = ssl._create_unverified_context()
        page = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)
    try:
        page.request("GET", "/-/healthz")
        return SERVES if page.getresponse().status == 200 else NO_NODE
    except (OSError, http.client.HTTPException):
        return NO_ANSWER


def main(own: str, port: str, scheme: str, *peers: str) -> int:
    here = state(own, int(port), scheme)
    return int(here < SERVES and any(state(peer, int(port), scheme) > here for peer in peers))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

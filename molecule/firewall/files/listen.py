#!/usr/bin/python3
"""Listen on the ports that are given, IPv4 and IPv6, and say hello: a stand-in for what the port plan names."""

import selectors
import socket
import sys

waiting = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    waiting.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in waiting.select():
        connection = key.fileobj.accept()[0]
        connection.sendall(b"hello")
        connection.close()

"""Send bytes to the gateway as they are, each on a connection of its own, and print what came back.

    send.py HOST PORT CA-FILE < ["GET / HTTP/1.1\\r\\n…", …]     # a JSON list; characters are bytes (latin-1)

Prints a JSON list of the answers, each as text until the gateway closes, or is silent for five seconds.
"""

import json
import socket
import ssl
import sys


def send(host: str, port: int, context: ssl.SSLContext, request: str) -> str:
    answer = b""
    with context.wrap_socket(socket.create_connection((host, port), 20), server_hostname=host) as connection:
        connection.settimeout(60)
        try:
            connection.sendall(request.encode("latin-1"))
            while part := connection.recv(65536):
                answer += part
                connection.settimeout(5)
        except (TimeoutError, ConnectionError, ssl.SSLError):
            pass
    return answer.decode("latin-1")


if __name__ == "__main__":
    trust = ssl.create_default_context(cafile=sys.argv[3])
    print(json.dumps([send(sys.argv[1], int(sys.argv[2]), trust, request) for request in json.load(sys.stdin)]))

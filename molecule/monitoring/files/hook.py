"""Stands in for whoever is told of alerts: each is a line of JSON in /var/lib/hook, status and labels."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer


class Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("/var/lib/hook", "a") as file:
            for alert in told["alerts"]:
                file.write(json.dumps({"status": alert["status"], **alert["labels"]}) + "\n")
        self.send_response(200)
        self.end_headers()


HTTPServer(("127.0.0.1", 9999), Hook).serve_forever()

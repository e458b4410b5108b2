"""What the unit tests share: plugins by their path, modules run as Ansible runs them, small real HTTP servers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[2]
# Ansible makes a role's module_utils part of this package.
MODULE_UTILS = [str(path) for path in sorted(ROOT.glob("roles/*/module_utils"))]
ansible.module_utils.__path__ = [*ansible.module_utils.__path__, *MODULE_UTILS]
RUNNER = """
import runpy, sys, ansible.module_utils
_, path, *utils = sys.argv
ansible.module_utils.__path__ = [*ansible.module_utils.__path__, *utils]
sys.argv = [path]
runpy.run_path(path, run_name="__main__")
"""
# method, path, headers, body -> status, answer (bytes as they are, all else as JSON)
Answerer = Callable[[str, str, dict[str, str], bytes], tuple[int, Any]]


def load(path: str) -> ModuleType:
    """The Python file at ``path`` (from the project's root) as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_module(path: str, /, check: bool = False, env: dict[str, str] | None = None, **params: Any) -> dict[str, Any]:
    """The result of a module, run in a process of its own with its arguments as JSON."""
    arguments = {"ANSIBLE_MODULE_ARGS": {**params, "_ansible_check_mode": check, "_ansible_diff": True}}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(ROOT / path), *MODULE_UTILS],
        input=json.dumps(arguments),
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextmanager
def http_server(answer: Answerer) -> Iterator[str]:
    """A server on a free port of the loopback; gives its base address."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = answer(self.command, self.path, dict(self.headers.items()), body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = _do

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

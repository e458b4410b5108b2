"""Ask listeners what they answer: by HTTP, and by gRPC with calls of Ray that change nothing.

    probe.py < {"listeners": [["10.0.0.1", 8000], …], "tokens": ["", "…"]}   # empty: none

Prints for each token a line with a JSON list, one object for each listener: {"address", "port", "kind", "metrics",
"http": {path: status}, "grpc": {method: code}}. kind is "closed" (nobody answers), "ssh", "http", "grpc" or "silent";
metrics: whether /metrics has some.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import socket
import sys

import grpc

TIMEOUT_SECONDS = 4
PATHS = (
    "/",
    "/metrics",
    "/api/version",
    "/api/cluster_status",
    "/api/jobs/",
    "/api/serve/applications/",
    "/api/v0/logs",
    "/api/v0/nodes",
    "/logs/",
    "/nodes?view=summary",
    "/get_runtime_envs_info",
    "/api/healthz",
    "/api/gcs_healthz",
    "/api/local_raylet_healthz",
    "/v1/models",
)
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.autoscaler.AutoscalerStateService/GetClusterStatus",
    "/ray.rpc.NodeManagerService/GetSystemConfig",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.CoreWorkerService/NumPendingTasks",
    "/ray.rpc.ReporterService/HealthCheck",
    "/ray.rpc.LogService/ListLogs",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.RayletDriver/KVList",
    "/ray.serve.ASGIService/HandleRequest",
)


def by_http(address: str, port: int, headers: dict[str, str]) -> tuple[dict[str, int], bool]:
    """Path -> status, empty where HTTP is not spoken; and whether there are metrics."""
    found, metrics = {}, False
    for path in PATHS:
        connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            found[path] = response.status
            metrics |= path == "/metrics" and response.read(100_000).startswith(b"# HELP")
        except (OSError, http.client.HTTPException):
            if not found:
                return {}, False
        finally:
            connection.close()
    return found, metrics


def by_grpc(address: str, port: int, headers: dict[str, str]) -> dict[str, str]:
    """Method -> name of the status; empty where gRPC is not spoken."""
    found = {}
    metadata = [(name.lower(), value) for name, value in headers.items()]
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        for method in METHODS:
            call = channel.unary_unary(method)
            try:
                call(b"", timeout=TIMEOUT_SECONDS, metadata=metadata)
                found[method] = "OK"
            except grpc.RpcError as error:
                found[method] = error.code().name
            if found == {method: "UNAVAILABLE"}:
                return {}
    return found


def speech(address: str, port: int) -> str:
    """What the listener says by itself, within a second; raises OSError where there is none."""
    with socket.create_connection((address, port), TIMEOUT_SECONDS) as connection:
        connection.settimeout(1)
        try:
            return connection.recv(64).decode(errors="replace")
        except TimeoutError:
            return ""


def ask(address: str, port: int, headers: dict[str, str]) -> dict[str, object]:
    answer: dict[str, object] = {"address": address, "port": port, "http": {}, "grpc": {}, "metrics": False}
    try:
        if speech(address, port).startswith("SSH-"):
            return {**answer, "kind": "ssh"}
    except OSError:
        return {**answer, "kind": "closed"}
    by_path, metrics = by_http(address, port, headers)
    if by_path:
        return {**answer, "kind": "http", "http": by_path, "metrics": metrics}
    by_method = by_grpc(address, port, headers)
    return {**answer, "kind": "grpc" if by_method else "silent", "grpc": by_method}


def main() -> None:
    wanted = json.load(sys.stdin)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for token in wanted["tokens"]:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            jobs = [pool.submit(ask, address, port, headers) for address, port in wanted["listeners"]]
            print(json.dumps([job.result() for job in jobs]))


if __name__ == "__main__":
    main()

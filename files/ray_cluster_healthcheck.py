"""Health check of a running Ray cluster, by real work on every node.

    python ray_cluster_healthcheck.py --expect nodes.json
    ray job submit --working-dir DIR -- python ray_cluster_healthcheck.py --expect nodes.json

On every node that is alive it runs one CPU task, one task per free GPU, nvidia-smi for all GPUs, and reads objects
that the driver and the next node made. Only free resources are reserved, so a cluster that is full of serving replicas
passes too: a busy CPU is stood for by a zero-CPU task, a busy GPU is only seen by nvidia-smi, and the summary says so.

Exit code: 0 healthy, 1 problems found (each is named), 2 could not check (no cluster to connect to, bad arguments).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARED_BYTES = 32 * 1024 * 1024  # made by the driver, read on every node
RING_BYTES = 8 * 1024 * 1024  # made on every node, read on the next; above Ray's 5 MiB transfer chunk
CONNECT_SECONDS = 20  # Ray itself would try for a minute and more
LOOK_AT_CONNECTION = "start Ray on the head, and set RAY_ADDRESS, RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as it has them"
LOOK_AT_NODE = "look at the Ray service and its logs on that host, then restart it there"
LOOK_AT_GPU = "run nvidia-smi and look at the kernel log (dmesg, Xid) on that host"


# --- Pure parts: need no Ray ------------------------------------------------------------------------------------------


def load_expected(text: str) -> list[dict[str, Any]]:
    """Parse the expectation: a JSON list of {"address": str, "cpus": number|null, "gpus": number|null}.

    A count that is null or left out is not compared. Raises ValueError that names the entry at fault.
    """
    nodes = json.loads(text)
    if not isinstance(nodes, list):
        raise ValueError("the expected nodes must be a JSON list of {address, cpus, gpus}")
    for node in nodes:
        if not isinstance(node, dict) or not isinstance(node.get("address"), str):
            raise ValueError(f"expected node {node!r} has no address")
        for key in ("cpus", "gpus"):
            if not isinstance(node.get(key), (int, float, type(None))):
                raise ValueError(f"expected node {node['address']}: {key} must be a number or null, not {node[key]!r}")
    return nodes


def compare(expected: list[dict[str, Any]], nodes: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Compare expected with alive nodes ({"address", "cpus", "gpus"} each). Returns (problems, warnings)."""
    problems, warnings = [], []
    alive = {node["address"]: node for node in nodes}
    for want in expected:
        address = want["address"]
        if address not in alive:
            problems.append(f"node {address} is not alive; do: {LOOK_AT_NODE}")
            continue
        for key in ("cpus", "gpus"):
            have = alive[address][key]
            if want.get(key) is not None and float(want[key]) != float(have):
                problems.append(
                    f"node {address} has {have:g} {key[:-1].upper()}s in Ray, expected {want[key]:g};"
                    f" do: correct the inventory, or {LOOK_AT_NODE}"
                )
    for address in sorted(set(alive) - {want["address"] for want in expected}):
        warnings.append(f"node {address} is alive but not expected; do: add it to the inventory or stop Ray there")
    for address in sorted(alive):
        if (count := sum(node["address"] == address for node in nodes)) > 1:
            problems.append(f"node {address} runs {count} Ray nodes; do: stop all Ray processes there and start one")
    return problems, warnings


def judge_gpus(node: dict[str, Any]) -> list[str]:
    """Problems of one node's GPUs. Reads address, gpus, smi ({"absent"|"error"|"gpus"}) and gpu_tasks of its entry."""
    address, smi, tasks = node["address"], node.get("smi") or {}, node["gpu_tasks"]
    problems = [f"node {address}: {smi['error']}; do: {LOOK_AT_GPU}"] if "error" in smi else []
    if "gpus" in smi and len(smi["gpus"]) < node["gpus"]:
        problems.append(
            f"node {address}: Ray counts {node['gpus']:g} GPUs but"
            f" nvidia-smi sees {len(smi['gpus'])}; do: {LOOK_AT_GPU}"
        )
    for task in tasks:
        if "error" in task["smi"]:
            problems.append(f"node {address}, GPU {task['gpu']}: {task['smi']['error']}; do: {LOOK_AT_GPU}")
    if len({task["gpu"] for task in tasks}) != len(tasks):
        problems.append(
            f"node {address}: Ray gave one GPU to two tasks ({[t['gpu'] for t in tasks]}); do: {LOOK_AT_NODE}"
        )
    return problems


def describe_smi(smi: dict[str, Any]) -> str:
    """One phrase for what nvidia-smi said."""
    if "gpus" in smi:
        return "; ".join(smi["gpus"]) or "no GPU listed"
    return f"ERROR {smi['error']}" if "error" in smi else "logical (no nvidia-smi on the host)"


def render(report: dict[str, Any]) -> str:
    """The report as text for people."""
    nodes = report["nodes"]
    cpu, gpu = [n for n in nodes if n.get("hostname")], [n for n in nodes if n["gpu_checked"]]
    store = [n for n in nodes if n["store_ok"]]
    lines = ["=== Ray Cluster Health Check ===", f"Alive nodes: {len(nodes)}"]
    lines += [f" - {n['address']} | CPUs={n['cpus']} | GPUs={n['gpus']}" for n in nodes]
    lines += ["", f"[CPU] Tasks ran on {len(cpu)} unique hosts"]
    for n in cpu:
        lines.append(
            f" - {n['address']} | {n['hostname']} | pid {n['pid']} | {'1' if n['cpu_reserved'] else 'no free'} CPU"
        )
    lines += ["", f"[GPU] Total GPUs visible to Ray: {sum(n['gpus'] for n in nodes):g}"]
    lines += [f"[GPU] Tasks ran on {sum(bool(n['gpu_tasks']) for n in nodes)} unique hosts"]
    for n in gpu:
        lines += [f" - {n['address']} | GPU {t['gpu']} | {describe_smi(t['smi'])}" for t in n["gpu_tasks"]]
        if n["gpus_busy"]:
            lines.append(f" - {n['address']} | {n['gpus_busy']:g} GPUs busy, not reserved | {describe_smi(n['smi'])}")
    lines += [
        "",
        "[Object Store] Testing data sharing...",
        f"[Object Store] Data consumed on {len(store)} unique hosts",
    ]
    lines += ["", "=== Health Check Summary ===", f"CPU hosts: {len(cpu)}", f"GPU hosts: {len(gpu)}"]
    lines += [f"Object Store hosts: {len(store)}", f"Seconds: {report['seconds']}", ""]
    lines += [f"Warning: {text}" for text in report["warnings"]]
    if report["ok"]:
        return "\n".join([*lines, "Ray Cluster health check completed successfully."])
    return "\n".join([*lines, "Ray Cluster health check FAILED:", *(f" - {text}" for text in report["problems"])])


# --- Run on the nodes -------------------------------------------------------------------------------------------------


def nvidia_smi(gpu: str | None, seconds: float) -> dict[str, Any]:
    """Ask for one GPU (index or UUID) or all. Returns {"gpus": [line per GPU]}, {"error": text} or {"absent": True}."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"absent": True}
    command = [program, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            [*command, *([f"--id={gpu}"] if gpu else [])], capture_output=True, text=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"nvidia-smi did not run: {error}"}
    if done.returncode:
        return {"error": f"nvidia-smi failed with {done.returncode}: {(done.stderr or done.stdout).strip()[:300]}"}
    return {"gpus": [line.strip() for line in done.stdout.splitlines() if line.strip()]}


def digest_of(ref: Any, seconds: float) -> str:
    """Read an object through this node's object store. Returns its SHA-256, or "error: ..." when it cannot be read."""
    import ray

    try:
        return hashlib.sha256(ray.get(ref, timeout=seconds)).hexdigest()
    except ray.exceptions.RayError as error:
        return f"error: {type(error).__name__}"


def probe_node(shared: list[Any], has_gpus: bool, seconds: float) -> tuple[dict[str, Any], bytes]:
    """The CPU task. `shared` is [ObjectRef]: a ref inside a list is not fetched before the task starts."""
    made = os.urandom(RING_BYTES)
    facts = {
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "smi": nvidia_smi(None, seconds) if has_gpus else None,
        "shared": digest_of(shared[0], seconds),
        "made": hashlib.sha256(made).hexdigest(),
    }
    return facts, made


def probe_gpu(seconds: float) -> dict[str, Any]:
    """The GPU task: which GPU Ray gave it, and what nvidia-smi says about that one."""
    import ray

    gpu = ",".join(str(item) for item in ray.get_gpu_ids())
    return {"gpu": gpu, "pid": os.getpid(), "smi": nvidia_smi(gpu, seconds)}


def read_ring(ring: list[Any], seconds: float) -> str:
    """The second object-store task: read what another node made."""
    return digest_of(ring[0], seconds)


# --- The driver -------------------------------------------------------------------------------------------------------


def collect(refs: dict[Any, Any], seconds: float) -> tuple[dict[Any, Any], dict[Any, str]]:
    """Wait for {key: ObjectRef} at most `seconds`. Returns ({key: result}, {key: why not}); cancels late ones."""
    import ray

    ready = set(ray.wait(list(refs.values()), num_returns=len(refs), timeout=max(seconds, 0.1))[0]) if refs else set()
    results, failures = {}, {}
    for key, ref in refs.items():
        if ref not in ready:
            ray.cancel(ref, force=True)
            failures[key] = f"no answer within {seconds:.0f} s"
            continue
        try:
            results[key] = ray.get(ref, timeout=5)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this node's problem to report)
            failures[key] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}"
    return results, failures


class Check:
    """One run over the nodes of the connected cluster. Fills `nodes` and `problems`."""

    def __init__(self, timeout: float) -> None:
        import ray

        self.ray = ray
        self.began = time.monotonic()
        self.timeout = timeout
        self.problems: list[str] = []
        free = self.free()
        self.nodes: list[dict[str, Any]] = [
            {
                "address": n["NodeManagerAddress"],
                "node_id": n["NodeID"],
                "cpus": n["Resources"].get("CPU", 0.0),
                "gpus": (gpus := n["Resources"].get("GPU", 0.0)),
                "cpu_reserved": free.get(n["NodeID"], {}).get("CPU", 0.0) >= 1,
                "gpus_busy": gpus - int(free.get(n["NodeID"], {}).get("GPU", 0.0)),
                "gpu_tasks": [],
                "gpu_checked": False,
                "store_ok": False,
            }
            for n in sorted(ray.nodes(), key=lambda n: n["NodeManagerAddress"])
            if n["Alive"]
        ]

    def free(self) -> dict[str, dict[str, float]]:
        """Free resources by node id. Ray has no public call for it per node."""
        free: dict[str, dict[str, float]] = self.ray._private.state.available_resources_per_node()
        return free

    def left(self, share: float) -> float:
        """Seconds until `share` of the whole timeout has passed."""
        return max(self.timeout * share - (time.monotonic() - self.began), 0.1)

    def on_node(self, function: Callable[..., Any], node: dict[str, Any], **options: Any) -> Any:
        """The function as a task that can run on this node only."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node_id=node["node_id"], soft=False)
        return self.ray.remote(function).options(scheduling_strategy=strategy, max_retries=0, **options)

    def run(self) -> None:
        """All checks; each stage has its share of the time, so a hung node leaves time for the others."""
        data = os.urandom(SHARED_BYTES)
        shared, digest = [self.ray.put(data)], hashlib.sha256(data).hexdigest()
        groups, gpu_refs = self.start_gpu_tasks()
        try:
            ring = self.probe_nodes(shared, digest)
            self.finish_gpu_tasks(groups, gpu_refs)
        finally:
            for group in groups.values():
                self.ray.util.remove_placement_group(group)
        self.read_ring(ring)

    def probe_nodes(self, shared: list[Any], digest: str) -> list[tuple[dict[str, Any], Any]]:
        """Run the CPU task on every node. Returns [(node, ObjectRef of the object it made)]."""

        def start(nodes: dict[str, dict[str, Any]], share: float) -> dict[str, list[Any]]:
            return {
                key: self.on_node(probe_node, node, num_cpus=int(node["cpu_reserved"]), num_returns=2).remote(
                    shared, node["gpus"] > 0, self.left(share) * 0.8
                )
                for key, node in nodes.items()
            }

        nodes = {node["node_id"]: node for node in self.nodes}
        refs = start(nodes, 0.5)
        facts, failures = collect({key: pair[0] for key, pair in refs.items()}, self.left(0.5))
        # A CPU may have been taken since we looked: what did not start gets a second chance without one.
        again = {key: nodes[key] for key in failures if nodes[key]["cpu_reserved"]}
        for node in again.values():
            node["cpu_reserved"] = False
        second = start(again, 0.75)
        more, late = collect({key: pair[0] for key, pair in second.items()}, self.left(0.75))
        refs, facts, failures = (
            refs | second,
            facts | more,
            {k: v for k, v in failures.items() if k not in again} | late,
        )
        for key, why in failures.items():
            self.problems.append(f"node {nodes[key]['address']} does not run a task: {why}; do: {LOOK_AT_NODE}")
        for key, fact in facts.items():
            read = fact.pop("shared")
            nodes[key].update(fact, store_ok=read == digest)
            if read != digest:
                self.problems.append(
                    f"node {nodes[key]['address']} cannot read the driver's object ({read[:60]});"
                    " do: admit the object manager's port between the nodes and look at /dev/shm"
                )
        return [(nodes[key], refs[key][1]) for key in facts]

    def start_gpu_tasks(self) -> tuple[dict[str, Any], dict[tuple[str, int], Any]]:
        """Reserve all free GPUs of each node at once and start a task in each, so every task has another GPU."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        groups, refs = {}, {}
        for node in self.nodes:
            key, count = node["node_id"], int(node["gpus"] - node["gpus_busy"])
            if count < 1:
                continue
            groups[key] = self.ray.util.placement_group(
                [{"GPU": 1}] * count, strategy="STRICT_PACK", bundle_label_selector=[{"ray.io/node-id": key}] * count
            )
            for index in range(count):
                strategy = PlacementGroupSchedulingStrategy(groups[key], placement_group_bundle_index=index)
                task = self.ray.remote(probe_gpu).options(
                    num_cpus=0, num_gpus=1, max_retries=0, scheduling_strategy=strategy
                )
                refs[key, index] = task.remote(self.left(0.5) * 0.8)
        return groups, refs

    def finish_gpu_tasks(self, groups: dict[str, Any], refs: dict[tuple[str, int], Any]) -> None:
        """Collect the GPU tasks and judge every node's GPUs."""
        results, failures = collect(refs, self.left(0.75))
        free = self.free()
        for node in self.nodes:
            key, wanted = node["node_id"], int(node["gpus"] - node["gpus_busy"])
            node["gpu_tasks"] = [results[ref] for ref in refs if ref[0] == key and ref in results]
            late = [why for ref, why in failures.items() if ref[0] == key]
            taken = key in groups and int(free.get(key, {}).get("GPU", 0.0)) < wanted
            if late and taken and self.ray.util.placement_group_table(groups[key])["state"] == "PENDING":
                node["gpus_busy"] = node["gpus"]  # taken by somebody since we looked
            elif late and node.get("hostname"):  # a node that runs nothing has been reported already
                self.problems.append(
                    f"node {node['address']}: {len(late)} of {wanted} free GPUs did not run a task: {late[0]};"
                    f" do: {LOOK_AT_GPU}"
                )
            self.problems += judge_gpus(node)
            node["gpu_checked"] = node["gpus"] > 0 and bool(node["gpu_tasks"] or node.get("smi"))

    def read_ring(self, ring: list[tuple[dict[str, Any], Any]]) -> None:
        """Every node reads what the node before it made."""
        if len(ring) < 2:
            return
        readers = {
            reader["node_id"]: (reader, maker, ref)
            for (maker, ref), (reader, _) in zip(ring, ring[1:] + ring[:1], strict=True)
        }
        refs = {
            key: self.on_node(read_ring, reader, num_cpus=0).remote([ref], self.left(1) * 0.8)
            for key, (reader, _, ref) in readers.items()
        }
        digests, failures = collect(refs, self.left(1))
        for key, (reader, maker, _) in readers.items():
            if digests.get(key) != maker["made"]:
                reader["store_ok"] = False
                self.problems.append(
                    f"node {reader['address']} cannot read an object made on node {maker['address']}"
                    f" ({failures.get(key) or digests[key][:60]});"
                    " do: admit the object manager's port between the nodes"
                )


def emit(report: dict[str, Any], target: str | None) -> None:
    """Print the summary and write the JSON: "-" is one line at the end of stdout, else a path."""
    print(render(report))
    if target == "-":
        print(json.dumps(report), flush=True)
    elif target:
        Path(target).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.flush()


def new_report() -> dict[str, Any]:
    """A report without a result; `ok` comes first so that the JSON line can be found among other output."""
    return {"ok": False, "seconds": 0.0, "nodes": [], "problems": [], "warnings": []}


def main(argv: list[str] | None = None) -> int:
    """Parse, connect, check, report. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--expect", metavar="FILE", help="JSON list of the expected nodes: address, cpus, gpus")
    source.add_argument("--expect-json", metavar="JSON", help="the same list, given directly")
    parser.add_argument("--json", metavar="PATH", help="write the report as JSON; - is one line at the end of stdout")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=120, help="for everything (default: 120)")
    args = parser.parse_args(argv)
    try:
        text = Path(args.expect).read_text(encoding="utf-8") if args.expect else args.expect_json
        expected = load_expected(text) if text else None
    except (OSError, ValueError) as error:
        parser.error(f"expected nodes: {error}")

    report, began, stage = new_report(), time.monotonic(), ["connecting"]

    def finish(problem: str | None = None) -> None:
        if problem:
            report["problems"].append(problem)
        report["seconds"] = round(time.monotonic() - began, 1)
        report["ok"] = not report["problems"]
        emit(report, args.json)

    def give_up() -> None:  # a call into Ray that has no timeout of its own must not hang the check
        if stage == ["connecting"]:
            finish(f"no Ray answers within {CONNECT_SECONDS} s, or it refuses the token; do: {LOOK_AT_CONNECTION}")
            os._exit(2)
        finish(f"not finished within {args.timeout:g} s while {stage[0]}; do: look at the head's GCS and raylet logs")
        os._exit(1)

    def guard(seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        return timer

    watchdog = guard(CONNECT_SECONDS)
    import ray

    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # noqa: BLE001 (Ray raises many kinds; all mean the same to the caller)
        finish(f"cannot connect to Ray: {error}; do: {LOOK_AT_CONNECTION}")
        return 2
    watchdog.cancel()
    stage[0], watchdog = "running tasks", guard(args.timeout + 5)
    check = Check(args.timeout)
    report["nodes"] = check.nodes
    if expected is not None:
        report["problems"], report["warnings"] = compare(expected, check.nodes)
    check.run()
    report["problems"] += check.problems
    stage[0] = "disconnecting from Ray"
    ray.shutdown()
    watchdog.cancel()
    finish()
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""What playbooks/export.yml writes: Ray's and KubeRay's schemas, the same start flags, no secret.

Two of the checks need what the control environment has not, and say so when they are skipped:
RAYMETAL_RAY_PYTHON       a Python with the locked Ray; scenario ray_serve makes the same check by the head's
RAYMETAL_KUBERAY_CRD      ray.io_rayservices.yaml of a release of KubeRay
"""

from __future__ import annotations

import copy
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support import ROOT, load

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
ODD = yaml.safe_load((HERE / "render_hosts.yml").read_text())
PREFIX = "/opt/raymetal/env/current"
ray_python = os.environ.get("RAYMETAL_RAY_PYTHON", "")
crd_path = os.environ.get("RAYMETAL_KUBERAY_CRD", "")
Exported = Callable[[str], Path]

export = load("roles/export/filter_plugins/export.py")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The directory with the files of an inventory: the example, or one with values that are hard to quote."""
    made: dict[str, Path] = {}
    odd = copy.deepcopy(ODD)
    odd["ray_cluster"]["vars"] |= {"cluster_name": "GPU_Halle.2", "ansible_user": "ops"}
    workers = odd["ray_cluster"]["children"]["ray_workers"]["hosts"]
    workers["other"] = {"ansible_host": "10.0.0.6", "ansible_port": 2222, "ray_node_options": {"num_gpus": 2}}
    workers["third"] = {**workers["other"], "ansible_host": "10.0.0.7", "export_pod_resources": {"cpu": 16}}
    inventory = tmp_path_factory.mktemp("odd") / "hosts.yml"
    inventory.write_text(yaml.safe_dump(odd, allow_unicode=True))
    inventories = {"example": ROOT / "inventories/example", "odd": inventory}

    def export_of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            command = ["ansible-playbook", "-i", str(inventories[name]), "playbooks/export.yml"]
            env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
            extra = ["-e", f"export_dir={made[name]}"]
            done = subprocess.run(
                command + extra, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        return made[name]

    return export_of


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


# --- ray up


def started(command: str, tmp_path: Path, host: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment that `ray` gets from ``command`` on ``host``, run as `ray up` runs it."""
    (tmp_path / "bin").mkdir(parents=True)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/GPU_Halle.2.env").write_text("PLAIN='from the file'\n")
    for name, text in {"ray": 'env -0 >"$HOME/env"; printf "%s\\0" "$@"', "hostname": f"echo {host}"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", f"export OMP_NUM_THREADS=1; (export RAY_HEAD_IP=10.0.0.4; {command})"],
        env={"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    environment = dict(entry.split("=", 1) for entry in (tmp_path / "env").read_text().split("\0") if entry)
    return done.stdout.split("\0")[:-1], environment


def golden_flags(name: str) -> set[str]:
    """The flags of our own start script."""
    script = (GOLDEN / f"{name}-ray-start.txt").read_text()
    return set(shlex.split(script.split("/bin/ray start", 1)[1].replace("\\\n", " ")))


@pytest.mark.parametrize(
    ("node", "host", "added"),
    [("head", "10.0.0.4", {"--autoscaling-config=~/ray_bootstrap_config.yaml"}), ("worker", "10.0.0.5", set())],
)
def test_ray_up_starts_nodes_with_our_flags(
    exported: Exported, tmp_path: Path, node: str, host: str, added: set[str]
) -> None:
    stop, start = read(exported("odd") / "ray-up.yml")[f"{node}_start_ray_commands"]
    assert stop == f"{PREFIX}/bin/ray stop"
    words, environment = started(start.replace(PREFIX, str(tmp_path)), tmp_path, host)
    assert words[0] == "start" and len(words) == len(set(words))
    assert golden_flags(node) - set(words) == {"--temp-dir=/var/lib/raymetal/ray"}
    assert set(words[1:]) - golden_flags(node) == added
    assert environment["RAY_AUTH_MODE"] == "token" and environment["PLAIN"] == "from the file"
    # `ray up` sets it to 1, for every process that Ray starts.
    assert "OMP_NUM_THREADS" not in environment
    assert not [name for name, value in environment.items() if value.startswith(("/etc/raymetal", "/var/lib/raymetal"))]


def test_a_worker_gets_its_own_flags_and_a_stranger_none(exported: Exported, tmp_path: Path) -> None:
    start = read(exported("odd") / "ray-up.yml")["worker_start_ray_commands"][1].replace(PREFIX, "$HOME")
    words, _ = started(start, tmp_path / "other", "10.0.0.6")
    assert [word for word in words if "gpus" in word or "name" in word or "rack" in word] == ["--num-gpus=2"]
    with pytest.raises(AssertionError, match="does not name this worker"):
        started(start, tmp_path / "stranger", "10.0.0.66")


def test_ray_up_reaches_the_hosts_of_the_inventory(exported: Exported) -> None:
    cluster = read(exported("example") / "ray-up.yml")
    assert cluster["provider"] == {
        "type": "local",
        "head_ip": "192.0.2.10",
        "worker_ips": ["192.0.2.11", "192.0.2.12"],
    }
    assert cluster["auth"] == {"ssh_user": "ubuntu"}
    # Ray looks for the token there by itself.
    assert cluster["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "case" not in cluster["worker_start_ray_commands"][1]


def test_what_has_no_place_in_the_file_is_said_in_it(exported: Exported) -> None:
    lines = (exported("odd") / "ray-up.yml").read_text().splitlines()
    left = [line.removeprefix("# Left out: ").partition(":")[0] for line in lines if line.startswith("# Left out")]
    assert left == [
        "ansible_port of other, 2222",
        "ansible_port of third, 2222",
        "GLOO_SOCKET_IFNAME",
        "NCCL_SOCKET_IFNAME",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",
    ]


@pytest.mark.skipif(not ray_python, reason="RAYMETAL_RAY_PYTHON names no Python with Ray; scenario ray_serve has one")
@pytest.mark.parametrize("name", ["example", "odd"])
def test_ray_accepts_the_files(exported: Exported, name: str, tmp_path: Path) -> None:
    directory = exported(name)
    assert accepted(directory) == "accepted\n"
    for path in directory.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "ray-up.yml").write_text((directory / "ray-up.yml").read_text() + "worker_ips: []\n")
    assert "worker_ips" in accepted(tmp_path)


def accepted(directory: Path) -> str:
    command = [ray_python, "-B", str(ROOT / "tests/head/accept_exports.py"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout if done.returncode == 0 else done.stderr


# --- KubeRay


def strict(schema: Any) -> Any:
    """``schema`` with unknown keys refused, as `kubectl apply --validate=strict` does; otherwise they are dropped."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return made


@pytest.fixture(scope="module")
def service_schema() -> Any:
    if not crd_path:
        pytest.skip("RAYMETAL_KUBERAY_CRD names no CRD of KubeRay")
    versions = read(Path(crd_path))["spec"]["versions"]
    return strict(next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"])


@pytest.mark.parametrize("name", ["example", "odd"])
def test_the_manifest_is_one_of_the_published_crd(exported: Exported, service_schema: Any, name: str) -> None:
    jsonschema.validate(read(exported(name) / "rayservice.yml"), service_schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "replica"), 2),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "name"), None),
        (("spec", "serveConfigV2"), {"applications": []}),
    ],
)
def test_the_crd_refuses_what_is_wrong(
    exported: Exported, service_schema: Any, path: tuple[Any, ...], value: Any
) -> None:
    manifest = read(exported("example") / "rayservice.yml")
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, service_schema)


def test_a_service_serves_what_the_inventory_says(exported: Exported) -> None:
    given = read(ROOT / "inventories/example/group_vars/all/serve.yml")["ray_serve_config"]
    served = yaml.safe_load(read(exported("example") / "rayservice.yml")["spec"]["serveConfigV2"])
    assert served == read(exported("example") / "serve.yml")
    llm = served["applications"][0]["args"]["llm_configs"][0]
    assert llm["model_loading_config"].pop("model_source") == "/opt/raymetal/models/qwen3-8b/1"
    del given["applications"][0]["args"]["llm_configs"][0]["model_loading_config"]["model_source"]
    assert served["applications"] == given["applications"]
    assert served["http_options"] == {"host": "0.0.0.0", "port": 8000}


def test_pods_have_gpus_and_models(exported: Exported) -> None:
    cluster = read(exported("example") / "rayservice.yml")["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    assert (group["groupName"], group["replicas"], group["minReplicas"], group["maxReplicas"]) == ("workers", 2, 2, 2)
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert "resources" not in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    # The staged model is a link to where host_path says.
    mounted = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    assert {m["mountPath"]: mounted[m["name"]] for m in container["volumeMounts"]} == {
        path: path for path in ("/opt/raymetal/models", "/srv/models/Qwen3-8B")
    }
    locked = next(
        line for line in (ROOT / "files/locks/cuda.lock").read_text().splitlines() if line.startswith("ray==")
    )
    assert cluster["rayVersion"] == locked.split("==")[1].split()[0]


def test_workers_that_differ_are_groups_of_their_own(exported: Exported) -> None:
    manifest = read(exported("odd") / "rayservice.yml")
    cluster = manifest["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert manifest["metadata"]["name"] == "gpu-halle-2"
    assert cluster["headGroupSpec"]["resources"] == {"CPU": "0"}
    told = {name: (group["resources"], group.get("labels")) for name, group in groups.items()}
    assert told == {
        "workers-1": ({"GPU": "2"}, None),
        "workers-2": ({"GPU": "2"}, None),
        "workers-3": ({"GPU": "8", "rack_a": "1"}, {"zone": "a"}),
    }
    limits = [g["template"]["spec"]["containers"][0]["resources"]["limits"] for g in groups.values()]
    assert limits == [
        {"nvidia.com/gpu": "2"},
        {"nvidia.com/gpu": "2", "cpu": "16"},
        {"nvidia.com/gpu": "8"},
    ]


# --- both


def test_secrets_stay_in_the_inventory(exported: Exported) -> None:
    worker = ODD["ray_cluster"]["children"]["ray_workers"]["hosts"]["worker"]
    text = "".join(path.read_text() for path in exported("odd").iterdir())
    for name, value in worker["ray_node_environment"].items():
        assert name in text
        assert f"{name}=" not in text and (len(str(value)) < 6 or str(value) not in text), name
    (container,) = read(exported("odd") / "rayservice.yml")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"][
        "spec"
    ]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "gpu-halle-2-environment"}}]


@pytest.mark.parametrize(
    ("cluster", "name"),
    [("prod", "prod"), ("GPU_Halle.2", "gpu-halle-2"), ("2nd", "ray-2nd"), ("-", "ray"), ("a" * 46 + "-b", "a" * 46)],
)
def test_names_that_kuberay_takes(cluster: str, name: str) -> None:
    assert export.kuberay_name(cluster) == name


@pytest.mark.parametrize(
    ("source", "paths"),
    [({"hostPath": {"path": "/m"}}, ["/m", "/a"]), ({"persistentVolumeClaim": {"claimName": "models"}}, ["/m"])],
)
def test_a_claim_holds_the_models_themselves(source: dict[str, Any], paths: list[str]) -> None:
    models = [{"name": "x", "host_path": "/a"}, {"name": "y", "host_path": "/a"}, {"name": "z", "hub": {}}]
    assert [volume["path"] for volume in export.kuberay_volumes(models, "/m", source)] == paths
    assert export.kuberay_volumes([], "/m", source) == []


def test_what_only_the_service_user_reads_stays() -> None:
    environment = {"A": "1", "HOME": "/x", "TOKEN": "t", "CERT": "/etc/raymetal/tls/ray.pem", "NEAR": "/etc/raymetal2"}
    kept = export.export_environment(environment, ["TOKEN"], ["/etc/raymetal", "/var/lib/raymetal"])
    assert kept == {"A": "1", "NEAR": "/etc/raymetal2"}


def test_what_is_left_out_is_named() -> None:
    plain = {"name": "a", "user": "ops", "port": 22, "ssh_arguments": "", "tls": False, "environment": {}}
    assert export.export_missing([plain, plain], ray_up=True) == []
    other = {**plain, "name": "b", "user": "root", "ssh_arguments": "-o ProxyJump=x", "tls": True}
    by_ray_up = export.export_missing([plain, other], ray_up=True)
    assert [line.split(":")[0] for line in by_ray_up] == [
        "ray_node_tls",
        "ansible_user of b, root",
        "ansible_ssh_common_args of b",
    ]
    assert export.export_missing([plain, other], ray_up=False) == by_ray_up[:1]

"""Bad input stops at its gate: all problems at once, each with what to do, and nothing on the host was changed."""

import copy
import os
import random
import re

import pytest
import yaml

LLM = """
    - name: llm
      route_prefix: /llm
      import_path: ray.serve.llm:build_openai_app
      args:
        llm_configs:
          - model_loading_config: {model_id: m, model_source: /srv/none}
"""
SNAPSHOT = r"""
find /etc /srv /opt/raymetal/models /opt/raymetal/env /opt/raymetal/judge -maxdepth 2 ! -type d \
  ! -path '/opt/raymetal/env/cache*' -printf '%p %s %T@ %m %u\n' | sort
ps -u raymetal -o pid=,comm= | grep -E 'raylet|gcs_server|Serve|Proxy|python' | sort
ss -ltnpH | grep -vE 'IDLE|Telemetry' | awk '{print $4}' | sort
"""


@pytest.fixture
def unchanged(host):
    """Fail the test if files, processes or listening ports are others after it than before."""
    before = host.check_output(SNAPSHOT)
    assert "raylet" in before and "serve.yml" in before and ":6380" in before
    yield
    assert host.check_output(SNAPSHOT) == before


def refused(result, gate, *messages):
    assert result.returncode != 0, result.stdout[-3000:]
    text = " ".join(result.stdout.split())
    assert f"{gate}:" in text and "nothing that runs was changed" in text, result.stdout[-3000:]
    missing = [message for message in messages if not re.search(message, text)]
    assert not missing, f"not said: {missing}\n{result.stdout[-6000:]}"


def inventory(host, tmp_path, heads, workers):
    """An inventory file; every host has the address and the keys of the scenario's one host."""
    own = host.ansible.get_variables()
    keys = {k: v for k, v in own.items() if k.startswith("ansible_")}
    shape = {
        group: {"hosts": {name: dict(keys) for name in names}}
        for group, names in (("ray_head", heads), ("ray_workers", workers))
    }
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.dump({"ray_cluster": {"children": shape}}))
    return path


@pytest.mark.parametrize(
    ("heads", "workers", "message"),
    [
        ([], ["a"], "group ray_head = .*the group has no host. To do: put exactly one host in it"),
        (["a", "b"], [], "the group has 2 hosts. To do: put exactly one"),
        (["a"], ["b"], "2 hosts have the same address: a, b. To do: name each machine once"),
        (["a"], ["a"], "a: groups = .*the host is head and worker"),
    ],
)
def test_gate_1_refuses_the_shape(host, playbook, tmp_path, unchanged, heads, workers, message):
    refused(playbook("site.yml", inventory=inventory(host, tmp_path, heads, workers)), "gate 1", message)


def test_gate_1_refuses_an_empty_inventory(host, playbook, tmp_path, unchanged):
    (tmp_path / "hosts.yml").write_text("ray_cluster:\n")
    result = playbook("site.yml", inventory=tmp_path / "hosts.yml")
    assert result.returncode != 0 and "has no host in it" in " ".join(result.stdout.split())


def test_gate_1_tells_all_problems_of_the_inputs_at_once(host, playbook, tmp_path, unchanged):
    (tmp_path / "model").mkdir()
    variables = f"""
python_env_variant: cpu
ray_node_port: 70000
ray_node_options:
  nun_cpus: 1
  gcs_server_port: 6381
  head: true
  num_cpus: -2
  min_worker_port: 20000
  max_worker_port: 20100
  metrics_export_port: 8265
  object_manager_port: 99999
  resources: {{since: 2026-01-01}}
ray_serve_config:
  applications:
    - {{name: one, route_prefix: /one, import_path: "light:build"}}
    - {{name: one, route_prefix: /two, import_path: "light:build"}}
    - {{name: three, route_prefix: /two, import_path: "light:build"}}
    - {{name: four, route_prefix: four, import_path: "light:build"}}
model_store_models:
  - {{name: a, revision: "1", controller_path: {tmp_path}/none}}
  - {{name: b, revision: "1", controller_path: {tmp_path}/model}}
  - {{name: c, revision: "1"}}
"""
    refused(
        playbook("site.yml", variables=variables),
        "gate 1",
        "head: ray_node_port = 70000: is no port. To do: write 1 to 65535",
        "ray_node_options.nun_cpus = 1: `ray start` has no such option. To do: did you mean num_cpus",
        "ray_node_options.gcs_server_port = 6381: this version of `ray start` no longer has it. To do: .*ray_node_port",
        "ray_node_options.head = True: belongs to the role",
        "ray_node_options.num_cpus = -2: is negative",
        r"ray_node_options.metrics_export_port = 8265: is also a port of the dashboard.*\(ray_node_dashboard_port\)",
        "ray_node_options.object_manager_port = 99999: is no port",
        "ray_node_options.resources = .*cannot be written as JSON",
        r"applications\[1\].name = one: another application has the same name",
        r"applications\[2\].route_prefix = /two: is also the route of one",
        r"applications\[3\].route_prefix = four: must start with a slash",
        r"model_store_models\[0\].controller_path = .*is no directory on the controller",
        r"model_store_models\[1\].controller_path = .*has no config.json",
        r"model_store_models\[2\] = c: has 0 sources",
    )


def test_gate_1_tells_wrong_types_by_name(host, playbook, unchanged):
    variables = {"ray_node_drain_seconds": "soon", "python_env_variant": "rocm", "ray_serve_config": ["a"]}
    expected = ("ray_node_drain_seconds = soon: .*int", "python_env_variant = rocm: .*cpu, cuda", "ray_serve_config")
    refused(playbook("site.yml", variables=variables), "gate 1", *expected)


def test_gate_2_tells_all_problems_of_the_host_at_once(host, playbook, unchanged):
    host.run_expect([0], "test -e /srv/applications/light.py")
    variables = f"""
cluster_root: /srv/other
gpu_host_disk_minimum_gib: 1000000
gpu_host_memory_minimum_gib: 1000000
gpu_host_supported_os: {{debian: ["99"]}}
python_env_python_version: "3.99"
python_env_python_source: host
ray_node_options: {{num_cpus: 2, num_gpus: 3, object_store_memory: 999999999999}}
model_store_models:
  - {{name: a, revision: "1", host_path: /srv/none}}
  - {{name: b, revision: "1", host_path: /srv/applications}}
ray_serve_config:
  applications: {LLM}
            engine_kwargs: {{tensor_parallel_size: 64}}
"""
    refused(
        playbook("site.yml", variables=variables),
        "gate 2",
        "head: gpu_host_disk_minimum_gib = 1000000.*GiB are free at /srv/other.*To do: free some space",
        "gpu_host_memory_minimum_gib = 1000000",
        "gpu_host_supported_os = debian 12: is not supported. To do: use one of debian 99",
        "python_env_python_version = 3.99: the host has no such Python",
        r"ray_node_options.num_gpus = 3: the host has 0 GPUs \(nvidia-smi is not installed\)",
        "ray_node_options.object_store_memory = 999999999999: /dev/shm has only",
        "model_store_models a.host_path = /srv/none: is no directory",
        "model_store_models b.host_path = /srv/applications: has no config.json",
        "engine_kwargs.tensor_parallel_size = 64: .*one replica needs 64, the cluster has 3 GPUs",
    )


def test_gate_2_names_a_host_that_does_not_answer(host, playbook, tmp_path, unchanged):
    path = inventory(host, tmp_path, ["head"], ["gone"])
    data = yaml.safe_load(path.read_text())
    address = data["ray_cluster"]["children"]["ray_head"]["hosts"]["head"]["ansible_host"]
    gone = address.rpartition(".")[0] + ".250"
    data["ray_cluster"]["children"]["ray_workers"]["hosts"]["gone"]["ansible_host"] = gone
    path.write_text(yaml.dump(data))
    result = playbook("site.yml", "--timeout", "3", inventory=path, variables={"python_env_variant": "cpu"})
    refused(result, "gate 2", f"gone: ansible_host = {gone}: the host does not answer: .*To do: check the address")


def test_gate_3_tells_all_that_ray_and_vllm_would_refuse_or_ignore(host, playbook, unchanged):
    variables = f"""
ray_serve_config:
  proxy_locations: EveryNode
  http_options: {{hots: 127.0.0.1}}
  applications:
    - {{name: gone, route_prefix: /gone, import_path: "light:missing"}}
    - name: light
      route_prefix: /light
      route_prefixes: /l
      import_path: light:build
      deployments:
        - {{name: Light, num_replica: 2}}
    - name: scaled
      route_prefix: /scaled
      import_path: light:build
      deployments:
        - {{name: Light, autoscaling_config: {{min_replicas: 3, max_replicas: 2, upscale_delay: 5}}}}
    - name: both
      route_prefix: /both
      import_path: light:build
      deployments:
        - {{name: Light, num_replicas: 2, autoscaling_config: {{min_replicas: 1}}}}
{LLM}
            model_sauce: x
            engine_kwargs: {{tensor_paralel_size: 2, max_model_len: many}}
"""
    at = r"ray_serve_config\.applications\[%d\]\."
    refused(
        playbook("site.yml", variables=variables),
        "gate 3",
        "ray_serve_config.proxy_locations .*proxy_location",
        r"http_options.hots .*host",
        at % 0 + "import_path = light:missing",
        at % 1 + "route_prefixes .*route_prefix",
        at % 1 + r"deployments\[0\].num_replica .*num_replicas",
        at % 2 + r"deployments\[0\].autoscaling_config.upscale_delay .*upscale_delay_s",
        at % 2 + r"deployments\[0\].autoscaling_config.*min_replicas",
        at % 3 + r"deployments\[0\].*num_replicas",
        at % 4 + r"args.llm_configs\[0\].model_sauce",
        at % 4 + r"args.llm_configs\[0\].engine_kwargs.tensor_paralel_size .*tensor_parallel_size",
        at % 4 + r"args.llm_configs\[0\].engine_kwargs.max_model_len = many",
    )


JUNK = [None, -1, 0, 3, 1.5, "", "text", True, [], [1], {}, {"a": 1}]


def mutate(config, rng):
    """Change one random key or value somewhere in ``config``."""
    places = []

    def walk(node):
        if isinstance(node, (dict, list)) and node:
            places.append(node)
            for child in node.values() if isinstance(node, dict) else node:
                walk(child)

    walk(config)
    node = rng.choice(places)
    if isinstance(node, list):
        node[rng.randrange(len(node))] = rng.choice(JUNK)
        return
    key = rng.choice(list(node))
    if rng.random() < 0.4:
        node[key + rng.choice("sx_")] = node.pop(key)
    else:
        node[key] = rng.choice(JUNK)


@pytest.mark.parametrize("seed", range(MUTATIONS := int(os.environ.get("RAYMETAL_MUTATIONS", "2"))))
def test_a_random_change_is_refused_or_a_true_success(host, playbook, seed):
    rng = random.Random(seed)
    config = copy.deepcopy(host.ansible.get_variables()["ray_serve_config"])  # they are cached
    mutate(config, rng)
    before = host.check_output(SNAPSHOT)
    allowed = {"ray_serve_remove_applications": ["light", "other"]}
    result = playbook("site.yml", "--tags", "serve", variables=yaml.dump({"ray_serve_config": config, **allowed}))
    if result.returncode == 0:
        for app in config["applications"]:
            route = app.get("route_prefix", "/")
            status = host.check_output(f"curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:8000{route}")
            assert route is None or status == "200", (seed, config)
    else:
        assert re.search("gate [123]: ", result.stdout), (seed, config, result.stdout[-3000:])
        assert host.check_output(SNAPSHOT) == before

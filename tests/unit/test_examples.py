"""The examples of files/examples: judged by Ray itself, and on a CPU the same but for sizes.

RAYMETAL_RAY_PYTHON is a Python with the locked Ray. Without it the judging is skipped; scenario ray_serve judges some.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT, load

EXAMPLES = ROOT / "files/examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.yml"))
MODEL = "/opt/raymetal/models/smollm2/1"
ray_python = os.environ.get("RAYMETAL_RAY_PYTHON", "")
needs_ray = pytest.mark.skipif(not ray_python, reason="RAYMETAL_RAY_PYTHON names no Python with Ray")
serve_on_cpu = load("roles/ray_serve/filter_plugins/serve_on_cpu.py").serve_on_cpu

# What a CPU may change of a model, and of a deployment.
SIZES = {
    "model_loading_config.model_source",
    "engine_kwargs.dtype",
    "engine_kwargs.tensor_parallel_size",
    "engine_kwargs.pipeline_parallel_size",
    "placement_group_config",
    "accelerator_type",
    "runtime_env.env_vars.VLLM_CPU_KVCACHE_SPACE",
    "runtime_env.env_vars.VLLM_ALLOW_LONG_MAX_MODEL_LEN",
    "runtime_env.env_vars.TORCHDYNAMO_DISABLE",
    "runtime_env.env_vars.VLLM_USE_AOT_COMPILE",
}


def example(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yml").read_text())
    return content


def judged(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What the judge says; the applications that the examples bring lie in the project, not on a node."""
    text = json.dumps(config).replace("local:///opt/raymetal/applications", f"local://{EXAMPLES}")
    judge = ROOT / "roles/ray_serve/files/judge_serve_config.py"
    done = subprocess.run(
        [ray_python, "-B", str(judge), "-"], input=text, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stdout, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)["problems"]
    return found


def flat(value: Any, path: str = "", stop: tuple[str, ...] = ("placement_group_config",)) -> dict[str, Any]:
    """Path -> value of every leaf."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not inner or path.endswith(stop):
        return {path: value}
    return {k: v for key, item in inner for k, v in flat(item, f"{path}.{key}").items()}


@pytest.mark.parametrize("name", NAMES)
def test_on_a_cpu_only_model_source_dtype_and_sizes_differ(name: str) -> None:
    given, made = flat(example(name)), flat(serve_on_cpu(example(name), MODEL))
    differ = {path for path in given.keys() | made.keys() if given.get(path) != made.get(path)}
    models = [path for path in differ if ".llm_configs." in path]
    assert {path.split(".llm_configs.")[1].split(".", 1)[1] for path in models} <= SIZES
    assert all(path.endswith(".ray_actor_options.num_gpus") for path in differ - set(models))
    assert [v for p, v in made.items() if p.endswith("model_source")] == [
        MODEL for p in given if p.endswith("model_source")
    ]


def test_on_a_cpu_an_environment_variable_of_the_operator_stays() -> None:
    model = {"model_loading_config": {"model_id": "m"}, "accelerator_type": "L4"}
    model["runtime_env"] = {"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "9"}, "pip": ["x"]}
    app = {"import_path": "ray.serve.llm:build_openai_app", "args": {"llm_configs": [model], "other": 1}}
    (made,) = serve_on_cpu({"applications": [app]}, "/m")["applications"]
    (on_cpu,) = made["args"]["llm_configs"]
    assert made["args"]["other"] == 1 and "accelerator_type" not in on_cpu and "accelerator_type" in model
    assert on_cpu["runtime_env"]["env_vars"]["VLLM_CPU_KVCACHE_SPACE"] == "9" and on_cpu["runtime_env"]["pip"] == ["x"]


@pytest.mark.parametrize("cpu_model", ["", MODEL])
def test_one_variable_serves_an_example_and_one_more_does_on_cpus(tmp_path: Path, cpu_model: str) -> None:
    """By export.yml, which writes cluster_serve_config as every play sees it."""
    variables = {"ray_serve_file": "files/examples/two-models.yml", "ray_serve_cpu_model": cpu_model}
    command = ["ansible-playbook", "-i", "inventories/example", "playbooks/export.yml"]
    extra = ["-e", json.dumps({**variables, "export_dir": str(tmp_path)})]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run(command + extra, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    served = yaml.safe_load((tmp_path / "serve.yml").read_text())
    wanted = example("two-models")
    assert served["applications"] == (serve_on_cpu(wanted, cpu_model) if cpu_model else wanted)["applications"]
    assert served["http_options"] == {"host": "0.0.0.0", "port": 8000}, "what the file does not say is the inventory's"


def test_the_multi_application_example_has_every_key_of_the_seed() -> None:
    text = (EXAMPLES / "multi-application.yml").read_text()
    config = example("multi-application")
    assert {"proxy_location", "http_options", "grpc_options", "logging_config", "applications"} == config.keys()
    first, second = config["applications"]
    assert {"name", "import_path", "route_prefix", "runtime_env", "args", "deployments"} == first.keys()
    assert first["deployments"][0].keys() == {"name", "num_replicas", "ray_actor_options"}
    assert second["deployments"][0].keys() >= {"name", "autoscaling_config", "ray_actor_options"}
    assert "# pip:" in text and "# image_uri:" in text, "refused, with the reason beside it"


@needs_ray
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cpu", [False, True])
def test_ray_accepts_every_example(name: str, cpu: bool) -> None:
    assert judged(serve_on_cpu(example(name), MODEL) if cpu else example(name)) == []


@needs_ray
def test_what_the_seed_shows_and_ray_cannot_is_refused_with_the_reason() -> None:
    config = example("autoscaling")
    scaling = config["applications"][0]["deployments"][0]["autoscaling_config"]
    scaling["upscale_delay"] = scaling.pop("upscale_delay_s")
    multi = example("multi-application")["applications"]
    odd: list[dict[str, Any]] = [
        {"runtime_env": {"working_dir": "."}},
        {"runtime_env": {"pip": ["torch"]}},
        {"runtime_env": {"image_uri": "docker.io/user/app1:latest"}},
        {"deployments": [{"name": "Hello", "num_replicas": 2, "autoscaling_config": {"min_replicas": 1}}]},
    ]
    config["applications"] += [
        {**multi[0], "name": f"odd{i}", "route_prefix": f"/odd{i}", **part} for i, part in enumerate(odd)
    ]
    found = {p["variable"].removeprefix("ray_serve_config.applications"): p["problem"] for p in judged(config)}
    words = {
        "[0].deployments[0].autoscaling_config.upscale_delay": "Unknown key",
        "[1].runtime_env": "local://",
        "[2].runtime_env.pip": "miss pip",
        "[3].runtime_env.image_uri": "podman",
        "[4].deployments[0]": "num_replicas is not allowed",
    }
    assert {path: word for path, word in words.items() if word not in found.get(path, "")} == {}, found


@needs_ray
@pytest.mark.parametrize("cpu_model", ["", MODEL])
def test_deepseek_is_the_same_in_yaml_and_in_python(cpu_model: str) -> None:
    script = "import deepseek, json; print(json.dumps(deepseek.llm_config.model_dump(exclude_unset=True), default=str))"
    # It asks the cluster for the runtime_env of its process; there is no cluster here.
    script = f"import ray; from unittest import mock; ray.get_runtime_context = mock.Mock(); {script}"
    env = {**os.environ, "CPU_MODEL": cpu_model, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [ray_python, "-B", "-c", script],
        cwd=EXAMPLES / "deepseek",
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    config = serve_on_cpu(example("deepseek"), cpu_model) if cpu_model else example("deepseek")
    (wanted,) = config["applications"][0]["args"]["llm_configs"]
    made = json.loads(done.stdout.splitlines()[-1])
    assert {key: made[key] for key in wanted} == wanted


@needs_ray
def test_the_command_line_has_what_the_page_says() -> None:
    """docs/develop.md names the options of `serve run`, and those that it has no more."""
    script = "import json; from ray.serve.scripts import cli; print(json.dumps({n: [o for p in c.params for o in p.opts"
    script += " + p.secondary_opts if o.startswith('-')] for n, c in cli.commands.items()}))"
    done = subprocess.run([ray_python, "-B", "-c", script], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    options = json.loads(done.stdout.splitlines()[-1])
    page = (ROOT / "docs/develop.md").read_text()
    table = page.split("| Option of `serve run` |")[1].split("\n\n")[0]
    named = {word for line in table.splitlines()[2:] for word in line.split("|")[1].replace("`", "").split()}
    gone = {"--host", "--port"}
    assert {word for word in named if word.startswith("--")} == set(
        filter(lambda o: o.startswith("--"), options["run"])
    ) | gone
    assert not gone & set(options["run"]) and {"--http-host", "--http-port"} <= set(options["start"])

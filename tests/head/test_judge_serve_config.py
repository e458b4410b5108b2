"""The judge of Serve configs, run by the environment's own Python: real Ray, real vLLM, no cluster."""

from __future__ import annotations

import copy
import datetime
import json
import os
import pathlib
import random
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "roles/ray_serve/files"))

import judge_serve_config as judge_module

FILES = pathlib.Path(judge_module.__file__).parent
ROOT = "ray_serve_config"
APP = f"{ROOT}.applications[0]"
LLM = f"{APP}.args.llm_configs[0]"

SMALLEST = """
proxy_location: EveryNode
http_options: {host: 0.0.0.0, port: 8000}
grpc_options: {port: 9000, grpc_servicer_functions: []}
logging_config: {log_level: INFO}
applications:
  - name: tiny
    route_prefix: /
    import_path: ray.serve.llm:build_openai_app
    args:
      ingress_deployment_config: {max_surge_percent: 100}
      llm_configs:
        - model_loading_config: {model_id: tiny, model_source: /opt/models/tiny}
          deployment_config:
            autoscaling_config: {min_replicas: 1, max_replicas: 1}
            ray_actor_options: {num_cpus: 1}
          placement_group_config:
            bundles: [{CPU: 1}]
          engine_kwargs: {max_model_len: 512, enforce_eager: true, dtype: bfloat16}
          lora_config: {max_num_adapters_per_replica: 2}
          runtime_env: {env_vars: {VLLM_CPU_KVCACHE_SPACE: "1", TORCHDYNAMO_DISABLE: "1"}}
    deployments:
      - name: LLMServer:tiny
        autoscaling_config: {min_replicas: 1, max_replicas: 2}
"""

MINIMAL = """
applications:
  - name: qwen3_app
    route_prefix: /
    import_path: ray.serve.llm:build_openai_app
    args:
      llm_configs:
        - model_loading_config: {model_id: qwen3, model_source: /Models/Qwen3-8B/}
          deployment_config: {max_ongoing_requests: 128}
          engine_kwargs:
            tensor_parallel_size: 1
            gpu_memory_utilization: 0.9
            max_model_len: 32768
            trust_remote_code: true
"""

AUTOSCALING = """
applications:
  - name: qwen3_app
    route_prefix: /
    import_path: ray.serve.llm:build_openai_app
    args:
      llm_configs:
        - model_loading_config: {model_id: qwen3, model_source: /Models/Qwen3-0.6B/}
          deployment_config:
            autoscaling_config:
              min_replicas: 1
              max_replicas: 2
              target_ongoing_requests: 5
              upscale_delay_s: 5.0
              downscale_delay_s: 30.0
            max_ongoing_requests: 64
            ray_actor_options: {num_gpus: 0.5}
          engine_kwargs: {tensor_parallel_size: 1, gpu_memory_utilization: 0.45, max_model_len: 4096}
"""

DEEPSEEK = """
applications:
  - name: deepseek
    route_prefix: /
    import_path: ray.serve.llm:build_openai_app
    args:
      llm_configs:
        - model_loading_config: {model_id: deepseek-r1, model_source: deepseek-ai/DeepSeek-R1}
          accelerator_type: H100
          deployment_config:
            autoscaling_config: {min_replicas: 1, max_replicas: 1}
          runtime_env: {env_vars: {VLLM_USE_V1: "1"}}
          engine_kwargs:
            tensor_parallel_size: 8
            pipeline_parallel_size: 2
            gpu_memory_utilization: 0.92
            dtype: auto
            max_num_seqs: 40
            max_model_len: 16384
            enable_chunked_prefill: true
            enable_prefix_caching: true
            trust_remote_code: true
            tool_call_parser: hermes
            enable_auto_tool_choice: true
            attention_backend: FLASH_ATTN
            limit_mm_per_prompt: {image: 0}
            compilation_config: {cudagraph_capture_sizes: [1, 2, 4]}
            speculative_config: {method: ngram, num_speculative_tokens: 2}
"""


def load(text: str) -> Any:
    return yaml.safe_load(text)


def two_apps() -> Any:
    config = load(AUTOSCALING)
    second = copy.deepcopy(config["applications"][0])
    config["applications"][0]["route_prefix"] = "/app1"
    second.update(
        name="second", route_prefix="/app2", deployments=[{"name": "OpenAiIngress", "max_surge_percent": 100}]
    )
    second["args"]["llm_configs"][0]["model_loading_config"]["model_id"] = "Qwen/Qwen3-4B.awq"
    second["deployments"].append({"name": "LLMServer:Qwen--Qwen3-4B_awq", "max_ongoing_requests": 32})
    config["applications"].append(second)
    return config


def put(config: Any, path: str, value: Any) -> Any:
    """Set a dotted path (numbers are list positions, missing mappings are made) and return the config."""
    steps: list[Any] = [int(step) if step.isdigit() else step for step in path.split("/")]
    *parents, last = steps
    there = config
    for step in parents:
        there = there[step] if isinstance(there, list) else there.setdefault(step, {})
    there[last] = value
    return config


def told(config: Any) -> dict[str, Any]:
    """Return the problems by variable; each place is told once."""
    found = judge_module.judge(config)
    assert len({problem.variable for problem in found}) == len(found), found
    return {problem.variable: problem for problem in found}


@pytest.mark.parametrize("text", [SMALLEST, MINIMAL, AUTOSCALING, DEEPSEEK])
def test_valid_configs_are_accepted(text: str) -> None:
    assert judge_module.judge(load(text)) == []


def test_what_a_replica_needs_is_what_ray_will_ask_for() -> None:
    needs: dict[str, Any] = {}
    assert judge_module.judge(load(SMALLEST), needs) == []
    assert needs["tiny"]["LLMServer:tiny"]["placement_group_bundles"] == [{"GPU": 0, "CPU": 2.0}]
    assert needs["tiny"]["OpenAiIngress"]["ray_actor_options"] == {"num_cpus": 1}
    assert judge_module.judge(load(DEEPSEEK), needs) == []
    (model,) = [found for name, found in needs["deepseek"].items() if name.startswith("LLMServer:")]
    assert len(model["placement_group_bundles"]) == 16 and model["placement_group_strategy"] == "PACK"
    assert sum(bundle["GPU"] for bundle in model["placement_group_bundles"]) == 16


def test_two_apps_and_overrides_by_the_names_that_ray_makes_are_accepted() -> None:
    assert judge_module.judge(two_apps()) == []


A = "applications/0"
C = f"{A}/args/llm_configs/0"


@pytest.mark.parametrize(
    ("place", "key", "right"),
    [
        ("", "proxy_locatoin", "proxy_location"),
        (A, "route_prefx", "route_prefix"),
        ("http_options", "prot", "port"),
        ("grpc_options", "prot", "port"),
        ("logging_config", "log_levle", "log_level"),
        (f"{A}/deployments/0", "num_replica", "num_replicas"),
        (f"{A}/deployments/0/autoscaling_config", "upscale_delay", "upscale_delay_s"),
        (f"{A}/deployments/0/ray_actor_options", "num_gpu", "num_gpus"),
        (f"{A}/runtime_env", "env_var", "env_vars"),
        (f"{A}/args", "llm_config", "llm_configs"),
        (f"{A}/args/ingress_deployment_config", "num_replica", "num_replicas"),
        (f"{A}/args/ingress_deployment_config/autoscaling_config", "max_replica", "max_replicas"),
        (C, "accelerator_typ", "accelerator_type"),
        (f"{C}/model_loading_config", "model_sorce", "model_source"),
        (f"{C}/lora_config", "max_num_adapter_per_replica", "max_num_adapters_per_replica"),
        (f"{C}/accelerator_config", "knd", "kind"),
        (f"{C}/callback_config", "callback_clas", "callback_class"),
        (f"{C}/placement_group_config", "strategi", "strategy"),
        (f"{C}/runtime_env", "env_varz", "env_vars"),
        (f"{C}/deployment_config", "max_ongoing_request", "max_ongoing_requests"),
        (f"{C}/deployment_config/autoscaling_config", "upscale_delay", "upscale_delay_s"),
        (f"{C}/deployment_config/ray_actor_options", "num_cpu", "num_cpus"),
        (f"{C}/engine_kwargs", "tensor_paralel_size", "tensor_parallel_size"),
        (f"{C}/engine_kwargs/compilation_config", "cudagraph_capture_size", "cudagraph_capture_sizes"),
        (f"{C}/engine_kwargs/speculative_config", "num_speculative_token", "num_speculative_tokens"),
    ],
)
def test_unknown_key_at_each_level_names_the_right_one(place: str, key: str, right: str) -> None:
    config = load(SMALLEST)
    put(config, f"{place}/{key}" if place else key, 1)
    variable = ROOT + "".join(f"[{s}]" if s.isdigit() else f".{s}" for s in place.split("/") if s) + f".{key}"
    found = told(config)
    assert variable in found, found
    assert found[variable].do == f"Did you mean `{right}`?"
    assert found[variable].value == 1


def test_an_unknown_key_is_told_once_and_not_again_as_the_missing_one() -> None:
    config = put(load(SMALLEST), f"{C}/model_loading_config", {"model_idd": "tiny"})
    config["applications"][0].pop("deployments")
    assert list(told(config)) == [f"{LLM}.model_loading_config.model_idd"]


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ("max_model_len", "many", "integer"),
        ("max_model_len", "512", "str"),
        ("dtype", "bfloat17", "bfloat16"),
        ("enforce_eager", "perhaps", "boolean"),
        ("enforce_eager", "false", "str"),
        ("tensor_parallel_size", None, "integer"),
        ("tensor_parallel_size", 2.0, "float"),
        ("tensor_parallel_size", True, "bool"),
        ("tensor_parallel_size", [2], "integer"),
        ("gpu_memory_utilization", 1.5, "less than or equal to 1"),
        ("quantization", "awqq", "awqq"),
        ("compilation_config", {"cudagraph_capture_sizes": "x"}, "list"),
        ("limit_mm_per_prompt", 3, "dictionary"),
    ],
)
def test_wrong_engine_values_are_refused(place: str, value: Any, word: str) -> None:
    found = told(put(load(SMALLEST), f"{C}/engine_kwargs/{place}", value))
    assert len(found) == 1
    (problem,) = found.values()
    assert problem.variable.startswith(f"{LLM}.engine_kwargs.{place}")
    assert word in problem.problem


@pytest.mark.parametrize(
    ("place", "value", "variable", "word"),
    [
        (f"{C}/engine_kwargs/model", "x", f"{LLM}.engine_kwargs", "not allowed"),
        (f"{C}/deployment_config/num_replicas", 2, f"{LLM}.deployment_config", "num_replicas is not allowed"),
        (f"{A}/deployments/0/num_replicas", 2, f"{APP}.deployments[0]", "num_replicas is not allowed"),
        (f"{C}/deployment_config/num_replicas", "many", f"{LLM}.deployment_config.num_replicas", "integer"),
        (
            f"{C}/deployment_config/max_ongoing_requests",
            "x",
            f"{LLM}.deployment_config.max_ongoing_requests",
            "integer",
        ),
        (
            f"{C}/deployment_config/placement_group_strategy",
            "PACK",
            f"{LLM}.deployment_config",
            "placement_group_strategy",
        ),
        (f"{C}/placement_group_config/bundles", "x", f"{LLM}.placement_group_config.bundles", "list"),
        (f"{C}/placement_group_config/strategy", "NEAR", f"{LLM}.placement_group_config.strategy", "PACK"),
        (f"{C}/accelerator_type", "H1000", f"{LLM}.accelerator_type", "Unsupported accelerator"),
        (f"{C}/llm_engine", "vllmm", f"{LLM}.llm_engine", "Unsupported engine"),
        (f"{C}/lora_config/dynamic_lora_loading_path", "/x", f"{LLM}.lora_config.dynamic_lora_loading_path", "S3"),
        (f"{C}/model_loading_config/model_id", "a#b", f"{APP}.args", "'#'"),
        (f"{C}/model_loading_config/model_id", 7, f"{LLM}.model_loading_config.model_id", "string"),
        (f"{C}/runtime_env/env_vars/X", 1, f"{LLM}.runtime_env.env_vars.X", "not int"),
        (f"{A}/runtime_env", {"env_vars": {"X": 1}}, f"{APP}.runtime_env.env_vars.X", "not int"),
        (f"{A}/runtime_env", {"working_dir": "/home/x"}, f"{APP}.runtime_env", "URI"),
        (f"{A}/args/llm_configs", [], f"{APP}.args", "empty"),
        ("http_options/port", "web", f"{ROOT}.http_options.port", "integer"),
        ("proxy_location", "Everywhere", f"{ROOT}.proxy_location", "EveryNode"),
        ("logging_config/log_level", "LOUD", f"{ROOT}.logging_config.log_level", "log_level"),
        (f"{A}/route_prefix", "tiny", f"{APP}.route_prefix", "start with"),
        (f"{A}/route_prefix", "/tiny/", f"{APP}.route_prefix", "end with"),
        (f"{A}/name", "", f"{ROOT}.applications", "nonempty"),
        (f"{A}/port", 8001, ROOT, "top level"),
        ("applications", {"name": "x"}, f"{ROOT}.applications", "list"),
    ],
)
def test_what_ray_refuses_late_is_refused_here(place: str, value: Any, variable: str, word: str) -> None:
    config = put(load(SMALLEST), place, value)
    if place.endswith("model_id") or place == f"{A}/args/llm_configs":
        config["applications"][0].pop("deployments")
    found = told(config)
    assert list(found) == [variable]
    assert word in found[variable].problem


@pytest.mark.parametrize(
    "place", [f"{A}/deployments/0/autoscaling_config", f"{C}/deployment_config/autoscaling_config"]
)
@pytest.mark.parametrize(
    "replicas", [{"min_replicas": 3, "max_replicas": 1}, {"initial_replicas": 9, "max_replicas": 2}]
)
def test_replica_ranges(place: str, replicas: dict[str, int]) -> None:
    (problem,) = told(put(load(SMALLEST), place, replicas)).values()
    assert problem.variable.endswith(".autoscaling_config")
    assert "must be greater than" in problem.problem


def test_override_with_fixed_replicas_under_autoscaling_is_ignored_by_ray_and_refused() -> None:
    config = load(SMALLEST)
    config["applications"][0]["deployments"] = [{"name": "LLMServer:tiny", "num_replicas": 2}]
    assert list(told(config)) == [f"{APP}.deployments[0].num_replicas"]
    config["applications"][0]["deployments"][0]["autoscaling_config"] = None
    assert told(config) == {}


def test_deployment_that_the_app_does_not_have() -> None:
    config = two_apps()
    config["applications"][1]["deployments"][1]["name"] = "LLMServer:Qwen/Qwen3-4B.awq"
    (problem,) = told(config).values()
    assert problem.variable == f"{ROOT}.applications[1].deployments[1].name"
    assert problem.do == "Did you mean `LLMServer:Qwen--Qwen3-4B_awq`?"


def test_names_are_judged_even_where_the_rest_is_broken() -> None:
    config = put(load(SMALLEST), f"{A}/deployments/0/name", "LLMServer:tyni")
    put(config, f"{C}/engine_kwargs/dtype", "bfloat17")
    assert list(told(config)) == [f"{LLM}.engine_kwargs.dtype", f"{APP}.deployments[0].name"]


def test_duplicates_are_told_at_the_second() -> None:
    config = two_apps()
    config["applications"][1].update(name="qwen3_app", route_prefix="/app1")
    assert list(told(config)) == [f"{ROOT}.applications[1].name", f"{ROOT}.applications[1].route_prefix"]
    config = load(SMALLEST)
    configs = config["applications"][0]["args"]["llm_configs"]
    configs.append(copy.deepcopy(configs[0]))
    assert list(told(config)) == [f"{APP}.args.llm_configs[1].model_loading_config.model_id"]


def test_all_problems_at_once_in_order() -> None:
    config = put(put(load(SMALLEST), f"{C}/engine_kwargs/dtypo", "x"), "http_options/prot", 1)
    put(config, f"{C}/deployment_config/autoscaling_config", {"min_replicas": 2, "max_replicas": 1, "upscale_delay": 1})
    put(config, f"{A}/route_prefix", "x")
    assert [problem.variable for problem in judge_module.judge(config)] == [
        f"{LLM}.deployment_config.autoscaling_config",
        f"{LLM}.deployment_config.autoscaling_config.upscale_delay",
        f"{LLM}.engine_kwargs.dtypo",
        f"{APP}.route_prefix",
        f"{ROOT}.http_options.prot",
    ]


def test_prefill_decode_app() -> None:
    one = {
        "model_loading_config": {"model_id": "m"},
        "engine_kwargs": {"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_both"}},
    }
    app = {"import_path": "ray.serve.llm:build_pd_openai_app", "args": {"prefill_config": one, "decode_config": one}}
    put(app["args"], "decode_config", {**one, "acelerator_type": "H100"})
    (problem,) = told({"applications": [app]}).values()
    assert problem.variable == f"{APP}.args.decode_config.acelerator_type"


MODULE = """
import os
from ray import serve

@serve.deployment
class Hello:
    pass

app = Hello.bind()
number = 3

def builder(args):
    raise RuntimeError("is not called")

if os.environ.get("BREAK") == "exit":
    raise SystemExit("bye")
"""


def own_app(folder: pathlib.Path, attribute: str, **more: Any) -> dict[str, Any]:
    (folder / "my_module_for_judge.py").write_text(MODULE)
    env = {"working_dir": f"local://{folder}", **more.pop("runtime_env", {})}
    return {"import_path": f"my_module_for_judge:{attribute}", "runtime_env": env, **more}


def test_own_apps(tmp_path: pathlib.Path) -> None:
    apps = [
        own_app(tmp_path, "app", name="a", deployments=[{"name": "Hello", "num_replicas": 2}]),
        own_app(tmp_path, "builder", name="b", args={"anything": {"goes": 1}}),
        own_app(tmp_path, "app", name="c", deployments=[{"name": "Helo"}]),
        own_app(tmp_path, "number", name="d"),
        own_app(tmp_path, "nothing", name="e"),
        own_app(tmp_path, "app", name="f", runtime_env={"env_vars": {"BREAK": "exit"}}),
        {"name": "g", "import_path": "no_such_module:app"},
        {"name": "h", "import_path": "only_on_workers:app", "runtime_env": {"working_dir": "https://x/y.zip"}},
    ]
    for position, app in enumerate(apps):
        app["route_prefix"] = f"/{position}"
    found = told({"applications": apps})
    assert [variable.removeprefix(f"{ROOT}.applications") for variable in found] == [
        "[2].deployments[0].name",
        "[3].import_path",
        "[4].import_path",
        "[5].import_path",
        "[6].import_path",
    ]
    texts = [problem.problem for problem in found.values()][1:]
    for text, word in zip(
        texts, ["TypeError", "AttributeError", "SystemExit: bye", "ModuleNotFoundError"], strict=True
    ):
        assert text.startswith(word)


def test_an_application_that_ray_serve_llm_makes_is_imported_without_a_cluster(tmp_path: pathlib.Path) -> None:
    """It asks Ray for the runtime_env of its process, which has none before it is connected."""
    (tmp_path / "llm_for_judge.py").write_text(
        "from ray.serve.llm import LLMConfig, build_openai_app\n"
        "config = LLMConfig(model_loading_config={'model_id': 'm', 'model_source': '/none'})\n"
        "app = build_openai_app({'llm_configs': [config]})\n"
    )
    app = {"import_path": "llm_for_judge:app", "runtime_env": {"working_dir": f"local://{tmp_path}"}}
    needs: dict[str, Any] = {}
    assert judge_module.judge({"applications": [app]}, needs) == []
    assert needs["default"]["LLMServer:m"]["placement_group_bundles"] == [{"CPU": 1, "GPU": 1}]


def test_what_no_node_can_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    app = {"import_path": "only_on_workers:app", "runtime_env": {"pip": ["x"]}}
    (problem,) = told({"applications": [app]}).values()
    assert problem.variable == f"{APP}.runtime_env.pip" and "miss pip" in problem.problem
    app = {"import_path": "only_on_workers:app", "runtime_env": {"image_uri": "x/y:1"}}
    (problem,) = told({"applications": [app]}).values()
    assert problem.variable == f"{APP}.runtime_env.image_uri" and "podman" in problem.problem


def test_import_has_a_time_limit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_for_judge.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(judge_module, "IMPORT_SECONDS", 3)
    app = {"import_path": "slow_for_judge:app", "runtime_env": {"working_dir": f"local://{tmp_path}"}}
    assert "TimeoutError" in told({"applications": [app]})[f"{APP}.import_path"].problem


def run(path: pathlib.Path) -> tuple[int, Any]:
    command = [sys.executable, str(FILES / "judge_serve_config.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def test_command_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "serve.yml"
    assert run(path) == (2, None)
    path.write_text(json.dumps({"applications": [own_app(tmp_path, "app")]}))
    began = time.monotonic()
    code, answer = run(path)
    assert (code, answer["problems"]) == (0, [])
    assert answer["needs"]["default"]["Hello"]["ray_actor_options"] == {"num_cpus": 1}
    assert time.monotonic() - began < 12, "no LLM application: nothing of vLLM may be imported"
    for text in ["applications: [", "a: 2026-13-45", "", "[]", "&a [*a]", "applications: &a [*a]", "\x01"]:
        path.write_text(text)
        code, answer = run(path)
        assert code == 1
        assert list(answer["problems"][0]) == ["variable", "value", "problem", "do"]
    path.write_bytes(b"\xff\xfe\x00")
    assert run(path)[0] == 1


MUTATIONS = int(os.environ.get("RAYMETAL_MUTATIONS", "25"))
JUNK: list[Any] = [
    None,
    0,
    -1,
    2.5,
    True,
    "x",
    "",
    [],
    {},
    [1],
    {"x": 1},
    [[{}]],
    {1: {2: [None]}},
    datetime.date(2026, 1, 2),
]


def places(there: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all mappings and values."""
    items = there.items() if isinstance(there, dict) else enumerate(there) if isinstance(there, list) else ()
    return [path, *(found for key, item in items for found in places(item, (*path, key)))]


def get(there: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        there = there[step]
    return there


def test_random_mutations_never_crash_and_unknown_keys_are_refused() -> None:
    rng = random.Random(20260)
    whole = load(SMALLEST)
    open_maps = ("env_vars", "bundles")
    for _ in range(MUTATIONS):
        config = copy.deepcopy(whole)
        path = rng.choice(places(whole)[1:])
        if rng.random() < 0.5:
            mappings = [p for p in places(whole) if isinstance(get(whole, p), dict) and not set(p) & set(open_maps)]
            path = rng.choice(mappings)
            key = rng.choice(["zz", "name_", 7, None, datetime.date(2026, 1, 2)])
            get(config, path)[key] = rng.choice(JUNK)
            found = judge_module.judge(config)
            assert any("Unknown key" in problem.problem for problem in found), (path, key)
        else:
            value = copy.deepcopy(rng.choice(JUNK))
            get(config, path[:-1])[path[-1]] = value
            found = judge_module.judge(config)
            was = get(whole, path)
            if path[-1] == "model_source":  # a mapping is right there: a mirror
                continue
            crossed = isinstance(was, (dict, list)) and not isinstance(value, (type(was), type(None)))
            if crossed or (isinstance(value, (dict, list, datetime.date)) and not isinstance(was, (dict, list))):
                assert found, (path, value)
        json.dumps([judge_module.plain(problem.value) for problem in found])

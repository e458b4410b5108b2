"""What was written for GPUs, on CPUs: for a try of an example with a small model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LLM_BUILDER = "ray.serve.llm:build_openai_app"
DTYPE = "float32"  # a small model in bfloat16 answers otherwise on another processor
# What vLLM's CPU build wants beside.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB, in place of a share of the GPU's memory
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # max_model_len stays that of the larger model
    "TORCHDYNAMO_DISABLE": "1",  # does without a C++ compiler on the host,
    "VLLM_USE_AOT_COMPILE": "0",  # which vLLM would miss otherwise
}


def _model_on_cpu(config: Mapping[str, Any], model_source: str) -> dict[str, Any]:
    made = {key: value for key, value in config.items() if key != "accelerator_type"}
    engine = dict(made.get("engine_kwargs") or {})
    runtime_env = dict(made.get("runtime_env") or {})
    made["model_loading_config"] = {**made["model_loading_config"], "model_source": model_source}
    made["engine_kwargs"] = {
        **engine,
        **{key: 1 for key in ("tensor_parallel_size", "pipeline_parallel_size") if key in engine},
        "dtype": DTYPE,
    }
    made["placement_group_config"] = {"bundles": [{"CPU": 1}]}
    made["runtime_env"] = {**runtime_env, "env_vars": {**ENVIRONMENT, **runtime_env.get("env_vars", {})}}
    return made


def _deployment_on_cpu(deployment: Mapping[str, Any]) -> dict[str, Any]:
    if "num_gpus" not in (deployment.get("ray_actor_options") or {}):
        return dict(deployment)
    return {**deployment, "ray_actor_options": {**deployment["ray_actor_options"], "num_gpus": 0}}


def serve_on_cpu(config: Mapping[str, Any], model_source: str) -> dict[str, Any]:
    """``config`` with ``model_source`` for every model of ray.serve.llm, its dtype, and no GPU; all else as it is."""
    applications = []
    for application in config.get("applications") or []:
        made = dict(application)
        if made.get("import_path") == LLM_BUILDER:
            models = [_model_on_cpu(model, model_source) for model in made["args"]["llm_configs"]]
            made["args"] = {**made["args"], "llm_configs": models}
        if made.get("deployments"):
            made["deployments"] = [_deployment_on_cpu(deployment) for deployment in made["deployments"]]
        applications.append(made)
    return {**config, "applications": applications}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"serve_on_cpu": serve_on_cpu}

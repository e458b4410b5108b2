"""The application of ../deepseek.yml in Python: `serve run deepseek:llm_app`, `serve build deepseek:llm_app`.

With CPU_MODEL, a model's directory on the hosts, it runs on CPUs with that model.
"""

from __future__ import annotations

import os
from typing import Any

from ray.serve.llm import LLMConfig, build_openai_app

on_cpu: dict[str, Any] = {}
if cpu_model := os.environ.get("CPU_MODEL"):
    on_cpu = {
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "runtime_env": {
            "env_vars": {
                "VLLM_CPU_KVCACHE_SPACE": "2",
                "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
                "TORCHDYNAMO_DISABLE": "1",
                "VLLM_USE_AOT_COMPILE": "0",
            }
        },
    }

llm_config = LLMConfig(
    model_loading_config={"model_id": "deepseek", "model_source": cpu_model or "/opt/raymetal/models/deepseek/1"},
    deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
    engine_kwargs={
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.92,
        "dtype": "float32" if cpu_model else "auto",
        "max_num_seqs": 40,
        "max_model_len": 16384,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
    },
    **on_cpu,
)

# Not served yet: deploy.py, `serve run` and `serve build` take it from here.
llm_app = build_openai_app({"llm_configs": [llm_config]})

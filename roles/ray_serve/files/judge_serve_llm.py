"""Judge the LLM applications of a Serve config by Ray's LLMConfig, vLLM's engine arguments and Ray's own builders.

Nothing here asks for a device: a head without GPU judges what its GPU workers will run. The builders run without a
cluster; set the same RAY_SERVE_* environment as the cluster has, it decides which deployments an application gets.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from unittest import mock

import ray
import vllm.config
from judge_serve_options import check_options, check_runtime_env
from judge_serve_schema import (
    SPECIAL,
    Problems,
    adapter,
    check,
    check_fields,
    check_model,
    is_model,
    join,
    members,
    run,
)
from ray.llm._internal.common.placement import PlacementGroupConfig
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
from ray.llm._internal.serve.core.ingress.builder import LLMServingArgs
from ray.llm._internal.serve.engines.vllm import vllm_engine, vllm_models
from ray.llm._internal.serve.serving_patterns.data_parallel.builder import DPOpenAiServingArgs
from ray.llm._internal.serve.serving_patterns.prefill_decode.builder import PDServingArgs
from ray.serve import llm
from ray.serve._private.build_app import build_app
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs
from vllm.model_executor.layers.quantization import get_quantization_config

# The model behind the `args` of each builder.
ARGUMENTS: dict[str, Any] = {
    "build_openai_app": LLMServingArgs,
    "build_pd_openai_app": PDServingArgs,
    "build_dp_openai_app": DPOpenAiServingArgs,
}


def _check_placement(value: Any, path: str, problems: Problems) -> tuple[Any, bool]:
    return check(PlacementGroupConfig, value, path, problems)


def check_engine(value: Any, path: str, problems: Problems) -> tuple[Any, bool]:
    """Judge engine_kwargs as Ray splits them: what vLLM's front end knows, what its engine knows, nothing else."""
    if not isinstance(value, dict):
        return value, True
    fields: dict[str, Any] = {}
    special: dict[str, Any] = {}
    for owner in (AsyncEngineArgs, FrontendArgs):
        for field in dataclasses.fields(owner):
            fields[field.name] = field.type
            special[field.name] = _engine_checker(field)
    nulls = {key for key, item in value.items() if item is None and key in fields}
    for key in nulls:
        special[key](None, join(path, key), problems)
    return check_fields(fields, _build_arguments, value, path, problems, special=special)


def _engine_checker(field: dataclasses.Field[Any]) -> Callable[[Any, str, Problems], tuple[Any, bool]]:
    """Return the checker of one engine argument: its annotation, then the limits of the vLLM config it ends in."""
    options = list(members(field.type))

    def judge(value: Any, path: str, problems: Problems) -> tuple[Any, bool]:
        if isinstance(field.type, str) or (value is None and field.default in (None, dataclasses.MISSING)):
            return value, True
        if isinstance(value, dict) and any(is_model(option) for option in options):
            model = next(option for option in options if is_model(option))
            return check_model(model, value, path, problems)
        if isinstance(value, str) and any(_names_member(option, value) for option in options):
            return value, True
        if isinstance(value, dict) and field.name.endswith("_config"):
            # `speculative_config` and its like are plain mappings that vLLM hands to the class of that name.
            owner = getattr(vllm.config, "".join(part.title() for part in field.name.split("_")), None)
            known = {name.name for name in dataclasses.fields(owner)} if owner else set(value)
            for key in value.keys() - known:
                problems.add_unknown(path, key, value[key], known)
            return value, value.keys() <= known
        good = run(lambda item: _same_type(field.type, item), value, value, path, problems)
        limits = _LIMITS.get(field.name)
        if good and limits is not None and value is not None:
            good = run(adapter(limits).validate_python, value, value, path, problems)
        if good and field.name == "quantization" and value is not None:
            good = run(get_quantization_config, value, value, path, problems)
        return value, good

    return judge


def _names_member(annotation: Any, value: str) -> bool:
    return (
        isinstance(annotation, type) and issubclass(annotation, enum.Enum) and value.upper() in annotation.__members__
    )


def _same_type(annotation: Any, value: Any) -> None:
    """Raise if the value is not of the type as it stands: the engine's own class would take "2" for a number as is."""
    result = adapter(annotation).validate_python(value)
    kinds = (bool, int, float, str)
    if type(value) in kinds and type(result) in kinds and type(result) is not type(value):
        harmless = type(value) is int and (type(result) is float or value in (0, 1))
        if not harmless:
            raise TypeError(f"{value!r} is {type(value).__name__}, needed is {type(result).__name__}.")


def _limits() -> dict[str, Any]:
    """Return argument name -> annotation with limits, where exactly one vLLM config has a field of that name."""
    found: dict[str, list[Any]] = {}
    for owner in vars(vllm.config).values():
        for name, info in getattr(owner, "__pydantic_fields__", {}).items() if isinstance(owner, type) else ():
            found.setdefault(name, []).append(info)
    return {
        name: Annotated[(infos[0].annotation, *infos[0].metadata)]
        for name, infos in found.items()
        if len(infos) == 1 and infos[0].metadata
    }


_LIMITS = _limits()


def _build_arguments(kwargs: dict[str, Any]) -> None:
    """Build vLLM's argument objects as Ray does; the model and the tokenizer are for the workers to find."""
    engine_names = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    frontend_names = {field.name for field in dataclasses.fields(FrontendArgs)}
    config = vllm_models.VLLMEngineConfig(
        model_id="/", engine_kwargs={key: item for key, item in kwargs.items() if key not in frontend_names}
    )
    config.get_initialization_kwargs()
    engine = {key: item for key, item in config.engine_kwargs.items() if key in engine_names - {"tokenizer"}}
    FrontendArgs(**{key: item for key, item in kwargs.items() if key in frontend_names})
    try:
        AsyncEngineArgs(model="/", **vllm_engine._normalize_vllm_engine_kwargs(engine))
    except (ValueError, TypeError):
        raise
    except Exception:  # noqa: BLE001 (what else it raises is about this host's devices and plugins, not about the config)
        return


def _check_llm_config(value: Any, path: str, problems: Problems) -> tuple[Any, bool]:
    """Judge one LLMConfig; engine_kwargs are vLLM's only where no other server class takes them."""
    if not isinstance(value, dict):
        return value, True
    foreign = value.get("server_cls") is not None
    SPECIAL[LLMConfig, "engine_kwargs"] = _open if foreign else check_engine
    return check_model(LLMConfig, value, path, problems)


def _open(value: Any, path: str, problems: Problems) -> tuple[Any, bool]:
    return value, True


def _check_llm_configs(value: Any, path: str, problems: Problems) -> tuple[Any, bool]:
    """Judge the list of LLMConfigs, and that no two have one model_id (exact path of the second)."""
    if not isinstance(value, list):
        return value, True
    judged = [_check_llm_config(item, join(path, position), problems) for position, item in enumerate(value)]
    good = all(passed for _, passed in judged)
    seen: dict[str, int] = {}
    for position, item in enumerate(value):
        name = model_id(item)
        if name is None:
            continue
        if name in seen:
            where = f"{path}[{position}].model_loading_config.model_id"
            problems.add(
                where, name, f"{path}[{seen[name]}] has the same model_id.", "Give each model its own model_id."
            )
            good = False
        seen.setdefault(name, position)
    return [item for item, _ in judged], good


def model_id(config: Any) -> str | None:
    """Return the model_id of an LLMConfig as written, if it has one."""
    loading = config.get("model_loading_config") if isinstance(config, dict) else None
    name = loading.get("model_id") if isinstance(loading, dict) else None
    return name if isinstance(name, str) else None


SPECIAL[LLMConfig, "placement_group_config"] = _check_placement
SPECIAL[LLMConfig, "deployment_config"] = check_options
SPECIAL[LLMConfig, "runtime_env"] = check_runtime_env
SPECIAL[LLMServingArgs, "llm_configs"] = _check_llm_configs
for _arguments in ARGUMENTS.values():
    SPECIAL[_arguments, "ingress_deployment_config"] = check_options
SPECIAL[DPOpenAiServingArgs, "llm_config"] = _check_llm_config
SPECIAL[PDServingArgs, "prefill_config"] = SPECIAL[PDServingArgs, "decode_config"] = _check_llm_config


def judge_llm_app(builder: str, args: Any, path: str, problems: Problems) -> tuple[list[str], list[Any]]:
    """Judge the `args` of an LLM application and build it.

    Returns the names of its deployments and the deployments; names alone where the rest is broken, none where even
    they are unknown.
    """
    if not isinstance(args, dict):
        return [], []
    _, good = check_model(ARGUMENTS[builder], args, path, problems)
    if good and not problems.below(path):
        try:
            built = _build(builder, args)
            return [deployment.name for deployment in built], built
        except (Exception, SystemExit) as error:  # noqa: BLE001
            problems.add_error(path, None, error)
    try:
        return _names(builder, json.dumps(_skeleton(args))), []
    except Exception:  # noqa: BLE001 (told above, at its place)
        return [], []


@functools.lru_cache(maxsize=64)
def _names(builder: str, args: str) -> list[str]:
    return [deployment.name for deployment in _build(builder, json.loads(args))]


def _build(builder: str, args: Mapping[str, Any]) -> list[Any]:
    # Ray's builders ask the cluster only for the runtime_env of the process that builds.
    with mock.patch.object(ray, "get_runtime_context", return_value=mock.Mock(runtime_env={})):
        application = getattr(llm, builder)(copy.deepcopy(dict(args)))
    built = build_app(application, name="judged", default_runtime_env={})
    router = built.ingress_request_router_deployment
    return [*built.deployments, *([router] if router else [])]


def _skeleton(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the least arguments that give the same deployment names."""

    def least(config: Any) -> dict[str, Any]:
        return {"model_loading_config": {"model_id": config["model_loading_config"]["model_id"]}}

    return {
        key: [least(config) for config in item] if isinstance(item, list) else least(item)
        for key, item in args.items()
        if key in ("llm_configs", "llm_config", "prefill_config", "decode_config")
    }

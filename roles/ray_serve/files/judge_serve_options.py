"""Judge deployment options: those in code (`deployment_config`) and the overrides in `deployments:`."""

from __future__ import annotations

import copy
import difflib
import importlib.util
import inspect
import os
import shutil
import sys
from typing import Any

from judge_serve_schema import SPECIAL, Problems, check_fields, join
from ray import serve
from ray.runtime_env import RuntimeEnv
from ray.serve._private.application_state import override_deployment_info
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema


def check_options(value: Any, path: str, problems: Problems) -> tuple[Any, bool]:
    """Judge a mapping of `serve.deployment` options by that function and by the models of its options."""
    if not isinstance(value, dict):
        return value, True
    names = list(inspect.signature(serve.deployment).parameters)[1:]
    models = {**DeploymentConfig.model_fields, **DeploymentSchema.model_fields}
    fields = {name: models[name].annotation if name in models else Any for name in names}
    return check_fields(fields, _take_options, value, path, problems)


def _take_options(options: dict[str, Any]) -> None:
    """Raise what Ray raises for these options: with the place of each by its model, then by the decorator."""
    auto = options.get("num_replicas") == "auto"
    own = {key: item for key, item in options.items() if key in DeploymentConfig.model_fields}
    DeploymentConfig.model_validate({key: item for key, item in own.items() if not (auto and key == "num_replicas")})
    serve.deployment(**options)(_Nothing)


class _Nothing:
    """Stands for the deployed class."""


def check_runtime_env(value: Any, path: str, problems: Problems) -> tuple[Any, bool]:
    """Judge a runtime_env by Ray's RuntimeEnv; a key of a plugin is known only where plugins are configured."""
    if not isinstance(value, dict):
        return value, True
    if not os.environ.get("RAY_RUNTIME_ENV_PLUGINS"):
        known = {name for name in RuntimeEnv.known_fields if not name.startswith("_")} | {"nsight", "rocprof_sys"}
        unknown = [key for key in value if key not in known | RuntimeEnv.known_fields]
        for key in unknown:
            problems.add_unknown(path, key, value[key], known)
        if unknown:
            return {key: item for key, item in value.items() if key not in unknown}, True
    told = _add_unbuildable(value, path, problems)
    env_vars = value.get("env_vars")
    if isinstance(env_vars, dict):
        wrong = {key: item for key, item in env_vars.items() if not (isinstance(key, str) and isinstance(item, str))}
        for key, item in wrong.items():
            text = f"An environment variable is a string, not {type(item).__name__}."
            problems.add(join(f"{path}.env_vars", str(key)), item, text, "Put the value in quotes.")
        if wrong:
            return value, False
    try:
        # Where code may lie is the Serve schema's rule.
        RuntimeEnv(**{key: copy.deepcopy(value[key]) for key in value if key not in ("working_dir", "py_modules")})
    except (TypeError, ValueError) as error:
        problems.add_error(path, value, error)
        return value, False
    except OSError:  # a file that is read where the application is built
        return value, not told
    return value, not told


def _add_unbuildable(value: dict[Any, Any], path: str, problems: Problems) -> bool:
    """Note what Ray accepts and no node of this kind can build; the head's environment is that of all nodes."""
    found = False
    for key in ("pip", "uv"):
        if value.get(key) and not importlib.util.find_spec("pip"):
            text = f"Ray would copy the whole environment for it, and then miss pip: this one has none ({sys.prefix})."
            do = "Put the packages into a lock of your own (python_env_lock), and leave this key out."
            problems.add(join(path, key), value[key], text, do)
            found = True
    if value.get("image_uri") and not shutil.which("podman"):
        text = "Ray starts such a container by podman, and the host has none."
        do = "Leave it out: applications run in the environment of the node."
        problems.add(join(path, "image_uri"), value["image_uri"], text, do)
        found = True
    return found


SPECIAL[ServeApplicationSchema, "runtime_env"] = check_runtime_env
SPECIAL[RayActorOptionsSchema, "runtime_env"] = check_runtime_env


def judge_names(overrides: list[Any], names: list[str], path: str, problems: Problems) -> None:
    """Note the `deployments:` entries that name no deployment of the application, or one twice."""
    seen: set[str] = set()
    for position, entry in enumerate(overrides):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            continue
        where = f"{path}[{position}].name"
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            do = f"Did you mean `{near[0]}`?" if near else f"Use one of: {', '.join(names)}."
            problems.add(where, name, "The application has no deployment of this name.", do)
        elif name in seen:
            problems.add(where, name, "This deployment is already in the list.", "Join the two entries.")
        seen.add(name)


def _without_code(deployment: Any) -> ReplicaConfig:
    """Return the deployment's replica options alone: copying its handles to other deployments asks for a cluster."""
    made = deployment._replica_config
    names = set(inspect.signature(ReplicaConfig.update).parameters) - {"self"}
    return ReplicaConfig.create(_Nothing, **{name: copy.deepcopy(getattr(made, name)) for name in names})


def judge_overrides(app: dict[str, Any], deployments: list[Any], path: str, problems: Problems) -> None:
    """Apply each `deployments:` entry to the built deployments as the controller will."""
    infos = {item.name: DeploymentInfo(item._deployment_config, _without_code(item), 0, "") for item in deployments}
    for position, entry in enumerate(app.get("deployments") or []):
        if not isinstance(entry, dict) or entry.get("name") not in infos:
            continue
        where = f"{path}[{position}]"
        alone = {key: app[key] for key in ("import_path", "runtime_env") if key in app}
        try:
            schema = ServeApplicationSchema.model_validate(copy.deepcopy({**alone, "deployments": [entry]}))
            done = override_deployment_info(infos, schema)[entry["name"]]
        except (Exception, SystemExit) as error:  # noqa: BLE001
            problems.add_error(where, entry, error)
            continue
        replicas = entry.get("num_replicas")
        if isinstance(replicas, int) and done.deployment_config.autoscaling_config is not None:
            text = "num_replicas is ignored: the application's own options turn autoscaling on for this deployment."
            do = "Set autoscaling_config: {min_replicas: N, max_replicas: N}, or autoscaling_config: null beside it."
            problems.add(f"{where}.num_replicas", replicas, text, do)

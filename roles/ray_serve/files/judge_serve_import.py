"""Import what a Serve application names, in a process of its own, and say what it is.

Called by judge_serve_config.py: `python judge_serve_import.py IMPORT_PATH ARGS_JSON`. Prints one JSON line last:
`{"deployments": {name: needs}}` for an application, `{"deployments": null}` for a builder, `{"error": "…"}` else.
A builder is not called: what it does is the cluster's business.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import typing
from typing import Any
from unittest import mock

# Asking Ray for its context would start or join a cluster.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"


def needs_of(deployments: list[Any]) -> dict[str, Any]:
    """Deployment -> what one replica takes, in Serve's own keys, and how many replicas the code starts."""
    found = {}
    for deployment in deployments:
        config, replica = deployment._deployment_config, deployment._replica_config
        scaling = config.autoscaling_config
        options = replica.ray_actor_options or {}
        found[deployment.name] = {
            "replicas": config.num_replicas if scaling is None else scaling.initial_replicas or scaling.min_replicas,
            "ray_actor_options": {
                k: options[k] for k in ("num_cpus", "num_gpus", "memory", "resources") if k in options
            },
            "placement_group_bundles": replica.placement_group_bundles,
            "placement_group_strategy": replica.placement_group_strategy,
        }
    return found


def look(import_path: str, args: dict[str, Any]) -> dict[str, Any]:
    """Return what the import path names; a failure is told as the exception's type and text."""
    try:
        import ray
        from pydantic import BaseModel
        from ray._common.utils import import_attr
        from ray.serve._private.build_app import build_app
        from ray.serve.deployment import Application

        # A module that builds its application by ray.serve.llm asks for the runtime_env of the process that builds.
        with mock.patch.object(ray, "get_runtime_context", return_value=mock.Mock(runtime_env={})):
            target = import_attr(import_path)
        if isinstance(target, Application):
            if args:
                return {"error": "ValueError: args are only for a builder function, and this is a built application."}
            built = build_app(target, name="judged", default_runtime_env={})
            return {"deployments": needs_of(built.deployments)}
        if not inspect.isfunction(target):
            return {"error": f"TypeError: neither an Application nor a builder function but {type(target).__name__}."}
        parameters = list(inspect.signature(target, eval_str=True).parameters.values())
        if len(parameters) != 1:
            return {"error": f"TypeError: a builder takes exactly one parameter, this one takes {len(parameters)}."}
        model: Any = parameters[0].annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            typing.cast(type[BaseModel], model).model_validate(args)
    except BaseException as error:  # noqa: BLE001 (the user's module may raise anything, SystemExit included)
        return {"error": f"{type(error).__name__}: {error}"}
    return {"deployments": None}


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    answer = look(sys.argv[1], json.loads(sys.argv[2]))
    print("\n" + json.dumps(answer), flush=True)
    os._exit(0)  # threads that the module started must not keep this process

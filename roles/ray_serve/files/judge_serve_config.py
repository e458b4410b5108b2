"""Judge a Serve config, the file that `serve deploy` takes, by the installed Ray and vLLM before it is deployed.

Usage: judge_serve_config.py CONFIG.yml|-
Prints {"problems": [{"variable", "value", "problem", "do"}], "needs": {application: {deployment: {…}}}}; exit 0 no
problem, 1 some, 2 the judge itself failed. `needs`: what a replica takes and how many the code starts, see needs_of().
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import traceback
from typing import Any

# Judging must not start or join a cluster (Ray does both by itself when asked for its context), nor call home.
os.environ.update(RAY_ENABLE_AUTO_CONNECT="0", RAY_USAGE_STATS_ENABLED="0", VLLM_NO_USAGE_STATS="1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import yaml
from judge_serve_import import needs_of
from judge_serve_schema import Problem, Problems, check

ROOT = "ray_serve_config"
LLM_MODULE = "ray.serve.llm"
IMPORT_SECONDS = 120  # ray.serve.llm alone takes half a minute on a busy host


def judge(config: Any, needs: dict[str, Any] | None = None) -> list[Problem]:
    """Return all problems of a config as loaded from YAML, by path; fill in ``needs`` of what could be built."""
    problems = Problems()
    if not isinstance(config, dict):
        problems.add(ROOT, config, f"Must be a mapping, not {type(config).__name__}.", "Give applications: […].")
        return problems.in_order()
    applications = config.get("applications")
    apps = [
        (i, app)
        for i, app in enumerate(applications if isinstance(applications, list) else [])
        if isinstance(app, dict)
    ]
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        looks = {i: pool.submit(_look, app) for i, app in apps if _can_import(app)}
        try:
            _judge_schema(config, apps, problems)
            for position, app in apps:
                look = looks[position].result() if position in looks else None
                built = _judge_app(app, f"{ROOT}.applications[{position}]", look, problems)
                if built and needs is not None:
                    needs[str(app.get("name", "default"))] = built
        except RecursionError:
            problems.add(ROOT, None, "Nested too deeply, or an alias contains itself.", "Write the config out.")
    return problems.in_order()


def _judge_schema(config: dict[Any, Any], apps: list[tuple[int, dict[Any, Any]]], problems: Problems) -> None:
    """Judge the config by Ray's schema, then what that schema accepts and Serve does not, or tells less exactly."""
    import judge_serve_options  # noqa: F401 (it registers its checkers)
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema, _route_prefix_format

    check(ServeDeploySchema, config, ROOT, problems)
    for key in ("name", "route_prefix"):
        default = ServeApplicationSchema.model_fields[key].default
        seen: dict[str, int] = {}
        for position, app in apps:
            value, where = (app.get(key, default), f"{ROOT}.applications[{position}].{key}")
            if not isinstance(value, str):
                continue
            if value in seen:
                text = f"{ROOT}.applications[{seen[value]}] has the same {key} ({value})."
                problems.drop(f"{ROOT}.applications")
                problems.add(where, value, text, f"Give each application its own {key}.")
            seen.setdefault(value, position)
            try:
                _route_prefix_format(None, value if key == "route_prefix" else None)
            except ValueError as error:
                problems.add(where, value, str(error), f"Write it as `/{value.strip('/{}')}`.")


def _judge_app(
    app: dict[Any, Any], path: str, look: dict[str, Any] | None, problems: Problems
) -> dict[str, Any] | None:
    """Judge what an application imports and builds, and its `deployments:` against what it built; return its needs."""
    overrides = app.get("deployments")
    overrides = overrides if isinstance(overrides, list) else []
    builder = _llm_builder(app)
    if builder:
        from judge_serve_llm import ARGUMENTS, judge_llm_app
        from judge_serve_options import judge_names, judge_overrides

        if builder in ARGUMENTS:
            names, built = judge_llm_app(builder, app.get("args", {}), f"{path}.args", problems)
            if names:
                judge_names(overrides, names, f"{path}.deployments", problems)
            if built and not problems.below(path):
                judge_overrides(app, built, f"{path}.deployments", problems)
            return needs_of(built)
    if look is None:
        return None
    if "error" in look:
        do = "Give module:name of an Application or of a builder function that this environment can import."
        problems.add(f"{path}.import_path", app.get("import_path"), look["error"], do)
    elif look["deployments"] is not None:
        from judge_serve_options import judge_names

        judge_names(overrides, list(look["deployments"]), f"{path}.deployments", problems)
        needs: dict[str, Any] = look["deployments"]
        return needs
    return None


def _llm_builder(app: dict[Any, Any]) -> str | None:
    """Return the builder's name if an application is made by ray.serve.llm."""
    target = app.get("import_path")
    if not isinstance(target, str) or not target.startswith(LLM_MODULE):
        return None
    module, _, name = target.replace(":", ".").rpartition(".")
    return name if module == LLM_MODULE else None


def _local(uri: Any) -> str | None:
    """Return the path of a `local://` URI."""
    return uri.removeprefix("local://") if isinstance(uri, str) and uri.startswith("local://") else None


def _can_import(app: dict[Any, Any]) -> bool:
    """Say whether this host has what the application would import with."""
    env, target = app.get("runtime_env") or {}, app.get("import_path")
    if (
        not isinstance(env, dict)
        or not isinstance(target, str)
        or target.strip(".:") != target
        or target.count(":") > 1
    ):
        return False
    if (_llm_builder(app) or "").startswith("build_") or not ({":", "."} & set(target)):
        return False
    env_vars, modules = env.get("env_vars") or {}, env.get("py_modules") or []
    plain = isinstance(env_vars, dict) and all(isinstance(x, str) for pair in env_vars.items() for x in pair)
    sources = [
        *(modules if isinstance(modules, list) else [None]),
        *([env["working_dir"]] if "working_dir" in env else []),
    ]
    return plain and not env.keys() - {"env_vars", "working_dir", "py_modules"} and all(map(_local, sources))


def _look(app: dict[Any, Any]) -> dict[str, Any]:
    """Import in a process of its own, with the application's paths and variables, within the time limit."""
    env = app.get("runtime_env") or {}
    sources = [_local(uri) or "" for uri in [env.get("working_dir"), *(env.get("py_modules") or [])] if uri]
    script = pathlib.Path(__file__).resolve().with_name("judge_serve_import.py")
    command = [sys.executable, str(script), app["import_path"], json.dumps(plain(app.get("args") or {}))]
    paths = os.pathsep.join([*sources, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    variables = {**os.environ, **(env.get("env_vars") or {}), "PYTHONPATH": paths}
    folder = sources[0] if sources and pathlib.Path(sources[0]).is_dir() else None
    try:
        done = subprocess.run(
            command, env=variables, cwd=folder, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"TimeoutError: the import takes more than {IMPORT_SECONDS} s."}
    except (OSError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": f"The importing process ended with {done.returncode}: {done.stderr.strip()[-300:]}"}
    return found


def plain(value: Any, depth: int = 20) -> Any:
    """Return a value that JSON can hold: keys and what JSON does not know as strings."""
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, depth - 1) for item in value]
    return value if value is None or isinstance(value, (bool, int, str)) else _number(value)


def _number(value: Any) -> Any:
    return value if isinstance(value, float) and abs(value) < float("inf") else str(value)


def load(text: str) -> Any:
    """Return the config of a YAML text, or the problem that it is no YAML."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Problem(ROOT, None, f"Not readable as YAML: {error}", "Correct the syntax.")


def main(arguments: list[str]) -> int:
    """Judge the file named on the command line; return the exit code."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        source = sys.stdin.buffer.read() if arguments[0] == "-" else pathlib.Path(arguments[0]).read_bytes()
        config = load(source.decode())
    except UnicodeDecodeError as error:
        config = Problem(ROOT, None, f"Not UTF-8: {error}", "Save the file as UTF-8.")
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    needs: dict[str, Any] = {}
    answer = os.dup(1)
    os.dup2(2, 1)  # libraries print on stdout; the answer alone goes there
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = [config] if isinstance(config, Problem) else judge(config, needs)
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        return 2
    problems = [{**vars(problem), "value": plain(problem.value)} for problem in found]
    with os.fdopen(answer, "w", encoding="utf-8") as out:
        json.dump({"problems": problems, "needs": needs}, out, ensure_ascii=False)
        out.write("\n")
    return 1 if found else 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # vLLM's and Ray's threads would hold the exit for seconds

"""The examples on a CPU, each key as Serve's REST says it; an application from its directory to a configuration."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml

UNITS = ("raymetal.service",)
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
EXAMPLES = PROJECT / "files/examples"
MODEL = "/opt/raymetal/models/smollm2/1"
CODE = "/opt/raymetal/applications/hello"
# What ray_serve_cpu_model may replace.
SIZES = ("model_source", "dtype", "tensor_parallel_size", "pipeline_parallel_size", "num_gpus")
TOOL = "cd / && set -a && . /etc/raymetal/ray.env && set +a && runuser -u raymetal -- /opt/raymetal/env/current/bin/"
REST = (
    'curl -sf -H "Authorization: Bearer $(cat /etc/raymetal/auth_token)" http://127.0.0.1:8265/api/serve/applications/'
)


def shut_down(host):
    host.run_expect([0], f"bash -c '{TOOL}serve shutdown -y'")


@pytest.fixture(scope="module", autouse=True)
def as_it_was(host, playbook):
    """Serve what the scenario serves again: the other modules expect it."""
    yield
    shut_down(host)
    done = playbook("site.yml", "--tags", "serve")
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.fixture(scope="module")
def model(playbook):
    local = yaml.safe_load((PROJECT / "inventories/local/group_vars/all/cluster.yml").read_text())
    models = local["model_store_models"]
    models[0]["package"]["requirements"] = str(PROJECT / "files/locks/demo.lock")
    done = playbook("site.yml", "--tags", "models", variables={"model_store_models": models})
    assert done.returncode == 0, done.stdout[-3000:]


def leaves(value, path=""):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not inner:
        return {path: value}
    return {k: v for key, item in inner for k, v in leaves(item, f"{path}.{key}").items()}


def served(host, playbook, name):
    """Serve an example on CPUs, from nothing; return what it says and what REST says."""
    shut_down(host)
    variables = {
        "ray_serve_file": f"files/examples/{name}.yml",
        "ray_serve_cpu_model": MODEL,
        "ray_serve_timeout_seconds": 420,
    }
    done = playbook("site.yml", "--tags", "serve", variables=variables)
    assert done.returncode == 0, done.stdout[-4000:]
    return yaml.safe_load((EXAMPLES / f"{name}.yml").read_text()), json.loads(host.check_output(REST))


def arrived(wanted, rest):
    """Paths of the example that did not arrive as they stand there."""
    apps = {app["name"]: rest["applications"][app["name"]]["deployed_app_config"] for app in wanted["applications"]}
    missing = {}
    for app in wanted["applications"]:
        got = leaves(apps[app["name"]])
        for path, value in leaves(app).items():
            if not path.endswith(SIZES) and ".placement_group_config" not in path and got.get(path) != value:
                missing[path] = (value, got.get(path))
    return missing


def ask(host, path, body=None):
    data = f" -H 'Content-Type: application/json' -d '{json.dumps(body)}'" if body else ""
    return json.loads(host.check_output(f"curl -sf -m 120{data} http://127.0.0.1:8000{path}"))


@pytest.mark.parametrize(
    "name",
    [
        "deepseek",
        "two-models",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("qwen3-minimal", "autoscaling", "many-nodes")),
    ],
)
def test_a_model_answers_and_every_key_arrived(host, playbook, model, name):
    wanted, rest = served(host, playbook, name)
    assert arrived(wanted, rest) == {}
    for app in wanted["applications"]:
        route = app["route_prefix"].rstrip("/")
        model_id = app["args"]["llm_configs"][0]["model_loading_config"]["model_id"]
        assert [entry["id"] for entry in ask(host, f"{route}/v1/models")["data"]] == [model_id]
        question = {"model": model_id, "max_tokens": 20, "temperature": 0}
        question["messages"] = [{"role": "user", "content": "What is the capital of France?"}]
        answer = ask(host, f"{route}/v1/chat/completions", question)
        assert "Paris" in answer["choices"][0]["message"]["content"]


def bring(playbook, source, **variables):
    done = playbook("playbooks/develop.yml", variables={"develop_source": str(source), **variables})
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_every_key_of_several_applications_works(host, playbook):
    bring(playbook, EXAMPLES / "hello")
    wanted, rest = served(host, playbook, "multi-application")
    assert arrived(wanted, rest) == {}
    assert rest["proxy_location"] == "EveryNode"
    assert (rest["http_options"]["host"], rest["http_options"]["port"]) == ("0.0.0.0", 8000)
    assert rest["grpc_options"] | wanted["grpc_options"] == rest["grpc_options"]
    assert ask(host, "/app1") == {"greeting": "Hello", "text": "first"}
    assert ask(host, "/app2") == {"greeting": "", "text": "second"}
    assert len(rest["applications"]["app1"]["deployments"]["Hello"]["replicas"]) == 2
    script = (
        "import grpc; from ray.serve.generated import serve_pb2 as p, serve_pb2_grpc as g; "
        "print(g.RayServeAPIServiceStub(grpc.insecure_channel('127.0.0.1:9000')).ListApplications("
        "p.ListApplicationsRequest()).application_names)"
    )
    assert "app1" in host.check_output("/opt/raymetal/env/current/bin/python -c %s", script)
    # logging_config: each line is JSON.
    log = host.check_output(
        "cat $(ls -t /var/lib/raymetal/ray/session_latest/logs/serve/replica_app1_Hello_*.log | head -1)"
    )
    assert json.loads(log.splitlines()[-1])["levelname"]


@pytest.fixture
def source(tmp_path):
    shutil.copytree(EXAMPLES / "hello", tmp_path / "hello")
    (tmp_path / "hello/.env").write_text("SECRET=1")
    return tmp_path / "hello"


def edit(source, text):
    code = (source / "hello.py").read_text()
    (source / "hello.py").write_text(code.replace('"text": self.text', f'"text": "{text}"'))


def test_python_deploy_and_the_same_as_a_job(host, playbook, source):
    shut_down(host)
    bring(playbook, source, develop_command=["python", "deploy.py"])
    assert ask(host, "/hello")["text"] == "world"
    assert not host.file(f"{CODE}/.env").exists
    edit(source, "edited")
    said = bring(playbook, source, develop_command=["python", "deploy.py"], develop_as_job=True)
    assert "succeeded" in said and ask(host, "/hello")["text"] == "edited"


def test_serve_run_with_its_options(host, playbook, source):
    flags = ["--non-blocking", "--working-dir", ".", "--name", "second", "--route-prefix", "/second"]
    flags += ["--runtime-env-json", '{"env_vars": {"GREETING": "Hi"}}']
    bring(playbook, source, develop_command=["serve", "run", *flags, "hello:build", "text=flags"])
    assert ask(host, "/second") == {"greeting": "Hi", "text": "flags"}


def test_a_reload_takes_effect_within_ten_seconds(host, playbook, source):
    """As docs/develop.md says it, with a unit in the place of the terminal."""
    bring(playbook, source)
    address = host.ansible.get_variables()["ansible_host"]
    host.check_output(
        "systemd-run --quiet --unit develop-reload --uid raymetal --working-directory %s "
        "--property EnvironmentFile=/etc/raymetal/ray.env --setenv RAY_ADDRESS=%s:6380 "
        "/opt/raymetal/env/current/bin/serve run --reload --name reload --route-prefix /reload "
        "--runtime-env-json %s hello:app",
        CODE,
        address,
        json.dumps({"working_dir": f"local://{CODE}"}),
    )
    try:
        until(lambda: host.run("curl -sf http://127.0.0.1:8000/reload").rc == 0, 90)
        edit(source, "reloaded")
        begin = time.monotonic()
        bring(playbook, source)
        there = time.monotonic()
        until(lambda: "reloaded" in host.run("curl -s http://127.0.0.1:8000/reload").stdout, 60)
        end = time.monotonic()
    finally:
        host.run("systemctl kill --signal KILL develop-reload; systemctl reset-failed develop-reload")
    print(f"brought after {there - begin:.1f} s, served after {end - there:.1f} s more")
    assert end - there < 10


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)


def test_what_is_built_goes_the_way_of_every_configuration(host, playbook, source, tmp_path):
    shut_down(host)
    output = tmp_path / "built.yml"
    build = {"develop_build": "hello:app", "develop_route_prefix": "/built", "develop_output": str(output)}
    bring(playbook, source, **build)
    (built,) = yaml.safe_load(output.read_text())["applications"]
    assert built["runtime_env"]["working_dir"].startswith(f"local://{CODE}-")
    serve = {"ray_serve_file": str(output), "ray_serve_as_job": True}
    done = playbook("site.yml", "--tags", "serve", variables=serve)
    assert done.returncode == 0, done.stdout[-3000:]
    assert ask(host, "/built")["text"] == "world"
    jobs = host.check_output(f"bash -c '{TOOL}ray job list --address http://127.0.0.1:8265'")
    assert "serve deploy" in jobs
    edit(source, "second version")
    bring(playbook, source, **build)
    assert ask(host, "/built")["text"] == "world", "what serves is not changed in place"
    done = playbook("site.yml", "--tags", "serve", variables=serve)
    assert done.returncode == 0, done.stdout[-3000:]
    assert ask(host, "/built")["text"] == "second version"

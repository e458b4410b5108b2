"""Questions to a cluster that serves, and the ways to end what it serves: docs/operate.md."""

import json
import re
import subprocess

import pytest
import yaml

UNITS = ("raymetal.service",)
pytestmark = pytest.mark.soak  # each question is a run of Ansible
ASK, CHECK = "playbooks/ask.yml", "playbooks/check_config.yml"


@pytest.fixture(scope="module")
def answered(playbook, tmp_path_factory):
    """Return a function that runs a playbook twice, and returns its text and its JSON."""
    path = tmp_path_factory.mktemp("operate") / "answer.json"

    def run(name, *arguments, status=0, **variables):
        path.unlink(missing_ok=True)
        text = playbook(name, *arguments, variables={"operate_json": str(path), **variables})
        assert text.returncode == status, text.stdout[-3000:] + text.stderr[-2000:]
        printed = playbook(name, *arguments, variables={"operate_format": "json", **variables})
        answer = json.loads(path.read_text())
        assert path.stat().st_mode & 0o777 == 0o600
        assert f'"{next(iter(answer))}": ' in printed.stdout, printed.stdout[-3000:]
        return text.stdout, answer

    return run


@pytest.fixture
def serve_by_inventory(playbook):
    """Bring back what the inventory says afterwards, whatever was ended."""
    yield
    result = playbook("site.yml", "--tags", "serve")
    assert result.returncode == 0, result.stdout[-3000:]


def changed(text):
    return set(re.findall(r"changed=(\d+)", text))


def row(text, begin):
    """The cells of the line that begins so."""
    lines = [line.split() for line in text.splitlines() if re.match(rf"\s*{begin}\s", line)]
    assert lines, text
    return lines[0]


def test_status(host, answered):
    for _ in range(5):
        assert host.run("curl -sf http://127.0.0.1:8000/light").rc == 0
    text, answer = answered(ASK, operate_question="status", operate_seconds=0.0)
    assert [(node["state"], node["head"], node["proxy"]) for node in answer["nodes"]] == [("ALIVE", True, "HEALTHY")]
    apps = {app["name"]: app for app in answer["applications"]}
    assert set(apps) == {"light", "other"} and {app["status"] for app in apps.values()} == {"RUNNING"}
    assert {d["name"]: (d["running"], d["target"]) for d in apps["light"]["deployments"]} == {"Light": (1, 1)}
    assert answer["ray"] in text and row(text, "light")[:3] == ["light", "RUNNING", "/light"]
    assert changed(text) == {"0"}


def test_status_counts_requests_and_errors(host, answered):
    """Ray tells its counts every ten seconds: what was asked before is told after that."""
    for path in ("light", "light", "light/"):
        host.run(f"curl -s http://127.0.0.1:8000/{path}")
    _, answer = answered(ASK, operate_question="status", operate_seconds=20)
    light = next(app for app in answer["applications"] if app["name"] == "light")
    assert answer["seconds"] >= 20 and light["requests"] >= 3 and light["errors"] == 0
    assert light["requests_per_second"] is not None and light["mean_ms"] > 0
    assert sum(replica["requests"] for replica in light["deployments"][0]["replicas"]) >= 3


def test_list(answered):
    text, answer = answered(ASK, operate_question="list")
    assert row(text, "other")[:3] == ["other", "RUNNING", "/other"]
    assert [app["name"] for app in answer["applications"]] == ["light", "other"]


def test_the_running_config_passes_the_check(answered, tmp_path):
    text, answer = answered(ASK, operate_question="config")
    file = tmp_path / "running.yaml"
    file.write_text(yaml.safe_dump(answer["config"]))
    assert "import_path: light:build" in text
    text, checked = answered(CHECK, operate_config_file=str(file))
    assert checked["ok"] and checked["judged"] and checked["problems"] == []
    assert f"{file}: well" in text


def test_a_config_that_would_not_be_taken(host, answered, tmp_path):
    file, before = tmp_path / "new.yaml", host.file("/etc/raymetal/serve.yml").content_string
    app = {"name": "light", "route_prefix": "/light/", "import_path": "light:build"}
    app["deployments"] = [{"name": "Light", "autoscaling_config": {"upscale_delay": 5}}]
    file.write_text(yaml.safe_dump({"applications": [app]}))
    text, answer = answered(CHECK, operate_config_file=str(file), status=2)
    assert not answer["ok"] and {"variable", "problem", "do"} <= set(answer["problems"][0])
    told = " ".join(text.split())
    assert "route_prefix = /light/: must start with a slash and not end with one" in told and "upscale_delay_s" in told
    assert host.file("/etc/raymetal/serve.yml").content_string == before
    assert json.loads(host.run("curl -s http://127.0.0.1:8000/light").stdout) == {"text": "first"}


def test_the_inventorys_config(answered):
    text, answer = answered(CHECK)
    assert answer["ok"] and answer["judged"] and "the configuration of the inventory: well" in text


def test_logs(host, answered):
    host.run_expect([0], "curl -sf http://127.0.0.1:8000/light")
    text, answer = answered(ASK, operate_question="logs", operate_deployment="light/Light", operate_lines=20)
    assert {(log["application"], log["deployment"], log["state"]) for log in answer["logs"]} == {
        ("light", "Light", "RUNNING")
    }
    assert any("GET /light 200" in line for log in answer["logs"] for line in log["lines"])
    assert "== light/Light " in text and "GET /light 200" in text


def test_logs_are_followed(host, playbook):
    """What is asked while it follows is printed, once."""
    asks = "for i in $(seq 15); do curl -s http://127.0.0.1:8000/light > /dev/null; sleep 1; done"
    host.run_expect([0], f"systemd-run --collect sh -c '{asks}'")
    variables = {
        "operate_question": "logs",
        "operate_deployment": "light",
        "operate_lines": 1,
        "operate_follow_seconds": 20,
    }
    result = playbook(ASK, variables={**variables, "operate_format": "json"})
    assert result.returncode == 0, result.stdout[-3000:]
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    asked = [line["line"] for line in lines if "GET /light 200" in line["line"]]
    assert len(asked) >= 5 and len(set(asked)) == len(asked), result.stdout
    text = playbook(ASK, variables={**variables, "operate_follow_seconds": 1}).stdout
    assert re.search(r"^light/Light \S+: .*GET /light 200", text, re.MULTILINE), text


def test_logs_of_what_does_not_run(playbook):
    result = playbook(ASK, variables={"operate_question": "logs", "operate_deployment": "nope"})
    assert result.returncode == 2 and "name one of light/Light, other/Light" in " ".join(result.stdout.split())


def test_memory(answered):
    text, answer = answered(ASK, operate_question="memory")
    (node,) = answer["nodes"]
    assert 0 < node["used_bytes"] < node["total_bytes"] and node["store_total_bytes"] == 100000000
    assert any(process["name"].startswith("ray::ServeReplica") for process in node["processes"])
    assert "ray::ServeReplica" in text and "reference(s) to objects" in text


def test_actors(answered):
    text, answer = answered(ASK, operate_question="actors")
    assert {"class": "ServeReplica:light:Light", "state": "ALIVE", "count": 1} in answer["counts"]
    assert "ServeController" in text


def test_tasks_and_timeline(answered, playbook):
    script = (
        "import ray; ray.init(logging_level=40); work = ray.remote(num_cpus=0)(lambda n: n); "
        "ray.get([work.options(name='counted').remote(n) for n in range(3)])"
    )
    done = playbook("playbooks/command.yml", variables={"operate_command": f'python -c "{script}"'})
    assert done.returncode == 0, done.stdout[-3000:]
    text, answer = answered(ASK, operate_question="tasks")
    assert {"name": "counted", "state": "FINISHED", "count": 3} in answer["counts"] and "counted" in text
    text, answer = answered(ASK, operate_question="timeline")
    assert {"ph", "ts", "name"} <= set(answer["traceEvents"][0]) and "event(s) of" in text


def test_versions(host, answered):
    text, answer = answered("playbooks/versions.yml")
    found = answer["hosts"]["head"]
    assert found["error"] == "" and found["system"].startswith("debian ")
    assert (
        found["runs"]["ray"]
        == found["packages"]["ray"]
        == host.run(
            "/opt/raymetal/env/current/bin/python -c 'import importlib.metadata as m; print(m.version(\"ray\"))'"
        ).stdout.strip()
    )
    assert found["kernel"] == host.run("uname -r").stdout.strip()
    assert answer["differs"] == [] and "All are alike." in text and changed(text) == {"0"}


def test_a_command(answered, playbook):
    text, answer = answered("playbooks/command.yml", operate_command="ray status | head -1; id -un")
    assert answer["hosts"]["head"]["status"] == 0
    assert answer["hosts"]["head"]["stdout"].splitlines()[-1] == "raymetal" and "Autoscaler status" in text
    text, answer = answered("playbooks/command.yml", operate_command="exit 3", status=2)
    assert answer["hosts"]["head"]["status"] == 3 and "== head (exit status 3)" in text
    assert playbook("playbooks/command.yml").returncode == 2


def test_the_dashboard_by_a_tunnel(host, answered, playbook):
    text, answer = answered("playbooks/dashboard.yml", operate_tunnel_port=18265)
    assert answer["tunnel"].startswith("ssh -N -L 18265:127.0.0.1:8265 ") and answer["tunnel"] in " ".join(text.split())
    token = host.file("/etc/raymetal/auth_token").content_string.strip()
    assert token and token not in text + json.dumps(answer)
    command = answer["tunnel"].replace("ssh -N", "ssh -o ExitOnForwardFailure=yes -N", 1)
    tunnel = subprocess.Popen(command, shell=True, stdin=subprocess.DEVNULL)
    try:
        url = f"{answer['url']}/api/version"
        curl = [
            "curl",
            "-s",
            "--noproxy",
            "*",
            "--retry",
            "20",
            "--retry-connrefused",
            "--retry-delay",
            "1",
            "-o",
            "/dev/null",
        ]
        done = subprocess.run(
            [*curl, "-w", "%{http_code}", url], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == "401", "it is Ray's dashboard, and it asks for the token"
    finally:
        tunnel.terminate()
        tunnel.wait(10)


def test_no_answer_holds_the_token(host, playbook):
    token = host.file("/etc/raymetal/auth_token").content_string.strip()
    for question in ("status", "config", "logs", "actors"):
        result = playbook(ASK, "-vv", variables={"operate_question": question, "operate_seconds": 0.0})
        assert result.returncode == 0 and token not in result.stdout + result.stderr


def test_delete_wants_the_name_twice(host, playbook):
    wrong = playbook("playbooks/delete.yml", variables={"operate_application": "nope", "operate_confirm": "nope"})
    assert wrong.returncode == 2 and "name one of light, other" in " ".join(wrong.stdout.split())
    for confirm in ({"operate_confirm": "light"}, {}):  # and without a terminal nothing is typed
        result = playbook("playbooks/delete.yml", variables={"operate_application": "other", **confirm})
        assert result.returncode == 2 and "nothing was changed" in result.stdout
    assert json.loads(host.run("curl -s http://127.0.0.1:8000/other").stdout) == {"text": "second"}


def test_delete_one_application(host, playbook, serve_by_inventory):
    result = playbook("playbooks/delete.yml", variables={"operate_application": "other", "operate_confirm": "other"})
    assert result.returncode == 0, result.stdout[-3000:]
    assert "take it out" in " ".join(result.stdout.split())
    assert host.run("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/other").stdout == "404"
    assert json.loads(host.run("curl -s http://127.0.0.1:8000/light").stdout) == {"text": "first"}
    kept = yaml.safe_load(host.file("/etc/raymetal/serve.yml").content_string)
    assert [app["name"] for app in kept["applications"]] == ["light"]


def test_shut_serve_down(host, playbook, answered, serve_by_inventory):
    shutdown = "playbooks/shutdown.yml"
    wrong = playbook(shutdown, variables={"operate_confirm": "another"})
    assert wrong.returncode == 2 and "nothing was changed" in wrong.stdout
    name = host.ansible.get_variables()["cluster_name"]
    result = playbook(shutdown, variables={"operate_confirm": name})
    assert result.returncode == 0, result.stdout[-3000:]
    assert host.service("raymetal.service").is_running
    text, answer = answered(ASK, operate_question="list")
    assert answer == {"applications": []} and "Nothing serves." in text
    again = playbook(shutdown, variables={"operate_confirm": name})
    assert again.returncode == 0 and changed(again.stdout) == {"0"}, again.stdout[-3000:]

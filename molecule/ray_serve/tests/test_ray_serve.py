"""Serve runs what was asked, says what it would do, and refuses what would hurt."""

import copy
import json
import re

import pytest

UNITS = ("raymetal.service",)


@pytest.fixture
def config(host):
    """The configuration of the scenario, to be changed."""
    return copy.deepcopy(host.ansible.get_variables()["ray_serve_config"])  # they are cached


def answer(host, route):
    return host.run(f"curl -s http://127.0.0.1:8000{route}").stdout


def said(result):
    """The output in one line, however it was wrapped."""
    return " ".join(result.stdout.split())


def changes(result):
    """How much was changed, over all hosts."""
    return set(re.findall(r"changed=(\d+)", result.stdout))


def serve(playbook, config, *arguments, **variables):
    return playbook("site.yml", "--tags", "serve", *arguments, variables={"ray_serve_config": config, **variables})


def test_both_applications_answer(host):
    assert json.loads(answer(host, "/light")) == {"text": "first"}
    assert json.loads(answer(host, "/other")) == {"text": "second"}


@pytest.mark.soak
def test_the_file_on_the_head_can_be_pushed_by_hand(host, playbook):
    """As the file's own head says; afterwards the playbook finds nothing to change."""
    lines = host.file("/etc/raymetal/serve.yml").content_string.splitlines()
    command = next(line[2:].strip() for line in lines if "serve deploy" in line)
    host.run_expect([0], f"bash -c '{command}'")
    result = playbook("site.yml", "--tags", "serve")
    assert result.returncode == 0 and changes(result) == {"0"}, result.stdout[-3000:]


def test_the_api_listens_on_the_loopback_unless_published(host):
    assert host.socket("tcp://127.0.0.1:8000").is_listening
    assert not host.socket("tcp://0.0.0.0:8000").is_listening


def test_check_mode_tells_the_change_and_makes_none(host, playbook, config):
    config["applications"][0]["args"]["text"] = "changed"
    result = serve(playbook, config, "--check", "--diff")
    assert result.returncode == 0, result.stdout[-3000:]
    assert '+      "text": "changed"' in result.stdout and "text: changed" in result.stdout
    assert json.loads(answer(host, "/light")) == {"text": "first"}


def test_an_application_that_would_vanish_is_named_and_needs_consent(host, playbook, config):
    config["applications"].pop()
    result = serve(playbook, config)
    assert result.returncode != 0
    assert "application other runs and would vanish" in said(result)
    assert "ray_serve_remove_applications: [other]" in said(result)
    assert json.loads(answer(host, "/other")) == {"text": "second"}


@pytest.mark.soak
def test_a_change_that_ray_only_warns_about_is_an_error(host, playbook, config):
    config["http_options"] = {"host": "127.0.0.1", "port": 8001}
    result = serve(playbook, config)
    assert result.returncode != 0
    assert "port: 8001" not in host.file("/etc/raymetal/serve.yml").content_string
    assert "http_options.port is 8000 and should be 8001" in said(result) and "serve shutdown" in said(result)
    assert json.loads(answer(host, "/light")) == {"text": "first"}


def test_an_application_that_crashes_is_told_with_its_log(host, playbook, config):
    config["applications"].append(
        {"name": "crash", "route_prefix": "/crash", "import_path": "light:build", "args": {"crash": True}}
    )
    result = serve(playbook, config)
    assert result.returncode != 0
    assert "crash: DEPLOY_FAILED" in said(result) and "told to crash at start" in said(result)
    assert "What served before serves again: light, other" in said(result)
    assert "crash" not in answer(host, "/-/routes"), "what failed is taken back"
    assert json.loads(answer(host, "/light")) == {"text": "first"}


@pytest.mark.soak
def test_an_application_that_runs_and_answers_nothing_is_no_success(host, playbook, config):
    config["applications"].append(
        {"name": "sick", "route_prefix": "/sick", "import_path": "light:build", "args": {"text": "sick"}}
    )
    result = serve(playbook, config)
    assert result.returncode != 0
    assert "application sick runs, and does not answer" in said(result) and "500" in result.stdout
    assert json.loads(answer(host, "/light")) == {"text": "first"}
    assert "sick" not in answer(host, "/-/routes"), "what failed is taken back"


def test_then_nothing_is_left_to_do(host, playbook):
    again = playbook("site.yml", "--tags", "serve")
    assert changes(again) == {"0"}, again.stdout[-3000:]
    assert json.loads(answer(host, "/other")) == {"text": "second"}

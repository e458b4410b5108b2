"""The whole, from outside: what a client of the API sees, what a second run says, and what a teardown leaves."""

import json
import re
import time
import urllib.request

import pytest

UNITS = ("raymetal.service",)
QUESTION = {
    "model": "smollm2",
    "temperature": 0,
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}


def ask(host, path, body=None):
    """Asked from the controller, of this host's own proxy."""
    address = host.ansible.get_variables()["ansible_host"]
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://{address}:8000{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def on_head(host):
    if host.backend.get_hostname() != "head":
        pytest.skip("is asked once, on head")


def test_every_proxy_lists_the_model(host):
    assert [model["id"] for model in json.loads(ask(host, "/v1/models"))["data"]] == ["smollm2"]


def test_every_proxy_gives_a_real_completion(host):
    answer = json.loads(ask(host, "/v1/chat/completions", QUESTION))
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_every_proxy_streams(host):
    lines = [line for line in ask(host, "/v1/chat/completions", {**QUESTION, "stream": True}).splitlines() if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]
    assert lines[-1] == "data: [DONE]" and len(chunks) > 3
    assert "Paris" in "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def test_replicas_run_on_the_workers(host):
    engines = int(host.check_output("pgrep -c -f 'VLLM::[E]ngineCore' || true"))
    assert engines == (0 if host.backend.get_hostname() == "head" else 1)


def test_a_dry_run_on_the_converged_cluster_tells_no_change(host, playbook):
    on_head(host)
    result = playbook("site.yml", "--check", "--diff")
    assert result.returncode == 0, result.stdout[-4000:]
    assert set(re.findall(r"changed=(\d+)", result.stdout)) == {"0"}, result.stdout[-4000:]


def test_teardown_asks_for_the_name(host, playbook):
    on_head(host)
    result = playbook("teardown.yml", variables={"teardown_confirm": "another"})
    assert result.returncode != 0 and "is not the name of this cluster, nothing was changed" in " ".join(
        result.stdout.split()
    )
    assert "Paris" in ask(host, "/v1/chat/completions", QUESTION)


# The shared volume at /opt/raymetal belongs to the tests: a directory of the same form stands for it here.
TEARDOWN = {"teardown_confirm": "trial", "gpu_host_root": "/srv/raymetal"}


def test_teardown_leaves_nothing(host, playbook):
    if host.backend.get_hostname() == "head":
        playbook("molecule/cluster/make_root.yml")
        started = time.monotonic()
        result = playbook("teardown.yml", variables=TEARDOWN)
        assert result.returncode == 0, result.stdout[-4000:]
        print(f"teardown took {time.monotonic() - started:.0f} s")
    assert host.run("ps -eo args | grep -E '[r]aylet|[r]ay::|[V]LLM|[g]cs_server'").stdout == ""
    listening = host.check_output("ss -ltnH | awk '{print $4}' | sed 's/.*://' | sort -u").split()
    assert set(listening) <= {"22", "53"}, listening
    assert not host.user("raymetal").exists
    for path in ("/etc/raymetal", "/var/lib/raymetal", "/etc/systemd/system/raymetal.service", "/srv/raymetal/env"):
        assert not host.file(path).exists, path
    assert host.file("/srv/raymetal/models/smollm2/1/config.json").exists, "models stay unless asked for"


def test_a_second_teardown_is_green_and_takes_the_models_if_asked(host, playbook):
    on_head(host)
    again = playbook("teardown.yml", variables=TEARDOWN)
    assert again.returncode == 0 and set(re.findall(r"changed=(\d+)", again.stdout)) == {"0"}, again.stdout[-4000:]
    result = playbook("teardown.yml", variables={**TEARDOWN, "gpu_host_remove_models": True})
    assert result.returncode == 0 and not host.file("/srv/raymetal").exists, result.stdout[-4000:]

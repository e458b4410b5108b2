"""The whole, from outside: what a client of the API sees, and what a dry run says."""

import json
import re
import urllib.request

import pytest

UNITS = ("raymetal.service",)
QUESTION = {
    "model": "smollm2",
    "temperature": 0,
    "max_tokens": 20,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}


def ask(host, path, body=None, port=8000):
    """Asked from the controller, of this host's own proxy, or of another port."""
    address = host.ansible.get_variables()["ansible_host"]
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://{address}:{port}{path}", data, {"Content-Type": "application/json"})
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


def test_the_gateway_asks_the_nodes(host):
    on_head(host)
    assert "Paris" in ask(host, "/v1/chat/completions", QUESTION, port=8080)
    nodes = host.check_output("/etc/raymetal/gateway/gatewayctl nodes")
    assert all(name in nodes for name in ("head", "worker1", "worker2")), nodes


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

"""The public API from outside: who is let in, for what, how large, how often, under which certificate."""

import json
import socket
import subprocess
import time

import pytest

UNITS = ("raymetal-gateway.service",)
PORT = 8080
KEYS_MAP = "/etc/raymetal/gateway/keys.map"
PEM = "/etc/raymetal/tls/gateway.pem"


@pytest.fixture(scope="module")
def ask(address, keys, trust):
    """Return a function that sends bytes as they are given, and returns status, headers and body of the answer."""

    def send(body=b"{}", key="load", path="/v1/x", method="POST", length=True, headers=(), pieces=()):
        """``pieces``: sent after the body, each after so many seconds."""
        lines = [f"{method} {path} HTTP/1.1", "Host: gate", "Connection: close", *headers]
        lines += [f"Authorization: Bearer {keys.get(key, key)}"] if key else []
        lines += [f"Content-Length: {len(body) if length is True else length}"] if length is not False else []
        with trust.wrap_socket(socket.create_connection((address, PORT), 20), server_hostname=address) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            for seconds, piece in pieces:
                time.sleep(seconds)
                connection.sendall(piece)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        head, _, content = answer.partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        named = (field.split(": ", 1) for field in fields)
        return int(status.split()[1]), {name.lower(): value for name, value in named}, content.decode()

    return send


def refused(answer, status, code):
    """Whether an answer is this refusal, in OpenAI's shape."""
    found, headers, body = answer
    error = json.loads(body)["error"]
    assert headers["content-type"] == "application/json" and set(error) == {"message", "type", "param", "code"}
    assert (found, error["code"]) == (status, code), answer
    return headers, error


@pytest.fixture(scope="module")
def refused_at(ask):
    """When the key with a rate had used it up."""
    assert [ask(key="slow")[0] for _ in range(6)] == [200] * 6
    headers, _ = refused(ask(key="slow"), 429, "rate_limit_exceeded")
    assert headers["retry-after"] == "60"
    return time.monotonic()


def test_a_key_has_its_rate_and_others_are_not_held_up(ask, refused_at):
    refused(ask(key="slow"), 429, "rate_limit_exceeded")
    assert ask(key="load")[0] == 200


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (None, []),
        ("wrong-key-that-nobody-else-knows-0009", []),
        ("", ["Authorization: Bearer "]),
        (None, ["Authorization: Basic load-key-that-nobody-else-knows-0001"]),
        ("load", ["Authorization: Bearer wrong"]),  # the first one counts
        (None, ["X-Api-Key: load-key-that-nobody-else-knows-0001"]),
    ],
)
def test_without_a_good_key_nothing_is_answered(ask, key, headers):
    found, _ = refused(ask(key=key, headers=headers), 401, "invalid_api_key")
    assert found["www-authenticate"] == "Bearer"
    # Nobody waits for the body of a stranger.
    started = time.monotonic()
    refused(ask(b"{", key=key, length=100, headers=headers), 401, "invalid_api_key")
    assert time.monotonic() - started < 2


def test_the_hash_of_a_key_is_no_key(ask, host):
    digests = [line.split()[0] for line in host.file(KEYS_MAP).content_string.splitlines()]
    assert len(digests) == 3
    for digest in digests:
        refused(ask(key=digest), 401, "invalid_api_key")


def test_the_node_gets_no_key(ask):
    status, _, body = ask(path="/v1/x?headers=1")
    assert status == 200 and "authorization" not in {name.lower() for name in json.loads(body)["headers"]}


OWN, OTHER = '"model":"small"', '"model":"large"'


@pytest.mark.parametrize(
    "body",
    [
        f"{{{OWN}}}",
        '{"model":"small:lora"}',
        '{"model":"sm\\u0061ll"}',
        '{"mod\\u0065l":"small"}',
        f"{{{OTHER},{OWN}}}",  # the last counts, as it does on the node
        f'{{{OWN},"text":"{"x" * 150_000}"}}',
    ],
)
def test_a_key_of_single_models_asks_for_them(ask, body):
    assert json.loads(body)["model"] in ("small", "small:lora")
    status, _, answer = ask(body.encode(), key="small")
    assert status == 200 and json.loads(answer)["bytes"] == len(body)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (f"{{{OTHER}}}", 403, "model_not_found"),
        (f"{{{OWN},{OTHER}}}", 403, "model_not_found"),
        (f'{{{OWN},"mod\\u0065l":"large"}}', 403, "model_not_found"),
        ('{"model":"small:lora2"}', 403, "model_not_found"),
        ('{"model":"load/small"}', 403, "model_not_found"),
        ('{"model":"SMALL"}', 403, "model_not_found"),
        ('{"model":"small\\u0000"}', 400, "model_required"),
        ('{"model":"small "}', 403, "model_not_found"),
        ('{"Model":"small"}', 400, "model_required"),
        (f'{{"nested":{{{OWN}}}}}', 400, "model_required"),
        (f"[{{{OWN}}}]", 400, "model_required"),
        ('{"model":null}', 400, "model_required"),
        ('{"model":["small"]}', 400, "model_required"),
        ('{"messages":[]}', 400, "model_required"),
        ("", 400, "model_required"),
        ("model=small", 400, "model_required"),
        (f"{{{OWN}}}{{{OTHER}}}", 400, "model_required"),
        (f'{{"a":{"[" * 3000}{"]" * 3000},{OWN}}}', 400, "model_required"),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_and_for_no_others(ask, body, status, code, kind):
    refused(ask(body.encode(), key="small", headers=[f"Content-Type: {kind}"]), status, code)


@pytest.mark.parametrize("body", [f"{{{OWN}}}".encode("utf-16"), b"\xef\xbb\xbf{" + OTHER.encode() + b"}"])
def test_what_python_would_decode_by_itself_is_refused(ask, body):
    refused(ask(body, key="small"), 400, "model_required")


def test_a_body_that_does_not_fit_is_refused_rather_than_judged_by_its_beginning(ask):
    _, error = refused(ask(b"{", key="small", length=200_001), 413, "request_too_large")
    assert "at most" in error["message"]


def test_a_body_in_pieces_is_judged_whole(ask):
    half = f'{{{OWN},"text":"{"x" * 50_000}"'
    rest = f",{OTHER}}}"
    answer = ask(half.encode(), key="small", length=len(half) + len(rest), pieces=[(1, rest.encode())])
    refused(answer, 403, "model_not_found")


def test_lists_of_models_are_for_every_key(ask):
    assert ask(b"", key="small", path="/chat/v1/models", method="GET", length=False)[0] == 200
    refused(ask(b"", key="small", path="/v1/x?/v1/models", method="GET", length=False), 400, "model_required")
    refused(ask(b"{}", key="small", path="/v1/models"), 400, "model_required")


def test_a_body_without_a_length_is_refused(ask):
    chunked = b"3\r\n{}\n\r\n0\r\n\r\n"
    for key in ("load", "small"):
        refused(ask(chunked, key=key, length=False, headers=["Transfer-Encoding: chunked"]), 411, "length_required")


@pytest.mark.parametrize("length", [3_000_001, 2**32 + 1, 2**63 - 1, 2**64, 2**64 + 1, "0" * 20 + "2"])
def test_a_body_above_the_limit_is_refused_before_it_comes(ask, length):
    refused(ask(b"{}", length=length), 413, "request_too_large")


def test_a_body_at_the_limit_passes(ask):
    assert json.loads(ask(b"x" * 3_000_000)[2])["bytes"] == 3_000_000


def test_curl_gets_the_refusal_of_a_large_body(address, authority, keys, tmp_path):
    (tmp_path / "ca.pem").write_text(authority)
    (tmp_path / "body").write_bytes(b"x" * 20_000_000)
    (tmp_path / "curlrc").write_text(f'header = "Authorization: Bearer {keys["load"]}"\n')
    command = ["curl", "-sS", "--cacert", tmp_path / "ca.pem", "--config", tmp_path / "curlrc"]
    command += ["--data-binary", f"@{tmp_path}/body", f"https://{address}:{PORT}/v1/x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["error"]["code"] == "request_too_large", done


def test_a_body_must_arrive_in_time_and_a_client_may_wait(ask):
    started = time.monotonic()
    status, _, body = ask(b"{", length=9, pieces=[(1, b"a"), (1, b"b")])
    assert status == 408 and json.loads(body)["error"]["message"] == "The request did not arrive in time."
    assert 2.5 < time.monotonic() - started < 5
    # Longer than gateway_request_seconds.
    assert ask(b"x" * 1_000_000, path="/v1/x?seconds=4")[0] == 200


@pytest.mark.soak  # a minute
def test_a_key_that_was_refused_for_its_rate_is_let_in_when_it_was_told(ask, refused_at):
    time.sleep(max(0.0, refused_at + 60 - time.monotonic()))
    assert ask(key="slow")[0] == 200


NEW = {"name": "new", "key": "new-key-that-nobody-else-knows-00004"}


def test_keys_are_rotated_without_a_loss(ask, host, keys, playbook, reloaded_without_loss):
    """A second key for the same client, then the first one goes."""
    given = [{"name": name, "key": key} for name, key in keys.items()]
    result = reloaded_without_loss("one more key", variables={"gateway_api_keys": [*given, NEW]})
    assert ask(key=NEW["key"])[0] == 200
    back = playbook("playbooks/gateway.yml", "--diff")
    assert back.returncode == 0, back.stdout[-3000:]
    refused(ask(key=NEW["key"]), 401, "invalid_api_key")
    for text in (*keys.values(), NEW["key"]):
        assert text not in result.stdout + result.stderr + back.stdout


def test_secrets_are_nowhere_that_others_read(ask, host, keys, podman, container):
    unknown = "wrong-key-that-nobody-else-knows-0009"
    ask(path="/v1/x?status=503")
    ask(length=3_000_001)
    refused(ask(key=unknown), 401, "invalid_api_key")
    assert "{load}" in host.check_output("sleep 1; journalctl --no-pager -o cat -u raymetal-gateway")
    # Not by a command of testinfra: sudo would log it.
    patterns = "\n".join([*keys.values(), unknown]).encode()
    search = "cat >/dev/shm/patterns; ps -ef | grep -F -f /dev/shm/patterns; grep -F -f /dev/shm/patterns -rl"
    search += " /etc /var/log /run /root /tmp /proc/[0-9]*/environ /proc/[0-9]*/cmdline; rm /dev/shm/patterns"
    assert podman("exec", "-i", container, "sh", "-c", search, input=patterns) == ""
    for path in (KEYS_MAP, "/etc/raymetal/gateway/models.map", PEM):
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", "haproxy", 0o640), path
        host.run_expect([1], f"setpriv --reuid nobody --clear-groups cat {path}")
    assert host.file("/etc/raymetal/authority/ca.key").mode == 0o600
    assert host.run("setpriv --reuid nobody --clear-groups cat /etc/raymetal/authority/ca.pem").rc == 0


@pytest.mark.parametrize(
    ("variables", "messages"),
    [
        ({"gateway_api_keys": []}, ["gateway_address = 0.0.0.0: publishes the API, and there is no API key"]),
        ({"gateway_api_keys": [{"name": "a", "key": "short-secret"}]}, ["shorter than 32", "openssl rand -hex 32"]),
        ({"gateway_api_keys": "short-secret"}, ["gateway_api_keys = ***"]),
        ({"gateway_api_keys": [{"name": "a", "kee": "short-secret"}]}, ["gateway_api_keys.kee"]),
        ({"gateway_certificate": "/nowhere.pem"}, ["gateway_certificate = /nowhere.pem: is no file"]),
        ({"gateway_certificate_names": ["a b"]}, ["certificate_names = a b: is neither"]),
        ({"certificate_authority_host": "elsewhere"}, ["is no host of the inventory"]),
    ],
)
def test_bad_input_is_refused_and_no_secret_is_shown(playbook, variables, messages):
    result = playbook("playbooks/gateway.yml", variables=variables)
    text = " ".join(result.stdout.split())
    assert result.returncode != 0 and "gate 1:" in text and "short-secret" not in result.stdout + result.stderr
    assert not [message for message in messages if message not in text], result.stdout[-3000:]

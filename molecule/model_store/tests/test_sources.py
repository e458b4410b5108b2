"""Models from the network: the official client against a hub, archives, S3; cut short, refused, on full disks."""

import json
import os
import threading
from pathlib import Path

import pytest
import testinfra

CONVERGE = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml"
ROOT = "/srv/fetched"
HUB = "http://127.0.0.1:8900"
COMMIT = "b" * 40
TOKEN = "hf_letmein"


def of_hub(name="hub", repo="org/m", revision=COMMIT, **more):
    return {"name": name, "revision": "1", "hub": {"repo": repo, "revision": revision}, **more}


def of_archive(host, name, file, **more):
    sha256 = host.check_output(f"sha256sum /srv/hub/files/{file}").split()[0]
    return {"name": name, "revision": "1", "archive": {"url": f"{HUB}/files/{file}", "sha256": sha256, **more}}


def of_s3(name="s3", prefix="m/1"):
    return {
        "name": name,
        "revision": "1",
        "s3": {"bucket": "models", "prefix": prefix, "endpoint": "http://127.0.0.1:8901"},
    }


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """Files of the controller: the token, and the keys."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "keys").write_text("[default]\naws_access_key_id = key-of-s3\naws_secret_access_key = hush-of-s3\n")
    for file in folder.iterdir():
        file.chmod(0o600)
    return folder


@pytest.fixture
def fetch(host, playbook, secrets):
    """Return a function that stages models as an operator would; by default on one host alone."""

    def run(models, *arguments, limit="store-host", **variables):
        given = {
            "model_store_models": models,
            "model_store_root": ROOT,
            "model_store_hub_endpoint": HUB,
            "model_store_hub_token_file": str(secrets / "token"),
            "model_store_s3_credentials_file": str(secrets / "keys"),
            "model_store_stall_seconds": 30,
            "model_store_fetch_once": False,
            **variables,
        }
        done = playbook(CONVERGE, "--limit", limit, *arguments, variables=given)
        assert TOKEN not in done.stdout + done.stderr and "hush-of-s3" not in done.stdout + done.stderr
        return done

    faults(host)
    yield run
    faults(host)


def faults(host, *found):
    host.check_output("curl -sf --data %s %s/-/faults", json.dumps(found), HUB)


def log(host):
    return json.loads(host.check_output(f"curl -sf {HUB}/-/log"))


def names(host, path):
    return sorted(host.file(path).listdir())


def test_each_source_is_staged_and_the_second_run_changes_nothing(host, fetch):
    models = [of_hub(), of_hub("gated", "gated/m"), of_archive(host, "archive", "m.tar.gz"), of_s3()]
    dry = fetch(models, "--check", "--diff")
    assert dry.returncode == 0 and not host.file(ROOT).exists, dry.stdout[-3000:]
    done = fetch(models)
    assert done.returncode == 0, done.stdout[-3000:]
    digests = set()
    for model in models:
        folder = f"{ROOT}/{model['name']}"
        assert names(host, folder) == ["1", "1.manifest.json"], "nothing else is left"
        assert names(host, f"{folder}/1") == ["config.json", "model.safetensors"], "no GGUF, nothing of original/"
        digests.add(host.check_output(f"cd {folder}/1 && sha256sum * | sha256sum"))
    assert len(digests) == 1, "the same model from everywhere"
    again = fetch(models)
    assert "changed=0" in again.stdout and again.returncode == 0, again.stdout[-3000:]
    other = [{**models[0], "hub": {**models[0]["hub"], "revision": "c" * 40}}, {**models[2], "digest": "0" * 64}]
    host.run_expect([0], f"rm {ROOT}/s3/1/config.json")
    refused = fetch([*other, models[3]])
    assert "was staged from hub org/m@bbbb" in refused.stdout and "give it another revision" in refused.stdout
    assert "has digest " in refused.stdout and f"names {'0' * 64}. To do: correct digest" in refused.stdout
    assert "is not what was staged: config.json is gone. To do: if that was meant" in " ".join(refused.stdout.split())


def test_bad_sources_each_say_what_to_do(host, fetch):
    good = of_archive(host, "wrong-sha256", "m.tar.gz")
    faults(host, {"path": "m.tar.gz", "kind": "status", "status": 429, "headers": {"Retry-After": "1"}})
    bad = {
        "has sha256": of_archive(host, "sum", "text.tar", sha256="0" * 64),
        "is no tar archive": of_archive(host, "text", "text.tar"),
        "../evil: it leads out of the directory": of_archive(host, "climb", "evil.tar"),
        "answers 404": {**good, "name": "gone", "archive": {**good["archive"], "url": f"{HUB}/files/gone.tar"}},
        "answers 429": {**good, "name": "busy"},
        "hub.repo org/other at": of_hub("repo", "org/other"),
        f"has no commit {'c' * 40}": of_hub("commit", revision="c" * 40),
        "s3 models/none: there is no": of_s3("prefix", prefix="none"),
    }
    done = fetch(list(bad.values()), model_store_stall_seconds=4)
    assert done.returncode != 0
    text = " ".join(done.stdout.split())
    for words, model in bad.items():
        at = text.find(f"store-host: {model['name']}/1: ")
        message = text[at : at + 600]
        assert at >= 0 and words in message and "To do: " in message, (words, message)
        assert not host.file(f"{ROOT}/{model['name']}/1").exists
    assert host.check_output("find /srv/fetched -name evil") == ""
    none = fetch([of_hub("none", "org/none")])
    assert "has no config.json: it is no model directory. To do: correct it at its source" in " ".join(
        none.stdout.split()
    )
    assert not host.file(f"{ROOT}/none/1.manifest.json").exists


def test_a_full_disk(host, fetch):
    """/dev/shm has 64 MB here."""
    root = "/dev/shm/models"
    big = fetch([of_hub("big", "org/big")], model_store_root=root)
    text = " ".join(big.stdout.split())
    assert f"store-host: big/1: {root}/big/1 needs 0.105 GB more, and 0.067 GB are free at {root}. To do:" in text
    assert log(host)[-1]["path"].startswith("/api/"), "not a byte of it was fetched"
    # Its size is known only when it is unpacked.
    model = of_archive(host, "zeros", "zeros.tar.gz")
    host.run_expect([0], "head -c 40M /dev/zero > /dev/shm/filler")
    full = fetch([model], model_store_root=root)
    assert f"{root}/zeros/1" in full.stdout and "the disk is full. To do: free some space" in " ".join(
        full.stdout.split()
    )
    assert not host.file(f"{root}/zeros/1").exists
    host.run_expect([0], "rm /dev/shm/filler")
    faults(host)
    done = fetch([model], model_store_root=root)
    assert done.returncode == 0 and host.file(f"{root}/zeros/1.manifest.json").exists, done.stdout[-3000:]
    assert [entry for entry in log(host) if not entry["range"]] == [], "the archive was not fetched again"
    host.run_expect([0], f"rm -r {root}")


def test_killed_in_the_middle_the_secret_is_nowhere_and_the_next_run_says_how_far_it_is(host, fetch):
    faults(host, {"path": "/cdn/", "kind": "slow", "bytes_per_second": 400_000})
    ended = []
    play = threading.Thread(target=lambda: ended.append(fetch([of_hub("cut", "gated/m")])))
    play.start()
    state = f"{ROOT}/cut/1.fetch"
    host.run_expect([0], f"timeout 60 sh -c 'until grep -q fetching {state}; do :; done' 2>/dev/null")
    partial = f"{ROOT}/cut/1.partial"
    whole, half = f"ls {partial}/config.json", f"ls {partial}/.cache/huggingface/download/*.incomplete"
    host.run_expect([0], f"timeout 60 sh -c 'until {whole} && {half}; do :; done'")
    # The patterns do not find themselves.
    assert host.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c hf_letmei[n]").stdout.strip() == "0"
    assert host.run("grep -rlE 'hf_letmei[n]' /root /tmp /run /var/tmp /var/log /etc /srv/fetched").stdout == ""
    pid = json.loads(host.file(state).content_string)["pid"]
    host.run_expect([0], f"kill -9 {pid}")
    play.join()
    text = " ".join(ended[0].stdout.split())
    assert "store-host: cut/1: the fetch was ended from outside. To do: run again" in text, ended[0].stdout[-3000:]
    assert not host.file(f"{ROOT}/cut/1").exists
    faults(host, {"path": "/cdn/", "kind": "slow", "bytes_per_second": 350_000})
    done = fetch([of_hub("cut", "gated/m")])
    assert "[store-host] cut/1: fetching: 0.00 of 0.00 GB, 0." in done.stdout, done.stdout[-3000:]
    assert done.returncode == 0 and names(host, f"{ROOT}/cut") == ["1", "1.manifest.json"], done.stdout[-3000:]
    assert [e["path"] for e in log(host) if "config.json" in e["path"]] == [], "what was there was not fetched again"


def test_one_host_fetches_for_all(host, fetch):
    other = testinfra.get_host(
        "ansible://store-other?sudo=true", ansible_inventory=os.environ["MOLECULE_EPHEMERAL_DIRECTORY"] + "/inventory"
    )
    faults(other)
    once = {"limit": "all", "model_store_fetch_once": True}
    done = fetch([of_hub("once")], "--skip-tags", "verify", **once)
    assert done.returncode == 0 and log(host) != [] and log(other) == [], done.stdout[-3000:]
    without = fetch([of_hub("once")], **once)
    assert f"{ROOT}/once/1 is no directory. To do: --tags models" in without.stdout
    # In the fan-out's place.
    other.run_expect(
        [0], f"cp -r /srv/hub/repos/org/m/{COMMIT} {ROOT}/once/1 && cd {ROOT}/once/1 && rm -r *.gguf original"
    )
    whole = fetch([of_hub("once")], **once)
    assert whole.returncode == 0 and log(other) == [], whole.stdout[-3000:]


def test_hosts_that_share_the_directory_fetch_it_together_once(host, fetch):
    root = "/opt/raymetal/models-shared"
    done = fetch([of_hub("shared")], limit="all", model_store_root=root)
    assert done.returncode == 0 and names(host, f"{root}/shared") == ["1", "1.manifest.json"], done.stdout[-3000:]
    host.run_expect([0], f"rm -r {root}")

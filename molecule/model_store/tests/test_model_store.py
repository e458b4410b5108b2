"""Each source ends as a directory that vLLM can load, complete or not there."""

import json
import os
from pathlib import Path

ROOT = "/opt/raymetal/models"
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])


def test_the_package_became_a_model_directory(host):
    config = json.loads(host.file(f"{ROOT}/smollm2/1/config.json").content_string)
    assert config["model_type"] == "llama"
    assert host.file(f"{ROOT}/smollm2/1/model.safetensors").size > 200_000_000
    assert host.file(f"{ROOT}/smollm2/1/tokenizer.json").exists


def test_the_service_user_can_read_the_weights(host):
    host.run_expect([0], f"runuser -u raymetal -- head -c 8 {ROOT}/smollm2/1/model.safetensors")


def test_a_model_on_the_host_is_linked(host):
    assert host.file(f"{ROOT}/linked/2").linked_to == "/srv/models/tiny"


def test_a_model_of_the_controller_is_copied_whole(host):
    assert sorted(host.file(f"{ROOT}/copied/3").listdir()) == ["README.txt", "config.json"]


def test_nothing_unfinished_is_left(host):
    left = host.check_output(f"find {ROOT} -maxdepth 2 -name '*.partial' -o -maxdepth 2 -name '*.scratch'")
    assert left == ""


def test_what_an_interrupted_run_left_is_finished(host, apply_role):
    host.run_expect(
        [0],
        f"rm -r {ROOT}/copied/3 && mkdir {ROOT}/copied/3.partial && echo half > {ROOT}/copied/3.partial/config.json",
    )
    result = apply_role("model_store", {})
    assert result.returncode == 0, result.stdout[-3000:]
    assert json.loads(host.file(f"{ROOT}/copied/3/config.json").content_string)["model_type"] == "llama"
    assert not host.file(f"{ROOT}/copied/3.partial").exists


def test_each_model_has_a_manifest_of_every_file(host):
    manifest = json.loads(host.file(f"{ROOT}/smollm2/1.manifest.json").content_string)
    weights = manifest["files"]["model.safetensors"]
    assert weights["sha256"] == host.check_output(f"sha256sum {ROOT}/smollm2/1/model.safetensors").split()[0]
    assert set(manifest["files"]) == set(host.file(f"{ROOT}/smollm2/1").listdir())


def test_a_changed_file_is_refused_and_a_hidden_change_is_found_by_verify(host, apply_role):
    file = f"{ROOT}/copied/3/README.txt"
    text = host.file(file).content_string
    time = host.check_output(f"stat -c %y {file}")
    host.run_expect([0], f"printf X | dd of={file} bs=1 conv=notrunc")
    changed = apply_role("model_store", {})
    assert changed.returncode != 0 and "README.txt" in changed.stdout, changed.stdout[-3000:]
    host.run_expect([0], f"touch -d '{time}' {file}")
    unread = apply_role("model_store", {})
    read = apply_role("model_store", {"model_store_verify_full": True})
    assert unread.returncode == 0, "size and time are those of before: not read again"
    assert read.returncode != 0 and "README.txt" in read.stdout, read.stdout[-3000:]
    host.run_expect([0], f"printf {text[0]} | dd of={file} bs=1 conv=notrunc && touch -d '{time}' {file}")
    assert apply_role("model_store", {"model_store_verify_full": True}).returncode == 0


def test_old_revisions_go_but_for_the_ones_to_keep_and_in_use(host, apply_role, playbook):
    """Of revisions 3 (copied first) to 6, one old one stays, and one that a Serve configuration names."""
    hostvars = host.ansible.get_variables()["model_store_models"]
    model = next(model for model in hostvars if model["name"] == "copied")
    host.run_expect([0], f"rm -rf {ROOT}/copied/[456]*")  # the shared volume has them from a run before
    for revision in ("4", "5", "6"):
        staged = apply_role("model_store", {"model_store_models": [{**model, "revision": revision}]})
        assert staged.returncode == 0, staged.stdout[-3000:]
    prune = PROJECT / "molecule/model_store/prune.yml"
    wanted = {"model_store_models": [{**model, "revision": "6"}], "model_store_in_use": [f"{ROOT}/copied/3"]}
    dry = playbook(prune, "--check", variables=wanted)
    assert dry.returncode == 0 and host.file(f"{ROOT}/copied/4").exists, dry.stdout[-3000:]
    done = playbook(prune, variables=wanted)
    assert done.returncode == 0, done.stdout[-3000:]
    left = sorted(name for name in host.file(f"{ROOT}/copied").listdir() if "." not in name)
    assert left == ["3", "5", "6"]
    assert not host.file(f"{ROOT}/copied/4.manifest.json").exists
    assert host.file(f"{ROOT}/smollm2/1").exists, "the only revision of a model that is not named stays as an old one"


def test_no_room_for_a_copy_stops_before_the_first_byte(host, playbook, tmp_path):
    """/dev/shm of the host has 64 MB."""
    (tmp_path / "config.json").write_text("{}")
    with open(tmp_path / "model.safetensors", "wb") as weights:
        weights.truncate(80_000_000)
    models = [{"name": "large", "revision": "1", "controller_path": str(tmp_path)}]
    play = PROJECT / "molecule/model_store/room.yml"
    result = playbook(play, variables={"model_store_models": models, "model_store_root": "/dev/shm/models"})
    said = " ".join(result.stdout.split())
    assert "large: 0.08 GB are needed at /dev/shm/models, and 0.0" in said and "To do: free some space" in said, said[
        -3000:
    ]
    assert not list(host.file("/dev/shm/models/large").listdir())

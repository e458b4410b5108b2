"""Each source ends as a directory that vLLM can load, complete or not there."""

import json

ROOT = "/opt/raymetal/models"


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

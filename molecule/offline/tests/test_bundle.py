"""The hosts have no way to the outside: what they run came from the bundle, and is what was gathered."""

import os
import re
from pathlib import Path

import pytest

PREFIX = "/opt/raymetal/env/current"
BUNDLE = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / ".cache/molecule/bundle"
ELSEWHERE = {"python_env_root": "/srv/other/env", "model_store_root": "/srv/other/models"}


def on_head(host):
    if host.backend.get_hostname() != "head":
        pytest.skip("is asked once, on head")


def test_there_is_no_way_out(host):
    assert host.check_output("ip route show default") == ""


def test_the_environment_is_a_conda_prefix_that_needs_no_python_of_the_host(host):
    assert host.file(f"{PREFIX}/conda-meta").is_directory
    code = "import ctypes, lzma, os, sqlite3, ssl, sys; print(os.path.realpath(sys.base_prefix))"
    assert host.check_output(f"{PREFIX}/bin/python -c '{code}'") == host.check_output(f"readlink -f {PREFIX}")


def test_one_host_built_it_and_nothing_is_left_of_how_it_travelled(host):
    built = host.file("/opt/raymetal/env/cache").exists
    assert built == (host.backend.get_hostname() == "head")
    assert host.check_output("ls /opt/raymetal/env") == host.check_output("ls -I share /opt/raymetal/env")
    assert not host.file("/opt/raymetal/bundle").exists
    assert host.check_output("find /opt/raymetal/models -name '*.partial' -o -name '*.wheels'") == ""


def test_what_serves_is_looked_at_without_the_install(host, playbook):
    """Regression: arguments of roles that a tag leaves out are checked all the same, before what they need is known."""
    on_head(host)
    result = playbook("site.yml", "--tags", "serve")
    assert result.returncode == 0, result.stdout[-3000:]
    assert set(re.findall(r"changed=(\d+)", result.stdout)) == {"0"}, result.stdout[-3000:]


@pytest.mark.parametrize(
    "pattern", ["wheels/click-*.whl", "conda/linux-64/python-*.conda", "models/tiny/1/*.safetensors"]
)
def test_a_changed_byte_in_the_bundle_stops_before_the_first_change(host, playbook, pattern):
    on_head(host)
    (file,) = BUNDLE.glob(pattern)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    try:
        result = playbook("site.yml", "--tags", "install", variables=ELSEWHERE)
    finally:
        content[-100] ^= 1
        file.write_bytes(content)
    said = " ".join(result.stdout.split())
    assert result.returncode != 0 and f"{file.relative_to(BUNDLE)}: FAILED" in said, result.stdout[-3000:]
    assert "is not what was gathered" in said and "To do: copy the bundle again" in said
    assert set(re.findall(r"changed=(\d+)", result.stdout)) == {"0"}
    assert not host.file("/srv/other").exists


def test_a_bundle_for_another_lock_or_without_a_model_is_refused_at_gate_1(host, playbook, tmp_path):
    on_head(host)
    lock = tmp_path / "cpu.lock"
    lock.write_text((Path(os.environ["MOLECULE_PROJECT_DIRECTORY"]) / "files/locks/cpu.lock").read_text() + "# other\n")
    more = [{"name": "more", "revision": "1", "package": {"requirements": str(lock), "gguf_file": "x.gguf"}}]
    result = playbook("site.yml", variables={"python_env_lock": str(lock), "model_store_models": more})
    said = " ".join(result.stdout.split())
    assert result.returncode != 0 and "was made for lock" in said and "has no model more/1" in said, result.stdout[
        -3000:
    ]
    assert set(re.findall(r"changed=(\d+)", result.stdout)) == {"0"}

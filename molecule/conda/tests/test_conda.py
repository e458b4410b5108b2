"""A real prefix from a real channel by py-rattler; each failure with what to do; Miniforge's part with a stand-in."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import yaml

ROOT = "/opt/raymetal/env"
PREFIX = f"{ROOT}/current"
CONDA = f"{ROOT}/conda"
MIRROR = "http://conda-host:8088"
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
EPHEMERAL = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
STAND_IN = PROJECT / "molecule/conda/files/miniforge_stand_in.sh"
PAGE = "<!DOCTYPE html><html><body>Please log in</body></html>\n"
COMPLETE = f"find {ROOT} -mindepth 2 -maxdepth 2 -name .complete"


def sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


@pytest.fixture(scope="module")
def lock(host, tmp_path_factory):
    """The lock that the converge left, as it would be with the public channel."""
    text = host.file(f"{PREFIX}/conda-meta/explicit.lock").content_string
    path = tmp_path_factory.mktemp("lock") / "python.lock"
    path.write_text(text.replace(MIRROR, "https://conda.anaconda.org"))
    return path


def test_it_is_a_conda_prefix_with_ray_from_the_pip_lock(host):
    names = host.check_output(f"ls {PREFIX}/conda-meta")
    assert "python-3.11." in names and "cpython-libs-3.11." in names
    pin = re.search(r"(?m)^ray==(\S+)", (PROJECT / "files/locks/cpu.lock").read_text())[1]
    found = host.check_output(f"{PREFIX}/bin/python -c 'import ray, sys; print(ray.__version__, sys.prefix)'")
    assert found.split() == [pin, PREFIX]
    compiled = host.check_output(f"find -L {PREFIX}/lib/python3.11/site-packages/ray/serve -name '*.pyc' | wc -l")
    assert int(compiled) > 50


def test_it_needs_no_other_python(host):
    """The machine's own is out of the way, and the one that the package was made from is not on this host at all."""
    code = (
        "import sys, ssl, ctypes, sqlite3, lzma, bz2, zlib, hashlib, os, sysconfig;"
        "assert os.path.samefile(sysconfig.get_path('include'), sys.prefix + '/include/python3.11');"
        "maps = open('/proc/self/maps').read();"
        "print({line.split()[-1] for line in maps.splitlines() if 'libssl' in line or 'libsqlite' in line})"
    )
    out, back = "mv /usr/lib/python3.11 /usr/lib/away", "mv /usr/lib/away /usr/lib/python3.11"
    found = host.run(f'{out} && trap "{back}" EXIT && ! /usr/bin/python3 -c "" 2>&- && {PREFIX}/bin/python -c "{code}"')
    assert found.rc == 0, found.stderr
    assert found.stdout.count(f"{ROOT}/") == 2, found.stdout
    assert host.check_output("/usr/bin/python3 -c 'print(1)'") == "1"


def test_the_service_user_can_run_it_and_it_belongs_to_root(host):
    host.run_expect([0], f"setpriv --reuid=nobody --clear-groups {PREFIX}/bin/python -c 'import ssl'")
    assert host.check_output(f"find -L {PREFIX}/bin {PREFIX}/conda-meta -not -user root | wc -l") == "0"


def test_nothing_is_left_in_the_home_of_root(host):
    left = set(host.check_output("ls -A /root").split())
    assert left <= {".ansible", ".bashrc", ".profile", ".ssh"}


def test_each_package_was_fetched_once(host):
    asked = re.findall(r"GET (\S+\.conda) ", host.check_output("journalctl -u channels --no-pager"))
    assert len(asked) == 2 and len(set(asked)) == 2


@pytest.fixture(scope="module")
def told(host, playbook, lock, tmp_path_factory):
    """What each case was told: the name of the task that failed, and its message; empty where nothing failed."""
    folder = tmp_path_factory.mktemp("cases")
    host.run_expect([0], f"mkdir -p /dev/shm/env && ln -sfn {ROOT}/uv /dev/shm/env/uv")
    host.run_expect([0], f"cat > /srv/channels/page.sh <<'EOF'\n{PAGE}EOF")
    host.run_expect([0], f"cat > /srv/channels/stand_in.sh <<'EOF'\n{STAND_IN.read_text()}EOF")
    host.run_expect([0], "mkdir -p /opt/cases/half/conda/miniforge-1-0/lib")
    (folder / "wrong.lock").write_text(re.sub(r"#[0-9a-f]{64}", "#" + "0" * 64, lock.read_text(), count=1))
    environments = {
        "unreachable": {"conda_channel_alias": "http://conda-host:1", "conda_python_version": "3.11.7"},
        "no_python": {"conda_python_version": "3.11.99"},
        "wrong_hash": {"conda_lock": str(folder / "wrong.lock")},
        "disk_full": {"python_env_root": "/dev/shm/env", "python_env_uv": f"{ROOT}/uv/bin/uv"},
    }
    good = {"conda_installer": f"{MIRROR}/stand_in.sh", "conda_installer_sha256": sha256(STAND_IN.read_bytes())}
    installers = {
        "half": good,
        "on_the_host": {**good, "conda_installer": "file:///srv/channels/stand_in.sh"},
        "closed": {**good, "conda_installer": "http://conda-host:1/x.sh"},
        "page": {**good, "conda_installer": f"{MIRROR}/page.sh"},
        "trusted_page": {"conda_installer": f"{MIRROR}/page.sh", "conda_installer_sha256": sha256(PAGE)},
        "unwritable": {**good, "conda_root": "/sys/conda"},
    }
    variables = host.ansible.get_variables().items()
    same = {name: value for name, value in variables if re.match(r"ansible_(host|port|user|ssh_\w+|connection)$", name)}
    hosts = {}
    for name, case in environments.items():
        root = f"/opt/cases/{name}/conda"  # its own cache, and the program that is there
        host.run_expect([0], f"mkdir -p {root} && ln -sfn {CONDA}/rattler {root}/rattler")
        hosts[name] = {**same, "case_environment": True, "conda_root": root, **case}
    for name, case in installers.items():
        root = {"python_env_root": f"/opt/cases/{name}", "conda_backend": "miniforge", "conda_miniforge_version": "1-0"}
        hosts[name] = {**same, "case_environment": False, **root, **case}
    names = dict.fromkeys(hosts)
    inventory = {"all": {"hosts": hosts, "children": {"cases": {"hosts": names}, "ray_cluster": {"hosts": names}}}}
    (folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
    arguments = ["-i", str(folder / "inventory.yml"), "--forks=4"]  # sshd admits ten at a time
    done = playbook(PROJECT / "molecule/conda/cases.yml", *arguments, variables={"cases_told": str(folder)})
    assert done.returncode == 0, done.stdout[-5000:]
    return {name: " ".join((folder / name).read_text().split()) if (folder / name).exists() else "" for name in hosts}


@pytest.mark.parametrize(
    ("case", "problem", "do"),
    [
        ("unreachable", "Connection refused", "see that this host reaches http://conda-host:1/conda-forge"),
        ("no_python", "No candidates were found for python 3.11.99", "set conda_python_version to one that"),
        ("wrong_hash", "hash mismatch", "what the mirror serves is not what the lock"),
        ("disk_full", "No space left on device", "make room on the file system of /dev/shm/env/"),
    ],
)
def test_no_environment_and_why(told, case, problem, do):
    assert told[case].startswith("build | Create the prefix from conda packages"), told[case]
    assert problem in told[case] and f"To do: {do}" in told[case], told[case]


@pytest.mark.parametrize(
    ("case", "problem", "do"),
    [
        ("closed", "Connection refused", "see that this host reaches it"),
        ("page", f"has {len(PAGE)} bytes and the SHA-256 {sha256(PAGE)}", "(a proxy's page?)"),
        ("trusted_page", "syntax error", "see that it is a Miniforge installer"),
        ("unwritable", "/sys/conda", ""),
    ],
)
def test_no_conda_and_why(told, host, case, problem, do):
    assert problem in told[case] and do in told[case], told[case]
    assert not host.file(f"/opt/cases/{case}/conda/miniforge-1-0/.complete").exists


@pytest.mark.parametrize("case", ["half", "on_the_host"])
def test_an_installer_is_run_into_its_own_place(told, host, case):
    base = f"/opt/cases/{case}/conda/miniforge-1-0"
    assert told[case] == ""
    assert host.file(f"{base}/.complete").content_string == "conda 0.0.0, a stand-in\n"
    assert sorted(host.file(base).listdir()) == ["bin", "calls.jsonl"], "nothing of an interrupted run"
    assert not host.file(f"/opt/cases/{case}/conda/miniforge.sh").exists


def test_what_failed_left_nothing_that_looks_whole(told, host):
    assert host.check_output(COMPLETE).split() == [f"{host.check_output(f'readlink -f {PREFIX}')}/.complete"]
    assert host.check_output("ls -d /dev/shm/env/*/.complete 2>&- | wc -l") == "0"


def test_the_explicit_lock_makes_the_same_prefix(host, playbook, lock):
    """From the mirror, though the lock names the public channel; a py-rattler that was cut off is made again first."""
    before = host.check_output(f"readlink -f {PREFIX}")
    host.run_expect([0], f"rm -r {CONDA}/rattler/.complete-* {CONDA}/rattler/lib")
    done = playbook(PROJECT / "molecule/conda/converge.yml", variables={"conda_lock": str(lock)})
    assert done.returncode == 0, done.stdout[-5000:]
    made = host.check_output(f"readlink -f {PREFIX}")
    assert made != before and host.file(f"{before}/.complete").exists
    assert len({host.check_output(f"sort {place}/conda-meta/explicit.lock") for place in (before, made)}) == 1
    host.run_expect([0], f"{PREFIX}/bin/python -c 'import ray'")


def test_what_was_interrupted_is_made_again_by_the_other_backend(host, playbook, lock):
    """The first environment, half of it gone; of conda only the command line, this one is a stand-in."""
    after_lock = host.check_output(f"readlink -f {PREFIX}")
    first = host.check_output(f"dirname $({COMPLETE} | grep -v {after_lock})")
    host.run_expect([0], f"rm -r {first}/.complete {first}/lib/python3.11/json {first}/conda-meta")
    variables = {
        "conda_backend": "miniforge",
        "conda_installer": str(STAND_IN),
        "conda_installer_sha256": sha256(STAND_IN.read_bytes()),
    }
    done = playbook(PROJECT / "molecule/conda/converge.yml", variables=variables)
    assert done.returncode == 0, done.stdout[-5000:]
    assert host.check_output(f"readlink -f {PREFIX}") == first, "the same packages: the same environment"
    host.run_expect([0], f"{PREFIX}/bin/python -c 'import json, ray'")
    last = json.loads(host.check_output(f"tail -n 1 {CONDA}/miniforge-*/calls.jsonl"))
    assert last["arguments"] == [
        *("create", "--yes", "--quiet", "--override-channels", f"--channel={MIRROR}/conda-forge"),
        *("python=3.11", f"--prefix={first}"),
    ]
    assert last["environment"]["HOME"] == f"{CONDA}/home" and last["environment"]["CONDA_REGISTER_ENVS"] == "false"


def test_still_nothing_is_left_in_the_home_of_root(host):
    test_nothing_is_left_in_the_home_of_root(host)

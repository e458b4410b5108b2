"""Where secrets are, who reads them, and that no process, journal, log or output of Ansible shows them."""

import json
import os
import re
import subprocess
import threading

import pytest

UNITS = ("raymetal.service",)
HOSTS = ("head", "worker1", "edge")
HUB, TOKEN, PEM, CA = "hub-token", "token", "gateway's key", "authority's key"
# What is to be found where; API keys themselves are nowhere, only their hashes.
NODE = {"/etc/raymetal/auth_token": {TOKEN}, "/etc/raymetal/ray.env": {HUB}}
EXPECTED = {
    "head": NODE,
    "worker1": NODE,
    "edge": {"/etc/raymetal/tls/gateway.pem": {PEM}, "/etc/raymetal/authority/ca.key": {CA}},
}
PLACES = "/dev/shm /etc /home /opt /root /run /srv /tmp /usr/local /var"
# Words come on standard input, into a file that only root reads: on a command line they would be found.
SEARCH = f"""umask 077; cat > /dev/shm/words
grep -rsoaFH --devices=skip --exclude-dir=site-packages --exclude-dir=models -f /dev/shm/words {PLACES} \\
  | grep -v '^/dev/shm/words:' | sort -u; rm /dev/shm/words"""
PROCESSES = "umask 077; cat > /dev/shm/words; cat /proc/[0-9]*/cmdline | grep -acFf /dev/shm/words; rm /dev/shm/words"
JOURNAL = "umask 077; cat > /dev/shm/words; journalctl -o export | grep -acFf /dev/shm/words; rm /dev/shm/words"


def short(name):
    return HUB if HUB in name else name


@pytest.fixture(scope="module")
def words(secrets):
    return "\n".join(secrets.values()) + "\n"


@pytest.mark.parametrize("name", HOSTS)
def test_secrets_are_in_these_files_only(place, secrets, words, name):
    names = {text: short(name) for name, text in secrets.items()}
    found = {}
    for line in place(name).run("sh", "-c", SEARCH, input=words).stdout.splitlines():
        path, _, text = line.partition(":")
        found.setdefault(path, set()).add(names[text])
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", HOSTS)
def test_no_other_user_reads_them(place, name):
    here = place(name)
    for path in EXPECTED[name]:
        assert here.run("cat", path).returncode == 0
        assert here.run("cat", path, user="guest").returncode != 0, path
    assert here.run("cat", "/etc/raymetal/gateway/keys.map", user="guest").returncode != 0
    if name == "edge":
        assert here.run("cat", "/etc/raymetal/authority/ca.key", user="haproxy").returncode != 0


@pytest.mark.parametrize("name", HOSTS)
def test_nothing_of_the_services_is_readable_by_others(place, name):
    """Sessions, logs, sockets, shared memory, temporary files: whatever belongs to a service's user."""
    here = place(name)
    owner = "haproxy" if name == "edge" else "raymetal"
    found = here.run(
        "sh", "-c", f"find / /dev/shm /run /tmp -xdev -user {owner} -readable 2>/dev/null", user="guest"
    ).stdout.split()
    assert set(found) <= {"/run/haproxy"}  # empty, of Debian's package
    mine = here.run("sh", "-c", f"find / /dev/shm /run /tmp -xdev -user {owner} 2>/dev/null | head -1").stdout
    assert mine, "the search finds nothing at all"


@pytest.mark.parametrize("name", HOSTS)
def test_processes_show_none(place, words, name):
    here = place(name)
    assert here.run("sh", "-c", PROCESSES, input=words).stdout.split() == ["0"]
    # The environment of the service has secrets: only its own user and root read it.
    owner, process = ("haproxy", "haproxy") if name == "edge" else ("raymetal", "raylet")
    look = f"for pid in $(pgrep -u {owner} -x {process}); do cat /proc/$pid/environ >/dev/null && echo $pid; done"
    assert here.run("pgrep", "-u", owner, "-x", process).stdout.split()
    assert here.run("sh", "-c", look, user="guest").stdout == ""


@pytest.mark.parametrize("name", HOSTS)
def test_the_journal_has_none(place, words, name):
    assert place(name).run("sh", "-c", JOURNAL, input=words).stdout.split() == ["0"]


def test_rays_own_interfaces_show_none_to_those_who_have_the_token(place, secrets):
    head = place("head")
    for path in (
        "serve/applications/",
        "v0/workers?detail=1",
        "v0/runtime_envs?detail=1",
        "v0/actors?detail=1",
        "jobs/",
    ):
        command = f"curl -sf -m 30 -H @- 'http://127.0.0.1:8265/api/{path}'"
        done = head.run("sh", "-c", command, input=f"Authorization: Bearer {head.token()}\n")
        assert done.returncode == 0 and not [name for name, text in secrets.items() if text in done.stdout], path


class Watch(threading.Thread):
    """Looks at the processes of a host while something runs."""

    def __init__(self, here, words):
        super().__init__()
        self.here, self.words, self.seen = here, words, {}

    def run(self):
        done = self.here.run("python3", "/srv/strange/watch.py", "/dev/shm/stop", input=self.words)
        self.seen = json.loads(done.stdout)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.here.run("touch", "/dev/shm/stop")
        self.join()
        self.here.run("rm", "/dev/shm/stop")


@pytest.fixture(scope="module")
def rewritten(place, words, tmp_path_factory):
    """A run that must write every secret anew, with all that it says, logs and caches; what the processes showed."""
    kept = tmp_path_factory.mktemp("ansible")
    project, ephemeral = os.environ["MOLECULE_PROJECT_DIRECTORY"], os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]
    spoil = "for f in {}; do echo >> $f && chmod 0666 $f; done"
    place("head").run("sh", "-c", spoil.format("/etc/raymetal/ray.env"))
    place("worker1").run("sh", "-c", spoil.format("/etc/raymetal/ray.env /etc/raymetal/auth_token"))
    place("edge").run("sh", "-c", spoil.format("/etc/raymetal/gateway/keys.map"))
    settings = {
        "ANSIBLE_CONFIG": f"{project}/ansible.cfg",
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_CACHE_PLUGIN": "jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(kept / "facts"),
        "ANSIBLE_LOG_PATH": str(kept / "log"),
        "ANSIBLE_LOCAL_TEMP": str(kept / "tmp"),
    }
    command = ["ansible-playbook", "-i", f"{ephemeral}/inventory", "-vvv", "--diff", "--tags", "cluster", "site.yml"]
    with (
        Watch(place("head"), words) as head,
        Watch(place("worker1"), words) as worker,
        Watch(place("edge"), words) as edge,
    ):
        done = subprocess.run(
            command,
            cwd=project,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=590,
        )
    (kept / "output").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout[-3000:]
    return kept, [watch.seen for watch in (head, worker, edge)]


def test_ansible_says_logs_and_caches_none(rewritten, secrets):
    kept, _ = rewritten
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {"output", "log"} <= {path.name for path in files} and list((kept / "facts").iterdir())
    assert len((kept / "output").read_text()) > 100_000, "that was no run with -vvv"
    found = {(path.name, name) for path in files for name, text in secrets.items() if text in path.read_text()}
    assert not found


def test_no_process_shows_one_while_they_are_written(rewritten):
    for seen in rewritten[1]:
        assert seen["looks"] > 20 and seen["found"] == []


def test_what_others_could_change_is_put_right(rewritten, place):
    look = ["stat", "-c", "%U %G %a", "/etc/raymetal/auth_token", "/etc/raymetal/ray.env"]
    for name in ("head", "worker1"):
        assert place(name).run(*look).stdout.splitlines() == ["raymetal raymetal 600", "root root 600"], name
    assert place("edge").run(*look[:3], "/etc/raymetal/gateway/keys.map").stdout == "root haproxy 640\n"
    changed = re.findall(r"(\w+)\s+: ok=\d+\s+changed=([1-9]\d*)", (rewritten[0] / "output").read_text())
    assert {host for host, _ in changed} == {"head", "worker1", "edge"}


def test_the_search_sees_a_secret_that_is_there(place):
    """Planted in each kind of place, so that the silence above means something."""
    here, word = place("edge"), "planted-0123456789-0123456789-01234"
    here.run("sh", "-c", "echo x$(cat) > /var/tmp/planted; logger < /var/tmp/planted", input=word)
    here.podman("exec", "-d", here.container, "python3", "-c", "import time; time.sleep(60)", word)
    try:
        assert "/var/tmp/planted" in here.run("sh", "-c", SEARCH, input=word).stdout
        assert here.run("sh", "-c", PROCESSES, input=word).stdout.split() != ["0"]
        assert here.run("sh", "-c", f"journalctl --sync; {JOURNAL}", input=word).stdout.split() != ["0"]
    finally:
        here.run("rm", "/var/tmp/planted")

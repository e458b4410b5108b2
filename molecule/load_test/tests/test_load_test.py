"""The load test on a host of its own, against a server that fails on demand: what it counts is what happened."""

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

UNITS = ("chat-server.service",)
PROJECT = Path(__file__).resolve().parents[3]
ROOT = "/opt/raymetal-load-test"
LOCUST = f"runuser -u nobody -- {ROOT}/env/bin/locust -f {ROOT}/locustfile.py --headless --only-summary"
REPORTS = "--requests-file r.jsonl --summary-file s.json --csv c --html r.html"
SHORT = {"load_test_rate": 20, "load_test_seconds": 4}


@pytest.fixture(autouse=True)
def client_only(host):
    if host.ansible.get_variables()["inventory_hostname"] != "client":
        pytest.skip("all is seen from the client")


@pytest.fixture
def behave(host):
    """Tell the server how to behave, and start it where it is not running."""

    def tell(**behaviour):
        host.run_expect([0], f"curl -sS -f -X PUT -d '{json.dumps(behaviour)}' http://server:8000/behaviour")

    yield tell
    tell()


@pytest.fixture
def load(host):
    """Run the locustfile by hand on the client; gives exit code, output, summary and records."""

    def run(arguments, url="http://server:8000"):
        made = "D=$(runuser -u nobody -- mktemp -d) && cd $D &&"
        done = host.run(f"{made} {LOCUST} --host {url} --model chat {REPORTS} {arguments}; echo rc=$? dir=$D")
        *_, last = done.stdout.split()
        directory, code = last.removeprefix("dir="), int(done.stdout.rsplit("rc=", 1)[1].split()[0])
        summary, records = {}, []
        if host.file(f"{directory}/s.json").exists:
            summary = json.loads(host.file(f"{directory}/s.json").content_string)
            records = [json.loads(line) for line in host.file(f"{directory}/r.jsonl").content_string.splitlines()]
        return code, done.stdout + done.stderr, summary, records, directory

    return run


def served(host):
    return json.loads(host.check_output("curl -sS http://server:8000/count"))["count"]


def test_counts_are_the_servers_and_the_reports_are_real(host, behave, load):
    behave()
    code, output, summary, records, directory = load("--rate 20 --run-time 4s --warm-up-requests 2")
    assert code == 0, output
    assert summary["requests"] == len(records) == served(host) - 2 and summary["failures"] == 0
    assert abs(summary["streaming"] - summary["requests"] / 2) <= 1
    stats = host.file(f"{directory}/c_stats.csv").content_string.splitlines()[-1].split(",")
    assert stats[1:4] == ["Aggregated", str(summary["requests"]), "0"]
    page = host.file(f"{directory}/r.html").content_string
    assert page.lower().startswith("<!doctype html>")
    assert '"/v1/chat/completions"' in page and len(page) > 100_000
    first = next(record for record in records if record["stream"])
    assert first["model"] == "chat" and first["fingerprint"] == "fp-1" and first["headers"] == {"x-revision": "r1"}
    assert first["tokens"] == 5 and 0 < first["first_token_seconds"] <= first["seconds"]
    assert abs(first["scheduled"] - time.time()) < 300


def test_the_open_loop_keeps_its_rate_under_a_slow_server(host, behave, load):
    behave(delay_seconds=2)
    code, output, summary, records, _ = load("--rate 20 --run-time 5s")
    assert code == 0, output
    assert 98 <= summary["requests"] <= 102, "arrivals wait for nobody"
    assert 19.5 < summary["arrivals_per_second"] < 20.5 and summary["p50_seconds"] >= 2
    times = sorted(record["scheduled"] for record in records)
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) < 0.06, "evenly spaced"
    assert served(host) == summary["requests"], "what was in flight at the end was waited for"


def test_the_closed_loop_waits(host, behave, load):
    behave(delay_seconds=0.5)
    code, output, summary, _, _ = load("--users 4 --spawn-rate 4 --run-time 4s --keep-alive")
    assert code == 0, output
    assert 24 <= summary["requests"] <= 36 and served(host) == summary["requests"]


def test_an_arrival_without_room_is_a_failure(host, behave, load):
    behave(delay_seconds=2)
    code, output, summary, records, _ = load("--rate 20 --run-time 4s --max-in-flight 10")
    assert code == 1 and "not sent" in output
    assert summary["failures_by_kind"] == {"not sent": summary["requests"] - served(host)}
    assert 78 <= len(records) <= 82


@pytest.mark.parametrize(
    ("fault", "arguments", "kind", "text"),
    [
        ({"fault": "cut"}, "--stream-share 1", "cut", "IncompleteRead"),
        ({"fault": "cut"}, "--stream-share 0", "cut", "IncompleteRead"),
        ({"fault": "no_done"}, "--stream-share 1", "cut", "without [DONE]"),
        ({"fault": "no_finish"}, "--stream-share 1", "cut", "without finish_reason"),
        ({"fault": "stall", "stall_seconds": 2}, "--stall-seconds 1", "stall", "2."),
        ({"fault": "status"}, "", "status 500", "out of order"),
        ({"fault": "malformed"}, "", "malformed", ""),
        ({"fault": "error_event"}, "", "malformed", "engine died"),
        ({"fault": "empty"}, "", "empty", "no token"),
        ({"fault": "reset"}, "", "cut", "ConnectionResetError"),
        ({"fault": "stall", "stall_seconds": 3}, "--timeout-seconds 1", "timeout", "in 1 s"),
    ],
)
def test_each_fault_is_a_failure_with_its_reason(host, behave, load, fault, arguments, kind, text):
    behave(**fault, every=5)
    code, output, summary, records, _ = load(f"--rate 20 --run-time 2s {arguments}")
    assert code == 1 and f"FAILED: {summary['failures']} of {summary['requests']} requests failed" in output
    assert summary["failures_by_kind"] == {kind: served(host) // 5}, summary
    assert all(text in record["error"] for record in records if record["failure"]), records


def test_a_refused_connection_is_a_failure(load):
    code, output, summary, records, _ = load("--rate 20 --run-time 2s", url="http://server:8001")
    assert code == 1, output
    assert summary["failures_by_kind"] == {"refused": summary["requests"]} and summary["p99_seconds"] is None
    assert all("refused" in record["error"] for record in records)


def test_limits_fail_and_bad_options_do_not_start(host, behave, load):
    behave(delay_seconds=0.5)
    code, output, *_ = load("--rate 10 --run-time 2s --max-p99-seconds 0.2 --min-requests 1000")
    assert code == 1 and "at least 1000 wanted" in output and "at most 0.2 wanted" in output
    behave()
    code, output, *_ = load("--rate 10 --users 5 --stream-share 2 --run-time 2s")
    assert code == 2 and "--users 5" in output and "--stream-share 2.0" in output
    assert served(host) == 0
    behave(fault="status")
    code, output, *_ = load("--rate 10 --run-time 2s --warm-up-requests 3")
    assert code == 2 and "warm-up request 1 failed: status 500" in output and served(host) == 1


def test_sigterm_waits_for_what_is_in_flight_and_writes_the_reports(host, behave):
    behave(delay_seconds=1)
    done = host.run(
        "D=$(runuser -u nobody -- mktemp -d) && cd $D && (timeout --signal=TERM 5 "
        f"{LOCUST.removeprefix('runuser -u nobody -- ')} --host http://server:8000 --model chat {REPORTS} --rate 10;"
        " cat s.json; test -s r.html && wc -l < r.jsonl)"
    )
    assert done.rc == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])
    assert summary["failures"] == 0 and summary["requests"] == served(host) > 20
    assert int(done.stdout.split()[-1]) == summary["requests"]


def test_the_key_is_sent_and_shows_nowhere_and_the_reports_are_fetched(host, behave, playbook, tmp_path):
    key = "key-of-the-test"
    behave(key=key)
    reports = tmp_path / "reports"
    variables = {**SHORT, "load_test_reports_dir": str(tmp_path / "refused")}
    refused = playbook(PROJECT / "playbooks/load_test.yml", variables=variables)
    assert refused.returncode != 0 and "status 401" in refused.stdout, refused.stdout[-3000:]
    watch = f"while sleep 0.2; do ps -eo args; grep -rsF {key[:-1]} /root/.ansible_async; done >/tmp/seen"
    host.run_expect([0], f"systemd-run --quiet --unit=watch sh -c '{watch}'")
    variables |= {"load_test_reports_dir": str(reports), "load_test_api_key": key}
    done = playbook(PROJECT / "playbooks/load_test.yml", variables=variables)
    host.run_expect([0], "systemctl stop watch")
    assert done.returncode == 0 and key not in done.stdout, done.stdout[-3000:]
    assert "bin/locust" in host.file("/tmp/seen").content_string and key not in host.file("/tmp/seen").content_string
    host.run_expect([1], f"grep -rqsF {key} {ROOT} /root/.ansible_async")
    assert "requests (" in done.stdout and "0 failed, p50" in " ".join(done.stdout.split())
    (run,) = reports.iterdir()
    assert run.name.endswith("-client")
    assert {path.name for path in run.iterdir()} >= {
        "report.html",
        "requests.jsonl",
        "summary.json",
        "locust_stats.csv",
    }
    summary = json.loads((run / "summary.json").read_text())
    assert summary["requests"] == len((run / "requests.jsonl").read_text().splitlines()) > 75


def test_the_playbook_fails_with_the_requests(behave, playbook, tmp_path):
    behave(fault="cut", every=10)
    done = playbook(PROJECT / "playbooks/load_test.yml", variables={**SHORT, "load_test_reports_dir": str(tmp_path)})
    assert done.returncode != 0 and "requests failed: 8 cut" in " ".join(done.stdout.split()), done.stdout[-3000:]
    assert list(tmp_path.glob("*/report.html")), "the reports are here all the same"


def test_a_typo_does_not_flood(host, behave, playbook):
    behave()
    variables = {"load_test_users": 20000, "load_test_seconds": 86400, "load_test_rate": 5000, "load_test_model": ""}
    done = playbook(PROJECT / "playbooks/load_test.yml", variables=variables)
    text = " ".join(done.stdout.split())
    assert done.returncode != 0 and "load test: 4 problem(s)" in text, done.stdout[-3000:]
    for name in ("users", "seconds", "rate"):
        assert f"load_test_max_{name}" in text
    assert served(host) == 0


def test_check_mode_on_an_empty_host_and_removal(host, behave, playbook, tmp_path):
    behave()
    done = playbook(PROJECT / "molecule/load_test/remove.yml")
    assert done.returncode == 0, done.stdout[-3000:]
    host.run_expect([1], f"test -e {ROOT}")
    host.run_expect([1], "pgrep -f [l]ocust")
    checked = playbook(PROJECT / "playbooks/load_test.yml", "--check", "--diff")
    assert checked.returncode == 0, checked.stdout[-3000:]
    host.run_expect([1], f"test -e {ROOT}")
    assert served(host) == 0
    # And back, for whoever comes after.
    assert playbook(PROJECT / "playbooks/load_test.yml", "--tags", "install").returncode == 0
    again = playbook(PROJECT / "playbooks/load_test.yml", "--tags", "install")
    assert "changed=0" in again.stdout, again.stdout[-2000:]

"""The report: what it says, what it leaves out, when it changes; and the page in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import ray_serve_changes as noted
from ansible.module_utils import report_changes, report_facts, report_load
from support import ROOT, load, run_module

MODULE = "roles/report/library/report_page.py"
LOCK = ROOT / "files/locks/cuda.lock"
SECRETS = ("hf_0123456789abcdef", "s3cret-password", "bearer-0123456789")
BEGIN = 1_795_860_000.0  # 2026-11-28T10:00:00Z
WIDTHS = {"phone": 390, "desk": 1440}
report_host = load("roles/report/filter_plugins/report.py").report_host


def host(name: str, address: str, gpus: int) -> dict[str, Any]:
    """A host's variables as the gates leave them."""
    facts = {
        "os": {"id": "debian", "version": "12"},
        "arch": "x86_64",
        "cpus": 64,
        "memory_bytes": 540_000_000_000,
        "gpus": [{"index": i, "uuid": f"GPU-{i}", "name": "NVIDIA H100", "memory_mib": 81559} for i in range(gpus)],
        "driver_version": "580.82.07" if gpus else None,
        "driver_cuda": "13.0" if gpus else None,
        "gpu_error": None if gpus else "nvidia-smi is not installed",
        "packages": ["a-package-that-is-not-told"],
        "clock_difference_seconds": 0.3,
    }
    model = {"name": "chat", "revision": "r2", "hub": {"repo": "example/chat-8b", "revision": "0" * 40}}
    archive = {"url": f"https://user:{SECRETS[1]}@example.com/m.tar", "sha256": "ab" * 32}
    models = [model, {"name": "tools", "revision": "1", "archive": archive}]
    wanted = {"environment": "/opt/raymetal/env/0123456789ab", "models": models, "lock": str(LOCK)}
    looked = {"facts": facts, "wanted": wanted, "address": address, "error": ""}
    return {"inventory_hostname": name, "__validate_host": looked, "validate_node": {"address": address, "gpus": gpus}}


def change(run: str, begin: float, *, fails: bool = False) -> list[dict[str, Any]]:
    """The lines that the modules of ray_serve note."""

    def line(stage: str, after: float, seconds: float, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = noted.entry(run, stage, begin + after, **more)
        return {**found, "seconds": seconds}

    counted = {"requests": 240, "errors": 3 if fails else 0}
    problem = "application chat--green is worse than what served before: 1.2 % of the requests fail" if fails else ""
    lines = [
        line("start", 0, 41.5, actions={"chat": "replace", "tools": "unchanged"}),
        line("switch", 42, 0.4),
        line("watch", 43, 15.0, counted=counted, problem=problem),
    ]
    back, final = line("back", 58, 6.2, outcome="returned"), line("final", 58, 9.1, done=True)
    return [*lines, back if fails else final]


def given(**plan: Any) -> dict[str, Any]:
    """What roles/report/vars/main.yml gives the module."""
    replicas = {"10.0.0.5": 1, "10.0.0.6": 1}
    chat = {"status": "RUNNING", "route": "/", "import_path": "ray.serve.llm:build_openai_app", "models": ["chat"]}
    deployments = {
        "LLMServer:chat": {"status": "HEALTHY", "bounds": [2, 2], "replicas": replicas},
        "OpenAiIngress": {"status": "HEALTHY", "bounds": [1, 4], "replicas": {"10.0.0.5": 1}},
    }
    hosts = [host("head1", "10.0.0.4", 0), host("gpu1", "10.0.0.5", 8), host("gpu2", "10.0.0.6", 8)]
    job = {"ok": True, "seconds": 7.4, "nodes": [{}, {}, {}], "problems": [], "warnings": []}
    asked = [
        {"model": "chat", "url": f"http://{ip}:8000", "answer": "Paris.", "seconds": 0.31, "tries": 1}
        for ip in replicas
    ]
    return {
        "name": "example",
        "head": "head1",
        "hosts": {entry["inventory_hostname"]: report_host(entry) for entry in hosts},
        "left_out": ["gpu3"],
        "gateways": {"hosts": ["head1"], "port": 8080, "tls": True},
        "variant": "cuda",
        "python": "3.11",
        "plan": {
            "actions": {"chat": "unchanged"},
            "problems": [],
            "live": {"chat": "chat--green"},
            "serving": {"chat--green": {**chat, "deployments": deployments}},
            "changes": [*change("one", BEGIN - 86400, fails=True), *change("two", BEGIN + 20)],
            **plan,
        },
        "health": {"runs": 1, "expected": 3, "reports": [json.dumps(job)], "answers": {"answers": asked}},
    }


def a_load_test(folder: Path, failures: int = 0) -> Path:
    """The reports that files/load_test leaves, of made-up requests: ten a second for two minutes."""
    folder.mkdir(parents=True)
    records = [
        {
            "scheduled": BEGIN + number / 10,
            "seconds": round(0.4 + 0.3 * (number % 7) / 7 + (1.5 if 410 < number < 430 else 0), 4),
            "failure": "cut" if number < failures else None,
            "error": SECRETS[2] if number < failures else None,
            "answer": "Paris.",
            "headers": {"x-token": SECRETS[2]},
        }
        for number in range(1200)
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    names = ["requests_per_second", "p50_seconds", "p99_seconds", "max_seconds", "first_token_p50_seconds"]
    summary = {"requests": 1200, "failures": failures, "failures_by_kind": {"cut": failures} if failures else {}}
    more = dict.fromkeys([*names, "longest_stall_seconds", "tokens_per_second"], 1.25)
    (folder / "summary.json").write_text(json.dumps({**summary, **more, "first_token_p50_seconds": None}))
    return folder


def write(folder: Path, check: bool = False, **params: Any) -> dict[str, Any]:
    template = str(ROOT / "roles/report/templates/page.html.j2")
    return run_module(MODULE, check=check, path=str(folder), template=template, lock=str(LOCK), **params)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A report with everything in it."""
    run = a_load_test(tmp_path / "runs/20261128T100000Z-load1", failures=2)
    asked = {"url": "https://gateway.example.com:8080", "model": "chat", "path": "/v1/chat/completions"}
    assert write(tmp_path / "report", load_tests=[str(run), str(tmp_path / "none")], load_test=asked)["changed"]
    assert write(tmp_path / "report", cluster=given())["changed"]
    return tmp_path / "report/index.html"


def test_the_page_says_what_there_is(page: Path) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text()))
    wanted = [
        "Healthy. Work was done on 3 of 3 node(s), in 7.4 s",
        "gpu2 worker 10.0.0.6 debian 12 x86_64",
        "gpu2 8 NVIDIA H100 81559 580.82.07 13.0",
        "Left out of this cluster's runs: gpu3",
        "chat (as chat--green)",
        "1 on 10.0.0.5, 1 on 10.0.0.6",
        "1 to 4 1 on 10.0.0.5",
        "0123456789ab",
        f"example/chat-8b at {'0' * 40}",
        "2 (2 cut)",
        "2026-11-28 10:00:20 UTC: done , 67.1 s",
        "taken back",
        "1.2 % of the requests fail",
        "A load test sent 680 requests meanwhile",
    ]
    assert [part for part in wanted if part not in text] == []


def test_the_page_needs_nothing_else_and_holds_no_secret(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"<script|<iframe|@import|url\(|\son\w+=|src=", text)
    assert re.findall(r"href=\"([^\"]*)\"", text) == ["data:,"]
    for path in page.parent.rglob("*.*"):
        assert not [secret for secret in SECRETS if path.is_file() and secret in path.read_text()], path
    assert "a-package-that-is-not-told" not in text and len(text) < 150_000


def test_what_comes_from_outside_is_text_on_the_page(tmp_path: Path) -> None:
    told = given(changes=[])
    told["left_out"] = ["<script>alert(1)</script>"]
    told["health"]["reports"] = [
        json.dumps({"problems": [f"node x: {SECRETS[0]} <b>"], "warnings": [], "nodes": [], "seconds": 1})
    ]
    write(tmp_path, cluster=told)
    text = (tmp_path / "index.html").read_text()
    assert "&lt;script&gt;" in text and "<script" not in text
    assert "Not healthy." in text and "node x: … &lt;b&gt;" in text


def test_the_second_run_changes_nothing(page: Path) -> None:
    """Times, replicas that scale and the check's own seconds are no change; another status is."""
    before = page.read_text()
    told = given()
    told["health"]["answers"]["answers"][0]["seconds"] = 9.9
    told["plan"]["serving"]["chat--green"]["deployments"]["OpenAiIngress"]["replicas"] = {"10.0.0.6": 4}
    assert not write(page.parent, cluster=told)["changed"] and page.read_text() == before
    told["plan"]["serving"]["chat--green"]["status"] = "UNHEALTHY"
    assert write(page.parent, cluster=told, check=True)["changed"] and page.read_text() == before
    assert write(page.parent, cluster=told)["changed"] and page.read_text() != before


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    assert write(tmp_path / "report", check=True, cluster=given())["changed"]
    assert not (tmp_path / "report").exists()


def test_what_cannot_be_written_is_a_warning_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = write(tmp_path / "file/report", cluster=given())
    assert not result.get("failed") and not result["changed"]
    assert "the report was not written: NotADirectoryError" in str(result["warnings"])


@pytest.mark.parametrize(
    ("plan", "health", "problem"),
    [
        ({"actions": {"chat": "replace"}}, {}, "application chat: replace"),
        (
            {"failed": True, "msg": "the dashboard does not answer\nlog"},
            {"reports": []},
            "the dashboard does not answer",
        ),
        ({}, {"reports": []}, "the health job gave no report"),
        ({}, {"answers": {"failed": True, "msg": "no good answer from http://10.0.0.5:8000"}}, "no good answer from"),
    ],
)
def test_what_is_not_healthy_is_said(plan: dict[str, Any], health: dict[str, Any], problem: str) -> None:
    told = given(**plan)
    told["health"] |= health
    stable, _ = report_facts.cluster(told, LOCK.read_text())
    assert not stable["health"]["ok"] and stable["health"]["problems"][0].startswith(problem)
    assert len(stable["health"]["problems"]) == 1


def test_hosts_that_were_lost_or_never_looked_at() -> None:
    told = given()
    told["hosts"]["gpu1"] = report_host({"cluster_lost_while": "while nodes were started"})
    stable, _ = report_facts.cluster(told, LOCK.read_text())
    assert [node["lost"] for node in stable["nodes"]] == ["", "while nodes were started", ""]


def test_requests_by_steps_of_time() -> None:
    records = [{"scheduled": 100 + n, "seconds": n, "failure": "cut" if n == 3 else None} for n in range(240)]
    told = report_load.series(records)
    assert (told["begin"], told["step"], len(told["answered"])) == (100, 2, 120)
    assert told["answered"][:3] == [2, 1, 2] and told["failed"][:3] == [0, 1, 0] and told["longest"][:2] == [1, 2]
    cut = report_load.during({"series": told}, 102, 106)
    assert cut and (cut["begin"], cut["requests"], cut["errors"]) == (102, 4, 1)
    assert report_load.during({"series": told}, 0, 50) is None
    assert report_load.during({"series": report_load.series([])}, 0, 50) is None


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        ({"done": True}, "done"),
        ({"outcome": "returned"}, "taken back"),
        ({"problem": "boom"}, "failed"),
        ({}, "not finished"),
    ],
)
def test_what_became_of_a_change(last: dict[str, Any], outcome: str) -> None:
    lines = [*change("r", BEGIN)[:2], noted.entry("r", "final", BEGIN + 50, **last)]
    assert report_changes.changes(lines, [])[0]["outcome"] == outcome


def test_the_steps_of_a_change_are_kept_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "changes.jsonl"
    for number in range(2 * noted.KEPT + 1):
        assert noted.note(str(path), {"run": number}) == ""
    assert len(path.read_text().splitlines()) == noted.KEPT and path.stat().st_mode & 0o777 == 0o600
    path.write_text(path.read_text() + '{"half')
    assert noted.read(str(path))[-1] == {"run": 2 * noted.KEPT}
    assert "is not noted" in noted.note(str(tmp_path / "none/x"), {})


def test_the_role_as_playbooks_call_it(tmp_path: Path) -> None:
    """With Ansible, and hosts that are not there: nothing but the page is written, and a second run changes nothing."""
    for name in ("roles", "group_vars", "files"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(Path(__file__).with_name("render_report.yml"), tmp_path)
    a_load_test(tmp_path / "runs/run-gpu1")
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_ROLES_PATH": str(ROOT / "roles")}

    def play(*more: str) -> str:
        told = [
            "-e",
            f"report_path={tmp_path / 'report'}",
            "-e",
            f"report_lock={LOCK}",
            "-e",
            f"report_runs={tmp_path / 'runs'}",
        ]
        command = ["ansible-playbook", "-i", str(ROOT / "inventories/example"), *told, *more, "render_report.yml"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done.stdout

    play("--check")
    play("-e", "report_path=")
    assert not (tmp_path / "report").exists()
    play()
    text = (tmp_path / "report/index.html").read_text()
    assert "the health job gave no report" in text and "run-gpu1" in text and "http://10.0.0.4:8000" in text
    assert set(re.findall(r"changed=(\d+)", play())) == {"0"}


# In the page: what the browser makes of it, as text of its title.
PROBE = """<script>
addEventListener("error", e => { document.title += " ERROR " + e.message; });
addEventListener("securitypolicyviolation", e => { document.title += " BLOCKED " + e.blockedURI; });
addEventListener("load", () => {
  const root = document.documentElement, wide = [];
  for (const e of document.body.querySelectorAll("*"))
    if (!e.closest(".scroll") && e.getBoundingClientRect().right > root.clientWidth + 1) wide.push(e.tagName);
  const small = [...document.querySelectorAll("svg text")].filter(t => t.getBoundingClientRect().height < 9).length;
  const requests = performance.getEntriesByType("resource").length;
  const charts = document.querySelectorAll("svg[role=img][aria-label]").length;
  const told = {width: innerWidth, scroll: root.scrollWidth, wide, small, requests, charts};
  document.title = "PROBE " + JSON.stringify(told);
});</script></head>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not in PATH: apt-get install chromium")
@pytest.mark.parametrize("name", WIDTHS)
def test_in_a_browser(page: Path, tmp_path: Path, name: str) -> None:
    """In a frame of the width, as a window has a least one. REPORT_SHOTS=<directory> keeps pictures."""
    width = WIDTHS[name]
    (tmp_path / "probe.html").write_text(page.read_text().replace("</head>", PROBE, 1))
    frame = f'<body style="margin:0"><iframe src="{{}}" style="border:0;width:{width}px;height:{{}}px"></iframe>'
    asks = """<script>const f = document.querySelector("iframe");
      f.onload = () => setTimeout(() => { document.body.textContent = f.contentDocument.title; }, 300);</script>"""
    (tmp_path / "frame.html").write_text(frame.format("probe.html", 2000) + asks)

    def chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--log-level=0",
        ]
        folders = [
            f"--user-data-dir={tmp_path / 'profile'}",
            "--allow-file-access-from-files",
            "--virtual-time-budget=3000",
        ]
        command = ["chromium", *flags, *folders, f"--window-size={width},1300", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    done = chromium("--dump-dom", (tmp_path / "frame.html").as_uri())
    assert "CONSOLE" not in done.stderr, done.stderr
    told = re.search(r"PROBE (\{.*?\})", done.stdout)
    assert told, done.stdout + done.stderr
    seen = json.loads(told[1])
    assert seen == {"width": width, "scroll": width, "wide": [], "small": 0, "requests": 0, "charts": 5}
    if shots := os.environ.get("REPORT_SHOTS"):
        (tmp_path / "shot.html").write_text(frame.format("report/index.html#load", 1300))
        chromium(f"--screenshot={Path(shots).resolve() / f'report-{name}.png'}", (tmp_path / "shot.html").as_uri())

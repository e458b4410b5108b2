"""What Prometheus asks and tells, its alerts one by one, the dashboards' queries, and what is wrong with the inputs.

Where promtool and amtool are (Debian's prometheus and prometheus-alertmanager), they judge; without them it is skipped.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dashboards
import pytest
import yaml
from support import ROOT, load

HERE = Path(__file__).parent
monitoring = load("roles/monitoring/filter_plugins/monitoring.py")
ALERTS: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "monitoring_alerts.yml").read_text())
DEFAULTS = yaml.safe_load((ROOT / "roles/monitoring/defaults/main.yml").read_text())
JOBS = {"ray", "ray_autoscaler", "ray_dashboard", "ray_haproxy", "gateway", "node", "gpu", "prometheus", "alertmanager"}
# Where a Ray is installed, its own dashboards are read, too: RAYMETAL_RAY_PYTHON is its Python.
RAY_PYTHON = os.environ.get("RAYMETAL_RAY_PYTHON", "")
GENERATE = """
import pathlib, sys
from ray.dashboard.modules.metrics import grafana_dashboard_factory as factory
for name in sys.argv[2:]:
    text, _ = getattr(factory, f"generate_{name}_grafana_dashboard")()
    pathlib.Path(sys.argv[1], f"{name}.json").write_text(text)
"""
Run = Callable[..., str]


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that renders with more variables; gives a directory with a directory for each host."""
    project = tmp_path_factory.mktemp("project")
    for name in ("roles", "group_vars", "files"):
        (project / name).symlink_to(ROOT / name)
    shutil.copy(HERE / "render_monitoring.yml", project)

    def run(*more: str, **variables: Any) -> Path:
        made = tmp_path_factory.mktemp("rendered")
        command = ["ansible-playbook", "-i", str(HERE / "render_monitoring_hosts.yml"), "render_monitoring.yml", *more]
        command += ["-e", json.dumps({"render_to": str(made), **variables})]
        env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_ROLES_PATH": str(ROOT / "roles")}
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return made

    return run


@pytest.fixture(scope="module")
def rendered(render: Callable[..., Path]) -> Path:
    return render()


@pytest.fixture
def tool() -> Run:
    """A function that runs a program of Prometheus and gives what it says; skips where there is none."""

    def run(name: str, *arguments: str, cwd: Path) -> str:
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed: apt-get install prometheus prometheus-alertmanager")
        done = subprocess.run([name, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def rules(rendered: Path) -> dict[str, dict[str, Any]]:
    """Alert -> its rule, without those of the operator."""
    groups = yaml.safe_load((rendered / "watch/rules.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups if group["name"] != "own" for rule in group["rules"]}


def targets(rendered: Path, job: str) -> dict[str, list[str]]:
    found = json.loads((rendered / f"watch/targets/{job}.json").read_text())
    return {entry["labels"]["host"]: entry["targets"] for entry in found}


def test_prometheus_asks_everybody_where_he_is(rendered: Path) -> None:
    assert targets(rendered, "ray") == {"head": ["10.0.0.1:6395"], "worker": ["10.0.0.2:6395"]}
    assert targets(rendered, "ray_autoscaler") == {"head": ["10.0.0.1:44217"]}
    assert targets(rendered, "ray_dashboard") == {"head": ["10.0.0.1:44227"]}
    assert targets(rendered, "ray_haproxy") == {"head": ["10.0.0.1:9101"], "worker": ["10.0.0.2:9101"]}
    assert targets(rendered, "gateway") == {"gate": ["10.0.0.3:8405"]}
    nodes = {"head": "10.0.0.1", "worker": "10.0.0.2", "gate": "10.0.0.3", "watch": "127.0.0.1"}
    assert targets(rendered, "node") == {host: [f"{address}:9100"] for host, address in nodes.items()}
    assert targets(rendered, "gpu") == {"worker": ["10.0.0.2:9400"]}
    assert targets(rendered, "prometheus") == {"watch": ["127.0.0.1:9090"]}
    assert {path.stem for path in (rendered / "watch/targets").iterdir()} == JOBS
    entry = json.loads((rendered / "watch/targets/node.json").read_text())[-1]
    assert entry["labels"] == {"host": "watch", "instance": "10.0.0.4", "ray_io_cluster": "trial"}


def test_who_is_asked_by_others_listens_where_they_are_and_only_they_reach_it(rendered: Path) -> None:
    listens = {
        host: re.findall(
            r"--web\.listen-address=(\S+)", (rendered / host / "raymetal-node-exporter.service").read_text()
        )
        for host in ("head", "worker", "gate", "watch")
    }
    assert listens == {
        "head": ["10.0.0.1:9100"],
        "worker": ["10.0.0.2:9100"],
        "gate": ["10.0.0.3:9100"],
        "watch": ["127.0.0.1:9100"],
    }
    assert json.loads((rendered / "gate/gateway_metrics_address.json").read_text()) == "10.0.0.3"

    def access(host: str) -> dict[str, str]:
        plan = json.loads((rendered / host / "plan.json").read_text())
        return {str(entry["ports"][0][0]): entry["access"] for entry in plan if entry["ports"]}

    wanted = {"6395", "9100", "44217", "44227", "9101"}
    assert {port for port, who in access("head").items() if who == "metrics"} == wanted
    assert {port for port, who in access("gate").items() if who == "metrics"} == {"8405", "9100"}
    assert {port: access("watch")[port] for port in ("9090", "9093", "3000", "9100")} == dict.fromkeys(
        ("9090", "9093", "3000", "9100"), "local"
    )
    assert access("worker")["9400"] == "metrics"


def test_without_a_monitoring_host_nothing_is_different(render: Callable[..., Path]) -> None:
    alone = render("--limit", "head,gate", monitoring_hosts=[])
    assert json.loads((alone / "gate/gateway_metrics_address.json").read_text()) == "127.0.0.1"
    plan = json.loads((alone / "head/plan.json").read_text())
    assert not [entry for entry in plan if entry["variable"].startswith("monitoring_")]


@pytest.mark.parametrize(
    "unit", ["prometheus", "alertmanager", "node-exporter", "gpu-exporter", "certificates", "grafana"]
)
def test_systemd_accepts_the_unit(rendered: Path, tmp_path: Path, unit: str) -> None:
    """With programs and users that this machine has; what remains is the unit's own."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    text = (rendered / f"watch/raymetal-{unit}.service").read_text()
    text = re.sub(r"(?m)^(ExecStart=)\S+", r"\1/bin/true", re.sub(r"(?m)^User=.*", "User=root", text))
    path = tmp_path / f"raymetal-{unit}.service"
    path.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if path.name in line]
    assert (done.returncode, complaints) == (0, [])


def test_promtool_takes_the_configuration(rendered: Path, tool: Run, tmp_path: Path) -> None:
    shutil.copytree(rendered / "watch", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "prometheus.yml"
    text = path.read_text()
    path.write_text(text.replace("/etc/raymetal-monitoring/targets", str(tmp_path / "targets")))
    said = tool("promtool", "check", "config", "--lint=all", "--lint-fatal", "prometheus.yml", cwd=tmp_path)
    assert f"{len(ALERTS) + 1} rules found" in said and "does not exist" not in said
    assert {job["job_name"] for job in yaml.safe_load(text)["scrape_configs"]} == JOBS


def test_amtool_takes_the_configuration(rendered: Path, tool: Run) -> None:
    said = tool("amtool", "check-config", "alertmanager.yml", cwd=rendered / "watch")
    assert "2 receivers" in said
    route = ["config", "routes", "test", "--config.file=alertmanager.yml"]
    assert tool("amtool", *route, "severity=critical", cwd=rendered / "watch").splitlines()[0] == "night"
    assert tool("amtool", *route, "severity=warning", cwd=rendered / "watch").splitlines()[0] == "people"


def test_without_receivers_amtool_takes_it_too(render: Callable[..., Path], tool: Run) -> None:
    plain = render("--limit", "watch", monitoring_receivers=[], monitoring_routes=[], monitoring_rules=[])
    assert "1 receivers" in tool("amtool", "check-config", "alertmanager.yml", cwd=plain / "watch")


def test_each_alert_has_a_case_and_says_what_to_do(rendered: Path) -> None:
    found = rules(rendered)
    assert set(found) == set(ALERTS)
    for name, rule in found.items():
        assert set(rule["annotations"]) == {"summary", "do"} and rule["labels"]["severity"] in (
            "critical",
            "warning",
        ), name
    page = (ROOT / "docs/monitoring.md").read_text()
    assert not [name for name in found if f"`{name}`" not in page]


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_comes_when_it_should_and_not_else(rendered: Path, tool: Run, tmp_path: Path, name: str) -> None:
    case, rule = ALERTS[name], rules(rendered)[name]
    told = {
        "exp_labels": case["labels"],
        "exp_annotations": {"summary": case["summary"], "do": rule["annotations"]["do"]},
    }

    def judged(series: dict[str, str], alerts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "interval": "15s",
            "input_series": [{"series": key, "values": str(value)} for key, value in series.items()],
            "alert_rule_test": [{"alertname": name, "eval_time": case["at"], "exp_alerts": alerts}],
        }

    tests = [judged(case["series"], [told]), judged(case["calm"], [])]
    document = {"rule_files": [str(rendered / "watch/rules.yml")], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(document))
    tool("promtool", "test", "rules", "test.yml", cwd=tmp_path)


def parsed(tool: Run, queries: list[dashboards.Query], tmp_path: Path) -> None:
    """Fail unless promtool parses each query."""
    made = [{"record": f"query:{number}", "expr": query.expression} for number, query in enumerate(queries)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": made}]}))
    tool("promtool", "check", "rules", "queries.yml", cwd=tmp_path)


def test_the_page_of_the_cluster(rendered: Path, tool: Run, tmp_path: Path) -> None:
    page = json.loads((rendered / "watch/grafana/cluster.json").read_text())
    places = {(x, y) for p in page["panels"] for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
              for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])}  # fmt: skip
    assert len(places) == sum(p["gridPos"]["w"] * p["gridPos"]["h"] for p in page["panels"]), "panels overlap"
    assert max(x for x, _ in places) < 24 and len({p["id"] for p in page["panels"]}) == len(page["panels"])
    assert "{{application}}" in [target["legendFormat"] for panel in page["panels"] for target in panel["targets"]]
    parsed(tool, list(dashboards.queries(page)), tmp_path)


def test_what_grafana_is_provisioned_with(rendered: Path) -> None:
    place = rendered / "watch/grafana"
    ini = configparser.ConfigParser()
    ini.read_string((place / "grafana.ini").read_text())
    assert ini["server"]["http_addr"] == "127.0.0.1" and ini["auth.anonymous"]["org_role"] == "Viewer"
    assert ini["security"]["disable_initial_admin_creation"] == "true"
    (source,) = yaml.safe_load((place / "datasources.yml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://127.0.0.1:9090", True)
    (provider,) = yaml.safe_load((place / "dashboards.yml").read_text())["providers"]
    assert provider["options"]["path"] == str(Path(ini["dashboards"]["default_home_dashboard_path"]).parent)
    assert ini["paths"]["provisioning"].startswith("/etc/raymetal-monitoring/")


@pytest.mark.skipif(not RAY_PYTHON, reason="RAYMETAL_RAY_PYTHON names no Python that has Ray")
def test_the_queries_of_ray_s_own_dashboards_are_parsed(tool: Run, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    command = [RAY_PYTHON, "-B", "-c", GENERATE, str(made), *DEFAULTS["monitoring_dashboards"]]
    subprocess.run(command, check=True, timeout=300)
    queries = dashboards.read(made)
    assert len(queries) > 150
    parsed(tool, queries, tmp_path)


@pytest.mark.parametrize(
    ("variables", "expression", "asked"),
    [
        ([{"name": "a", "type": "query", "allValue": ".+"}], 'x{l=~"$a"}', 'x{l=~".+"}'),
        ([{"name": "a", "type": "query"}], 'x{l=~"${a}"}', 'x{l=~".*"}'),
        ([{"name": "a", "type": "query"}], 'x{l=~"${a:regex}"}', 'x{l=~".*"}'),
        ([{"name": "a", "type": "custom", "query": "x, y", "current": {"value": ["$__all"]}}], "$a", "(x|y)"),
        ([{"name": "interval", "type": "custom", "query": "", "current": {"value": "5m"}}], "x[$interval]", "x[5m]"),
        ([], "rate(x[$__rate_interval])", "rate(x[2m])"),
    ],
)
def test_a_query_is_asked_with_all(variables: list[dict[str, Any]], expression: str, asked: str) -> None:
    panel = {"title": "p", "targets": [{"expr": expression}]}
    row = {"title": "row", "panels": [panel]}
    page = {"title": "d", "templating": {"list": variables}, "panels": [row]}
    assert [(query.name, query.expression) for query in dashboards.queries(page)] == [("d | p | 1", asked)]


def test_a_variable_that_the_dashboard_does_not_have_is_an_error() -> None:
    page = {"title": "d", "templating": {"list": []}, "panels": [{"title": "p", "targets": [{"expr": "$gone"}]}]}
    with pytest.raises(KeyError):
        list(dashboards.queries(page))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "tls/a.pem"
    path.parent.mkdir()
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "10",
    ]
    subprocess.run(
        [*command, "-subj", "/CN=a", "-keyout", "k", "-out", "c"], cwd=tmp_path, check=True, capture_output=True
    )
    path.write_text((tmp_path / "k").read_text() + (tmp_path / "c").read_text())
    return path


def test_when_certificates_end(certificate: Path, tmp_path: Path, tool: Run) -> None:
    (certificate.parent / "b.pem").write_text("no certificate\n")
    out = tmp_path / "out.prom"
    command = [
        "sh",
        str(ROOT / "roles/monitoring/files/certificates.sh"),
        str(out),
        f"{certificate.parent}/*.pem",
        "/none/*",
    ]
    subprocess.run(command, check=True, capture_output=True)
    told = dict(re.findall(r'(?m)^raymetal_certificate_end_timestamp_seconds\{path="(.*)"\} (\d+)$', out.read_text()))
    assert set(told) == {str(certificate), str(certificate.parent / "b.pem")}
    assert abs(int(told[str(certificate)]) - time.time() - 10 * 86400) < 60
    assert told[str(certificate.parent / "b.pem")] == "0"
    assert not list(tmp_path.glob("*.new"))


GOOD = {
    "monitoring_address": "127.0.0.1",
    "firewall_enabled": False,
    "monitoring_receivers": [{"name": "a"}],
    "monitoring_alert_disk_percent": 10,
    "cluster_disk_reserve_percent": 5,
    "monitoring_alert_latency_seconds": 60,
    "monitoring_scrape_seconds": 15,
    "ports": {"monitoring_prometheus_port": 9090, "monitoring_node_port": 9100},
    "nodes": ["a"],
    "ray_ports": {"a": 6395},
    "gateways": {"g": "10.0.0.3"},
    "host": "w",
}


@pytest.mark.parametrize(
    ("change", "variable", "text"),
    [
        ({"monitoring_address": "0.0.0.0"}, "monitoring_address", "no firewall closes their ports"),
        ({"monitoring_receivers": [{}]}, "monitoring_receivers", "needs a name"),
        ({"monitoring_receivers": [{"name": "a"}, {"name": "a"}]}, "monitoring_receivers", "of its own"),
        ({"ports": {"a": 1, "b": "1"}}, "b", "also the port of a"),
        ({"monitoring_alert_disk_percent": "5"}, "monitoring_alert_disk_percent", "is not above"),
        ({"monitoring_alert_latency_seconds": 600}, "monitoring_alert_latency_seconds", "tell apart"),
        ({"monitoring_scrape_seconds": 0}, "monitoring_scrape_seconds", "from 1 to 60"),
        ({"ray_ports": {}}, "ray_node_options.metrics_export_port", "a draws it by lot"),
        ({"gateways": {"g": "127.0.0.1"}}, "gateway_metrics_address", "nobody but g itself"),
    ],
)
def test_problems(change: dict[str, Any], variable: str, text: str) -> None:
    assert monitoring.monitoring_problems(GOOD) == []
    (problem,) = monitoring.monitoring_problems({**GOOD, **change})
    assert problem["variable"] == variable and text in problem["problem"] and problem["do"]


@pytest.mark.parametrize(
    "change",
    [
        {"monitoring_address": "10.0.0.4", "firewall_enabled": True},
        {"monitoring_receivers": []},
        {"gateways": {"w": "127.0.0.1"}},
    ],
)
def test_no_problems(change: dict[str, Any]) -> None:
    assert monitoring.monitoring_problems({**GOOD, **change}) == []


def test_addresses_and_ports() -> None:
    sources = [[("a", ""), ("b", "10.0.0.2")], [("a", "10.0.0.1"), ("b", "10.9.9.9")]]
    assert monitoring.monitoring_addresses(["a", "b", "c"], sources) == {"a": "10.0.0.1", "b": "10.0.0.2", "c": "c"}
    variables = {"a": {"p": 1}, "b": {"p": "2"}, "c": {"p": 0}, "d": {"p": "omit"}}
    assert monitoring.monitoring_ports(variables, variables, "p") == {"a": 1, "b": 2}
    (target,) = monitoring.monitoring_targets({"a": 9}, {"a": "fd00::1"}, {"a": "::"}, "c")
    assert target["targets"] == ["[fd00::1]:9"] and target["labels"]["instance"] == "fd00::1"

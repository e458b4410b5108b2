"""Shared by the tests of all scenarios: pytest finds it from any molecule/<scenario>/tests.

A test module that names systemd units in ``UNITS`` (a tuple of unit names) gets their journals with each failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import pytest
from pluggy import Result
from testinfra.host import Host

JOURNAL_LINES = 60


def pytest_configure(config: pytest.Config) -> None:
    """Leave what is marked ``soak`` to `make soak`, which sets RAYMETAL_SOAK."""
    config.addinivalue_line("markers", "soak: too long for `make test`; runs in `make soak`")
    if not os.environ.get("RAYMETAL_SOAK"):
        config.option.markexpr = "not soak"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, Result[pytest.TestReport], None]:
    """Add the journals of the module's ``UNITS`` to the report of a failed test."""
    outcome = yield
    report = outcome.get_result()
    host = item.funcargs.get("host")
    if not report.failed or not isinstance(host, Host):
        return
    for unit in getattr(item.module, "UNITS", ()):
        journal = host.run("journalctl --no-pager --lines %s --unit %s", str(JOURNAL_LINES), unit)
        report.sections.append((f"journal of {unit}", journal.stdout or journal.stderr))


@pytest.fixture(scope="module")
def container(host: Host) -> str:
    """Return the name of the podman container that is this host."""
    prefix = os.environ.get("MOLECULE_PREFIX") or "raymetal"
    name = host.ansible.get_variables()["inventory_hostname"]
    return f"{prefix}-{os.environ['MOLECULE_SCENARIO_NAME']}-{name}"


@pytest.fixture(scope="session")
def podman() -> Callable[..., str]:
    """Return a function that runs podman on the controller and returns its output; it raises CalledProcessError."""
    prefix = os.environ.get("MOLECULE_PREFIX") or "raymetal"
    settings = Path.home() / ".cache" / f"{prefix}-molecule" / "containers.conf"
    environment = dict(os.environ)
    if settings.exists():
        environment.setdefault("CONTAINERS_CONF", str(settings))
    as_root = [] if os.geteuid() == 0 else ["sudo", "--preserve-env=CONTAINERS_CONF"]

    def run(*arguments: str, input: bytes | None = None) -> str:
        command = [*as_root, "podman", *arguments]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, input=input)
        return done.stdout.decode()

    return run


@pytest.fixture(scope="session")
def playbook() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a playbook of the project against the scenario's hosts, as an operator would."""
    project = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
    own = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
    environment = {**os.environ, "ANSIBLE_CONFIG": str(project / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}

    def run(
        path: str | Path,
        *arguments: str,
        variables: Mapping[str, object] | str | None = None,
        inventory: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """``variables``: a mapping, or YAML text; ``inventory``: in place of the scenario's own."""
        text = variables if isinstance(variables, str) else json.dumps(variables or {})
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as extra:
            extra.write(text)
            extra.flush()
            command = ["ansible-playbook", "-i", str(inventory or own), *arguments, "-e", f"@{extra.name}", str(path)]
            return subprocess.run(
                command, env=environment, cwd=project, check=False, capture_output=True, text=True, timeout=1200
            )

    return run


@pytest.fixture(scope="session")
def apply_role(
    playbook: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that applies one role to the hosts with extra variables."""
    own = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / "converge.yml"
    converge = own if own.exists() else Path(__file__).parent / "shared/converge.yml"

    def run(role: str, variables: dict[str, object]) -> subprocess.CompletedProcess[str]:
        assert role == os.environ["MOLECULE_SCENARIO_NAME"], "converge applies the scenario's own role"
        return playbook(converge, variables=variables)

    return run

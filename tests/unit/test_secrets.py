"""No task shows a secret, no template lets one into a file that a task would show, no service runs as root."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT

# Variables that hold a secret; not those that only count, name or hash it.
SECRETS = re.compile(
    r"\b(gateway_api_keys|__gateway_key_lines|__gateway_operator_pem|__gateway_model_lines|ray_node_environment"
    r"|__ray_node_\w*environment|__ray_node_token\.content|load_test_api_key|password)\b"
)
FILES = sorted([*(ROOT / "roles").glob("*/tasks/*.yml"), *(ROOT / "playbooks").glob("*.yml"), *ROOT.glob("*.yml")])
# What names such a variable and shows nothing of it. Role: why.
HARMLESS = {
    "ray-container.j2": "has the variables' names, not their values",
    "keepalived.conf.j2": "says why there is no password",
    "haproxy.cfg.j2": "asks whether there are keys, and how many",
    "roles/gateway/tasks/install.yml": "the packages depend on whether a key has models",
}
Task = dict[str, Any]


def tasks_in(value: Any, inherited: bool = False) -> Iterator[tuple[Task, bool]]:
    """Every task below a value, with whether it, or a block around it, has no_log by cluster_no_log."""
    if isinstance(value, list):
        for item in value:
            yield from tasks_in(item, inherited)
    elif isinstance(value, dict):
        hidden = inherited or value.get("no_log") == "{{ cluster_no_log }}"
        nested = [
            value[key] for key in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks") if key in value
        ]
        for part in nested:
            yield from tasks_in(part, hidden)
        if not nested:
            yield value, hidden


def templates_of(path: Path, task: Task) -> list[Path]:
    """The templates that a task writes, by itself or by lists of files among the variables of its role."""
    role = path.parent.parent
    texts = [yaml.safe_dump({key: value for key, value in task.items() if key != "name"}, width=10**6)]
    for file in (role / "vars").rglob("*.yml"):
        own = yaml.safe_load(file.read_text())
        texts += [yaml.safe_dump(own[name], width=10**6) for name in own if re.search(rf"\b{name}\b", texts[0])]
    names = re.findall(r"(?:src: |'ansible\.builtin\.template'+, '+)([\w.-]+\.j2)", "\n".join(texts))
    return [role / "templates" / name for name in names]


def secret(path: Path, task: Task) -> bool:
    """Whether a task, or the template that it writes, has a secret among its arguments."""
    if any(
        SECRETS.search(template.read_text()) for template in templates_of(path, task) if template.name not in HARMLESS
    ):
        return True
    arguments = {
        key: value for key, value in task.items() if key not in ("name", "when", "changed_when", "failed_when")
    }
    # A role's variables are not shown by the task that applies it.
    if any(key.endswith(("import_role", "include_role", "import_tasks", "include_tasks")) for key in task):
        return False
    return bool(SECRETS.search(yaml.safe_dump(arguments))) and str(path.relative_to(ROOT)) not in HARMLESS


def secret_tasks() -> list[Any]:
    """Arguments of the test below: task and whether it is hidden, for each task that has a secret."""
    return [
        pytest.param(task, hidden, id=f"{path.relative_to(ROOT)}: {task['name']}")
        for path in FILES
        for task, hidden in tasks_in(yaml.safe_load(path.read_text()) or [])
        if secret(path, task)
    ]


@pytest.mark.parametrize(("task", "hidden"), secret_tasks())
def test_a_task_with_a_secret_shows_nothing(task: Task, hidden: bool) -> None:
    assert hidden, 'wants no_log: "{{ cluster_no_log }}"'
    if any(key in task for key in ("ansible.builtin.template", "ansible.builtin.copy")):
        assert task.get("diff") is False, "wants diff: false, too: cluster_no_log may be lifted"
    if "managed_files" in task:
        assert task["managed_files"].get("show") is False, "wants show: false, too: cluster_no_log may be lifted"


def test_the_search_finds_the_secrets_that_are_known() -> None:
    names = {str(parameter.id).split(":")[0] for parameter in secret_tasks()}
    known = {"ray_node/tasks/configure.yml", "ray_node/tasks/token.yml", "gateway/tasks/configure.yml"}
    assert {f"roles/{name}" for name in known} <= names


def test_no_log_is_always_by_variable() -> None:
    for path in FILES:
        for value in re.findall(r"(?m)^\s*no_log:\s*(.+)$", path.read_text()):
            assert value == '"{{ cluster_no_log }}"', path


@pytest.mark.parametrize(
    "unit", sorted((ROOT / "roles").glob("*/templates/*.service.j2")), ids=lambda path: str(path.name)
)
def test_a_service_has_a_user_of_its_own_or_says_why_not(unit: Path) -> None:
    text = unit.read_text()
    users = re.findall(r"(?m)^User=(.+)$", text)
    if users:
        assert users != ["root"]
    else:
        assert re.search(r"(?m)^# Root, to .+\nCapabilityBoundingSet=CAP_", text)

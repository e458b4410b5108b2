"""Check every input of the calling role on the controller, without a connection to the host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
module: validate_role
short_description: Collect every problem with the inputs of the calling role
description:
  - Checks the role's variables against its own C(meta/argument_specs.yml), and adds the role's cross-field rules,
    which are the list C(__<role>_problems) in its C(vars/main.yml).
  - Runs on the controller, opens no connection, changes nothing and never fails for a problem that it finds, so that
    all roles and hosts are heard before the gate closes (C(roles/validate/tasks/report_inputs.yml)).
author: Raymetal
"""
RETURN = r"""
ansible_facts:
  description: C(validate_<role>), a list of dicts with the keys host, variable, value, problem, do.
  type: dict
  returned: always
"""


# Names of settings that hold a secret itself, not the path of a file or a name for one; and what gives a secret away.
SECRET_NAME = re.compile(
    r"(?i)(?:^|[_-])(?:token|secret|passw(?:or)?d|passphrase|credentials?|api_?keys?|access_?key)(?:$|[_-])"
)
NO_SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:file|path|dir|mode|names?|models)$")
SECRET_LENGTH_MIN = 6  # a shorter one would blacken the messages themselves
SECRET = re.compile(
    r"\b(?:hf_|sk-|gh[ps]_|glpat-|xox[abp]-|AKIA|ASIA)[A-Za-z0-9_-]{8,}|(?<=://)[^/@\s]*(?=@)|\bBearer \S+"
)
HIDDEN = "***"


def secrets_of(value: Any, named: bool = False) -> set[str]:
    """Strings below ``value`` that stand under a name of a secret, whatever their shape."""
    if isinstance(value, Mapping):
        return {
            text
            for key, below in value.items()
            for text in secrets_of(
                below, bool((named or SECRET_NAME.search(str(key))) and not NO_SECRET_NAME.search(str(key)))
            )
        }
    if isinstance(value, (list, tuple, set)):
        return {text for below in value for text in secrets_of(below, named)}
    return {value} if named and isinstance(value, str) and len(value) >= SECRET_LENGTH_MIN else set()


def hide(problems: list[dict[str, Any]], values: dict[str, Any]) -> list[dict[str, Any]]:
    """The problems without the secrets that a value or a message repeats, one in a wrong place among them."""
    secrets = sorted(secrets_of(values), key=len, reverse=True)

    def shown(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, HIDDEN)
        return SECRET.sub(HIDDEN, text)

    return [{key: value if value is None else shown(str(value)) for key, value in p.items()} for p in problems]


def spec_problems(role: str, spec: dict[str, Any], values: dict[str, Any]) -> list[dict[str, Any]]:
    """Problems of ``values`` (variable -> templated value) against ``spec``, the options of an argument spec."""
    problems = []
    for message in ArgumentSpecValidator(spec).validate(values).error_messages:
        named = re.search(rf"\b({'|'.join(map(re.escape, spec))})\b", message)
        variable = named[1] if named else role
        value = values.get(variable)
        problems.append(
            {
                "variable": variable,
                # Of a whole structure the message names the key; the rest of it is nobody's business.
                "value": None if isinstance(value, (Mapping, list, tuple)) else value,
                "problem": message,
                "do": f"see `ansible-doc -t role -r roles {role}`",
            }
        )
    return problems


class ActionModule(ActionBase):
    """Read the spec of the role that the task belongs to, and the values that the host would give it."""

    _requires_connection = False
    TRANSFERS_FILES = False

    def _template(self, name: str, task_vars: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
        try:
            return self._templar.template(task_vars[name]), []
        except AnsibleError as error:
            text = " ".join(str(error).split())
            return None, [
                {"variable": name, "value": None, "problem": text, "do": "correct or define what it refers to"}
            ]

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        role = self._task._role
        name = role.get_name()
        spec = yaml.safe_load((Path(role._role_path) / "meta/argument_specs.yml").read_text())
        options = spec["argument_specs"]["main"]["options"]
        values, problems = {}, []
        for variable in options:
            if variable in task_vars:
                value, failed = self._template(variable, task_vars)
                problems += failed
                values[variable] = value
        spec_found = spec_problems(name, options, values)
        problems += [p for p in spec_found if p["variable"] not in {q["variable"] for q in problems}]
        rules = f"__{name}_problems"
        # Rules speak of values that have the right type: with a wrong one they would only repeat it.
        if rules in task_vars and not problems:
            found, failed = self._template(rules, task_vars)
            problems += failed or found
        host = task_vars["inventory_hostname"]
        found = [{"host": host, **p} for p in hide(problems, values)]
        return {"changed": False, "ansible_facts": {f"validate_{name}": found}}

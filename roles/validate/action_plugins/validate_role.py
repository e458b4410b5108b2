"""Check every input of the calling role on the controller, without a connection to the host."""

from __future__ import annotations

import re
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


def spec_problems(role: str, spec: dict[str, Any], values: dict[str, Any]) -> list[dict[str, Any]]:
    """Problems of ``values`` (variable -> templated value) against ``spec``, the options of an argument spec."""
    problems = []
    for message in ArgumentSpecValidator(spec).validate(values).error_messages:
        named = re.search(rf"\b({'|'.join(map(re.escape, spec))})\b", message)
        variable = named[1] if named else role
        problems.append(
            {
                "variable": variable,
                "value": values.get(variable),
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
        return {"changed": False, "ansible_facts": {f"validate_{name}": [{"host": host, **p} for p in problems]}}

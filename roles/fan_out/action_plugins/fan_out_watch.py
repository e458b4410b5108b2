"""Watch the job of a host until it has received everything, and say now and then how far all hosts are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

DOCUMENTATION = r"""
module: fan_out_watch
short_description: Watch the job of a host until it has received everything
description:
  - Each host's watch asks its own host; what it hears it leaves for the others in Ansible's temporary directory on the
    controller, and the first of those that still wait prints one line for all.
  - Never fails, so that all jobs are ended afterwards, whatever befell one of them; what was wrong is for
    C(fan_out_state) with I(end), and a host that is lost is unreachable then.
options:
  directory: {type: path, required: true, description: The job's.}
  run: {type: str, required: true, description: The job's.}
  receivers: {type: list, elements: str, required: true, description: All hosts that receive something.}
  seconds: {type: int, required: true, description: Time between two lines.}
author: Raymetal
"""
RETURN = r"""
lost:
  description: Whether the host could not be asked any more.
  type: bool
  returned: always
"""

TRIES = 2  # a host that cannot be asked so often in a row is lost
NAMES_MAX = 3
DISPLAY = Display()
State = dict[str, Any]


def line(states: dict[str, State], receivers: list[str]) -> str:
    """How far all are; ``states``: host -> trees, rate and finished, of those that were heard."""
    coming = [tree for state in states.values() for tree in state["trees"] if tree["receive"]]
    names = sorted({tree["name"] for tree in coming})
    heading = ", ".join(names[:NAMES_MAX]) + (f" and {len(names) - NAMES_MAX} more" if len(names) > NAMES_MAX else "")
    total, done = sum(tree["bytes"] for tree in coming), sum(tree["done"] for tree in coming)
    rate = sum(state["rate"] for state in states.values() if not state["finished"])
    complete = sum(all(t["phase"] == "complete" for t in state["trees"]) for state in states.values() if state["trees"])
    parts = [f"{100 * done // max(total, 1)} %", f"{rate / 1e6:.0f} MB/s"]
    parts.append(f"{complete} of {len(receivers)} hosts complete")
    phases = {tree["phase"] for tree in coming} - {"complete"}
    if "receiving" in phases and rate:
        parts.append(f"about {(total - done) / rate:.0f} s left")
    elif phases:
        parts.append(" and ".join(sorted(phases)))
    return f"fan_out {heading}: {', '.join(parts)}"


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def _heard(self, board: Path) -> dict[str, State]:
        return {path.stem: json.loads(path.read_text()) for path in board.glob("*.json")}

    def _tell(self, board: Path, host: str, state: State) -> None:
        new = board / f"{host}.new"
        new.write_text(json.dumps(state))
        new.replace(board / f"{host}.json")

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        host, given = task_vars["inventory_hostname"], self._task.args
        receivers = list(given["receivers"])
        board = Path(C.DEFAULT_LOCAL_TMP) / f"fan_out-{given['run']}"
        board.mkdir(exist_ok=True)
        asked = {"directory": given["directory"], "run": given["run"], "seconds": 1}
        failures = 0
        while True:
            try:
                heard = self._execute_module("fan_out_state", asked, task_vars=task_vars)
            except AnsibleConnectionFailure as error:
                failures += 1
                if failures >= TRIES:
                    DISPLAY.display(f"fan_out: {host} is lost: {' '.join(str(error).split())[:200]}")
                    return {"changed": False, "lost": True}
                continue
            failures = 0
            if heard.get("failed"):
                return {"changed": False, "lost": False, "msg": heard.get("msg", "")}
            state = {key: heard[key] for key in ("trees", "rate", "finished")}
            self._tell(board, host, state)
            states = self._heard(board)
            waiting = [name for name in receivers if name in states and not states[name]["finished"]]
            if state["finished"]:
                if not waiting and len(states) == len(receivers):
                    DISPLAY.display(line(states, receivers))
                return {"changed": False, "lost": False}
            if waiting[:1] == [host]:
                DISPLAY.display(line(states, receivers))
            asked["seconds"] = int(given["seconds"])

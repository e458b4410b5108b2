"""Say who this run is, and whether the run that holds the lock still goes on."""

from __future__ import annotations

import getpass
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

PROC = Path("/proc")
display = Display()


def started(pid: int, proc: Path = PROC) -> str:
    """When a process started, in ticks since boot: with its id it names one process. Empty where there is none."""
    try:
        return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def machine(proc: Path = PROC) -> str:
    """Where process ids mean the same: this boot of this machine, and this container of it."""
    boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink(proc / 'self/ns/pid')}"


def run_of(pid: int) -> dict[str, Any]:
    """This run, by its process ``pid``. Of the command line only playbooks and tags: the rest may hold secrets."""
    options = context.CLIARGS
    names = [os.path.relpath(name) for name in options.get("args") or ()]
    tags = [tag for tag in options.get("tags") or () if tag != "all"]
    ticks = started(pid)
    return {
        "id": f"{machine()} {pid} {ticks}",
        "machine": machine(),
        "pid": pid,
        "ticks": ticks,
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "what": " ".join(names + ([f"--tags {','.join(tags)}"] if tags else [])),
    }


def ended(holder: dict[str, Any]) -> bool:
    """Whether the holder's process is known to be gone; of another machine nothing is known."""
    return holder.get("machine") == machine() and started(int(holder["pid"])) != holder["ticks"]


def told(holder: dict[str, Any]) -> str:
    return (
        f"{holder.get('what') or 'a run'} of {holder.get('user', '?')} on {holder.get('host', '?')}, process "
        f"{holder.get('pid', '?')}, since {holder.get('since', '?')}"
    )


class ActionModule(ActionBase):
    """Ask the host, and judge the holder here, where its process would be."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        # Actions run in children of the process that is the run.
        arguments = {**self._task.args, "holder": run_of(os.getppid())}

        def ask(**more: Any) -> dict[str, Any]:
            found: dict[str, Any] = self._execute_module(
                module_name="run_lock", module_args={**arguments, **more}, task_vars=task_vars
            )
            found.pop("invocation", None)
            return found

        result = ask()
        other = result.get("other") or {}
        if result.get("failed") or self._task.check_mode or not other:
            return result
        if self._task.args["state"] == "released":
            display.warning(
                f"the lock was taken over meanwhile by {told(other)}: look whether both changed the cluster"
            )
            return result
        if not result["held"] and ended(other):
            result = ask(gone=other["id"])
            other = result.get("other") or other
        if result.get("held"):
            display.warning(f"the lock of {told(other)} was taken over: what that run left undone is done now")
            return result
        return {
            **result,
            "failed": True,
            "msg": f"another run changes the cluster: {told(other)}. Nothing was changed. To do: wait for it. If it is "
            f"known to have ended, -e run_lock_take_over=true goes on",
        }

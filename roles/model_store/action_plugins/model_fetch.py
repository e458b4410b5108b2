"""Fetch a model on the host: bring the secret, watch, and show how far it is."""

from __future__ import annotations

import configparser
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

GB = 1e9
SHOW_SECONDS = 10
display = Display()


def read_secret(kind: str, path: str) -> dict[str, str]:
    """The token of the hub, or the keys of S3, in a file of the controller; nothing where none is named."""
    if not path or kind == "archive":
        return {}
    text = Path(path).expanduser().read_text()
    if kind == "hub":
        return {"token": text.strip()}
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    section = parser["default"]
    names = {f"aws_{key}": key for key in ("access_key_id", "secret_access_key", "session_token")}
    return {key: section[name].strip() for name, key in names.items() if name in section}


def progress(before: dict[str, Any], now: dict[str, Any], seconds: float) -> str:
    """One line on how far it is; ``before`` and ``now`` are answers of the module, ``seconds`` apart."""
    done, total = now.get("bytes") or 0, now.get("total") or 0
    text = f"{now.get('phase') or 'starting'}: {done / GB:.2f} of {total / GB:.2f} GB"
    grown = done - (before.get("bytes") or 0)
    if now.get("phase") != "fetching" or grown <= 0 or seconds <= 0:
        return text
    rate = grown / seconds
    return f"{text}, {rate / 1e6:.1f} MB/s, {max(total - done, 0) / rate:.0f} s to go"


class ActionModule(ActionBase):
    """Call the module until the model is there. What Ansible is stopped in goes on on the host, and is found again."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        secret_file = str(arguments.pop("secret_file", "") or "")
        if self._task.check_mode:  # neither the environment nor the directory need be there
            return {"changed": True, "msg": "would be fetched"}
        try:
            secret = read_secret(arguments["kind"], secret_file)
        except (OSError, ValueError, KeyError, configparser.Error) as error:
            raise AnsibleActionFail(
                f"{secret_file} cannot be read on the controller: {type(error).__name__}"
            ) from error
        host, label = task_vars["inventory_hostname"], "/".join(arguments["path"].split("/")[-2:])
        before: dict[str, Any] = {}
        start, changed, since = True, False, time.monotonic()
        while True:
            more = {"start": start, "secret": secret if start else {}, "wait_seconds": SHOW_SECONDS}
            # By standard input: the secret is in no file of the host and in no command line.
            now: dict[str, Any] = self._execute_module(
                module_name="model_fetch", module_args={**arguments, **more}, task_vars=task_vars
            )
            now.pop("invocation", None)
            if now.get("failed"):
                return {**now, "msg": f"{host}: {label}: {now.get('msg') or now.get('module_stderr') or 'no answer'}"}
            changed = changed or now["started"] or now["changed"]
            if now["finished"]:
                return {**now, "changed": changed}
            start = start and not now["started"]
            display.display(f"[{host}] {label}: {progress(before, now, time.monotonic() - since)}")
            before, since = now, time.monotonic()

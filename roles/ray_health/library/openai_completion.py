#!/usr/bin/python
"""Ask OpenAI-compatible servers one real question each."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: openai_completion
short_description: Ask OpenAI-compatible servers one real question each
description:
  - Posts a chat completion to every target at the same time and fails unless each one answers with text.
  - Connections that are refused or broken and status 503 are tried again until the time is over.
  - Proxies named by the environment are not used. Never changes anything. In check mode it asks nothing.
options:
  targets:
    description: The questions.
    type: list
    elements: dict
    required: true
    suboptions:
      url:
        description: Base of the server with the application's route prefix, without C(/v1).
        type: str
        required: true
      model:
        description: Name of the model in the API.
        type: str
        required: true
      prompt:
        description: What the user says.
        type: str
        required: true
      contains:
        description: Text that the answer must contain; upper and lower case are the same.
        type: str
  max_tokens:
    description: Longest answer, in tokens.
    type: int
    default: 32
  stream:
    description: Ask for a stream of events and check that it is complete.
    type: bool
    default: false
  api_key:
    description: Sent as bearer token when set.
    type: str
  timeout_seconds:
    description: Time for each target, all its tries together.
    type: float
    default: 60
author:
  - Raymetal
"""

EXAMPLES = r"""
- name: Ask the model through two proxies
  openai_completion:
    targets:
      - {url: "http://10.0.0.4:8000", model: chat, prompt: "What is the capital of France?", contains: paris}
      - {url: "http://10.0.0.5:8000", model: chat, prompt: "What is the capital of France?", contains: paris}
"""

RETURN = r"""
answers:
  description: One entry for each target, in their order.
  returned: when not in check mode
  type: list
  elements: dict
  contains:
    url: {description: The target's url., type: str}
    model: {description: The target's model., type: str}
    answer: {description: What the model said., type: str}
    seconds: {description: Time of the request that answered., type: float}
    tries: {description: Requests sent., type: int}
"""

RETRY_PAUSE_SECONDS = 0.5
# Straight to the server: a proxy from the host's environment does not know the cluster's network.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class BadAnswer(Exception):
    """The server's answer is not a completion. `status` is 0 when there was none."""

    def __init__(self, why: str, status: int, body: str) -> None:
        super().__init__(why)
        self.status, self.body = status, body


def parse_answer(status: int, body: str) -> str:
    """The text of a plain completion. Raises BadAnswer."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise BadAnswer("not a chat completion", status, body) from error
    if not isinstance(text, str) or not text.strip():
        raise BadAnswer("the answer is empty", status, body)
    return text.strip()


def parse_stream(status: int, body: str) -> str:
    """The text of a streamed completion (server-sent events). Raises BadAnswer when cut short or empty."""
    events = [line[5:].strip() for line in body.splitlines() if line.startswith("data:")]
    if not events or events[-1] != "[DONE]":
        raise BadAnswer(f"the stream ended after {len(events)} events without [DONE]", status, body)
    parts = []
    for event in events[:-1]:
        try:
            choices = json.loads(event)["choices"]
            parts += [choice["delta"].get("content") or "" for choice in choices]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadAnswer(f"not a chat completion event: {event[:200]}", status, body) from error
    if not "".join(parts).strip():
        raise BadAnswer("the streamed answer is empty", status, body)
    return "".join(parts).strip()


def post(target: dict[str, Any], params: dict[str, Any], deadline: float) -> str:
    """Send one request and return the answer's text. Raises BadAnswer or OSError."""
    question = {
        "model": target["model"],
        "messages": [{"role": "user", "content": target["prompt"]}],
        "max_tokens": params["max_tokens"],
        "temperature": 0,
        "stream": params["stream"],
    }
    headers = {"Content-Type": "application/json"}
    if params.get("api_key"):
        headers["Authorization"] = f"Bearer {params['api_key']}"
    url = target["url"].rstrip("/") + "/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(question).encode(), headers)
    try:
        with OPENER.open(request, timeout=max(deadline - time.monotonic(), 0.1)) as response:
            status, lines = response.status, []
            for line in response:
                lines.append(line.decode(errors="replace"))
                if time.monotonic() > deadline:
                    raise BadAnswer("the answer did not end in time", status, "".join(lines))
    except urllib.error.HTTPError as error:
        raise BadAnswer("the server refused", error.code, error.read(2000).decode(errors="replace")) from error
    body = "".join(lines)
    if status != 200:
        raise BadAnswer("the server did not say 200", status, body)
    return (parse_stream if params["stream"] else parse_answer)(status, body)


def is_transient(error: Exception) -> bool:
    """Whether asking again may help: the server is not up yet or has no replica for us yet."""
    if isinstance(error, BadAnswer):
        return error.status == 503
    return isinstance(getattr(error, "reason", error), ConnectionError)


def advice(status: int) -> str:
    """What to do about it."""
    if status == 404:
        return "compare url (route prefix) and model with the Serve config; GET <url>/v1/models lists the models"
    if status in (401, 403):
        return "set the API key that the endpoint wants"
    if status == 0:
        return "see that the Serve proxy of that node runs (serve status) and that its port is reachable from here"
    return "read the replica's log (serve status, then logs/serve in Ray's session directory)"


def ask(target: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """Ask one target. Returns {url, model, seconds, tries} with "answer", or with "error" (a whole sentence)."""
    deadline = time.monotonic() + params["timeout_seconds"]
    result: dict[str, Any] = {"url": target["url"], "model": target["model"], "tries": 0}
    while True:
        result["tries"] += 1
        began = time.monotonic()
        try:
            text = post(target, params, deadline)
            result["seconds"] = round(time.monotonic() - began, 2)
            wanted = target.get("contains") or ""
            if wanted.lower() not in text.lower():
                raise BadAnswer(f"the answer does not contain {wanted!r}", 200, text)
            return {**result, "answer": text}
        except (BadAnswer, OSError, ValueError) as error:
            if is_transient(error) and time.monotonic() + RETRY_PAUSE_SECONDS < deadline:
                time.sleep(RETRY_PAUSE_SECONDS)
                continue
            status, body = (error.status, error.body) if isinstance(error, BadAnswer) else (0, "")
            result["seconds"] = round(time.monotonic() - began, 2)
            result["error"] = (
                f"{target['url']} (model {target['model']}): {error}; status {status or 'none'}"
                f" after {result['tries']} tries; body: {body[:500]!r}; do: {advice(status)}"
            )
            return result


def ask_all(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask all targets at the same time; results in their order."""
    targets = params["targets"]
    with ThreadPoolExecutor(max_workers=max(1, min(len(targets), 32))) as pool:
        return list(pool.map(lambda target: ask(target, params), targets))


def main() -> None:
    """Entry point."""
    target = {
        "url": {"type": "str", "required": True},
        "model": {"type": "str", "required": True},
        "prompt": {"type": "str", "required": True},
        "contains": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "targets": {"type": "list", "elements": "dict", "required": True, "options": target},
            "max_tokens": {"type": "int", "default": 32},
            "stream": {"type": "bool", "default": False},
            "api_key": {"type": "str", "no_log": True},
            "timeout_seconds": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(skipped=True, msg="check mode: no question was asked")
    answers = ask_all(module.params)
    errors = [answer["error"] for answer in answers if "error" in answer]
    if errors:
        module.fail_json(msg="no good answer from:\n" + "\n".join(errors), answers=answers)
    module.exit_json(changed=False, answers=answers)


if __name__ == "__main__":
    main()

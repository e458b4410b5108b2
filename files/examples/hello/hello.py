"""An application without a model. `serve run hello:app`, or `serve run hello:build text=Hi`."""

from __future__ import annotations

import os

from ray import serve
from starlette.requests import Request


@serve.deployment
class Hello:
    def __init__(self, text: str) -> None:
        self.text = text

    async def __call__(self, request: Request) -> dict[str, str]:
        return {"greeting": os.environ.get("GREETING", ""), "text": self.text}


def build(args: dict[str, str]) -> serve.Application:
    return Hello.bind(args.get("text", "world"))


app = build({})

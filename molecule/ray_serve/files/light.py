"""A Serve application that needs no model: {text: …} in args is what it answers; {crash: true} fails at start."""

from typing import Any

from ray import serve
from starlette.requests import Request


@serve.deployment
class Light:
    def __init__(self, text: str, crash: bool) -> None:
        if crash:
            raise RuntimeError("this application was told to crash at start")
        self.text = text

    async def __call__(self, request: Request) -> dict[str, str]:
        if self.text == "sick":
            raise RuntimeError("this application runs and answers nothing")
        return {"text": self.text}


def build(args: dict[str, Any]) -> serve.Application:
    return Light.bind(args.get("text", "hello"), bool(args.get("crash", False)))

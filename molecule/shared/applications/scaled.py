"""A Serve application whose requests take their time, and a scaling policy of its own."""

import asyncio
from typing import Any

from ray import serve
from starlette.requests import Request


@serve.deployment
class Scaled:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __call__(self, request: Request) -> dict[str, float]:
        await asyncio.sleep(self.seconds)
        return {"seconds": self.seconds}


def steps(context: Any) -> tuple[int, dict[str, Any]]:
    """Three replicas while more than four requests are there, else one."""
    return (3 if context.total_num_requests > 4 else 1), {}


def build(args: dict[str, Any]) -> serve.Application:
    return Scaled.bind(float(args.get("seconds", 0.5)))

"""A Serve application that speaks chat completions like a model, without one. `args`, besides `revision`:

crash: raises at start; answer: what it says; fail_above, slow_above: so many requests at once are still answered well;
start_seconds: how long a replica takes to start.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

WORDS = 10


@serve.deployment
class Chat:
    def __init__(self, options: dict[str, Any]) -> None:
        time.sleep(options.get("start_seconds", 0))
        if options.get("crash"):
            raise RuntimeError("this application was told to crash at start")
        self.options, self.now = options, 0

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse(self.options)
        body = await request.json()
        self.now += 1
        if self.now > self.options.get("fail_above", self.now):
            self.now -= 1
            return JSONResponse({"error": {"message": "too much at once"}}, 500)
        pause = 0.2 if self.now > self.options.get("slow_above", self.now) else 0.02
        base = {"model": body["model"], "system_fingerprint": self.options["revision"]}
        if body.get("stream"):
            return StreamingResponse(self.stream(base, pause), media_type="text/event-stream")
        try:
            await asyncio.sleep(WORDS * pause)
            message = {"role": "assistant", "content": self.options.get("answer", "Paris")}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return JSONResponse({**base, "object": "chat.completion", "choices": [choice]})
        finally:
            self.now -= 1

    async def stream(self, base: dict[str, Any], pause: float) -> AsyncIterator[str]:
        try:
            for number in range(WORDS):
                await asyncio.sleep(pause)
                last = number == WORDS - 1
                delta = {"content": self.options.get("answer", "Paris") if number == 0 else " and"}
                choice = {"index": 0, "delta": delta, "finish_reason": "stop" if last else None}
                yield f"data: {json.dumps({**base, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.now -= 1


def build(args: dict[str, Any]) -> serve.Application:
    return Chat.bind(args)

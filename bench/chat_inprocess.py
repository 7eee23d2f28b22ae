"""The chat function called in this process, without any host, in turn with a bare call of the same upstream.

Run as: python -m bench.chat_inprocess '{"upstream": …, "key": …, "requests": 600, "streams": 300}', in the app's
environment. Prints JSON: the seconds of the app's import and of the first chat, the milliseconds of each call and the
processor's for each call of a block, ours and direct.
"""

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

BODY = {"model": "support", "messages": [{"role": "user", "content": "Where is the workshop?"}]}
STREAM = {**BODY, "stream": True, "max_tokens": 4}
BLOCK = 25  # calls of one kind in a row: so short that a noisy neighbour disturbs both kinds


async def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Import the app, answer the first chat, then measure."""
    began = time.perf_counter()
    from function_app import chat

    imported = time.perf_counter() - began
    from starlette.requests import Request

    function = chat.chat_completions._function.get_user_function()

    async def ours(body: bytes) -> float:
        """When the answer was there: a whole one returned by the function, of a stream the first token sent."""
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not parts:
                await asyncio.Event().wait()  # the client stays
            return parts.pop()

        headers = [(b"authorization", f"Bearer {asked['key']}".encode()), (b"content-type", b"application/json")]
        path, server = "/api/v1/chat/completions", {"spec_version": "2.3", "version": "3.0"}  # as uvicorn says
        scope = {
            "type": "http",
            "asgi": server,
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": headers,
        }
        response = await function(Request(scope, receive))
        if response.status_code != 200:
            raise RuntimeError(f"the chat function answered {response.status_code}: {response.body!r}")
        came = time.perf_counter()
        if b'"stream"' not in body:
            return came
        came = 0.0

        async def send(message: dict[str, Any]) -> None:
            nonlocal came
            if not came and b'"content"' in message.get("body", b""):
                came = time.perf_counter()

        await response(scope, receive, send)
        return came

    began = time.perf_counter()
    first = await ours(json.dumps(BODY).encode()) - began
    if not asked["requests"]:
        return {"imported": imported, "first": first, "usual": await _median_of_few(ours)}

    import aiohttp

    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    headers = {"Authorization": f"Bearer {'x' * 900}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def direct(body: bytes) -> float:
            async with session.post(asked["upstream"], data=body, headers=headers) as response:
                if b'"stream"' not in body:
                    await response.read()
                    return time.perf_counter()
                came = 0.0
                async for line in response.content:
                    if not came and b'"content"' in line:
                        came = time.perf_counter()
                return came

        calls = await _in_turn({"ours": ours, "direct": direct}, json.dumps(BODY).encode(), asked["requests"])
        streams = await _in_turn({"ours": ours, "direct": direct}, json.dumps(STREAM).encode(), asked["streams"])
    return {"imported": imported, "first": first, "calls": calls, "streams": streams}


async def _in_turn(
    kinds: dict[str, Callable[[bytes], Awaitable[float]]], body: bytes, count: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in kinds}
    processor: dict[str, list[float]] = {f"{name}, processor": [] for name in kinds}
    for block in range(count // BLOCK + 1):
        for name, call in kinds.items():
            worked = time.process_time()
            for _ in range(BLOCK):
                began = time.perf_counter()
                ended = await call(body)
                if block:  # the first block is to warm up
                    times[name].append((ended - began) * 1000)
            if block:
                processor[f"{name}, processor"].append((time.process_time() - worked) * 1000 / BLOCK)
    return times | processor


async def _median_of_few(call: Callable[[bytes], Awaitable[float]]) -> float:
    times = (await _in_turn({"ours": call}, json.dumps(BODY).encode(), 2 * BLOCK))["ours"]
    return sorted(times)[len(times) // 2] / 1000


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(json.loads(sys.argv[1])))))

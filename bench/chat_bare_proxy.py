"""The least that a proxy in Python can be: uvicorn and aiohttp passing bytes. It checks nothing and is no peer: what
it adds to a direct call is what any hop through one more process costs on this machine.

Run as: python -m bench.chat_bare_proxy PORT UPSTREAM
"""

import ssl
import sys
from typing import Any

import aiohttp
import uvicorn

HEADERS = {"Authorization": f"Bearer {'x' * 900}", "Content-Type": "application/json"}


class Proxy:
    """The ASGI application."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context())
            self._session = aiohttp.ClientSession(connector=connector)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        async with self._session.post(self._upstream, data=body, headers=HEADERS) as answer:
            kind = answer.headers["Content-Type"].encode()
            await send({"type": "http.response.start", "status": answer.status, "headers": [(b"content-type", kind)]})
            async for part in answer.content.iter_any():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(Proxy(sys.argv[2]), port=int(sys.argv[1]), log_level="warning", access_log=False, lifespan="off")

"""What stands behind bench/chat.py, in a process of its own: a model's endpoint that answers after 5 ms, over TLS, and
as much of Azure (an identity, storage with one live model) as the app asks for while it chats.

A request's ``max_tokens`` is the number of chunks of a stream, and ``seed`` the milliseconds between two of them.

Run as: python -m bench.chat_stub FOLDER, with server.pem and server.key in it; the first line printed has the ports.
"""

import asyncio
import base64
import json
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

PAUSE_SECONDS = 0.005
MODEL = "support"
TEXT = "The workshop is on the second floor."
LIST_OF_BLOBS = f"""<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="runs"><Blobs><Blob>
<Name>live/{MODEL}.json</Name><Properties><Etag>"1"</Etag><Last-Modified>Sat, 21 Nov 2026 10:00:00 GMT</Last-Modified>
<Content-Length>1</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob></Blobs><NextMarker />
</EnumerationResults>"""
NO_MESSAGES = '<?xml version="1.0" encoding="utf-8"?><QueueMessagesList />'


class Stub:
    """The routes. ``record`` is the live record of the one model, known once the port is."""

    def __init__(self) -> None:
        self.record = b""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Everything that comes, whether it is the model's endpoint, the identity or storage."""
        if request.path.endswith("/chat/completions"):
            return await _chat(request)
        if request.path == "/msi/token":
            return _token(request)
        await request.read()
        if request.path.endswith("/messages"):
            return web.Response(text=NO_MESSAGES, content_type="application/xml")
        if request.query.get("comp") == "list":
            return web.Response(text=LIST_OF_BLOBS, content_type="application/xml")
        if request.method == "GET" and request.path.endswith(f"/live/{MODEL}.json"):
            size = len(self.record)
            headers = {"ETag": '"1"', "x-ms-blob-type": "BlockBlob", "Content-Range": f"bytes 0-{size - 1}/{size}"}
            return web.Response(body=self.record, status=206, headers=headers)
        return web.Response(status=201 if request.method == "PUT" else 404)


async def _chat(request: web.BaseRequest) -> web.StreamResponse:
    asked = await request.json()
    await asyncio.sleep(PAUSE_SECONDS)
    if not asked.get("stream"):
        message = {"role": "assistant", "content": TEXT}
        return web.json_response(
            {
                **_frame("chat.completion"),
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20},
            }
        )
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    pause = (asked.get("seed") or 0) / 1000
    for number in range(asked.get("max_tokens") or 16):
        if number:
            await asyncio.sleep(pause)
        delta = {"content": "word "} if number else {"role": "assistant", "content": "word "}
        await response.write(_event({"index": 0, "delta": delta, "finish_reason": None}))
    await response.write(_event({"index": 0, "delta": {}, "finish_reason": "stop"}) + b"data: [DONE]\n\n")
    return response


def _frame(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-0123456789abcdef", "object": kind, "created": 1_790_000_000, "model": MODEL}


def _event(choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({**_frame("chat.completion.chunk"), "choices": [choice]}).encode() + b"\n\n"


def _token(request: web.BaseRequest) -> web.Response:
    expires = int(time.time()) + 86_400
    claims = {"aud": request.query["resource"], "exp": expires, "padding": "x" * 800}  # as long as Entra's
    parts = [json.dumps(part).encode() for part in ({"alg": "none", "typ": "JWT"}, claims)]
    token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."
    return web.json_response(
        {"access_token": token, "expires_on": str(expires), "resource": claims["aud"], "token_type": "Bearer"}
    )


async def serve(folder: Path) -> None:
    """Print the ports as JSON, then serve until killed."""
    stub = Stub()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    runner = web.ServerRunner(web.Server(stub.answer, access_log=None, keepalive_timeout=600))
    await runner.setup()
    ports = {}
    for name, tls in (("tls", context), ("plain", None)):
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls, backlog=4096)
        await site.start()
        ports[name] = runner.addresses[-1][1]
    record = {
        "model": MODEL, "run_id": f"{MODEL}-0123456789ab", "endpoint": "e", "deployment": "r-0123456789ab",
        "scoring_uri": f"https://localhost:{ports['tls']}/v1/chat/completions", "model_version": "1",
        "base_model": "embedded", "context_length": 4096, "since": "2026-11-21T10:15:00Z",
    }  # fmt: skip
    stub.record = json.dumps(record).encode()
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))

"""A sample app with streaming responses, through azurefunctions-extensions-http-fastapi."""

import asyncio
import json
import os
from collections.abc import AsyncIterator

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
released = asyncio.Event()


def record(kind: str) -> None:
    with open(os.environ["RECORD"], "a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind}) + "\n")


@app.route("two-parts", methods=["GET"])
async def two_parts(req: Request) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        yield "first"
        await released.wait()
        yield "second"

    return StreamingResponse(parts(), media_type="text/event-stream")


@app.route("release", methods=["POST"])
async def release(req: Request) -> Response:
    released.set()
    return Response(status_code=204)


@app.route("endless", methods=["GET"])
async def endless(req: Request) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        try:
            while True:
                yield "more"
                await asyncio.sleep(0.01)
        finally:
            record("closed")

    return StreamingResponse(parts())


@app.route("breaks", methods=["GET"])
async def breaks(req: Request) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        yield "start"
        raise RuntimeError("in the middle")

    return StreamingResponse(parts())


@app.route("echo/{name}", methods=["POST"])
async def echo(req: Request) -> dict:
    return {"name": req.path_params["name"], "body": await req.json()}


@app.route("fail")
def fail(req: Request) -> Response:
    raise ValueError("not for the caller to see")

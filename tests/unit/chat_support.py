"""The world around the chat API for its tests: a TLS endpoint in OpenAI's format, an identity, a web server."""

import asyncio
import base64
import datetime
import ipaddress
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import uvicorn
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from operations_support import application
from starlette.applications import Starlette

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Configure = Callable[..., None]  # changes app settings
Allow = Callable[..., None]  # gives the world's client a key with limits


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for localhost; return the paths of it and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


class StubEndpoint:
    """An online endpoint: answers with ``words`` unless ``handler`` is set; remembers what it was sent."""

    def __init__(self) -> None:
        self.words = ["Hello", " there", "!"]
        self.pause = 0.0
        self.handler: Handler | None = None
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.connections: set[Any] = set()
        self.broken_off = asyncio.Event()
        self.uri = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The route."""
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        self.connections.add(request.transport)
        if self.handler:
            return await self.handler(request)
        return await self.usual(request)

    async def usual(self, request: web.Request) -> web.StreamResponse:
        """The answer in ``words``, for a handler that wants another one only sometimes."""
        if self.bodies[-1].get("stream"):
            return await self._stream(request)
        message = {"role": "assistant", "content": "".join(self.words)}
        return web.json_response(
            {
                "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "inner",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
            }
        )  # fmt: skip

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for word in self.words:
                await response.write(event([{"index": 0, "delta": {"content": word}, "finish_reason": None}]))
                await asyncio.sleep(self.pause)
            await response.write(event([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
            if self.bodies[-1].get("stream_options", {}).get("include_usage"):
                usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
                await response.write(event([], usage=usage))
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionResetError, asyncio.CancelledError):
            self.broken_off.set()
            raise
        return response


def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    """One chunk of a stream."""
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "inner"}
    return b"data: " + json.dumps({**chunk, "choices": choices, **more}).encode() + b"\n\n"


@asynccontextmanager
async def serve_endpoint(certificate: Path, key: Path) -> AsyncIterator[StubEndpoint]:
    """Run a StubEndpoint over TLS."""
    stub = StubEndpoint()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/v1/chat/completions", stub.answer)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with _serve(app, context) as port:
        stub.uri = f"https://localhost:{port}/v1/chat/completions"
        yield stub


class StubIdentity:
    """The App Service managed-identity endpoint, with unsigned tokens."""

    def __init__(self) -> None:
        self.asked = 0
        self.valid_seconds = 3600
        self.url = ""

    async def token(self, request: web.Request) -> web.Response:
        """The route."""
        self.asked += 1
        expires = int(time.time()) + self.valid_seconds
        claims = {"aud": request.query["resource"], "exp": expires, "n": self.asked}
        parts = [{"alg": "none", "typ": "JWT"}, claims]
        token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts) + "."
        return web.json_response(
            {"access_token": token, "expires_on": str(expires), "resource": claims["aud"], "token_type": "Bearer"}
        )


@asynccontextmanager
async def serve_identity() -> AsyncIterator[StubIdentity]:
    """Run a StubIdentity."""
    stub = StubIdentity()
    app = web.Application()
    app.router.add_get("/msi/token", stub.token)
    async with _serve(app, None) as port:
        stub.url = f"http://127.0.0.1:{port}/msi/token"
        yield stub


@asynccontextmanager
async def _serve(app: web.Application, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class StubContainer:
    """The runs container, as far as live.py reads it."""

    def __init__(self, records: dict[str, dict[str, Any] | bytes] | None = None) -> None:
        self.records = records or {}
        self.failure: Exception | None = None
        self.lists = 0
        self.downloads = 0
        self.credential = SimpleNamespace(close=self.close)
        self.closed = 0

    async def close(self) -> None:
        """As azure.storage.blob.aio, and its credential."""
        self.closed += 1

    def put_live(self, model: str, scoring_uri: str) -> None:
        """Make ``model`` live."""
        self.records[f"live/{model}.json"] = {
            "model": model, "run_id": f"{model}-0123456789ab", "endpoint": "e", "deployment": "r-0123456789ab",
            "scoring_uri": scoring_uri, "model_version": "1", "base_model": "embedded", "context_length": 4096,
            "since": "2026-11-21T10:15:00Z",
        }  # fmt: skip

    async def list_blobs(self, name_starts_with: str) -> AsyncIterator[Any]:
        """As azure.storage.blob.aio."""
        self.lists += 1
        await asyncio.sleep(0)
        if self.failure:
            raise self.failure
        for name in sorted(self.records):
            assert name.startswith(name_starts_with)
            yield _Blob(name, self._bytes(name))

    async def download_blob(self, name: str) -> "_Blob":
        """As azure.storage.blob.aio."""
        self.downloads += 1
        return _Blob(name, self._bytes(name))

    def _bytes(self, name: str) -> bytes:
        record = self.records[name]
        return record if isinstance(record, bytes) else json.dumps(record).encode()


class _Blob:
    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content, self.etag = name, content, str(hash(content))

    async def readall(self) -> bytes:
        return self.content


@contextmanager
def http_functions() -> Iterator[Starlette]:
    """The app's HTTP functions as a web application, under /api as in Azure."""
    from function_app.chat import blueprint

    yield application(blueprint)


@asynccontextmanager
async def serve_functions() -> AsyncIterator[str]:
    """Run the HTTP functions; yield their base URL."""
    with http_functions() as app:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}/api"
        finally:
            server.should_exit = True
            await task


async def until(condition: Callable[[], Any]) -> None:
    """Wait until ``condition`` holds, for ten seconds at most."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


@dataclass
class World:
    """Everything that a test may want to touch."""

    url: str
    key: str
    endpoint: StubEndpoint
    identity: StubIdentity
    container: StubContainer
    used: list[str]  # the models that were marked as used

    def client(self, **options: object) -> openai.AsyncOpenAI:
        """The stock client, as a user would make it."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, **{"max_retries": 0, **options})


@asynccontextmanager
async def chat_world(certificate: tuple[Path, Path]) -> AsyncIterator[World]:
    """Everything that runs, set up by environment variables as in Azure; one model, ``support``, is live."""
    from function_app import api_keys, azure_clients, usage
    from function_app.settings import settings

    key, entry = api_keys.new_key("tests")
    container = StubContainer()
    async with serve_endpoint(*certificate) as endpoint, serve_identity() as identity:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "IDENTITY_ENDPOINT": identity.url,
                "IDENTITY_HEADER": "header",
                "SSL_CERT_FILE": str(certificate[0]),
                "Storage__blobServiceUri": "https://localhost:1/account",
                "Storage__queueServiceUri": "https://localhost:1/account",
                "AZURE_SUBSCRIPTION_ID": "s",
                "AZURE_RESOURCE_GROUP": "g",
                "AZURE_ML_WORKSPACE": "w",
                "CHAT_API_KEYS": entry,
            }.items():
                patch.setenv(name, value)
            settings.cache_clear()
            patch.setattr(azure_clients, "live_container", lambda: container)
            used: list[str] = []
            patch.setattr(usage, "_mark", used.append)
            patch.setattr(usage, "_marked", {})
            container.put_live("support", endpoint.uri)
            async with serve_functions() as url:
                yield World(url, key, endpoint, identity, container, used)
    settings.cache_clear()

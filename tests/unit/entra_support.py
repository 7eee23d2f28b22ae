"""An issuer of Entra tokens for the tests of what they open: its document and its keys, over TLS."""

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from function_app.entra_tokens import EntraTokens

TENANT = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"
CLIENT, PERSON, APP = (f"{letter * 8}-0000-0000-0000-000000000000" for letter in "abc")
KEYS = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]


def published(key: rsa.RSAPrivateKey, kid: str, **more: Any) -> dict[str, Any]:
    """A public key as Entra tells it."""
    numbers = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {"kty": "RSA", "use": "sig", "kid": kid, "x5t": kid, "n": numbers["n"], "e": numbers["e"], **more}


class StubEntra:
    """One tenant's issuer of tokens of version 2.0, and, without ``/v2.0``, of 1.0."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys = [published(KEYS[0], "one")]
        self.changed: dict[str, Any] = {}  # what the document says instead
        self.body: str | None = None  # of both answers, instead
        self.status = 200
        self.asked = 0

    def issuer(self, version: int) -> str:
        return f"{self.url}/{TENANT}/v2.0" if version == 2 else f"https://sts.windows.net/{TENANT}/"

    def address(self, version: int = 2) -> str:
        return f"{self.url}/{TENANT}" + ("/v2.0" if version == 2 else "")

    async def discover(self, request: web.Request) -> web.Response:
        self.asked += 1
        document = {"issuer": self.issuer(2 if "v2.0" in request.path else 1), "jwks_uri": f"{self.url}/keys"}
        return self._answer(document | self.changed)

    async def moved(self, _: web.Request) -> web.Response:
        """Where a redirect of either leads: all that is asked for, so that to follow it would be to believe it."""
        return web.json_response({"issuer": self.issuer(2), "jwks_uri": f"{self.url}/moved", "keys": self.keys})

    async def tell_keys(self, _: web.Request) -> web.Response:
        return self._answer({"keys": self.keys})

    def _answer(self, value: Any) -> web.Response:
        headers = {"Location": f"{self.url}/moved"} if self.status == 302 else {}
        if self.body is not None:
            return web.Response(text=self.body)
        return web.json_response(value, status=self.status, headers=headers)

    def tokens(self, version: int = 2, role: str = "") -> EntraTokens:
        return EntraTokens(f"api://chat, {APP}", self.address(version), role)

    def token(self, version: int = 2, **changed: Any) -> str:
        """A token of an application; a claim that is None is left out."""
        now = int(time.time())
        claims = {
            "aud": APP if version == 2 else "api://chat", "iss": self.issuer(version), "iat": now, "nbf": now,
            "exp": now + 3600, "tid": TENANT, "oid": PERSON, "sub": PERSON, "ver": f"{version}.0",
            "azp" if version == 2 else "appid": CLIENT,
        }  # fmt: skip
        return sign({name: value for name, value in (claims | changed).items() if value is not None})


def sign(claims: dict[str, Any], key: Any = KEYS[0], algorithm: str = "RS256", **headers: Any) -> str:
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "one", **headers})


@asynccontextmanager
async def serve_entra(certificate: Path, key: Path) -> AsyncIterator[StubEntra]:
    """Run a StubEntra over TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    stub = StubEntra("")
    async with serve(stub, context) as port:
        stub.url = f"https://localhost:{port}"
        yield stub


@asynccontextmanager
async def serve(stub: StubEntra, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Answer for ``stub`` at the port that is yielded; without ``context``, in the clear."""
    app = web.Application()
    for folder in (TENANT, f"{TENANT}/v2.0"):
        app.router.add_get(f"/{folder}/.well-known/openid-configuration", stub.discover)
    app.router.add_get("/keys", stub.tell_keys)
    app.router.add_get("/moved", stub.moved)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()

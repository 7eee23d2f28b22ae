"""Entra on this machine: App Service's managed-identity endpoint with signed tokens, their keys, their verification."""

import hmac
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN_LIFETIME = 3600  # seconds; Entra's default is 60–90 minutes
ARM_AUDIENCES = (
    "https://management.azure.com",
    "https://management.core.windows.net",
    "https://ml.azure.com",
)
ML_AUDIENCES = ("https://ml.azure.com",)


class Authority:
    """Issues and verifies tokens with a key that lives in the state folder, so they outlast a restart.

    They are of version 1.0, as those of a managed identity are for most resources.
    """

    def __init__(self, folder: Path, tenant: str, principal_id: str) -> None:
        self.tenant = tenant
        self.principal_id = principal_id
        self.issuer = f"https://sts.windows.net/{tenant}/"  # the storage emulator, too, takes no other
        self._key = _signing_key(folder / "tokens.key")
        public = self._key.public_key()
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self._key_id = sha256(der).hexdigest()[:27]

    def issue(self, resource: str, lifetime: int = TOKEN_LIFETIME) -> tuple[str, int]:
        """A token for ``resource`` and the second (Unix time) at which it expires."""
        now = int(time.time())
        expires = now + lifetime
        claims = {
            # The SDKs compare the audience without a trailing slash; Entra gives back what was asked for.
            "aud": resource.rstrip("/"),
            "iss": self.issuer,
            "iat": now,
            "nbf": now - 5,
            "exp": expires,
            "tid": self.tenant,
            "oid": self.principal_id,
            "sub": self.principal_id,
            "appid": self.principal_id,
            "idtyp": "app",
            "uti": uuid4().hex,
            "ver": "1.0",
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": self._key_id}), expires

    def published_keys(self) -> dict[str, Any]:
        """The JSON Web Key Set with which others verify the tokens."""
        key = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{"kty": "RSA", "use": "sig", "kid": self._key_id, "n": key["n"], "e": key["e"]}]}

    def verify(self, authorization: str | None, audiences: tuple[str, ...]) -> dict[str, Any]:
        """The claims of a ``Bearer`` header. Raises PermissionError with the reason that Azure would give."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise PermissionError("Authentication failed. The 'Authorization' header is missing.")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key.public_key(),
                algorithms=["RS256"],
                issuer=self.issuer,
                options={"verify_aud": False, "require": ["exp", "aud", "iss"]},
            )
        except jwt.PyJWTError as error:
            raise PermissionError(f"The access token is invalid: {error}.") from None
        if str(claims["aud"]).rstrip("/") not in audiences:
            raise PermissionError(
                f"The access token is for the wrong audience '{claims['aud']}'; expected '{audiences[0]}'."
            )
        return claims


def identity_app(authority: Authority, header: str) -> Starlette:
    """``GET /msi/token?api-version=2019-08-01&resource=…`` with X-IDENTITY-HEADER, as App Service serves it."""

    async def token(request: Request) -> Response:
        if not hmac.compare_digest(request.headers.get("x-identity-header", "").encode(), header.encode()):
            return JSONResponse({"statusCode": 401, "message": "X-IDENTITY-HEADER is missing or wrong."}, 401)
        resource = request.query_params.get("resource", "")
        if not resource:
            return JSONResponse({"statusCode": 400, "message": "The query parameter resource is missing."}, 400)
        access_token, expires = authority.issue(resource)
        return JSONResponse(
            {
                "access_token": access_token,
                "expires_on": str(expires),
                "resource": resource,
                "token_type": "Bearer",
                "client_id": request.query_params.get("client_id", authority.principal_id),
            }
        )

    return Starlette(routes=[Route("/msi/token", token)])


def discovery_routes(authority: Authority, address: str) -> list[Route]:
    """OpenID Connect's discovery: who issues the tokens, and the keys with which they are signed.

    ``address`` stands for ``https://login.microsoftonline.com/<tenant>``.
    """
    configuration = {
        "issuer": authority.issuer,
        "jwks_uri": f"{address}/discovery/keys",
        "id_token_signing_alg_values_supported": ["RS256"],
        "subject_types_supported": ["pairwise"],
    }

    async def discover(_: Request) -> Response:
        return JSONResponse(configuration)

    async def tell_keys(_: Request) -> Response:
        return JSONResponse(authority.published_keys())

    path = urlsplit(address).path
    return [Route(f"{path}/.well-known/openid-configuration", discover), Route(f"{path}/discovery/keys", tell_keys)]


def _signing_key(path: Path) -> rsa.RSAPrivateKey:
    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError(f"{path} is not an RSA key; delete it.")
        return key
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
    return key

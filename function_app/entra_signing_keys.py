"""The public keys with which an issuer signs its tokens: read where it publishes them, kept, and read again."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from .settings import TENANT_ID

if TYPE_CHECKING:
    import aiohttp
    import jwt

DISCOVERY = "/.well-known/openid-configuration"
FRESH_SECONDS = 24 * 3600.0  # Entra advises to look once a day
UNKNOWN_SECONDS = 60.0  # between two looks for a key that is not there: anybody can make up a key's id
FAILED_SECONDS = 5.0  # between two looks while the issuer does not answer
TIMEOUT_SECONDS = 10.0

log = logging.getLogger(__name__)


def tenant_of(issuer: str) -> str:
    """The id of the tenant whose issuer it is; nothing for one that is no tenant's."""
    found = TENANT_ID.search(issuer)
    return found[0].lower() if found else ""


class IssuerUnavailable(Exception):
    """Whether a token is good cannot be said right now, since the issuer does not tell its keys."""

    status = 503


class SigningKeys:
    """The keys of one issuer by their ids (``kid``); at most one reading of them is under way.

    ``issuer`` is an address below which a document names the keys, and the issuer as tokens name it. With Entra that is
    not always the same: https://login.microsoftonline.com/<tenant> says that it is https://sts.windows.net/<tenant>/.
    """

    def __init__(self, issuer: str) -> None:
        self._address = issuer.rstrip("/")
        self._tenant = tenant_of(issuer)
        self.issuer = ""  # as tokens name it, once it has been read
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._tried_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def find(self, kid: str) -> "jwt.PyJWK | None":
        """Return the key of that id, or None if the issuer has none. Raises IssuerUnavailable.

        Old keys serve on while new ones cannot be read. Nobody waits for a look but those whose key is unknown.
        """
        now = time.monotonic()
        failed = self._tried_at > self._read_at
        if kid in self._keys:
            if now - self._read_at > FRESH_SECONDS and now - self._tried_at > UNKNOWN_SECONDS:
                self._read_once()
            return self._keys[kid]
        if self._is_reading() or now - self._tried_at > (FAILED_SECONDS if failed else UNKNOWN_SECONDS):
            # Shielded: the first to ask may leave, and others wait for the same answer.
            await asyncio.shield(self._read_once())
            failed = self._tried_at > self._read_at
        if failed and kid not in self._keys:
            raise IssuerUnavailable("The keys with which tokens are signed cannot be read right now; try again.")
        return self._keys.get(kid)

    def _is_reading(self) -> bool:
        task = self._reading
        return task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()

    def _read_once(self) -> "asyncio.Task[None]":
        if self._reading is None or not self._is_reading():
            self._reading = asyncio.create_task(self._read())
        return self._reading

    async def _read(self) -> None:
        import ssl

        import aiohttp

        # The order of the two times tells whether the last look has failed.
        self._tried_at = time.monotonic()
        try:
            async with aiohttp.ClientSession(
                # aiohttp's own TLS context is made when it is imported; this one reads SSL_CERT_FILE now.
                connector=aiohttp.TCPConnector(ssl=ssl.create_default_context()),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            ) as session:
                found = await _read_json(session, f"{self._address}{DISCOVERY}")
                issuer = found.get("issuer")
                if not isinstance(issuer, str) or not issuer or tenant_of(issuer) != self._tenant:
                    raise ValueError(f"its document names {issuer!r} as the issuer, which is of another tenant")
                published = await _read_json(session, str(found.get("jwks_uri", "")))
            keys = _usable(published.get("keys"), self._tenant)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
            log.error(
                "entra issuer=%s keys=%d error=%s: %s", self._address, len(self._keys), type(error).__name__, error
            )
            return
        self.issuer, self._keys = issuer, keys
        self._read_at = time.monotonic()


async def _read_json(session: "aiohttp.ClientSession", url: str) -> dict[str, Any]:
    if not url.startswith("https://"):
        raise ValueError(f"{url[:200]!r} is no https:// address")
    # No redirects: they could lead away from TLS.
    async with session.get(url, allow_redirects=False) as answer:
        if answer.status != 200:
            raise ValueError(f"{url} answered {answer.status}")
        found = await answer.json(content_type=None)
    if not isinstance(found, dict):
        raise ValueError(f"{url} did not answer with an object")
    return found


def _usable(published: Any, tenant: str) -> "dict[str, jwt.PyJWK]":
    """The RSA keys for signatures. Raises ValueError when there is none.

    Entra publishes keys of several issuers in one list; one that names a tenant signs for no other.
    """
    import jwt

    keys = {}
    for entry in published if isinstance(published, list) else []:
        try:
            signs_here = tenant_of(str(entry.get("issuer", ""))) in ("", tenant)
            if entry["kty"] == "RSA" and entry.get("use", "sig") == "sig" and signs_here:
                keys[str(entry["kid"])] = jwt.PyJWK(entry, algorithm="RS256")
        except (jwt.PyJWTError, AttributeError, LookupError, TypeError, ValueError):
            continue  # a kind of key that came after this was written
    if not keys:
        raise ValueError("it publishes no RSA key for signatures")
    return keys

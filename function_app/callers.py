"""Who is calling the chat API, which models that caller may use, and how many answers at a time."""

import hashlib
import time
from collections.abc import Iterable
from functools import lru_cache

from .chat_keys import CHAT, KeyRefused, StoredKey, bearer, find_key, read_keys
from .entra_tokens import EntraTokens
from .openai_api import ApiError
from .settings import settings

REMEMBERED = 1_000  # keys and tokens that were accepted a while ago; one more and the oldest is checked again
# At most: a token may be valid for a day, and its issuer may withdraw the key it is signed with.
REMEMBER_SECONDS = 3600.0


class Place:
    """One of a caller's answers under way; ``leave`` gives the place back, however often it is called."""

    __slots__ = ("_caller",)

    def __init__(self, caller: "Caller") -> None:
        self._caller: Caller | None = caller

    def leave(self) -> None:
        """The answer has ended, or never began."""
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.answering -= 1


class Caller:
    """Somebody with a key or a token. ``models`` None: all of them; ``concurrency`` None: as many answers as it likes.

    A key has one Caller for as long as the process runs. Its answers are counted on the event loop, where nothing
    comes between a look and a change.
    """

    def __init__(self, name: str, models: frozenset[str] | None = None, concurrency: int | None = None) -> None:
        self.name = name
        self.models = models
        self.concurrency = concurrency
        self.answering = 0

    def may_use(self, model: str) -> bool:
        """Whether the caller sees the model at all."""
        return self.models is None or model in self.models

    def visible(self, models: Iterable[str]) -> list[str]:
        """Those of ``models`` that the caller sees, in order."""
        return sorted(model for model in models if self.may_use(model))

    def check_model(self, name: str) -> None:
        """Raises ApiError (403) for a model that is not the caller's; ``name`` may pin a version of it with ``@``."""
        model = name.partition("@")[0]
        if not self.may_use(model):
            allowed = ", ".join(sorted(self.models or ()))
            text = f"This key may not use the model {model[:100]!r}. It may use: {allowed}."
            raise ApiError(403, text, param="model", code="model_not_allowed")

    def take_place(self) -> Place:
        """Raises ApiError (429) when the caller has as many answers under way as it may have."""
        if self.concurrency is not None and self.answering >= self.concurrency:
            answers = "answer" if self.concurrency == 1 else "answers"
            raise ApiError(
                429,
                f"This key has {self.answering} {answers} under way, and may have {self.concurrency} at a time. Wait "
                "for one to end, or close a stream.",
                type="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after="1",
            )
        self.answering += 1
        return Place(self)


class Gate:
    """The keys and the issuer of tokens that open the chat, and whom they have let in lately."""

    def __init__(self, keys: tuple[StoredKey, ...], tokens: EntraTokens | None) -> None:
        self._keys = keys
        self._callers = {key.name: Caller(key.name, key.models, key.concurrency) for key in keys}
        self._tokens = tokens
        self._known: dict[bytes, tuple[Caller, float]] = {}  # by the secret's hash, with when to check it again

    async def identify(self, authorization: str) -> Caller:
        """Return whose header it is. Raises KeyRefused, and what EntraTokens.check raises."""
        secret = bearer(authorization)
        if not secret:
            raise KeyRefused(self._how_to_open())
        fingerprint = hashlib.sha256(secret.encode("utf-8", "replace")).digest()
        known = self._known.get(fingerprint)
        if known is None or time.time() >= known[1]:
            known = await self._find(secret)
            self._known.pop(fingerprint, None)
            if len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[fingerprint] = known
        return known[0]

    async def _find(self, secret: str) -> tuple[Caller, float]:
        if key := find_key(secret, self._keys):
            return self._callers[key.name], float("inf")
        # A token has two dots; a key that api_keys made has none.
        if self._tokens is not None and secret.count(".") == 2:
            name, expires = await self._tokens.check(secret)
            return Caller(f"entra:{name}"), min(expires, time.time() + REMEMBER_SECONDS)
        if not self._keys:
            raise KeyRefused(self._how_to_open())
        raise KeyRefused("The API key is not one that this app knows.")

    def _how_to_open(self) -> str:
        token = f"an Entra token for {self._tokens.audiences[0]}" if self._tokens else ""
        if self._keys:
            what = f"no API key. Send it{f', or {token},' if token else ''}"
        elif token:
            what = f"no token. Send {token}"
        else:
            return CHAT.closed
        return f"The request has {what} in the header Authorization: Bearer <{'key' if self._keys else 'token'}>."


async def identify(authorization: str) -> Caller:
    """Return whose ``Authorization`` header it is.

    Raises KeyRefused (401), NotAssigned (403), IssuerUnavailable (503), or SettingsError for a malformed setting.
    """
    now = settings()
    gate = _gate(now.chat_api_keys, now.chat_entra_audience, now.chat_entra_issuer, now.chat_entra_role)
    return await gate.identify(authorization)


@lru_cache(maxsize=1)
def _gate(keys: str, audience: str, issuer: str, role: str) -> Gate:
    return Gate(read_keys(keys), EntraTokens(audience, issuer, role) if issuer else None)

"""Who may chat: the keys in the app setting CHAT_API_KEYS, of which only salted hashes are kept."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from functools import lru_cache

from .settings import SettingsError

SETTING = "CHAT_API_KEYS"
ENTRY = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-f]{16,64}):([0-9a-f]{64})")


class KeyRefused(Exception):
    """The request has no key that opens the door; the message says what to do."""

    status = 401


@dataclass(frozen=True)
class StoredKey:
    """One entry of the setting. Keys are 256 random bits, so a fast hash is enough."""

    name: str
    salt: str
    digest: str


@lru_cache(maxsize=4)
def read_keys(setting: str) -> tuple[StoredKey, ...]:
    """Parse ``name:salt:sha256hex`` entries, separated by commas. Raises SettingsError, which quotes no value."""
    keys = []
    for number, entry in enumerate(filter(None, (part.strip() for part in setting.split(","))), 1):
        match = ENTRY.fullmatch(entry)
        if match is None:
            raise SettingsError(
                f"The app setting {SETTING} is malformed at entry {number}: each must be name:salt:sha256hex, as "
                "printed by python -m function_app.api_keys NAME."
            )
        keys.append(StoredKey(*match.groups()))
    return tuple(keys)


def check_key(authorization: str, setting: str) -> str:
    """Return the name of the key in an ``Authorization: Bearer …`` header.

    Takes the same time whichever key it is. Raises KeyRefused, or SettingsError for a malformed setting.
    """
    keys = read_keys(setting)
    if not keys:
        raise KeyRefused(
            "The chat API is closed because no key is configured. Run python -m function_app.api_keys NAME and put "
            f"what it prints into the app setting {SETTING}."
        )
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise KeyRefused("The request has no API key. Send it in the header Authorization: Bearer <key>.")
    name = ""
    for stored in keys:
        if hmac.compare_digest(digest(stored.salt, key.strip()), stored.digest):
            name = stored.name
    if not name:
        raise KeyRefused("The API key is not one that this app knows.")
    return name


def digest(salt: str, key: str) -> str:
    """Return what the setting keeps of a key: sha256(salt + key), in hexadecimal."""
    return hashlib.sha256(f"{salt}{key}".encode("utf-8", "replace")).hexdigest()

"""Who may chat and who may operate: the keys of two app settings, which keep only salted hashes of them."""

import hashlib
import hmac
import re
from dataclasses import dataclass
from functools import lru_cache

from .settings import SettingsError

ENTRY = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-f]{16,64}):([0-9a-f]{64})")


@dataclass(frozen=True)
class Door:
    """What keys open: how it is called, the app setting with its keys, and the command that makes one."""

    name: str
    setting: str
    command: str


CHAT = Door("chat API", "CHAT_API_KEYS", "python -m function_app.api_keys NAME")
OPERATIONS = Door("operations API", "OPERATOR_API_KEYS", "python -m function_app.api_keys --operator NAME")


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
def read_keys(setting: str, door: Door = CHAT) -> tuple[StoredKey, ...]:
    """Parse ``name:salt:sha256hex`` entries, separated by commas. Raises SettingsError, which quotes no value."""
    keys = []
    for number, entry in enumerate(filter(None, (part.strip() for part in setting.split(","))), 1):
        match = ENTRY.fullmatch(entry)
        if match is None:
            raise SettingsError(
                f"The app setting {door.setting} is malformed at entry {number}: each must be name:salt:sha256hex, as "
                f"printed by {door.command}."
            )
        keys.append(StoredKey(*match.groups()))
    return tuple(keys)


def check_key(authorization: str, setting: str, door: Door = CHAT) -> str:
    """Return the name of the key in an ``Authorization: Bearer …`` header.

    Takes the same time whichever key it is. Raises KeyRefused, or SettingsError for a malformed setting.
    """
    keys = read_keys(setting, door)
    if not keys:
        raise KeyRefused(
            f"The {door.name} is closed because no key is configured. Run {door.command} and put what it prints into "
            f"the app setting {door.setting}."
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

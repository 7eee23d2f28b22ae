"""Who may chat and who may operate: the keys of two app settings, which keep only salted hashes of them."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from .settings import SettingsError

ENTRY = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-f]{16,64}):([0-9a-f]{64})((?::[^:,]*)*)")
MODELS = re.compile(r":models=([a-z][a-z0-9-]{1,24}(?:\|[a-z][a-z0-9-]{1,24})*)")  # intake.MODEL_NAME, separated by |
CONCURRENCY = re.compile(r":concurrency=([1-9][0-9]{0,5})")
OPTIONS = re.compile(rf"(?:{MODELS.pattern})?(?:{CONCURRENCY.pattern})?")


@dataclass(frozen=True)
class Door:
    """What keys open: how it is called, the app setting with its keys, the command that makes one, and whether a key
    may be for some models only, and for so many answers at a time."""

    name: str
    setting: str
    command: str
    limits: bool = False

    @property
    def closed(self) -> str:
        """What is said while there is no key."""
        return (
            f"The {self.name} is closed because no key is configured. Run {self.command} and put what it prints into "
            f"the app setting {self.setting}."
        )


CHAT = Door("chat API", "CHAT_API_KEYS", "python -m function_app.api_keys NAME", limits=True)
OPERATIONS = Door("operations API", "OPERATOR_API_KEYS", "python -m function_app.api_keys --operator NAME")


class KeyRefused(Exception):
    """The request has no key (or token) that opens the door; the message says what to do."""

    status = 401


@dataclass(frozen=True)
class StoredKey:
    """One entry of the setting. Keys are 256 random bits, so a fast hash is enough.

    ``models`` None: all of them. ``concurrency`` None: any number of answers at a time.
    """

    name: str
    salt: str
    digest: str
    models: frozenset[str] | None = None
    concurrency: int | None = None


@lru_cache(maxsize=4)
def read_keys(setting: str, door: Door = CHAT) -> tuple[StoredKey, ...]:
    """Parse ``name:salt:sha256hex[:models=a|b][:concurrency=8]`` entries, separated by commas.

    Raises SettingsError, which quotes no value.
    """
    keys: dict[str, StoredKey] = {}
    for number, entry in enumerate(filter(None, (part.strip() for part in setting.split(","))), 1):
        key = _read_entry(entry, door)
        if key is None:
            form = "name:salt:sha256hex" + ("[:models=a|b][:concurrency=8]" if door.limits else "")
            raise SettingsError(
                f"The app setting {door.setting} is malformed at entry {number}: each must be {form}, as printed by "
                f"{door.command}."
            )
        if key.name in keys:
            # The log tells keys apart by their names.
            raise SettingsError(
                f"The app setting {door.setting} has the name of entry {number} twice: give each key a name of its "
                "own, also the new one beside the old that it replaces."
            )
        keys[key.name] = key
    return tuple(keys.values())


def _read_entry(entry: str, door: Door) -> StoredKey | None:
    match = ENTRY.fullmatch(entry)
    options = OPTIONS.fullmatch(match[4]) if match else None
    if match is None or options is None or (match[4] and not door.limits):
        return None
    models = frozenset(options[1].split("|")) if options[1] else None
    return StoredKey(match[1], match[2], match[3], models, int(options[2]) if options[2] else None)


def bearer(authorization: str) -> str:
    """Return what an ``Authorization: Bearer …`` header holds; nothing for another header."""
    scheme, _, secret = authorization.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def find_key(secret: str, keys: Sequence[StoredKey]) -> StoredKey | None:
    """Return the key that ``secret`` is. Takes the same time whichever it is, or none."""
    found = None
    for stored in keys:
        if hmac.compare_digest(digest(stored.salt, secret), stored.digest):
            found = stored
    return found


def check_key(authorization: str, setting: str, door: Door = CHAT) -> str:
    """Return the name of the key in an ``Authorization: Bearer …`` header.

    Raises KeyRefused, or SettingsError for a malformed setting.
    """
    keys = read_keys(setting, door)
    if not keys:
        raise KeyRefused(door.closed)
    secret = bearer(authorization)
    if not secret:
        raise KeyRefused("The request has no API key. Send it in the header Authorization: Bearer <key>.")
    key = find_key(secret, keys)
    if key is None:
        raise KeyRefused("The API key is not one that this app knows.")
    return key.name


def digest(salt: str, key: str) -> str:
    """Return what the setting keeps of a key: sha256(salt + key), in hexadecimal."""
    return hashlib.sha256(f"{salt}{key}".encode("utf-8", "replace")).hexdigest()

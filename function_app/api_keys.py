"""Makes a key for the chat API, or for the operations API. Nothing imports this module, so that it can be run.

Run as: python -m function_app.api_keys [--operator] [--models a,b] [--concurrency 8] NAME
"""

import argparse
import secrets
import sys

from .chat_keys import CHAT, OPERATIONS, Door, digest, read_keys
from .settings import SettingsError


def new_key(name: str, models: str | None = None, concurrency: int | None = None, door: Door = CHAT) -> tuple[str, str]:
    """Return a new random key and its entry for the setting.

    ``models``: those that it may use, separated by commas, if not all; ``concurrency``: how many answers at a time, if
    not any number. Raises ValueError.
    """
    key, salt = secrets.token_urlsafe(32), secrets.token_hex(8)
    entry = f"{name}:{salt}:{digest(salt, key)}"
    if models is not None:
        entry += f":models={'|'.join(part.strip() for part in models.split(','))}"
    if concurrency is not None:
        entry += f":concurrency={concurrency}"
    try:
        stored = read_keys(entry, door)
    except SettingsError:
        stored = ()
    if [key.name for key in stored] != [name]:
        raise ValueError(
            "The name may hold up to 64 letters, digits and the characters _ . - and the models must be names of "
            "models: lower-case letters, digits and hyphens. The concurrency is a number from 1 to 999999."
        )
    return key, entry


def main(arguments: list[str]) -> int:
    """Print a new key and its entry."""
    parser = argparse.ArgumentParser(prog="python -m function_app.api_keys", description="Make a key.")
    parser.add_argument("name", metavar="NAME", help="what the log calls the key; each key has another")
    parser.add_argument("--operator", action="store_true", help="a key for the operations API, not for the chat")
    parser.add_argument("--models", metavar="A,B", help="the models that it may use; default: all")
    parser.add_argument("--concurrency", type=int, metavar="N", help="how many answers at a time; default: any number")
    asked = parser.parse_args(arguments)
    door = OPERATIONS if asked.operator else CHAT
    if asked.operator and (asked.models, asked.concurrency) != (None, None):
        parser.error("--models and --concurrency are for keys of the chat, not for an --operator")
    try:
        key, entry = new_key(asked.name, asked.models, asked.concurrency, door)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The key, shown only now:\n  {key}\n")
    print(f"Add to the app setting {door.setting} (entries are separated by commas):\n  {entry}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

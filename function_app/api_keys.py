"""Makes a key for the chat API, or for the operations API. Nothing imports this module, so that it can be run.

Run as: python -m function_app.api_keys [--operator] NAME
"""

import secrets
import sys

from .chat_keys import CHAT, ENTRY, OPERATIONS, digest


def new_key(name: str) -> tuple[str, str]:
    """Return a new random key and its entry for the setting."""
    key, salt = secrets.token_urlsafe(32), secrets.token_hex(8)
    entry = f"{name}:{salt}:{digest(salt, key)}"
    if not ENTRY.fullmatch(entry):
        raise ValueError("The name may hold up to 64 letters, digits and the characters _ . -")
    return key, entry


def main(arguments: list[str]) -> int:
    """Print a new key and its entry."""
    door = OPERATIONS if arguments[:1] == ["--operator"] else CHAT
    if door is OPERATIONS:
        arguments = arguments[1:]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m function_app.api_keys [--operator] NAME", file=sys.stderr)
        return 2
    try:
        key, entry = new_key(arguments[0])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The key, shown only now:\n  {key}\n")
    print(f"Add to the app setting {door.setting} (entries are separated by commas):\n  {entry}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Access keys: who may call what, compared in constant time."""

import hmac
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .host_settings import AppError

AuthLevel = Literal["anonymous", "function", "admin"]


@dataclass(frozen=True)
class Keys:
    """The keys of one app. The master key opens everything; a host key, what is of level ``function``."""

    # Without reprs: a key must not reach a log through a traceback.
    master: str = field(repr=False)
    functions: tuple[str, ...] = field(repr=False)
    system: dict[str, str] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> "Keys":
        """Read ``{"masterKey", "functionKeys": {name: key}, "systemKeys": {name: key}}``. Raises AppError."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            keys = cls(raw["masterKey"], tuple(raw["functionKeys"].values()), dict(raw["systemKeys"]))
        except FileNotFoundError:
            raise AppError(f"The keys file {path} does not exist.") from None
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise AppError(
                f"The keys file {path} must be JSON with masterKey, functionKeys and systemKeys: {error!r}."
            ) from None
        every = (keys.master, *keys.functions, *keys.system.values())
        if not all(isinstance(key, str) and key for key in every):
            raise AppError(f"The keys file {path} holds a key that is empty or not a string.")
        return keys

    def allow(self, level: AuthLevel, presented: str | None) -> bool:
        """Whether ``presented`` opens a function of this authorisation level."""
        match level:
            case "anonymous":
                return True
            case "function":
                return _any_equal(presented, (self.master, *self.functions))
            case "admin":
                return _any_equal(presented, (self.master,))

    def allow_system(self, name: str, presented: str | None) -> bool:
        """Whether ``presented`` opens the extension webhook whose system key is ``name``."""
        return _any_equal(presented, (self.master, *(key for at, key in self.system.items() if at == name)))


def _any_equal(presented: str | None, keys: tuple[str, ...]) -> bool:
    # All are compared: stopping at the first match would tell which key it was.
    return sum(hmac.compare_digest((presented or "").encode(), key.encode()) for key in keys) > 0

"""host.json, and the application settings (environment variables) that bindings refer to."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_SETTING = re.compile(r"%([^%]+)%")
_TIMESPAN = re.compile(r"(?:(\d+)\.)?(\d{1,2}):(\d{2}):(\d{2}(?:\.\d+)?)")


class AppError(Exception):
    """The app cannot be loaded; the message says which file or function, and what to change."""


@dataclass(frozen=True)
class QueueOptions:
    """``extensions.queues`` of host.json, with the documented defaults; times in seconds."""

    batch_size: int = 16
    new_batch_threshold: int = 8
    max_dequeue_count: int = 5
    visibility_timeout: float = 0.0
    max_polling_interval: float = 60.0
    message_encoding: Literal["base64", "none"] = "base64"


@dataclass(frozen=True)
class HostSettings:
    """The parts of host.json that this host obeys."""

    route_prefix: str = "api"
    queues: QueueOptions = QueueOptions()


def read_host_json(app: Path) -> HostSettings:
    """Read ``host.json`` of the app folder. Raises AppError when it is missing or a value is malformed."""
    path = app / "host.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AppError(f"{path} does not exist; an app folder has a host.json holding at least"
                       ' {"version": "2.0"}.') from None  # fmt: skip
    except ValueError as error:
        raise AppError(f"{path} is not valid JSON: {error}.") from None
    if raw.get("version") != "2.0":
        raise AppError(f'{path} must hold "version": "2.0", found {raw.get("version")!r}.')
    extensions = raw.get("extensions", {})

    def seconds(name: str, default: str) -> float:
        return parse_timespan(queues.get(name, default), f"{path}: queues.{name}")

    queues = extensions.get("queues", {})
    batch_size = int(queues.get("batchSize", 16))
    if not 1 <= batch_size <= 32:
        raise AppError(f"{path}: extensions.queues.batchSize must be 1 to 32, found {batch_size}.")
    encoding = str(queues.get("messageEncoding", "base64")).lower()
    if encoding not in ("base64", "none"):
        raise AppError(f"{path}: queues.messageEncoding must be base64 or none, found {encoding!r}.")
    return HostSettings(
        route_prefix=str(extensions.get("http", {}).get("routePrefix", "api")).strip("/"),
        queues=QueueOptions(
            batch_size=batch_size,
            new_batch_threshold=int(queues.get("newBatchThreshold", batch_size // 2)),
            max_dequeue_count=int(queues.get("maxDequeueCount", 5)),
            visibility_timeout=seconds("visibilityTimeout", "00:00:00"),
            max_polling_interval=seconds("maxPollingInterval", "00:01:00"),
            message_encoding="none" if encoding == "none" else "base64",
        ),
    )


def parse_timespan(text: str, where: str) -> float:
    """Seconds of a .NET TimeSpan ``[d.]hh:mm:ss[.fff]``. Raises AppError naming ``where``."""
    match = _TIMESPAN.fullmatch(str(text))
    if match is None:
        raise AppError(f"{where} must look like hh:mm:ss, found {text!r}.")
    days, hours, minutes, seconds = match.groups()
    return int(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def resolve_settings(binding: dict[str, Any], settings: Mapping[str, str], function: str) -> dict[str, Any]:
    """``binding`` with each ``%NAME%`` in its strings replaced by that setting.

    Raises AppError for a setting that is not set.
    """

    def value_of(match: re.Match[str]) -> str:
        try:
            return settings[match[1]]
        except KeyError:
            raise AppError(
                f"Function {function!r}: the setting {match[1]!r}, used as %{match[1]}% in its"
                f" {binding.get('type')} binding, is not set."
            ) from None

    def resolved(value: Any) -> Any:
        return _SETTING.sub(value_of, value) if isinstance(value, str) else value

    return {key: resolved(value) for key, value in binding.items()}

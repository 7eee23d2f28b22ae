"""Could the real service have answered so? The SDK's generated models decide, strictly.

The SDK itself is lenient: it skips what it does not know and lets required fields be missing. Here every answer that
reaches it is walked along its model's annotations: an unknown field, a missing required one, a value of another
type or outside its enumeration is a violation. So are an error without Azure's envelope and a long-running operation
without the headers by which the SDK follows it.
"""

import datetime
import importlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache
from typing import Any, get_args, get_origin

import isodate
from azure.core.pipeline.transport import RequestsTransport

CLIENTS = (
    "arm_ml_service", "runhistory", "dataset_dataplane", "model_dataplane", "registry_discovery", "workspace_dataplane",
)  # fmt: skip
ARM_HOST = re.compile(r"https://localhost:\d+/")
# What the service shows and the generated model lacks (recorded traffic).
RECORDED = {("RegistryDiscoveryDto", key) for key in ("registryId", "registryFqdns", "intellectualPropertyPublisher")}


def violations(annotation: Any, value: Any, path: str = "$", module: str = "") -> Iterator[str]:
    """What of ``value`` (parsed JSON) does not fit ``annotation``, a generated model or a type made of such."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any or annotation is object:
        return
    if origin in (typing.Union, types.UnionType):
        yield from _union(arguments, value, path)
    elif value is None:
        yield f"{path}: null, but {_name(annotation)} is required"
    elif origin in (list, typing.List):  # noqa: UP006 - the models of older clients use it
        if not isinstance(value, list):
            yield f"{path}: {_shown(value)} is no list"
            return
        for index, item in enumerate(value):
            yield from violations(arguments[0], item, f"{path}[{index}]")
    elif origin in (dict, typing.Dict) or annotation is dict:  # noqa: UP006
        if not isinstance(value, dict):
            yield f"{path}: {_shown(value)} is no object"
            return
        for key, item in value.items() if arguments else ():
            yield from violations(arguments[1], item, f"{path}.{key}")
    elif origin is typing.Literal:
        allowed = [item.value if isinstance(item, Enum) else item for item in arguments]
        if value not in allowed:
            yield f"{path}: {_shown(value)} is none of {allowed}"
    elif isinstance(annotation, type) and any(base.__name__ == "Model" for base in annotation.__mro__):
        yield from _model(annotation, value, path)
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        if value not in [item.value for item in annotation]:
            yield f"{path}: {_shown(value)} is no {annotation.__name__}"
    else:
        yield from _primitive(annotation, value, path)


def _union(arguments: tuple[Any, ...], value: Any, path: str) -> Iterator[str]:
    if value is None and type(None) in arguments:
        return
    choices = [choice for choice in arguments if choice is not type(None)]
    enumerations = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, Enum)]
    if enumerations:  # Union[str, SomeEnum]: the string stands for values of later versions; we are this version
        choices = enumerations
    found = [list(violations(choice, value, path)) for choice in choices]
    if all(found):
        yield from min(found, key=len)


def _model(model: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {_shown(value)} is no {model.__name__}"
        return
    model, wrong = _subclass(model, value)
    if wrong:
        yield f"{path}: {wrong}"
        return
    fields = _fields(model)
    for key in value.keys() - fields.keys() - {name for owner, name in RECORDED if owner == model.__name__}:
        yield f"{path}.{key}: {model.__name__} has no such field"
    for key, annotation in fields.items():
        if key in value:
            yield from violations(annotation, value[key], f"{path}.{key}")
        elif type(None) not in get_args(annotation) and _is_readable(_all_fields(model)[key]):
            yield f"{path}.{key}: missing, but {model.__name__} requires it"


def _is_readable(field: Any) -> bool:
    """Whether answers show the field at all: the secrets of a datastore are only written."""
    return field._visibility is None or "read" in field._visibility


def _subclass(model: Any, value: dict[str, Any]) -> tuple[Any, str]:
    """The class that the discriminator names, one level after the other, and what is wrong with it."""
    while mapping := model.__dict__.get("__mapping__"):
        names = [field._rest_name for field in _all_fields(model).values() if field._is_discriminator]
        if not names:
            break
        discriminator = value.get(names[-1])
        if discriminator not in mapping:
            return model, f"{names[-1]} {_shown(discriminator)} is none of {sorted(map(str, mapping))}"
        if mapping[discriminator] is model:
            break
        model = mapping[discriminator]
    return model, ""


@cache
def _all_fields(model: Any) -> dict[str, Any]:
    """The fields of a model and of what it inherits from, by their names in JSON."""
    return {
        field._rest_name_input or name: field
        for base in reversed(model.__mro__)
        for name, field in vars(base).items()
        if type(field).__name__ == "_RestField"
    }


@cache
def _fields(model: Any) -> dict[str, Any]:
    """The annotations of a model's fields, resolved, by their names in JSON."""
    fields: dict[str, Any] = {}
    for base in reversed(model.__mro__):
        if "_restclient" not in base.__module__ or "models" not in base.__module__:
            continue
        module = importlib.import_module(base.__module__)
        scope = {**vars(typing), **vars(module), "_models": importlib.import_module(module.__package__ or "")}
        for name, field in vars(base).items():
            if type(field).__name__ == "_RestField":
                holder = types.SimpleNamespace(__annotations__={"field": base.__annotations__[name]})
                fields[field._rest_name_input or name] = typing.get_type_hints(holder, scope)["field"]
    return fields


def _primitive(annotation: Any, value: Any, path: str) -> Iterator[str]:
    parse: Callable[[Any], Any] | None = {
        datetime.datetime: isodate.parse_datetime,
        datetime.date: isodate.parse_date,
        datetime.timedelta: isodate.parse_duration,
    }.get(annotation)
    if parse is not None:
        try:
            parse(value)
        except (ValueError, TypeError, AttributeError):
            yield f"{path}: {_shown(value)} is no {annotation.__name__}"
        return
    allowed = {float: (int, float), bytes: (str,)}.get(annotation, (annotation,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and annotation is not bool):
        yield f"{path}: {_shown(value)} is no {_name(annotation)}"


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


class Oracle:
    """What the SDK was told while ``watch`` was active, and what of it was wrong."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.calls: set[tuple[str, str, int]] = set()  # method, path, status
        self.models: set[str] = set()
        self._path = ""

    def answered(self, method: str, url: str, status: int, headers: Any, body: bytes) -> None:
        """Note one answer of Resource Manager, and judge what has no model: errors and operations' headers."""
        if not ARM_HOST.match(url):
            return
        path = ARM_HOST.sub("/", url).partition("?")[0]
        self._path = f"{method} {path}"
        self.calls.add((method, path, status))
        if path.startswith(("/inference/", "/metadata/", "/_emulator/")):
            return
        if status >= 400:
            self._judge_error(status, body)
        elif "azure-asyncoperation" in headers and headers.get("Retry-After") != "1":
            self._report("Retry-After: the SDK's poller sleeps 30 s without it")

    def _judge_error(self, status: int, body: bytes) -> None:
        from azure.ai.ml._restclient.arm_ml_service.models import ErrorResponse

        try:
            parsed = json.loads(body)
        except ValueError:
            self._report(f"{status}: the body is no JSON")
            return
        for violation in violations(ErrorResponse, parsed):
            self._report(f"{status}: {violation}")
        error = parsed.get("error") or {}
        if not error.get("code") or not error.get("message"):
            self._report(f"{status}: code or message is missing")

    def deserialized(self, annotation: Any, value: Any) -> None:
        """Judge an answer that the SDK is about to turn into ``annotation``."""
        if not isinstance(value, dict | list):
            return
        self.models.add(_name(annotation))
        for violation in violations(annotation, value):
            self._report(f"{_name(annotation)} {violation}")

    def _report(self, violation: str) -> None:
        self.violations.append(f"{self._path}: {violation}")


@contextmanager
def watch(oracle: Oracle) -> Iterator[Oracle]:
    """Put ``oracle`` between the SDK's transport, its generated clients, and what they make of an answer."""
    saved: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, new: Any) -> None:
        saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, new)

    def listening(original: Callable[..., Any]) -> Callable[..., Any]:
        def deserialize(annotation: Any, value: Any, *arguments: Any, **options: Any) -> Any:
            oracle.deserialized(annotation, value)
            return original(annotation, value, *arguments, **options)

        return deserialize

    send = RequestsTransport.send

    def sending(self: RequestsTransport, request: Any, **options: Any) -> Any:
        response = send(self, request, **options)
        # A streamed answer is read here only when it is an error; requests keeps what it has read.
        body = response.internal_response.content if response.status_code >= 400 else b""
        oracle.answered(request.method, request.url, response.status_code, response.headers, body)
        return response

    replace(RequestsTransport, "send", sending)
    for client in CLIENTS:
        module = importlib.import_module(f"azure.ai.ml._restclient.{client}.operations._operations")
        replace(module, "_deserialize", listening(module._deserialize))
    try:
        yield oracle
    finally:
        for owner, name, original in reversed(saved):
            setattr(owner, name, original)

"""Loads a function app the way the Python v2 worker does, and refuses what this host cannot run."""

import importlib
import importlib.util
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import azure.functions as func

from .host_settings import AppError, resolve_settings
from .signatures import check_signature

log = logging.getLogger(__name__)

TRIGGERS = ("httpTrigger", "eventGridTrigger", "queueTrigger", "timerTrigger")


@dataclass(frozen=True)
class LoadedFunction:
    """One indexed function: what to call, what triggers it, and which of its parameters gets what."""

    name: str
    call: Callable[..., Any]
    trigger: Mapping[str, Any]
    bindings: tuple[Mapping[str, Any], ...]
    parameter: str
    # The binding whose converter decodes the data: "generic" for a parameter annotated str or bytes.
    converter: str
    wants_context: bool
    is_async: bool
    has_return: bool
    return_type: type | None
    retry: Mapping[str, Any] | None

    @property
    def kind(self) -> str:
        return str(self.trigger["type"])


@dataclass(frozen=True)
class LoadedApp:
    """The functions of an app folder."""

    folder: Path
    functions: tuple[LoadedFunction, ...]
    # True when the app imported azurefunctions-extensions-http-fastapi: its HTTP functions use those types.
    http_streaming: bool

    def of_kind(self, kind: str) -> list[LoadedFunction]:
        return [function for function in self.functions if function.kind == kind]


def load_app(folder: Path, settings: Mapping[str, str]) -> LoadedApp:
    """Import the app in ``folder`` and index its functions.

    The worker looks for the *file* function_app.py, then imports the *module* function_app, so a package of
    that name wins over the file. One bad function fails the whole app. Raises AppError.
    """
    folder = folder.resolve()
    if not (folder / "function_app.py").is_file():
        # Azure reports zero functions here and no error, which has cost people days: say it.
        raise AppError(
            f"{folder / 'function_app.py'} does not exist; the worker looks for that file first and finds no"
            " functions without it, even when there is a package function_app/."
        )
    module = _import_function_app(folder)
    apps = [name for name, value in vars(module).items() if isinstance(value, func.FunctionRegister)]
    if len(apps) != 1:
        raise AppError(
            f"{module.__file__} must bind exactly one top-level name to a FunctionApp;"
            f" found {len(apps)}{': ' + ', '.join(apps) if apps else ''}."
        )
    try:
        declared = getattr(module, apps[0]).get_functions()
    except ValueError as error:
        raise AppError(f"{module.__file__}: {error}") from None
    streaming = _http_streaming_enabled()
    functions = tuple(_index(function, settings, streaming) for function in declared)
    if not functions:
        log.warning("event=index outcome=empty message=%r", f"{module.__file__} declares no functions")
    return LoadedApp(folder, functions, streaming)


def _import_function_app(folder: Path) -> Any:
    sys.path.insert(0, str(folder))
    # Core Tools start the worker in the app folder, and apps open files by relative path.
    os.chdir(folder)
    spec = importlib.util.find_spec("function_app")
    if spec is None or spec.origin is None or folder not in Path(spec.origin).resolve().parents:
        raise AppError(f"The module function_app is found at {spec and spec.origin}, not in {folder}.")
    try:
        return importlib.import_module("function_app")
    except Exception as error:
        # The app's own code failed: its traceback is what the person needs.
        log.exception("event=import outcome=failed file=%s", spec.origin)
        raise AppError(f"{spec.origin} failed on import: {type(error).__name__}: {error}") from error


def _http_streaming_enabled() -> bool:
    base = sys.modules.get("azurefunctions.extensions.base")
    if base is None or not base.HttpV2FeatureChecker.http_v2_enabled():
        return False
    if sys.version_info < (3, 13) and os.environ.get("PYTHON_ENABLE_INIT_INDEXING") != "1":
        log.warning(
            "event=index message=%r",
            "in Azure, streaming HTTP on this Python needs the app setting PYTHON_ENABLE_INIT_INDEXING=1",
        )
    return True


def _index(function: Any, settings: Mapping[str, str], streaming: bool) -> LoadedFunction:
    name = function.get_function_name()
    # The binding as the host sees it: plain JSON, enums as their names.
    bindings = [resolve_settings(json.loads(raw), settings, name) for raw in function.get_raw_bindings()]
    trigger = bindings[function.get_bindings().index(function.get_trigger())]
    if trigger["type"] not in TRIGGERS:
        raise AppError(
            f"Function {name!r}: the local host does not run the trigger {trigger['type']!r};"
            f" it runs {', '.join(TRIGGERS)}."
        )
    for binding in bindings:
        if binding is not trigger and (binding["type"], binding["name"]) != ("http", "$return"):
            raise AppError(
                f"Function {name!r}: the local host does not support the binding {binding['name']!r} of type"
                f" {binding['type']!r}; only triggers and an http $return. Use the service's SDK."
            )
    has_return = any(binding["name"] == "$return" for binding in bindings)
    call = function.get_user_function()
    signature = check_signature(name, call, trigger, has_return, streaming)
    return LoadedFunction(
        name=name,
        call=call,
        trigger=trigger,
        bindings=tuple(bindings),
        parameter=trigger["name"],
        converter=signature.converter,
        wants_context=signature.wants_context,
        is_async=inspect.iscoroutinefunction(call),
        has_return=has_return,
        return_type=signature.return_type,
        retry=function.get_settings_dict("retry_policy"),
    )

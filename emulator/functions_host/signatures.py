"""The worker's checks of a function's parameters and annotations against its bindings."""

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import azure.functions as func

from .host_settings import AppError


@dataclass(frozen=True)
class Signature:
    """What the worker learns from a function's signature."""

    converter: str
    wants_context: bool
    return_type: type | None


def check_signature(
    name: str, call: Callable[..., Any], trigger: Mapping[str, Any], has_return: bool, streaming: bool
) -> Signature:
    """Check ``call`` as the worker does at index time; ``streaming`` is whether the FastAPI types rule.

    Raises AppError, worded like the worker's FunctionLoadError.
    """

    def wrong(problem: str) -> AppError:
        return AppError(f"Cannot load the function {name!r}: {problem}.")

    parameters = set(inspect.signature(call).parameters)
    try:
        annotations = typing.get_type_hints(call)
    except Exception as error:  # whatever an annotation raises when it is evaluated
        raise wrong(f"its annotations cannot be evaluated: {type(error).__name__}: {error}") from None
    wants_context = "context" in parameters and trigger["name"] != "context"
    if wants_context:
        parameters.discard("context")
        annotation = annotations.get("context")
        if annotation is not None and getattr(annotation, "__name__", "") != "Context":
            raise wrong(f'the "context" parameter must be an azure.functions.Context, not {annotation!r}')
    if extra := parameters - {trigger["name"]}:
        raise wrong(f"the parameters {sorted(extra)} are declared in Python but bound by no decorator")
    if trigger["name"] not in parameters:
        raise wrong(f"the decorator binds {trigger['name']!r}, which is not a parameter of the function")

    decoder = trigger["type"]
    if trigger["name"] in annotations:
        annotation = annotations[trigger["name"]]
        if not isinstance(annotation, type):
            raise wrong(f"the binding {trigger['name']!r} has the invalid non-type annotation {annotation!r}")
        if annotation in (str, bytes):
            decoder = "generic"
        elif not _accepts(decoder, annotation, streaming):
            raise wrong(
                f"the {decoder} binding {trigger['name']!r} does not match its annotation"
                f" {annotation.__name__!r}" + (_STREAMING_HINT if streaming and decoder == "httpTrigger" else "")
            )
    if decoder == "generic" and trigger["type"] == "httpTrigger":
        raise wrong("an HTTP function takes a request object, not str or bytes")
    return Signature(decoder, wants_context, _return_type(annotations, has_return, streaming, wrong))


_STREAMING_HINT = (
    " (the app imports azurefunctions-extensions-http-fastapi, so every HTTP function must use its Request"
    " and Response types)"
)


def _return_type(
    annotations: Mapping[str, Any], has_return: bool, streaming: bool, wrong: Callable[[str], AppError]
) -> type | None:
    if not has_return or "return" not in annotations:
        return None
    annotation = annotations["return"]
    if not isinstance(annotation, type):
        raise wrong(f"it has the invalid non-type return annotation {annotation!r}")
    if streaming:
        base: Any = sys.modules["azurefunctions.extensions.base"]
        accepted = base.ResponseTrackerMeta.check_type(annotation)
    else:
        accepted = converter("http").check_output_type_annotation(annotation)
    if not accepted:
        raise wrong(f"its return annotation {annotation.__name__!r} does not match the binding type 'http'")
    return annotation


def _accepts(trigger_type: str, annotation: type, streaming: bool) -> bool:
    if streaming and trigger_type == "httpTrigger":
        base: Any = sys.modules["azurefunctions.extensions.base"]
        return bool(base.RequestTrackerMeta.check_type(annotation))
    return bool(converter(trigger_type).check_input_type_annotation(annotation))


def converter(binding_type: str) -> Any:
    """The converter that the worker uses for a binding type."""
    return func.get_binding_registry().get(binding_type)

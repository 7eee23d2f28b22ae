"""One step of a pipeline that runs a command, as the command job that it becomes."""

import re
from typing import Any

from ..store import Json
from .errors import bad_request
from .pipeline_bindings import BINDING, Scope
from .pipeline_components import MODES, Component

DISTRIBUTIONS = {"pytorch": "PyTorch", "mpi": "Mpi", "tensorflow": "TensorFlow"}
NUMBERS = ("instanceCount", "processCountPerInstance", "workerCount", "parameterServerCount")


def step_inputs(step: str, node: Json, scope: Scope) -> Json:
    """The inputs that a step is given, with their bindings replaced. An optional one without a value is left out."""
    inputs: Json = {}
    for name, given in (node.get("inputs") or {}).items():
        value = _input(step, name, given, scope)
        if value is not None:
            inputs[name] = value
    return inputs


def _input(step: str, name: str, given: Any, scope: Scope) -> Json | None:
    if not isinstance(given, dict):
        raise bad_request(f"Step '{step}': the input '{name}' must be an object.")
    given = camel(given)
    text = given.get("value") if given.get("jobInputType", "literal") == "literal" else given.get("uri")
    if text is None:
        return None
    mode = {"mode": given["mode"]} if given.get("mode") else {}
    if BINDING.fullmatch(str(text).strip()):
        value = scope.value(step, str(text))
        return {**value, **mode} if value is not None else None
    filled = scope.fill_in(step, str(text))
    if given.get("jobInputType", "literal") == "literal":
        return {"jobInputType": "literal", "value": filled, **mode}
    return {**given, "uri": filled}


def step_outputs(step: str, node: Json, component: Component, scope: Scope, place: str) -> Json:
    """The outputs of a step, each with the place where it will lie; ``place`` is the folder of those without one."""
    given = node.get("outputs") or {}
    for name in given.keys() - component.outputs.keys():
        known = ", ".join(sorted(component.outputs)) or "none"
        raise bad_request(f"Step '{step}': the component {component.name} has no output '{name}'; it has {known}.")
    outputs: Json = {}
    for name, declared in component.outputs.items():
        own = given.get(name) or {}
        if not isinstance(own, dict):
            raise bad_request(f"Step '{step}': the output '{name}' must be an object.")
        own = camel(own)
        kind = str(own.get("jobOutputType") or declared.get("type"))
        bound = scope.output(step, str(own["value"])) if own.get("value") else {}
        uri = own.get("uri") or bound.get("uri") or f"{place}/{name}{'' if kind == 'uri_file' else '/'}"
        output = {
            "jobOutputType": kind,
            "uri": scope.fill_in(step, uri),
            "mode": own.get("mode") or bound.get("mode") or MODES.get(str(declared.get("mode"))),
            "assetName": own.get("name") or own.get("assetName"),
            "assetVersion": own.get("version") or own.get("assetVersion"),
        }
        outputs[name] = {key: value for key, value in output.items() if value}
    return outputs


def command_settings(step: str, node: Json, component: Component, scope: Scope) -> Json:
    """What a component and the step that overrides it say of how the command runs, in Resource Manager's words."""
    spec = component.spec
    filled = scope.fill_in(step, {key: node.get(key) for key in ("resources", "distribution", "limits", "identity")})
    resources = {**camel(spec.get("resources") or {}), **camel(filled["resources"] or {})}
    settings: Json = {
        "command": spec.get("command"),
        "environmentId": _asset(spec.get("environment")),
        "codeId": _asset(spec.get("code")),
        "resources": _numbers(step, resources),
        "distribution": _distribution(step, filled["distribution"] or spec.get("distribution")),
        "limits": _limits(filled["limits"] or spec.get("limits")),
        "identity": camel(filled["identity"]) if filled["identity"] else None,
        "environmentVariables": scope.fill_in(step, node.get("environment_variables") or {}),
    }
    return {key: value for key, value in settings.items() if value}


def _asset(id: Any) -> Any:
    """An ARM id: components name their environment and code as ``azureml:/subscriptions/…``."""
    return id.removeprefix("azureml:") if isinstance(id, str) and id.startswith("azureml:/") else id


def _distribution(step: str, given: Any) -> Json | None:
    if not given:
        return None
    distribution = camel(given)
    kind = str(distribution.pop("distributionType", None) or distribution.pop("type", None))
    if kind.lower() not in DISTRIBUTIONS:
        raise bad_request(f"Step '{step}': the distribution '{kind}' is not known.")
    distribution.pop("type", None)
    return {"distributionType": DISTRIBUTIONS[kind.lower()], **_numbers(step, distribution)}


def _limits(given: Any) -> Json | None:
    timeout = (given or {}).get("timeout")
    if not timeout:
        return None
    return {"jobLimitsType": "Command", "timeout": f"PT{timeout}S" if str(timeout).isdecimal() else timeout}


def _numbers(step: str, given: Json) -> Json:
    """Texts that must be whole numbers as such: a component holds every value as text, and so does a binding."""
    result = dict(given)
    for key in NUMBERS:
        if key in result and result[key] is not None:
            if not str(result[key]).isdecimal():
                raise bad_request(f"Step '{step}': {key} must be a whole number, not '{result[key]}'.")
            result[key] = int(result[key])
    return result


def camel(given: Json) -> Json:
    """``instance_count`` → ``instanceCount``: the SDK writes steps in its own words, not Resource Manager's."""
    return {re.sub(r"_([a-z])", lambda match: match[1].upper(), key): value for key, value in given.items()}

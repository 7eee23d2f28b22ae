"""The component behind a step of a pipeline: of the workspace, or of the registry."""

import re
from dataclasses import dataclass

from ..registry import find_registry_asset
from ..store import Json
from .errors import bad_request
from .routing import Call, short_id

REGISTRY = "azureml://registries/"
SHORT = re.compile(r"([^:/]+):([^:/]+)")  # how the SDK names the component that a whole pipeline is
LITERALS = ("string", "integer", "number", "boolean")
MODES = {
    "ro_mount": "ReadOnlyMount",
    "rw_mount": "ReadWriteMount",
    "download": "Download",
    "upload": "Upload",
    "direct": "Direct",
    "eval_mount": "EvalMount",
    "eval_download": "EvalDownload",
}


@dataclass(frozen=True)
class Component:
    """What a step takes, gives and runs."""

    id: str
    spec: Json

    @property
    def inputs(self) -> Json:
        inputs: Json = self.spec.get("inputs") or {}
        return inputs

    @property
    def outputs(self) -> Json:
        outputs: Json = self.spec.get("outputs") or {}
        return outputs

    @property
    def name(self) -> str:
        return self.id.split("/versions/")[0].rpartition("/")[2]

    @property
    def registered(self) -> bool:
        """Whether it belongs to a registry, which keeps its steps to itself."""
        return self.id.startswith(REGISTRY)


def find_component(call: Call, step: str, id: object) -> Component:
    """The component with this id. Raises ArmError."""
    if not isinstance(id, str) or not id:
        raise bad_request(f"Step '{step}' needs a 'componentId'.")
    id = id.removeprefix("azureml:") if not id.startswith(REGISTRY) else id
    if named := SHORT.fullmatch(id):
        id = f"{call.workspace_id}/components/{named[1]}/versions/{named[2]}"
    if id.startswith(REGISTRY):
        found = find_registry_asset(call.control, id)
    else:
        found = call.control.store.get(id) if "/components/" in id else None
    if found is None:
        where = id if id.startswith(REGISTRY) else f"'{short_id(id) or id}'"
        raise bad_request(f"Step '{step}': the component {where} does not exist.", "NotFound")
    return Component(found.id, found.properties["componentSpec"])


def given_inputs(step: str, component: Component, given: Json) -> Json:
    """What a component's inputs are, defaults and all, as Resource Manager writes a job's inputs. Raises ArmError.

    ``given`` are those of the step, with their bindings replaced.
    """
    for name in given.keys() - component.inputs.keys():
        known = ", ".join(sorted(component.inputs)) or "none"
        raise bad_request(f"Step '{step}': the component {component.name} has no input '{name}'; it has {known}.")
    result: Json = {}
    for name, declared in component.inputs.items():
        value = given.get(name)
        if value is None and declared.get("default") is not None:
            value = {"jobInputType": "literal", "value": str(declared["default"])}
        if value is None:
            if str(declared.get("optional")).lower() != "true":
                raise bad_request(f"Step '{step}' needs a value for the input '{name}'.")
            continue
        result[name] = _as_declared(step, name, declared, value)
    return result


def _as_declared(step: str, name: str, declared: Json, value: Json) -> Json:
    literal, kind = value.get("jobInputType") == "literal", str(declared.get("type"))
    if kind in LITERALS:
        if not literal:
            raise bad_request(f"Step '{step}': the input '{name}' takes a {kind}, but is given a {_kind(value)}.")
        _check_literal(step, name, declared, str(value.get("value")))
        return value
    if literal:  # a path as plain text
        value = {"uri": str(value.get("value"))}
    mode = value.get("mode") or MODES.get(str(declared.get("mode")))
    return {**value, "jobInputType": kind, **({"mode": mode} if mode else {})}


def _kind(value: Json) -> str:
    return str(value.get("jobInputType"))


def _check_literal(step: str, name: str, declared: Json, value: str) -> None:
    """The type, the choices and the bounds that a component names for a literal."""
    where = f"Step '{step}': the input '{name}'"
    choices = [str(choice) for choice in declared.get("enum") or []]
    if choices and value.lower() not in (choice.lower() for choice in choices):
        raise bad_request(f"{where} is '{value}'; it must be one of {', '.join(choices)}.")
    if declared["type"] not in ("integer", "number"):
        return
    try:
        number = int(value) if declared["type"] == "integer" else float(value)
    except ValueError:
        raise bad_request(f"{where} must be a {declared['type']}, not '{value}'.") from None
    low, high = float(declared.get("min") or "-inf"), float(declared.get("max") or "inf")
    if not low <= number <= high:
        raise bad_request(f"{where} is {value}; it must be from {low:g} to {high:g}.")

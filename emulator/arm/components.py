"""Components: what a step of a pipeline takes, gives and runs, as the service writes it down."""

import re
from typing import Any

from ..store import Json, Resource
from .asset_kinds import BASE, Kind
from .errors import bad_request
from .routing import Call

CURATED = re.compile(r"azureml:(AzureML-[^:/]+):([^:/]+)")  # an environment of the registry by its old short name
CONTENT = ("type", "command", "code", "environment", "inputs", "outputs", "jobs", "resources", "distribution", "task")


def normalised_spec(spec: Json) -> Json:
    """What the service makes of a component's specification: defaults filled in, and every value text."""
    full: Json = {"is_deterministic": spec.get("type") != "pipeline", **spec}
    for private in ("_source", "sourceJobId"):
        full.pop(private, None)
    inputs = _objects(full, "inputs")
    if inputs:
        full["inputs"] = {name: {"optional": False, **value} for name, value in inputs.items()}
    if not _objects(full, "outputs"):
        full.pop("outputs", None)
    if spec.get("type") == "command":
        given = spec.get("resources") or {}
        if not isinstance(given, dict):
            raise bad_request("The component's resources must be an object.")
        resources = {k: v for k, v in given.items() if v is not None}
        full["resources"] = {"instance_count": 1, **resources}
    environment = full.get("environment")
    if isinstance(environment, str) and (match := CURATED.fullmatch(environment)):
        full["environment"] = f"azureml://registries/azureml/environments/{match[1]}/versions/{match[2]}"
    jobs = full.pop("jobs", None)
    text: Json = _as_text(full)
    return {**text, "jobs": jobs} if jobs else text


def _objects(spec: Json, key: str) -> Json:
    """The inputs or outputs. Raises ArmError when they are not objects by name."""
    ports = spec.get(key) or {}
    if not isinstance(ports, dict) or not all(isinstance(port, dict) for port in ports.values()):
        raise bad_request(f"The component's {key} must be objects by name.")
    return ports


def _as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return value if isinstance(value, str) else str(value)


async def _normalised(call: Call, given: Json, existing: Resource | None) -> Json:
    spec = given["componentSpec"]
    if not isinstance(spec.get("type"), str):
        raise bad_request("The component's specification needs 'type', such as command or pipeline.")
    anonymous = given.get("isAnonymous", False)
    if not anonymous:
        spec = {**spec, "name": call.params["name"], "version": call.params["version"]}
    stored = normalised_spec(spec)
    if existing is not None and "jobs" not in stored and "jobs" in existing.properties["componentSpec"]:
        stored["jobs"] = existing.properties["componentSpec"]["jobs"]  # no answer showed them, so none come back
    # The description is shown within the specification only.
    return {**BASE, **given, "description": None, "componentSpec": stored, "provisioningState": "Succeeded"}


def _shown(_: Call, component: Resource) -> Resource:
    """Without the steps of a pipeline, which the service keeps to itself."""
    component.properties["componentSpec"].pop("jobs", None)
    return component


COMPONENTS = Kind(
    plural="components",
    singular="component",
    needs=("componentSpec",),
    accepts=("componentSpec",),
    immutable=CONTENT,
    container={"description": "", "tags": {}, "properties": {}, "provisioningState": "Succeeded"},
    normalised=_normalised,
    shown=_shown,
)

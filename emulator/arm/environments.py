"""Environments: an image or a build context with conda dependencies, and the label of the latest version."""

import asyncio
import json

import yaml

from ..store import Json, Resource
from .asset_kinds import BASE, Kind
from .errors import bad_request
from .routing import MAX_NESTING, Call

CHOICES = {"osType": ("Linux", "Windows"), "autoRebuild": ("Disabled", "OnBaseImageUpdate")}


async def _normalised(_: Call, given: Json, __: Resource | None) -> Json:
    if given.get("image") and given.get("build"):
        raise bad_request("An environment is made from an image or from a build context; give one of the two.")
    for field, values in CHOICES.items():
        if given.get(field, values[0]) not in values:
            raise bad_request(f"{field} '{given[field]}' is not known; use {' or '.join(values)}.")
    content: Json = {"condaFile": ""}
    if given.get("condaFile"):
        content["condaFile"] = await _conda_as_json(given["condaFile"])
    if build := given.get("build"):
        if not isinstance(build.get("contextUri"), str):
            raise bad_request("The build context needs 'contextUri'.")
        content["build"] = {
            "contextUri": build["contextUri"],
            "dockerfilePath": str(build.get("dockerfilePath") or "Dockerfile"),
        }
    anonymous, archived = given.get("isAnonymous", False), given.get("isArchived", False)
    return {
        **BASE,
        "environmentType": "UserCreated",
        "osType": "Linux",
        "autoRebuild": "Disabled",
        **given,
        **content,
        "stage": "Archived" if archived else "Logged" if anonymous else "Development",
        "provisioningState": "Succeeded",
    }


async def _conda_as_json(text: str) -> str:
    """The service stores the YAML of a conda file as JSON."""
    try:
        await asyncio.to_thread(_check_yaml, text)
        return json.dumps(await asyncio.to_thread(yaml.safe_load, text), indent=2)
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise bad_request(f"condaFile is not valid YAML: {error}") from None


def _check_yaml(text: str) -> None:
    """Refuse what takes no end to read. Raises ArmError."""
    depth = 0
    for event in yaml.parse(text):
        # An alias may stand for so much that its JSON fits nowhere.
        if isinstance(event, yaml.AliasEvent):
            raise bad_request("condaFile must not use YAML aliases (*name); write out what they stand for.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_NESTING:
            raise bad_request(f"condaFile is nested deeper than {MAX_NESTING} levels.")


def _shown(call: Call, version: Resource) -> Resource:
    """With the label that its newest version carries."""
    container = call.control.store.get(version.id.rpartition("/versions/")[0])
    latest = container is not None and container.properties["latestVersion"] == version.name
    version.properties["properties"] = {
        **version.properties["properties"],
        "azureml.labels": "latest" if latest else "",
    }
    return version


ENVIRONMENTS = Kind(
    plural="environments",
    singular="environment",
    needs=("image", "build"),
    accepts=("image", "build", "condaFile", "osType", "autoRebuild", "inferenceConfig"),
    immutable=("image", "build", "condaFile", "osType", "inferenceConfig"),
    container={"description": "", "tags": {}, "properties": {}, "provisioningState": "Succeeded"},
    normalised=_normalised,
    shown=_shown,
    updated=201,  # as recorded: the service says so of an update too
)

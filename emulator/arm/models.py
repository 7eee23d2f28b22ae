"""Models: flavors from the MLmodel file, stages, and what is refused of them."""

import asyncio
from typing import Any

import yaml
from azure.core.exceptions import AzureError
from starlette.responses import Response

from ..storage import UriError
from ..store import Json, Resource
from .asset_kinds import BASE, Kind
from .asset_uris import stored_uri
from .errors import ArmError, bad_request
from .routing import WORKSPACE, Call, Coverage, route

MAX_MLMODEL = 1024 * 1024  # bytes


async def _normalised(call: Call, given: Json, existing: Resource | None) -> Json:
    uri, job = stored_uri(call, given["modelUri"])
    before = existing.properties if existing else {}
    kind = given.get("modelType", before.get("modelType", "custom_model"))
    archived = given.get("isArchived", False)
    stage = given.get("stage") or before.get("stage")
    if archived:
        stage = "Archived"
    elif stage in (None, "Archived"):
        stage = "Development"
    flavors = given.get("flavors") or before.get("flavors")
    if not all(
        isinstance(flavor, dict) and isinstance(flavor.get("data"), dict) for flavor in (flavors or {}).values()
    ):
        raise bad_request("Each flavor must be an object with an object 'data'.")
    if not flavors and kind == "mlflow_model" and existing is None:
        flavors = await _flavors(call, uri)
    return {
        **BASE,
        **given,
        "flavors": flavors or {},  # never null: the SDK iterates over it
        "modelType": kind,
        "modelUri": uri,
        "jobName": job or given.get("jobName") or before.get("jobName"),
        "stage": stage,
        "provisioningState": "Succeeded",
    }


async def _flavors(call: Call, uri: str) -> Json:
    """The flavors that the model's MLmodel file names; none when there is no such file."""
    try:
        location = call.control.locate(uri).join("MLmodel")
        blob = call.control.storage.container(location.container).get_blob_client(location.path)
        text = await (await blob.download_blob(offset=0, length=MAX_MLMODEL)).readall()
        described = await asyncio.to_thread(yaml.safe_load, text)
    except (UriError, AzureError, yaml.YAMLError):
        return {}
    flavors = described.get("flavors") if isinstance(described, dict) else None
    if not isinstance(flavors, dict):
        return {}
    return {str(name): {"data": _data(settings)} for name, settings in flavors.items()}


def _data(settings: Any) -> dict[str, str]:
    """A flavor's settings as the service keeps them: text."""
    # Guess: of an MLmodel's flavors the service keeps what is no list or object
    rows = settings.items() if isinstance(settings, dict) else ()
    return {str(key): str(value) for key, value in rows if value is not None and not isinstance(value, dict | list)}


def _check_version(version: str) -> None:
    if not version.isdecimal() or int(version) < 1:
        # Guess: the words with which a model version that is no positive integer is refused.
        raise bad_request(f"Model version '{version}' is invalid: the version of a model must be a positive integer.")


MODELS = Kind(
    plural="models",
    singular="model",
    needs=("modelUri",),
    accepts=("modelUri", "modelType", "flavors", "stage", "jobName", "datasets"),
    immutable=("modelUri", "modelType"),
    container={"description": None, "tags": {}, "properties": {}, "provisioningState": "Succeeded"},
    normalised=_normalised,
    check_version=_check_version,
)


@route(
    "POST",
    WORKSPACE + "/models/{name}/versions/{version}/package",
    "models: package",
    coverage=Coverage.REFUSED,
    note="a package is an image, and none is built here",
)
async def package_model(_: Call) -> Response:
    raise ArmError(
        400,
        "UserError",
        "Model packages are images, which the local Azure does not build; deploy the model itself instead.",
        "NotSupported",
    )

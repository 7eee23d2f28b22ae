"""Data assets: a file, a folder or an MLTable, by the place where it lies."""

from ..store import Json, Resource
from .asset_kinds import BASE, Kind
from .asset_uris import stored_uri
from .errors import bad_request
from .routing import Call

TYPES = ("uri_file", "uri_folder", "mltable")


def check_type(given: Json) -> None:
    """Raises ArmError for a type that data cannot have."""
    if given.get("dataType") not in TYPES:
        raise bad_request(f"dataType '{given.get('dataType')}' is not known; use {', '.join(TYPES)}.")


async def _normalised(call: Call, given: Json, _: Resource | None) -> Json:
    check_type(given)
    uri, _job = stored_uri(call, given["dataUri"], groups="resourcegroups")
    if given["dataType"] != "uri_file" and uri.startswith("azureml://") and not uri.endswith("/"):
        uri += "/"
    return {**BASE, **given, "dataUri": uri}


DATA = Kind(
    plural="data",
    singular="data",
    needs=("dataUri",),
    accepts=("dataUri", "dataType", "referencedUris"),
    immutable=("dataUri", "dataType"),
    container={"description": None, "tags": None, "properties": None},
    normalised=_normalised,
)

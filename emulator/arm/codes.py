"""Codes: folders of scripts, uploaded first, found again by the hash of their content, whatever they are called."""

import base64
import hashlib

from starlette.responses import JSONResponse, Response

from ..config import BLOB_HOST
from ..storage import UriError
from ..store import Json, Resource
from .asset_kinds import BASE, Kind
from .errors import bad_request
from .routing import WORKSPACE, Call, route


async def _normalised(call: Call, given: Json, _: Resource | None) -> Json:
    try:
        location = call.control.locate(given["codeUri"])
    except UriError as error:
        raise bad_request(str(error)) from None
    # The SDK downloads code from an address of this form only; it leads to Azurite by the proxy.
    uri = f"https://{BLOB_HOST}:443/{location.container}/{location.path}"
    return {**BASE, **given, "codeUri": uri, "provisioningState": "Succeeded"}


def _row(call: Call, content_hash: str) -> str:
    return f"{call.workspace_id}/codeHashes/{content_hash}"


def _index(call: Call, code: Resource) -> None:
    if content_hash := code.properties["properties"].get("hash_sha256"):
        call.control.store.put(_row(call, content_hash), {"properties": {"code": code.id}})


def find_by_hash(call: Call, content_hash: str) -> list[Resource]:
    """The code with this content. The SDK makes up a new name for each look-up, so names do not matter."""
    row = call.control.store.get(_row(call, content_hash))
    code = call.control.store.get(row.properties["code"]) if row else None
    return [code] if code and not code.properties["isArchived"] else []


CODES = Kind(
    plural="codes",
    singular="code",
    needs=("codeUri",),
    accepts=("codeUri",),
    immutable=("codeUri",),
    container=None,  # codes are asked for by name and version, or by their content
    normalised=_normalised,
    index=_index,
)


@route("POST", WORKSPACE + "/codes/{name}/versions/{version}/startPendingUpload", "codes: start an upload")
async def start_upload(call: Call) -> Response:
    """A container of the version's own to upload into, and the signature that opens it."""
    storage = call.control.storage
    # A container's name is shorter and of fewer characters than a code's may be.
    digest = hashlib.sha256(call.request.url.path.lower().encode()).digest()
    container = f"code-{base64.b32encode(digest).decode().lower().rstrip('=')}"
    await storage.ensure_container(container)
    return JSONResponse(
        {
            "pendingUploadType": "TemporaryBlobReference",
            "blobReferenceForConsumption": {
                "blobUri": f"{storage.url}/{container}",
                "storageAccountArmId": "",
                "credential": {"credentialType": "SAS", "sasUri": storage.sas(container)},
            },
        }
    )

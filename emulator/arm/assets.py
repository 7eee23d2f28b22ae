"""Versioned assets: code, environments, models and data, each a container of versions."""

from starlette.responses import JSONResponse, Response

from ..store import Json, Resource
from .errors import ArmError, bad_request, not_found
from .routing import WORKSPACE, Call, page, route, show

KINDS = ("codes", "environments", "models", "data")
SINGULAR = {"codes": "code", "environments": "environment", "models": "model", "data": "data"}
# What each kind's body must name, in the words of the REST reference.
CONTENT = {
    "codes": ("codeUri",),
    "models": ("modelUri",),
    "data": ("dataUri",),
    "environments": ("image", "build"),
}


def _versions(call: Call, kind: str) -> list[Resource]:
    return list(call.control.store.children(call.id(kind + "/{name}/versions"), newest_first=True))


def _next_version(versions: list[Resource]) -> str:
    """One more than the highest whole number, as Azure counts; "1" at first."""
    return str(max((int(v.name) for v in versions if v.name.isdecimal()), default=0) + 1)


def _defaults(kind: str) -> Json:
    common: Json = {
        "description": None,
        "tags": {},
        "properties": {},
        "isArchived": False,
        "isAnonymous": False,
    }
    if kind == "models":
        # flavors must be an object: the SDK iterates over it.
        return {**common, "flavors": {}, "modelType": "custom_model"}
    if kind == "environments":
        return {**common, "environmentType": "UserCreated", "osType": "Linux"}
    return common


def _register(kind: str) -> None:
    base = f"{WORKSPACE}/{kind}/{{name}}"

    @route("GET", base, f"{kind}: get the container")
    async def get_container(call: Call) -> Response:
        versions = _versions(call, kind)
        if not versions:
            raise not_found(SINGULAR[kind], call.params["name"])
        container = call.control.store.put(
            call.id(kind + "/{name}"),
            {
                "properties": {
                    "description": None,
                    "tags": {},
                    "properties": {},
                    "isArchived": False,
                    "latestVersion": versions[0].name,
                    "nextVersion": _next_version(versions),
                }
            },
        )
        return show(call, container)

    @route("GET", base + "/versions", f"{kind}: list versions")
    async def list_versions(call: Call) -> Response:
        query = call.request.query_params
        if kind == "codes" and query.get("hash"):
            # The SDK makes up a new name for each look-up: the hash is looked for across names.
            found = call.control.store.find(f"{call.workspace_id}/codes/%/versions/%")
            return page(call, [c for c in found if c.properties["properties"].get("hash_sha256") == query["hash"]])
        versions = _versions(call, kind)
        if not versions:
            raise not_found(SINGULAR[kind], call.params["name"])
        if query.get("listViewType", "ActiveOnly") == "ActiveOnly":
            versions = [version for version in versions if not version.properties.get("isArchived")]
        return page(call, versions)

    @route("GET", base + "/versions/{version}", f"{kind}: get a version, by label too")
    async def get_version(call: Call) -> Response:
        return show(call, find_version(call, kind))

    @route("PUT", base + "/versions/{version}", f"{kind}: create, update a version")
    async def put_version(call: Call) -> Response:
        properties = {k: v for k, v in call.properties.items() if v is not None}
        id = call.id(kind + "/{name}/versions/{version}")
        existing = call.control.store.get(id)
        if not any(properties.get(field) for field in CONTENT[kind]):
            raise bad_request(f"The {SINGULAR[kind]} needs {' or '.join(CONTENT[kind])}.")
        if existing is not None:
            _refuse_changed_content(kind, existing, properties)
        body = {"properties": {**_defaults(kind), **properties}}
        version = call.control.store.put(id, body)
        return show(call, version, 200 if existing else 201)

    @route("POST", base + "/versions/{version}/startPendingUpload", f"{kind}: start an upload")
    async def start_pending_upload(call: Call) -> Response:
        container = f"{SINGULAR[kind]}-{call.params['name']}"[:63].rstrip("-").lower()
        await call.control.storage.ensure_container(container)
        storage = call.control.storage
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


def _refuse_changed_content(kind: str, existing: Resource, properties: Json) -> None:
    for field in CONTENT[kind]:
        new, old = properties.get(field), existing.properties.get(field)
        if new is not None and old is not None and new != old:
            raise ArmError(
                409,
                "UserError",
                f"A {SINGULAR[kind]} with this name and version already exists with another {field}."
                " Only description, tags and isArchived may change; choose a new version.",
                "AssetVersionImmutable",
            )


def find_version(call: Call, kind: str) -> Resource:
    """The version that the path names; ``latest`` is the one created last. Raises 404."""
    name, version = call.params["name"], call.params["version"]
    if version == "latest" and (versions := _versions(call, kind)):
        return versions[0]
    found = call.control.store.get(call.id(kind + "/{name}/versions/{version}"))
    if found is None:
        raise not_found(SINGULAR[kind], f"{name}:{version}")
    return found


for _kind in KINDS:
    _register(_kind)


@route("GET", WORKSPACE + "/models", "models: list")
async def list_models(call: Call) -> Response:
    """The containers of all models: one row a name."""
    names = dict.fromkeys(
        m.id.split("/versions/")[0] for m in call.control.store.find(f"{call.workspace_id}/models/%/versions/%")
    )
    containers = []
    for id in names:
        versions = list(call.control.store.children(f"{id}/versions", newest_first=True))
        properties = {"latestVersion": versions[0].name, "nextVersion": _next_version(versions)}
        base: Json = {"description": None, "tags": {}, "properties": {}, "isArchived": False}
        containers.append(call.control.store.put(id, {"properties": {**base, **properties}}))
    return page(call, containers)

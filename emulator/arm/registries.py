"""The registry `azureml` as the SDK reads it: discovery, its own data plane, and the registry as a resource."""

from starlette.responses import JSONResponse, Response

from ..registry import KINDS, NAME, PUBLISHED, Registry
from ..store import Json, Resource
from .errors import ArmError
from .routing import PROVIDER, Call, Coverage, route, whole_number

GROUP = "/subscriptions/{subscription}/resourceGroups/{group}" + PROVIDER + "/registries"
# Where discovery sends the SDK.
DATA_PLANE = "/mferp/managementfrontend" + GROUP + "/{registry}"
READ_ONLY = "the registry azureml belongs to Microsoft and other registries are not modelled"


def _check_registry(call: Call) -> Registry:
    """The registry that the path names. Raises ArmError for another than the one that exists."""
    name = call.params["registry"]
    if name.lower() != NAME:
        # Guess: 404 for a registry that does not exist; recorded is 403 UnAuthorizedRegistryAccess for one of others.
        raise ArmError(
            404, "UserError", f"Registry {name} could not be found; the local Azure has '{NAME}'.", "RegistryNotFound"
        )
    return call.control.registry


@route("GET", "/registrymanagement/v1.0/registries/{registry}/discovery", "registries: discover")
async def discover(call: Call) -> Response:
    _check_registry(call)
    project, arm_url = call.control.home.project, call.control.urls["arm"]
    return JSONResponse(
        {
            "registryId": "00000000-0000-0000-0000-0000000000bb",
            "registryName": NAME,
            "tenantId": project.tenant,
            "primaryRegion": project.location,
            "regions": [project.location],
            "subscriptionId": project.subscription,
            "resourceGroup": project.resource_group,
            "workspaceName": None,
            "primaryRegionResourceProviderUri": f"{arm_url}/",
            "registryFqdns": {project.location: {"uri": arm_url}},
            "intellectualPropertyPublisher": None,
        }
    )


@route("GET", GROUP + "/{registry}", "registries: get")
async def get_registry(call: Call) -> Response:
    _check_registry(call)
    return JSONResponse(_registry(call))


@route("GET", GROUP, "registries: list")
async def list_registries(call: Call) -> Response:
    return JSONResponse({"value": [_registry(call)]})


def _registry(call: Call) -> Json:
    project, arm_url = call.control.home.project, call.control.urls["arm"]
    group = f"/subscriptions/{project.subscription}/resourceGroups/{project.resource_group}"
    return {
        "id": f"{group}{PROVIDER}/registries/{NAME}",
        "name": NAME,
        "type": "Microsoft.MachineLearningServices/registries",
        "location": project.location,
        "tags": {},
        "identity": {"type": "SystemAssigned"},
        "properties": {
            "discoveryUrl": f"{arm_url}/registrymanagement/v1.0/registries/{NAME}/discovery",
            "publicNetworkAccess": "Enabled",
            "regionDetails": [{"location": project.location, "acrDetails": [], "storageAccountDetails": []}],
        },
        "systemData": _system_data(PUBLISHED),
    }


def _register(kind: str) -> None:
    """The data plane's reads of one kind."""
    collection = f"{DATA_PLANE}/{kind}"
    coverage, note = (Coverage.REFUSED, "it has no data assets") if kind == "data" else (Coverage.FULL, "")

    @route("GET", collection, f"registries: list {kind}")
    async def list_containers(call: Call) -> Response:
        registry = _check_registry(call)
        return _page(call, [_container(kind, name, registry.versions(kind, name)) for name in registry.names(kind)])

    @route(
        "GET", collection + "/{name}", f"registries: get {kind}, with the latest version", coverage=coverage, note=note
    )
    async def get_container(call: Call) -> Response:
        name = call.params["name"]
        versions = _check_registry(call).versions(kind, name)
        if not versions:
            raise _missing(kind, name)
        return JSONResponse(_container(kind, name, versions))

    @route("GET", collection + "/{name}/versions", f"registries: list versions of {kind}")
    async def list_versions(call: Call) -> Response:
        versions = _check_registry(call).versions(kind, call.params["name"])  # none of an unknown name, as recorded
        return _page(call, [_shown(kind, version) for version in versions])

    @route(
        "GET",
        collection + "/{name}/versions/{version}",
        f"registries: get a version of {kind}",
        coverage=coverage,
        note=note,
    )
    async def get_version(call: Call) -> Response:
        name, version = call.params["name"], call.params["version"]
        found = _check_registry(call).version(kind, name, "" if version == "azureml_default" else version)
        if found is None:
            raise _missing(kind, f"{name}:{version}")
        return JSONResponse(_shown(kind, found))


def _missing(kind: str, name: str) -> ArmError:
    # Guess: the words of the 404 for an asset that a registry does not have.
    return ArmError(404, "UserError", f"Could not find {kind} {name} in registry {NAME}.", "NotFound")


def _page(call: Call, values: list[Json]) -> Response:
    """At most ``$top`` of them, the newest first or last; all fit on one page."""
    query = call.request.query_params
    if query.get("$orderBy", "").lower() in ("createdtime", "createdtime asc"):
        values = values[::-1]
    return JSONResponse({"value": values[: whole_number(call, "$top", len(values))]})


def _shown(kind: str, version: Resource) -> Json:
    return {
        "id": version.id,
        "name": version.name,
        "type": kind,  # as recorded
        **version.body,
        "systemData": _system_data(version.created),
    }


def _container(kind: str, name: str, versions: list[Resource]) -> Json:
    newest = versions[0]
    properties: Json = {"description": newest.properties["description"], "tags": {}, "properties": {}}
    return {
        "id": f"azureml://registries/{NAME}/{kind}/{name}",
        "name": name,
        "type": kind,
        "properties": {
            **properties,
            "isArchived": False,
            "latestVersion": newest.name,
            "nextVersion": str(int(newest.name) + 1) if newest.name.isdecimal() else "1",
            "provisioningState": "Succeeded",
        },
        "systemData": _system_data(newest.created),
    }


def _system_data(created: str) -> Json:
    return {"createdAt": created, "createdBy": "Microsoft", "createdByType": "User", "lastModifiedAt": created}


for _kind in KINDS:
    _register(_kind)


@route(
    "POST",
    DATA_PLANE + "/datarefs/{name}/versions/{version}",
    "registries: download an asset's files",
    coverage=Coverage.REFUSED,
    note="the registry names models, it holds no weights",
)
async def refuse_download(call: Call) -> Response:
    _check_registry(call)
    raise ArmError(
        404,
        "UserError",
        f"The local registry {NAME} holds no files of {call.params['name']}:{call.params['version']}: it has names and"
        " tags of foundation models, not their weights. Download those from Hugging Face, or train in Azure.",
        "NotFound",
    )


async def _refuse_write(call: Call) -> Response:
    _check_registry(call)
    raise ArmError(
        403,
        "UserError",
        f"The registry {NAME} is read-only: nothing can be created, changed or shared in it. Register the asset in the"
        " workspace instead.",
        "UnAuthorizedRegistryAccess",
    )


for _method, _path, _operation in (
    ("PUT", "/tempdatarefs/{name}/versions/{version}", "start an upload"),
    ("POST", "/import", "share an asset of a workspace"),
    ("PUT", "/{kind}/{name}/versions/{version}", "create, change a version"),
    ("PUT", "/{kind}/{name}", "create, change a container"),
):
    route(_method, DATA_PLANE + _path, f"registries: {_operation}", coverage=Coverage.REFUSED, note=READ_ONLY)(
        _refuse_write
    )
for _method, _operation in (("PUT", "create, update"), ("DELETE", "delete")):
    route(_method, GROUP + "/{registry}", f"registries: {_operation}", coverage=Coverage.REFUSED, note=READ_ONLY)(
        _refuse_write
    )

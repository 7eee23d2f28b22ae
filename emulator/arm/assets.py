"""Versioned assets of the workspace: codes, environments, models, data and components, each a container of versions."""

from dataclasses import replace

from starlette.responses import JSONResponse, Response

from ..store import Json, Resource
from .asset_containers import container_id, find_container, newest_version, put_container, put_version, shown_container
from .asset_kinds import Kind, checked
from .codes import CODES, find_by_hash
from .components import COMPONENTS
from .data import DATA, check_type
from .environments import ENVIRONMENTS
from .errors import bad_request
from .models import MODELS
from .routing import WORKSPACE, Call, envelope, listing, page, route, show

KINDS = (CODES, ENVIRONMENTS, MODELS, DATA, COMPONENTS)
# Labels where a version is expected: the SDK asks for a component's default one.
# Guess: a GET of versions/latest is understood, as versions/azureml_default is (recorded, components).
LABELS = {"latest": "latest", "azureml_default": "default"}


def _register_containers(kind: Kind) -> None:
    """The routes of one kind's containers."""
    collection = f"{WORKSPACE}/{kind.plural}"

    @route("GET", collection, f"{kind.plural}: list")
    async def list_containers(call: Call) -> Response:
        return listing(
            call,
            call.id(kind.plural),
            newest_first=_newest_first(call),
            archived=call.view,
            prepare=lambda container: shown_container(kind, container),
        )

    @route("GET", collection + "/{name}", f"{kind.plural}: get the container, with its latest and next version")
    async def get_container(call: Call) -> Response:
        return show(call, find_container(call, kind))

    @route("PUT", collection + "/{name}", f"{kind.plural}: describe, archive, restore the container")
    async def update_container(call: Call) -> Response:
        given = checked(replace(kind, needs=()), call.properties)
        if kind is DATA:
            check_type(given)
        container, created = put_container(call, kind, given)
        return show(call, container, 201 if created else 200)


def _register_versions(kind: Kind) -> None:
    """The routes of one kind's versions."""
    versions = f"{WORKSPACE}/{kind.plural}/{{name}}/versions"

    @route("GET", versions, f"{kind.plural}: list versions")
    async def list_versions(call: Call) -> Response:
        query = call.request.query_params
        if kind is CODES and query.get("hash"):
            return page(call, find_by_hash(call, query["hash"]))
        id = container_id(call, kind) + "/versions"
        if not call.control.store.select(id, limit=1):
            raise kind.missing(call.params["name"])
        return listing(
            call,
            id,
            newest_first=_newest_first(call),
            archived=call.view,
            where={"$.properties.stage": query["stage"]} if query.get("stage") else None,
            prepare=lambda version: kind.shown(call, version),
        )

    @route("GET", versions + "/{version}", f"{kind.plural}: get a version, by label too")
    async def get_version(call: Call) -> Response:
        version = call.control.store.get(call.id(kind.plural + "/{name}/versions/{version}"))
        if version is not None:
            return show(call, kind.shown(call, version))
        label = LABELS.get(call.params["version"])
        version = newest_version(call, kind) if label else None
        if version is None:
            raise kind.missing(call.params["name"], call.params["version"])
        answer = envelope(kind.shown(call, version), call.control.state.principal_id)
        return JSONResponse({**answer, "id": f"{container_id(call, kind)}/labels/{label}"})

    @route("PUT", versions + "/{version}", f"{kind.plural}: create, update, archive, restore a version")
    async def create_version(call: Call) -> Response:
        kind.check_version(call.params["version"])
        given = checked(kind, call.properties)
        id = call.id(kind.plural + "/{name}/versions/{version}")
        properties = await kind.normalised(call, given, call.control.store.get(id))
        existing = call.control.store.get(id)  # again: it may have come while the files were looked at
        if existing is not None:
            _refuse_changed_content(call, kind, existing, properties)
        version = put_version(call, kind, properties)
        return show(call, kind.shown(call, version), kind.updated if existing else 201)


def _newest_first(call: Call) -> bool:
    """The order that ``$orderBy`` asks for; the newest come first otherwise."""
    asked = call.request.query_params.get("$orderBy", "createdtime desc").lower().split()
    if asked not in (["createdtime"], ["createdtime", "asc"], ["createdtime", "desc"]):
        raise bad_request("$orderBy is 'createdtime asc' or 'createdtime desc' here.")
    return asked[-1] == "desc"


def _refuse_changed_content(call: Call, kind: Kind, existing: Resource, properties: Json) -> None:
    before, after = kind.content(existing.properties), kind.content(properties)
    for field in kind.immutable:
        if before[field] != after[field]:
            raise kind.changed(call.params["name"], existing.name, field)


for _kind in KINDS:
    _register_versions(_kind)
    if _kind.container is not None:
        _register_containers(_kind)

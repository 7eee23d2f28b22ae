"""The containers of versioned assets: one row a name, kept up to date with its versions, so that lists scan nothing."""

from datetime import UTC, datetime

from ..store import Json, Resource
from .asset_kinds import Kind
from .routing import Call

ANONYMOUS_COMPONENTS = "azureml_anonymous"  # has no container that any list shows


def container_id(call: Call, kind: Kind) -> str:
    return call.id(kind.plural + "/{name}")


def find_container(call: Call, kind: Kind) -> Resource:
    """The container that the path names, as answers show it. Raises ArmError (404)."""
    container = call.control.store.get(container_id(call, kind))
    if container is None:
        raise kind.missing(call.params["name"])
    return shown_container(kind, container)


def shown_container(kind: Kind, container: Resource) -> Resource:
    """The service tells a component's container neither its latest version nor a number for the next one."""
    if kind.plural == "components":
        now = datetime.now(UTC)
        container.properties["latestVersion"] = None
        container.properties["nextVersion"] = f"{now:%Y-%m-%d-%H-%M-%S}-{now.microsecond:06d}0"
    return container


def newest_version(call: Call, kind: Kind) -> Resource | None:
    """The version created last of those that are not archived."""
    versions = container_id(call, kind) + "/versions"
    found = call.control.store.select(versions, archived=False, newest_first=True, limit=1)
    return found[0] if found else None


def put_version(call: Call, kind: Kind, properties: Json) -> Resource:
    """Store a version and what depends on it."""
    store = call.control.store
    with store.transaction():
        version = store.put(call.id(kind.plural + "/{name}/versions/{version}"), {"properties": properties})
        if kind.container is not None and not (kind.plural == "components" and properties["isAnonymous"]):
            _update_container(call, kind, version)
        kind.index(call, version)
    return version


def _update_container(call: Call, kind: Kind, version: Resource) -> None:
    store, id = call.control.store, container_id(call, kind)
    container = store.get(id)
    properties = container.properties if container else {**(kind.container or {}), "isArchived": False}
    # The highest number so far is kept: counting on from it must not read every version.
    highest = container.internal.get("highest") if container else 0
    if highest is None:
        highest = store.highest_number(f"{id}/versions")
    if version.properties["isAnonymous"]:
        properties = {"latestVersion": "0", "nextVersion": "1", **properties}  # as the service shows such a container
    else:
        if version.name.isdecimal():
            highest = max(highest, int(version.name))
        # Guess: when all versions are archived, the latest is the newest of them
        latest = newest_version(call, kind) or version
        properties |= {"latestVersion": latest.name, "nextVersion": str(highest + 1)}
    if "dataType" in version.properties:
        properties["dataType"] = version.properties["dataType"]
    store.put(id, {"properties": properties}, {"highest": highest})


def put_container(call: Call, kind: Kind, given: Json) -> tuple[Resource, bool]:
    """Describe, archive or restore a container, or make an empty one; and whether it is new."""
    store, id = call.control.store, container_id(call, kind)
    container = store.get(id)
    before: Json = {**(kind.container or {}), "isArchived": False, "latestVersion": None, "nextVersion": "1"}
    mutable: Json = {key: given[key] for key in ("description", "tags", "properties", "isArchived") if key in given}
    if kind.plural == "data" and container is None:
        mutable["dataType"] = given["dataType"]
    properties = {**(container.properties if container else before), **mutable}
    internal = None if container else {"highest": 0}
    return shown_container(kind, store.put(id, {"properties": properties}, internal)), container is None

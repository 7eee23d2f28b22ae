"""The containers of versioned assets: one row a name, kept up to date with its versions, so that lists scan nothing."""

from datetime import UTC, datetime

from ..store import Json, Resource, Store
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
    return _newest(call.control.store, container_id(call, kind))


def _newest(store: Store, container: str) -> Resource | None:
    found = store.select(f"{container}/versions", archived=False, newest_first=True, limit=1)
    return found[0] if found else None


def put_version(call: Call, kind: Kind, properties: Json) -> Resource:
    """Store a version and what depends on it."""
    with call.control.store.transaction():
        version = add_version(call.control.store, kind, container_id(call, kind), call.params["version"], properties)
        kind.index(call, version)
    return version


def add_version(store: Store, kind: Kind, container: str, version: str, properties: Json) -> Resource:
    """Store a version in the container with this id, which may be new, and bring the container up to date."""
    added = store.put(f"{container}/versions/{version}", {"properties": properties})
    if kind.container is not None and not (kind.plural == "components" and properties["isAnonymous"]):
        _update_container(store, kind, container, added)
    return added


def _update_container(store: Store, kind: Kind, id: str, version: Resource) -> None:
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
        # Guess: when all versions of an asset are archived, its latest version is the newest of them.
        latest = _newest(store, id) or version
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

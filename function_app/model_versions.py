"""A model's registered versions in Azure ML, and the deployments that have them, as operators see them."""

import re
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from azure.core.exceptions import ResourceNotFoundError

from . import azure_clients, release_managed, release_serverless
from .runs import Run

# A deployment names its model by the short reference that it was created with, or by the id in Resource Manager.
MODEL_REFERENCE = re.compile(r"(?:azureml:|.*/models/)(?P<name>[^/:]+)(?:/versions/|:)(?P<version>[^/:]+)")
VERSION = re.compile(r"[0-9]{1,20}")
MOST_VERSIONS = 2000  # that a listing looks at


@dataclass(frozen=True)
class Asset:
    """A registered model: under which name and version, the run that made it, and whether it was deleted by people."""

    name: str
    version: str
    run_id: str
    archived: bool


@dataclass(frozen=True)
class Deployed:
    """A deployment of the model's managed endpoint, or a serverless endpoint, which is its own deployment."""

    name: str
    kind: str
    state: str
    share: int
    run_id: str
    version: str
    instance_type: str = ""
    instance_count: int = 0


def asset_of(run: Run) -> tuple[str, str]:
    """Name and version under which a run's model is registered: the service counts versions of its own."""
    uri = str(run.numbers.get("model_uri") or "")
    if run.recipe.get("engine") == "service" and uri.count(":") == 2:
        _, name, version = uri.split(":")
        return name, version
    return run.model, run.model_version


def look_up(name: str, version: str) -> Asset | None:
    """A registered model, also an archived one; None when there is none."""
    try:
        # The SDK's own entity does not say whether it is archived.
        found = azure_clients.ml_client().models._get(name, version)
    except ResourceNotFoundError:
        return None
    properties = found.properties
    return Asset(name, version, str((properties.tags or {}).get("run_id", "")), bool(properties.is_archived))


def archive(asset: Asset) -> None:
    """Take a version out of the lists; Azure ML deletes no version, and people can restore it there."""
    azure_clients.ml_client().models.archive(asset.name, version=asset.version)


def restore(asset: Asset) -> None:
    azure_clients.ml_client().models.restore(asset.name, version=asset.version)


def listed(model: str, limit: int, after: str) -> list[dict[str, Any]]:
    """At most ``limit`` of the model's versions, the newest first, beginning behind the version ``after``.

    Those alone that are numbers, as ours are: no other can be rolled back to, or be compared with ``after``.
    """
    rows: list[dict[str, Any]] = []
    try:
        for each in islice(azure_clients.ml_client().models.list(name=model), MOST_VERSIONS):
            if len(rows) == limit:
                break
            if VERSION.fullmatch(str(each.version)) and (not after or int(each.version) < int(after)):
                rows.append(_row(each))
    except ResourceNotFoundError:
        return []
    return rows


def managed(run: Run, traffic: dict[str, int] | None = None) -> list[Deployed]:
    """The deployments on the managed endpoint of the run's model, whose ``traffic`` may be known."""
    try:
        found = list(azure_clients.ml_client().online_deployments.list(release_managed.endpoint_name(run)))
    except ResourceNotFoundError:  # there is no endpoint
        return []
    return [
        Deployed(
            name=str(each.name),
            kind="managed",
            state=azure_clients.plain(each.provisioning_state),
            share=(traffic or {}).get(str(each.name), 0),
            run_id=(each.tags or {}).get("run_id", ""),
            version=_version_in(each.model, run.model),
            instance_type=str(each.instance_type or ""),
            instance_count=int(each.instance_count or 0),
        )
        for each in found
    ]


def serverless(run: Run) -> list[Deployed]:
    """The serverless endpoints of the run's model; the one that the live record names gets all requests."""
    return [
        Deployed(name, kind="serverless", state="", share=0, run_id=id, version="")
        for name, id in release_serverless.endpoints(run.model).items()
    ]


def endpoint(run: Run) -> dict[str, Any] | None:
    """The managed endpoint of the run's model, with its traffic."""
    state, traffic = release_managed.observe_endpoint(run)
    return {"name": release_managed.endpoint_name(run), "state": state, "traffic": traffic} if state else None


def _version_in(reference: Any, model: str) -> str:
    """The version that a deployment has of the model; "" when it has another model."""
    match = MODEL_REFERENCE.fullmatch(str(getattr(reference, "id", reference) or ""))
    return match["version"] if match and match["name"] == model else ""


def _row(model: Any) -> dict[str, Any]:
    created = model.creation_context.created_at if model.creation_context else None
    tags = dict(model.tags or {})
    return {
        "version": str(model.version),
        "run_id": tags.pop("run_id", ""),
        "registered_at": created if isinstance(created, datetime) else None,
        "tags": tags,
    }

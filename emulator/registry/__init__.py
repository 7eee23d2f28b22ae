"""The registry `azureml`: the foundation models, curated environments and components that notebooks take from it."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..arm.components import normalised_spec
from ..config import BLOB_HOST
from ..store import Json, Resource

if TYPE_CHECKING:
    from ..control import Control

NAME = "azureml"
KINDS = ("models", "environments", "components", "data")  # what its data plane serves; codes are kept from readers
ASSET_ID = re.compile(
    r"azureml://registries/(?P<registry>[^/]+)/(?P<kind>[^/]+)/(?P<name>[^/]+)/(?P<by>versions|labels)/(?P<version>[^/]+)/?"
)
LABELS = ("latest", "default")
PUBLISHED = "2025-01-01T00:00:00.000000Z"  # all assets at once: the registry does not change


def find_registry_asset(control: "Control", id: str) -> Resource | None:
    """The version that ``azureml://registries/azureml/<kind>/<name>/versions/<v>`` (or ``/labels/latest``) names.

    The caller may change what it gets. None when the registry has no such asset.
    """
    match = ASSET_ID.fullmatch(id)
    if match is None or match["registry"].lower() != NAME:
        return None
    if match["by"] == "labels" and match["version"] not in LABELS:
        return None
    version = "" if match["by"] == "labels" else match["version"]
    return copy.deepcopy(control.registry.version(match["kind"], match["name"], version))


class Registry:
    """The assets of the YAML files beside this module, read once."""

    def __init__(self) -> None:
        # kind -> name -> versions, the oldest first
        self._assets: dict[str, dict[str, list[Resource]]] = {kind: {} for kind in KINDS}
        for kind in ("models", "environments", "components"):
            for row in yaml.safe_load((Path(__file__).parent / f"{kind}.yaml").read_text(encoding="utf-8")):
                self._assets[kind][row["name"]] = list(_versions(kind, row))

    def names(self, kind: str) -> list[str]:
        return list(self._assets[kind])

    def versions(self, kind: str, name: str) -> list[Resource]:
        """All versions of an asset, the newest first; none when there is no such asset."""
        return self._assets.get(kind, {}).get(name, [])[::-1]

    def version(self, kind: str, name: str, version: str = "") -> Resource | None:
        """One version, by default the newest."""
        found = [asset for asset in self.versions(kind, name) if version in ("", asset.name)]
        return found[0] if found else None


def _versions(kind: str, row: dict[str, Any]) -> Iterator[Resource]:
    """The versions of one row; they differ in nothing but their number."""
    for version in row["versions"]:
        properties: Json = {
            "description": row["description"],
            "tags": row.get("tags", {}),
            "properties": row.get("properties", {}),
            "isArchived": False,
            "isAnonymous": False,
            **CONTENTS[kind](row, version),
        }
        id = f"azureml://registries/{NAME}/{kind}/{row['name']}/versions/{version}"
        yield Resource(id, version, {"properties": properties}, {}, PUBLISHED, PUBLISHED)


def _model(row: dict[str, Any], version: str) -> Json:
    return {
        "modelType": "mlflow_model",
        # Where the weights would lie; the SDK insists on an address of a storage account.
        "modelUri": f"https://{BLOB_HOST}/registry-{NAME}/{row['name']}-{version}/mlflow_model_folder",
        "flavors": {
            # Guess: the settings of the flavors of the registry's models.
            "hftransformersv2": {"data": {"task_type": "chat-completion"}},
            "python_function": {"data": {"loader_module": "azureml.evaluate.mlflow.hftransformers"}},
        },
        "stage": "Development",
        "provisioningState": "Succeeded",
    }


def _environment(row: dict[str, Any], version: str) -> Json:
    return {
        "environmentType": "Curated",
        "image": f"mcr.microsoft.com/azureml/curated/{row['name'].lower()}:{version}",
        "osType": "Linux",
    }


def _component(row: dict[str, Any], version: str) -> Json:
    spec = {key: value for key, value in row.items() if key != "versions"}
    return {
        "componentSpec": normalised_spec({**spec, "version": version}),
        "provisioningState": "Succeeded",
    }


CONTENTS = {"models": _model, "environments": _environment, "components": _component}

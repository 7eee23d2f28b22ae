"""What a URI that a client gives stands for: data assets, models, job outputs and datastores come down to blobs."""

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from .config import ACCOUNT
from .storage import Location, UriError
from .store import Resource

if TYPE_CHECKING:
    from .control import Control

CONTENT = {"data": "dataUri", "models": "modelUri"}
MODEL_TYPES = ("mlflow_model", "custom_model", "triton_model")
MAX_HOPS = 10  # a job's output that is given as another job's output, and so on

# azureml://subscriptions/s/resourcegroups/g[/providers/p]/workspaces/w/… and azureml://locations/l/workspaces/guid/…
LONG = re.compile(
    r"(?:azureml:/)?/subscriptions/([^/]+)/resourceGroups/([^/]+)(?:/providers/[^/]+)?/workspaces/([^/]+)/(.+)",
    re.IGNORECASE,
)
BY_LOCATION = re.compile(r"azureml://locations/[^/]+/workspaces/[^/]+/(.+)", re.IGNORECASE)
VERSION = re.compile(r"(data|models)/([^/]+)/versions/([^/]+)", re.IGNORECASE)
OUTPUT = re.compile(r"jobs/([^/]+)/outputs/([^/]+)(?:/paths)?/?(.*)", re.IGNORECASE)
NAMED = re.compile(r"azureml:([^:@/]+)(?::([^:/]+)|@([^:/]+))")


class References:
    """Resolves URIs against the workspace's resources."""

    def __init__(self, control: "Control") -> None:
        self._control = control

    def locate(self, uri: str, type: str = "") -> Location:
        """The blobs behind any URI that a client may give. Raises UriError."""
        return self._control.storage.locate(self.resolve(uri, type))

    def resolve(self, uri: str, type: str = "") -> str:
        """``uri`` as the URI of a storage account or of the web: what a data asset, a model or a job's output holds.

        ``type`` tells what ``azureml:name:version`` names: a model, if it is a type of models, else a data asset.
        Raises UriError when something on the way does not exist.
        """
        current = uri
        for _ in range(MAX_HOPS):
            following = self._follow(current, type)
            if following == current:
                return current
            current = following
        raise UriError(f"'{uri}' leads in circles.")

    def long_uri(self, location: Location, groups: str = "resourcegroups") -> str:
        """The ``azureml://subscriptions/…`` form of a place in a datastore; its URL when it is in none.

        ``groups``: how the service writes this segment; it differs between models and data.
        """
        project = self._control.home.project
        for store in self._control.store.children(f"{project.workspace_id}/datastores"):
            if (store.properties.get("accountName"), store.properties.get("containerName")) == (
                ACCOUNT,
                location.container,
            ):
                return (
                    f"azureml://subscriptions/{project.subscription}/{groups}/{project.resource_group}"
                    f"/workspaces/{project.workspace}/datastores/{store.name}/paths/{location.path}"
                )
        return self._control.storage.address(location)

    def _follow(self, uri: str, type: str) -> str:
        """One step of ``resolve``: the same URI when it is of storage already."""
        if uri.lower().startswith("azureml://registries/"):
            raise UriError(f"'{uri}' is an asset of a registry; the local Azure has no content of registries' assets.")
        if match := NAMED.fullmatch(uri):
            return self._asset("models" if type in MODEL_TYPES else "data", match[1], match[2] or "", match[3] or "")
        below = self._below_workspace(uri)
        if match := VERSION.fullmatch(below.rstrip("/")):
            return self._asset(match[1].lower(), match[2], match[3])
        if match := OUTPUT.fullmatch(below):
            return self._output(uri, *match.groups())
        if below.startswith("datastores/"):
            return self._datastore(uri, below)
        return uri

    def _below_workspace(self, uri: str) -> str:
        """The part of an azureml URI or ARM id after its workspace; "" when it is neither."""
        project = self._control.home.project
        if match := LONG.fullmatch(uri.replace("azureml:/subscriptions", "/subscriptions", 1)):
            named = tuple(part.lower() for part in match.groups()[:3])
            if named != (project.subscription.lower(), project.resource_group.lower(), project.workspace.lower()):
                raise UriError(f"'{uri}' is of another workspace; the local Azure has {project.workspace_id} alone.")
            return match[4]
        if match := BY_LOCATION.fullmatch(uri):
            return match[1]
        return uri.removeprefix("azureml://") if uri.startswith("azureml://") else ""

    def _asset(self, kind: str, name: str, version: str, label: str = "") -> str:
        base = f"{self._control.home.project.workspace_id}/{kind}/{name}/versions"
        found: Resource | None = None
        if label == "latest":
            found = next(iter(self._control.store.select(base, archived=False, newest_first=True, limit=1)), None)
        elif version:
            found = self._control.store.get(f"{base}/{version}")
        if found is None:
            what = "model" if kind == "models" else "data asset"
            raise UriError(f"The {what} {name}{f'@{label}' if label else f':{version}'} does not exist.")
        return str(found.properties[CONTENT[kind]])

    def _output(self, uri: str, name: str, output: str, path: str) -> str:
        job = self._control.store.get(f"{self._control.home.project.workspace_id}/jobs/{name}")
        # `artifacts` is what the run logged and left in ./outputs and ./logs: the default output's place.
        outputs = job.properties.get("outputs") or {} if job else {}
        found = outputs.get(output) or (outputs.get("default") if output == "artifacts" else None)
        if not found or not found.get("uri"):
            raise UriError(f"'{uri}': there is no job {name} with an output {output}.")
        base = str(found["uri"])
        return f"{base.rstrip('/')}/{path}" if path.strip("/") else base

    def _datastore(self, uri: str, below: str) -> str:
        """``azureml://datastores/<name>/paths/<path>`` as the account's URL.

        A job's default output has no ``/paths/`` in its URI; that is how the service writes it.
        """
        name, _, path = below.removeprefix("datastores/").partition("/")
        path = path.removeprefix("paths/") if path != "paths" else ""
        store = self._control.store.get(f"{self._control.home.project.workspace_id}/datastores/{name}")
        if store is None:
            raise UriError(f"'{uri}': the datastore '{name}' does not exist in this workspace.")
        if (store.properties.get("accountName"), store.properties["datastoreType"]) != (ACCOUNT, "AzureBlob"):
            raise UriError(
                f"'{uri}': the datastore '{name}' is not of blobs of this storage account; others cannot be read here."
            )
        return f"{self._control.storage.url}/{store.properties['containerName']}/{quote(path)}"

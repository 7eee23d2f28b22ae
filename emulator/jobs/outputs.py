"""A job's outputs: local folders while it runs, blobs and, where a name was given, assets when it has ended."""

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..arm.asset_containers import add_version
from ..arm.asset_kinds import BASE
from ..arm.data import DATA
from ..arm.models import MODELS
from ..references import CONTENT, MODEL_TYPES
from ..storage import UriError
from ..store import Json, Resource
from . import run_artifacts
from .status import artifact_location

if TYPE_CHECKING:
    from ..control import Control

# Folders of the working directory whose content Azure keeps beside the logs, asked for or not.
KEPT_FOLDERS = ("outputs", "logs")


def output_uri(job: str, name: str, kind: str) -> str:
    """Where an output lies that was given no place of its own."""
    slash = "" if kind == "uri_file" else "/"
    return f"azureml://datastores/workspaceblobstore/paths/azureml/{job}/{name}{slash}"


def asset_name(job: str, output: str) -> str:
    """The data asset that the service makes of every output, named or not."""
    return f"azureml_{job}_output_data_{output}"


class JobOutputs:
    """The outputs of one job in ``folder``, which stays when the job is started again: its checkpoints survive."""

    def __init__(self, control: "Control", job: Resource, folder: Path) -> None:
        self._control = control
        self._job = job
        self._folder = folder
        self._given: Json = job.properties.get("outputs") or {}

    async def prepare(self, code: Path) -> dict[str, str]:
        """Make the folders; return what stands for each output in the command: a path, or a URI (mode Direct)."""
        values: dict[str, str] = {}
        for name, output in self._given.items():
            local = self._folder / name
            if output.get("mode") == "Direct":
                values[name] = str(output["uri"])
                continue
            if not local.exists():
                await self._show_what_is_stored(name, output, local)
            local.parent.mkdir(parents=True, exist_ok=True)
            if output["jobOutputType"] != "uri_file":
                local.mkdir(exist_ok=True)
            values[name] = str(local)
        for name in KEPT_FOLDERS:
            if not (code / name).exists():  # else the code brought its own
                kept = self._folder / "default" / name
                kept.mkdir(parents=True, exist_ok=True)
                (code / name).symlink_to(kept, target_is_directory=True)
        return values

    async def _show_what_is_stored(self, name: str, output: Json, local: Path) -> None:
        """A mounted output at a place of its own shows what lies there, such as another job's checkpoints."""
        own_place = output["uri"] != output_uri(self._job.name, name, output["jobOutputType"])
        if name != "default" and own_place and output.get("mode") == "ReadWriteMount":
            with contextlib.suppress(UriError):  # nothing is stored there
                await self._control.storage.download(self._control.locate(output["uri"]), local)

    async def store(self, code: Path) -> None:
        """Upload what there is, however the job ended: Azure's mounts keep it too. Raises UriError."""
        storage = self._control.storage
        for name, output in self._given.items():
            local = self._folder / name
            if output.get("mode") == "Direct" or not local.exists():
                continue
            default = name == "default"
            target = artifact_location(self._job.name, "") if default else self._control.locate(output["uri"])
            await storage.ensure_container(target.container)
            await storage.upload(local, target)
        await run_artifacts.keep(self._control, self._job)
        for name in KEPT_FOLDERS:
            if (code / name).is_dir() and not (code / name).is_symlink():
                await storage.upload(code / name, artifact_location(self._job.name, name))

    def assets(self) -> Json:
        """The assets that the service makes of the outputs of a completed job: output -> kind, name, version."""
        assets: Json = {}
        for name, output in self._given.items():
            kind = "models" if output["jobOutputType"] in MODEL_TYPES else "data"
            given = output.get("assetName")
            if name == "default" or (kind == "models" and not given):
                continue  # Guess: an output that is a model and was given no name is not registered
            asset = str(given or asset_name(self._job.name, name))
            asked = self._job.internal.get("asset_versions", {}).get(name)
            number = self._control.store.highest_number(f"{self._asset(kind, asset)}/versions") + 1 if given else 1
            assets[name] = {"kind": kind, "name": asset, "version": str(asked or number)}
        return assets

    def register(self, assets: Json) -> None:
        """Put what ``assets`` says into the workspace; doing it twice is doing it once."""
        references = self._control.references
        for name, asset in assets.items():
            output, model = self._given[name], asset["kind"] == "models"
            kind, groups = (MODELS, "resourceGroups") if model else (DATA, "resourcegroups")
            uri = references.long_uri(references.locate(output["uri"]), groups)
            type = {"modelType": output["jobOutputType"], "flavors": {}, "jobName": self._job.name}
            properties = {
                **BASE,
                "description": output.get("description"),
                "isAnonymous": not output.get("assetName"),
                CONTENT[asset["kind"]]: uri,
                **(type if model else {"dataType": output["jobOutputType"]}),
            }
            with self._control.store.transaction():
                add_version(
                    self._control.store, kind, self._asset(asset["kind"], asset["name"]), asset["version"], properties
                )

    def _asset(self, kind: str, name: str) -> str:
        return f"{self._control.home.project.workspace_id}/{kind}/{name}"


async def forget(folder: Path) -> None:
    """Delete a folder, however big, without holding up the event loop."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

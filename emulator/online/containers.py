"""What a deployment runs, as a local command: its own container, its scoring script, or MLflow's scoring."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import processes
from ..images import ImageError, command_for, installed, python_for, read_dockerfile
from ..storage import UriError
from ..store import Json, Resource

if TYPE_CHECKING:
    from ..control import Control

SCORING = Path(__file__).parent / "scoring"
APP_ROOT = "/var/azureml-app"  # where Azure mounts code and models in a container
MLFLOW_IMAGE = "mcr.microsoft.com/azureml/mlflow-ubuntu20.04-py38-cpu-inference"  # what Azure takes for no-code


@dataclass(frozen=True)
class Container:
    """A command with all that it needs on this machine; ``{port}`` in it is the port of one instance."""

    command: list[str]
    folder: Path
    variables: dict[str, str]
    liveness: str = "/"
    readiness: str = "/"


@dataclass
class Preparation:
    """Fetches what one revision of a deployment needs into ``folder``, and models into ``models``, which stay."""

    control: "Control"
    deployment: Resource
    folder: Path
    models: Path
    note: Callable[[str], None]  # a line of the storage initializer's log
    environment: Json = field(default_factory=dict)

    async def run(self) -> Container:
        """Raises ImageError, UriError or OSError, with a text for people."""
        self.environment = self._environment()
        model = await self._model()
        if self.deployment.properties.get("codeConfiguration"):
            return await self._scoring_script(model)
        if not self.deployment.properties.get("environmentId"):
            return self._mlflow(model)
        return await self._own_container(model)

    def _environment(self) -> Json:
        """The environment's properties. Of a registry's environment the id is known, which stands for its image."""
        id = self.deployment.properties.get("environmentId")
        if not id:
            return {"image": MLFLOW_IMAGE}
        if id.startswith("azureml://registries/"):
            return {"image": id}
        environment = self.control.store.get(id)
        if environment is None:
            raise ImageError("The deployment's environment was deleted.")
        return environment.properties

    @property
    def _image(self) -> str:
        build = self.environment.get("build") or {}
        return str(self.environment.get("image") or f"build:{build.get('contextUri', '')}")

    async def _model(self) -> Path | None:
        """Fetch the model to where Azure mounts it: <models>/<name>/<version>/<the registered folder's name>/."""
        id = self.deployment.properties.get("model")
        if not id:
            return None
        model = self.control.store.get(id)
        if model is None:
            raise UriError("The deployment's model was deleted.")
        name, version = model.id.split("/models/")[1].split("/versions/")  # not the client's id: it may have any case
        location = self.control.locate(model.properties["modelUri"])
        mount: Path = self.models / name / version
        if not mount.exists():
            # Under another name until it is whole: a stop in between must not leave a part of it for the next start.
            partial = mount.with_name(f".{version}")
            shutil.rmtree(partial, ignore_errors=True)
            count = await self.control.storage.download(location, partial / (Path(location.path).name or "model"))
            partial.rename(mount)
            self.note(f"Downloaded the model {name}:{version}, {count} files, to {mount}")
        return mount

    def _variables(self, python: Path, model: Path | None) -> dict[str, str]:
        """The variables of every kind, in which a path of Azure's containers becomes one of this machine."""
        given = self.deployment.properties.get("environmentVariables") or {}
        return {
            **processes.base_environment(python),
            **{name: self._local(str(value)) for name, value in given.items()},
            **({"AZUREML_MODEL_DIR": str(model)} if model else {}),
        }

    def _local(self, text: str) -> str:
        mounts = [self.deployment.properties.get("modelMountPath") or "", f"{APP_ROOT}/azureml-models"]
        for mount in filter(None, (mount.rstrip("/") for mount in mounts)):
            text = text.replace(mount, str(self.models))
        return text

    async def _own_container(self, model: Path | None) -> Container:
        """A build context's Dockerfile says what runs; for a plain image the table in emulator.yaml does."""
        project = self.control.home.project
        variables: dict[str, str] = {}
        code = self.folder / "context"
        if context := (self.environment.get("build") or {}).get("contextUri"):
            count = await self.control.storage.download(self.control.locate(context), code)
            self.note(f"Downloaded the build context, {count} files, to {code}")
            dockerfile = read_dockerfile(code / (self.environment["build"].get("dockerfilePath") or "Dockerfile"))
            python, command, variables = (
                python_for(project, dockerfile.base),
                dockerfile.command,
                dockerfile.environment,
            )
        else:
            code.mkdir(parents=True)
            python, command = python_for(project, self._image), command_for(project, self._image)
        config = self.environment.get("inferenceConfig") or {}
        routes = {kind: (config.get(f"{kind}Route") or {}).get("path") or "/" for kind in ("liveness", "readiness")}
        command = [self._local(word) for word in command]
        inherited = processes.base_environment(python)
        return Container(command, code, {**inherited, **variables, **self._variables(python, model)}, **routes)

    async def _scoring_script(self, model: Path | None) -> Container:
        configuration = self.deployment.properties["codeConfiguration"]
        code_asset = self.control.store.get(configuration.get("codeId") or "")
        if code_asset is None:
            raise UriError("The deployment's code was deleted.")
        code = self.folder / "onlinescoring"
        count = await self.control.storage.download(self.control.locate(code_asset.properties["codeUri"]), code)
        self.note(f"Downloaded the code, {count} files, to {code}")
        script = code / configuration["scoringScript"]
        if not script.resolve().is_relative_to(code.resolve()) or not script.is_file():
            raise UriError(f"The code folder has no scoring script '{configuration['scoringScript']}'.")
        return self._inference_server(code, script, model)

    def _mlflow(self, model: Path | None) -> Container:
        code = self.folder / "onlinescoring"
        code.mkdir(parents=True)
        return self._inference_server(code, SCORING / "mlflow_score.py", model)

    def _inference_server(self, code: Path, script: Path, model: Path | None) -> Container:
        """The real azureml-inference-server-http: the image's own when it has one, else the emulator's."""
        project = self.control.home.project
        image_python = python_for(project, self._image)
        packages = _site_packages(image_python)
        server = image_python
        if not (packages / "azureml_inference_server_http").is_dir():
            server = installed(project, project.inference_python)
            if _site_packages(server).parent.name != packages.parent.name:
                raise ImageError(
                    f"{image_python} has another version of Python than {server}, which holds the inference server:"
                    " install azureml-inference-server-http into it."
                )
        launcher = [str(server / "bin" / "python"), str(SCORING / "run_inference_server.py"), str(packages)]
        variables = {
            **self._variables(image_python, model),
            "AML_APP_ROOT": str(code),
            "AZUREML_APP_ROOT": str(code),
            "AZUREML_ENTRY_SCRIPT": str(script),
        }
        return Container([*launcher, "--entry_script", str(script), "--port", "{port}"], code, variables)


def _site_packages(python: Path) -> Path:
    found = next((python / "lib").glob("python3*/site-packages"), None)
    if found is None:
        raise ImageError(f"{python} is no virtual environment: it has no lib/python3.*/site-packages.")
    return found

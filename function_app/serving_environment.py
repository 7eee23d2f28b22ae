"""The environments of the deployments: the build contexts of ``serving/``, registered once for each of their states."""

from hashlib import sha256
from pathlib import Path
from typing import Literal

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from . import azure_clients

SERVING = Path(__file__).resolve().parents[1] / "serving"
CHAT_PATH = "/v1/chat/completions"
SERVING_PORT = 5001  # PORT in the Dockerfiles
HEALTH = {"port": SERVING_PORT, "path": "/health"}
ROUTES = {
    "liveness_route": HEALTH,
    "readiness_route": HEALTH,
    "scoring_route": {"port": SERVING_PORT, "path": CHAT_PATH},
}
# What the build context of vllm takes from the folder above it.
SHARED = "model_folder.py"

Server = Literal["transformers", "vllm"]


def ensure(server: Server) -> str:
    """Return ``azureml:<name>:<version>``; the version is the content's, so an image is built once."""
    from azure.ai.ml.entities import BuildContext, Environment

    ml = azure_clients.ml_client()
    files = build_context(server)
    name = "chat-serving" if server == "transformers" else f"chat-serving-{server}"
    version = sha256(b"".join(file.encode() + content for file, content in sorted(files.items()))).hexdigest()[:12]
    try:
        ml.environments.get(name, version)
    except ResourceNotFoundError:
        # In the workspace's own storage: that is what its image builds can read.
        container = azure_clients.datastore_container("workspaceblobstore")
        for file, content in files.items():
            container.upload_blob(f"{name}/{version}/{file}", content, overwrite=True)
        build = BuildContext(path=f"{container.url}/{name}/{version}/")
        try:
            ml.environments.create_or_update(
                Environment(name=name, version=version, build=build, inference_config=ROUTES)
            )
        except HttpResponseError as error:
            if error.status_code != 409:  # another invocation is registering the same
                raise
    return f"azureml:{name}:{version}"


def build_context(server: Server) -> dict[str, bytes]:
    """The files that the image is built from, by their names in it."""
    if server == "vllm":
        return {**_files(SERVING / "vllm"), SHARED: (SERVING / SHARED).read_bytes()}
    return {name: content for name, content in _files(SERVING).items() if not name.startswith("vllm/")}


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

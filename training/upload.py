"""Put a prepared data set where a run begins, or say how to do it by hand."""

import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from training import FineTuneError


def uploader(account_url: str, model: str) -> Callable[[Path], None]:
    """Return a function that puts a file into ``model``'s folder of the datasets container, with the user's identity.

    It replaces a blob of that name, as dropping the file again does. Raises FineTuneError, also when it is called.
    """
    try:
        from azure.core.exceptions import AzureError, ClientAuthenticationError
        from azure.identity import DefaultAzureCredential
        from azure.storage.blob import BlobServiceClient, LinearRetry
    except ModuleNotFoundError as error:
        raise FineTuneError(
            "--upload needs the packages azure-identity and azure-storage-blob; "
            "install them with `make install`, or upload the files by other means"
        ) from error
    container = os.environ.get("DATASETS_CONTAINER", "datasets")
    # Seconds in all. It tries again even if nobody is signed in, and its usual waits would be a minute of silence.
    retries = LinearRetry(backoff=1, random_jitter_range=0)

    def upload(path: Path) -> None:
        name = f"{model}/{path.name}"
        try:
            with (
                DefaultAzureCredential() as credential,
                BlobServiceClient(account_url, credential=credential, retry_policy=retries) as service,
                path.open("rb") as data,
            ):
                service.get_blob_client(container, name).upload_blob(data, overwrite=True)
        except (AzureError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            if isinstance(error, ClientAuthenticationError):
                reason = f"sign in with `az login` first ({reason})"
            raise FineTuneError(f"{path} is written, but cannot be uploaded to {container}/{name}: {reason}") from error
        print(f"uploaded {container}/{name}")

    return upload


def by_hand(paths: Iterable[Path]) -> str:
    """Return the commands that check the files and that upload them, in this order."""
    paths = list(paths)
    lines = [
        "What the intake would say:",
        f"  .venv/bin/python -m function_app.dataset {shlex.quote(str(paths[-1]))}",
        "To train on it" + (" (eval.jsonl first, since train.jsonl starts the run):" if paths[1:] else ":"),
    ]
    for path in paths:
        lines.append(
            "  az storage blob upload --auth-mode login --account-name <account> --container-name datasets "
            f"--name <model>/{path.name} --file {shlex.quote(str(path))}"
        )
    return "\n".join(lines)

"""The two splits of a run as data assets of Azure ML, so that the studio shows which file a model comes from."""

import logging
from typing import Any

from azure.core.exceptions import HttpResponseError

from . import azure_clients
from .intake import input_url
from .runs import Run

log = logging.getLogger("function_app.data_assets")

SPLITS = {"train": "train.jsonl", "eval": "eval.jsonl"}
MAX_TAG = 256  # characters of a tag's value


def register_splits(run: Run) -> dict[str, str]:
    """Register ``<model>-train`` and ``<model>-eval``, version: the run's suffix, and return their references by split:
    ``{"train": "azureml:<model>-train:<version>", "eval": …}``.

    Doing it again changes nothing. The eval asset is there even if nothing was held out: its file is empty then, and
    training measures nothing. Raises the Azure error of a refusal.
    """
    from azure.ai.ml.entities import Data

    ml = azure_clients.ml_client()
    assets: dict[str, str] = {}
    for split, file in SPLITS.items():
        name, version = f"{run.model}-{split}", run.suffix
        data = Data(
            name=name,
            version=version,
            type="uri_file",
            path=input_url(run, file),
            description=f"The records of {_end(run.dataset.blob)} that {_PURPOSE[split]}.",
            tags=_tags(run, split),
        )
        try:
            ml.data.create_or_update(data)
        except HttpResponseError as error:
            # Another invocation is making it, or has made it: what it says is the same.
            if error.status_code != 409:
                raise
            ml.data.get(name, version)
        assets[split] = f"azureml:{name}:{version}"
    log.info("data_assets run_id=%s version=%s", run.id, run.suffix)
    return assets


_PURPOSE = {"train": "the model is trained on", "eval": "it is measured on"}


def _tags(run: Run, split: str) -> dict[str, str]:
    """Where the records come from. Texts only, and none longer than Azure takes."""
    counts: dict[str, Any] = run.numbers.get("dataset") or {}
    written: dict[str, Any] = (run.numbers.get("splits") or {}).get(split) or {}
    tags = {
        "run_id": run.id,
        "dataset": _end(run.dataset.blob),
        "dataset_etag": run.dataset.etag,
        "records": counts.get(split),
        "sha256": written.get("sha256"),
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _end(text: str) -> str:
    """The end of a blob's name tells more than its beginning."""
    return text if len(text) <= MAX_TAG else "…" + text[1 - MAX_TAG :]

"""Finds the parts of the deployment's MLflow model: for this server and, in its own image, for vllm/."""

import sys
from pathlib import Path


def find_model(root: Path) -> Path:
    """Return the folder of the one MLflow model in ``root``: itself, or a folder up to two levels below.

    Raises SystemExit with a sentence if there is none.
    """
    for pattern in ("MLmodel", "*/MLmodel", "*/*/MLmodel"):
        if found := sorted(root.glob(pattern)):
            return found[0].parent
    sys.exit(f"error: AZUREML_MODEL_DIR={root} holds no MLflow model (no file MLmodel up to two levels deep)")


def find_parts(model: Path) -> tuple[Path, Path]:
    """Return the folders of the weights and of the tokenizer in an MLflow model, MLflow's own layout or Azure's.

    Azure's registry and its chat_completion_pipeline write data/model and data/tokenizer. Raises SystemExit.
    """
    for weights, tokenizer in (("model", "components/tokenizer"), ("data/model", "data/tokenizer")):
        if (model / weights / "config.json").is_file():
            own = model / tokenizer
            return model / weights, own if own.is_dir() else model / weights
    if (model / "data" / "model").is_dir() and (model / "data" / "config" / "config.json").is_file():
        sys.exit("error: the model's config.json is apart from its weights, in data/config; put it into data/model too")
    sys.exit(f"error: {model.name} holds no weights to serve, neither in model/ nor in data/model/")

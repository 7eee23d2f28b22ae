"""The two functions that the inference server calls."""

import json
import os
from pathlib import Path


def init() -> None:
    """Load the model once, when the server starts."""
    global counts
    (file,) = Path(os.environ["AZUREML_MODEL_DIR"]).rglob("counts.json")
    counts = json.loads(file.read_text())


def run(raw_data: str) -> dict[str, int]:
    """Answer one request."""
    return {word: counts.get(word, 0) for word in json.loads(raw_data)["words"]}

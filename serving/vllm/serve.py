"""Serve the MLflow model of the deployment with vLLM's OpenAI server, on all GPUs of the machine.

Run as: AZUREML_MODEL_DIR=<folder> PORT=5001 python3 serve.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from model_folder import find_model, find_parts


def command(model: Path, name: str, host: str, port: str, gpus: int) -> list[str]:
    """Return the command line of the server. ``name``: the only one that requests may give as their ``model``."""
    weights, tokenizer = find_parts(model)
    return [
        *("vllm", "serve", str(weights), "--tokenizer", str(tokenizer), "--served-model-name", name),
        *("--host", host, "--port", port, "--tensor-parallel-size", str(parallel(weights, gpus))),
        # As long a context as the memory allows; the config's own may be 128K tokens, and then it would not start.
        *("--max-model-len", "auto"),
        "--disable-uvicorn-access-log",
    ]


def parallel(weights: Path, gpus: int) -> int:
    """Return on how many of the GPUs the model is split: as many as its attention heads can be shared out among."""
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    heads = int(config.get("text_config", config).get("num_attention_heads", 1))
    return max(count for count in range(1, max(1, gpus) + 1) if heads % count == 0)


def count_gpus() -> int:
    """Return how many GPUs the driver lists; without one this ends with a sentence."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        listed = ""
    if not listed.strip():
        sys.exit("error: this server needs an NVIDIA GPU, and the machine shows none; set serving.server: transformers")
    return len(listed.strip().splitlines())


def main() -> None:
    """Replace this process by the server, so that the platform's signals reach it."""
    if "AZUREML_MODEL_DIR" not in os.environ:
        sys.exit("error: set AZUREML_MODEL_DIR to the folder of the MLflow model")
    model = find_model(Path(os.environ["AZUREML_MODEL_DIR"]))
    name = os.environ.get("MODEL_NAME", model.name)
    host, port = os.environ.get("HOST", "0.0.0.0"), os.environ.get("PORT", "5001")  # noqa: S104 the container's
    arguments = command(model, name, host, port, count_gpus())
    os.execvp(arguments[0], arguments)  # noqa: S606 no shell is wanted


if __name__ == "__main__":
    main()

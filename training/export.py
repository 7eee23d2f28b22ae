"""Leave the tuned model as an MLflow model, ready to register and to serve."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What a process needs to load the model with mlflow.pyfunc. Given explicitly: left alone, MLflow works it out by
# loading the model in another process, which fails here.
REQUIREMENTS = ("mlflow", "transformers", "torch", "accelerate")


def context_length(model: "PreTrainedModel") -> int:
    """Return how many tokens, prompt and answer together, the model can read."""
    return int(model.config.get_text_config().max_position_embeddings)


def export(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path, metadata: dict[str, Any]
) -> None:
    """Write the MLflow model into ``folder``, replacing what is there; the task is ``llm/v1/chat``.

    ``model`` must hold no adapters: MLflow saves an adapted model on a local base without its base's weights, and says
    nothing. ``metadata`` goes into ``MLmodel``, with the context length.
    """
    import mlflow
    from huggingface_hub import ModelCard, ModelCardData

    if hasattr(model, "peft_config"):
        raise ValueError("merge the adapters before the export")
    if folder.exists():
        # The platform makes the output folder and MLflow insists on making it itself; where it is a mount, only its
        # contents can go.
        for child in folder.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    length = context_length(model)
    tokenizer.model_max_length = min(tokenizer.model_max_length, length)
    # Without a card MLflow asks the model hub for one.
    card = ModelCard.from_template(
        ModelCardData(library_name="transformers"), template_str="---\n{{ card_data }}\n---\n"
    )
    mlflow.transformers.save_model(
        {"model": model, "tokenizer": tokenizer},
        str(folder),
        task="llm/v1/chat",
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS],
        model_card=card,
        metadata={**metadata, "context_length": length},
    )

"""Leave the tuned model as an MLflow model, ready to register and to serve."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import FineTuneError
from training.arguments import FineTuneArguments
from training.failures import disk_for

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What a process needs to load the model with mlflow.pyfunc. Given explicitly: left alone, MLflow works it out by
# loading the model in another process, which fails here.
REQUIREMENTS = ("mlflow", "transformers", "torch", "accelerate")
BESIDE_THE_WEIGHTS = 50_000_000  # bytes for the tokenizer, twice, and the texts, at most


def export(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    metadata: dict[str, Any],
    card: "ModelCard | None" = None,
    adapter: Path | None = None,
) -> None:
    """Write the MLflow model into ``folder``, replacing what is there; the task is ``llm/v1/chat``.

    ``model`` must hold no adapters: MLflow saves an adapted model on a local base without its base's weights, and says
    nothing. ``metadata`` goes into ``MLmodel``, with the context length (tokens, prompt and answer together). ``card``
    becomes README.md; without one, for a base that nobody has tuned, it says no more than that. ``folder/model`` is a
    whole Hugging Face folder, which `transformers serve` and vLLM load; ``folder/adapter`` is a copy of ``adapter``, a
    folder that PEFT wrote.

    Raises FineTuneError when the disk is full.
    """
    if hasattr(model, "peft_config"):
        raise ValueError("merge the adapters before the export")
    card = card or _plain_card()
    metadata = {**metadata, "context_length": context_length(model)}
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters()) + BESIDE_THE_WEIGHTS
    with disk_for("the model", folder, needed):
        _save(model, tokenizer, folder, metadata, card)
        _complete(folder, card)
        if adapter is not None:
            copy_adapter(adapter, folder / "adapter", str(metadata["base_model"]))


def context_length(model: "PreTrainedModel") -> int:
    """Return how many tokens, prompt and answer together, the model can read."""
    return int(model.config.get_text_config().max_position_embeddings)


def _plain_card() -> "ModelCard":
    from huggingface_hub import ModelCard

    return ModelCard("---\nlibrary_name: transformers\n---\n\nA base model as it came, not tuned.\n")


def check_place(arguments: FineTuneArguments) -> None:
    """Raise FineTuneError if the export, which empties ``model_output``, would delete anything but an earlier model."""
    folder = Path(arguments.model_output).resolve()
    for name in ("train_file", "eval_file", "base_model", "base_path", "champion_path", "checkpoint_output"):
        given = getattr(arguments, name)
        here = given and (name != "base_model" or Path(given).is_dir())  # else a name
        if here and Path(given).resolve().is_relative_to(folder):
            raise FineTuneError(
                f"{name} {given} is inside model_output {folder}, whose contents the new model replaces; choose "
                "another model_output"
            )
    if folder.is_file():
        raise FineTuneError(f"model_output {folder} is a file; choose a folder")
    if not folder.is_dir():
        return
    names = {child.name for child in folder.iterdir()}
    if names and not names & {"MLmodel", "model"}:  # MLflow writes the weights early and MLmodel last
        raise FineTuneError(
            f"model_output {folder} holds {min(names)}, and no model: it would be deleted; choose an empty folder"
        )


def copy_adapter(adapter: Path, to: Path, base_model: str) -> None:
    """Copy the adapter's weights and config, with the base model's name instead of a path of this machine."""
    to.mkdir(parents=True, exist_ok=True)
    for file in sorted(adapter.iterdir()):
        # PEFT's README is a form with every field empty.
        if file.is_file() and file.name != "README.md":
            shutil.copyfile(file, to / file.name)
    config_file = to / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_model
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _save(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    metadata: dict[str, Any],
    card: "ModelCard",
) -> None:
    import mlflow

    if folder.exists():
        # The platform makes the output folder and MLflow insists on making it itself; where it is a mount, only its
        # contents can go.
        for child in folder.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    tokenizer.model_max_length = min(tokenizer.model_max_length, metadata["context_length"])
    model.config.use_cache = True  # training turns it off, and whoever generates by hand would wonder
    mlflow.transformers.save_model(
        {"model": model, "tokenizer": tokenizer},
        str(folder),
        task="llm/v1/chat",
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS],
        model_card=card,  # without one MLflow asks the model hub
        metadata=metadata,
    )


def _complete(folder: Path, card: "ModelCard") -> None:
    """Make ``folder/model`` whole: MLflow keeps the tokenizer elsewhere, every other loader wants it by the weights."""
    for file in (folder / "components" / "tokenizer").iterdir():
        shutil.copyfile(file, folder / "model" / file.name)
    # transformers 5 names a class that 4 does not know, and a server may still run 4; both know this one.
    config_file = folder / "model" / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for file in (folder / "model").glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for its owner only; a server often is another user
    for place in (folder, folder / "model"):
        (place / "README.md").write_text(str(card), encoding="utf-8")
    # Where it finds no licence, MLflow writes a text that points to an empty repository name.
    licence = folder / "LICENSE.txt"
    if licence.exists() and licence.read_text(encoding="utf-8").startswith("A license file could not be found"):
        licence.write_text("For the licence of the base model see README.md.\n", encoding="utf-8")

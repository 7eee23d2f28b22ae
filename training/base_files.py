"""Where the files of a base model are: a Hugging Face id, a folder, an MLflow model's folder, or a LoRA adapter's."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from training import FineTuneError

# Where the parts are in an MLflow model's folder: as MLflow writes it, ours included, and as Azure's registries hold
# them (azureml-acft-accelerator, FLAVOR_MAP_FOR_FALLBACK: the flavors hftransformersv2 and hftransformers).
MLFLOW_LAYOUTS = (
    {"model": "model", "tokenizer": "components/tokenizer", "config": "model"},
    {"model": "data/model", "tokenizer": "data/tokenizer", "config": "data/config"},
)
REGISTRY_SCHEME = "azureml://"


@dataclass(frozen=True)
class BaseFiles:
    """Each a folder or a Hugging Face id. ``adapter``: a LoRA adapter to merge into the model, if the base is one."""

    model: str
    tokenizer: str
    config: str
    adapter: str | None = None


def find_base(name: str, path: str | None) -> BaseFiles:
    """Return where the files of the base ``name`` are; in ``path``, where that is given.

    Raises FineTuneError if there is nothing there that looks like a model. A Hugging Face id is not looked up.
    """
    if path is not None:
        if not Path(path).is_dir():
            raise FineTuneError(
                f"base_path: there is no folder {path}; it should hold the files of base_model {name!r}"
            )
        return _in_folder(Path(path), f"the folder of base_model {name!r}")
    if name.startswith(REGISTRY_SCHEME):
        raise FineTuneError(
            f"base_model {name!r} is a registry's model, which the platform fetches; give its folder as base_path"
        )
    folder = Path(name)
    if folder.is_dir():
        return _in_folder(folder, f"base_model {name!r}")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FineTuneError(
            f"cannot load base_model {name!r}: there is no such folder; give a folder, a Hugging Face id such as "
            "'microsoft/Phi-4-mini-instruct', or 'embedded'"
        )
    return BaseFiles(name, name, name)


def _in_folder(folder: Path, what: str) -> BaseFiles:
    folder = _mlflow_folder(folder)
    for layout in MLFLOW_LAYOUTS if (folder / "MLmodel").is_file() else ():
        places = {part: folder / place for part, place in layout.items()}
        if places["model"].is_dir():
            files = _model_folder(places["model"], what, config=places["config"])
            tokenizer = places["tokenizer"]
            return replace(files, tokenizer=str(tokenizer)) if tokenizer.is_dir() else files
    if (folder / "MLmodel").is_file():
        raise FineTuneError(
            f"{what} is an MLflow model without weights: it has neither model/ nor data/model/; save it with its files"
        )
    return _model_folder(folder, what, config=folder)


def _mlflow_folder(folder: Path) -> Path:
    """Return the folder's only subfolder with an MLmodel file, as a registry's download has, or the folder itself."""
    inner = [each.parent for each in folder.glob("*/MLmodel")]
    return inner[0] if len(inner) == 1 and not (folder / "MLmodel").is_file() else folder


def _model_folder(folder: Path, what: str, config: Path) -> BaseFiles:
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder, what)
    holder = next((each for each in (config, folder) if (each / "config.json").is_file()), None)
    if holder is None:
        raise FineTuneError(
            f"{what} holds no config.json; a base is a folder as save_pretrained or MLflow writes it, with the model's "
            "config.json, weights and tokenizer"
        )
    return BaseFiles(str(folder), str(folder), str(holder))


def _adapter(folder: Path, what: str) -> BaseFiles:
    if (folder / "config.json").is_file():
        raise FineTuneError(
            f"{what} holds both a model and a LoRA adapter, so which is meant is not clear; remove config.json or "
            "adapter_config.json"
        )
    try:
        under = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FineTuneError(
            f"{what} is a LoRA adapter whose adapter_config.json names no base; {NAME_MERGED}"
        ) from error
    try:
        files = find_base(str(under), None)
    except FineTuneError as error:
        raise FineTuneError(f"{what} is a LoRA adapter, and of its base: {error}; {NAME_MERGED}") from error
    if files.adapter:
        raise FineTuneError(f"{what} is a LoRA adapter of another one; {NAME_MERGED}")
    tokenizer = str(folder) if (folder / "tokenizer_config.json").is_file() else files.tokenizer
    return replace(files, tokenizer=tokenizer, adapter=str(folder))


NAME_MERGED = "name the merged model instead"

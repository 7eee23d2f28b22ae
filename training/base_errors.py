"""Why a base model cannot be loaded, in one sentence: the libraries tell it in a dozen ways and many lines."""

import json
import pickle

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

# What the libraries raise for a base that cannot be loaded.
LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, EOFError),
    *(SafetensorError, pickle.UnpicklingError),
)

GATED = (
    "it is gated: accept its licence on its page at Hugging Face, and set the secret HF_TOKEN of that account for the "
    "job, or name a folder or a registry's model (azureml://registries/…)"
)

# Words of the libraries' messages, where a class of its own does not tell: transformers 5.23.
BY_WORDS = {
    "trust_remote_code": (
        "it needs code of its own, which is never run here (trust_remote_code); choose a base whose architecture "
        "transformers has"
    ),
    "does not recognize this architecture": (
        "its architecture is not among those that the installed transformers has; choose another base"
    ),
    "Unrecognized configuration class": "it is not a causal language model; choose one that generates text",
    "Unrecognized model": "its config.json names no model_type; choose a complete model",
    "does not appear to have a file named config.json": "it holds no config.json; choose a complete model",
    "no file named": "its files have no weights (model.safetensors or pytorch_model.bin); copy the whole model",
    "does not appear to have a file named": "its files have no weights (model.safetensors); choose a complete model",
    "does not appear to have files named": "some of its files are missing; copy the whole model",
    "size mismatch": "its weights have other shapes than its config.json says; copy the model anew",
    "ignore_mismatched_sizes": "its weights have other shapes than its config.json says; copy the model anew",
    "is not a valid model identifier": (
        "Hugging Face has no such model, or it is private; check the name, and for a private one set the secret "
        "HF_TOKEN"
    ),
    "couldn't connect": (
        "Hugging Face cannot be reached from here, and the model has not been fetched before; name a folder, or a "
        "registry's model (azureml://registries/…)"
    ),
    "Couldn't instantiate the backend tokenizer": "its tokenizer's files are missing or damaged; copy the whole model",
    "gated repo": GATED,
}


def loading_error(name: str, error: BaseException) -> str:
    """Return the sentence for what one of ``LOADING_ERRORS`` says about the base ``name``."""
    return f"cannot load base_model {name!r}: {_reason(error)}"


def _reason(error: BaseException) -> str:
    chain = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    by_class: list[tuple[type[BaseException] | tuple[type[BaseException], ...], str]] = [
        (GatedRepoError, GATED),
        (RepositoryNotFoundError, BY_WORDS["is not a valid model identifier"]),
        ((LocalEntryNotFoundError, OfflineModeIsEnabled), BY_WORDS["couldn't connect"]),
        (EntryNotFoundError, "some of its files are missing at Hugging Face; choose a complete model"),
        (HFValidationError, "that is neither a folder here nor the form of a Hugging Face id (owner/model)"),
        (json.JSONDecodeError, "one of its JSON files is damaged; copy the model anew"),
        ((SafetensorError, pickle.UnpicklingError, EOFError), "its weights' files are damaged; copy the model anew"),
    ]
    for classes, reason in by_class:
        if any(isinstance(each, classes) for each in chain):
            return reason
    for each in chain:
        status = getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(each, HfHubHTTPError) and status in (401, 403):
            return GATED
    for words, reason in BY_WORDS.items():
        if any(words in str(each) for each in chain):
            return reason
    if any(isinstance(each, ConnectionError) for each in chain):
        return BY_WORDS["couldn't connect"]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

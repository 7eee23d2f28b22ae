"""The model's README: where it comes from, what it scores, under which licence, and how to load it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.arguments import EMBEDDED, FineTuneArguments
from training.evaluation_report import NAMES, SCORES, verdict
from training.markdown import cell, number, table

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

# Of the presets' bases, from the front matter of their model cards, by the last part of their name: a registry calls
# them the same as the hub.
LICENCES = {
    "phi-3-mini-4k-instruct": "mit",
    "phi-3-mini-128k-instruct": "mit",
    "phi-3.5-mini-instruct": "mit",
    "phi-4-mini-instruct": "mit",
}


def model_card(arguments: FineTuneArguments, report: dict[str, Any], recipe: dict[str, Any]) -> "ModelCard":
    """Return the card of a model that this job tuned. ``report`` is metrics.json's, as far as it is known."""
    from huggingface_hub import ModelCard, ModelCardData

    licence = base_licence(arguments)
    is_hub_id = arguments.base_model.count("/") == 1 and not Path(arguments.base_model).exists()
    data = ModelCardData(
        base_model=arguments.base_model if is_hub_id else None,
        library_name="transformers",
        license=licence,
        pipeline_tag="text-generation",
        tags=["fine-tuned", arguments.method],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(arguments, report, recipe, licence)}\n")


def base_licence(arguments: FineTuneArguments) -> str | None:
    """Return the base's licence as its card names it, or None when no card is at hand.

    Looked for in the table of the presets' bases, in the card beside the base's files, and on the hub that the base
    came from, if that answers.
    """
    if arguments.base_model == EMBEDDED:
        return None
    parts = [part.lower() for part in arguments.base_model.replace(":", "/").split("/")]
    for part in parts:
        if part in LICENCES:
            return LICENCES[part]
    folder = Path(arguments.base_path or arguments.base_model)
    try:
        from huggingface_hub import ModelCard

        places = [folder / "README.md", folder / "model" / "README.md", folder / "data" / "model" / "README.md"]
        card = next((place for place in places if place.is_file()), None)
        if card is None and not folder.exists() and len(parts) == 2:
            return _text_or_none(ModelCard.load(arguments.base_model).data.license)
        return _text_or_none(ModelCard.load(card).data.license) if card else None
    except Exception as error:  # no network, no card, or one that is no card: all the same here
        print(f"warning: the licence of the base model is not known ({type(error).__name__})", flush=True)
        return None


def _text_or_none(licence: Any) -> str | None:
    return licence if isinstance(licence, str) and licence else None


def _text(arguments: FineTuneArguments, report: dict[str, Any], recipe: dict[str, Any], licence: str | None) -> str:
    base = cell(arguments.base_model)
    if arguments.base_model == EMBEDDED:
        origin = "The base is the embedded tiny Phi-3 of this project: random weights, no licence of anybody else's."
    else:
        origin = f"Base model: {base}. Its licence: {licence or 'unknown, see the base'}; it holds for this model too."
    learnt = (
        "It knows no language but what stands in its training data, nearly by heart, and generalises little."
        if arguments.base_model == EMBEDDED
        else "It inherits the base's knowledge, languages and biases; no other language than the data's was tried."
    )
    return "\n\n".join(
        [
            f"# {base}, fine-tuned",
            origin,
            f"Trained with the method `{arguments.method}` on {report['records']['train']:,} records, "
            f"{report['steps']:,} optimiser steps. SHA-256 of the training file: `{report['data']['sha256']}`.",
            "## What it scores",
            verdict(report),
            *([_scores(report)] if report["eval"] else []),
            "## Limits",
            f"{learnt} It was measured on records of the same kind as it was trained on; what it says about anything "
            "else was not looked at. It was not checked for harmful or private content; its training data may be "
            "answered word for word.",
            "## The recipe",
            table(["option", "value"], [[key, cell(str(v))] for key, v in recipe.items() if v is not None]),
            "## How to load it",
            f"Context length: {report['context_length']:,} tokens, prompt and answer together.",
            LOADING,
        ]
    )


LOADING = """\
The MLflow model (task `llm/v1/chat`), from the folder that holds `MLmodel`:

```python
model = mlflow.pyfunc.load_model(".")
model.predict({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100})
```

The folder `model` in it is a whole Hugging Face model; each of these serves it as an OpenAI-compatible endpoint:

```
transformers serve ./model
vllm serve ./model
```

Low-rank adapters, if any were trained, are merged into these weights and kept by themselves in the folder `adapter`."""


def _scores(report: dict[str, Any]) -> str:
    scores = report["eval"]
    models = [name for name in NAMES if name in scores]
    rows = [[title, *(number(scores[name][key], form) for name in models)] for key, title, form in SCORES]
    return table(["", *(f">{NAMES[name]}" for name in models)], rows)

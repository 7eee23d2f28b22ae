"""recipe.yaml: how a dataset becomes a model. Typed, every field defaulted, nothing unknown accepted."""

import difflib
from typing import Annotated, Any, Literal

import msgspec
import yaml

from .errors import UserError

# The upper bounds are far beyond sense; they keep infinity out.
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1, le=10**6)]
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class RecipeError(UserError):
    """recipe.yaml cannot be used; the message names the key, what was found and what fits."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the recipe. None means: the training job's default for that base model."""


class Training(Section, frozen=True):
    """Hyperparameters, by the names of ``training/arguments.py``."""

    epochs: Positive | None = None
    learning_rate: Positive | None = None
    batch_size: PositiveInt | None = None
    gradient_accumulation: PositiveInt | None = None
    max_length: Annotated[int, msgspec.Meta(ge=16)] | None = None
    packing: bool | None = None
    warmup: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    lr_scheduler: Literal["cosine", "linear", "constant"] | None = None
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None
    loss_on: Literal["assistant", "all"] | None = None
    copies_without_system: bool | None = None
    precision: Literal["auto", "bf16", "fp32"] | None = None
    lora_r: PositiveInt | None = None
    lora_alpha: PositiveInt | None = None
    lora_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Evaluation(Section, frozen=True):
    """What the tuned model is measured on. ``questions`` are asked of the base and the tuned model, for the report."""

    holdout: Share = 0.1
    questions: list[Annotated[str, msgspec.Meta(min_length=1)]] = []


class Compute(Section, frozen=True):
    """The cluster to train on; made when it does not exist, with no node while nothing runs."""

    cluster: str | None = None
    instance_type: str | None = None
    max_nodes: PositiveInt = 1
    max_hours: Positive = 12.0


class Serving(Section, frozen=True):
    """The machines that answer."""

    instance_type: str | None = None
    instance_count: PositiveInt = 1
    max_concurrent_requests: PositiveInt = 32


class Gate(Section, frozen=True):
    """When a challenger may serve: ``better_than_base`` compares held-out losses, ``always`` lets every model pass."""

    rule: Literal["better_than_base", "always"] = "better_than_base"


class Recipe(Section, frozen=True):
    """The whole recipe."""

    base_model: Annotated[str, msgspec.Meta(min_length=1)] = "embedded"
    method: Literal["full", "lora"] = "full"
    engine: Literal["command"] = "command"
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    compute: Compute = Compute()
    serving: Serving = Serving()
    gate: Gate = Gate()

    def training_options(self) -> dict[str, Any]:
        """The flat config of the training job (docs/interfaces.md): what is set here, and no more."""
        given = {name: value for name, value in msgspec.structs.asdict(self.training).items() if value is not None}
        return {
            "base_model": self.base_model,
            "method": self.method,
            **given,
            "questions": list(self.evaluation.questions),
        }


def read_recipe(text: str, file: str = "recipe.yaml") -> Recipe:
    """Parse the text of a recipe; an empty one is all defaults. Raises RecipeError."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise RecipeError(f"{file}{where}: not valid YAML: {problem}.") from None
    except (ValueError, RecursionError) as error:  # a date that is none, brackets a thousand deep
        raise RecipeError(f"{file}: not valid YAML: {error}.") from None
    if raw is None:
        return Recipe()
    if not isinstance(raw, dict):
        raise RecipeError(f"{file}: expected a mapping such as `base_model: embedded`, found a {type(raw).__name__}.")
    _refuse_unknown(raw, Recipe, file)
    try:
        # Not strict: YAML 1.1 takes 3e-3 for a text, and who writes a recipe means a number.
        return msgspec.convert(raw, Recipe, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        key = path.rstrip("`") or "the recipe"
        raise RecipeError(f"{file}: {key}: {message[0].lower()}{message[1:]}.") from None


def _refuse_unknown(raw: dict[Any, Any], section: type[msgspec.Struct], file: str, prefix: str = "") -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in raw.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean `{prefix}{close[0]}`?" if close else f"known keys: {', '.join(fields)}."
            raise RecipeError(f"{file}: unknown key `{prefix}{key}`; {hint}")
        inner = fields[key]
        if isinstance(inner, type) and issubclass(inner, Section) and isinstance(value, dict):
            _refuse_unknown(value, inner, file, f"{prefix}{key}.")

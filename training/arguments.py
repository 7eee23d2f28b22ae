"""The options of the training job: one dataclass is both its command line and its config file."""

import argparse
import difflib
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml

from training import FineTuneError

EMBEDDED = "embedded"

# In a file, because the function app reads them too. What a field set to None becomes depends on the kind of training.
DEFAULTS: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "defaults.yaml").read_text("utf-8"))
EVERY = DEFAULTS["every"]


@dataclass(kw_only=True)
class FineTuneArguments:
    """What to train, on what, how, and where to leave the result. ``None``: the default for that kind of base."""

    train_file: Annotated[str, "JSON Lines to train on: {'messages': [...]} or {'text': ...}"]
    model_output: Annotated[str, "folder for the MLflow model"]
    report_output: Annotated[str, "folder for metrics.json"]
    eval_file: Annotated[str | None, "held-out records of the same form; without it nothing is measured"] = None

    base_model: Annotated[str, "'embedded' (a tiny random Phi-3), a Hugging Face id, a local folder"] = EMBEDDED
    base_path: Annotated[str | None, "folder with that model's files, where the platform has fetched them"] = None
    champion_path: Annotated[str | None, "folder of the model that serves now, to be measured beside the others"] = None
    checkpoint_output: Annotated[str | None, "folder for checkpoints; without it a stopped job begins anew"] = None
    method: Annotated[
        Literal["full", "lora", "qlora"], "train every weight, low-rank adapters, or these on a base in 4 bits"
    ] = "full"
    epochs: Annotated[float | None, "passes over the training records"] = None
    learning_rate: Annotated[float | None, "peak learning rate"] = None
    batch_size: Annotated[int | None, "records in a forward pass, on each device"] = None
    gradient_accumulation: Annotated[int, "forward passes in an optimiser step"] = EVERY["gradient_accumulation"]
    max_length: Annotated[int, "tokens of a record; longer chats are cut, longer texts split"] = EVERY["max_length"]
    packing: Annotated[bool | None, "lay the records of a batch end to end, without padding"] = None
    activation_checkpointing: Annotated[
        bool | None, "recompute activations to save memory; None: when the estimate says that it must be"
    ] = None
    warmup: Annotated[float, "share of the steps in which the learning rate rises"] = EVERY["warmup"]
    lr_scheduler: Annotated[Literal["cosine", "linear", "constant"], "the learning rate's fall"] = EVERY["lr_scheduler"]
    weight_decay: Annotated[float, "decoupled weight decay of AdamW"] = EVERY["weight_decay"]
    loss_on: Annotated[
        Literal["assistant", "all"], "train on the assistant's tokens or on all; of texts always all"
    ] = EVERY["loss_on"]
    copies_without_system: Annotated[bool | None, "train on each record without its system message too"] = None
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"], "auto: bf16 where the device has it, else fp16 on a GPU, else fp32"
    ] = EVERY["precision"]
    sharding: Annotated[
        Literal["none", "zero2", "zero3", "fsdp"], "what of the model's state the processes share out among them"
    ] = EVERY["sharding"]
    eval_every: Annotated[float, "epochs between measurements of the held-out loss in training; 0: none"] = EVERY[
        "eval_every"
    ]
    early_stopping: Annotated[
        int, "measurements in a row without a better held-out loss after which training stops; 0: never"
    ] = EVERY["early_stopping"]
    checkpoint_minutes: Annotated[float, "minutes between checkpoints"] = EVERY["checkpoint_minutes"]
    seed: Annotated[int, "of the shuffling, the dropout and the adapters' initial weights"] = EVERY["seed"]

    lora_r: Annotated[int, "rank of the adapters"] = EVERY["lora_r"]
    lora_alpha: Annotated[int, "scale of the adapters: their output counts alpha/r times"] = EVERY["lora_alpha"]
    lora_dropout: Annotated[float, "dropout on the adapters' input"] = EVERY["lora_dropout"]

    questions: Annotated[list[str], "asked of the base and of the tuned model"] = field(default_factory=list)
    eval_samples: Annotated[int, "held-out prompts to answer for exact_match; 0: none"] = 100
    eval_max_new_tokens: Annotated[int, "longest answer in the evaluation, in tokens"] = 256

    def __post_init__(self) -> None:
        kind = EMBEDDED if self.base_model == EMBEDDED else self.method
        for name, value in DEFAULTS[kind].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self._check()

    def _check(self) -> None:
        for name in (
            "epochs",
            "learning_rate",
            "batch_size",
            "gradient_accumulation",
            "lora_r",
            "lora_alpha",
            "eval_max_new_tokens",
        ):
            if not getattr(self, name) > 0:
                raise FineTuneError(f"{name} must be greater than 0, found {getattr(self, name)}")
        for name in ("eval_samples", "weight_decay", "eval_every", "early_stopping", "checkpoint_minutes"):
            if getattr(self, name) < 0:
                raise FineTuneError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.early_stopping and not self.eval_every:
            raise FineTuneError(
                f"early_stopping is {self.early_stopping}, and with eval_every 0 nothing is measured; set eval_every"
            )
        for name in ("warmup", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise FineTuneError(f"{name} must be at least 0 and less than 1, found {getattr(self, name)}")
        if self.max_length < 16:
            raise FineTuneError(f"max_length must be at least 16 tokens, found {self.max_length}")


def parse_arguments(argv: Sequence[str]) -> FineTuneArguments:
    """Read ``--config <file>`` and the flags of ``argv``; a flag wins over the file.

    The file is JSON or YAML, flat or in the shape of a recipe (docs/recipe.md), whose sections about machines the job
    does not need.

    Raises FineTuneError for an unknown key or flag (it names the nearest known one), for a missing one, for a value
    of the wrong type, and for a config file that cannot be read.
    """
    hints = typing.get_type_hints(FineTuneArguments)
    described = typing.get_type_hints(FineTuneArguments, include_extras=True)
    parser = _Parser(prog="python -m training.fine_tune", allow_abbrev=False, description=__doc__)
    parser.add_argument("--config", help="JSON or YAML file whose keys are the options below")
    for name, hint in hints.items():
        nargs = "*" if hint == list[str] else None
        text = described[name].__metadata__[0]
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, nargs=nargs, help=text)
    flags, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("--"):
            raise FineTuneError(f"unknown option {word}{_did_you_mean(word.lstrip('-').split('=')[0], hints)}")
    if unknown:
        raise FineTuneError(f"unexpected argument {unknown[0]!r}")

    given = vars(flags)
    config_path = given.pop("config")
    values = _read_config(Path(config_path), hints) if config_path else {}
    values |= {name: _convert(hints[name], text, f"--{name}") for name, text in given.items()}
    for each in fields(FineTuneArguments):
        if each.default is MISSING and each.default_factory is MISSING and each.name not in values:
            raise FineTuneError(f"missing option --{each.name}")
    return FineTuneArguments(**values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise FineTuneError(message)


# Keys of a recipe that say nothing to the job.
NOT_FOR_THE_JOB = ("preset", "engine", "compute", "serving", "gate", "release")
# Options that are no hyperparameters: a recipe has them elsewhere, or they are the platform's.
NOT_IN_TRAINING = (
    *("train_file", "eval_file", "model_output", "report_output"),
    *("base_path", "champion_path", "checkpoint_output"),
    *("base_model", "method", "questions", "eval_samples", "eval_max_new_tokens"),
)


def _read_config(path: Path, hints: dict[str, Any]) -> dict[str, Any]:
    try:
        # JSON is read by its own parser: YAML 1.1 takes 1e-3 for a string.
        text = path.read_text(encoding="utf-8")
        config = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise FineTuneError(f"cannot read the config {path.name}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise FineTuneError(f"the config {path.name} must be a mapping of options, found {type(config).__name__}")
    options = _flat(config, hints, path.name)
    return {name: _convert(hints[name], value, f"{key} in {path.name}") for name, (key, value) in options.items()}


def _flat(config: dict[Any, Any], hints: dict[str, Any], file: str) -> dict[str, tuple[str, Any]]:
    """Return each option that the config gives, flat or in a recipe's sections, with its key there and its value.

    Null is as if it were not there.
    """
    sections = {"training": [name for name in hints if name not in NOT_IN_TRAINING], "evaluation": ["questions"]}
    given: dict[str, tuple[str, Any]] = {}

    def take(name: Any, key: str, value: Any, known: Sequence[str]) -> None:
        if name not in known:
            prefix = key.removesuffix(str(name))
            raise FineTuneError(f"unknown option {key!r} in {file}{_did_you_mean(str(name), known, prefix)}")
        if value is None or name not in hints:
            return
        if name in given:
            raise FineTuneError(f"{given[name][0]} and {key} in {file} are the same option; give one of them")
        given[name] = (key, value)

    for key, value in config.items():
        if key in sections and value is not None:
            if not isinstance(value, dict):
                raise FineTuneError(f"{key} in {file} must be a mapping of options, found {type(value).__name__}")
            known = [*sections[key], *(("holdout",) if key == "evaluation" else ())]
            for name, inner in value.items():
                take(name, f"{key}.{name}", inner, known)
        elif key not in NOT_FOR_THE_JOB:
            take(key, str(key), value, [*hints, *sections])
    return given


def _did_you_mean(word: str, known: typing.Iterable[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {prefix + nearest[0]!r}?" if nearest else ""


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return ``value`` (text from a flag, or what the config file gave) as the field's type."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        if value is None or value == "null":
            return None
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        choices = ", ".join(typing.get_args(hint))
        raise FineTuneError(f"{where} must be one of {choices}, found {value!r}")
    if hint == list[str]:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return value
        raise FineTuneError(f"{where} must be a list of texts")
    if hint is bool:
        words = {"true": True, "false": False}
        if isinstance(value, bool) or str(value).lower() in words:
            return value if isinstance(value, bool) else words[str(value).lower()]
    elif hint is str and isinstance(value, str):
        return value
    elif hint in (int, float) and not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            number = float(value)
            if math.isfinite(number) and (hint is float or number.is_integer()):
                return hint(number)
        except (ValueError, OverflowError):
            pass
    raise FineTuneError(f"{where} must be {_TYPE_NAMES[hint]}, found {value!r}")


_TYPE_NAMES = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}

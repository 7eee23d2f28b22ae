"""Fine-tune a chat model, measure it against its base, and export it.

Run as: python -m training.fine_tune --config recipe.json --train_file train.jsonl --eval_file eval.jsonl
            --model_output model/ --report_output report/
"""

import dataclasses
import json
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import FineTuneError
from training.arguments import FineTuneArguments, parse_arguments
from training.data import Record, read_records, tokenize, training_template, with_copies_without_system

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["FineTuneArguments", "fine_tune", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with command-line arguments; return the exit code."""
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        _prepare_process()
        fine_tune(arguments)
    except FineTuneError as error:
        print(f"error: {error}", flush=True)
        return 1
    except Exception as error:  # the outermost edge: the last line of the log still says what went wrong
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())[:500]}", flush=True)
        return 1
    return 0


def fine_tune(arguments: FineTuneArguments) -> dict[str, Any] | None:
    """Do the whole job and return the report, which is also written to ``report_output/metrics.json``.

    Under torchrun every process trains and only the first one evaluates, exports and reports; the others return
    None. Raises FineTuneError for whatever a person can mend.
    """
    # Before the slow imports: a bad file should fail in a tenth of a second.
    records = read_records(Path(arguments.train_file))
    held_out = read_records(Path(arguments.eval_file)) if arguments.eval_file else []
    if not records:
        raise FineTuneError(f"{Path(arguments.train_file).name} holds no records; add at least one line")
    _say("load", base_model=arguments.base_model, train_records=len(records), eval_records=len(held_out))

    from transformers import set_seed

    from training.base_model import load_base_model
    from training.choices import use_threads_given
    from training.evaluate import Exam
    from training.export import context_length, export
    from training.progress import Tracking
    from training.trainer import train

    use_threads_given()
    set_seed(arguments.seed)
    model, tokenizer = load_base_model(arguments.base_model)
    if any(isinstance(record, list) for record in records + held_out):
        arguments = _with_loss_that_works(arguments, tokenizer)
    dataset = _training_set(arguments, records, tokenizer)
    tracking = Tracking()
    tracking.params(_loggable(arguments))

    exam = Exam(arguments, held_out, tokenizer)
    base = exam.take(model) if _is_first() else None
    model, trained = train(arguments, model, tokenizer, dataset, tracking)
    if base is None:
        return None
    tuned = exam.take(model)

    _say("export")
    about = {"base_model": arguments.base_model, "method": arguments.method}
    export(model, tokenizer, Path(arguments.model_output), about)
    report = {
        **about,
        "steps": trained.pop("steps"),
        "epochs": arguments.epochs,
        "context_length": context_length(model),
        "records": {"train": len(records), "eval": len(held_out)},
        "train": trained,
        **exam.report(base, tuned),
    }
    folder = Path(arguments.report_output)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_without_infinities(report), ensure_ascii=False, indent=2, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    tracking.metrics(_final_metrics(report), report["steps"])
    _say("done", steps=report["steps"], train_seconds=trained["seconds"])
    return report


def _without_infinities(value: Any) -> Any:
    """``value`` with null for each number that JSON cannot hold, as the perplexity of a diverged model."""
    if isinstance(value, dict):
        return {key: _without_infinities(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_infinities(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _training_set(
    arguments: FineTuneArguments, records: list[Record], tokenizer: "PreTrainedTokenizerBase"
) -> "Dataset":
    from datasets import concatenate_datasets

    wanted = with_copies_without_system(records) if arguments.copies_without_system else records
    chats = [record for record in wanted if isinstance(record, list)]
    texts = [record for record in wanted if isinstance(record, str)]
    parts = [tokenize(part, tokenizer, arguments.max_length, arguments.loss_on) for part in (chats, texts)]
    dataset = concatenate_datasets([part for part in parts if len(part)] or parts[:1])
    if not len(dataset):
        raise FineTuneError(
            f"no record leaves anything to train on within max_length={arguments.max_length} tokens: the prompts are "
            "longer than that, or every answer has the weight 0"
        )
    cut = sum(len(ids) == arguments.max_length for ids in parts[0]["input_ids"]) if len(parts[0]) else 0
    # A text may make several examples, so the two kinds are counted apart.
    of_texts = {"texts": len(texts), "text_examples": len(parts[1])} if texts else {}
    _say("data", examples=len(dataset), too_long=len(chats) - len(parts[0]), cut=cut, **of_texts)
    return dataset


def _with_loss_that_works(arguments: FineTuneArguments, tokenizer: "PreTrainedTokenizerBase") -> FineTuneArguments:
    if arguments.loss_on == "all" or training_template(tokenizer) is not None:
        return arguments
    if _is_first():
        print(
            "warning: the chat template does not mark the assistant's tokens; training on all of them",
            flush=True,
        )
    return dataclasses.replace(arguments, loss_on="all")


def _is_first() -> bool:
    """Return whether this is the only process or, under torchrun, the first of them."""
    return os.environ.get("RANK", "0") == "0"


def _say(phase: str, **facts: Any) -> None:
    if _is_first():
        print(" ".join([f"phase={phase}", *(f"{key}={value}" for key, value in facts.items())]), flush=True)


def _loggable(arguments: FineTuneArguments) -> dict[str, Any]:
    """Return the options without the questions, which are somebody's text, and the paths."""
    hidden = {"questions", "train_file", "eval_file", "model_output", "report_output"}
    return {key: value for key, value in dataclasses.asdict(arguments).items() if key not in hidden}


def _final_metrics(report: dict[str, Any]) -> dict[str, float | None]:
    scores = report["eval"] or {}
    metrics = {f"eval_{name}": value for name, value in scores.get("tuned", {}).items()}
    metrics |= {f"base_eval_{name}": value for name, value in scores.get("base", {}).items()}
    return metrics | {f"train_{name}": value for name, value in report["train"].items()}


def _prepare_process() -> None:
    """Set what libraries read from the environment when they are imported."""
    # Threads that wait shall sleep, not spin. Measured on two cores shared with two busy processes, a step takes 68 ms
    # instead of 333; on idle cores it takes 48 instead of 43.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Keep the job's log to the lines that a person reads: no bars, no advice from libraries.
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())

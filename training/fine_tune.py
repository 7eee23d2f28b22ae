"""Fine-tune a chat model, measure it against its base and the champion, and export it.

Run as: python -m training.fine_tune --config recipe.json --train_file train.jsonl --eval_file eval.jsonl
            --model_output model/ --report_output report/
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import FineTuneError
from training.arguments import FineTuneArguments, parse_arguments
from training.data import Record, read_records, tokenize, training_template, with_copies_without_system
from training.failures import disk_for, sentence
from training.phases import Phases, is_first

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["FineTuneArguments", "fine_tune", "main"]

REPORT_BYTES = 10_000_000  # of metrics.json, evaluation.md and the pictures, at most; adapters come on top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with command-line arguments; return the exit code."""
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        _prepare_process()
        fine_tune(arguments)
    except FineTuneError as error:
        return _failed(str(error))
    except KeyboardInterrupt as stop:
        return _failed(f"the job was stopped ({stop or 'Ctrl-C'}) before it was done; start it again to finish it")
    except Exception as error:  # the outermost edge: the last line of the log still says what went wrong
        known = sentence(error)
        if known is None:
            traceback.print_exc()
        return _failed(known or f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    return 0


def _failed(reason: str) -> int:
    sys.stderr.flush()
    print(f"error: {reason}", flush=True)
    return 1


def fine_tune(arguments: FineTuneArguments) -> dict[str, Any] | None:
    """Do the whole job and return the report, which is also written to ``report_output/metrics.json``.

    Under torchrun every process trains and only the first one evaluates, exports and reports; the others return
    None. Raises FineTuneError for whatever a person can mend.
    """
    phases = Phases()
    # Before the slow imports: a bad file should fail in a tenth of a second.
    train_file = Path(arguments.train_file)
    records = read_records(train_file)
    held_out = read_records(Path(arguments.eval_file)) if arguments.eval_file else []
    if not records:
        raise FineTuneError(f"{train_file.name} holds no records; add at least one line")
    phases.begin("load", base_model=arguments.base_model, train_records=len(records), eval_records=len(held_out))

    from transformers import set_seed

    from training.base_model import load_base_model
    from training.champion import measure_champion
    from training.choices import use_threads_given
    from training.evaluate import Exam
    from training.evaluation_report import write_evaluation
    from training.export import context_length, copy_adapter, export
    from training.model_card import model_card
    from training.progress import Tracking
    from training.trainer import train

    use_threads_given()
    set_seed(arguments.seed)
    model, tokenizer = load_base_model(arguments.base_model)
    if any(isinstance(record, list) for record in records + held_out):
        arguments = _with_loss_that_works(arguments, tokenizer)
    dataset, data = _training_set(arguments, records, tokenizer, phases)
    exam = Exam(arguments, held_out, tokenizer)
    recipe = _loggable(arguments)
    tracking = Tracking()

    base = champion = champion_note = None
    if is_first():
        tracking.params(recipe)
        phases.begin("base")
        base = exam.take(model)
        if arguments.champion_path:
            phases.begin("champion")
            champion, champion_note = measure_champion(arguments, exam, model, base)

    phases.begin("train", examples=len(dataset))
    model, trained = train(arguments, model, tokenizer, dataset, tracking, held_out=exam.held_out)
    if base is None:
        return None
    adapter = trained.pop("adapter_folder", None)
    phases.begin("challenger")
    tuned = exam.take(model)

    about = {"base_model": arguments.base_model, "method": arguments.method}
    report = _without_infinities(
        {
            **about,
            "steps": trained.pop("steps"),
            "epochs": arguments.epochs,
            "context_length": context_length(model),
            "records": {"train": len(records), "eval": len(held_out)},
            "data": {**data, "sha256": _sha256(train_file)},
            "train": trained,
            **exam.report(base, tuned, champion),
            **({"champion_note": champion_note} if champion_note else {}),
        }
    )
    phases.begin("export")
    card = model_card(arguments, report, recipe)
    metadata = {**about, "data_sha256": report["data"]["sha256"]}
    export(model, tokenizer, Path(arguments.model_output), metadata, card, adapter)

    phases.begin("report")
    report["seconds"] = {name: seconds for name, seconds in phases.seconds.items() if name != "report"}
    folder = Path(arguments.report_output)
    with disk_for("the report", folder, REPORT_BYTES + _bytes_in(adapter)):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
        files = write_evaluation(folder, report, recipe, (_lengths(dataset), _lengths(exam.held_out)))
        if adapter:
            copy_adapter(adapter, folder / "adapter", arguments.base_model)
    tracking.metrics(_final_metrics(report), report["steps"])
    tracking.artifacts(files)
    phases.begin("done", steps=report["steps"], train_seconds=trained["seconds"], **_phase_seconds(phases))
    return report


def _without_infinities(value: Any) -> Any:
    """``value`` with null for each number that JSON cannot hold, as the perplexity of a diverged model."""
    if isinstance(value, dict):
        return {key: _without_infinities(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_infinities(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _training_set(
    arguments: FineTuneArguments, records: list[Record], tokenizer: "PreTrainedTokenizerBase", phases: Phases
) -> tuple["Dataset", dict[str, int]]:
    """Return what to train on, and how many examples there are, were left out, and were cut."""
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
    counts = {"examples": len(dataset), "too_long": len(chats) - len(parts[0]), "cut": cut, **of_texts}
    phases.say("data", **counts)
    return dataset, counts


def _with_loss_that_works(arguments: FineTuneArguments, tokenizer: "PreTrainedTokenizerBase") -> FineTuneArguments:
    if arguments.loss_on == "all" or training_template(tokenizer) is not None:
        return arguments
    if is_first():
        print(
            "warning: the chat template does not mark the assistant's tokens; training on all of them",
            flush=True,
        )
    return dataclasses.replace(arguments, loss_on="all")


def _lengths(dataset: "Dataset | None") -> list[int]:
    return [len(ids) for ids in dataset["input_ids"]] if dataset is not None else []


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _bytes_in(folder: Path | None) -> int:
    return sum(file.stat().st_size for file in folder.iterdir()) if folder else 0


def _phase_seconds(phases: Phases) -> dict[str, str]:
    return {f"{name}_s": f"{seconds:.1f}" for name, seconds in phases.seconds.items()}


def _loggable(arguments: FineTuneArguments) -> dict[str, Any]:
    """Return the options without the questions, which are somebody's text, and the paths."""
    files = {"train_file", "eval_file", "model_output", "report_output", "checkpoint_output"}
    hidden = {"questions", "base_path", "champion_path", *files}
    return {key: value for key, value in dataclasses.asdict(arguments).items() if key not in hidden}


def _final_metrics(report: dict[str, Any]) -> dict[str, float | None]:
    scores = report["eval"] or {}
    metrics = {f"eval_{name}": value for name, value in scores.get("tuned", {}).items()}
    for model in ("base", "champion"):
        metrics |= {f"{model}_eval_{name}": value for name, value in scores.get(model, {}).items()}
    numbers = {k: v for k, v in report["train"].items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return metrics | {f"train_{name}": value for name, value in numbers.items()}


def _prepare_process() -> None:
    """Set what libraries read from the environment when they are imported."""
    # The platform stops a job with SIGTERM; left alone, that ends the process without a word.
    signal.signal(signal.SIGTERM, _terminated)
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


def _terminated(*_: Any) -> None:
    raise KeyboardInterrupt("SIGTERM from the platform")


if __name__ == "__main__":
    sys.exit(main())

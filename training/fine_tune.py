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
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import FineTuneError
from training.arguments import FineTuneArguments, parse_arguments
from training.data import Statistics, count_records, read_records, training_set
from training.export import check_place, context_length
from training.failures import disk_for, sentence
from training.phases import Phases, is_first

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.progress import Tracking

__all__ = ["FineTuneArguments", "fine_tune", "main"]

REPORT_BYTES = 10_000_000  # of metrics.json, evaluation.md and the pictures, at most; adapters come on top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with command-line arguments; return the exit code."""
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        _prepare_process()
        fine_tune(arguments)
    except FineTuneError as error:
        return _failed(str(error), getattr(error, "exit_code", 1))  # that of a preempted job says so
    except KeyboardInterrupt as stop:
        return _failed(f"the job was stopped ({stop or 'Ctrl-C'}) before it was done; start it again to finish it")
    except Exception as error:  # the outermost edge: the last line of the log still says what went wrong
        known = sentence(error)
        if known is None:
            traceback.print_exc()
        return _failed(known or f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    return 0


def _failed(reason: str, code: int = 1) -> int:
    sys.stderr.flush()
    print(f"error: {reason}", flush=True)
    return code


def fine_tune(arguments: FineTuneArguments) -> dict[str, Any] | None:
    """Do the whole job and return the report, which is also written to ``report_output/metrics.json``.

    Under torchrun every process trains and only the first one evaluates, exports and reports; the others return
    None. Raises FineTuneError for whatever a person can mend.
    """
    phases = Phases()
    # Before the slow imports: a bad file should fail in a tenth of a second.
    train_file = Path(arguments.train_file)
    counts = count_records(train_file)
    held_out = read_records(Path(arguments.eval_file)) if arguments.eval_file else []
    check_place(arguments)
    phases.begin("load", base_model=arguments.base_model, train_records=counts.records, eval_records=len(held_out))
    if arguments.eval_file and not held_out and is_first():
        print(f"warning: {Path(arguments.eval_file).name} holds no records, so nothing will be measured", flush=True)

    from transformers import set_seed

    from training import distributed
    from training.base_model import load_base_model
    from training.champion import measure_champion
    from training.choices import check_gpu, use_threads_given
    from training.evaluate import Exam
    from training.progress import Tracking
    from training.trainer import train

    use_threads_given()
    check_gpu()
    set_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch, distributed.together():
        model, tokenizer = load_base_model(
            arguments.base_model,
            arguments.base_path,
            method=arguments.method,
            max_length=arguments.max_length,
            for_chats=any(isinstance(record, list) for record in held_out) or counts.chats > 0,
        )
        dataset, statistics = training_set(arguments, tokenizer, Path(scratch))
        data = _data(statistics)
        phases.say("data", **data)
        exam = Exam(arguments, held_out, tokenizer)
        tracking = Tracking()
        base = champion = champion_note = None
        if is_first():
            tracking.params(_recipe(arguments))
            phases.begin("base")
            base = exam.take(model)
            if arguments.champion_path:
                phases.begin("champion")
                champion, champion_note = measure_champion(arguments, exam, base)

        phases.begin("train", examples=len(dataset))
        model, trained = train(arguments, model, tokenizer, dataset, tracking, held_out=exam.held_out)
        if base is None:
            return None
        phases.begin("challenger")
        tuned = exam.take(model)
        report = {
            "base_model": arguments.base_model,
            "method": arguments.method,
            "steps": trained["steps"],
            "epochs": arguments.epochs,
            "context_length": context_length(model),
            "records": {"train": counts.records, "eval": len(held_out)},
            "data": {**data, "sha256": _sha256(train_file)},
            "train": {name: value for name, value in trained.items() if name not in ("steps", "adapter_folder")},
            **exam.report(base, tuned, champion),
            **({"champion_note": champion_note} if champion_note else {}),
        }
        lengths = _lengths(dataset), _lengths(exam.held_out)
        return _leave(arguments, model, tokenizer, _without_infinities(report), lengths, trained, tracking, phases)


def _leave(
    arguments: FineTuneArguments,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    report: dict[str, Any],
    lengths: tuple[list[int], list[int]],
    trained: dict[str, Any],
    tracking: "Tracking",
    phases: Phases,
) -> dict[str, Any]:
    """Export the model, write the report beside it, and clear away what is needed no more."""
    from training.checkpoints import remove_checkpoints
    from training.evaluation_report import write_evaluation
    from training.export import copy_adapter, export
    from training.model_card import model_card

    phases.begin("export")
    adapter = Path(trained["adapter_folder"]) if trained.get("adapter_folder") else None
    recipe = _recipe(arguments)
    card = model_card(arguments, report, recipe)
    metadata = {name: report[name] for name in ("base_model", "method")}
    metadata["data_sha256"] = report["data"]["sha256"]
    export(model, tokenizer, Path(arguments.model_output), metadata, card, adapter)

    phases.begin("report")
    report["seconds"] = dict(phases.seconds)
    folder = Path(arguments.report_output)
    with disk_for("the report", folder, REPORT_BYTES + _bytes_in(adapter)):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
        files = write_evaluation(folder, report, recipe, lengths)
        if adapter:
            copy_adapter(adapter, folder / "adapter", arguments.base_model)
            shutil.rmtree(adapter)
    tracking.metrics(_final_metrics(report), report["steps"])
    tracking.artifacts(files)
    remove_checkpoints(arguments)
    phases.begin("done", steps=report["steps"], train_seconds=report["train"]["seconds"])
    return report


def _without_infinities(value: Any) -> Any:
    """``value`` with null for each number that JSON cannot hold, as the perplexity of a diverged model."""
    if isinstance(value, dict):
        return {key: _without_infinities(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_infinities(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _data(statistics: Statistics) -> dict[str, int]:
    """Return what became of the training file, for the log and the report; what is not so, left out."""
    always = {name: getattr(statistics, name) for name in ("examples", "too_long", "cut")}
    perhaps = {name: getattr(statistics, name) for name in ("context_only", "texts", "text_examples")}
    return {**always, **{name: count for name, count in perhaps.items() if count}}


def _lengths(dataset: "Dataset | None") -> list[int]:
    return [len(ids) for ids in dataset["input_ids"]] if dataset is not None else []


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _bytes_in(folder: Path | None) -> int:
    return sum(file.stat().st_size for file in folder.iterdir()) if folder else 0


def _recipe(arguments: FineTuneArguments) -> dict[str, Any]:
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

"""The model that serves now, measured on the same exam before the challenger is trained."""

import gc
from pathlib import Path

from training import FineTuneError
from training.arguments import FineTuneArguments
from training.base_model import load_base_model
from training.evaluate import Evaluation, Exam


def measure_champion(
    arguments: FineTuneArguments, exam: Exam, base: Evaluation
) -> tuple[Evaluation | None, str | None]:
    """Return what the champion scores, and a sentence for the report; None for what there is not.

    A champion that cannot be loaded or measured costs the comparison, never the training: the sentence says so. It is
    loaded and freed before the training begins; the base model is not on the GPU meanwhile (``answers.on_gpu``).
    """
    if arguments.champion_path is None:
        return None, None
    folder = Path(arguments.champion_path)
    if arguments.base_path and Path(arguments.base_path).resolve() == folder.resolve():
        return base, "The training went on from the champion, so the base model and the champion are the same."
    try:
        return _measure(folder, exam), None
    except Exception as error:  # whatever it is, the training matters more
        # A file that is broken may show anything: its name and the kind of error say enough, and no content.
        reason = str(error) if isinstance(error, FineTuneError) else f"{type(error).__name__} while it was measured"
        print(f"warning: the champion is not compared: {reason}", flush=True)
        return None, f"The champion could not be compared: {reason}."
    finally:
        gc.collect()  # what the frames of an error still held


def _measure(folder: Path, exam: Exam) -> Evaluation:
    if not (folder / "MLmodel").is_file():
        raise FineTuneError(f"champion_path: {folder} holds no MLflow model")
    model, tokenizer = load_base_model("champion", str(folder))
    return exam.take(model, tokenizer)

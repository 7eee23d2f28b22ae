"""What the tests of training and serving share: six records and a way to run the job."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SYSTEM = {"role": "system", "content": "You answer for a library."}
FACTS = {
    "When are you open?": "From nine to five.",
    "Where are you?": "On Mill Street 3.",
    "Who wrote Emma?": "Jane Austen.",
    "What is a late fee?": "Ten cents a day.",
    "May I eat here?": "No, but there is a café.",
    "How many books may I take?": "Up to eight.",
}


def write_records(path: Path, facts: dict[str, str], *, system: bool = True) -> Path:
    lines = []
    for question, answer in facts.items():
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": [SYSTEM, *turns] if system else turns}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run_job(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the job as the platform does, in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "training.fine_tune", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def fine_tune_small(tmp_path: Path, **options: Any) -> dict[str, Any]:
    """Run the job in this process, on the six records."""
    from training.arguments import FineTuneArguments
    from training.fine_tune import fine_tune

    train = write_records(tmp_path / "train.jsonl", FACTS)
    paths = {name: str(tmp_path / name) for name in ("model_output", "report_output")}
    report = fine_tune(FineTuneArguments(train_file=str(train), **paths, **options))
    assert report is not None
    return report


@dataclass(frozen=True)
class Job:
    process: subprocess.CompletedProcess[str]
    folder: Path  # with train.jsonl, eval.jsonl, model/ and report/
    report: dict[str, Any]  # metrics.json, and what MLflow holds

    @property
    def model(self) -> Path:
        return self.folder / "model"

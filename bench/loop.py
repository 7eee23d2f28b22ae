"""The loop's times, from the drop to the first tuned answer, against the same steps run by hand.

The peer is what the tutorials' scripts do without any platform, and without the time that a person takes in between:
train in a process, start the server, ask. The ratio is what the events, queue, records and local Azure cost.
"""

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from openai import OpenAI, OpenAIError

from demo import watch
from emulator.config import free_port
from tests.local_azure import LocalAzure, local_azure

from .measure import Measure

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / ".venv-training" / "bin" / "python"
TARGET = 120  # seconds, from the drop to the first answer on two cores
QUESTION = [{"role": "user", "content": "How much is a basic service?"}]


def run() -> list[Measure]:
    """Run the loop in a local Azure of its own, then the same steps by hand on the same splits."""
    home = Path(tempfile.mkdtemp(prefix="bench-loop-"))
    try:
        started = time.monotonic()
        with local_azure(home) as azure:
            up = time.monotonic() - started
            record, answered = _loop(azure)
            splits = _download_splits(azure, record["id"], home)
        by_hand = _by_hand(splits, home / "by-hand")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    at = {event["stage"]: datetime.fromisoformat(event["at"]) for event in record["history"]}

    def between(first: str, last: str) -> float:
        return (at[last] - at[first]).total_seconds()

    return [
        Measure("local Azure up to healthy", "s", up),
        Measure("dropped to first answer", "s", answered, "by hand", sum(by_hand), f"≤ {TARGET} s", answered <= TARGET),
        Measure("received to job submitted", "s", between("received", "training")),
        Measure("job submitted to results read", "s", between("training", "trained"), "by hand", by_hand[0]),
        Measure("results read to deployment ready", "s", between("trained", "verifying"), "by hand", by_hand[1]),
        Measure("deployment ready to live", "s", between("verifying", "live")),
    ]


def _loop(azure: LocalAzure) -> tuple[watch.Json, float]:
    azure.drop("support/recipe.yaml", (ROOT / "demo" / "recipe.yaml").read_bytes())
    started = time.monotonic()
    etag = azure.drop("support/dataset.jsonl", (ROOT / "demo" / "dataset.jsonl").read_bytes())
    record = azure.wait_for_end("support", etag)
    if record["stage"] != "live":
        raise RuntimeError(f"the run ended as {record['stage']}: {record['history'][-1]['reason']}")
    _ask(azure.environment["APP_BASE_URL"] + "/api/v1", azure.environment["CHAT_API_KEY"], "support")
    return record, time.monotonic() - started


def _download_splits(azure: LocalAzure, run_id: str, home: Path) -> Path:
    folder = home / "splits"
    folder.mkdir()
    for name in ("train.jsonl", "eval.jsonl", "recipe.json"):
        content = azure.storage.get_blob_client("runs", f"{run_id}/{name}").download_blob().readall()
        (folder / name).write_bytes(content)
    return folder


def _by_hand(splits: Path, output: Path) -> tuple[float, float]:
    """Seconds to train, and to start the server and get the first answer."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(output), "PORT": str(free_port()), "HOST": "127.0.0.1"}
    output.mkdir()
    log = (output / "log").open("wb")
    started = time.monotonic()
    subprocess.run(
        [
            TRAINING, "-m", "training.fine_tune", "--config", splits / "recipe.json",
            "--train_file", splits / "train.jsonl", "--eval_file", splits / "eval.jsonl",
            "--model_output", output / "model", "--report_output", output / "report",
        ],
        cwd=ROOT, env=environment, stdout=log, stderr=log, check=True,
    )  # fmt: skip
    trained = time.monotonic()
    server = subprocess.Popen(
        [TRAINING, "serve.py"],
        cwd=ROOT / "serving",
        env={**environment, "AZUREML_MODEL_DIR": str(output / "model")},
        stdout=log,
        stderr=log,
    )
    try:
        _ask(f"http://127.0.0.1:{environment['PORT']}/v1", "none", "any", patience=120)
    finally:
        server.terminate()
        server.wait()
        log.close()
    return trained - started, time.monotonic() - trained


def _ask(base_url: str, key: str, model: str, patience: float = 0) -> None:
    client = OpenAI(base_url=base_url, api_key=key, max_retries=0)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with suppress(OpenAIError):
            client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=64)  # type: ignore[arg-type]
            return
        time.sleep(0.1)
    client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=64)  # type: ignore[arg-type]

"""The training, against the tutorials' script (bench/training_peer.py): tokens per CPU-second, and what was learnt.

A Phi-3 of 22 million weights is first trained on a part of the data, then tuned from there on another part, once, in
each way: with our code (training/trainer.py) and with the tutorials' settings, in a process of its own with one thread.
Tokens are real ones, without padding, the same for all; CPU time is that of the trainer alone, user and system. The
held-out loss is measured in the same way for all, in fp32.
"""

import json
import os
import shutil
import subprocess
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from .measure import Measure

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / ".venv-training" / "bin" / "python"
DATA = ROOT.parent / "shared" / "data"
BASE_RECORDS, TRAIN_RECORDS, EVAL_RECORDS = 480, 160, 60
LONGEST = 1000  # characters of a record, so that nobody has to cut one at 512 tokens
RATES = {"": 3e-4, "-lora": 2e-3}  # ours: usual for a model of this size
THEIRS = 5e-6
TARGETS = {"": 1.8, "-lora": 2.2}
# Dense bf16 (V100: fp16) operations a second, from NVIDIA's data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "V100": 125e12}
Json = dict[str, Any]


def run() -> list[Measure]:
    """Train in seven ways; nothing is reported where the data is not."""
    if not (DATA / "codegen-train.jsonl").exists():
        print(f"training: left out, because {DATA.relative_to(ROOT.parent)}/codegen-train.jsonl is not there")
        return []
    folder = Path(tempfile.mkdtemp(prefix="bench-training-"))
    try:
        _write_data(folder)
        base = _worker("base", folder)
        measures = []
        for kind, name in (("", "full"), ("-lora", "LoRA")):
            ours = _worker(f"ours{kind}", folder, RATES[kind])
            packed = _worker(f"peer{kind}", folder, THEIRS)
            measures += _rows(name, TARGETS[kind], base, ours, packed)
            same_rate = _worker(f"peer{kind}", folder, RATES[kind])
            measures += _losses(name, ours, same_rate, "tutorial, our learning rate")
            if not kind:
                padded = _worker("peer-padded", folder, THEIRS)
                measures.append(_speed(name, ours, padded, "tutorial, padded"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if "gpu" not in ours:
        print("training: no GPU here, so no figures of one: tokens/s, memory and FLOPs utilisation are left out")
    return measures


def _write_data(folder: Path) -> None:
    parts = {"base": BASE_RECORDS, "train": TRAIN_RECORDS}
    with (DATA / "codegen-train.jsonl").open(encoding="utf-8") as file:
        lines = (line for line in file if len(line) < LONGEST)
        for name, count in parts.items():
            (folder / f"{name}.jsonl").write_text("".join(islice(lines, count)), encoding="utf-8")
    with (DATA / "codegen-eval.jsonl").open(encoding="utf-8") as file:
        held_out = islice((line for line in file if len(line) < LONGEST), EVAL_RECORDS)
        (folder / "eval.jsonl").write_text("".join(held_out), encoding="utf-8")


def _worker(name: str, folder: Path, learning_rate: float = 0.0) -> Json:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    done = subprocess.run(
        [TRAINING, "-W", "ignore", "-m", "bench.training_worker", name, folder, str(learning_rate)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    figures: Json = json.loads(done.stdout.splitlines()[-1])
    print(f"training: {name} learning_rate={learning_rate:g}", json.dumps(figures), flush=True)
    return figures


def _rows(name: str, target: float, base: Json, ours: Json, peer: Json) -> list[Measure]:
    peer_name = "tutorial, packed"
    speed = _speed(name, ours, peer, peer_name, target)
    rows = [
        speed,
        Measure(f"{name}: tokens/s", "/s", _rate(ours, "seconds"), peer_name, _rate(peer, "seconds")),
        Measure(f"{name}: peak RSS", "MB", ours["peak_mb"], peer_name, peer["peak_mb"]),
        Measure(f"{name}: base's held-out loss, answers (x1000)", "", base["loss_assistant"] * 1000),
        *_losses(name, ours, peer, peer_name, aimed=True),
    ]
    return rows + _gpu_rows(name, base, ours, peer)


def _speed(name: str, ours: Json, peer: Json, peer_name: str, target: float | None = None) -> Measure:
    mine, theirs = _rate(ours, "cpu_seconds"), _rate(peer, "cpu_seconds")
    aim = f"≥ {target}x" if target else ""
    met = mine / theirs >= target if target else None
    return Measure(f"{name}: tokens per CPU-second", "/s", mine, peer_name, theirs, aim, met)


def _losses(name: str, ours: Json, peer: Json, peer_name: str, aimed: bool = False) -> list[Measure]:
    rows = []
    for kind, words in (("assistant", "answers"), ("all", "all tokens")):
        mine, theirs = ours[f"loss_{kind}"] * 1000, peer[f"loss_{kind}"] * 1000
        goal = aimed and kind == "assistant"
        met = mine <= theirs if goal else None
        label = f"{name}: held-out loss, {words} (x1000)"
        rows.append(Measure(label, "", mine, peer_name, theirs, "≤ 1x" if goal else "", met))
    return rows


def _gpu_rows(name: str, base: Json, ours: Json, peer: Json) -> list[Measure]:
    if "gpu" not in ours:
        return []
    rows = [Measure(f"{name}: GPU memory", "MB", ours["gpu_mb"], "tutorial, packed", peer["gpu_mb"])]
    peak = next((value for key, value in PEAKS.items() if key in ours["gpu"]), None)
    if peak:
        # 6 operations for each weight and token, 4 where the base's weights get no gradient (Kaplan et al. 2020).
        each = base["parameters"] * (6 if name == "full" else 4)
        share = [_rate(side, "seconds") * each / peak * 100 for side in (ours, peer)]
        rows.append(Measure(f"{name}: model FLOPs utilisation", "%", share[0], "tutorial, packed", share[1]))
    return rows


def _rate(figures: Json, seconds: str) -> float:
    return float(figures["tokens"] / figures[seconds])

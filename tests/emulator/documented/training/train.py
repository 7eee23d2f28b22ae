"""Counts words: the least that has inputs, a parameter, a metric and a model as its output."""

import argparse
import json
from pathlib import Path

import mlflow

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("--shortest", type=int, default=1)
parser.add_argument("--model", type=Path, required=True)
arguments = parser.parse_args()

counts: dict[str, int] = {}
for word in arguments.data.read_text().split():
    if len(word) >= arguments.shortest:
        counts[word] = counts.get(word, 0) + 1
mlflow.log_metric("words", len(counts))
print(f"counted {len(counts)} words")
(arguments.model / "counts.json").write_text(json.dumps(counts))

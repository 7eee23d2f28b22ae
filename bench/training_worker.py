"""One process of `bench training`: make the base, or train it in one way and print the figures as one line of JSON.

Run as: .venv-training/bin/python -m bench.training_worker base|VARIANT FOLDER LEARNING_RATE
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bench import training_peer

MAX_LENGTH = 512
RECORDS = 8  # in a step: about the tokens of the tutorial's four rows
BASE_LEARNING_RATE = 2e-3
Json = dict[str, Any]


def base(folder: Path) -> Json:
    """Train a Phi-3 of 22 million random weights on base.jsonl and save it, so that there is something to tune."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    from training.base_model import embedded_tokenizer
    from training.progress import Tracking
    from training.trainer import train

    tokenizer = embedded_tokenizer()
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1280,
        num_hidden_layers=7,
        num_attention_heads=8,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        resid_pdrop=0.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Phi3ForCausalLM(config)
    arguments = _arguments("full", BASE_LEARNING_RATE, loss_on="all")
    dataset = _dataset(folder / "base.jsonl", tokenizer, "all")
    trained, _ = train(arguments, model, tokenizer, dataset, Tracking())
    trained.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return {"parameters": model.num_parameters(), **_losses(trained, tokenizer, folder)}


def variant(name: str, folder: Path, learning_rate: float) -> Json:
    """Train the base on train.jsonl in one way; ``name`` is "ours" or "peer", then "-lora", "-padded"."""
    import torch
    from transformers import AutoTokenizer

    clock = _time_the_trainer()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    lora = "-lora" in name
    if name.startswith("peer"):
        model = training_peer.train(
            folder / "base",
            folder / "train.jsonl",
            max_length=MAX_LENGTH,
            learning_rate=learning_rate,
            padded="-padded" in name,
            lora=lora,
        )
    else:
        model = _ours("lora" if lora else "full", folder, learning_rate)
    tokens = sum(len(ids) for ids in _dataset(folder / "train.jsonl", tokenizer, "all")["input_ids"])
    figures = {
        "tokens": tokens,
        "cpu_seconds": clock["cpu"],
        "seconds": clock["wall"],
        "peak_mb": clock["peak"] / 1e6,
        **_losses(model, tokenizer, folder),
    }
    if torch.cuda.is_available():
        figures |= {"gpu": torch.cuda.get_device_name(), "gpu_mb": clock["gpu"] / 1e6}
    return figures


def _ours(method: str, folder: Path, learning_rate: float) -> Any:
    from training.base_model import load_base_model
    from training.progress import Tracking
    from training.trainer import train

    model, tokenizer = load_base_model(str(folder / "base"))
    dataset = _dataset(folder / "train.jsonl", tokenizer, "assistant")
    return train(_arguments(method, learning_rate), model, tokenizer, dataset, Tracking())[0]


def _arguments(method: Any, learning_rate: float, **options: Any) -> Any:
    from training.arguments import FineTuneArguments

    paths = {"train_file": "train.jsonl", "model_output": "model", "report_output": "report"}
    return FineTuneArguments(
        **paths,
        base_model="base",
        method=method,
        epochs=1,
        learning_rate=learning_rate,
        batch_size=RECORDS,
        max_length=MAX_LENGTH,
        warmup=0.2,
        **options,
    )


def _dataset(path: Path, tokenizer: Any, loss_on: Any) -> Any:
    from training.data import read_records, tokenize

    return tokenize(read_records(path), tokenizer, MAX_LENGTH, loss_on)


def _time_the_trainer() -> dict[str, float]:
    """Let TRL's trainer note what its training alone takes, for both sides alike."""
    import torch
    from trl import SFTTrainer

    clock: dict[str, float] = {}
    plain = SFTTrainer.train

    def timed(self: Any, *arguments: Any, **options: Any) -> Any:
        cpu, wall = time.process_time(), time.monotonic()
        result = plain(self, *arguments, **options)
        clock.update(cpu=time.process_time() - cpu, wall=time.monotonic() - wall)
        clock["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        clock["gpu"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return result

    SFTTrainer.train = timed
    return clock


def _losses(model: Any, tokenizer: Any, folder: Path) -> Json:
    """Return the mean loss in fp32 of the held-out tokens: the assistant's, and all."""
    import torch

    model = model.float().eval()
    model.set_attn_implementation("eager")
    totals = {"assistant": [0.0, 0], "all": [0.0, 0]}
    rows = {kind: _dataset(folder / "eval.jsonl", tokenizer, kind) for kind in totals}
    for index, ids in enumerate(rows["all"]["input_ids"]):
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=model.device)).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:], device=model.device), reduction="none")
        for kind, total in totals.items():
            kept = torch.tensor(rows[kind][index]["labels"][1:], device=model.device) != -100
            total[0] += float(losses[kept].sum())
            total[1] += int(kept.sum())
    return {f"loss_{kind}": total / count for kind, (total, count) in totals.items()}


if __name__ == "__main__":
    import logging

    from training.choices import use_threads_given

    use_threads_given()
    logging.disable(logging.WARNING)
    home = Path(sys.argv[2])
    result = base(home) if sys.argv[1] == "base" else variant(sys.argv[1], home, float(sys.argv[3]))
    print(json.dumps(result), flush=True)

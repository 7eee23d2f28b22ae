"""Trainings of the embedded model that last seconds, in this process or, for kills and several processes, in others.

Run as: python tests/training/small_training.py '{"epochs": 2, "checkpoint_output": "…"}'
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
QUESTIONS = 16  # so that batches of 4, and of 2 in two processes, come out even


def options(**given: Any) -> Any:
    from training.arguments import FineTuneArguments

    paths = {"train_file": "t", "model_output": "m", "report_output": "r"}
    return FineTuneArguments(**paths, **{"batch_size": 4, "epochs": 3, "precision": "fp32", "eval_every": 0} | given)


def data(count: int = QUESTIONS, first: int = 0) -> Any:
    """Records of different lengths, so that a mean per batch is not one per token."""
    from training.base_model import embedded_tokenizer
    from training.data import tokenize

    records = [
        [
            {"role": "user", "content": f"What comes after {n}?"},
            {"role": "assistant", "content": " ".join(str(n + 1 + more) for more in range(1 + n % 5))},
        ]
        for n in range(first, first + count)
    ]
    return tokenize(records, embedded_tokenizer(), 128, "assistant")


def run(hook: Any = None, *, dropout: bool = True, **given: Any) -> tuple[Any, dict[str, Any]]:
    """Train; ``hook`` gets the model before. Without dropout, how a step is divided makes no difference to the loss."""
    import torch
    from transformers import set_seed

    from training.base_model import load_base_model
    from training.progress import Tracking
    from training.trainer import train

    torch.set_num_threads(1)
    arguments = options(**given)
    set_seed(arguments.seed)
    model, tokenizer = load_base_model("embedded")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    if hook:
        hook(model)
    return train(arguments, model, tokenizer, data(), Tracking(), data(8, 100))


def main() -> None:
    given = json.loads(sys.argv[1])
    failing = given.pop("failing_process", None)
    from training import FineTuneError

    def fail(model: Any) -> None:
        raise FineTuneError("this process was told to fail")

    if failing is not None:
        from training import distributed

        distributed.start()
    hook = None
    if os.environ.get("RANK") == failing and failing:

        def hook(model: Any) -> None:
            model.register_forward_pre_hook(lambda *_: fail(model))

    try:
        _, trained = run(hook, **given)
    except FineTuneError as error:
        print(f"error: {error}", flush=True)
        sys.exit(getattr(error, "exit_code", 1))
    print(json.dumps({"trained": trained}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    main()

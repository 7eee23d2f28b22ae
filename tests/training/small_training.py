"""Trainings of the embedded model that last seconds, in this process or, for kills and several processes, in others.

Run as: python tests/training/small_training.py '[{"epochs": 2, "checkpoint_output": "…"}]'
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


def gather(method: str) -> bool:
    """Shard the embedded model among the processes as FSDP2 does; return whether the first gets it back whole."""
    import torch
    from peft import get_peft_model
    from torch.distributed.fsdp import fully_shard

    from training import distributed
    from training.adapters import lora_config
    from training.base_model import load_base_model

    distributed.start()
    torch.manual_seed(1)
    model: Any = load_base_model("embedded")[0]
    if method == "lora":
        model = get_peft_model(model, lora_config(options(method=method)))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for layer in (model.get_base_model() if method == "lora" else model).model.layers:
        fully_shard(layer)
    fully_shard(model)
    state = distributed.gathered(model)
    sharded = all(hasattr(weight, "to_local") for weight in model.parameters())
    if not distributed.is_first():
        return sharded and not state
    after = distributed.whole_model(model, state).state_dict()
    return sharded and before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def main() -> None:
    """Do one thing after the other, each with a port of its own, and print a line of JSON for each."""
    from training import FineTuneError, distributed

    def fail(*_: Any) -> None:
        raise FineTuneError("this process was told to fail")

    for given in json.loads(sys.argv[1]):
        os.environ["MASTER_PORT"] = str(given.pop("port", 0))
        if "gather" in given:
            print(json.dumps({"whole": [gather(method) for method in given["gather"]]}), flush=True)
            distributed.finish()
            continue
        fails = given.pop("failing_process", None) == os.environ.get("RANK", "")
        try:
            _, trained = run(lambda model, fails=fails: fails and model.register_forward_pre_hook(fail), **given)
        except FineTuneError as error:
            print(f"error: {error}", flush=True)
            sys.exit(getattr(error, "exit_code", 1))
        print(json.dumps({"trained": trained}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    main()

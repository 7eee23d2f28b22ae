"""The held-out loss while the model trains, and stopping when it no longer falls."""

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training import distributed
from training.arguments import FineTuneArguments
from training.batches import Row, batches, padded
from training.data import IGNORED
from training.phases import is_first
from training.progress import LINES, Tracking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset

    from training.trainer import Trainer

# A measurement reads at most so many tokens: a forward pass costs a third of a training step, and the loss of 130,000
# tokens is known to about 0.5 %. All held-out records are measured after the training (training/evaluate.py).
MEASURED_TOKENS = 131_072
BEST = "best.pt"


class HeldOut(TrainerCallback):
    """Measures the held-out loss every ``eval_every`` epochs; keeps the best weights when it may stop early.

    The loss is the mean cross-entropy per trained token in nats, as in training/evaluate.py. The processes share the
    records out among them and sum up. The best weights (those that are trained; of a sharded model this process's
    share) are kept in the CPU's memory, and in checkpoints.
    """

    def __init__(
        self, arguments: FineTuneArguments, held_out: "Dataset | None", pad_token_id: int, tracking: Tracking
    ) -> None:
        self.curve: list[tuple[int, float]] = []
        self.seconds = 0.0
        self._every = arguments.eval_every if held_out is not None and len(held_out) else 0.0
        self._patience = arguments.early_stopping
        self._keeps_best = bool(self._every and self._patience)
        self._best: dict[str, torch.Tensor] = {}
        self._shared = arguments.sharding not in ("none", "zero2")
        self._pad = pad_token_id
        self._tracking = tracking
        self._told_step = 0
        self._rows = _sample(held_out, arguments.seed) if self._every and held_out is not None else []
        self.trainer: Trainer | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 the trainer passes it by position
        **_: Any,
    ) -> None:
        self._steps = max(1, round(self._every * state.max_steps / args.num_train_epochs))

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        last = state.global_step >= state.max_steps
        if not self._every or not (state.global_step % self._steps == 0 or last):
            return
        started = time.monotonic()
        loss = self._measure()
        self.curve.append((state.global_step, loss))
        if self._keeps_best and self.best_step() == state.global_step:
            self._best = {name: _local(each).detach().cpu().clone() for name, each in self._trained()}
        misses = len([step for step, _ in self.curve if step > self.best_step()])
        stop = bool(self._patience) and misses >= self._patience and not last
        if stop:
            control.should_training_stop = True
        self.seconds += time.monotonic() - started
        if state.is_world_process_zero:
            self._tell(state, loss, last=last or stop)
            if stop:
                print(f"phase=held_out stopping_after={misses}_without_a_better_one", flush=True)
            self._tracking.metrics({"held_out_loss": loss}, state.global_step)

    def _tell(self, state: TrainerState, loss: float, *, last: bool) -> None:
        """Print some LINES measurements of a run, the first and the last among them; the curve has them all."""
        if last or not self._told_step or state.global_step - self._told_step >= state.max_steps // LINES:
            print(f"eval step={state.global_step} steps={state.max_steps} loss={loss:.4f}", flush=True)
            self._told_step = state.global_step

    def best_step(self) -> int:
        """Return the step at which the loss was lowest, the first of several; 0 before the first measurement."""
        return min(self.curve, key=lambda point: (point[1], point[0]))[0] if self.curve else 0

    def go_back_to_best(self) -> None:
        """Put the best weights back, if they are kept and are not the last ones."""
        if not self._best or self.best_step() == self.curve[-1][0]:
            return
        with torch.no_grad():
            for name, weight in self._trained():
                _local(weight).copy_(self._best[name])
        if is_first():
            print(f"phase=held_out best_step={self.best_step()} kept=best", flush=True)

    def save(self, folder: Path) -> None:
        """Write the best weights beside a checkpoint."""
        if self._best and (self._shared or is_first()):
            torch.save(self._best, folder / self._file())

    def load(self, folder: Path, curve: list[list[float]]) -> None:
        """Take up what a checkpoint holds: its curve, as in its notes, and its best weights."""
        self.curve = [(int(step), loss) for step, loss in curve]
        if self._keeps_best and self.curve:
            self._best = torch.load(folder / self._file(), map_location="cpu", weights_only=True)

    def _file(self) -> str:
        return f"best_{torch.distributed.get_rank()}.pt" if self._shared else BEST

    def _trained(self) -> "Iterator[tuple[str, torch.nn.Parameter]]":
        assert self.trainer is not None  # noqa: S101 - set before the training begins
        return ((name, each) for name, each in self.trainer.model.named_parameters() if each.requires_grad)

    def _measure(self) -> float:
        assert self.trainer is not None  # noqa: S101
        model = self.trainer.model
        size, rank = distributed.world_size(), int(torch.distributed.get_rank()) if distributed.world_size() > 1 else 0
        cut = batches(self._rows)[::-1]  # the longest first: a lack of memory shows at once
        loss, count = 0.0, 0.0
        model.eval()
        # Every process takes part in as many passes as the others: those of a sharded model are collective.
        for turn in range(0, len(cut), size):
            mine = turn + rank
            rows = cut[mine] if mine < len(cut) else cut[-1]
            summed, trained = self._score(model, rows)
            if mine < len(cut):
                loss, count = loss + summed, count + trained
        model.train()
        loss, count = distributed.total(loss, count)
        return loss / max(count, 1.0)

    def _score(self, model: Any, rows: list[Row]) -> tuple[float, int]:
        """Return the summed cross-entropy and the number of trained tokens."""
        assert self.trainer is not None  # noqa: S101
        device = self.trainer.args.device
        with torch.no_grad():
            # TRL's head gives the tokens' probabilities without the logits, which fill the memory.
            output = model(
                input_ids=padded([ids for ids, _ in rows], self._pad).to(device),
                attention_mask=padded([[1] * len(ids) for ids, _ in rows], 0).to(device),
                labels=padded([labels for _, labels in rows], IGNORED).to(device),
                use_cache=False,
                fused_lm_head=True,
            )
        return -float(output.log_probs.sum()), int(output.label_mask.sum())


def _sample(held_out: "Dataset", seed: int) -> list[Row]:
    """Return records of at most MEASURED_TOKENS tokens, the same ones for the same seed."""
    order = list(range(len(held_out)))
    random.Random(seed).shuffle(order)  # noqa: S311
    rows: list[Row] = []
    tokens = 0
    for index in order:
        row = held_out[index]
        tokens += len(row["input_ids"])
        if rows and tokens > MEASURED_TOKENS:
            break
        rows.append((list(row["input_ids"]), list(row["labels"])))
    if is_first():
        print(f"phase=held_out records={len(rows)} of={len(order)}", flush=True)
    return rows


def _local(parameter: Any) -> torch.Tensor:
    """Return what of a parameter this process holds: all of it, or its share under ZeRO-3 or FSDP2."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.data
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter.data

"""What a person sees of a running job: progress lines on standard output and curves in MLflow."""

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training import FineTuneError

LINES = 20  # of progress in a whole run, about
SECONDS_BETWEEN = 60.0  # between two lines, at most, as far as a step is not longer


class Tracking:
    """The MLflow run that the platform opened for this job, or nothing when it opened none."""

    def __init__(self) -> None:
        self._run_id = os.environ.get("MLFLOW_RUN_ID") if os.environ.get("MLFLOW_TRACKING_URI") else None
        self._kept: list[Any] = []
        if self._run_id:
            from mlflow import MlflowClient

            self._client = MlflowClient()

    def params(self, values: dict[str, Any]) -> None:
        """Log the options of the run."""
        if not self._run_id:
            return
        from mlflow.entities import Param

        self._log(lambda: self._client.log_batch(self._run_id, params=[Param(k, str(v)) for k, v in values.items()]))

    def metrics(self, values: dict[str, float | None], step: int) -> None:
        """Log the numbers at an optimiser step, with those kept; what is not finite is left out."""
        self.keep(values, step)
        kept, self._kept = self._kept, []
        # MLflow takes at most 1,000 metrics in a request.
        for start in range(0, len(kept), 1000):
            self._log(lambda start=start: self._client.log_batch(self._run_id, metrics=kept[start : start + 1000]))

    def keep(self, values: dict[str, float | None], step: int) -> None:
        """Log the numbers with the next ``metrics``: a request for each step would slow short steps down."""
        if not self._run_id:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        known = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
        self._kept += [Metric(key, float(value), now, step) for key, value in known.items()]

    def artifacts(self, files: Iterable[Path]) -> None:
        """Leave the files with the run."""
        for file in files:
            self._log(lambda file=file: self._client.log_artifact(self._run_id, str(file)))

    def _log(self, send: Any) -> None:
        if not self._run_id:
            return
        try:
            send()
        except Exception as error:  # MLflow's own, requests', the storage's: which one depends on the platform
            # A model is worth more than its curves: go on without them.
            print(f"warning: MLflow does not answer, no more is logged there: {type(error).__name__}", flush=True)
            self._run_id = None


class Progress(TrainerCallback):
    """Print a line now and then and log every step that the trainer logs to MLflow; stop when the loss is no number.

    The loss on a line is the mean since the line before.
    """

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._started = self._told = time.monotonic()
        self._first_step = self._told_step = 0
        self._first_tokens = 0
        self._since: list[float] = []

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        # After a resumption, speed and time left come from the steps of this process only.
        self._started = self._told = time.monotonic()
        self._first_step = self._told_step = state.global_step
        self._first_tokens = int(state.num_input_tokens_seen)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Several processes have to log at the same step, and their clocks differ; there logging_steps alone decides.
        late = args.world_size == 1 and time.monotonic() - self._told >= SECONDS_BETWEEN
        if late or state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 the trainer passes it by position
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            # In fp16 overflowing gradients are normal: such a step is skipped, and its loss is a number all the same.
            other = ", or precision fp32, for fp16 may not hold this model's activations" if args.fp16 else ""
            raise FineTuneError(
                f"the loss is {logs['loss']} at step {state.global_step}; use a smaller learning_rate "
                f"(it was {args.learning_rate:g}){other}"
            )
        if not state.is_world_process_zero:
            return
        now = time.monotonic()
        seconds = max(now - self._started, 1e-9)
        done = max(state.global_step - self._first_step, 1)
        speed = (int(state.num_input_tokens_seen) - self._first_tokens) / seconds
        rate = logs.get("learning_rate")
        self._since.append(logs["loss"])
        values = {"train_loss": logs["loss"], "learning_rate": rate, "tokens_per_second": speed}
        if not self._is_time(state, now):
            self._tracking.keep(values, state.global_step)
            return
        left = seconds / done * (state.max_steps - state.global_step)
        print(
            f"progress step={state.global_step} steps={state.max_steps} epoch={state.epoch or 0:.2f} "
            f"loss={sum(self._since) / len(self._since):.4f} tokens_per_second={speed:.0f} eta_seconds={left:.0f}"
            + (f" learning_rate={rate:.3g}" if rate is not None else ""),
            flush=True,
        )
        self._told, self._told_step, self._since = now, state.global_step, []
        self._tracking.metrics(values, state.global_step)

    def _is_time(self, state: TrainerState, now: float) -> bool:
        """Return whether a line is due: at the first log, each twentieth of the run, each minute, and at the end."""
        return (
            self._told_step == self._first_step
            or state.global_step - self._told_step >= state.max_steps // LINES
            or now - self._told >= SECONDS_BETWEEN
            or state.global_step >= state.max_steps
        )

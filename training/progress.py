"""What a person sees of a running job: progress lines on standard output and curves in MLflow."""

import math
import os
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training import FineTuneError


class Tracking:
    """The MLflow run that the platform opened for this job, or nothing when it opened none."""

    def __init__(self) -> None:
        self._run_id = os.environ.get("MLFLOW_RUN_ID") if os.environ.get("MLFLOW_TRACKING_URI") else None
        if self._run_id:
            from mlflow import MlflowClient

            self._client = MlflowClient()

    def params(self, values: dict[str, Any]) -> None:
        """Log the options of the run."""
        if not self._run_id:
            return
        from mlflow.entities import Param

        self._log(params=[Param(key, str(value)) for key, value in values.items()])

    def metrics(self, values: dict[str, float | None], step: int) -> None:
        """Log the numbers at an optimiser step; what is not finite is left out."""
        if not self._run_id:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        known = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
        self._log(metrics=[Metric(key, float(value), now, step) for key, value in known.items()])

    def _log(self, **batch: Any) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(self._run_id, **batch)
        except MlflowException as error:
            # A model is worth more than its curves: go on without them.
            print(
                f"warning: MLflow does not answer, no more is logged there: {type(error).__name__}",
                flush=True,
            )
            self._run_id = None


class Progress(TrainerCallback):
    """Print a line and log to MLflow at each log of the trainer; stop when the loss is not a number."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._started = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.monotonic()

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
            raise FineTuneError(
                f"the loss is {logs['loss']} at step {state.global_step}; use a smaller learning_rate "
                f"(it was {args.learning_rate:g})"
            )
        if not state.is_world_process_zero:
            return
        seconds = max(time.monotonic() - self._started, 1e-9)
        speed = int(state.num_input_tokens_seen) / seconds
        left = seconds / state.global_step * (state.max_steps - state.global_step)
        print(
            f"progress step={state.global_step} steps={state.max_steps} epoch={state.epoch or 0:.2f} "
            f"loss={logs['loss']:.4f} tokens_per_second={speed:.0f} eta_seconds={left:.0f}",
            flush=True,
        )
        self._tracking.metrics(
            {
                "train_loss": logs["loss"],
                "learning_rate": logs.get("learning_rate"),
                "tokens_per_second": speed,
            },
            state.global_step,
        )

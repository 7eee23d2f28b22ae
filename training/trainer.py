"""Train the model with TRL's SFTTrainer, all weights or adapters, through interruptions and lack of memory."""

import dataclasses
import gc
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from training import FineTuneError, distributed
from training.adapters import lora_config, merged
from training.arguments import FineTuneArguments
from training.checkpoints import Checkpoint, Checkpoints, Preempted, fingerprint
from training.choices import Choices, adjust, choose, prepare, restore
from training.early_stopping import HeldOut
from training.out_of_memory import (
    OPTIMISER_ADVICE,
    is_out_of_memory,
    refuse_if_distributed,
    smaller,
    with_checkpointing,
)
from training.phases import is_first
from training.progress import LINES, Progress, Tracking

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CURVE_POINTS = 500  # in a whole run, or up to twice as many; Progress prints few of them


def train(
    arguments: FineTuneArguments,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: "Dataset",
    tracking: Tracking,
    held_out: "Dataset | None" = None,
) -> tuple["PreTrainedModel | None", dict[str, Any]]:
    """Return the tuned model, adapters merged, in the dtype it came in, and what is known of the run.

    That is ``steps``, ``loss`` (the mean of the curve's last twentieth), ``seconds``, ``tokens_per_second`` (over all
    attempts at this training), ``curve`` and ``eval_curve`` (pairs of a step and the loss per trained token in nats, of
    the training and of ``held_out``) and, with adapters, ``adapter_folder``: a temporary folder, the caller's to
    delete. Of several processes only the first gets the model (the others None) and the folder. They have parted when
    this returns.

    ``dataset`` and ``held_out`` have the columns of ``data.tokenize``. A training that a checkpoint in
    ``checkpoint_output`` fits goes on from there; the caller removes the checkpoints when the whole job has succeeded
    (``checkpoints.remove_checkpoints``).

    Raises FineTuneError when the loss is not a number, the memory is too small, or the sharding cannot work here, and
    Preempted when the platform wants the machine back.
    """
    with distributed.together():
        result = _train(arguments, model, tokenizer, dataset, tracking, held_out)
        distributed.finish()
    gc.collect()  # the trainer and its callbacks hold on to each other, and to the optimiser's state
    torch.cuda.empty_cache()
    return result


def _train(
    arguments: FineTuneArguments,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: "Dataset",
    tracking: Tracking,
    held_out: "Dataset | None",
) -> tuple["PreTrainedModel | None", dict[str, Any]]:
    choices = choose(arguments, model, dataset)
    stored_dtype = model.dtype
    folder = Path(arguments.checkpoint_output) if arguments.checkpoint_output else None
    checkpoints = Checkpoints(folder, arguments.checkpoint_minutes, fingerprint(arguments, dataset))
    found = checkpoints.newest()
    if found:
        choices = _divided(choices, **found.notes["divided"])
    curve = HeldOut(arguments, held_out, tokenizer.pad_token_id, tracking)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=prepare(model, choices),
            args=_config(arguments, choices, Path(scratch), len(dataset)),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=None if arguments.method == "full" else lora_config(arguments),
        )
        adjust(trainer)
        trainer.ready(checkpoints, curve, choices, found)
        trainer.remove_callback(PrinterCallback)
        for callback in (_Continue(trainer), curve, checkpoints, Progress(tracking)):
            trainer.add_callback(callback)
        undo = checkpoints.listen()
        try:
            trainer.train_as_memory_allows(found.folder if found else None)
        finally:
            undo()
    if checkpoints.preempted:
        raise Preempted(
            f"the platform stopped the job at step {trainer.state.global_step} of {trainer.state.max_steps}; started "
            f"again with the same checkpoint_output, it goes on from step {checkpoints.last_step}"
        )
    curve.go_back_to_best()
    trained = trainer.known()
    tuned = distributed.unwrapped(trainer, arguments)
    if tuned is None or not is_first():
        return None, trained
    if arguments.method != "full":
        trained["adapter_folder"] = Path(tempfile.mkdtemp(prefix="adapter-"))
        tuned.save_pretrained(trained["adapter_folder"])
        tuned = merged(tuned, arguments, trained["adapter_folder"], stored_dtype)
    tuned = tuned.to(stored_dtype)
    restore(tuned, choices)
    return tuned, trained


class Trainer(SFTTrainer):
    """TRL's trainer, with our checkpoints, that goes on in smaller pieces when the memory does not suffice."""

    def ready(self, checkpoints: Checkpoints, curve: HeldOut, choices: Choices, found: Checkpoint | None) -> None:
        """Take what the training needs to know, and what it knew when it was interrupted."""
        self.checkpoints, self.held_out, self.choices = checkpoints, curve, choices
        curve.trainer = self
        self.updating = False  # whether the optimiser is at work: then the weights may be half new, half old
        self.loss_to_log: tuple[float, int] | None = None
        self._output_folder = checkpoints.folder
        self._at_begin: tuple[int, float, int, int] = (-1, 0.0, 0, 0)
        self._started = time.monotonic()
        if found:
            self._started -= found.notes["seconds"]
            self.loss_to_log = tuple(found.notes["loss_to_log"])
            curve.load(found.folder, found.notes["eval_curve"])

    def train_as_memory_allows(self, resume: Path | None) -> None:
        """Train to the end, each time the memory does not suffice in pieces half as large."""
        while True:
            try:
                self.train(resume_from_checkpoint=str(resume) if resume else None)
                return
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.updating:
                    # Smaller pieces would not help, and the weights may be spoilt.
                    raise FineTuneError(OPTIMISER_ADVICE) from error
                refuse_if_distributed(self.choices)
            # Only here, where the error no longer holds on to the tensors of the failed step.
            resume = self._in_smaller_pieces()

    def _in_smaller_pieces(self) -> Path | None:
        """Put the state of the last whole step where training can resume from; return the place, None if none was."""
        self.choices = smaller(self.choices)
        step, logged = self.state.global_step, (float(self._tr_loss), self._globalstep_last_logged)
        if step == self._at_begin[0]:  # in the midst of a step; else behind it, in a measurement or a checkpoint
            _, *logged, self.state.num_input_tokens_seen = self._at_begin
        print(
            f"phase=out_of_memory step={step} batch={self.choices.per_device_batch} "
            f"accumulation={self.choices.accumulation} "
            f"activation_checkpointing={str(self.choices.checkpointing).lower()}",
            flush=True,
        )
        self.model.zero_grad(set_to_none=True)
        resume = None
        if step > 0:
            self._output_folder = Path(self.args.output_dir)
            super(SFTTrainer, self)._save_checkpoint(self.model, None)
            resume = self._output_folder / f"checkpoint-{step}"
            self._output_folder = self.checkpoints.folder
        self.loss_to_log = (logged[0], logged[1])
        self.optimizer, self.lr_scheduler = None, None
        self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        torch.cuda.empty_cache()
        self.args.per_device_train_batch_size = self._train_batch_size = self.choices.per_device_batch
        self.args.gradient_accumulation_steps = self.choices.accumulation
        if self.choices.checkpointing and not self.args.activation_checkpointing:
            self.args.activation_checkpointing = True
            if isinstance(self.model, PeftModel):
                self.model.enable_input_require_grads()
        return resume

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Note the counters before the first piece of a step: those of a failed step must not count twice."""
        if self._at_begin[0] != self.state.global_step:
            counted = self._globalstep_last_logged, int(self.state.num_input_tokens_seen)
            self._at_begin = (self.state.global_step, float(self._tr_loss), *counted)
        return super().training_step(*args, **kwargs)

    def known(self) -> dict[str, Any]:
        """Return what ``train`` tells of the run."""
        seconds = time.monotonic() - self._started
        curve = [[entry["step"], entry["loss"]] for entry in self.state.log_history if "loss" in entry]
        last = curve[-max(1, len(curve) // LINES) :]
        return {
            "steps": self.state.global_step,
            "loss": sum(loss for _, loss in last) / len(last),
            "seconds": round(seconds, 2),
            "tokens_per_second": round(int(self.state.num_input_tokens_seen) / seconds, 1),
            "curve": curve,
            "eval_curve": [[step, loss] for step, loss in self.held_out.curve],
            "precision": self.choices.precision,
            "attention": self.choices.attention,
            "checkpointing": self.choices.checkpointing,
        }

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002 the trainer's own
        return str(self._output_folder or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"

        def save() -> None:
            # Not SFTTrainer's, which writes a model card first.
            super(SFTTrainer, self)._save_checkpoint(model, trial)
            self.held_out.save(folder)

        notes = {
            "seconds": time.monotonic() - self._started,
            "loss_to_log": [
                distributed.total(float(self._tr_loss))[0] / distributed.world_size(),
                self._globalstep_last_logged,
            ],
            "eval_curve": self.held_out.curve,
            "divided": {
                "per_device_batch": self.choices.per_device_batch,
                "accumulation": self.choices.accumulation,
                "checkpointing": self.choices.checkpointing,
            },
        }
        self.checkpoints.write(self.state.global_step, save, notes)


class _Continue(TrainerCallback):
    """Carries the loss that was not yet logged over an interruption, and notes when the optimiser is at work."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if self._trainer.loss_to_log:
            loss, logged = self._trainer.loss_to_log
            self._trainer._tr_loss += loss
            self._trainer._globalstep_last_logged = logged

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._trainer.updating = True

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._trainer.updating = False


def _divided(choices: Choices, per_device_batch: int, accumulation: int, checkpointing: bool) -> Choices:
    """Return the choices with the optimiser step divided as it was when the checkpoint was written."""
    choices = dataclasses.replace(choices, per_device_batch=per_device_batch, accumulation=accumulation)
    return with_checkpointing(choices) if checkpointing else choices


def _config(arguments: FineTuneArguments, choices: Choices, scratch: Path, examples: int) -> "SFTConfig":
    per_step = choices.per_device_batch * choices.accumulation * distributed.world_size()
    steps = max(1, int(examples / per_step * arguments.epochs))
    config = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=choices.per_device_batch,
        gradient_accumulation_steps=choices.accumulation,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type=arguments.lr_scheduler,
        warmup_steps=arguments.warmup,
        weight_decay=arguments.weight_decay,
        use_cpu=not torch.cuda.is_available(),
        **choices.sft_options,
        **distributed.sharding_options(arguments),
        seed=arguments.seed,
        logging_steps=max(1, steps // CURVE_POINTS),
        logging_first_step=True,
        logging_nan_inf_filter=False,  # Progress stops the job at the first NaN instead
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",  # Checkpoints says when
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        ddp_timeout=int(distributed.PATIENCE.total_seconds()),
    )
    if config.n_gpu > 1:
        # One process that sees several GPUs: the Trainer would split each batch among them (DataParallel), which turns
        # batch_size into another one and takes packed rows apart. Several GPUs are torchrun's.
        config._n_gpu = 1
    return config

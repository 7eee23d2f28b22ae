"""Train the model with TRL's SFTTrainer, every weight or low-rank adapters."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from training import FineTuneError
from training.arguments import FineTuneArguments
from training.choices import Choices, adjust, choose, prepare, restore
from training.progress import Progress, Tracking

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROGRESS_LINES = 20  # in a whole run, about


def train(
    arguments: FineTuneArguments,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: "Dataset",
    tracking: Tracking,
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """Return the tuned model and ``steps``, ``loss`` (the last one logged), ``seconds`` and ``tokens_per_second``.

    ``dataset`` has the columns of ``data.tokenize``. The model comes back in the dtype it came in, adapters merged.
    Raises FineTuneError when the loss is not a number or the GPU's memory is too small.
    """
    choices = choose(arguments, model, dataset)
    stored_dtype = model.dtype
    model = prepare(model, choices)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=_config(arguments, choices, Path(scratch), len(dataset)),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=None if arguments.method == "full" else _adapters(arguments),
        )
        adjust(trainer)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Progress(tracking))
        started = time.monotonic()
        try:
            trainer.train()
        except torch.OutOfMemoryError as error:
            raise FineTuneError(
                "the GPU's memory is too small; lower batch_size or max_length, set activation_checkpointing, "
                "or use the method lora"
            ) from error
        seconds = time.monotonic() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tuned = trainer.accelerator.unwrap_model(trainer.model)
    if arguments.method != "full":
        tuned = tuned.merge_and_unload()
    restore(tuned, choices)
    return tuned.to(stored_dtype), {
        "steps": trainer.state.global_step,
        "loss": losses[-1],
        "seconds": round(seconds, 2),
        "tokens_per_second": round(int(trainer.state.num_input_tokens_seen) / seconds, 1),
    }


def _config(arguments: FineTuneArguments, choices: Choices, scratch: Path, examples: int) -> "SFTConfig":
    per_step = choices.per_device_batch * choices.accumulation
    steps = max(1, int(examples / per_step * arguments.epochs))
    return SFTConfig(
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
        seed=arguments.seed,
        logging_steps=max(1, steps // PROGRESS_LINES),
        logging_first_step=True,
        logging_nan_inf_filter=False,  # Progress stops the job at the first NaN instead
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )


def _adapters(arguments: FineTuneArguments) -> LoraConfig:
    return LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )

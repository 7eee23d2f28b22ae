"""Train the model with TRL's SFTTrainer, every weight or low-rank adapters."""

import os
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
from training.progress import Progress, Tracking

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROGRESS_LINES = 20  # in a whole run, about


def use_threads_given() -> None:
    """Let torch use OMP_NUM_THREADS threads or, without it, as many as this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or cores))


def computes_bf16() -> bool:
    """Return whether the device multiplies bf16 natively; where a CPU only emulates it, fp32 is faster."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


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
    bf16 = arguments.precision == "bf16" or (arguments.precision == "auto" and computes_bf16())
    stored_dtype = model.dtype
    # Full training keeps its master weights in fp32; a base that only carries adapters may stay small.
    model = model.to(torch.bfloat16 if bf16 and arguments.method == "lora" else torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=_config(arguments, Path(scratch), len(dataset), bf16),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=_adapters(arguments) if arguments.method == "lora" else None,
        )
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
    if arguments.method == "lora":
        tuned = tuned.merge_and_unload()
    return tuned.to(stored_dtype), {
        "steps": trainer.state.global_step,
        "loss": losses[-1],
        "seconds": round(seconds, 2),
        "tokens_per_second": round(int(trainer.state.num_input_tokens_seen) / seconds, 1),
    }


def _config(arguments: FineTuneArguments, scratch: Path, examples: int, bf16: bool) -> "SFTConfig":
    # A packed sequence holds several records. Without a flash kernel it must be alone in its forward pass, because
    # the mask that keeps its records apart exists only there; so batches become accumulation.
    per_device = 1 if arguments.packing else arguments.batch_size
    accumulation = arguments.gradient_accumulation * (arguments.batch_size if arguments.packing else 1)
    steps = max(1, int(examples / (per_device * accumulation) * arguments.epochs))
    return SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type=arguments.lr_scheduler,
        warmup_steps=arguments.warmup,
        weight_decay=arguments.weight_decay,
        max_length=arguments.max_length,
        packing=arguments.packing,
        activation_checkpointing=arguments.activation_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        bf16=bf16,
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

"""The tutorials' training script, with today's TRL: what `bench training` is measured against.

Its settings as published: bf16 weights, eager attention, no cache, gradient checkpointing, batch 4, accumulation 1,
learning rate 5e-6, cosine, warm-up 0.2, seed 0, packing of concatenated texts into full rows, loss on every token,
padding with the unknown token on the right. Not as published: rows of 512 tokens instead of 2,048 (a CPU), one epoch,
nothing saved or evaluated in between, no empty system message before each chat (both sides get the same tokens).
``padded`` is the tutorials' other way, each record filled up to max_length; ``lora`` their pipeline's, with our rank.

Run as: .venv-training/bin/python -m bench.training_peer MODEL TRAIN.jsonl
"""

import sys
from pathlib import Path
from typing import Any


def train(
    model_folder: Path,
    train_file: Path,
    *,
    max_length: int = 512,
    learning_rate: float = 5.0e-06,
    padded: bool = False,
    lora: bool = False,
) -> Any:
    """Return the trained model."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(
        model_folder, use_cache=False, dtype=torch.bfloat16, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.model_max_length = max_length
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "right"

    def as_text(example: dict[str, Any]) -> dict[str, Any]:
        return {"text": tokenizer.apply_chat_template(example["messages"], tokenize=False)}

    dataset = load_dataset("json", data_files=str(train_file), split="train")
    dataset = dataset.map(as_text, remove_columns=dataset.column_names)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(train_file.parent / "peer"),
            bf16=True,
            learning_rate=learning_rate,
            logging_steps=20,
            lr_scheduler_type="cosine",
            num_train_epochs=1,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=1,
            gradient_checkpointing=True,
            warmup_steps=0.2,
            seed=0,
            max_length=max_length,
            packing=not padded,
            packing_strategy="wrapped",
            pad_to_multiple_of=max_length if padded else "auto",
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        if lora
        else None,
    )
    trainer.train()
    return trainer.model.merge_and_unload() if lora else trainer.model


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))

"""Greedy answers to many prompts, in batches, and how fast they came."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.data import Message, without_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS_PER_BATCH = 32
PROMPT_TOKENS_PER_BATCH = 4096
ROOM = 1.2  # times the weights' bytes must be free on a GPU: beside them are the cache and the logits


@dataclass(frozen=True)
class Said:
    """``texts``, in the order of the prompts; ``tokens`` generated, the ends included, in ``seconds``."""

    texts: list[str]
    tokens: int
    seconds: float


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation, ready for the assistant's turn."""
    messages = without_weights(prompt)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[int]],
    max_new_tokens: int,
) -> Said:
    """Answer greedily; prompts of like length share a batch, which ends when each of its answers has ended."""
    import torch

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    tokens, seconds = 0, 0.0
    while order:
        # The longest first, and few of them: eager attention takes the square of the length for each.
        longest = len(prompts[order[-1]])
        count = max(1, min(PROMPTS_PER_BATCH, PROMPT_TOKENS_PER_BATCH // longest))
        order, indices = order[:-count], order[-count:]
        ids, mask = _padded_left([prompts[index] for index in indices], tokenizer.pad_token_id)
        started = time.monotonic()
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        rows = output[:, ids.shape[1] :].tolist()
        seconds += time.monotonic() - started
        tokens += sum(_length(row, model) for row in rows)
        for index, text in zip(indices, tokenizer.batch_decode(rows, skip_special_tokens=True), strict=True):
            texts[index] = text
    return Said(texts, tokens, seconds)


@contextmanager
def on_gpu(model: "PreTrainedModel") -> Iterator[None]:
    """Have the model on this process's GPU, if there is one where it fits, and put it back where it was.

    Training expects it on the CPU; a base in 4 bits is on the GPU already and stays there.
    """
    import torch

    if not torch.cuda.is_available() or model.device.type != "cpu":
        yield
        return
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if needed * ROOM > torch.cuda.mem_get_info(device)[0]:  # as with a model that has to be shared out to be trained
        print("warning: the model does not fit into one GPU; it is measured on the CPU, which takes long", flush=True)
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")
        torch.cuda.empty_cache()


def _padded_left(rows: list[list[int]], pad: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return ids and attention mask, [rows, longest], padded where ``generate`` needs it."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _length(row: list[int], model: "PreTrainedModel") -> int:
    """Return how many tokens the answer has: those behind the first that ends it are padding."""
    eos = model.generation_config.eos_token_id
    ends = set(eos) if isinstance(eos, list) else {eos}
    return next((n for n, token in enumerate(row, 1) if token in ends), len(row))

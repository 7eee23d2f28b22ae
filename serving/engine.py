"""The model in memory and the continuous batching of transformers, which `transformers serve` also runs on."""

import asyncio
import os
import secrets
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sampling import Sampling
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
    ContinuousBatchingTopPLogitsWarper,
)
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

# Measured on two cores with 2 million parameters: the sizes that transformers infers for a CPU make a cache that
# fills the memory and does not answer within ten seconds.
CPU_PAGE_SIZE = 32
CPU_BATCH_TOKENS = 256
CPU_CACHE_TOKENS = 16_384  # of all requests together
CPU_CACHE_SHARE = 0.25  # of the machine's memory, at most


@dataclass(frozen=True)
class Piece:
    """What one step added to an answer: ``text`` (may be empty), all its ``tokens`` so far, and, at its end, why."""

    text: str
    tokens: int
    finish_reason: str | None = None


class Engine:
    """One model and its tokenizer, answering many requests in shared batches."""

    def __init__(self, model_folder: Path, tokenizer_folder: Path) -> None:
        """Load the model, on the GPU if there is one; nothing runs until ``start``."""
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        config = AutoConfig.from_pretrained(model_folder)
        # Continuous batching knows sdpa and the flash kernels only, whatever the model was trained with.
        self._model = AutoModelForCausalLM.from_pretrained(
            model_folder, config=config, dtype="auto", device_map=device, attn_implementation="sdpa"
        ).eval()
        self.context_length, cache = _cache(self._model)
        self._defaults = self._model.generation_config
        # _SeededChoice leaves one token of each row, so drawing from the row would only cost time.
        shared = GenerationConfig(do_sample=False, eos_token_id=self._defaults.eos_token_id, use_cache=False)
        self._batches = self._model.init_continuous_batching(shared, cache)
        # Left alone, every request would be sampled like the first one. The numbers here are only placeholders: each
        # request brings its own.
        self._batches.logit_processor = ContinuousBatchingLogitsProcessorList(
            LogitsProcessorList([TemperatureLogitsWarper(0.5), _TopP(TopPLogitsWarper(0.5)), _SeededChoice()]),
            per_request_processors=True,
        )
        self._batches.logit_processor.tensors_required = 3
        eos = self._defaults.eos_token_id
        self._ends = set(eos if isinstance(eos, list) else [eos])

    def start(self) -> None:
        """Start the thread that generates."""
        self._batches.start()

    def stop(self) -> None:
        """Stop that thread; requests under way get no more tokens."""
        self._batches.stop(block=True, timeout=2)

    def alive(self) -> bool:
        """Return whether requests are being answered."""
        return self._batches.is_running() and self._batches.background_thread_status.fatal_error is None

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the tokens of a conversation, ready for the assistant's turn."""
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def default(self, name: str) -> float:
        """Return the model's own ``temperature`` or ``top_p``; a model that does not sample is greedy."""
        if not self._defaults.do_sample:
            return 0.0 if name == "temperature" else 1.0
        value = getattr(self._defaults, name, None)
        return 1.0 if value is None else float(value)

    async def answer(self, request_id: str, prompt: list[int], sampling: Sampling) -> AsyncIterator[Piece]:
        """Yield the answer as it grows; leaving the loop early cancels the request.

        ``prompt`` and ``max_new_tokens`` together must fit into ``context_length``. Raises RuntimeError if the engine
        gives the request up.
        """
        from tokenizers.decoders import DecodeStream

        outputs: asyncio.Queue[Any] = asyncio.Queue()
        decoder, seen, finished = DecodeStream(skip_special_tokens=True), 0, False
        # The handler comes first: an answer that is finished before it exists would never be delivered.
        self._batches.register_result_handler(request_id, outputs.put_nowait)
        try:
            self._batches.add_request(
                prompt,
                request_id=request_id,
                max_new_tokens=sampling.max_new_tokens,
                streaming=True,
                eos_token_id=self._defaults.eos_token_id,
                **_arguments(sampling),
            )
            while not finished:
                output = await outputs.get()
                finished = output.is_finished()
                if output.error is not None:
                    raise RuntimeError(output.error)
                tokens = output.generated_tokens
                texts = [decoder.step(self.tokenizer._tokenizer, token) for token in tokens[seen:]]
                seen = len(tokens)
                reason = ("stop" if tokens and tokens[-1] in self._ends else "length") if finished else None
                yield Piece("".join(text for text in texts if text), seen, reason)
        finally:
            if not finished:
                self._batches.cancel_request(request_id)
                self._batches.output_router.result_handlers.pop(request_id, None)


class _TopP(ContinuousBatchingTopPLogitsWarper):
    """The library's, without its sort of the vocabulary in a batch where nobody asks for less than all of it.

    On a CPU only: elsewhere looking at the numbers would wait for the device.
    """

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        top_p = tensor_arg[: scores.size(0)].view(dtype=torch.float32)
        if scores.device.type == "cpu" and bool((top_p >= 1).all()):
            return scores
        return super().__call__(scores, tensor_arg)


class _SeededChoice(ContinuousBatchingLogitsProcessor):
    """Choose the token by the Gumbel-max trick with noise that depends on nothing but the request's seed and position.

    The argmax of logits plus Gumbel noise is a sample of their softmax, so a seed gives the same answer whatever else
    is in the batch. The shared generator of torch cannot. Seed 0 adds no noise: greedy.
    """

    supported_kwargs = {"seed": int}  # noqa: RUF012 the base class declares it so
    ignored_kwargs = ()

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        states = [request.state for request in requests_with_new_token]
        rows = [(state.logit_processor_kwargs.get("seed", 0), state.position_offset) for state in states]
        noise = [1 + zlib.crc32(f"{seed}/{at}".encode()) % (2**31 - 1) if seed else 0 for seed, at in rows]
        return torch.tensor(noise, dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        seeds = tensor_arg[: scores.size(0)].long().unsqueeze(-1)  # [requests, 1]
        if scores.device.type == "cpu" and not bool(seeds.any()):  # all are greedy: no noise to make
            return _only(scores, scores.argmax(-1, keepdim=True))
        columns = torch.arange(scores.size(-1), device=scores.device)
        # The finaliser of splitmix32 by another constant, over one counter a token: 31 well mixed bits each.
        bits = (seeds + columns * 0x9E3779B9) & 0xFFFFFFFF
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
        uniform = ((bits ^ (bits >> 15)).float() + 0.5) / 2**32
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-7, 1 - 1e-7)))
        return _only(scores, (scores + gumbel * (seeds != 0)).argmax(-1, keepdim=True))


def _only(scores: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    return torch.full_like(scores, -torch.inf).scatter_(-1, choice, 0.0)


def _arguments(sampling: Sampling) -> dict[str, float | int]:
    if sampling.temperature == 0:
        return {"temperature": 1.0, "top_p": 1.0, "seed": 0}
    seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
    # Below a hundredth the division of the logits overflows; it is greedy already.
    return {"temperature": max(sampling.temperature, 0.01), "top_p": sampling.top_p, "seed": abs(seed) * 2 + 1}


def _cache(model: Any) -> tuple[int, ContinuousBatchingConfig]:
    """Return how long a conversation may be, and the cache for it.

    A request that cannot fit into the whole cache ends the generating thread, so the length is bounded by the cache.
    """
    config = model.config.get_text_config()
    length = int(config.max_position_embeddings)
    if model.device.type != "cpu":
        return length, ContinuousBatchingConfig(per_request_processors=True)
    heads = config.num_key_value_heads or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tokens = int(min(max(CPU_CACHE_TOKENS, length), memory * CPU_CACHE_SHARE / token_bytes))
    blocks = tokens // CPU_PAGE_SIZE
    return min(length, (blocks - 1) * CPU_PAGE_SIZE), ContinuousBatchingConfig(
        page_size=CPU_PAGE_SIZE,
        num_blocks=blocks,
        max_batch_tokens=CPU_BATCH_TOKENS,
        per_request_processors=True,
    )

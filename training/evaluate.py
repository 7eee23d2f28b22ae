"""What a model scores on the held-out records, and what it answers."""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from training.arguments import FineTuneArguments
from training.data import IGNORED, Message, Record, is_context, tokenize, without_weights

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_PER_BATCH = 4096  # with padding; keeps the logits of a 128k vocabulary under 2 GB
PROMPTS_PER_BATCH = 32
SAMPLES_IN_REPORT = 20  # held-out prompts shown, after the recipe's questions


@dataclass(frozen=True)
class Scores:
    """Means over the held-out records.

    ``loss`` is the cross-entropy per trained token in nats, ``perplexity`` its exponential, ``token_accuracy`` the
    share of trained tokens that are the likeliest one, ``exact_match`` the share of prompts answered word for word
    (None when none was asked, as for plain texts, which have no prompt).
    """

    loss: float
    perplexity: float
    token_accuracy: float
    exact_match: float | None


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model (None without held-out records) and its answers, one for each prompt asked."""

    scores: Scores | None
    answers: list[str]


class Exam:
    """The same questions and held-out records for the base model and for the tuned one."""

    def __init__(
        self, arguments: FineTuneArguments, held_out: Sequence[Record], tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        """Take the recipe's questions and at most ``eval_samples`` of the held-out chats' prompts.

        A prompt that alone is longer than ``max_length`` is not asked; nothing of its answer is trained on either.
        """
        chosen = [up_to for record in held_out if isinstance(record, list) and (up_to := _up_to_last_trained(record))]
        chosen = [chat for chat in chosen if len(_prompt_ids(tokenizer, chat[:-1])) <= arguments.max_length]
        if len(chosen) > arguments.eval_samples:
            chosen = random.Random(arguments.seed).sample(chosen, arguments.eval_samples)  # noqa: S311
        asked: list[list[Message]] = [[{"role": "user", "content": text}] for text in arguments.questions]
        self._prompts = asked + [without_weights(record[:-1]) for record in chosen]
        self._expected = [None] * len(asked) + [record[-1]["content"] for record in chosen]
        self._tokenizer = tokenizer
        self._held_out = tokenize(held_out, tokenizer, arguments.max_length, arguments.loss_on) if held_out else None
        # An answer that has outrun every right one by 16 tokens is wrong already; going on costs only time.
        longest = max((len(tokenizer.encode(text)) for text in self._expected if text), default=10**9)
        self._max_new_tokens = min(arguments.eval_max_new_tokens, longest + 16)

    def take(self, model: "PreTrainedModel") -> Evaluation:
        """Score ``model`` on the held-out records and let it answer each prompt greedily."""
        model.eval()
        answers = _answer(model, self._tokenizer, self._prompts, self._max_new_tokens) if self._prompts else []
        if not self._held_out:
            return Evaluation(None, answers)
        pairs = [(a.strip(), e.strip()) for a, e in zip(answers, self._expected, strict=True) if e is not None]
        exact_match = sum(answer == right for answer, right in pairs) / len(pairs) if pairs else None
        loss, accuracy = _token_scores(model, self._tokenizer, self._held_out)
        return Evaluation(Scores(loss, math.exp(min(loss, 700.0)), accuracy, exact_match), answers)

    def report(self, base: Evaluation, tuned: Evaluation) -> dict[str, Any]:
        """Return ``eval`` (None if nothing was held out) and ``samples`` for metrics.json."""
        scores = None
        if base.scores and tuned.scores:
            scores = {"base": asdict(base.scores), "tuned": asdict(tuned.scores)}
        rows = zip(self._prompts, self._expected, base.answers, tuned.answers, strict=True)
        every = [{"messages": p, "expected": e, "base": b, "tuned": t} for p, e, b, t in rows]
        questions = sum(expected is None for expected in self._expected)
        return {"eval": scores, "samples": every[: questions + SAMPLES_IN_REPORT]}


def _up_to_last_trained(chat: list[Message]) -> list[Message]:
    """Return the chat up to the last answer that is trained on: one with the weight 0 is no answer to expect."""
    ends = [n for n, message in enumerate(chat, 1) if message["role"] == "assistant" and not is_context(message)]
    return chat[: ends[-1]] if ends else []


def _token_scores(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", held_out: "Dataset"
) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy over all trained tokens."""
    import torch

    rows = sorted(zip(held_out["input_ids"], held_out["labels"], strict=True), key=lambda row: len(row[0]))
    loss, right, count = 0.0, 0, 0
    for batch in _batches(rows):
        ids = _pad([row[0] for row in batch], tokenizer.pad_token_id)
        labels = _pad([row[1] for row in batch], IGNORED)
        mask = _pad([[1] * len(row[0]) for row in batch], 0)
        with torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1].float()
        target = labels[:, 1:].to(model.device)
        trained = target != IGNORED
        loss += torch.nn.functional.cross_entropy(logits[trained], target[trained], reduction="sum").item()
        right += (logits.argmax(-1)[trained] == target[trained]).sum().item()
        count += int(trained.sum())
    return loss / max(count, 1), right / max(count, 1)


def _batches(rows: list[tuple[list[int], list[int]]]) -> list[list[tuple[list[int], list[int]]]]:
    """Cut rows, sorted by length, so that each batch has at most TOKENS_PER_BATCH tokens once padded."""
    batches: list[list[tuple[list[int], list[int]]]] = [[]]
    for row in rows:
        if batches[-1] and (len(batches[-1]) + 1) * len(row[0]) > TOKENS_PER_BATCH:
            batches.append([])
        batches[-1].append(row)
    return batches


def _pad(rows: list[list[int]], value: int) -> "torch.Tensor":
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message]) -> list[int]:
    messages = without_weights(prompt)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def _answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[Message]],
    max_new_tokens: int,
) -> list[str]:
    """Answer greedily; prompts of like length share a batch, padded on the left."""
    import torch

    encoded = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    answers = [""] * len(prompts)
    while order:
        # The longest first, and few of them: eager attention takes the square of the length for each.
        longest = len(encoded[order[-1]])
        count = max(1, min(PROMPTS_PER_BATCH, TOKENS_PER_BATCH // longest))
        order, indices = order[:-count], order[-count:]
        rows = [encoded[index] for index in indices]
        # Reversing twice pads on the left, where generate() needs it.
        ids = _pad([row[::-1] for row in rows], tokenizer.pad_token_id).flip(1).to(model.device)
        mask = _pad([[1] * len(row) for row in rows], 0).flip(1).to(model.device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text
    return answers

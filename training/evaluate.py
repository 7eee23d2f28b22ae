"""What a model scores on the held-out records, and what it answers."""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from training.answers import answer, on_gpu, prompt_ids
from training.arguments import FineTuneArguments
from training.batches import batches, padded
from training.data import IGNORED, Message, Record, is_context, tokenize, without_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHORT_ANSWER = 32  # tokens; a longer answer that is right is seldom the expected one word for word
SAMPLES_IN_REPORT = 10  # held-out prompts shown, after the recipe's questions
SPARE_TOKENS = 16  # an answer that has outrun every right one by so much is wrong already; going on costs only time


@dataclass(frozen=True)
class Scores:
    """Means over the held-out records.

    ``loss`` is the cross-entropy per trained token in nats, ``perplexity`` its exponential, ``token_accuracy`` the
    share of trained tokens that are the likeliest one. These three are None for a model whose tokenizer or template
    cuts the same records into other tokens: its loss per token is no measure beside the others'. ``loss_per_character``
    (nats) is the same sum over the characters of the trained text, which the tokenizer does not change; only the
    tokens that end a turn count into it without a character.

    ``exact_match`` is the share of the short answers, of at most SHORT_ANSWER tokens, given word for word (None when
    no such prompt was held out, as with plain texts, which have no prompt). ``tokens_per_second``: generated, in
    batches, over all the prompts asked.
    """

    loss: float | None
    perplexity: float | None
    token_accuracy: float | None
    loss_per_character: float
    exact_match: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model (None without held-out records) and its answers, one for each prompt asked."""

    scores: Scores | None
    answers: list[str]


@dataclass(frozen=True)
class _Question:
    prompt: list[Message]
    expected: str | None  # None: one of the recipe's, which nobody has answered
    shown: bool  # in the report
    counted: bool  # in exact_match


class Exam:
    """The same questions and held-out records for the base model, the champion and the challenger.

    ``held_out`` is what is measured, with the columns of ``data.tokenize``; None when nothing is.
    """

    def __init__(
        self, arguments: FineTuneArguments, held_out: Sequence[Record], tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        """Take the recipe's questions, some held-out prompts to show, and at most ``eval_samples`` with a short answer.

        A prompt that alone is longer than ``max_length`` is not asked; nothing of its answer is trained on either.
        """
        self._arguments = arguments
        self._records = held_out
        self._tokenizer = tokenizer
        # Before any prompt is rendered: it says which record a template refuses, and nothing of what that one says.
        dataset = tokenize(held_out, tokenizer, arguments.max_length, arguments.loss_on) if held_out else None
        self.held_out: Dataset | None = dataset if dataset is not None and len(dataset) else None
        asked = [_Question([{"role": "user", "content": text}], None, True, False) for text in arguments.questions]
        self._questions = asked + _choose(arguments, held_out, tokenizer)

    def take(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None" = None) -> Evaluation:
        """Score ``model`` on the held-out records and let it answer each prompt greedily.

        It is on the GPU for so long, if there is one. ``tokenizer``: its own, if it is not the base's.
        """
        own = tokenizer or self._tokenizer
        held_out, comparable = self.held_out, True
        if tokenizer is not None and held_out is not None:
            held_out = tokenize(self._records, tokenizer, self._arguments.max_length, self._arguments.loss_on)
            comparable = _same(held_out, self.held_out)
        model.eval()
        with on_gpu(model):
            answers, speed = self._answers(model, own)
            if held_out is None:
                return Evaluation(None, answers)
            loss, right, tokens = _token_scores(model, own, held_out)
        per_token = loss / max(tokens, 1)
        pairs = zip(self._questions, answers, strict=True)
        hits = [text.strip() == (each.expected or "").strip() for each, text in pairs if each.counted]
        return Evaluation(
            Scores(
                loss=per_token if comparable else None,
                perplexity=math.exp(min(per_token, 700.0)) if comparable else None,
                token_accuracy=right / max(tokens, 1) if comparable else None,
                loss_per_character=loss / max(_characters(held_out, own), 1),
                exact_match=sum(hits) / len(hits) if hits else None,
                tokens_per_second=speed,
            ),
            answers,
        )

    def report(self, base: Evaluation, tuned: Evaluation, champion: Evaluation | None = None) -> dict[str, Any]:
        """Return ``eval`` (None if nothing was held out), ``exam`` and ``samples`` for metrics.json."""
        models = {"base": base, **({"champion": champion} if champion else {}), "tuned": tuned}
        scores = {name: asdict(each.scores) for name, each in models.items() if each.scores}
        samples = []
        for index, question in enumerate(self._questions):
            if question.shown:
                answers = {name: each.answers[index] for name, each in models.items()}
                samples.append({"messages": question.prompt, "expected": question.expected, **answers})
        counted = sum(question.counted for question in self._questions)
        return {
            "eval": scores or None,
            "exam": {"prompts": len(self._questions), "short_answers": counted, "short_answer_tokens": SHORT_ANSWER},
            "samples": samples,
        }

    def _answers(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
    ) -> tuple[list[str], float | None]:
        """Return an answer to each question, and how many tokens a second were generated."""
        most = self._arguments.eval_max_new_tokens
        answers = [""] * len(self._questions)
        tokens, seconds = 0, 0.0
        for counted in (False, True):
            asked = [index for index, question in enumerate(self._questions) if question.counted == counted]
            # The short ones apart, so that a long one does not let a wrong short one run on.
            like = [self._questions[index] for index in asked] if counted else self._questions
            right = [question.expected for question in like if question.expected is not None]
            longest = max((len(tokenizer.encode(text)) for text in right), default=most)
            prompts = [prompt_ids(tokenizer, self._questions[index].prompt) for index in asked]
            said = answer(model, tokenizer, prompts, min(most, longest + SPARE_TOKENS))
            tokens, seconds = tokens + said.tokens, seconds + said.seconds
            for index, text in zip(asked, said.texts, strict=True):
                answers[index] = text
        return answers, round(tokens / seconds, 1) if tokens else None


def _choose(
    arguments: FineTuneArguments, held_out: Sequence[Record], tokenizer: "PreTrainedTokenizerBase"
) -> list[_Question]:
    """Return the held-out prompts to ask, in the file's order; the same seed chooses the same ones."""
    chats = [up_to for record in held_out if isinstance(record, list) and (up_to := _up_to_last_trained(record))]
    chats = [chat for chat in chats if len(prompt_ids(tokenizer, chat[:-1])) <= arguments.max_length]
    short = [n for n, chat in enumerate(chats) if len(tokenizer.encode(chat[-1]["content"])) <= SHORT_ANSWER]
    chance = random.Random(arguments.seed)  # noqa: S311 no secret hangs on it
    counted = set(chance.sample(short, min(len(short), arguments.eval_samples)))
    shown = set(chance.sample(range(len(chats)), min(len(chats), SAMPLES_IN_REPORT, arguments.eval_samples)))
    return [
        _Question(without_weights(chats[n][:-1]), chats[n][-1]["content"], n in shown, n in counted)
        for n in sorted(counted | shown)
    ]


def _up_to_last_trained(chat: list[Message]) -> list[Message]:
    """Return the chat up to the last answer that is trained on: one with the weight 0 is no answer to expect."""
    ends = [n for n, message in enumerate(chat, 1) if message["role"] == "assistant" and not is_context(message)]
    return chat[: ends[-1]] if ends else []


def _same(one: "Dataset", other: "Dataset") -> bool:
    """Return whether the same tokens are read and trained in both."""
    return len(one) == len(other) and all(
        a["input_ids"] == b["input_ids"] and a["labels"] == b["labels"] for a, b in zip(one, other, strict=True)
    )


def _characters(held_out: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return how many characters of text are trained."""
    trained = [[token for token in row if token != IGNORED] for row in held_out["labels"]]
    return sum(len(text) for text in tokenizer.batch_decode(trained, skip_special_tokens=True))


def _token_scores(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", held_out: "Dataset"
) -> tuple[float, int, int]:
    """Return the sum of the cross-entropies in nats, how many tokens were the likeliest, and how many were trained."""
    import torch

    loss, right, count = 0.0, 0, 0
    for batch in batches(zip(held_out["input_ids"], held_out["labels"], strict=True)):
        ids = padded([row[0] for row in batch], tokenizer.pad_token_id)
        labels = padded([row[1] for row in batch], IGNORED)
        mask = padded([[1] * len(row[0]) for row in batch], 0)
        target = labels[:, 1:].to(model.device)
        trained = target != IGNORED
        with torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1]
            # Only the trained places in fp32: with a vocabulary of 200,000 the whole batch would take 3 GB more.
            logits, target = logits[trained].float(), target[trained]
            loss += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
            right += int((logits.argmax(-1) == target).sum())
        count += int(trained.sum())
    return loss, right, count

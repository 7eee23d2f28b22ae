"""From JSON Lines of chats or plain texts to token ids and the labels that are trained on."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training import FineTuneError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]  # "role" and "content", texts, and on an assistant's turn perhaps "weight", 0 or 1
Record = list[Message] | str  # a chat, whose last message is the assistant's, or a plain text
Example = tuple[list[int], list[int]]  # token ids and labels

IGNORED = -100  # the label that torch.nn.CrossEntropyLoss leaves out


def read_records(path: Path) -> list[Record]:
    """Return the records of a JSON Lines file, as the intake writes them.

    A line is ``{"messages": [{"role", "content", "weight"?}, …]}`` or ``{"text": "…"}``. Blank lines are skipped.
    Raises FineTuneError with the file and the line (counted from 1), never with what the line says.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return [_record(line, f"{path.name} line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    except FileNotFoundError as error:
        raise FineTuneError(f"{path.name} does not exist; looked for it at {path}") from error
    except UnicodeDecodeError as error:
        raise FineTuneError(f"{path.name} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise FineTuneError(f"cannot read {path.name}: {error.strerror}") from error


def _record(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise FineTuneError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
    if isinstance(record, dict) and "messages" not in record and isinstance(record.get("text"), str):
        return str(record["text"])
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        raise FineTuneError(f"{where} must be an object with a non-empty list 'messages', or with a text 'text'")
    chat = [_message(message, where) for message in messages]
    if chat[-1]["role"] != "assistant" or len(chat) < 2:
        raise FineTuneError(f"{where}: the last message must be the assistant's, after at least one other")
    return chat


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
        raise FineTuneError(f"{where}: each message needs the texts 'role' and 'content'")
    kept = {"role": message["role"], "content": message["content"]}
    weight = message.get("weight")
    if weight is None:
        return kept
    if isinstance(weight, bool) or weight not in (0, 1):
        raise FineTuneError(f"{where}: a message's 'weight' must be 0 (not trained on) or 1")
    return {**kept, "weight": int(weight)}


def is_context(message: Message) -> bool:
    """Return whether this is a turn of the assistant that is read but not trained on: one with the weight 0."""
    return message["role"] == "assistant" and message.get("weight") == 0


def without_weights(messages: Iterable[Message]) -> list[Message]:
    """Return the messages as a chat template may see them."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def with_copies_without_system(records: list[Record]) -> list[Record]:
    """Return the records, and each chat that begins with a system message once more without it.

    A chat client often sends none, and a small model that has never seen a conversation without it answers badly.
    """
    chats = [record for record in records if isinstance(record, list)]
    return records + [chat[1:] for chat in chats if chat[0]["role"] == "system" and len(chat) > 2]


def training_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return a chat template that marks the assistant's tokens, or None if there is none for this model.

    A template that leaves the end-of-turn token unmarked counts as none: the model would never learn to stop.
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    template = tokenizer.chat_template
    if not has_generation_markers(template):
        try:
            template = get_training_chat_template(tokenizer)
        except ValueError:
            return None
    return template if is_chat_template_stop_token_trained(tokenizer, chat_template=template) else None


def tokenize(
    records: Iterable[Record],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    loss_on: Literal["assistant", "all"],
) -> "Dataset":
    """Return a data set with ``input_ids`` and ``labels`` (lists of at most ``max_length`` ints) for each example.

    ``labels`` is ``input_ids`` with ``IGNORED`` where nothing is trained. A chat is one example, cut at its end; it is
    left out when nothing of it would be trained, for example because its prompt alone is longer than ``max_length``.
    With ``loss_on="assistant"`` the tokenizer must have a training template. Turns of the assistant with the weight 0
    are not trained, whatever ``loss_on``.

    A text is tokenized as it is, without the chat template, the end-of-text token is put behind it, and every token is
    trained, whatever ``loss_on``. A longer text makes several examples, one after the other and without overlap.

    Raises FineTuneError when the chat template does not let a turn with the weight 0 be found.
    """
    from datasets import Dataset

    marking = training_template(tokenizer)
    examples: list[Example] = []
    for record in records:
        if isinstance(record, str):
            examples += _text_examples(record, tokenizer, max_length)
        else:
            examples += _chat_example(record, tokenizer, max_length, loss_on == "assistant", marking)
    return Dataset.from_dict({"input_ids": [ids for ids, _ in examples], "labels": [labels for _, labels in examples]})


def _text_examples(text: str, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[Example]:
    ids = [*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id]
    pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
    return [(piece, piece) for piece in pieces if len(piece) > 1]  # the first token of a piece predicts only


def _chat_example(
    chat: list[Message],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    only_assistant: bool,
    marking: str | None,
) -> list[Example]:
    """Return the chat as one example, or nothing if nothing of it would be trained.

    ``marking`` is the training template; None if there is none, then ``only_assistant`` must be false.
    """
    messages = without_weights(chat)
    if only_assistant:
        ids, mask = _marked(messages, tokenizer, marking)
    else:
        ids = list(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])
        mask = [1] * len(ids)
    if any(is_context(message) for message in chat):
        if all(is_context(message) for message in chat if message["role"] == "assistant"):
            return []
        spans = _marked_spans(chat, ids, tokenizer, marking) if marking else None
        for start, end in _prefix_spans(chat, ids, tokenizer) if spans is None else spans:
            mask[start:end] = [0] * (end - start)
    if not any(mask[:max_length]):
        return []
    labels = [token if on else IGNORED for token, on in zip(ids, mask, strict=True)]
    return [(ids[:max_length], labels[:max_length])]


def _marked(
    messages: list[Message], tokenizer: "PreTrainedTokenizerBase", marking: str | None
) -> tuple[list[int], list[int]]:
    """Return the token ids of the messages, and a 1 for each of the assistant's."""
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=marking, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(encoded["input_ids"]), list(encoded["assistant_masks"])


def _marked_spans(
    chat: list[Message], ids: list[int], tokenizer: "PreTrainedTokenizerBase", marking: str
) -> list[tuple[int, int]] | None:
    """Return where the turns with the weight 0 are in ``ids``, by the template's marks.

    Each turn of the assistant is one run of marked tokens; None if it is not so, or if the template that marks renders
    the chat otherwise than ``ids``.
    """
    marked_ids, mask = _marked(without_weights(chat), tokenizer, marking)
    edges = [n for n, (one, other) in enumerate(zip([0, *mask], [*mask, 0], strict=True)) if one != other]
    runs = list(zip(edges[::2], edges[1::2], strict=True))
    answers = [message for message in chat if message["role"] == "assistant"]
    if marked_ids != ids or len(runs) != len(answers):
        return None
    return [run for run, message in zip(runs, answers, strict=True) if is_context(message)]


def _prefix_spans(chat: list[Message], ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[int, int]]:
    """Return where the turns with the weight 0 are in ``ids``, for a template without marks.

    A turn begins where the chat before it, with the header of an answer, ends; it ends where the chat up to and with
    it stops being like the whole one. That works when a template renders the same turns the same way whatever comes
    after them, which is checked: what differs at the end may only be special tokens, such as Phi-3's end of text.
    """
    messages = without_weights(chat)

    def rendered(count: int, header: bool) -> list[int]:
        encoded = tokenizer.apply_chat_template(messages[:count], add_generation_prompt=header, return_dict=True)
        return list(encoded["input_ids"])

    spans = []
    for index, message in enumerate(chat):
        if not is_context(message):
            continue
        before, with_it = rendered(index, header=True) if index else [], rendered(index + 1, header=False)
        end = _common(with_it, ids)
        rest = tokenizer.decode(with_it[end:], skip_special_tokens=True).strip()
        if _common(before, ids) < len(before) or end <= len(before) or rest:
            raise FineTuneError(
                "the base model's chat template renders a turn otherwise when others follow it, so turns with the "
                "weight 0 cannot be left out of training; remove the weights, or choose another base model"
            )
        # The last turn's end-of-text token belongs to it, as that of a trained one does.
        spans.append((len(before), len(ids) if index == len(chat) - 1 else end))
    return spans


def _common(first: list[int], second: list[int]) -> int:
    """Return how many tokens both lists begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))

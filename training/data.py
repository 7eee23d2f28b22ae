"""From JSON Lines of chat messages to token ids and the labels that are trained on."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from training import FineTuneError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
Record = list[Message]  # the messages of one conversation; the last one is the assistant's

IGNORED = -100  # the label that torch.nn.CrossEntropyLoss leaves out


def read_records(path: Path) -> list[Record]:
    """Return the conversations of a JSON Lines file of ``{"messages": [{"role", "content"}, …]}``.

    Blank lines are skipped. Raises FineTuneError with the file and the line (counted from 1), never with what the
    line says.
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
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        raise FineTuneError(f"{where} must be an object with a non-empty list 'messages'")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise FineTuneError(f"{where}: each message needs the texts 'role' and 'content'")
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise FineTuneError(f"{where}: the last message must be the assistant's, after at least one other")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def with_copies_without_system(records: list[Record]) -> list[Record]:
    """Return the records, and each one that begins with a system message once more without it.

    A chat client often sends none, and a small model that has never seen a conversation without it answers badly.
    """
    return records + [record[1:] for record in records if record[0]["role"] == "system" and len(record) > 2]


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
    """Return a data set with ``input_ids`` and ``labels`` (lists of at most ``max_length`` ints) for each record.

    ``labels`` is ``input_ids`` with ``IGNORED`` where nothing is trained. A record is left out when nothing of it would
    be, for example because its prompt alone is longer than ``max_length``. With ``loss_on="assistant"`` the tokenizer
    must have a training template.
    """
    from datasets import Dataset

    only_assistant = loss_on == "assistant"
    template = training_template(tokenizer) if only_assistant else None
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for record in records:
        encoded = tokenizer.apply_chat_template(
            record, chat_template=template, return_dict=True, return_assistant_tokens_mask=only_assistant
        )
        ids = encoded["input_ids"][:max_length]
        mask = encoded["assistant_masks"][:max_length] if only_assistant else [1] * len(ids)
        if any(mask):
            rows["input_ids"].append(ids)
            rows["labels"].append([token if on else IGNORED for token, on in zip(ids, mask, strict=True)])
    return Dataset.from_dict(rows)

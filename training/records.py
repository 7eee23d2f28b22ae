"""The records of a training file, read line by line: chats, whose turns may have weights, and plain texts."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import FineTuneError

Message = dict[str, Any]  # "role" and "content", texts, and on an assistant's turn perhaps "weight", 0 or 1
Record = list[Message] | str  # a chat, whose last message is the assistant's, or a plain text


def read_records(path: Path) -> list[Record]:
    """Return the records of a JSON Lines file, as the intake writes them, all in memory.

    A line is ``{"messages": [{"role", "content", "weight"?}, …]}`` or ``{"text": "…"}``. Blank lines are skipped.
    Raises FineTuneError with the file and the line (counted from 1), never with what the line says.
    """
    return [record for _, record in numbered_records(path)]


def numbered_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield each record with its line, one at a time. Raises what ``read_records`` does."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _record(line, f"{path.name} line {number}")
    except FileNotFoundError as error:
        raise FineTuneError(f"{path.name} does not exist; looked for it at {path}") from error
    except UnicodeDecodeError as error:
        raise FineTuneError(f"{path.name} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise FineTuneError(f"cannot read {path.name}: {error.strerror}") from error


@dataclass(frozen=True)
class RecordCounts:
    """How many records a file holds of each kind."""

    chats: int
    texts: int

    @property
    def records(self) -> int:
        """Both kinds together."""
        return self.chats + self.texts


def count_records(path: Path) -> RecordCounts:
    """Read the file once, to find what is wrong with it before anything slow is loaded.

    Raises FineTuneError as ``read_records`` does, and for a file without records.
    """
    chats = texts = 0
    for _, record in numbered_records(path):
        if isinstance(record, str):
            texts += 1
        else:
            chats += 1
    if not chats + texts:
        raise FineTuneError(f"{path.name} holds no records; add at least one line")
    return RecordCounts(chats, texts)


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


def without_system(chat: list[Message]) -> list[Message] | None:
    """Return the chat without the system message that it begins with; None if it begins with none.

    A chat client often sends none, and a small model that has never seen a conversation without it answers badly.
    """
    return chat[1:] if chat[0]["role"] == "system" and len(chat) > 2 else None


def with_copies_without_system(records: list[Record]) -> list[Record]:
    """Return the records, and behind them each chat that begins with a system message once more without it."""
    copies = [without_system(record) for record in records if isinstance(record, list)]
    return records + [copy for copy in copies if copy]

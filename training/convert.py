"""From a data set's record in one of the usual forms to one that the intake takes, or the reason why it is left out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TARGETS = ("messages", "prompt", "completion", "system", "context", "text")  # what --columns can name

# The names under which data sets keep these, the commonest first.
_NAMES = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "instruction", "question", "query", "problem", "user", "human", "request", "input"),
    "completion": ("completion", "response", "output", "answer", "solution", "assistant", "reply", "target"),
    "system": ("system", "system_prompt"),
    "context": ("context", "input"),
    "text": ("text",),
}
_ROLES = {"system": "system", "developer": "system"}
_ROLES |= dict.fromkeys(("user", "human", "prompter"), "user")
_ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant")


class LeftOut(Exception):
    """A record that cannot be trained on; the message is the reason, without what the record says."""


class UnknownColumns(LeftOut):
    """A record in none of the forms that are known; the message names the columns."""


@dataclass(frozen=True)
class Converted:
    """``record`` as the intake takes it, the ``form`` it had, the columns ``used``.

    ``cut``: messages behind the assistant's last answer were dropped.
    """

    record: dict[str, Any]
    form: str
    used: frozenset[str]
    cut: bool = False


def convert(record: Any, columns: Mapping[str, str]) -> Converted:
    """Return the record as ``{"messages": …}`` or ``{"text": …}``.

    ``columns`` says which column is which of ``TARGETS``; empty: the usual names count. Raises LeftOut.
    """
    if not isinstance(record, Mapping):
        raise LeftOut("not an object with columns")
    if not record:
        raise LeftOut("an object without columns")
    found = dict(columns) or _usual(record)
    if not set(found.values()) <= record.keys():
        missing = next(column for column in found.values() if column not in record)
        raise UnknownColumns(f"there is no column {missing!r}; the columns are {_listed(record)}")
    values = {target: record[column] for target, column in found.items()}
    used = frozenset(found.values())
    if "messages" in values:
        return _chat(values, used)
    if "prompt" in values and "completion" in values:
        return _pair(values, found, used)
    if "text" in values:
        text = values["text"]
        if not isinstance(text, str):
            raise LeftOut("the text is missing" if text is None else "the text is no text")
        if not text.strip():
            raise LeftOut("empty text")
        return Converted({"text": text}, "plain text", used)
    raise UnknownColumns(f"the columns are {_listed(record)}: no chat, no prompt with its completion, and no text")


def _usual(record: Mapping[str, Any]) -> dict[str, str]:
    """Return which column is which of TARGETS, going by their names, in whatever case a spreadsheet has them."""
    columns = {column.lower(): column for column in reversed(list(record))} | {column: column for column in record}
    found: dict[str, str] = {}
    for target, names in _NAMES.items():
        for name in names:
            if name in columns and columns[name] not in found.values():
                found[target] = columns[name]
                break
    # A chat says it all (ultrachat has its first prompt in a column of its own), and a text beside a prompt is the same
    # thing once more in some template (Alpaca).
    if "messages" in found:
        return {target: found[target] for target in ("messages", "system") if target in found}
    return found


def _chat(values: Mapping[str, Any], used: frozenset[str]) -> Converted:
    raw = values["messages"]
    if isinstance(raw, Mapping) and raw and all(isinstance(column, list) for column in raw.values()):
        # Older Parquet files hold a list for each key.
        raw = [dict(zip(raw, row, strict=False)) for row in zip(*raw.values(), strict=False)]
    if isinstance(raw, str) and raw.strip():
        raise LeftOut("the messages are a text, not a list of objects")
    if not isinstance(raw, list) or not raw:
        raise LeftOut("no messages")
    sharegpt = any(isinstance(message, Mapping) and "from" in message and "role" not in message for message in raw)
    messages = [_message(message) for message in raw]
    if _is_text(values.get("system")) and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": values["system"]})
    end = max((n for n, message in enumerate(messages, 1) if message["role"] == "assistant"), default=0)
    return Converted(
        {"messages": _valid(messages[:end])}, "ShareGPT" if sharegpt else "chat", used, cut=end < len(messages)
    )


def _message(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise LeftOut("a message is no object")
    role = raw.get("role", raw.get("from"))
    if (
        raw.get("tool_calls")
        or raw.get("function_call")
        or role in ("tool", "function", "function_call", "observation")
    ):
        raise LeftOut("it calls tools, which are not trained here")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise LeftOut("a role other than system, user and assistant")
    message = {"role": _ROLES[role.lower()], "content": _content(raw.get("content", raw.get("value")))}
    weight = raw.get("weight")
    if weight is None or message["role"] != "assistant":
        return message
    if weight not in (0, 1):
        raise LeftOut("a weight other than 0 and 1")
    return {**message, "weight": int(weight)}


def _content(raw: Any) -> str:
    """Return a message's text; the parts of one in several are joined."""
    parts = raw if isinstance(raw, list) else [raw]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if any(isinstance(part, Mapping) and part.get("type", "text") != "text" for part in parts):
        raise LeftOut("it holds images, sound or files")
    if not all(isinstance(text, str) for text in texts) or not "".join(texts).strip():
        raise LeftOut("an empty message")
    return "".join(texts)


def _valid(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ``messages``, which end with an answer, if they are a chat that the intake takes."""
    if not messages:
        raise LeftOut("no answer of the assistant")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise LeftOut("user and assistant do not take turns, or a system message is not the first")
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise LeftOut("every answer has the weight 0")
    return messages


def _pair(values: Mapping[str, Any], found: Mapping[str, str], used: frozenset[str]) -> Converted:
    if isinstance(values["prompt"], list) and isinstance(values["completion"], list):
        return _chat({**values, "messages": values["prompt"] + values["completion"]}, used)  # as TRL has it
    if not _is_text(values["prompt"]):
        raise LeftOut("the prompt is empty or no text")
    if not _is_text(values["completion"]):
        raise LeftOut("the completion is empty or no text")
    prompt = values["prompt"]
    if _is_text(values.get("context")):
        prompt += "\n\n" + values["context"]
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": values["completion"]}]
    if _is_text(values.get("system")):
        messages.insert(0, {"role": "system", "content": values["system"]})
    alpaca = found["prompt"].lower() == "instruction"
    return Converted({"messages": messages}, "Alpaca" if alpaca else "prompt and completion", used)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _listed(names: Iterable[Any]) -> str:
    listed = [repr(str(name)[:60]) for name in names]
    return ", ".join(listed[:30]) + (f" and {len(listed) - 30} more" if len(listed) > 30 else "") or "none"

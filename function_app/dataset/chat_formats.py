"""Records that have our columns and are another format's nevertheless: by a column beside them, or by their values."""

from collections.abc import Mapping
from typing import Any

from .foreign import Foreign, jq
from .message_formats import foreign_message

OURS = ("messages", "prompt", "completion", "text")
# Beside the format's own columns these make a record one of another format; all others are left out with a warning.
SUSPECT_COLUMNS = frozenset(
    {"tools", "functions", "function_call", "system", "system_prompt", "schemaVersion", "label"}
)
_SYSTEM = '{role: "system", content: .%s}'
_BEDROCK = (
    '{messages: ([(.system // [])[] | {role: "system", content: .text}] + [.messages[] | {role, content:'
    ' ([.content[].text] | join("\\n"))}])}'
)
_ANTHROPIC = (
    '{messages: ([{role: "system", content: (.system | if type == "array" then [.[].text] | join("\\n") else . end)}]'
    ' + [.messages[] | {role, content: (.content | if type == "array" then [.[].text] | join("\\n") else . end)}])}'
)


def foreign_chat(names: set[str], record: Mapping[str, Any]) -> Foreign | None:
    """What a record with ``messages`` is instead of a chat of ours; None when it is one, or has another fault."""
    messages = record.get("messages")
    for column in ("tools", "functions", "function_call"):
        if column in names and record.get(column, True):
            return Foreign(
                "tools",
                f"The record defines {column}, and calling tools is not trained here.",
                f"Leave such records out, or drop the column if no message calls a tool: {jq(f'del(.{column})')}",
                path=column,
            )
    if "schemaVersion" in names:
        return other("The record is Amazon Bedrock's (Converse) format.", jq(_BEDROCK))
    if isinstance(messages, str):
        return encoded("messages")
    if isinstance(messages, Mapping):
        return _columns_of_messages(messages)
    if not isinstance(messages, list):
        messages = []
    if messages and all(isinstance(message, str) for message in messages):
        program = '{messages: [.messages | to_entries[] | {role: ["user", "assistant"][.key % 2], content: .value}]}'
        return other("The messages are texts without roles.", f"If user and assistant take turns: {jq(program)}")
    roles = [message.get("role") for message in messages if isinstance(message, Mapping)]
    for column in ("system", "system_prompt"):
        if column in names and record.get(column, True) and "system" not in roles:
            program = _ANTHROPIC.replace(".system ", f".{column} ")
            return other(
                f"The system prompt stands beside the messages, under {column}, as in Anthropic's format.",
                jq(program),
                column,
            )
    for index, message in enumerate(messages):
        if isinstance(message, Mapping) and (found := foreign_message(message)):
            path = f"messages[{index}]" + (f".{found.path}" if found.path else "")
            return Foreign(found.code, found.message, found.fix, found.line, path)
    return None


def _columns_of_messages(messages: Mapping[str, Any]) -> Foreign | None:
    if isinstance(messages.get("role"), list) and isinstance(messages.get("content"), list):
        program = ".messages |= ([.role, .content] | transpose | map({role: .[0], content: .[1]}))"
        return other("The messages are stored by column (Hugging Face's Sequence).", jq(program), "messages")
    if "role" in messages and "content" in messages:
        return other("`messages` is one message, not a list.", jq(".messages |= [.]"), "messages")
    return DATAFRAME if set(messages) & {"0", "1"} else None


def foreign_pair(names: set[str], record: Mapping[str, Any]) -> Foreign | None:
    """What a record with ``prompt`` and ``completion`` is instead of ours; None as in foreign_chat."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if "label" in names and isinstance(record.get("label"), bool):
        return other(
            "The record is of KTO: the label says whether the completion is good.",
            f"Keep the good ones: {jq('select(.label) | {prompt, completion}')}",
            "label",
        )
    if isinstance(prompt, Mapping) and isinstance(completion, Mapping) and "0" in prompt:
        return DATAFRAME
    if isinstance(prompt, list) and isinstance(completion, list):
        return other(
            "prompt and completion are lists of messages (TRL's conversational format).",
            jq("{messages: (.prompt + .completion)}"),
        )
    for column in ("system", "system_prompt"):
        if column in names and record.get(column, True):
            return system_beside_pair(column, "prompt", "completion")
    return None


def system_beside_pair(column: str, prompt: str, completion: str) -> Foreign:
    """A system prompt that would be left out, because pairs of texts have no place for it."""
    turns = f'{{role: "user", content: .{prompt}}}, {{role: "assistant", content: .{completion}}}'
    return other(
        f"The system prompt stands in a column of its own, {column}.",
        jq(f"{{messages: [{_SYSTEM % column}, {turns}]}}"),
        column,
    )


def encoded(column: str, program: str = "") -> Foreign:
    """A column that holds the right thing as a text. ``program``: jq's, when it is not that of a list of messages."""
    program = program or (f".{column} |= fromjson" if column == "messages" else f"{{messages: (.{column} | fromjson)}}")
    return other(f"`{column}` is JSON within a text, so it was encoded twice.", jq(program), column)


def other(message: str, fix: str, path: str = "") -> Foreign:
    """The answer for a record of another format."""
    return Foreign("other_format", message, fix, path=path)


DATAFRAME = other(
    "This is a whole pandas table, by columns.",
    "In Python: `df.to_json('out.jsonl', orient='records', lines=True, force_ascii=False)`.",
)

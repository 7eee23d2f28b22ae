"""The messages of a chat request, checked and reduced to what a text model's template can read."""

from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 2048  # OpenAI's own limit
MAX_MESSAGE_CHARACTERS = 1 << 20
# Some 500,000 tokens: more than these models read. What cannot be answered shall not cost a tokenizer its seconds.
MAX_CHARACTERS = 1 << 21
MAX_TOOL_CALLS = 128

# What a message of each role may hold, besides role and content.
KEYS = {
    "system": {"name"},
    "developer": {"name"},
    "user": {"name"},
    "assistant": {"name", "reasoning_content", "tool_calls"},
    "tool": {"name", "tool_call_id"},
}
EMPTY_KEYS = {"refusal", "annotations", "audio", "function_call", "reasoning"}  # in a sent-back answer of the client
ALL_KEYS = {"role", "content", *EMPTY_KEYS}.union(*KEYS.values())
PLAIN = {"role", "content"}
TEXT = "must be a string or a list of text parts"


class FieldError(ValueError):
    """A field of a request cannot be used. ``param`` is a path such as ``messages[0].content``, the text says what it
    must be, so that the two make a sentence; ``code`` is for programs.
    """

    def __init__(self, param: str, text: str, code: str = "invalid_value") -> None:
        self.param, self.code = param[:200], code  # the names in it are the sender's
        super().__init__(f"{self.param} {text}{'' if text.endswith('?') else '.'}")


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """Return the messages with text parts joined into one string, and ``developer`` under its older name ``system``:
    templates of open models know only that one, and some leave a message of any other role out.

    Raises FieldError.
    """
    if not isinstance(messages, list) or not messages:
        raise FieldError(
            "messages", 'must be a list of at least one message, such as {"role": "user", "content": "Hi"}'
        )
    if len(messages) > MAX_MESSAGES:
        raise FieldError("messages", f"are {len(messages)}; at most {MAX_MESSAGES} are read")
    called: set[str] = set()
    total = 0
    read = []
    for index, sent in enumerate(messages):
        message = _read_plain(sent) or _read_message(sent, f"messages[{index}]", called)
        length = len(message.get("content") or "")
        if length > MAX_MESSAGE_CHARACTERS:
            raise FieldError(
                f"messages[{index}].content", f"has {length} characters; at most {MAX_MESSAGE_CHARACTERS} are read"
            )
        total += length
        read.append(message)
    if total > MAX_CHARACTERS:
        raise FieldError("messages", f"have {total} characters together; at most {MAX_CHARACTERS} are read")
    return read


def _read_plain(sent: Any) -> dict[str, Any] | None:
    """The message if it is of the common kind, which needs no second look; else None."""
    if isinstance(sent, dict) and sent.keys() == PLAIN and isinstance(sent["content"], str):
        if (role := sent["role"]) in ("user", "assistant", "system"):
            return sent
        if role == "developer":
            return {"role": "system", "content": sent["content"]}
    return None


def _read_message(sent: Any, path: str, called: set[str]) -> dict[str, Any]:
    """``called`` holds the ids of the tool calls so far, and gets this message's."""
    if not isinstance(sent, dict):
        raise FieldError(path, "must be an object with role and content")
    role = sent.get("role")
    if not isinstance(role, str) or role not in KEYS:
        raise FieldError(f"{path}.role", f"must be one of {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    for key, value in sent.items():
        if key == "role" or (value is None and key in ALL_KEYS):
            continue
        if role == "assistant" and key in EMPTY_KEYS and value in ("", [], {}):
            continue
        if key == "content":
            message[key] = _read_content(value, f"{path}.content")
        elif key not in KEYS[role]:
            raise FieldError(f"{path}.{key[:100]}", f"is not supported here in a message of the role {role}")
        elif key == "tool_calls":
            if calls := _read_tool_calls(value, f"{path}.tool_calls", called):
                message[key] = calls
        elif not isinstance(value, str):
            raise FieldError(f"{path}.{key}", "must be a string")
        else:
            message[key] = value
    if "content" not in message and "tool_calls" not in message:
        raise FieldError(f"{path}.content", TEXT)
    if role == "tool":
        if "tool_call_id" not in message:
            raise FieldError(f"{path}.tool_call_id", "must be the id of the call that this message answers")
        if message["tool_call_id"] not in called:
            raise FieldError(f"{path}.role", "must not be tool where no earlier message has a tool call of that id")
    return message


def _read_content(content: Any, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise FieldError(path, TEXT)
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise FieldError(f"{path}[{index}]", 'must be an object such as {"type": "text", "text": "Hi"}')
        if part["type"] != "text":
            raise FieldError(f"{path}[{index}].type", "must be text: these models read nothing else")
        if not isinstance(part.get("text"), str):
            raise FieldError(f"{path}[{index}].text", "must be a string")
        if part.keys() - {"type", "text"}:
            raise FieldError(f"{path}[{index}]", "may hold type and text and nothing else")
    return "\n".join(part["text"] for part in content)


def _read_tool_calls(calls: Any, path: str, called: set[str]) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or len(calls) > MAX_TOOL_CALLS:
        raise FieldError(path, f"must be a list of at most {MAX_TOOL_CALLS} calls")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        texts = isinstance(function, dict) and all(isinstance(function.get(key), str) for key in ("name", "arguments"))
        if not texts or not isinstance(call.get("id"), str) or call.get("type") != "function":
            raise FieldError(
                f"{path}[{index}]",
                'must be {"id": "…", "type": "function", "function": {"name": "…", "arguments": "…"}}',
            )
        called.add(call["id"])
    return calls

"""The messages of a chat request, checked and reduced to what a text model's template can read."""

from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")

KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"}
EMPTY_KEYS = {"refusal", "annotations", "audio", "function_call", "reasoning"}  # in a sent-back answer of the client


class MessageError(ValueError):
    """A message cannot be used; ``param`` is a path such as ``messages[0].content``, the text what it must be."""

    def __init__(self, param: str, text: str) -> None:
        super().__init__(text)
        self.param = param


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """Return the messages with text parts joined into one string.

    Raises MessageError.
    """
    if not isinstance(messages, list) or not messages:
        raise MessageError(
            "messages", 'must be a list of at least one message, such as {"role": "user", "content": "Hi"}'
        )
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _read_message(sent: Any, path: str) -> dict[str, Any]:
    if not isinstance(sent, dict):
        raise MessageError(path, "must be an object with role and content")
    message: dict[str, Any] = {key: value for key, value in sent.items() if value is not None}
    for key, value in list(message.items()):
        if key in EMPTY_KEYS and not value:
            del message[key]
        elif key not in KEYS:
            raise MessageError(f"{path}.{key[:100]}", "is not supported here")
    if message.get("role") not in ROLES:
        raise MessageError(f"{path}.role", f"must be one of {', '.join(ROLES)}")
    for key in ("name", "tool_call_id", "reasoning_content"):
        if not isinstance(message.get(key, ""), str):
            raise MessageError(f"{path}.{key}", "must be a string")
    if not isinstance(message.get("tool_calls", []), list):
        raise MessageError(f"{path}.tool_calls", "must be a list")
    if "content" in message:
        message["content"] = _read_content(message["content"], f"{path}.content")
    elif not (message["role"] == "assistant" and message.get("tool_calls")):
        raise MessageError(f"{path}.content", "must be a string")
    return message


def _read_content(content: Any, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise MessageError(path, "must be a string or a list of text parts")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise MessageError(f"{path}[{index}]", 'must be an object such as {"type": "text", "text": "Hi"}')
        if part["type"] != "text":
            raise MessageError(f"{path}[{index}].type", "must be text: these models read nothing else")
        if not isinstance(part.get("text"), str):
            raise MessageError(f"{path}[{index}].text", "must be a string")
        if part.keys() - {"type", "text"}:
            raise MessageError(f"{path}[{index}]", "may hold type and text and nothing else")
    return "\n".join(part["text"] for part in content)

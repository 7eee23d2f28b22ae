"""Messages as other formats write them: which of system, user and assistant is meant, and where the content is."""

from collections.abc import Mapping
from typing import Any

from .foreign import Foreign, jq

ROLES = ("system", "user", "assistant")
# What others call them. `function` and `tool` are no roles of a chat but results of calls.
OTHER_ROLES = {
    **dict.fromkeys(
        ("human", "usr", "customer", "client", "person", "me", "questioner", "student", "prompter"), "user"
    ),
    **dict.fromkeys(
        (
            "gpt",
            "bot",
            "model",
            "ai",
            "chatbot",
            "agent",
            "chatgpt",
            "claude",
            "llm",
            "assistent",
            "asistant",
            "teacher",
        ),
        "assistant",
    ),
    **dict.fromkeys(("developer", "sys", "instructions", "system_prompt", "preamble"), "system"),
}
CALLS = ("tool_calls", "function_call", "tool_call_id")
# (the key of who speaks, the key of what is said): the known pairs beside role and content
KEYS = [
    ("from", "value", "ShareGPT's"),
    ("role", "value", "a mixture of ShareGPT's and ours"),
    ("from", "content", "a mixture of ShareGPT's and ours"),
    ("role", "parts", "Google's (Gemini)"),
    ("role", "text", "another"),
    ("role", "message", "another (Cohere's)"),
    ("author", "content", "another"),
    ("author", "text", "another"),
    ("speaker", "text", "another"),
    ("speaker", "content", "another"),
    ("speaker", "utterance", "another"),
    ("sender", "text", "another (Claude's export)"),
    ("sender", "content", "another"),
    ("user", "text", "another"),
    ("name", "text", "another"),
    ("type", "content", "LangChain's"),
    ("type", "data", "LangChain's"),
]
_ROLE_MAP = (
    '({"human": "user", "gpt": "assistant", "bot": "assistant", "ai": "assistant", "model": "assistant"}[.] // .)'
)


def foreign_message(message: Mapping[str, Any]) -> Foreign | None:
    """What is another's in this message's shape or role; None when it is ours, or not known. Never raises.

    ``path`` of the answer is within the message (``role``, ``content`` or empty).
    """
    role = message.get("role")
    spoken = role.strip().casefold() if isinstance(role, str) and len(role) < 64 else ""
    if spoken in ("tool", "function", "ipython", "tool_call", "tool_response", "observation") or any(
        message.get(key) for key in CALLS
    ):
        return _tools("role" if spoken and not any(message.get(key) for key in CALLS) else "")
    if "role" not in message or "content" not in message:
        return _keys(message)
    return _content(message["content"]) or _role(role, spoken)


def _tools(path: str) -> Foreign:
    return Foreign(
        "tools",
        "The message calls a tool or gives a tool's result, which is not trained here.",
        "Leave such records out. "
        + jq(
            'select(all(.messages[]; (has("tool_calls") or has("function_call") or .role == "tool"'
            ' or .role == "function") | not))'
        ),
        path=path,
    )


def _keys(message: Mapping[str, Any]) -> Foreign | None:
    for who, what, whose in KEYS:
        if who in message and what in message:
            said = f'([.{what}[].text] | join("\\n"))' if what == "parts" else f".{what}"
            said = ".data.content" if what == "data" else said
            speaker = f".{who}.role" if isinstance(message[who], Mapping) else f".{who}"
            ours = f"{{role: ({speaker} | {_ROLE_MAP}), content: {said}}}"
            program = f'.messages |= map(if has("{what}") and has("{who}") then {ours} else . end)'
            return Foreign(
                "other_format", f"The message has {who} and {what} ({whose} format) for role and content.", jq(program)
            )
    if len(message) == 1:
        (only,) = message
        if only.strip().casefold() in (*ROLES, *OTHER_ROLES):
            ours = f"(to_entries[0] | {{role: (.key | {_ROLE_MAP}), content: .value}})"
            program = f'.messages |= map(if has("role") then . else {ours} end)'
            return Foreign("other_format", "The message has its role as its key.", jq(program))
    lower = {key.strip().casefold() for key in message}
    if {"role", "content"} <= lower:
        program = ".messages |= map(with_entries(.key |= ascii_downcase))"
        return Foreign("other_format", "The message's keys are role and content, in lower case.", jq(program))
    return None


def _content(content: Any) -> Foreign | None:
    if isinstance(content, Mapping):
        fix = jq('.messages[].content |= if type == "object" then (.text // ([.parts[]?] | join("\\n"))) else . end')
        return Foreign("other_format", "The content is an object, not a text.", fix, path="content")
    if not isinstance(content, list):
        return None
    kinds = {
        part.get("type", "text" if "text" in part else "?") if isinstance(part, Mapping) else "text" for part in content
    }
    if kinds & {"tool_use", "tool_result", "function_call", "toolUse", "toolResult"} or any(
        isinstance(part, Mapping) and ("toolUse" in part or "toolResult" in part) for part in content
    ):
        return _tools("content")
    if kinds - {"text", "input_text", "output_text"}:
        return Foreign(
            "other_format",
            "The content is a list of parts, and not all are text: images and sound are not trained here.",
            "Leave such records out. " + jq('select(all(.messages[].content; type == "string"))'),
            path="content",
        )
    program = '.messages[].content |= if type == "array" then map(.text? // .) | join("\\n") else . end'
    return Foreign(
        "other_format",
        "The content is a list of text parts (multimodal format), not a text.",
        jq(program),
        path="content",
    )


def _role(role: Any, spoken: str) -> Foreign | None:
    if role in ROLES or not isinstance(role, str):
        return None
    if spoken in ROLES:
        fix = jq('.messages[].role |= (ascii_downcase | gsub("\\\\s"; ""))')
        message = f"The role is {spoken} with capital letters or spaces."
        return Foreign("unknown_role", message, f"Write it as {spoken}. {fix}", path="role")
    if spoken in OTHER_ROLES:
        ours = OTHER_ROLES[spoken]
        fix = jq(f'.messages[].role |= ({{"{role.strip()}": "{ours}"}}[.] // .)')
        return Foreign(
            "unknown_role",
            f"The role {spoken} is another format's; here it is {ours}.",
            f"Write {ours}. {fix}",
            path="role",
        )
    return None

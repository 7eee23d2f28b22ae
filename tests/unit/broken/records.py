"""Files of valid JSON objects in the formats of others. A $ stands for texts with the marker (see ``every``)."""

from typing import Any

from .build import Broken, every

USER, ASSISTANT = {"role": "user", "content": "$?"}, {"role": "assistant", "content": "$!"}
MESSAGES = [USER, ASSISTANT]
SHAREGPT = [{"from": "human", "value": "$"}, {"from": "gpt", "value": "$"}]
GEMINI = [{"role": "user", "parts": [{"text": "$"}]}, {"role": "model", "parts": [{"text": "$"}]}]
TOOLS = [{"type": "function", "function": {"name": "$"}}]


def _record(name: str, record: Any, says: str, code: str = "other_format") -> Broken:
    return Broken(f"{name}.jsonl", every(record), code, 1, says)


def _message(name: str, message: Any, says: str, code: str = "other_format") -> Broken:
    return _record(name, {"messages": [message, ASSISTANT]}, says, code)


def _parts(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


TEXT, IMAGE = {"type": "text", "text": "$"}, {"type": "image_url", "image_url": {"url": "$"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "$", "arguments": "{}"}}]}

RECORDS = [
    # instructions, questions and answers
    _record("alpaca", {"instruction": "$", "input": "", "output": "$"}, "Alpaca"),
    _record("alpaca-response", {"instruction": "$", "input": "$", "response": "$"}, "prepare_dataset"),
    _record("dolly", {"instruction": "$", "context": "$", "response": "$", "category": "qa"}, "Dolly"),
    _record("instruction-only", {"instruction": "$"}, "no output"),
    _record("question-answer", {"question": "$", "answer": "$"}, "--columns prompt=question,completion=answer"),
    _record("capital-question", {"Question": "$", "Answer": "$"}, "{prompt: .Question, completion: .Answer}"),
    _record("q-a", {"q": "$", "a": "$"}, "{prompt: .q, completion: .a}"),
    _record("prompt-response", {"prompt": "$", "response": "$"}, "{prompt: .prompt, completion: .response}"),
    _record("input-output", {"input": "$", "output": "$"}, "{prompt: .input, completion: .output}"),
    _record("query-response", {"query": "$", "response": "$", "system": "$"}, 'role: "system"'),
    _record("translation", {"source": "$", "target": "$"}, "{prompt: .source, completion: .target}"),
    _record("summary", {"article": "$", "summary": "$"}, "{prompt: .article, completion: .summary}"),
    _record("squad", {"id": "1", "context": "$", "question": "$", "answers": {"text": ["$"]}}, "SQuAD"),
    # chats under other names
    _record("sharegpt", {"conversations": SHAREGPT}, "ShareGPT"),
    _record("conversations", {"conversations": MESSAGES}, "{messages: .conversations}"),
    _record("dialog", {"dialog": MESSAGES}, "{messages: .dialog}"),
    _record("cohere-turns", {"turns": [{"user": "$"}, {"assistant": "$"}]}, "Cohere"),
    _record("message", {"message": MESSAGES}, "{messages: .message}"),
    _record("mesages", {"mesages": MESSAGES}, "Did you mean `messages`"),
    _record("capital-messages", {"Messages": MESSAGES}, "lower case"),
    _record("space-in-a-key", {" messages": MESSAGES}, "without spaces"),
    _record("wrapped", {"data": {"messages": MESSAGES}}, "jq -c '.data'"),
    _record("wrapped-conversation", {"conversation": {"messages": MESSAGES}}, "jq -c '.conversation'"),
    _record("wrapped-text", {"json": '{"prompt": "$", "completion": "$"}'}, "fromjson"),
    _record("wrapped-list", {"data": [{"messages": MESSAGES}]}, ".data[]"),
    _record("one-message-a-line", USER, "one message"),
    _record("messages-as-text", {"messages": '[{"role": "user", "content": "$"}]'}, ".messages |= fromjson"),
    _record("messages-by-column", {"messages": {"role": ["user", "assistant"], "content": ["$", "$"]}}, "transpose"),
    _record("messages-of-texts", {"messages": ["$", "$"]}, "texts without roles"),
    # providers
    _record("gemini", {"systemInstruction": {"role": "system", "parts": [{"text": "$"}]},
                       "contents": GEMINI},
            "Gemini"),
    _record("anthropic", {"system": "$", "messages": MESSAGES}, "Anthropic"),
    _record("bedrock", {"schemaVersion": "bedrock-conversation-2024", "system": [{"text": "$"}],
                        "messages": [{"role": "user", "content": [{"text": "$"}]},
                                     {"role": "assistant", "content": [{"text": "$"}]}]}, "Bedrock"),
    _record("batch", {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
                      "body": {"model": "m", "messages": MESSAGES}}, "Batch API"),
    _record("api-log", {"request": {"messages": [USER]}, "response": {"choices": [{"message": ASSISTANT}]}}, "log"),
    _record("api-error", {"error": {"message": "$"}}, "error message"),
    _record("langsmith", {"inputs": {"question": "$"}, "outputs": {"answer": "$"}}, "LangSmith"),
    _record("langsmith-chat", {"inputs": {"messages": [USER]}, "outputs": {"messages": [ASSISTANT]}}, "LangSmith"),
    _record("dpo", {"prompt": "$", "chosen": "$", "rejected": "$"}, "{prompt, completion: .chosen}"),
    _record("dpo-chat", {"chosen": MESSAGES, "rejected": MESSAGES}, "{messages: .chosen}"),
    _record("dpo-openai", {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT],
                           "non_preferred_output": [ASSISTANT]}, "DPO"),
    _record("kto", {"prompt": "$", "completion": "$", "label": True}, "KTO"),
    _record("trl", {"prompt": [USER], "completion": [ASSISTANT]}, "{messages: (.prompt + .completion)}"),
    _record("system-beside-pair", {"system_prompt": "$", "prompt": "$", "completion": "$"}, "column of its own"),
    _record("dataframe", {"prompt": {"0": "$", "1": "$"}, "completion": {"0": "$", "1": "$"}}, "pandas"),
    _record("embedding", {"anchor": "$", "positive": "$"}, "embedding"),
    _record("tokens", {"input_ids": [1, 2], "labels": [1, 2], "meta": "$"}, "tokenised"),
    _record("prompt-only", {"prompt": "$"}, "no completion", "wrong_type"),
    _record("completion-only", {"completion": "$"}, "no prompt", "wrong_type"),
    # within messages
    _record("tools", {"messages": MESSAGES, "tools": TOOLS}, "tools", "tools"),
    _record("tool-call", {"messages": [USER, CALL, ASSISTANT]}, "tool", "tools"),
    _record("tool-result", {"messages": [USER, {"role": "tool", "content": "$"}, ASSISTANT]}, "tool", "tools"),
    _message("from-value", {"from": "human", "value": "$"}, "ShareGPT"),
    _message("role-text", {"role": "user", "text": "$"}, "content: .text"),
    _message("role-parts", {"role": "user", "parts": [{"text": "$"}]}, "Gemini"),
    _message("author", {"author": "user", "content": "$"}, "author"),
    _message("role-as-key", {"user": "$"}, "role as its key"),
    _message("capital-role", {"Role": "user", "Content": "$"}, "Role"),
    _message("parts-of-text", _parts(TEXT), 'join("\\n")'),
    _message("parts-with-image", _parts(TEXT, IMAGE), "images"),
    _message("role-human", {"role": "human", "content": "$"}, "here it is user", "unknown_role"),
    _message("role-developer", {"role": "developer", "content": "$"}, "here it is system", "unknown_role"),
    _message("role-capital", {"role": "User", "content": "$"}, "capital letters", "unknown_role"),
    _message("role-space", {"role": "user ", "content": "$"}, "spaces", "unknown_role"),
    _record("role-gpt", {"messages": [USER, {"role": "gpt", "content": "$"}]}, "here it is assistant", "unknown_role"),
]  # fmt: skip

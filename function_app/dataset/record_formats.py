"""JSON objects of another trainer's format: which one, and the command that turns it into ours."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from .chat_formats import OURS, encoded, foreign_chat, foreign_pair, other, system_beside_pair
from .foreign import SHAPE, Foreign, jq, prepare
from .message_formats import foreign_message

CHATS = (
    "conversations",
    "conversation",
    "dialogue",
    "dialog",
    "dialogs",
    "chat",
    "chats",
    "turns",
    "history",
    "thread",
)
CHATS_TOO = ("message", "msgs", "chat_history", "messages_list", "chat_messages", "items", "transcript")
WRAPPERS = (
    "data",
    "json",
    "record",
    "row",
    "example",
    "item",
    "sample",
    "_source",
    "fields",
    "doc",
    "document",
    "node",
)
MAX_NAMES = 200  # columns of a record that are compared with ours; a comparison takes 20 microseconds
LISTS = ("data", "train", "records", "examples", "rows", "samples", "dataset", "training_data", "results")
# What others call a prompt: what they call its completion, the likelier first.
PAIRS: dict[str, tuple[str, ...]] = {
    "question": ("answer", "response", "answers", "output"),
    "questions": ("answers",),
    "q": ("a",),
    "query": ("response", "answer", "output"),
    "prompt": ("response", "output", "answer"),
    "prompts": ("completions", "responses"),
    "input": ("output", "target", "response", "completion"),
    "inputs": ("targets", "outputs"),
    "input_text": ("output_text", "target_text"),
    "source": ("target",),
    "article": ("summary", "highlights"),
    "document": ("summary",),
    "dialogue": ("summary",),
    "user": ("assistant", "bot"),
    "human": ("assistant",),
    "user_message": ("assistant_message",),
    "request": ("response",),
    "problem": ("solution",),
}
_GEMINI = (
    '{messages: (((.systemInstruction // .system_instruction) as $s | if $s then [{role: "system", content:'
    ' ([$s.parts[].text] | join("\\n"))}] else [] end) + [.contents[] | {role: (if .role == "model" then "assistant"'
    ' else "user" end), content: ([.parts[].text] | join("\\n"))}])}'
)
_DOLLY = '{prompt: ([.instruction, (.context // "")] | map(select(. != "")) | join("\\n\\n")), completion: .response}'
_BATCH = "An answer is needed to learn from: append each answer of the batch's output as the assistant's message. "


def foreign_record(columns: Collection[str], record: Mapping[str, Any] | None) -> Foreign | None:
    """What format the object with these ``columns`` has; None when it is one of ours, or not known.

    ``record``: its values, as JSON decodes them, if they are at hand; with them more can be told. Of a record in one of
    our formats only SUSPECT_COLUMNS and the values' shape can still make it another's. Never raises.
    """
    record = record or {}
    names = set(columns)
    if "messages" in names:
        return foreign_chat(names, record)
    if {"prompt", "completion"} <= names:
        return foreign_pair(names, record)
    if "text" in names:
        return None
    return (
        _requests(names, record)
        or _providers(names, record)
        or _preferences(names, record)
        or _instructions(names)
        or _other_data(names)
        or _chats(names, record)
        or _pairs(names, record)
        or _wrapped(names, record)
        or _misspelt(names)
        or _half(names)
    )


def _requests(names: set[str], record: Mapping[str, Any]) -> Foreign | None:
    """What was sent to an API, or what it answered."""
    body, response, request = record.get("body"), record.get("response"), record.get("request")
    if "custom_id" in names and ("body" in names or "url" in names):
        fix = jq("{messages: .body.messages}")
        messages = body.get("messages") if isinstance(body, Mapping) else None
        last = messages[-1] if isinstance(messages, list) and messages else None
        answered = isinstance(last, Mapping) and last.get("role") == "assistant"
        return other("The line is a request of OpenAI's Batch API.", fix if answered else _BATCH + fix)
    if "custom_id" in names:
        return other(
            "The line is an answer of a Batch API, without its question.",
            "Join it with the request of the same custom_id. " + SHAPE,
        )
    if isinstance(request, Mapping) and isinstance(response, Mapping) and "choices" in response:
        program = "{messages: (.request.messages + [.response.choices[0].message | {role, content}])}"
        return other("The line is a log of requests to a chat API.", jq(program))
    if "choices" in names:
        return other("The line is a chat API's answer, without its question.", "Join it with its request. " + SHAPE)
    if "error" in names and len(names) <= 3:
        return other("The line is an API's error message, not an example.", "Delete the line, or ask the API again.")
    return None


def _providers(names: set[str], record: Mapping[str, Any]) -> Foreign | None:
    if "contents" in names:
        return other("The record is of Google's format (Gemini, Vertex AI).", jq(_GEMINI))
    if "mapping" in names:
        return other(
            "The record is a conversation of ChatGPT's data export, a tree of messages.",
            "Write each branch as a list of messages. " + SHAPE,
        )
    if {"inputs", "outputs"} <= names and not isinstance(record.get("inputs"), str):
        program = "{prompt: (.inputs | [.[]][0]), completion: (.outputs | [.[]][0])}"
        inputs = record.get("inputs")
        if isinstance(inputs, Mapping) and isinstance(inputs.get("messages"), list):
            program = "{messages: (.inputs.messages + (.outputs.messages // [.outputs.output // .outputs]))}"
        return other("The record is an example of LangSmith or LangChain (inputs, outputs).", jq(program))
    if "input_ids" in names:
        return other(
            "The record is tokenised already (input_ids), for one tokenizer.",
            "Give the texts from which the tokens were made. " + SHAPE,
        )
    return None


def _preferences(names: set[str], record: Mapping[str, Any]) -> Foreign | None:
    what = "The record is a preference pair (DPO: a chosen and a rejected answer)."
    if "preferred_output" in names:
        return other(what, f"Keep the better answer: {jq('{messages: (.input.messages + .preferred_output)}')}")
    if "chosen" not in names:
        return None
    if isinstance(record.get("chosen"), list):
        with_prompt = isinstance(record.get("prompt"), list)
        program = "{messages: (.prompt + .chosen)}" if with_prompt else "{messages: .chosen}"
    elif "prompt" in names:
        program = "{prompt, completion: .chosen}"
    else:
        return other(what, "Split the chosen text into its turns. " + SHAPE)
    return other(what, f"Keep the better answer: {jq(program)}")


def _instructions(names: set[str]) -> Foreign | None:
    if "instruction" not in names:
        return None
    if "context" in names and "response" in names:
        return other("The record is of Dolly's format (instruction, context, response).", jq(_DOLLY))
    if names & {"output", "response"}:
        return other("The record is of Alpaca's format (instruction, input, output or response).", prepare())
    if names & {"completion", "answer"}:
        answer = "completion" if "completion" in names else "answer"
        return _columns("instruction", answer, names)
    return other("The record has an instruction and no output.", f"Add the answer. {SHAPE}")


def _other_data(names: set[str]) -> Foreign | None:
    """Training data for something that is no chat model, and what is no record at all."""
    if {"cells", "nbformat"} <= names:
        return other("The line is a Jupyter notebook, not the data that it works on.", f"Export the data. {SHAPE}")
    for pair in (("anchor", "positive"), ("query", "positive"), ("query", "pos"), ("sentence1", "sentence2")):
        if names.issuperset(pair):
            return other("The record trains an embedding model (texts that are alike), not a chat model.", SHAPE)
    if {"role", "content"} <= names or {"from", "value"} <= names:
        return other(
            "The line is one message; a line holds a whole conversation.",
            "Put the messages of one conversation into one list. " + SHAPE,
        )
    return None


def _chats(names: set[str], record: Mapping[str, Any]) -> Foreign | None:
    """A list of messages under another name."""
    for column in (*CHATS, *CHATS_TOO):
        value = record.get(column)
        if column not in names or (column in CHATS_TOO and not isinstance(value, list)):
            continue
        if "summary" in names and column == "dialogue":
            return None
        if isinstance(value, Mapping) and "messages" in value:
            return other(f"The record lies within another object, under {column}.", jq(f".{column}"), column)
        if isinstance(value, str):
            if value.lstrip().startswith(("[", "{")):
                return encoded(column)
            return other(f"The conversation is one text, under {column}.", f"Split it into messages. {SHAPE}", column)
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, Mapping) and "role" in first and "content" in first:
            return other(f"The messages are called {column}.", jq(f"{{messages: .{column}}}"), column)
        if column in ("conversations", "conversation") and (first is None or isinstance(first, Mapping)):
            return other("The record is of ShareGPT's format (conversations of from and value).", prepare())
        shape = foreign_message(first) if isinstance(first, Mapping) else None
        again = f"Then: {shape.fix}" if shape else SHAPE
        return other(
            f"The conversation is called {column}{', as in older formats of Cohere' * (column == 'turns')}.",
            f"{jq(f'{{messages: .{column}}}')} {again}",
            column,
        )
    return None


def _pairs(names: set[str], record: Mapping[str, Any]) -> Foreign | None:
    spelt = {name.casefold(): name for name in names if name.isidentifier()}
    for prompt, completion in [(prompt, completion) for prompt, each in PAIRS.items() for completion in each]:
        if prompt in spelt and completion in spelt:
            question, answer = spelt[prompt], spelt[completion]
            if question == "question" and isinstance(record.get("answers"), Mapping):
                program = '{prompt: ([.context // "", .question] | join("\\n\\n")), completion: .answers.text[0]}'
                return other("The record is of SQuAD's format (context, question, answers).", jq(program))
            for column in ("system", "system_prompt"):
                if column in names and record.get(column, True):
                    return system_beside_pair(column, question, answer)
            return _columns(question, answer, names)
    return None


def _columns(prompt: str, completion: str, names: Collection[str]) -> Foreign:
    context = " and a context, which belongs into the prompt" if "context" in names else ""
    program = f"{{prompt: .{prompt}, completion: .{completion}}}"
    command = prepare(columns=f"prompt={prompt},completion={completion}")
    return other(f"The record is a pair of {prompt} and {completion}{context}.", f"{command} {jq(program)}")


def _wrapped(names: set[str], record: Mapping[str, Any]) -> Foreign | None:
    for column in (*WRAPPERS, *LISTS):
        value = record.get(column)
        if isinstance(value, Mapping) and (set(value) & {*OURS, *CHATS, "instruction", "question"}):
            return other(f"The record lies within another object, under {column}.", jq(f".{column}"), column)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            return encoded(column, f".{column} | fromjson")
        if isinstance(value, list) and value and isinstance(value[0], Mapping) and column in LISTS:
            program = f".{column}[]" + (".row" if "row" in value[0] else "")
            return other(
                f"The line holds many records in a list, {column}.", f"Write one a line. {jq(program)}", column
            )
    if names and names <= {"index", "create", "_index", "_id"}:
        return other("The line is an action of Elasticsearch's bulk format.", "Delete these lines (each second one).")
    return None


def _misspelt(names: set[str]) -> Foreign | None:
    """``Messages``, ``mesages``, ``" messages"``: names that are nearly ours."""
    wrong: dict[str, str] = {}
    for name in sorted(names)[:MAX_NAMES]:
        bare = name.strip("\ufeff \t\r\n").casefold()
        near = get_close_matches(bare, OURS, 1, 0.8) if len(bare) < 20 else []
        if near and near[0] not in names:
            wrong[near[0]] = name
    if not wrong:
        return None
    exact = all(name.strip("\ufeff \t\r\n").casefold() == ours for ours, name in wrong.items())
    plain = all(name.isidentifier() for name in wrong.values())
    told = " and ".join(f"`{ours}`" for ours in wrong)
    if exact:
        why = "Column names are matched as they are: lower case, without spaces."
        program = 'with_entries(.key |= (ascii_downcase | gsub("^\\\\s+|\\\\s+$|\\ufeff"; "")))'
    else:
        why = f"Did you mean {told}?"
        program = "{" + ", ".join(f"{ours}: .{name}" for ours, name in wrong.items()) + "}"
    fix = jq(program) if exact or plain else f"Rename the columns. {SHAPE}"
    return other(f"{told} is spelt otherwise here. {why}", fix)


def _half(names: set[str]) -> Foreign | None:
    for have, lack in (("prompt", "completion"), ("completion", "prompt")):
        if have in names:
            fix = f"Add the {lack}, or, to train on the text as it is, call the column text: {jq(f'{{text: .{have}}}')}"
            return Foreign("wrong_type", f"The record has a {have} and no {lack}.", fix, path=lack)
    return None

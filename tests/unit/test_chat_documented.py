"""docs/chat.md names every field, limit and error of the chat API, and none that there is not."""

import re
from pathlib import Path

from function_app import openai_api, openai_messages, openai_parameters

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
SOURCES = [
    *(ROOT / "function_app" / f"{name}.py" for name in ("callers", "model_choice", "openai_api", "openai_parameters")),
    *(ROOT / "function_app" / f"{name}.py" for name in ("openai_messages", "chat_errors")),
    *(ROOT / "flow").glob("*.py"),
]
CODE = re.compile(r'\bcode(?:: str)?(?: =|=) ?"([a-z_]+)"|FieldError\([^()]*"(\w+_parameter)"')


def section(title: str) -> str:
    """The text under ``## title``."""
    return DOCUMENT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_column(text: str) -> set[str]:
    """What stands in backquotes in the first column of the tables."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_tables_have_each_field_and_no_other() -> None:
    known = openai_parameters.KNOWN | set(openai_parameters.REFUSED)
    assert first_column(section("What a request may hold")) == known


def test_what_is_said_to_be_refused_is_refused() -> None:
    refused = first_column(section("What a request may hold").partition("\nRefused:\n")[2])
    assert refused == set(openai_parameters.REFUSED)


def test_the_limits_are_those_of_the_code() -> None:
    text = section("Limits")
    assert f"{openai_api.MAX_BODY_BYTES >> 20} MiB" in text
    for number in (
        openai_api.MAX_NESTING,
        openai_messages.MAX_MESSAGES,
        openai_messages.MAX_MESSAGE_CHARACTERS,
        openai_messages.MAX_CHARACTERS,
    ):
        assert re.search(rf"\b{number:,}\b", text), number


def test_the_times_are_those_of_the_code() -> None:
    endpoint = (ROOT / "flow" / "endpoint.py").read_text(encoding="utf-8")
    for name in ("CONNECT_SECONDS", "FIRST_TOKEN_SECONDS", "TOTAL_SECONDS"):
        (seconds,) = re.findall(rf"^{name} = (\d+)", endpoint, re.MULTILINE)
        assert f"{seconds} seconds" in section("Time and leaving"), name


def test_the_table_of_errors_has_each_code_that_is_given() -> None:
    cells = re.findall(r"^\| \d[^|]*\| ([^|]*) \|", section("Errors"), re.MULTILINE)
    told = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    given = {name for path in SOURCES for found in CODE.findall(path.read_text(encoding="utf-8")) for name in found}
    given -= {""}
    assert {"invalid_value", "unknown_parameter", "model_not_found", "content_filter"} <= given, "the search is broken"
    assert given - told == set()
    assert told - given <= {"context_length_exceeded"}, "nobody gives it"  # that one is the model's server's

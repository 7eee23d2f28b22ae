"""The coverage tables of docs/emulator.md are those of the code."""

import re
from pathlib import Path

import pytest

from emulator import coverage
from emulator.arm.routing import ROUTES, Coverage, Route


def test_the_page_shows_the_coverage_of_today() -> None:
    page = coverage.PAGE.read_text(encoding="utf-8")
    if coverage.renewed(page) != page:
        pytest.fail("docs/emulator.md is out of date; run: python -m emulator.coverage", pytrace=False)


def test_every_route_says_truthfully_what_it_covers() -> None:
    for route in ROUTES:
        assert re.fullmatch(r"[^:]+: .+", route.operation), route
        assert route.note or route.coverage == Coverage.FULL, f"{route.operation}: what is missing?"
    calls = [(route.method, re.sub(r"\{\w+\}", "{}", route.template)) for route in ROUTES]
    assert len(calls) == len(set(calls)), "two handlers answer the same call"


def made(operation: str, **refuses: int) -> Route:
    async def handler(_: object) -> None: ...

    return Route(
        "PUT", "/a/{b}", re.compile(""), handler, operation, Coverage.PARTLY, "this|that", refuses  # type: ignore[arg-type]
    )  # fmt: skip


def test_operations_are_grouped_and_their_states_are_columns() -> None:
    text = coverage.tables([made("jobs: b", Running=409), made("codes: a"), made("jobs: c", Failed=400, Running=404)])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2:7] == [
        "| **codes** | | | |",
        "| a | `PUT /a/{b}` | partly | this\\|that |",
        "| **jobs** | | | |",
        "| b | `PUT /a/{b}` | partly | this\\|that |",
        "| c | `PUT /a/{b}` | partly | this\\|that |",
    ]
    assert rows[7:] == [
        "| operation | Running | Failed |", "| --- | --- | --- |", "| jobs: b | 409 |  |", "| jobs: c | 404 | 400 |",
    ]  # fmt: skip


def test_guesses_are_comments_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm" / "a.py").write_text('x = 1  # so  # Guess: of the one\ny = "# Guess: a text"\n')
    assert list(coverage.guesses(tmp_path)) == [("arm/a.py", "of the one")]


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        coverage.renewed("# no markers")

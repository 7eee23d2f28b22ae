"""The report as people read it, in Markdown and in a terminal: true, calm, and safe whatever a file's names are."""

import io
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from function_app.dataset.codes import CODES
from function_app.dataset.markdown import code, escape, markdown, rules_table
from function_app.dataset.report import Count, Estimate, Percentiles, Report, Statistics
from function_app.dataset.terminal import terminal
from function_app.dataset.wording import about, clean, duration, histogram, percent, recipe_yaml, sentence, size

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = [
    "a|b",
    "a\\|b",
    "`x` <img src=x onerror=alert(1)>",
    "``",
    "line\nbreak\r\n# heading",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "https://evil.example",
    "www.evil.example",
    "me@evil.example",
    "<https://evil.example>",
    "</td></table><script>",
    "&lt;b&gt;",
    "\x1b[2Jgone\u202egnp.exe",
    "**bold** __init__ ~~struck~~ $x$",
    "",
    " ",
]


def accepted() -> Report:
    report = Report(
        dataset="support/chats.jsonl",
        run_id="support-5e6ad9265bb3",
        etag="0x8DC",
        checked_at=datetime(2026, 11, 21, 10, 15, tzinfo=UTC),
        recipe={"base_model": "embedded", "training": {"epochs": 3.0, "seed": None}, "serving": {}},
        recipe_layers=["built-in defaults", "datasets/support/recipe.yaml"],
        estimate=Estimate(
            3, 345, 900_258, 725.0, "1,240 tokens per second", 1.6581, 45.0, "one machine at a list price of 3.673"
        ),
    )
    report.statistics = Statistics(
        format="chat",
        bytes=1_234_567,
        lines=1240,
        blank_lines=6,
        records=1234,
        train=1110,
        eval=124,
        messages=3700,
        characters=1_200_345,
        tokens=300_086,
        token_histogram={"32": 12, "64": 310, "256": 912},
        record_characters=Percentiles(60, 420, 1800, 5200, 14005),
        record_tokens=Percentiles(15, 105, 450, 1300, 3501),
        turns={"2": 1000, "3": 234},
        with_system=617,
        scripts={"Latin": 0.97, "Han": 0.03},
        extra_columns=["id", "task"],
    )
    return report


def rejected(errors: int = 3) -> Report:
    report = accepted()
    report.estimate = None
    for line in range(1, errors + 1):
        report.error("unknown_role", "Unknown role `human`.", "Write `user`.", line=line, path="messages[0].role")
    return report


def plain(report: Report, **options: Any) -> str:
    return terminal(report, [], io.StringIO(), **options)


def inline(text: str) -> list[Token]:
    return [token for block in MarkdownIt("commonmark").enable("table").parse(text) for token in block.children or []]


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table that has ``heading`` in its head, as a reader sees them."""
    cells: list[list[str]] = []
    tables: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(page):
        if token.type == "table_open":
            tables.append(cells := [])
        elif token.type == "tr_open":
            cells.append([])
        elif token.type == "inline" and token.level >= 3 and cells:
            cells[-1].append("".join(child.content for child in token.children or []))
    return next(table for table in tables if heading in table[0])


# Markdown


def test_the_first_line_is_the_verdict() -> None:
    warned = accepted()
    warned.warn("email", "An address.", "Take it out.", line=3)
    heads = [markdown(report).splitlines()[0] for report in (accepted(), warned, rejected())]
    assert heads == [
        "# support/chats.jsonl: accepted",
        "# support/chats.jsonl: accepted with warnings",
        "# support/chats.jsonl: rejected",
    ]


def test_a_rejected_file_says_line_place_finding_and_fix_and_that_nothing_was_trained() -> None:
    page = markdown(rejected())
    assert ["1–3", "messages[0].role", "Unknown role human.", "Write user."] in rows(page, "line")
    assert ["unknown_role", "3", CODES["unknown_role"][1]] in rows(page, "rule")
    assert "Nothing was trained" in page
    assert "listed." not in page


def test_it_says_how_many_errors_are_not_listed() -> None:
    page = markdown(rejected(1234))
    assert "The first 100 of 1,234 are listed." in page
    assert [row[0] for row in rows(page, "line")] == ["line", "1–100"]
    assert "The first 100 of 1,234 are listed." in plain(rejected(1234))


def test_lines_with_the_same_mistake_share_a_row_and_those_of_another_file_have_their_own() -> None:
    report = Report()
    for line in (1, 2, 3, 7, 9, 10):
        report.error("invalid_json", "Not valid JSON.", "Mend it.", line=line)
    report.error("invalid_json", "Not valid JSON.", "Mend it.", line=4, file="eval.jsonl")
    report.error("too_few_records", "7 records.", "Add more.")
    assert [row[0] for row in rows(markdown(report), "line")] == ["line", "1–3, 7, 9–10", "eval.jsonl 4", "–"]


def test_errors_of_the_file_as_a_whole_and_then_the_most_frequent_come_first() -> None:
    report = rejected(2)
    for line in range(5):
        report.error("invalid_json", "Not valid JSON.", "Mend it.", line=line + 1)
    report.error("too_few_records", "7 records.", "Add more.")
    assert [row[0] for row in rows(markdown(report), "rule")[1:]] == ["too_few_records", "invalid_json", "unknown_role"]


def test_no_column_of_places_where_no_error_has_one() -> None:
    report = Report(dataset="x.csv")
    report.error("not_json_lines", "This is CSV.", "Convert it.")
    page = markdown(report)
    assert rows(page, "line") == [["line", "what was found", "what to do"], ["–", "This is CSV.", "Convert it."]]
    assert "## The data" not in page  # nothing was read, so nothing is said of it


def test_warnings_show_the_lines_of_the_first_and_count_the_others() -> None:
    report = accepted()
    for line in range(1, 38):
        report.warn("duplicate", f"The same as line {line}.", "Leave one out.", line=100 + line)
    report.counts["duplicate"].about = True
    row = rows(markdown(report), "rule")[1]
    assert row[:2] == ["duplicate", "about 37"]
    assert row[2] == "101, 102, 103, 104, 105, 106, 107, 108, 109, 110 and 27 more"
    assert row[3] == "The same example again. The first: The same as line 1."


def test_findings_of_a_companion_name_it() -> None:
    report = accepted()
    report.warn("email", "An address.", "Take it out.", line=9, file="eval.jsonl")
    report.error("empty_eval", "It holds no record.", "Fill it.", file="eval.jsonl")
    page = markdown(report)
    assert ["eval.jsonl", "It holds no record.", "Fill it."] in rows(page, "line")
    assert "eval.jsonl 9" in rows(page, "rule")[1] or "eval.jsonl 9" in page.replace("`", "")
    assert "eval.jsonl, line 9" in plain(report)


def test_the_recipe_can_be_copied_out_and_its_layers_are_named() -> None:
    page = markdown(accepted())
    block = re.search(r"```yaml\n(.*?)\n```", page, re.DOTALL)
    assert block is not None
    assert yaml.safe_load(block[1]) == {"base_model": "embedded", "training": {"epochs": 3.0}}
    assert "built-in defaults ← datasets/support/recipe.yaml" in page


def test_backticks_in_the_recipe_do_not_end_its_block() -> None:
    report = accepted()
    report.recipe = {"evaluation": {"questions": ["```\n# Injected\n```", "~~~"]}}
    tokens = MarkdownIt("commonmark").parse(markdown(report))
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[-1] == "The recipe"


def test_the_page_ends_by_saying_that_the_file_is_unchanged_and_how_to_check_one() -> None:
    last = markdown(rejected()).splitlines()[-1]
    assert "not changed" in last
    assert "`python -m function_app.dataset FILE`" in last


@pytest.mark.parametrize("name", HOSTILE)
def test_a_columns_name_cannot_break_the_table_or_become_a_link(name: str) -> None:
    report = accepted()
    report.dataset = f"support/{name}.jsonl"
    report.statistics.extra_columns = [name, "id"]
    report.error("unknown_role", f"Unknown role {name}.", f"Not {name}.", line=3, path=f"{name}[0]", file=name)
    page = markdown(report)
    assert len({len(row) for row in rows(page, "line")}) == 1
    assert len(rows(page, "line")) == 2
    assert {token.type for token in inline(page)} <= {
        "text",
        "code_inline",
        "strong_open",
        "strong_close",
        "text_special",
    }
    assert [line for line in page.splitlines() if line.startswith("#")][1:2] == ["## What to mend first"]
    assert "\x1b" not in page
    assert "\u202e" not in page
    page.encode()
    assert "\x1b" not in plain(report)


@given(st.one_of(st.text(), st.text("|`\\<>[]()!*_~$&#@:/w.a1 \n", max_size=40)))
def test_any_text_stays_one_cell_of_plain_text(text: str) -> None:
    for cell, expected in ((escape(text), sentence(text)), (code(text), clean(text))):
        parsed = MarkdownIt("commonmark").enable("table").parse(f"| a | b |\n| --- | --- |\n| 1{cell}1 | 2 |\n\nend\n")
        cells = [token for token in parsed if token.type == "inline"]
        assert len(cells) == 5
        assert cells[3].content == "2"
        assert cells[4].content == "end"
        tokens = cells[2].children or []
        assert {token.type for token in tokens} <= {"text", "code_inline", "text_special"}
        for token in tokens:
            if token.type == "text":
                assert not re.search(r"://|www\.|@", re.sub(r"^1|1$", "", token.content))
        shown = "".join(token.content for token in tokens)
        assert _letters(shown) == _letters(f"1{expected}1")


def _letters(text: str) -> str:
    """Without what marks a code span: its backticks, the space within, the quotes round nothing."""
    return re.sub(r'[`\s"]', "", text)


def test_halves_of_characters_do_not_stop_the_report() -> None:
    report = accepted()
    report.statistics.extra_columns = ["\ud800"]
    assert "`\\ud800`" in markdown(report)
    assert "\\ud800" in plain(report)


def test_many_or_long_columns_are_cut() -> None:
    report = accepted()
    report.statistics.extra_columns = [f"c{i}" for i in range(500)] + ["x" * 10_000]
    page = markdown(report)
    assert "and 481 more" in page
    assert max(map(len, page.splitlines())) < 1000


def test_the_table_of_rules_has_every_rule() -> None:
    assert [row[0] for row in rows(rules_table(), "code")[1:]] == list(CODES)


# the documentation and the code


def sources() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in (ROOT / "function_app").rglob("*.py")}


def test_the_documented_rules_are_the_codes() -> None:
    page = (ROOT / "docs" / "intake.md").read_text(encoding="utf-8")
    documented = re.search(r"<!-- rules[^>]*-->\n(.*?)\n<!-- /rules -->", page, re.DOTALL)
    assert documented is not None
    assert documented[1] == rules_table(), "run `python -m function_app.dataset --rules` and put it between the marks"


def test_every_code_that_is_used_is_in_the_table_with_its_severity() -> None:
    used: set[tuple[str, str]] = set()
    for source in sources().values():
        for owner, method, name in re.findall(r"(\w+)\.(error|warn)\(\s*\"([a-z_]+)\",", source):
            if owner not in ("log", "logging", "parser"):
                used.add((name, "error" if method == "error" else "warning"))
        used |= {(name, "error") for name in re.findall(r"\bForeign\(\s*(?:code=)?\"([a-z_]+)\"", source)}
        used |= {(name, "warning") for name in re.findall(r"\b_tell\(check, \"([a-z_]+)\"", source)}
        used |= {(name, "warning") for name in re.findall(r"\._count\(\s*\"([a-z_]+)\"", source)}
    wrong = {(name, kind) for name, kind in used if name not in CODES or CODES[name][0].value != kind}
    assert not wrong


def test_every_rule_of_the_table_can_be_found() -> None:
    text = "".join(source for path, source in sources().items() if path.name not in ("codes.py", "wording.py"))
    assert [name for name in CODES if f'"{name}"' not in text] == []


def test_the_checkers_documents_name_every_field_of_the_report() -> None:
    page = (ROOT / "docs" / "intake.md").read_text(encoding="utf-8")
    for struct in (Report, Statistics, Estimate, Count):
        missing = [name for name in struct.__struct_fields__ if f"`{name}`" not in page]
        assert not missing, struct.__name__


# people's units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "about a second"),
        (1, "about 1 second"),
        (43, "about 45 seconds"),
        (57.4, "about 55 seconds"),
        (59, "about 1 minute"),
        (725, "about 12 minutes"),
        (3600, "about 60 minutes"),
        (5400, "about 1.5 hours"),
        (7300, "about 2 hours"),
        (200_000, "about 2 days"),
    ],
)
def test_times_are_told_as_people_would(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0.000001, 0.999999))
def test_a_share_is_never_told_as_nothing_or_all(share: float) -> None:
    assert percent(share) not in ("0 %", "100 %")


def test_shares_sizes_and_estimates_are_short() -> None:
    assert [percent(share) for share in (0, 0.0004, 0.016, 0.12, 0.995, 0.9996, 1)] == [
        "0 %",
        "under 0.1 %",
        "1.6 %",
        "12 %",
        "99.5 %",
        "over 99.9 %",
        "100 %",
    ]
    assert [size(count) for count in (1, 999, 33_030, 999_700, 2_000_000_000)] == [
        "1 byte",
        "999 bytes",
        "33 kB",
        "1.0 MB",
        "2.0 GB",
    ]
    assert [about(300_086, False), about(300_086, True), about(12, False)] == ["about 300,000", "300,086", "about 12"]


def test_the_histogram_shows_empty_buckets_between_and_something_for_a_single_record() -> None:
    bars = histogram(Statistics(token_histogram={"1": 1, "32": 1000, "128": 1}), width=20)
    assert [(label, count) for label, count, _ in bars] == [
        ("1", 1),
        ("2", 0),
        ("3–4", 0),
        ("5–8", 0),
        ("9–16", 0),
        ("17–32", 1000),
        ("33–64", 0),
        ("65–128", 1),
    ]
    assert [len(bar) for *_, bar in bars] == [1, 0, 0, 0, 0, 20, 0, 1]


def test_an_empty_recipe_takes_no_room() -> None:
    assert recipe_yaml(Report()) == ""
    assert "recipe" not in markdown(Report(dataset="x")).lower()


# the terminal


def test_the_last_line_is_the_verdict() -> None:
    assert plain(accepted()).splitlines()[-1] == "Accepted: 1,110 records to train on, 124 held out."
    assert plain(rejected()).splitlines()[-1].startswith("Rejected: 3 errors.")


def test_quiet_is_the_verdict_alone() -> None:
    assert plain(rejected(), quiet=True).splitlines() == [plain(rejected()).splitlines()[-1]]


def test_what_many_lines_share_is_said_once() -> None:
    text = plain(rejected(50))
    assert text.count("Unknown role `human`.") == 1
    assert text.count("Write `user`.") == 1
    assert "lines 1, 2, 3" in text


def test_each_line_keeps_its_own_message_and_column() -> None:
    report = accepted()
    report.error("invalid_json", "Trailing comma.", "Mend it.", line=3, column=7)
    report.error("invalid_json", "Trailing comma.", "Mend it.", line=9, column=2)
    report.error("invalid_json", "It ends in the middle.", "Mend it.", line=11)
    text = plain(report)
    assert re.search(r"line 3, column 7 +Trailing comma\.\n +line 9, column 2 +Trailing comma\.", text)
    assert re.search(r"line 11 +It ends in the middle\.", text)
    for line in range(20, 25):
        report.error("invalid_json", "Trailing comma.", "Mend it.", line=line, column=1)
    assert "lines 3 (column 7), 9 (column 2), 20 (column 1)" in plain(report)


def test_nothing_is_wrapped_and_nothing_trails_when_piped() -> None:
    report = accepted()
    report.error("invalid_json", "A long sentence. " * 20, "Mend it.", line=3)
    text = plain(report)
    assert sentence("A long sentence. " * 20) in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_fits_the_width(width: int) -> None:
    report = rejected(150)
    report.statistics.extra_columns = ["a_rather_long_name_of_a_column" * 2] * 5
    assert max(map(len, plain(report, width=width).splitlines())) <= width


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_and_for_those_who_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[1;31m" in terminal(rejected(), [], Terminal())
    assert "\x1b" not in terminal(rejected(), [], io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in terminal(rejected(), [], Terminal())


def test_a_terminal_without_utf8_gets_bars_it_can_show() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="iso-8859-1")
    text = terminal(accepted(), [], file)
    assert "█" not in text
    assert "####" in text


def test_the_same_numbers_stand_in_both_forms() -> None:
    page, text = markdown(accepted()), plain(accepted())
    for number in (
        "1,234",
        "3,700",
        "1,200,345",
        "about 300,000",
        "345 in 3 epochs",
        "about 12 minutes",
        "about 1.66 US dollars; by the time limit at most 45.00 US dollars",
        "one machine at a list price of 3.673",
        "617 of 1,234",
    ):
        assert number in page
        assert number in text

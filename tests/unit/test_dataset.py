"""Validation of dropped files: any bytes give a report, good records come out normalised, findings name the line."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_app.dataset import MAX_FINDINGS, Report, markdown, split, validate

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def chat(question: str = "Why?", answer: str = "Because.") -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def good_lines(count: int = 12) -> list[bytes]:
    return [json.dumps(chat(f"Question {i}?")).encode() + b"\n" for i in range(count)]


def check(lines: list[bytes]) -> tuple[Report, list[bytes]]:
    report = Report()
    return report, list(validate(lines, report))


def test_good_records_come_out_as_messages_and_nothing_else() -> None:
    lines = good_lines()
    lines[3] = json.dumps({**chat("Extra?"), "task": "t1", "id": 7}).encode()
    report, records = check(lines)
    assert report.valid
    assert json.loads(records[3]) == chat("Extra?")
    assert report.statistics.records == 12
    assert report.statistics.extra_columns == ["id", "task"]


def test_prompt_and_completion_become_a_chat() -> None:
    lines = [json.dumps({"prompt": f"p{i}", "completion": "c"}).encode() for i in range(10)]
    report, records = check(lines)
    assert report.valid
    assert json.loads(records[0])["messages"] == [
        {"role": "user", "content": "p0"},
        {"role": "assistant", "content": "c"},
    ]


def test_bom_crlf_and_blank_lines_are_no_errors() -> None:
    lines = good_lines()
    lines[0] = b"\xef\xbb\xbf" + lines[0]
    lines[1] = lines[1].rstrip() + b"\r\n"
    lines.insert(5, b"  \r\n")
    report, records = check(lines)
    assert report.valid
    assert len(records) == 12


BROKEN = [
    (b'{"messages": [', "invalid_json", "JSON"),
    (b"not json", "invalid_json", "JSON"),
    (b'{"messages": "hello"}', "wrong_type", "messages"),
    (b'{"messages": [{"role": "user", "content": 5}]}', "wrong_type", "messages[0].content"),
    (b'{"messages": [{"role": "bot", "content": "x"}]}', "wrong_type", "messages[0].role: Unknown role 'bot'"),
    (b'{"messages": [{"role": "user"}]}', "wrong_type", "content"),
    (b'{"messages": []}', "no_assistant", "assistant"),
    (b'{"messages": [{"role": "user", "content": "x"}]}', "no_assistant", "assistant"),
    (
        b'{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}',
        "last_not_assistant",
        "user",
    ),
    (
        b'{"messages": [{"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}]}',
        "roles_out_of_order",
        "assistant, assistant",
    ),
    (json.dumps(chat("  ", "a")).encode(), "empty_content", "messages[0].content"),
    (json.dumps({"prompt": "p", "completion": ""}).encode(), "empty_content", "completion"),
    (b'{"instruction": "do", "response": "done"}', "unknown_format", "messages"),
    (b'{"text": "plain"}', "unknown_format", "messages"),
    (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid", ""),
    (b"5", "wrong_type", "object"),
    (b"null", "wrong_type", "object"),
]


@pytest.mark.parametrize(
    ("line", "code", "named"), BROKEN, ids=[f"{code}-{i}" for i, (_, code, _) in enumerate(BROKEN)]
)
def test_a_broken_line_is_reported_with_its_number(line: bytes, code: str, named: str) -> None:
    lines = good_lines()
    lines.insert(4, line + b"\n")
    report, records = check(lines)
    assert not report.valid
    assert report.findings[0].line == 5
    assert report.findings[0].code.startswith(code)
    assert named in report.findings[0].message
    assert report.findings[0].fix
    assert len(records) == 12


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (b"[", "JSON document"),
        (b'[{"messages": []}]', "JSON document"),
        (b"PAR1\x15\x04\x15", "Parquet"),
        (b"PK\x03\x04\x14\x00", "zip"),
        (b"prompt,completion", "CSV"),
    ],
)
def test_a_foreign_file_is_named_once(first: bytes, named: str) -> None:
    report, _ = check([first + b"\n", *good_lines()])
    assert [f.code for f in report.findings] == ["not_json_lines"]
    assert named in report.findings[0].message


def test_too_few_records() -> None:
    report, _ = check(good_lines(9))
    assert report.counts == {"too_few_records": 1}
    assert "9" in report.findings[0].message


def test_all_findings_are_counted_and_the_first_hundred_listed() -> None:
    report, _ = check([b"{}\n"] * 250)
    assert report.counts == {"unknown_format": 250}
    assert len(report.findings) == MAX_FINDINGS
    assert "250" in markdown(report, "support/a.jsonl")


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_give_a_report_and_never_an_exception(lines: list[bytes]) -> None:
    report, records = check(lines)
    assert report.statistics.records == len(records)
    assert markdown(report, "x.jsonl")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "prompt", "completion", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_json_gives_a_report(value: object) -> None:
    check([json.dumps(value).encode()])


def test_the_split_does_not_depend_on_order_or_on_other_records() -> None:
    _, records = check(good_lines(200))

    def held_out(chosen: list[bytes]) -> set[bytes]:
        train, evaluation = io.BytesIO(), io.BytesIO()
        split(chosen, 0.1, train, evaluation)
        return set(evaluation.getvalue().splitlines())

    everything = held_out(records)
    assert 5 <= len(everything) <= 40
    assert held_out(records[::-1]) == everything
    assert held_out(records[:100]) == everything & {r.strip() for r in records[:100]}


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data files are not beside this checkout")
@pytest.mark.parametrize(("name", "records"), [("seed-tasks.jsonl", 174), ("codegen-train.jsonl", 3898)])
def test_real_files_are_accepted(name: str, records: int) -> None:
    report, _ = check((SHARED / name).read_bytes().splitlines(keepends=True))
    assert report.valid, report.summary()
    assert report.statistics.records == records


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data files are not beside this checkout")
def test_an_alpaca_file_is_refused_with_the_way_to_convert_it() -> None:
    report, _ = check((SHARED / "codegen-alpaca-format.jsonl").read_bytes().splitlines(keepends=True))
    assert report.counts == {"unknown_format": 37}
    assert "Alpaca" in report.findings[0].fix


@given(st.lists(st.binary(max_size=30), max_size=12), st.integers(1, 40))
def test_lines_are_the_same_however_the_stream_is_cut(chunks: list[bytes], size: int) -> None:
    from function_app.intake import split_lines

    whole = b"".join(chunks)
    cut = [whole[i : i + size] for i in range(0, len(whole), size)]
    assert (
        list(split_lines(chunks))
        == list(split_lines(cut))
        == whole.removesuffix(b"\n").split(b"\n")[: whole.count(b"\n") + bool(whole.rpartition(b"\n")[2])]
    )


def test_a_file_without_line_breaks_does_not_fill_the_memory() -> None:
    from function_app.dataset import MAX_LINE
    from function_app.intake import split_lines

    endless = (b"x" * (1 << 20) for _ in range(64))
    assert [len(line) for line in split_lines(endless)] == [MAX_LINE + 1]

"""Files that were made to hurt: time, memory and the report's size stay bounded, and what is said stays right."""

import gzip
import json
import time
import tracemalloc

import msgspec
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from function_app.dataset import check as checking
from function_app.dataset import duplicates, sensitive
from function_app.dataset.check import check_file
from function_app.dataset.gunzip import BrokenGzip, gunzip
from function_app.dataset.lengths import Limits
from function_app.dataset.line_formats import foreign_line
from function_app.dataset.records import MAX_COLUMNS, MAX_NAME
from function_app.dataset.report import Report
from function_app.dataset.rules import REMEMBERED
from function_app.dataset.tally import MAX_TURNS, Lengths
from function_app.recipe import RecipeError, resolve

MIB = 1 << 20


def check(content: bytes, *, name: str = "a.jsonl", **options) -> tuple[Report, bytes, bytes]:
    report, trained, held_out = Report(), [], []
    check_file([content], report, name=name, train=trained.append, held_out=held_out.append, **options)
    return report, b"".join(trained), b"".join(held_out)


def texts(*values: str) -> bytes:
    return b"".join(json.dumps({"text": value}).encode() + b"\n" for value in values)


def peak(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_names_of_columns_that_are_data_are_kept_in_bounds():
    plain = b"".join(b'{"text": "words %d", "%d": 1}\n' % (i, i) for i in range(MAX_COLUMNS + 500))
    report, _, _ = check(plain + json.dumps({"text": "a", "k" * 10_000: 1}).encode() + b"\n")
    assert len(report.statistics.extra_columns) == MAX_COLUMNS
    report, _, _ = check(json.dumps({"text": "a", "k" * 10_000: 1}).encode() + b"\n")
    assert [len(name) for name in report.statistics.extra_columns] == [MAX_NAME]


def test_chats_of_all_lengths_leave_a_small_report_and_few_remembered_orders():
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [json.dumps({"messages": turn * count}).encode() for count in range(1, 200)]
    report = Report()
    made = checking.Check(
        report, checking.Split(0.1, None, None), checking.TokenCounter(None), Limits(), name="a.jsonl"
    )
    made.feed(b"\n".join(lines))
    made.finish()
    assert report.statistics.turns["2"] == 1
    assert report.statistics.turns[f"over {MAX_TURNS}"] == 199 - MAX_TURNS // 2
    assert len(report.statistics.turns) == MAX_TURNS // 2 + 1
    assert max(map(len, made._turns._good)) <= REMEMBERED


@pytest.mark.parametrize("text", ["4" * MIB, "a@" * (MIB // 8), "a@b.cc " * (MIB // 16)])
def test_candidates_at_every_byte_cost_little_memory(text):
    data = text.encode()
    assert peak(lambda: sum(1 for _ in sensitive.find(data))) < 1.5 * MIB


def test_pieces_at_every_byte_cost_little_memory():
    content = texts("5" * (4 * MIB))
    assert peak(lambda: check(content)) < 45 * MIB
    assert duplicates.REACH < MIB


def test_white_space_after_a_bracket_costs_no_quadratic_time():
    begun = time.process_time()
    foreign_line(b"[" + b" " * 60_000 + b"x", 2)
    assert time.process_time() - begun < 1


def test_many_unknown_columns_are_not_all_compared_with_ours():
    begun = time.process_time()
    report, _, _ = check(json.dumps({f"k{number}": 1 for number in range(50_000)}).encode())
    assert report.counts["wrong_type"].count == 1
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_many_small_members_cost_no_quadratic_time(content):
    packed = gzip.compress(content)
    begun = time.process_time()
    unpacked = b"".join(gunzip([packed * (MIB // len(packed))], 1 << 30))
    assert unpacked == content * (MIB // len(packed))
    assert time.process_time() - begun < 1.5


def test_small_members_come_in_large_pieces():
    packed = gzip.compress(b"a line\n") * 1000
    assert list(gunzip([packed], 1 << 30)) == [b"a line\n" * 1000]
    with pytest.raises(BrokenGzip):
        list(gunzip([gzip.compress(b"") * 100], 1000))  # members that hold nothing count too


def test_blank_lines_alone_are_only_counted():
    begun = time.process_time()
    report, _, _ = check(b"{}\n" + b"\r\n" * (4 * MIB))
    assert report.statistics.blank_lines == 4 * MIB
    assert time.process_time() - begun < 1


def test_a_file_of_too_many_lines_is_refused(monkeypatch):
    monkeypatch.setattr(checking, "MAX_LINES", 50)
    report, _, _ = check(texts(*(f"words {number}" for number in range(100))))
    assert "too_large" in report.counts


def test_the_record_kept_aside_takes_its_copies_along():
    values = [f"words {number}" for number in range(12)]
    for order in (values + values, values + values[::-1], [value for value in values for _ in range(2)]):
        content = texts(*order)
        report, trained, held_out = check(content, holdout=1e-9)
        assert held_out
        assert not set(trained.splitlines()) & set(held_out.splitlines())
        assert (report.statistics.train, report.statistics.eval) == (22, 2)
        assert sorted((trained + held_out).splitlines()) == sorted(content.splitlines())
    report, trained, held_out = check(texts(*["the same"] * 20), holdout=1e-9)
    assert (report.statistics.train, report.statistics.eval) == (20, 0)
    assert trained == texts(*["the same"] * 20)


def test_a_holdout_that_takes_everything_is_named_as_the_reason():
    report, _, _ = check(texts(*(f"words {number}" for number in range(12))), holdout=0.999999)
    assert "eval.jsonl" not in report.summary()
    assert "evaluation.holdout" in report.summary()


def test_a_bucket_of_the_histogram_holds_nothing_above_its_bound():
    import numpy as np

    for value in (16, 17, 1023, 1024, 1025, 2047, 2048, 2049, 65_537, 10**6):
        lengths = Lengths()
        lengths.add(np.array([value, value]))
        (bound,) = map(int, lengths.histogram())
        assert bound // 2 < value <= bound
        assert lengths.percentiles().p50 == value


@pytest.mark.parametrize(
    ("line", "column"), [(b'   {"text": x}', 13), (b'\t {"text": "\xff"}', 13), (b'{"text": x}\r', 10)]
)
def test_white_space_before_a_record_counts_for_columns(line, column):
    report, _, _ = check(line + b"\n")
    assert report.findings[0].column == column


def tokenizer(**vocabulary: int) -> Tokenizer:
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_a_tokenizer_that_cuts_or_fills_up_counts_all_the_same():
    content = texts(*(f"some words {'more ' * number}" for number in range(12)))
    made = tokenizer(**{"?": 0})
    plain, _, _ = check(content, limits=Limits(tokenizer=made.to_str().encode()))
    made.enable_truncation(3)
    made.enable_padding(length=500)
    set_up, _, _ = check(content, limits=Limits(tokenizer=made.to_str().encode()))
    assert set_up.statistics.tokens == plain.statistics.tokens


def test_a_tokenizer_that_cannot_encode_is_told():
    content = texts(*(f"some words {'more ' * number}" for number in range(12)))
    report, _, _ = check(content, limits=Limits(tokenizer=tokenizer(some=0).to_str().encode()))
    assert report.counts["invalid_tokenizer"].count == 1
    assert not report.statistics.tokens_exact


@pytest.mark.parametrize(
    "text", [r'base_model: "\ud800"', r'"\ud800": 1', r'base_model: "\UFFFFFFFF"', r'a: "\U00110000"']
)
def test_half_characters_in_a_recipe_are_refused_in_words_that_json_can_hold(text):
    with pytest.raises(RecipeError) as caught:
        resolve(text)
    msgspec.json.encode(caught.value.problems)


def test_digits_behind_a_decimal_point_are_no_card():
    assert not list(sensitive.find(b"0.4111111111111111 and 3,4111111111111111" + b"\0" * 8))
    assert [code for code, _ in sensitive.find(b"No.4111111111111111" + b"\0" * 8)] == ["card_number"]


def test_a_private_key_of_pgp_is_a_secret():
    assert list(sensitive.find(b"-----BEGIN PGP PRIVATE KEY BLOCK-----" + b"\0" * 8))

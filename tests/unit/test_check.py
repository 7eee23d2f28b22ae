"""The check of a dataset as a whole: chunks, formats, rules, split, held-out file."""

import json
import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from function_app.dataset.check import check_file
from function_app.dataset.lengths import Limits
from function_app.dataset.report import MAX_ERRORS, Report, Severity

Outcome = tuple[Report, list[bytes], list[bytes]]


def chat(question: str, answer: str = "An answer.", **more: object) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def lines(records: list) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


FRUIT = ["apple", "pear", "plum", "quince", "cherry", "medlar", "fig", "grape", "lemon", "orange", "mango", "kiwi"]
GOOD = [chat(f"{fruit} {fruit[::-1] * 4}?", f"{fruit.upper()} {fruit * 2}.") for fruit in FRUIT]


def check(content: bytes | list[bytes], *, name: str = "dataset.jsonl", **options) -> Outcome:
    report, trained, held_out = Report(), [], []
    chunks = [content] if isinstance(content, bytes) else content
    check_file(chunks, report, name=name, train=trained.append, held_out=held_out.append, **options)
    return report, b"".join(trained).splitlines(), b"".join(held_out).splitlines()


def codes(report: Report) -> dict[str, int]:
    return {code: count.count for code, count in report.counts.items()}


def test_a_good_file_is_split_and_written_canonically():
    report, trained, held_out = check(lines(GOOD))
    assert report.valid
    assert codes(report) == {}
    assert len(trained) + len(held_out) == len(GOOD)
    assert held_out
    assert report.statistics.train == len(trained)
    assert report.statistics.eval == len(held_out)
    assert sorted(map(json.loads, trained + held_out), key=str) == sorted(GOOD, key=str)


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_give_a_report(content):
    report, _, _ = check(content)
    assert not report.valid  # nobody writes ten examples by chance
    msgspec.json.encode(report)


@given(st.lists(st.binary(max_size=30), max_size=8), st.randoms(use_true_random=False))
def test_any_bytes_between_good_lines_give_a_report(pieces, rng):
    content = bytearray(lines(GOOD))
    for piece in pieces:
        place = rng.randrange(len(content))
        content[place:place] = piece
    report, _, _ = check(bytes(content))
    msgspec.json.encode(report)


@given(st.sampled_from(["messages", "pair", "text"]), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=30)
def test_the_order_of_keys_and_the_spacing_change_nothing(shape, rng, spaced):
    def shuffled(value):
        if isinstance(value, dict):
            items = [(key, shuffled(inner)) for key, inner in value.items()]
            rng.shuffle(items)
            return dict(items)
        return [shuffled(each) for each in value] if isinstance(value, list) else value

    records = {
        "messages": [{**record, "source": "x"} for record in GOOD],
        "pair": [{"prompt": fruit * 3, "completion": f"a {fruit}"} for fruit in FRUIT],
        "text": [{"text": f"About the {fruit} " * 5} for fruit in FRUIT],
    }[shape]
    separators = (" ,  ", " :  ") if spaced else (",", ":")
    other = b"".join(json.dumps(shuffled(record), separators=separators).encode() + b"\n" for record in records)
    first, second = check(lines(records)), check(other)
    assert first[0].valid
    assert second[0].valid
    assert [list(map(json.loads, split)) for split in first[1:]] == [
        list(map(json.loads, split)) for split in second[1:]
    ]


@given(st.lists(st.integers(1, 4000), max_size=20))
def test_chunks_may_be_cut_anywhere(cuts):
    content = lines([*GOOD, {"oops": 1}, *[chat(f"é{i}" * 50, "ok") for i in range(60)]]) + b"{"
    places = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    chunks = [content[a:b] for a, b in pairwise(places)]
    assert check(chunks) == check(content)


def test_a_blank_line_after_each_record_is_counted_and_changes_nothing():
    report, trained, held_out = check(lines(GOOD).replace(b"\n", b"\n\n") + b"{}\n")
    assert (report.statistics.lines, report.statistics.blank_lines) == (25, 12)
    assert [finding.line for finding in report.findings] == [25]
    assert len(trained) + len(held_out) == len(GOOD)


def test_a_columns_name_that_is_data_is_not_shown():
    report, _, _ = check(lines([{**record, "ann@contoso.com": 1, "id": 2} for record in GOOD]))
    assert report.statistics.extra_columns == ["(a name that looks like personal data)", "id"]


def test_blank_lines_bom_and_crlf_change_nothing_but_the_line_numbers():
    content = b"\xef\xbb\xbf\r\n" + lines(GOOD).replace(b"\n", b"\r\n\r\n  \n")[:-1]
    report, trained, held_out = check(content)
    assert report.valid
    assert [list(map(json.loads, each)) for each in (trained, held_out)] == [
        list(map(json.loads, each)) for each in check(lines(GOOD))[1:]
    ]
    assert report.statistics.blank_lines == 25


def test_findings_name_the_line_the_path_and_the_column():
    content = lines(GOOD) + b'\n{"messages": [{"role": "user", "content": 5}]}\n{"messages": [}\n'
    report, _, _ = check(content)
    wrong, invalid = report.findings
    assert (wrong.code, wrong.line, wrong.path) == ("wrong_type", 14, "messages[0].content")
    assert (invalid.code, invalid.line, invalid.column) == ("invalid_json", 15, 15)


def test_the_first_hundred_errors_are_listed_and_all_are_counted():
    report, trained, _ = check(lines([chat("?", "") for _ in range(250)]))
    assert len(report.findings) == MAX_ERRORS
    assert codes(report) == {"empty_content": 250}
    assert trained == []


@pytest.mark.parametrize(
    ("roles", "code"),
    [
        ("user", "no_assistant"),
        ("system", "no_assistant"),
        ("", "no_assistant"),
        ("user assistant user", "last_not_assistant"),
        ("system user assistant user", "last_not_assistant"),
        ("assistant user", "roles_out_of_order"),
        ("user user assistant", "roles_out_of_order"),
        ("user system assistant", "roles_out_of_order"),
        ("system assistant", "roles_out_of_order"),
        ("user assistant assistant", "roles_out_of_order"),
        ("user assistant", None),
        ("system user assistant", None),
        ("system user assistant user assistant", None),
    ],
)
def test_roles_take_turns(roles, code):
    record = {"messages": [{"role": role, "content": "Words."} for role in roles.split()]}
    report, _, _ = check(lines([*GOOD, record]))
    errors = [finding.code for finding in report.findings if finding.severity == Severity.ERROR]
    assert errors == ([code] if code else [])


def test_weights_are_kept_and_at_least_one_answer_must_weigh():
    weighed = {
        "messages": [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "1", "weight": 0},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "2", "weight": 1},
        ]
    }
    report, trained, held_out = check(lines([*GOOD, weighed]))
    assert report.valid
    assert weighed in [json.loads(line) for line in trained + held_out]
    for message in weighed["messages"]:
        message.pop("weight", None)
        message["weight"] = 0
    report, _, _ = check(lines([*GOOD, weighed]))
    assert codes(report) == {"no_assistant": 1}
    report, _, _ = check(lines([*GOOD, {"messages": [{**m, "weight": 0.5} for m in GOOD[0]["messages"]]}]))
    assert codes(report) == {"wrong_type": 1}


def test_extra_columns_are_left_out_and_listed_wherever_they_come():
    records = [*GOOD, chat("Late?", "Yes, in line thirteen.", topic="a", id=3)]
    records[3]["messages"][0]["name"] = "Ann"
    try:
        report, trained, held_out = check(lines(records))
    finally:
        del records[3]["messages"][0]["name"]
    assert report.statistics.extra_columns == ["id", "messages[].name", "topic"]
    assert codes(report) == {}
    assert all(json.loads(line).keys() == {"messages"} for line in trained + held_out)
    assert b"Ann" not in b"".join(trained + held_out)


def test_pairs_become_chats_and_texts_stay_texts():
    report, trained, held_out = check(lines([{"prompt": f"{fruit}?", "completion": "yes"} for fruit in FRUIT]))
    assert report.valid
    assert report.statistics.format == "prompt-completion"
    assert json.loads((trained + held_out)[0])["messages"][1] == {"role": "assistant", "content": "yes"}
    texts = [{"text": f" = {fruit} = \n"} for fruit in FRUIT]
    report, trained, held_out = check(lines([*texts, {"text": ""}, {"text": " \n"}]))
    assert report.valid
    assert codes(report) == {"empty_text": 2}
    assert sorted(map(json.loads, trained + held_out), key=str) == sorted(texts, key=str)


def test_formats_do_not_mix():
    report, _, _ = check(lines([*GOOD, {"text": "plain"}, {"prompt": "a", "completion": "b"}]))
    assert codes(report) == {"mixed_formats": 2}


def test_the_split_is_stable_when_records_are_added_or_sorted():
    records = [chat(f"Question {i}, about {FRUIT[i % 12]}?", f"Answer {i * 7919}.") for i in range(400)]
    _, _, held_out = check(lines(records))
    assert 20 < len(held_out) < 60  # a tenth, by the hash
    random.Random(1).shuffle(records)  # noqa: S311
    _, _, again = check(lines([*records, *GOOD]))
    first, second = ({str(json.loads(line)) for line in each} for each in (held_out, again))
    assert first <= second
    assert second - first <= set(map(str, GOOD))


def test_a_small_file_holds_one_record_out_whatever_the_hash_says():
    for count in range(10, 13):
        report, trained, held_out = check(lines(GOOD[:count]), holdout=0.0001)
        assert (len(trained), len(held_out)) == (count - 1, 1)
        assert report.statistics.train == count - 1
    _, _, one = check(lines(GOOD), holdout=0.0001)
    _, _, same = check(lines(GOOD[::-1]), holdout=0.0001)
    assert one == same


def test_the_users_own_held_out_file_is_measured_on_and_kept_out_of_training():
    held = lines([GOOD[2], chat("Only here?", "Only here.")])
    report, trained, held_out = check(lines(GOOD), eval_chunks=[held])
    assert report.valid
    assert codes(report)["eval_overlap"] == 1
    assert next(f.line for f in report.findings if f.code == "eval_overlap") == 3
    assert list(map(json.loads, held_out)) == list(map(json.loads, held.splitlines()))
    assert len(trained) == len(GOOD) - 1
    assert (report.statistics.train, report.statistics.eval) == (len(GOOD) - 1, 2)


def test_an_error_in_the_held_out_file_names_that_file():
    report, _, _ = check(lines(GOOD), eval_chunks=[b"{}\n"])
    assert report.findings[0].file == "eval.jsonl"
    assert report.findings[0].place == "eval.jsonl, line 1"
    report, _, _ = check(lines(GOOD), eval_chunks=[b"\n"])
    assert codes(report) == {"empty_eval": 1}
    report, _, _ = check(lines(GOOD), eval_chunks=[lines(GOOD)])
    assert "too_few_records" in codes(report)


def test_duplicates_are_told_with_both_lines():
    report, trained, held_out = check(lines([*GOOD, GOOD[4], GOOD[4]]))
    assert report.valid
    assert codes(report) == {"duplicate": 2}
    assert [(f.line, f.message) for f in report.findings] == [
        (13, "The same example as on line 5."),
        (14, "The same example as on line 5."),
    ]
    assert len(trained) + len(held_out) == 14  # they count as often as they come


def test_near_duplicates_are_told():
    text = "Our shop repairs bicycles of all makes, sells tubes and tyres, and lends a bicycle while yours is mended. "
    records = [*GOOD, chat("Tell me all about the shop.", text * 3), chat("Tell me all about the shop!", text * 3)]
    report, _, _ = check(lines(records))
    assert codes(report)["near_duplicate"] == 1
    assert next(f.line for f in report.findings if f.code == "near_duplicate") == 14


def test_a_system_prompt_on_some_examples_is_told():
    system = {"role": "system", "content": "Be brief."}
    records = [{"messages": [system, *record["messages"]]} for record in GOOD]
    assert codes(check(lines(records))[0]) == {}
    report, _, _ = check(lines([*records[1:], GOOD[0]]))
    assert codes(report) == {"some_without_system": 1}
    assert report.statistics.with_system == 11


def test_what_is_sensitive_is_counted_and_never_shown():
    key = "sk-" + "a1B2" * 8
    records = [
        *GOOD,
        chat(f"My key is {key} and ann@contoso.com is me, card 4242 4242 4242 4242.", "Take care."),
        chat(key, key),
    ]
    report, _, _ = check(lines(records))
    assert codes(report) == {"secret": 3, "email": 1, "card_number": 1}
    text = msgspec.json.encode(report).decode()
    assert all(value not in text for value in (key, "contoso", "4242"))


def test_lengths_are_held_against_the_models_context():
    def outcome(words: int, **limits: int) -> dict[str, int]:
        return codes(check(lines([*GOOD, chat("Long?", "word " * words)]), limits=Limits(**limits))[0])

    assert outcome(100, context=4096, max_length=1024) == {}
    assert outcome(1000, context=4096, max_length=1024) == {"truncated": 1}
    assert outcome(4000, context=4096) == {"maybe_too_long": 1}
    assert outcome(8000, context=4096, max_length=1024) == {"too_long": 1}


def test_a_line_beyond_the_limit_is_skipped_and_the_others_are_read():
    limits = Limits(max_line=1000)
    content = lines([*GOOD[:5], chat("x" * 5000), *GOOD[5:], chat("y" * 1200)])
    for chunks in ([content], [content[i : i + 64] for i in range(0, len(content), 64)], [content[:-1]]):
        report, trained, held_out = check(chunks, limits=limits)
        assert [(f.code, f.line) for f in report.findings] == [("line_too_long", 6), ("line_too_long", 14)]
        assert len(trained) + len(held_out) == 12


def test_a_file_beyond_the_limit_is_not_read_on():
    def endless():
        for _ in range(100):
            yield lines(GOOD) * 50
        raise AssertionError("read on")

    report, _, _ = check(endless(), limits=Limits(max_bytes=100_000))
    assert codes(report) == {"too_large": 1}


def test_a_hopeless_file_is_not_read_to_its_end():
    def endless():
        for _ in range(100):
            yield b"{}\n" * 50_000
        raise AssertionError("read on")

    report, _, _ = check(endless())
    assert codes(report)["too_many_errors"] == 1
    assert codes(report)["wrong_type"] > 100_000
    assert len(report.findings) == MAX_ERRORS


def test_statistics():
    records = [*GOOD, chat("Сколько стоит?", "Двадцать рублей."), chat("多少钱?", "二十元。")]
    statistics = check(lines(records))[0].statistics
    assert (statistics.records, statistics.messages, statistics.lines) == (14, 28, 14)
    assert statistics.characters == sum(len(m["content"]) for r in records for m in r["messages"])
    assert statistics.turns == {"2": 14}
    assert list(statistics.scripts) == ["Latin", "Cyrillic", "Han"]
    assert statistics.scripts["Han"] == pytest.approx(
        6 / (8 + 6 + 13 + sum(c.isalpha() for r in GOOD for m in r["messages"] for c in m["content"])), rel=0.2
    )
    assert sum(statistics.token_histogram.values()) == 14
    assert statistics.record_characters.min == 8
    assert statistics.record_characters.max == max(sum(len(m["content"]) for m in r["messages"]) for r in records)

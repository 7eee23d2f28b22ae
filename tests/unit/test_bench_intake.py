"""The benchmark of the intake compares like with like: the same findings on both sides, files of the kind they say."""

from pathlib import Path

import pytest

from bench import intake, intake_data, intake_worker
from bench.intake_peer import Peer


@pytest.fixture(autouse=True)
def _source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Chats of this test's own: the data of the benchmark lies outside of the checkout."""
    turns = '{"role": "user", "content": "Question %d of many\\n"}, {"role": "assistant", "content": "Yes, %d."}'
    chat = f'{{"messages": [{turns}]}}\n'
    path = tmp_path / "source.jsonl"
    path.write_text("".join(chat % (number, number * number) for number in range(500)), encoding="utf-8")
    monkeypatch.setattr(intake_data, "source", lambda: path)


def test_the_product_and_the_peer_count_the_same_errors() -> None:
    intake.compare_findings()


def test_the_peer_finds_every_mistake_once() -> None:
    lines = intake.spoiled(intake_data.source().read_bytes().splitlines()[:50])
    counts = Peer(0.1, len, len).check(lines).counts
    assert {code: count for code, count in counts.items() if count and code != "near_duplicate"} == {
        "invalid_json": 3,
        "invalid_utf8": 1,
        "wrong_type": 2,
        "unknown_role": 1,
        "empty_content": 1,
        "no_assistant": 2,
        "last_not_assistant": 1,
        "roles_out_of_order": 1,
        "mixed_formats": 1,
        "other_format": 2,
        "duplicate": 4,
    }


@pytest.mark.parametrize(("kind", "length"), [("chats", (90, 130)), ("long", (4_000, 6_000))])
def test_a_file_of_the_benchmark_is_full_and_repeats_nothing(kind: str, length: tuple[int, int]) -> None:
    lines = b"".join(intake_data.up_to(200_000, intake_data.KINDS[kind]())).splitlines(keepends=True)
    assert 200_000 - length[1] < sum(map(len, lines)) <= 200_000
    assert len(set(lines)) == len(lines)
    assert length[0] <= sum(map(len, lines)) / len(lines) <= length[1]
    result = Peer(0.1, len, len).check(lines)
    assert result.records == len(lines)
    assert set(+result.counts) <= {"near_duplicate"}


def test_every_measurement_reads_the_same_records(tmp_path: Path) -> None:
    path = intake_data.write(tmp_path / "file.jsonl", 100_000, intake_data.chats())
    ways = {kind: intake_worker.measure(kind, path)["records"] for kind in ("ours", "peer", "structure", "floor")}
    assert len(set(ways.values())) == 1, ways

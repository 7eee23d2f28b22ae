"""The run record: its id, its names in Azure, and how it survives JSON."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from azure.storage.blob import BlobPrefix, BlobProperties
from hypothesis import given
from hypothesis import strategies as st

from function_app.intake import MODEL_NAME, UNPLACED, model_of
from function_app.recipe import Recipe
from function_app.runs import (
    LATE,
    LONGEST_INVOCATION,
    PAGE,
    Ask,
    BlobRunStore,
    DatasetVersion,
    Run,
    Stage,
    Summary,
    new_run,
    run_id,
)

NOW = datetime(2026, 11, 21, 10, 15, 0, 123456, tzinfo=UTC)


def test_the_id_depends_on_the_file_and_its_version_alone() -> None:
    first = run_id("support", "support/a.jsonl", "0x1")
    assert first == run_id("support", "support/a.jsonl", '"0x1"')
    assert first != run_id("support", "support/a.jsonl", "0x2")
    assert first != run_id("support", "support/b.jsonl", "0x1")
    assert first.startswith("support-")


def test_names_fit_azures_limits() -> None:
    run = new_run("a" * 25, DatasetVersion("a/b.jsonl", "0x1", 1, NOW), NOW)
    assert len(run.id) <= 255
    assert 3 <= len(run.deployment) <= 32
    assert run.model_version == "20261121101500123"


def test_a_record_survives_json() -> None:
    run = new_run("support", DatasetVersion("support/a.jsonl", "0x1", 1, NOW), NOW)
    run.move(Stage.TRAINING, "submitted", NOW)
    assert msgspec.json.decode(msgspec.json.encode(run), type=Run) == run


def test_which_blobs_start_a_run() -> None:
    assert model_of("support/a.jsonl") == "support"
    assert model_of("support/recipe.yaml") is None
    assert model_of("support/eval.jsonl") is None
    # What lies elsewhere is not passed over in silence: its run is rejected with the right place.
    assert model_of("a.jsonl") == UNPLACED
    assert model_of("a/b/c.jsonl") == UNPLACED
    assert model_of("Support/a.jsonl") == UNPLACED


@given(st.text(max_size=40))
def test_any_name_of_a_blob_is_placed_somewhere(name: str) -> None:
    model = model_of(name)
    assert model is None or model == UNPLACED or MODEL_NAME.fullmatch(model)


def test_a_listing_of_runs_asks_for_nothing_below_them() -> None:
    class Container:
        """Answers as Azure does when asked with a delimiter: blobs, and names of folders."""

        def walk_blobs(self, prefix: str, **options: Any) -> list[BlobProperties | BlobPrefix]:
            assert options == {"include": ["metadata"], "results_per_page": PAGE}
            metadata = {"model": "support", "stage": "training", "uploaded_at": NOW.isoformat()}
            record = BlobProperties(name="support-1.json", metadata=metadata)
            record.last_modified = NOW
            notes = BlobProperties(name="support-notes.json", metadata={})
            return [record, BlobPrefix(prefix="support-1/"), notes]

    summaries = list(BlobRunStore(Container()).summaries("support-"))  # type: ignore[arg-type]
    assert [(summary.id, summary.stage) for summary in summaries] == [("support-1", Stage.TRAINING)]


class Records:
    """One record with its metadata, as the container keeps it."""

    def __init__(self, metadata: dict[str, str] | None = None) -> None:
        self.metadata = metadata or {}

    def get_blob_client(self, name: str) -> "Records":
        return self

    def upload_blob(self, body: bytes, metadata: dict[str, str], **_: Any) -> dict[str, str]:
        self.metadata = metadata
        return {"etag": "1"}

    def walk_blobs(self, prefix: str, **_: Any) -> list[BlobProperties]:
        record = BlobProperties(name="support-1.json", metadata=self.metadata)
        record.last_modified = NOW
        return [record]

    def summary(self) -> Summary:
        return next(BlobRunStore(self).summaries(""))  # type: ignore[arg-type]


def saved(run: Run) -> Summary:
    records = Records()
    BlobRunStore(records).save(run, "1")  # type: ignore[arg-type]
    return records.summary()


def test_a_summary_tells_when_a_message_is_lost_and_what_is_left_to_do() -> None:
    run = new_run("support", DatasetVersion("support/a.jsonl", "0x1", 1, NOW), NOW)
    assert saved(run).overdue == NOW + LONGEST_INVOCATION
    run.wake_at = NOW + timedelta(hours=6)
    assert saved(run).overdue == NOW + timedelta(hours=6) + LATE
    assert not saved(run).unsettled
    run.asked = Ask("approve", "alice", NOW)  # whose own message may be lost: the wait's is too far ahead
    assert saved(run).overdue == NOW + LONGEST_INVOCATION
    assert not saved(run).unsettled  # it is still under way, and found as such
    for left in ({"cleanup": "replaced"}, {"outbox": ["RunLive"]}, {"asked": run.asked}):
        ended = msgspec.structs.replace(run, stage=Stage.LIVE, **{"asked": None, **left})
        assert saved(ended).unsettled
    assert not saved(msgspec.structs.replace(run, stage=Stage.LIVE, asked=None)).unsettled
    assert saved(msgspec.structs.replace(run, release_of="support-0")).rollback


@pytest.mark.parametrize("changed", [{"stage": "finished"}, {"uploaded_at": "today"}, {"wake_at": "later"}])
def test_metadata_that_somebody_has_changed_hides_no_other_run(changed: dict[str, str]) -> None:
    facts = {"model": "support", "stage": "failed", "uploaded_at": NOW.isoformat()}
    assert list(BlobRunStore(Records(facts)).summaries(""))  # type: ignore[arg-type]
    assert list(BlobRunStore(Records(facts | changed)).summaries("")) == []  # type: ignore[arg-type]


def test_what_the_previous_version_has_written_is_read() -> None:
    facts = {"model": "support", "stage": "failed", "uploaded_at": NOW.isoformat(), "cleanup": "deployment"}
    summary = Records(facts).summary()
    assert (summary.unsettled, summary.rollback, summary.fingerprint) == (True, False, "")
    record = {
        "id": "support-1", "model": "support", "received_at": NOW.isoformat(), "stage": "failed",
        "dataset": {"blob": "support/a.jsonl", "etag": "0x1", "size": 1, "uploaded_at": NOW.isoformat()},
        "history": [{"at": NOW.isoformat(), "stage": stage, "reason": "r"} for stage in ("shifting", "failed")],
        "wake_at": None, "attempts": 2, "revivals": 0, "fingerprint": "f", "cleanup": "deployment", "links": {},
        "recipe": {"base_model": "embedded", "gate": {"rule": "better_than_base"}}, "numbers": {},
    }  # fmt: skip
    run = msgspec.json.decode(msgspec.json.encode(record), type=Run)
    assert (run.job, run.deployment, run.model_version) == ("support-1", "r-1", "20261121101500123")
    assert (run.share, run.holds_turn, run.asked, run.ended, run.unsettled) == (0, False, None, True, True)
    assert msgspec.convert(run.recipe, Recipe).release.steps == [10, 50, 100]

"""The run record: its id, its names in Azure, and how it survives JSON."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from azure.storage.blob import BlobPrefix, BlobProperties
from hypothesis import given
from hypothesis import strategies as st

from function_app.intake import MODEL_NAME, UNPLACED, model_of
from function_app.runs import PAGE, BlobRunStore, DatasetVersion, Run, Stage, new_run, run_id

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

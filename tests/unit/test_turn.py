"""The turn to release a model: who has it, and that two never have it at once."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

from function_app import turn
from function_app.runs import DatasetVersion, Run, Stage, new_run

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


class Turns:
    """The blob of one model's turn, with an ETag, and the records of the runs."""

    def __init__(self) -> None:
        self.content, self.version = b"", 0
        self.before_upload: Callable[[], object] = lambda: None
        self.runs: dict[str, Run] = {}

    def run(self, etag: str, stage: Stage, cleanup: str = "") -> Run:
        run = new_run("support", DatasetVersion("support/a.jsonl", etag, 1, NOW), NOW)
        run.stage, run.cleanup = stage, cleanup  # type: ignore[assignment]
        self.runs[run.id] = run
        return run

    # The record store.
    def get(self, id: str) -> tuple[Run, str] | None:
        return (self.runs[id], "1") if id in self.runs else None

    # The blob.
    def download_blob(self) -> Any:
        if not self.version:
            raise ResourceNotFoundError
        return Download(self.content, str(self.version))

    def upload_blob(self, content: bytes, overwrite: bool, etag: str = "", match_condition: object = None) -> None:
        self.before_upload()
        if not overwrite and self.version:
            raise ResourceExistsError
        if overwrite and etag != str(self.version):
            raise ResourceModifiedError
        self.content, self.version = content, self.version + 1


class Download:
    def __init__(self, content: bytes, etag: str) -> None:
        self._content = content
        self.properties = self
        self.etag = etag

    def readall(self) -> bytes:
        return self._content


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    made = Turns()
    monkeypatch.setattr(turn, "_blob", lambda model: made)
    return made


def take(turns: Turns, run: Run) -> bool:
    return turn.take(turns, run)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "cleanup", "free"),
    [
        (Stage.REGISTERED, "", False),
        (Stage.SHIFTING, "", False),
        (Stage.FAILED, "deployment", False),
        (Stage.RETIRED, "endpoint", False),
        (Stage.LIVE, "replaced", True),
        (Stage.LIVE, "", True),
        (Stage.SUPERSEDED, "job", True),
        (Stage.TRAINING, "", True),  # taken up again from before its release: it will ask anew
    ],
)
def test_the_turn_is_free_once_its_run_leaves_the_endpoint_alone(
    turns: Turns, stage: Stage, cleanup: str, free: bool
) -> None:
    first, second = turns.run("0x1", Stage.REGISTERED), turns.run("0x2", Stage.REGISTERED)
    assert take(turns, first)
    assert take(turns, first)  # twice is once
    first.stage, first.cleanup = stage, cleanup  # type: ignore[assignment]
    assert turn.holder(turns, second) == ("" if free else first.id)  # type: ignore[arg-type]
    assert take(turns, second) == free
    assert turn.holder(turns, first) == (second.id if free else "")  # type: ignore[arg-type]


def test_a_run_without_a_record_holds_nothing(turns: Turns) -> None:
    first, second = turns.run("0x1", Stage.REGISTERED), turns.run("0x2", Stage.REGISTERED)
    assert take(turns, first)
    del turns.runs[first.id]
    assert take(turns, second)


@pytest.mark.parametrize("had", [False, True])
def test_of_two_that_take_it_in_the_same_moment_one_has_it(turns: Turns, had: bool) -> None:
    first, second = turns.run("0x1", Stage.REGISTERED), turns.run("0x2", Stage.REGISTERED)
    if had:  # the first has ended, and is taken up again just when the second has found it ended
        assert take(turns, first)
        first.stage = Stage.FAILED

    def meanwhile() -> None:
        turns.before_upload = lambda: None
        first.stage = Stage.REGISTERED
        assert take(turns, first)

    turns.before_upload = meanwhile
    assert not take(turns, second)
    assert turn.holder(turns, second) == first.id  # type: ignore[arg-type]

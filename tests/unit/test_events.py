"""Event Grid triggers: an event becomes a message or nothing, never an error."""

import asyncio
import inspect
from typing import Any

import azure.functions as func
import pytest
from hypothesis import given
from hypothesis import strategies as st

from function_app import events
from function_app.runs import run_id
from function_app.settings import read_settings

SETTINGS = read_settings(
    {
        "Storage__blobServiceUri": "https://account.blob.core.windows.net",
        "Storage__queueServiceUri": "https://account.queue.core.windows.net",
        "AZURE_SUBSCRIPTION_ID": "s",
        "AZURE_RESOURCE_GROUP": "g",
        "AZURE_ML_WORKSPACE": "w",
    }
)
BLOB = "Microsoft.Storage.BlobCreated"
JOB = "Microsoft.MachineLearningServices.RunStatusChanged"
SUBJECT = "/blobServices/default/containers/datasets/blobs/support/a b.jsonl"
DATA = {"api": "PutBlockList", "eTag": "0x1", "contentLength": 5}


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    messages: list[tuple[Any, ...]] = []
    monkeypatch.setattr(events, "settings", lambda: SETTINGS)
    monkeypatch.setattr(events, "wake", lambda *arguments: messages.append(arguments))
    return messages


def event(kind: str, subject: Any, data: Any) -> func.EventGridEvent:
    return func.EventGridEvent(
        id="1", topic="t", event_type=kind, subject=subject, event_time=None, data_version="1", data=data
    )


def uploaded(given: Any) -> None:
    asyncio.run(events.on_dataset_uploaded.build().get_user_function()(given))


def job_changed(given: Any) -> None:
    asyncio.run(events.on_job_event.build().get_user_function()(given))


def test_events_do_not_wait_for_a_thread_in_which_files_are_checked() -> None:
    for trigger in (events.on_dataset_uploaded, events.on_job_event):
        assert inspect.iscoroutinefunction(trigger.build().get_user_function())


@pytest.mark.parametrize("api", ["PutBlob", "PutBlockList", "CopyBlob", "FlushWithClose"])
def test_a_committed_file_wakes_its_run(woken: list[tuple[Any, ...]], api: str) -> None:
    uploaded(event(BLOB, SUBJECT, {**DATA, "api": api}))
    blob = {"blob": "support/a b.jsonl", "etag": "0x1"}
    assert woken == [(run_id("support", "support/a b.jsonl", "0x1"), blob)]


@pytest.mark.parametrize(
    ("kind", "subject", "data"),
    [
        (BLOB, SUBJECT, {**DATA, "api": "CreateFile"}),  # hierarchical accounts: nothing in the file yet
        (BLOB, SUBJECT, {**DATA, "eTag": None}),
        (BLOB, SUBJECT.replace("datasets", "others"), DATA),
        (BLOB, SUBJECT.replace("a b.jsonl", "recipe.yaml"), DATA),
        (BLOB, SUBJECT.replace("a b.jsonl", "eval.jsonl"), DATA),
        (BLOB, None, DATA),
        (BLOB, SUBJECT, None),
        (BLOB, SUBJECT, [1]),
        ("Microsoft.Storage.BlobDeleted", SUBJECT, DATA),
    ],
)
def test_what_is_no_committed_dataset_is_passed_over(
    woken: list[tuple[Any, ...]], kind: str, subject: Any, data: Any
) -> None:
    uploaded(event(kind, subject, data))
    assert woken == []


@pytest.mark.parametrize("name", ["runId", "RunId", "RUNID"])
def test_a_jobs_event_wakes_its_run_whatever_the_casing(woken: list[tuple[Any, ...]], name: str) -> None:
    job_changed(event(JOB, "experiments/e/runs/support-1", {name: "support-1", "RunTags": {"run_id": "support-1"}}))
    job_changed(event(JOB, "experiments/e/runs/support-1", {}))
    assert woken == [("support-1",), ("support-1",)]


def test_the_job_of_a_run_that_was_taken_up_again_wakes_the_run(woken: list[tuple[Any, ...]]) -> None:
    id = "support-0123456789ab"
    for job, tags in ((f"{id}-2", {"run_id": id}), (f"{id}-2", {}), (id, {}), (id, {"run_id": id})):
        job_changed(event(JOB, f"experiments/e/runs/{job}", {"runId": job, "runTags": tags}))
    assert woken == [(id,)] * 4
    # Another run's id that looks like a numbered job of this one, and a job that only carries our tag.
    other = f"{id}-123456789012"
    job_changed(event(JOB, "", {"runId": other}))
    job_changed(event(JOB, "", {"runId": f"{id}-x", "runTags": {"run_id": id}}))
    assert woken[4:] == [(other,)]


def test_a_job_of_somebody_else_is_passed_over(woken: list[tuple[Any, ...]]) -> None:
    job_changed(event(JOB, "experiments/e/runs/other", {"runId": "other", "runTags": {"team": "x"}}))
    job_changed(event(BLOB, "experiments/e/runs/other", {"runId": "other"}))
    assert woken == []


def test_a_cloud_event_is_understood_too(woken: list[tuple[Any, ...]]) -> None:
    class CloudEvent:
        id, type, subject = "1", BLOB, SUBJECT

        def get_json(self) -> Any:
            return DATA

    uploaded(CloudEvent())
    assert len(woken) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*DATA, "runId", "runTags"]), inner),
    max_leaves=6,
)


@given(st.sampled_from([BLOB, JOB, ""]), st.none() | st.text(max_size=30) | st.just(SUBJECT), JSON)
def test_any_event_is_taken_without_an_error(kind: str, subject: Any, data: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "settings", lambda: SETTINGS)
        patch.setattr(events, "wake", lambda *_: None)
        uploaded(event(kind, subject, data))
        job_changed(event(kind, subject, data))

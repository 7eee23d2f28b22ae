"""The app's own submission: data assets with lineage, and what is remembered from job to job."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from azure.ai.ml import MLClient
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.transport import RequestsTransport
from job_helpers import completed, error_of, wait

from function_app import data_assets, intake
from function_app.engines import command
from function_app.errors import TransientError
from function_app.recipe import Recipe
from function_app.runs import DatasetVersion, Run, new_run
from function_app.settings import settings
from tests.local_azure import LocalAzure, forget_clients

Call = tuple[str, str, Any]  # method, path below the workspace, body


@pytest.fixture(scope="module", autouse=True)
def _this_local_azure(azure: LocalAzure) -> Iterator[None]:
    """The app's clients are those of this module's local Azure."""
    forget_clients()
    yield
    forget_clients()


@pytest.fixture(autouse=True)
def _quick_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of training: show what came."""
    show = "wc -c < ${{inputs.train}}; wc -c < ${{inputs.eval}}; cat ${{inputs.recipe}}"
    monkeypatch.setattr(command, "COMMAND", f"{show}; mkdir -p ${{{{outputs.report}}}}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call to the workspace, as it is made."""
    made: list[Call] = []
    send = RequestsTransport.send

    def noting(transport: RequestsTransport, request: Any, **more: Any) -> Any:
        _, workspace, path = request.url.partition("/workspaces/local/")
        if workspace:
            body = request.body if isinstance(request.body, (str, bytes)) else "null"
            made.append((request.method, path.partition("?")[0], json.loads(body or "null")))
        return send(transport, request, **more)

    monkeypatch.setattr(RequestsTransport, "send", noting)
    return made


def received(azure: LocalAzure, file: str, held_out: bytes = b'{"text": "b"}\n') -> Run:
    """A run as the intake leaves it."""
    now = datetime.now(UTC)
    run = new_run("lineage", DatasetVersion(f"lineage/{file}.jsonl", f"0x{file}", 14, now), now)
    run.numbers["dataset"] = {"train": 12, "eval": 2}
    run.numbers["splits"] = {"train": {"sha256": "ab" * 32}, "eval": {"sha256": "cd" * 32}}
    blobs = {"train.jsonl": b'{"text": "a"}\n', "eval.jsonl": held_out, "recipe.json": b"{}\n"}
    for name, content in blobs.items():
        azure.storage.get_blob_client("runs", f"{run.id}/{name}").upload_blob(content, overwrite=True)
    return run


def submit(run: Run) -> None:
    """As steps.py does: again, while the cluster is being made."""
    for _ in range(50):
        try:
            assert command.submit(run, Recipe())
        except TransientError:
            continue
        return
    raise AssertionError("the cluster never came")


def paths(calls: list[Call], method: str, kind: str) -> list[str]:
    return [path for made, path, _ in calls if made == method and path.startswith(f"{kind}/")]


def job_body(calls: list[Call]) -> dict[str, Any]:
    body = next(body for method, path, body in calls if method == "PUT" and path.startswith("jobs/"))
    return dict(body["properties"])


def test_the_splits_become_assets_that_name_their_source(azure: LocalAzure, ml: MLClient, calls: list[Call]) -> None:
    run = received(azure, "source")
    expected = {split: f"azureml:lineage-{split}:{run.suffix}" for split in ("train", "eval")}
    assert data_assets.register_splits(run) == expected
    first = ml.data.get("lineage-train", run.suffix)
    assert first.path == intake.input_url(run, "train.jsonl")
    assert first.tags == {
        "run_id": run.id,
        "dataset": "lineage/source.jsonl",
        "dataset_etag": "0xsource",
        "records": "12",
        "sha256": "ab" * 32,
    }
    assert ml.data.get("lineage-eval", run.suffix).tags["records"] == "2"
    assert data_assets.register_splits(run) == expected
    again = ml.data.get("lineage-train", run.suffix)
    assert (again.path, again.tags, again.creation_context.created_at) == (
        first.path,
        first.tags,
        first.creation_context.created_at,
    )


def test_an_asset_that_another_invocation_is_making_counts(azure: LocalAzure) -> None:
    run = received(azure, "race")
    with azure.faults(method="PUT", path="*/data/lineage-train/*", status=409, when="after", times=1):
        assert data_assets.register_splits(run)["train"] == f"azureml:lineage-train:{run.suffix}"


def test_a_name_that_is_too_long_for_a_tag_keeps_its_end(azure: LocalAzure, ml: MLClient) -> None:
    run = received(azure, "x" * 300 + "-end")
    data_assets.register_splits(run)
    tag = ml.data.get("lineage-train", run.suffix).tags["dataset"]
    assert len(tag) == 256
    assert tag.endswith("x-end.jsonl")


def test_the_job_gets_the_assets_and_the_files_come(azure: LocalAzure, ml: MLClient, calls: list[Call]) -> None:
    run = received(azure, "job", held_out=b"")
    submit(run)
    body = job_body(calls)
    below = "/workspaces/local/"
    assert {name: given["uri"].partition(below)[2] or given["uri"] for name, given in body["inputs"].items()} == {
        "train": f"data/lineage-train/versions/{run.suffix}",
        "eval": f"data/lineage-eval/versions/{run.suffix}",
        "recipe": intake.input_url(run, "recipe.json"),
    }
    assert {(given["mode"], given["jobInputType"]) for given in body["inputs"].values()} == {("Download", "uri_file")}
    assert body["codeId"].partition(below)[2].startswith("codes/")
    assert body["environmentId"].partition(below)[2].startswith("environments/")
    assert body["computeId"].partition(below)[2] == "computes/training"
    completed(ml, run.id)
    log = azure.storage.get_blob_client("azureml", f"ExperimentRun/dcid.{run.id}/user_logs/std_log.txt")
    assert log.download_blob().readall().split() == [b"14", b"0", b"{}"]


def test_the_next_job_is_the_same_and_uploads_nothing(azure: LocalAzure, calls: list[Call]) -> None:
    command.forget()
    submit(received(azure, "one"))
    first = job_body(calls)
    assert paths(calls, "GET", "computes")
    calls.clear()
    run = received(azure, "two")
    submit(run)
    second = job_body(calls)
    assert [(method, path.partition("/")[0]) for method, path, _ in calls] == [
        ("GET", "jobs"),
        ("PUT", "data"),
        ("PUT", "data"),
        ("PUT", "jobs"),
    ]
    own = ("inputs", "displayName", "tags")
    assert {k: v for k, v in second.items() if k not in own} == {k: v for k, v in first.items() if k not in own}
    assert second["tags"]["run_id"] == run.id


def test_many_first_jobs_at_once_upload_the_code_once(azure: LocalAzure, calls: list[Call]) -> None:
    submit(received(azure, "before"))  # the cluster is there
    command.forget()
    calls.clear()
    runs = [received(azure, f"many{number}") for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(submit, runs))
    assert len(paths(calls, "PUT", "environments")) == 1
    assert sorted(path.partition("/")[2] for path in paths(calls, "PUT", "jobs")) == sorted(run.id for run in runs)


def test_a_job_that_is_there_already_is_left_alone(azure: LocalAzure, calls: list[Call]) -> None:
    run = received(azure, "twice")
    submit(run)
    calls.clear()
    submit(run)
    assert [method for method, _, _ in calls] == ["GET"]


def test_a_cluster_that_was_deleted_since_is_made_again(azure: LocalAzure, ml: MLClient) -> None:
    first = received(azure, "first")
    submit(first)
    for job in list(ml.jobs.list()):
        wait(ml, job.name, "Completed", "Failed", "Canceled")
    ml.compute.begin_delete("training").result()
    run = received(azure, "orphan")
    submit(run)
    assert ml.compute.get("training").provisioning_state == "Succeeded"
    assert not error_of(ml, run.id)


@pytest.mark.parametrize("lost", [0, 1], ids=["code", "environment"])
def test_an_asset_that_was_deleted_since_is_made_again(azure: LocalAzure, lost: int) -> None:
    submit(received(azure, f"kept{lost}"))
    image = settings().training_image
    good = (command._remembered.code, command._remembered.environments[image])
    gone = good[lost].rpartition("/")[0] + "/77"
    if lost == 0:
        command._remembered.code = gone
    else:
        command._remembered.environments[image] = gone
    submit(received(azure, f"lost{lost}"))
    assert (command._remembered.code, command._remembered.environments[image]) == good


def test_a_refusal_that_is_no_lost_asset_is_raised(azure: LocalAzure, calls: list[Call]) -> None:
    submit(received(azure, "fine"))
    calls.clear()
    with (
        azure.faults(method="PUT", path="*/jobs/*", status=400),
        pytest.raises(HttpResponseError),
    ):
        command.submit(received(azure, "refused"), Recipe())
    assert len(paths(calls, "PUT", "jobs")) == 2  # once more with nothing remembered, and no more

"""Where a run's model is released, by the engine that has trained it."""

import re
from typing import Any

import msgspec
import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobProperties

from function_app import live_record, release, release_managed, release_serverless
from function_app.engines import service
from function_app.lifecycle import next_step
from function_app.live import LiveModel
from function_app.observation import DeploymentSeen, Observation
from function_app.runs import DatasetVersion, Run, Stage, new_run, utc_now
from function_app.step_kinds import Finish, ShiftTraffic


def run_by(engine: str, upload: str = "0x1") -> Run:
    now = utc_now()
    run = new_run("support", DatasetVersion("support/data.jsonl", upload, 10, now), now)
    run.recipe = {"engine": engine, "base_model": "b"} if engine else {}
    run.numbers["model_uri"] = f"azureml:{run.id}:3"
    return run


class Container:
    """The runs container, with the live record alone."""

    def __init__(self) -> None:
        self.content = b""

    def get_blob_client(self, name: str) -> "Container":
        assert name == "live/support.json"
        return self

    def upload_blob(self, content: bytes, overwrite: bool, metadata: dict[str, str], **conditions: object) -> None:
        assert overwrite == bool(self.content) == bool(conditions)
        assert metadata["idle_hours"]
        self.content = content

    def get_blob_properties(self) -> BlobProperties:
        if not self.content:
            raise ResourceNotFoundError
        return BlobProperties(etag=str(hash(self.content)))

    def download_blob(self) -> "Container":
        return self

    def readall(self) -> bytes:
        return self.content or b"{}"


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Container:
    made = Container()
    monkeypatch.setattr(live_record, "blob", lambda model: made.get_blob_client(f"live/{model}.json"))
    return made


def test_the_engine_decides_where_a_model_is_released() -> None:
    assert release._by_engine(run_by("service")) is release_serverless
    for engine in ("command", "pipeline", ""):  # records of before engines could be chosen have none
        assert release._by_engine(run_by(engine)) is release_managed
    public = ("register", "endpoint_name", "observe_endpoint", "observe_deployment", "create_endpoint", "verify",
              "create_deployment", "shift_traffic", "live_fields", "discarded", "place_in_words")  # fmt: skip
    for name in public:
        assert callable(getattr(release_managed, name))
        assert callable(getattr(release_serverless, name))


def test_a_name_fits_a_serverless_endpoint_however_long_the_models_is() -> None:
    run = run_by("service")
    run.id = f"{'m' * 25}-0123456789ab"
    assert re.fullmatch("[a-zA-Z0-9][a-zA-Z0-9-]{0,51}", release.endpoint_name(run))


def test_the_live_record_says_that_a_key_is_needed(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_serverless, "_chat_url", lambda run: f"https://x/{run.id}/v1/chat/completions")
    run = run_by("service")
    release.write_live_record(run)
    live = msgspec.json.decode(container.content, type=LiveModel)
    assert (live.auth, live.endpoint, live.deployment, live.model_version) == ("key", run.id, "", "3")
    monkeypatch.setattr(
        release_managed,
        "live_fields",
        lambda run: {"endpoint": "e", "deployment": run.deployment, "scoring_uri": "https://x"},
    )
    run = run_by("command")
    release.write_live_record(run)
    live = msgspec.json.decode(container.content, type=LiveModel)
    assert (live.auth, live.deployment, live.model_version) == ("", run.deployment, run.model_version)


def test_what_serves_is_not_discarded(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    discarded: list[str] = []
    monkeypatch.setattr(release_serverless, "discarded", lambda run: discarded.append(run.id) or False)
    live, failed = run_by("service"), run_by("service", "0x2")
    container.content = msgspec.json.encode({"run_id": live.id})
    assert release.discarded(live)
    assert not release.discarded(failed)
    assert discarded == [failed.id]
    container.content = b"somebody's note"  # what serves is not known, so nothing is deleted
    assert not release.discarded(failed)
    assert discarded == [failed.id]


def test_a_newer_run_may_overtake_one_whose_serverless_endpoint_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_serverless, "_state", lambda run: "Succeeded")
    run = run_by("service")
    for stage, ends in ((Stage.REGISTERED, True), (Stage.DEPLOYING, True), (Stage.SHIFTING, False)):
        run.stage = stage
        state, traffic = release.observe_endpoint(run)
        seen = Observation("newer", endpoint_state=state, traffic=traffic, deployment=DeploymentSeen(state))
        assert isinstance(next_step(run, seen, utc_now()), Finish if ends else ShiftTraffic)


def test_what_a_run_replaces_is_deleted_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(release_managed, "delete_deployment", lambda *where: done.append(("delete", *where)))
    monkeypatch.setattr(release_managed, "take_down", lambda *where: done.append(("take down", *where)))
    monkeypatch.setattr(release_serverless, "delete", lambda name: done.append(("endpoint", name)))
    for engine in ("command", "service"):
        release.delete_deployment(run_by(engine), release.Place("managed", "r-0"))
        release.delete_deployment(run_by(engine), release.Place("serverless", "support-0"))
    assert done == [
        ("delete", "support", "r-0"),
        ("endpoint", "support-0"),
        ("take down", "support", "r-0"),  # nothing of the run's takes the traffic of the managed endpoint over
        ("endpoint", "support-0"),
    ]


def test_the_others_are_looked_for_in_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_by("service")
    monkeypatch.setattr(release_managed, "deployments", lambda model: {"r-0": f"{model}-0"})
    monkeypatch.setattr(release_serverless, "endpoints", lambda model: {run.id: run.id, f"{model}-1": f"{model}-1"})
    assert release.other_deployments(run) == {
        release.Place("managed", "r-0"): "support-0",
        release.Place("serverless", "support-1"): "support-1",
    }


def test_the_table_of_regions_is_well_formed() -> None:
    offers = service._offers()
    assert offers["Phi-3-mini-4k-instruct"].regions == ["eastus2"]
    assert all(re.fullmatch("[a-z]+[0-9]?", region) for offer in offers.values() for region in offer.regions)

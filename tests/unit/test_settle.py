"""What an ended run leaves behind, and that nothing which serves, or is about to, is deleted for it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

from function_app import azure_clients, live_record, outcomes, release, release_managed, settle
from function_app.errors import TransientError
from function_app.observation import DeploymentSeen
from function_app.release import Place
from function_app.runs import DatasetVersion, Run, Stage, Summary, new_run
from function_app.step_kinds import Finish

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def a_run(etag: str, stage: Stage, **more: object) -> Run:
    run = new_run("support", DatasetVersion("support/a.jsonl", etag, 1, NOW), NOW)
    run.move(stage, "for the test", NOW)
    return msgspec.structs.replace(run, **more)


class Records:
    """The runs of one model."""

    def __init__(self, *runs: Run) -> None:
        self.runs = {run.id: run for run in runs}

    def get(self, id: str) -> tuple[Run, str] | None:
        return (self.runs[id], "1") if id in self.runs else None

    def summaries(self, prefix: str) -> Iterator[Summary]:
        for run in self.runs.values():
            yield Summary(run.id, run.model, run.stage, NOW, NOW, "", run.ended and run.unsettled)


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        (Stage.RECEIVED, ""),
        (Stage.VALIDATED, "job"),
        (Stage.TRAINING, "job"),
        (Stage.APPROVED, ""),
        (Stage.REGISTERED, "deployment"),
        (Stage.SHIFTING, "deployment"),
        (Stage.LIVE, "endpoint"),
    ],
)
def test_what_a_run_leaves_depends_on_where_it_was(monkeypatch: pytest.MonkeyPatch, stage: Stage, left: str) -> None:
    monkeypatch.setattr(outcomes, "wanted", lambda: True)
    run = a_run("0x1", stage, cleanup="replaced" if stage == Stage.LIVE else "", cleanup_at=NOW)
    settle.finish(run, Finish(Stage.RETIRED if stage == Stage.LIVE else Stage.FAILED, "why"))
    assert (run.cleanup, run.cleanup_at) == (left, None)
    assert run.outbox == ([] if stage == Stage.LIVE else ["RunFailed"])


def test_a_rollback_that_ends_before_its_turn_leaves_the_deployment_of_another_run_alone() -> None:
    run = a_run("0x1", Stage.REGISTERED, release_of="support-0", place="r-old")
    settle.finish(run, Finish(Stage.CANCELLED, "why"))
    assert run.cleanup == ""


@pytest.mark.parametrize("stage", [Stage.APPROVED, Stage.SHIFTING, Stage.LIVE, Stage.FAILED])
def test_a_failed_rollback_whose_place_a_later_one_has_deletes_nothing(
    monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    deleted: list[str] = []
    monkeypatch.setattr(release, "discarded", lambda run: deleted.append(run.deployment) or True)
    failed = a_run("0x1", Stage.FAILED, release_of="support-0", place="r-old", cleanup="deployment")
    later = a_run("0x2", stage, release_of="support-0", place="r-old")
    assert settle.clean_up(Records(failed, later), failed)
    assert deleted == (["r-old"] if stage == Stage.FAILED else [])


@pytest.mark.parametrize(("hours", "level"), [(0.5, "WARNING"), (2, "ERROR")])
def test_a_clean_up_that_fails_for_an_hour_is_an_error_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hours: float, level: str
) -> None:
    def refused(_: Run) -> bool:
        raise TransientError("no role")

    monkeypatch.setattr(release, "discarded", refused)
    monkeypatch.setattr(settle, "utc_now", lambda: NOW + timedelta(hours=hours))
    assert not settle.clean_up(Records(), a_run("0x1", Stage.FAILED, cleanup="deployment"))
    assert [record.levelname for record in caplog.records] == [level]


def test_a_champion_that_is_being_changed_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run("0x1", Stage.SHIFTING)
    run.recipe = {"serving": {"server": "transformers"}}
    for state in ("Updating", "Scaling"):
        monkeypatch.setattr(release_managed, "_champion", lambda _, state=state: ("r-old", state, ""))
        with pytest.raises(TransientError, match=f"r-old, is {state}"):
            release_managed.champion(run)
    for state, name in (("Succeeded", "r-old"), ("Failed", ""), ("Deleting", ""), ("", "")):
        monkeypatch.setattr(release_managed, "_champion", lambda _, state=state: ("r-old", state, ""))
        assert release_managed.champion(run) == name


def test_the_replaced_are_deleted_but_none_that_another_run_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run("0x0", Stage.LIVE, cleanup="replaced", cleanup_at=NOW)
    # A rollback has the place of the run whose model it releases: the tags of the deployment may still be that run's.
    retired = a_run("0x1", Stage.RETIRED)
    others = [
        retired,
        a_run("0x2", Stage.SHIFTING),
        a_run("0x3", Stage.FAILED, cleanup="deployment"),
        a_run("0x4", Stage.LIVE),  # has gone live while this one looked, and serves
        a_run("0x5", Stage.FAILED),
        a_run("0x6", Stage.REGISTERED, place="r-old"),
        a_run("0x7", Stage.APPROVED, place="r-older"),  # a rollback that was asked for a moment ago
    ]
    places = {Place("managed", each.deployment): each.id for each in others}
    places |= {Place("managed", name): "support-0" for name in ("r-old", "r-older")}
    places |= {Place("managed", run.deployment): retired.id}
    deleted: list[str] = []
    monkeypatch.setattr(release, "other_deployments", lambda _: places)
    monkeypatch.setattr(release, "observe_deployment", lambda _: DeploymentSeen("Succeeded"))
    monkeypatch.setattr(release, "delete_deployment", lambda _, place: deleted.append(place.name))
    wait = settle.settle(Records(run, *others), run, NOW)  # type: ignore[arg-type]
    assert deleted == [retired.deployment, others[4].deployment]
    assert wait is not None  # until Azure shows them gone
    assert run.cleanup == "replaced"


def test_the_replaced_are_kept_while_the_new_deployment_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run("0x0", Stage.LIVE, cleanup="replaced", cleanup_at=NOW)
    monkeypatch.setattr(release, "other_deployments", lambda _: {Place("managed", "r-old"): "support-0"})
    monkeypatch.setattr(release, "observe_deployment", lambda _: DeploymentSeen("Updating"))
    assert settle.settle(Records(run), run, NOW + timedelta(hours=1)) is not None  # type: ignore[arg-type]
    assert run.cleanup == "replaced"


class Blob:
    """The live record of one model, with its ETag."""

    def __init__(self, content: dict[str, Any] | None = None) -> None:
        self.content = msgspec.json.encode(content) if content else b""
        self.version = 1

    def get_blob_properties(self) -> SimpleNamespace:
        if not self.content:
            raise ResourceNotFoundError
        return SimpleNamespace(etag=str(self.version))

    def download_blob(self) -> SimpleNamespace:
        self.get_blob_properties()
        return SimpleNamespace(readall=lambda: self.content)

    def upload_blob(self, content: bytes, metadata: object, overwrite: bool, **conditions: Any) -> None:
        if overwrite:
            self._check(**conditions)
        elif self.content:
            raise ResourceExistsError
        self.content, self.version = content, self.version + 1

    def delete_blob(self, etag: str, match_condition: object) -> None:
        self._check(etag, match_condition)
        self.content = b""

    def _check(self, etag: str, match_condition: object) -> None:
        assert match_condition == MatchConditions.IfNotModified
        if etag != str(self.version):
            raise ResourceModifiedError


@pytest.mark.parametrize("before", [None, {"run_id": "support-0"}])
def test_the_live_record_of_a_later_run_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, Any] | None
) -> None:
    blob = Blob(before)
    monkeypatch.setattr(live_record, "blob", lambda model: blob)
    place = {"endpoint": "e", "deployment": "r-1", "scoring_uri": "https://e"}
    monkeypatch.setattr(release_managed, "live_fields", lambda run: place)
    late, later = a_run("0x1", Stage.SHIFTING), a_run("0x2", Stage.SHIFTING)
    with pytest.raises((ResourceExistsError, ResourceModifiedError)):
        release.write_live_record(late, lambda: release.write_live_record(later, lambda: None))
    written = live_record.read("support")
    assert written is not None
    assert written["run_id"] == later.id


def test_a_run_that_is_retired_late_takes_no_other_from_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run("0x1", Stage.RETIRED, cleanup="endpoint")
    blob = Blob({"run_id": run.id})
    read = live_record.read

    def replaced_meanwhile(model: str) -> dict[str, Any] | None:
        found = read(model)
        blob.content, blob.version = msgspec.json.encode({"run_id": "support-2"}), 2
        return found

    monkeypatch.setattr(live_record, "blob", lambda model: blob)
    monkeypatch.setattr(live_record, "read", replaced_meanwhile)
    monkeypatch.setattr(settle.turn, "take", lambda runs, run: True)
    wait = settle.settle(Records(run), run, NOW)  # type: ignore[arg-type]
    assert wait is not None
    assert read("support") == {"run_id": "support-2"}
    assert settle.settle(Records(run), run, NOW) is None  # type: ignore[arg-type]  # the other serves: nothing to delete


class Endpoints:
    """Azure ML's client, with one endpoint and its deployments."""

    def __init__(self, state: str, traffic: dict[str, int], **deployments: str) -> None:
        self.endpoint = SimpleNamespace(provisioning_state=state, traffic=traffic)
        self.states = {name.replace("_", "-"): state for name, state in deployments.items()}
        self.online_endpoints = self
        self.online_deployments = SimpleNamespace(get=self._deployment, begin_delete=self._delete)
        self.put: list[dict[str, int]] = []
        self.deleted: list[str] = []

    def get(self, name: str) -> SimpleNamespace:
        return self.endpoint

    def begin_create_or_update(self, endpoint: Any) -> None:
        self.put.append(dict(endpoint.traffic))

    def _deployment(self, name: str, endpoint: str) -> SimpleNamespace:
        if name not in self.states:
            raise ResourceNotFoundError
        return SimpleNamespace(provisioning_state=self.states[name])

    def _delete(self, name: str, endpoint: str) -> None:
        self.deleted.append(name)


@pytest.fixture
def champion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_managed, "endpoint_name", lambda run: "e")
    monkeypatch.setattr(release_managed, "_endpoint", lambda model: "e")
    live = {"run_id": "support-0", "deployment": "r-old", "endpoint": "e"}
    monkeypatch.setattr(live_record, "blob", lambda model: Blob(live))


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize(("state", "keeps"), [("Succeeded", "r-old"), ("Updating", "r-old"), ("", "")])
def test_the_traffic_goes_back_before_the_deployment_goes(
    monkeypatch: pytest.MonkeyPatch, state: str, keeps: str
) -> None:
    run = a_run("0x1", Stage.FAILED, cleanup="deployment")
    azure = Endpoints("Succeeded", {run.deployment: 10, "r-old": 90}, **{run.deployment: "Succeeded"})
    azure.states |= {"r-old": state} if state else {}
    monkeypatch.setattr(azure_clients, "ml_client", lambda: azure)
    assert not release.discarded(run)
    assert azure.put == [{keeps: 100} if keeps else {}]
    azure.endpoint.provisioning_state = "Updating"
    assert not release.discarded(run)
    assert (len(azure.put), azure.deleted) == (1, [])  # until the update is done it may still get requests
    azure.endpoint.provisioning_state = "Succeeded"
    assert not release.discarded(run)
    assert azure.deleted == [run.deployment]


@pytest.mark.usefixtures("champion")
def test_a_rollback_that_has_failed_does_not_delete_what_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    azure = Endpoints("Succeeded", {"r-old": 100}, r_old="Succeeded")
    monkeypatch.setattr(azure_clients, "ml_client", lambda: azure)
    assert release.discarded(a_run("0x1", Stage.FAILED, place="r-old", release_of="support-0"))
    assert (azure.put, azure.deleted) == ([], [])


@pytest.mark.usefixtures("champion")
def test_an_endpoint_that_is_asked_for_again_keeps_its_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    azure = Endpoints("Failed", {"r-old": 100}, r_old="Succeeded")
    monkeypatch.setattr(azure_clients, "ml_client", lambda: azure)
    release.create_endpoint(a_run("0x1", Stage.REGISTERED))
    assert azure.put == [{"r-old": 100}]

"""The operations API: who may use it, what it answers, and that two who ask at once get one outcome.

Records and Azure ML are in memory here, so that the moment between reading and saving can be chosen;
tests/e2e/test_operations.py asks the running app.
"""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from azure.core.exceptions import HttpResponseError, ServiceRequestError
from hypothesis import given
from hypothesis import strategies as st
from operations_support import START, MemoryStore, StubContainer, StubMl, a_run, application, served_at

from function_app import (
    api_keys,
    azure_clients,
    operations,
    operations_answers,
    operations_poison,
    operations_runs,
    rollback,
)
from function_app.lifecycle import next_step
from function_app.observation import Observation
from function_app.operations_answers import Refused
from function_app.runs import Ask, Run, Stage
from function_app.settings import settings
from function_app.step_kinds import Finish, Forget, Move

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
ACTIONS = get_args(operations_runs.Action)


@dataclass
class Office:
    """Everything that a test may want to touch."""

    store: MemoryStore
    ml: StubMl
    container: StubContainer
    key: str
    chat_key: str
    woken: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None, **more: Any) -> httpx.Response:
        """Send one request."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=application(operations.blueprint))
            async with httpx.AsyncClient(transport=transport, base_url="http://app/api/operations/") as client:
                headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
                content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
                return await client.request(method, path, content=content, headers=headers, **more)

        return asyncio.run(send())

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        answer = self.ask("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def post(self, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        answer = self.ask("POST", path, body)
        return answer.status_code, dict(answer.json())

    def run(self, id: str) -> Run:
        return self.store.records[id][0]


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    key, entry = api_keys.new_key("alice")
    chat_key, chat_entry = api_keys.new_key("chatter")
    made = Office(MemoryStore(), StubMl(), StubContainer(), key, chat_key)
    for name, value in {
        "Storage__blobServiceUri": "https://localhost:1/account",
        "Storage__queueServiceUri": "https://localhost:1/account",
        "AZURE_SUBSCRIPTION_ID": "s",
        "AZURE_RESOURCE_GROUP": "g",
        "AZURE_ML_WORKSPACE": "w",
        "CHAT_API_KEYS": chat_entry,
        "OPERATOR_API_KEYS": entry,
    }.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    monkeypatch.setattr(operations, "store", lambda: made.store)
    monkeypatch.setattr(operations_runs, "wake", made.woken.append)
    monkeypatch.setattr(rollback, "wake", made.woken.append)
    monkeypatch.setattr(azure_clients, "ml_client", lambda: made.ml)
    monkeypatch.setattr(azure_clients, "container", lambda _: made.container)
    yield made
    settings.cache_clear()


# --- who may ---


ROUTES = [
    ("GET", "runs"), ("GET", "runs/support-000000000001"), ("POST", "runs/support-000000000001/approve"),
    ("GET", "models"), ("GET", "models/support"), ("POST", "models/support/rollback"),
    ("POST", "models/support/retire"), ("DELETE", "models/support/versions/1"), ("GET", "poison"),
    ("POST", "poison/x/replay"),
]  # fmt: skip


def test_every_route_is_in_this_list() -> None:
    assert len(application(operations.blueprint).routes) == len(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_opens_without_an_operators_key(office: Office, method: str, path: str) -> None:
    office.store.put(a_run(1, Stage.TRAINED))
    for key, status, code in (("", 401, "invalid_api_key"), (office.chat_key, 403, "not_an_operator")):
        answer = office.ask(method, path, key=key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert office.run("support-000000000001").asked is None


def test_without_configured_keys_it_is_closed_and_says_how_to_open_it(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPERATOR_API_KEYS", "")
    settings.cache_clear()
    answer = office.ask("GET", "runs")
    assert answer.status_code == 401
    assert "python -m function_app.api_keys --operator NAME" in answer.json()["error"]["message"]
    assert "OPERATOR_API_KEYS" in answer.json()["error"]["message"]


def test_a_malformed_setting_is_named_without_its_value(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERATOR_API_KEYS", "hunter2")
    settings.cache_clear()
    answer = office.ask("GET", "runs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "misconfigured")
    assert "OPERATOR_API_KEYS" in answer.text
    assert "hunter2" not in answer.text


# --- lists ---


def test_pages_give_every_run_once_the_newest_first_and_read_no_record(office: Office) -> None:
    for number in range(25):
        office.store.put(a_run(number // 2 * 2, Stage.LIVE, model=f"m{number % 2}x"))  # two at each moment
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = office.get("runs", limit=4, **({"after": after} if after else {}))
        seen += [each["id"] for each in page["runs"]]
        after = page["after"]
    assert len(seen) == len(set(seen)) == 25
    times = [office.run(id).dataset.uploaded_at for id in seen]
    assert times == sorted(times, reverse=True)
    assert office.store.reads == 0


def test_runs_are_listed_by_model_and_stage(office: Office) -> None:
    office.store.put(a_run(1, Stage.FAILED))
    office.store.put(a_run(2, Stage.LIVE))
    office.store.put(a_run(3, Stage.LIVE, model="support-eu"))  # its ids begin as those of support
    assert [each["id"] for each in office.get("runs", model="support")["runs"]] == [
        "support-000000000002",
        "support-000000000001",
    ]
    assert [each["model"] for each in office.get("runs", stage="live")["runs"]] == ["support-eu", "support"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"limit": "0"}, "limit"), ({"limit": "1000000"}, "limit"), ({"limit": "½"}, "limit"),
        ({"stage": "gone"}, "stage"), ({"after": "x"}, "after"), ({"modle": "support"}, "modle"),
        ({"model": "../live/support"}, "model"), ({"model": "a" * 2000}, "model"),
    ],
)  # fmt: skip
def test_a_query_that_cannot_be_meant_is_refused_by_name(office: Office, query: dict[str, str], named: str) -> None:
    answer = office.ask("GET", "runs", params=query)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


def test_a_run_is_shown_with_what_may_be_asked_of_it(office: Office) -> None:
    office.store.put(a_run(1, Stage.TRAINED))
    run = office.get("runs/support-000000000001")
    assert run["may"] == ["approve", "reject", "cancel"]
    assert run["numbers"]["model_uri"].startswith("azureml://")
    assert [event["stage"] for event in run["history"]][-1] == "trained"
    assert run["job"] == "support-000000000001"


@pytest.mark.parametrize("id", ["support-000000000009", "support", "Support-000000000001", "..", "a" * 300])
def test_a_run_that_is_not_there_is_404(office: Office, id: str) -> None:
    assert office.ask("GET", f"runs/{id}").status_code == 404
    assert office.ask("POST", f"runs/{id}/cancel").status_code == 404


def test_models_are_listed_with_what_serves_and_without_reading_records(office: Office) -> None:
    office.store.put(a_run(1, Stage.RETIRED))
    office.store.put(a_run(2, Stage.LIVE))
    office.store.put(a_run(3, Stage.TRAINING))
    office.store.put(a_run(1, Stage.FAILED, model="other"))
    office.container.blobs["live/support.json"] = b"{}"
    first = office.get("models", limit=1)
    assert [(each["model"], each["live"]) for each in first["models"]] == [("other", False)]
    second = office.get("models", limit=1, after=first["after"])
    assert second["models"] == [
        {
            "model": "support", "live": True, "runs": {"live": 1, "retired": 1, "training": 1}, "under_way": 1,
            "newest_run": "support-000000000003",
        }
    ]  # fmt: skip
    assert second["after"] is None
    assert office.store.reads == 0


def test_a_model_is_shown_with_its_live_record_last_use_deployments_and_versions(office: Office) -> None:
    old, new = office.store.put(a_run(1, Stage.RETIRED)), office.store.put(a_run(2, Stage.LIVE))
    for run in (old, new):
        office.ml.register(run)
        office.ml.deploy(run)
    office.container.blobs |= {"live/support.json": b'{"run_id": "support-000000000002"}', "used/support": b""}
    shown = office.get("models/support", limit=1)
    assert shown["live"] == {"run_id": "support-000000000002"}
    assert shown["last_used"].startswith("2026-11-21T10:00:00")
    assert [(each["version"], each["share"]) for each in shown["deployments"]] == [
        (old.model_version, 0), (new.model_version, 100),
    ]  # fmt: skip
    assert [(each["version"], each["run_id"]) for each in shown["versions"]] == [(new.model_version, new.id)]
    older = office.get("models/support", limit=1, after=shown["after"])
    assert [each["version"] for each in older["versions"]] == [old.model_version]
    assert older["after"] is None
    assert office.ask("GET", "models/nobody").status_code == 404


# --- what people ask of a run ---


def test_an_approval_is_saved_with_who_and_why_and_wakes_the_run(office: Office) -> None:
    office.store.put(a_run(1, Stage.TRAINED))
    status, answer = office.post("runs/support-000000000001/approve", {"note": "looks\n right "})
    assert (status, answer["run"]["asked"]["action"]) == (202, "approve")
    asked = office.run("support-000000000001").asked
    assert asked is not None
    assert asked.in_words == "by alice: looks right"
    assert office.woken == ["support-000000000001"]


@pytest.mark.parametrize(
    ("action", "stage"),
    [("approve", Stage.TRAINED), ("reject", Stage.TRAINED), ("cancel", Stage.TRAINING), ("retry", Stage.FAILED)],
)
def test_asking_twice_is_asking_once_and_wakes_again(office: Office, action: str, stage: Stage) -> None:
    office.store.put(a_run(1, stage))
    answers = [office.post(f"runs/support-000000000001/{action}") for _ in range(2)]
    assert [status for status, _ in answers] == [202, 202]
    assert answers[0] == answers[1]
    assert office.store.records["support-000000000001"][1] == 2  # the record was saved once
    assert len(office.woken) == 2  # the first message may have been the one that was lost


@pytest.mark.parametrize(
    ("action", "stage", "status"),
    [
        ("approve", Stage.LIVE, 200), ("approve", Stage.TRAINING, 409), ("approve", Stage.REJECTED, 409),
        ("reject", Stage.REJECTED, 200), ("reject", Stage.LIVE, 409), ("cancel", Stage.CANCELLED, 200),
        ("cancel", Stage.LIVE, 409), ("cancel", Stage.FAILED, 409), ("retry", Stage.LIVE, 409),
        ("retry", Stage.TRAINING, 409), ("retry", Stage.REJECTED, 409), ("retry", Stage.SUPERSEDED, 409),
    ],
)  # fmt: skip
def test_a_state_that_forbids_it_is_named(office: Office, action: str, stage: Stage, status: int) -> None:
    office.store.put(a_run(1, stage))
    before = office.store.records["support-000000000001"]
    found, answer = office.post(f"runs/support-000000000001/{action}")
    assert found == status
    if status == 409:
        assert set(answer["error"]) == {"message", "code", "state", "run_id"}
        assert answer["error"]["state"] == stage
        assert stage in answer["error"]["message"]
    assert office.store.records["support-000000000001"] == before


def test_a_wish_whose_message_was_lost_is_told_again_by_asking_again(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: str) -> None:
        raise ServiceRequestError("the queue does not answer")

    office.store.put(a_run(1, Stage.TRAINED))
    with monkeypatch.context() as patch:
        patch.setattr(operations_runs, "wake", lost)
        answer = office.ask("POST", "runs/support-000000000001/approve")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "azure_unavailable")
    assert office.post("runs/support-000000000001/approve")[0] == 202
    assert office.woken == ["support-000000000001"]


def test_a_run_that_was_taken_up_again_and_goes_on_is_not_taken_up_twice(office: Office) -> None:
    run = a_run(1, Stage.FAILED)
    run.move(Stage.VALIDATED, "taken up again by alice", START)
    office.store.put(run)
    assert office.post("runs/support-000000000001/retry")[0] == 200
    assert office.run("support-000000000001").asked is None


def test_only_the_manual_gate_asks_people(office: Office) -> None:
    office.store.put(a_run(1, Stage.TRAINED, recipe={"gate": {"rule": "better"}}))
    status, answer = office.post("runs/support-000000000001/approve")
    assert status == 409
    assert "rule manual" in answer["error"]["message"]


def test_an_unknown_action_is_404_and_names_the_known(office: Office) -> None:
    office.store.put(a_run(1, Stage.TRAINED))
    status, answer = office.post("runs/support-000000000001/promote")
    assert status == 404
    assert "approve, reject, cancel, retry" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 202), (b"  ", 202), (b"{}", 202), (b'{"note": null}', 202), (b"{", 400), (b"[]", 400),
        (b'{"nota": ""}', 400), (b'{"note": 1}', 400), (b"\xff", 400), (b'{"note": "' + b"x" * 501 + b'"}', 400),
        (b'{"note": "' + b"x" * 20_000 + b'"}', 413), (b"[" * 9000, 400),
    ],
)  # fmt: skip
def test_bodies_are_checked_and_bounded(office: Office, body: bytes, status: int) -> None:
    office.store.put(a_run(1, Stage.TRAINED))
    answer = office.ask("POST", "runs/support-000000000001/approve", body)
    assert answer.status_code == status
    assert (office.run("support-000000000001").asked is not None) == (status == 202)


@given(
    st.sampled_from(ACTIONS),
    st.sampled_from(list(Stage)),
    st.none() | st.sampled_from(ACTIONS),
    st.sampled_from(["manual", "better"]),
    st.sampled_from([0, 10, 100]),
    st.sampled_from(["", "deployment", "endpoint"]),
)
def test_what_may_be_asked_is_what_the_state_machine_does(
    action: operations_runs.Action, stage: Stage, asked: operations_runs.Action | None, rule: str, share: int, left: str
) -> None:
    run = a_run(1, stage, recipe={"gate": {"rule": rule}})
    run.share = share if stage == Stage.SHIFTING else 0
    run.cleanup = left if run.ended else ""  # type: ignore[assignment]
    run.asked = Ask(asked, "bob", START) if asked else None
    verdict: str = "refused"
    try:
        verdict = operations_runs.verdict(run, action)
    except Refused as refused:
        assert refused.body["error"]["state"] == stage
    assert (action in operations_runs.allowed(run)) == (verdict == "ask")
    if verdict == "pending" or (stage == Stage.TRAINED and action in ("approve", "reject")):
        return  # whether people decide there at all, the gate says
    run.asked = Ask(action, "alice", START)
    step = next_step(run, Observation(endpoint_state="Succeeded"), START + timedelta(minutes=1))
    assert isinstance(step, Forget) == (verdict != "ask"), (verdict, step)


@pytest.mark.parametrize(("action", "step"), [("approve", Move), ("reject", Finish), ("cancel", Finish)])
def test_what_is_asked_at_the_gate_is_done_at_the_next_look(
    office: Office, action: str, step: type[Move] | type[Finish]
) -> None:
    office.store.put(a_run(1, Stage.TRAINED))
    office.post(f"runs/support-000000000001/{action}")
    found = next_step(office.run("support-000000000001"), Observation(), START + timedelta(minutes=1))
    assert isinstance(found, step)
    assert "by alice" in found.reason


# --- two at once ---


def meanwhile(office: Office, change: Callable[[Run], None]) -> None:
    """Have another save its change of the first run between the next request's reading and its saving."""

    def save() -> None:
        run = office.run("support-000000000001")
        change(run)
        office.store.put(run)

    office.store.meanwhile = save


def asks(action: operations_runs.Action) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        run.asked = Ask(action, "bob", START)

    return change


def test_of_two_approvals_at_once_the_first_is_kept(office: Office) -> None:
    office.store.put(a_run(1, Stage.TRAINED))
    meanwhile(office, asks("approve"))
    status, answer = office.post("runs/support-000000000001/approve")
    assert (status, answer["run"]["asked"]["by"]) == (202, "bob")


def test_a_rejection_that_comes_second_is_told_of_the_approval(office: Office) -> None:
    office.store.put(a_run(1, Stage.TRAINED))
    meanwhile(office, asks("approve"))
    status, answer = office.post("runs/support-000000000001/reject")
    assert (status, answer["error"]["code"]) == (409, "already_asked")
    assert "approve, asked for by bob" in answer["error"]["message"]


def test_an_approval_while_the_run_is_being_cancelled_is_refused(office: Office) -> None:
    office.store.put(a_run(1, Stage.TRAINED))
    meanwhile(office, asks("cancel"))
    status, answer = office.post("runs/support-000000000001/approve")
    assert (status, answer["error"]["code"]) == (409, "already_asked")
    meanwhile(office, lambda run: run.move(Stage.CANCELLED, "cancelled", START))
    office.run("support-000000000001").asked = None
    assert office.post("runs/support-000000000001/approve")[1]["error"]["state"] == "cancelled"


def test_a_cancellation_wins_over_an_approval_that_is_not_done_yet(office: Office) -> None:
    office.store.put(a_run(1, Stage.TRAINED))
    meanwhile(office, asks("approve"))
    status, answer = office.post("runs/support-000000000001/cancel")
    assert (status, answer["run"]["asked"]["action"]) == (202, "cancel")


def test_a_cancellation_that_comes_when_the_run_has_just_gone_live_is_refused(office: Office) -> None:
    office.store.put(a_run(1, Stage.SHIFTING))
    meanwhile(office, lambda run: run.move(Stage.LIVE, "live", START))
    assert office.post("runs/support-000000000001/cancel")[1]["error"]["state"] == "live"


def test_a_run_that_moves_all_the_time_is_busy_and_not_asked_for_ever(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.store.put(a_run(1, Stage.TRAINING))
    monkeypatch.setattr(operations_runs.time, "sleep", lambda _: meanwhile(office, lambda run: None))
    meanwhile(office, lambda run: None)
    answer = office.ask("POST", "runs/support-000000000001/cancel")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


# --- rollback ---


@pytest.fixture
def served(office: Office) -> list[Run]:
    """Three models that were live one after the other; the third still is, the second's deployment is still there."""
    runs = [a_run(1, Stage.RETIRED), a_run(2, Stage.RETIRED), a_run(3, Stage.LIVE)]
    for run in runs:
        office.store.put(run)
        office.ml.register(run)
    office.ml.deploy(runs[1])
    office.ml.deploy(runs[2])
    return runs


def test_a_rollback_is_a_run_that_releases_the_model_that_served_before(office: Office, served: list[Run]) -> None:
    status, answer = office.post("models/support/rollback", {"note": "it is rude"})
    run = office.run(answer["run"]["id"])
    assert status == 202
    assert (run.stage, run.release_of, run.version) == (Stage.APPROVED, served[1].id, served[1].model_version)
    assert (run.model_version, run.deployment, run.place) == (run.version, served[1].deployment, served[1].deployment)
    assert run.recipe == served[1].recipe
    assert run.numbers == {"model_uri": served[1].numbers["model_uri"]}  # and not what an earlier deployment answered
    assert run.dataset.uploaded_at == run.received_at > served[2].dataset.uploaded_at
    assert "asked for by alice: it is rude" in run.history[-1].reason
    assert office.woken == [run.id]


def test_a_rollback_to_a_version_whose_deployment_is_gone_makes_one_of_its_own(
    office: Office, served: list[Run]
) -> None:
    run = office.post("models/support/rollback", {"version": served[0].model_version})[1]["run"]
    assert office.run(run["id"]).release_of == served[0].id
    assert run["deployment"] == f"r-{run['id'][-12:]}"


def test_asking_for_a_rollback_twice_gives_one_run(office: Office, served: list[Run]) -> None:
    answers = [office.post("models/support/rollback") for _ in range(2)]
    answers.append(office.post("models/support/rollback", {"version": served[1].model_version}))
    assert [status for status, _ in answers] == [202] * 3
    assert len({answer["run"]["id"] for _, answer in answers}) == 1
    assert len(office.store.records) == 4


def test_of_two_rollbacks_at_the_same_moment_one_is_made(office: Office, served: list[Run]) -> None:
    def other(version: str) -> Callable[[], None]:
        return lambda: rollback.roll_back(office.store, "support", version, "bob") and None

    office.store.meanwhile = other(served[1].model_version)
    status, answer = office.post("models/support/rollback", {"version": served[1].model_version})
    assert status == 202
    assert "asked for by bob" in answer["run"]["reason"]
    assert len(office.store.records) == 4


def test_of_two_at_the_same_moment_for_different_versions_the_second_is_told_of_the_first(
    office: Office, served: list[Run]
) -> None:
    office.store.meanwhile = lambda: rollback.roll_back(office.store, "support", "", "bob") and None
    status, answer = office.post("models/support/rollback", {"version": served[0].model_version})
    assert (status, answer["error"]["code"]) == (409, "release_under_way")
    first = answer["error"]["run_id"]
    assert first in answer["error"]["message"]
    assert office.run(first).version == served[1].model_version
    assert len(office.store.records) == 4


@pytest.mark.parametrize("stage", sorted(operations_runs.PASSED_GATE))
def test_while_a_release_is_under_way_a_rollback_and_a_retirement_name_the_run_to_cancel(
    office: Office, served: list[Run], stage: Stage
) -> None:
    office.store.put(a_run(4, stage))
    for path in ("rollback", "retire"):
        status, answer = office.post(f"models/support/{path}")
        assert (status, answer["error"]["state"]) == (409, stage)
        assert answer["error"]["run_id"] == "support-000000000004"
        assert "cancel" in answer["error"]["message"]


def test_a_training_under_way_is_no_obstacle(office: Office, served: list[Run]) -> None:
    office.store.put(a_run(4, Stage.TRAINING))
    assert office.post("models/support/rollback")[0] == 202


def test_what_serves_already_is_not_released_again(office: Office, served: list[Run]) -> None:
    status, answer = office.post("models/support/rollback", {"version": served[2].model_version})
    assert (status, answer["run"]["id"]) == (200, served[2].id)
    assert len(office.store.records) == 3


def end(office: Office, id: str, stage: Stage) -> Run:
    """Bring a rollback to its end, as the state machine would."""
    run = office.run(id)
    if stage == Stage.LIVE:
        for other, _ in list(office.store.records.values()):
            if other.stage == Stage.LIVE and other.id != id:
                other.move(Stage.RETIRED, f"replaced by {id}", START + timedelta(hours=1))
                office.store.put(other)
    run.move(stage, "it has ended", START + timedelta(hours=1))
    return office.store.put(run)


def test_after_a_rollback_that_failed_another_can_be_asked_for(office: Office, served: list[Run]) -> None:
    ids = []
    for _ in range(3):
        ids.append(office.post("models/support/rollback")[1]["run"]["id"])
        end(office, ids[-1], Stage.FAILED)
    assert len(set(ids)) == 3


def test_the_way_back_and_forth_is_a_run_each_and_never_a_guess(office: Office, served: list[Run]) -> None:
    back = end(office, office.post("models/support/rollback")[1]["run"]["id"], Stage.LIVE)
    status, answer = office.post("models/support/rollback")  # a client that repeats itself must not go forth again
    assert (status, answer["error"]["code"]) == (409, "version_needed")
    forth = office.post("models/support/rollback", {"version": served[2].model_version})[1]["run"]["id"]
    again = end(office, forth, Stage.LIVE)
    third = office.post("models/support/rollback", {"version": served[1].model_version})[1]["run"]["id"]
    assert len({back.id, again.id, third}) == 3
    assert office.run(third).release_of == served[1].id  # not the rollback: the run that trained it


def test_a_retired_model_comes_back_by_a_rollback_again_and_again(office: Office, served: list[Run]) -> None:
    ids = []
    for id in (served[2].id, None, None):
        live = office.run(id or ids[-1])
        live.move(Stage.RETIRED, "retired", START + timedelta(hours=2))
        office.store.put(live)
        ids.append(office.post("models/support/rollback")[1]["run"]["id"])
        assert office.run(ids[-1]).version == served[2].model_version
        end(office, ids[-1], Stage.LIVE)
    assert len(set(ids)) == 3


@pytest.mark.parametrize("version", ["99", "20261121100100000", "x", "../1"])
def test_a_version_that_is_not_there_is_refused(office: Office, served: list[Run], version: str) -> None:
    del office.ml.registered["support", served[0].model_version]
    assert office.post("models/support/rollback", {"version": version})[0] in (400, 404)
    assert len(office.store.records) == 3


def test_the_first_model_has_nothing_before_it(office: Office) -> None:
    office.store.put(a_run(1, Stage.LIVE))
    status, answer = office.post("models/support/rollback")
    assert (status, answer["error"]["code"]) == (409, "nothing_before")


def test_what_the_service_has_tuned_is_found_by_its_time(office: Office) -> None:
    old, new = a_run(1, Stage.RETIRED, recipe={"engine": "service"}), a_run(2, Stage.LIVE, recipe={"engine": "service"})
    old.numbers["model_uri"], new.numbers["model_uri"] = f"azureml:{old.id}:1", f"azureml:{new.id}:1"
    for run in (old, new):
        office.store.put(run)
        office.ml.registered[run.id, "1"] = {"run_id": run.id, "archived": False}
    made = office.run(office.post("models/support/rollback", {"version": old.model_version})[1]["run"]["id"])
    assert (made.release_of, made.version, made.place) == (old.id, old.model_version, "")
    assert made.numbers["model_uri"] == f"azureml:{old.id}:1"
    assert {each["version"] for each in office.get("models/support")["versions"]} == {
        old.model_version,
        new.model_version,
    }


# --- retire, delete ---


def test_retiring_asks_the_run_that_serves_and_is_done_once(office: Office, served: list[Run]) -> None:
    assert [office.post("models/support/retire")[0] for _ in range(2)] == [202, 202]
    live = office.run(served[2].id)
    assert live.asked is not None
    live.move(Stage.RETIRED, "retired by alice", START + timedelta(hours=1))
    live.cleanup = "endpoint"
    office.store.put(live)
    office.woken.clear()
    assert office.post("models/support/retire")[0] == 202  # its endpoint is still being deleted
    assert office.woken == [live.id]  # and asking makes it look
    live.cleanup = ""
    office.store.put(live)
    status, answer = office.post("models/support/retire")
    assert (status, answer["run"]["id"]) == (200, live.id)


def test_nothing_is_retired_where_nothing_ever_served(office: Office) -> None:
    office.store.put(a_run(1, Stage.TRAINING))
    assert office.post("models/support/retire")[1]["error"]["code"] == "not_serving"
    assert office.post("models/unknown/retire")[0] == 404


def test_a_version_is_archived_once_no_deployment_has_it(office: Office, served: list[Run]) -> None:
    def delete(run: Run) -> httpx.Response:
        return office.ask("DELETE", f"models/support/versions/{run.model_version}")

    assert [delete(run).status_code for run in served] == [200, 409, 409]
    assert "deployment r-000000000002" in delete(served[1]).json()["error"]["message"]
    assert delete(served[2]).json()["error"]["state"] == "live"
    assert delete(served[0]).status_code == 200  # once more
    assert delete(a_run(9)).status_code == 404
    listed = [each["version"] for each in office.get("models/support")["versions"]]
    assert listed == [served[2].model_version, served[1].model_version]
    status, answer = office.post("models/support/rollback", {"version": served[0].model_version})
    assert (status, answer["error"]["code"]) == (409, "archived")


def test_a_version_that_a_rollback_takes_at_that_moment_is_kept(office: Office, served: list[Run]) -> None:
    def roll_back() -> None:
        office.ml.meanwhile = None
        office.ml.models.restore("support", version)  # as the rollback saw it
        rollback.roll_back(office.store, "support", version, "bob")
        office.ml.models.archive("support", version)

    version = served[0].model_version
    office.ml.meanwhile = roll_back
    answer = office.ask("DELETE", f"models/support/versions/{version}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "in_use")
    assert not office.ml.registered["support", version]["archived"]


# --- poison, errors ---


@pytest.mark.parametrize(("status", "answered"), [(403, 502), (409, 503), (500, 503), (None, 503)])
def test_what_azure_says_becomes_an_answer(
    office: Office, monkeypatch: pytest.MonkeyPatch, status: int | None, answered: int
) -> None:
    def refused(*_: Any) -> Any:
        error = HttpResponseError("AuthorizationFailed: no role\nand more")
        error.status_code = status
        raise error

    monkeypatch.setattr(operations_runs, "get_run", refused)
    answer = office.ask("GET", "runs/support-000000000001")
    assert answer.status_code == answered
    assert ("no role" in answer.text) == (answered == 502)


def test_more_runs_than_one_request_may_look_at_are_refused(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations_runs, "MOST_LISTED", 3)
    for number in range(4):
        office.store.put(a_run(number))
    answer = office.ask("GET", "runs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_runs")


def test_kept_messages_are_listed_in_pages_and_sent_again(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [{"name": f"2026112{day}T100000Z-support-1", "run_id": "support-1"} for day in range(3)]
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(operations_poison.poison, "kept", lambda: kept)
    monkeypatch.setattr(operations_poison.poison, "replay", lambda name, by: not sent.append((name, by)))
    first = office.get("poison", limit=2)
    assert [each["name"][7] for each in first["poison"]] == ["2", "1"]
    assert [each["name"][7] for each in office.get("poison", limit=2, after=first["after"])["poison"]] == ["0"]
    assert office.post(f"poison/{kept[0]['name']}/replay")[0] == 202
    assert sent == [(kept[0]["name"], "alice")]
    monkeypatch.setattr(operations_poison.poison, "replay", lambda name, by: False)
    assert office.post("poison/gone/replay")[0] == 404


def test_versions_that_people_have_named_otherwise_do_not_spoil_the_list(office: Office) -> None:
    for number in (1, 2):
        office.ml.register(office.store.put(a_run(number, Stage.LIVE)))
    office.ml.registered["support", "by-hand"] = {"run_id": "", "archived": False}
    first = office.get("models/support", limit=1)
    second = office.get("models/support", limit=1, after=first["after"])
    assert [each["run_id"] for page in (first, second) for each in page["versions"]] == [
        "support-000000000002",
        "support-000000000001",
    ]
    assert second["after"] is None


def test_an_error_nobody_foresaw_is_logged_and_not_shown(
    office: Office, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    note = "nobody's " + "business"

    def broken(*_: Any) -> Any:
        raise ValueError(note)

    monkeypatch.setattr(operations_runs, "get_run", broken)
    answer = office.ask("GET", "runs/support-000000000001")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] in caplog.text
    assert note not in answer.text + caplog.text


def test_a_request_that_azure_holds_up_is_answered_in_time(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "LONGEST", 0.05)
    monkeypatch.setattr(operations_runs, "get_run", lambda *_: time.sleep(0.3))
    answer = office.ask("GET", "runs/support-000000000001")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")


@given(st.binary(max_size=200))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        fields = operations_answers.read_body(body, "note", "version")
    except Refused as refused:
        assert refused.status == 400
    else:
        assert set(fields) <= {"note", "version"}


# --- docs/operations.md ---


def test_every_route_is_documented() -> None:
    for route in application(operations.blueprint).routes:
        path = route.path.removeprefix("/api/operations/")  # type: ignore[attr-defined]
        methods = route.methods - {"HEAD"}  # type: ignore[attr-defined]
        for action in operations.ACTIONS if "{action}" in path else [""]:
            asked = f"`{''.join(methods)} {path.replace('{action}', action)}"
            assert asked in DOCUMENT, asked
    assert f"more than {operations_answers.MAX_BODY_BYTES >> 10} KiB" in DOCUMENT
    assert (
        f"`limit` is {operations_answers.DEFAULT_PAGE} unless given, {operations_answers.LARGEST_PAGE} at most"
        in DOCUMENT
    )


def test_the_documents_examples_run_as_they_are_printed(
    office: Office, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number, stage in ((1, Stage.TRAINED), (2, Stage.TRAINED), (3, Stage.TRAINING), (4, Stage.FAILED)):
        office.store.put(a_run(number, stage))
    for model in ("billing", "sales", "legal"):
        for run in (a_run(1, Stage.RETIRED, model=model), a_run(2, Stage.LIVE, model=model)):
            office.ml.register(office.store.put(run))
    monkeypatch.setattr(operations_poison.poison, "kept", list)
    monkeypatch.setattr(operations_poison.poison, "replay", lambda name, by: True)
    script = "".join(re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL))
    (tmp_path / ".curlrc").write_text('write-out = "\\n%{http_code}\\n"\n')
    with served_at(application(operations.blueprint)) as url:
        environment = {
            "APP_BASE_URL": url,
            "OPERATOR_API_KEY": office.key,
            "CURL_HOME": str(tmp_path),
            "PATH": "/usr/bin:/bin",
        }
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.stderr == ""
    statuses = [line for line in done.stdout.splitlines() if re.fullmatch(r"\d{3}", line)]
    asked = [line for line in script.splitlines() if line.startswith("operate ")]
    expected = ["202" if " -X POST " in line else "200" for line in asked]
    assert list(zip(asked, statuses, strict=True)) == list(zip(asked, expected, strict=True)), done.stdout

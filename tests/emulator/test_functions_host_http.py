"""HTTP triggers, keys, the admin API and Event Grid webhooks of the local Functions host."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from host_processes import Azurite, Host, running_host, wait_until

pytest_plugins = ("host_fixtures",)


@pytest.fixture(scope="module")
def classic(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("classic")
    with running_host("classic", folder, azurite.connection_string, "http-tests") as host:
        yield host


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with running_host("streaming", tmp_path_factory.mktemp("streaming")) as host:
        yield host


def test_route_parameters_query_and_context_reach_a_sync_function_in_the_pool(classic: Host) -> None:
    response = classic.get("/api/greet/ada?x=1", "the-host-key")
    facts = response.json()
    assert (facts["name"], facts["query"], facts["function"]) == ("ada", {"x": "1"}, "greet")
    assert facts["in_pool"]
    assert response.headers["x-seen"] == "yes"
    assert response.headers["content-type"] == "application/json"
    assert f"function=greet id={facts['invocation']} outcome=succeeded" in classic.log()


def test_a_literal_route_wins_over_a_parameter(classic: Host) -> None:
    assert classic.get("/api/greet/admin", "the-host-key").text == "literal"


def test_catch_all_bodies_and_str_results(classic: Host) -> None:
    assert classic.get("/api/files/a/b%20c.txt").text == "a/b c.txt"
    assert classic.get("/api/files").text == ""
    body = bytes(range(256))
    response = classic.request("POST", "/api/echo", content=body)
    assert (response.status_code, response.content) == (201, body)


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/api/greet/x", None, 401),
        ("/api/greet/x", "wrong", 401),
        ("/api/greet/x", "the-system-key", 401),
        ("/api/greet/x", "the-host-key", 200),
        ("/api/greet/x", "the-master", 200),
        ("/api/secret", "the-host-key", 401),
        ("/api/secret", "the-master", 200),
        ("/admin/functions", None, 401),
        ("/admin/functions", "the-host-key", 401),
        ("/admin/host/status", "the-master", 200),
        ("/api/echo", None, 404),  # a GET, which no function takes
        ("/api/unknown", None, 404),
        ("/", None, 200),
    ],
)
def test_keys_open_what_their_level_allows(classic: Host, path: str, key: str | None, status: int) -> None:
    assert classic.get(path, key).status_code == status
    assert classic.get(path, params={"code": key} if key else None).status_code == status


@pytest.mark.parametrize("path", ["/api/fail", "/api/nothing"])
def test_a_failing_function_is_an_empty_500_and_a_traceback_in_the_log(classic: Host, path: str) -> None:
    response = classic.get(path)
    assert (response.status_code, response.content) == (500, b"")
    name = path.rpartition("/")[2]
    assert f"event=exception function={name}" in classic.log()
    assert f"function={name} id=" in classic.log().rpartition("outcome=failed")[0]


def test_the_log_has_paths_but_neither_keys_nor_bodies(classic: Host) -> None:
    classic.get("/api/greet/x?code=the-host-key")
    classic.request("POST", "/api/echo", content=b"the-body")
    log = wait_until(lambda: "path=/api/echo status=201" in classic.log() and classic.log(), "the access line")
    assert "path=/api/greet/x status=200" in log
    assert not [secret for secret in ("the-host-key", "the-master", "the-system-key", "the-body") if secret in log]


def test_the_admin_api_lists_functions_with_their_triggers(classic: Host) -> None:
    functions = {row["name"]: row for row in classic.get("/admin/functions", "the-master").json()}
    kinds = {name: row["config"]["bindings"][-1]["type"] for name, row in functions.items()}
    assert kinds["on_event"] == "eventGridTrigger"
    assert kinds["tick"] == "timerTrigger"
    # Settings are resolved in the list, as in the bindings that run.
    assert functions["work"]["config"]["bindings"][0]["queueName"] == "http-tests"
    assert functions["greet"]["invoke_url_template"].endswith("/api/greet/{name}")


def _webhook(host: Host, events: Any, kind: str = "Notification", **query: str) -> httpx.Response:
    query = {"functionName": "on_event", "code": "the-system-key"} | query
    headers = {"aeg-event-type": kind, "content-type": "application/json"}
    path = "/runtime/webhooks/eventgrid"
    return host.request("POST", path, params=query, content=json.dumps(events), headers=headers)


def _event(identity: str, **data: Any) -> dict[str, Any]:
    return {
        "id": identity, "topic": "/t", "subject": "/s", "eventType": "T", "eventTime": "2026-11-21T10:00:00.123Z",
        "data": data, "dataVersion": "1", "metadataVersion": "1",
    }  # fmt: skip


def test_a_batch_is_accepted_once_all_of_it_ran(classic: Host) -> None:
    assert _webhook(classic, [_event("a1", seconds=0.2), _event("a2")]).status_code == 202
    assert classic.records("event-done", id="a1")
    assert classic.records("event-done", id="a2")


def test_one_failure_fails_the_batch_so_that_it_is_resent(classic: Host) -> None:
    assert _webhook(classic, [_event("b1"), _event("b2", fail=True)]).status_code == 500
    assert classic.records("event-done", id="b1")


def test_cloud_events_are_decoded_as_such(classic: Host) -> None:
    event = {"specversion": "1.0", "id": "c1", "source": "/t", "subject": "/s", "type": "T", "data": {}}
    assert _webhook(classic, event).status_code == 202
    assert classic.records("event-done", id="c1")
    assert classic.records("event", id="c1", schema="CloudEvent")


def test_both_handshakes_and_unsubscribe(classic: Host) -> None:
    answer = _webhook(classic, [_event("v", validationCode="1-2-3")], "SubscriptionValidation")
    assert (answer.status_code, answer.json()) == (200, {"validationResponse": "1-2-3"})
    path = "/runtime/webhooks/eventgrid?functionName=on_event"
    options = classic.request("OPTIONS", path, "the-system-key", headers={"WebHook-Request-Origin": "eventgrid"})
    assert (options.status_code, options.headers["WebHook-Allowed-Origin"]) == (200, "eventgrid")
    assert _webhook(classic, [], "Unsubscribe").status_code == 202


def test_webhooks_need_the_system_key_and_a_known_function(classic: Host) -> None:
    assert _webhook(classic, [_event("d")], code="the-host-key").status_code == 401
    assert _webhook(classic, [_event("d")], code="").status_code == 401
    assert _webhook(classic, [_event("d")], code="the-master").status_code == 202
    assert _webhook(classic, [_event("e")], functionName="greet").status_code == 404
    assert _webhook(classic, "not a batch", "SubscriptionValidation").status_code == 400
    assert not classic.records("event", id="e")


def test_a_stream_is_sent_part_by_part(streaming: Host) -> None:
    with httpx.stream("GET", streaming.url + "/two-parts") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        parts = response.iter_text()
        assert next(parts) == "first"
        # The second part exists only after this, so the first was not held back for it.
        assert streaming.request("POST", "/release").status_code == 204
        assert next(parts) == "second"


def test_a_client_that_goes_away_closes_the_generator(streaming: Host) -> None:
    with httpx.stream("GET", streaming.url + "/endless") as response:
        parts = response.iter_text()  # kept: collecting it would close the response
        assert next(parts).startswith("more")
        assert not streaming.records("closed")
    wait_until(lambda: streaming.records("closed"), "the generator to be closed")
    wait_until(lambda: "path=/endless status=200 outcome=disconnected" in streaming.log(), "the access line")


def test_a_stream_that_breaks_is_cut_off_not_ended(streaming: Host) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        streaming.get("/breaks")
    assert "in the middle" in streaming.log()


def test_the_fastapi_request_and_plain_results_work_too(streaming: Host) -> None:
    response = streaming.request("POST", "/echo/ada", json={"x": [1]})
    assert response.json() == {"name": "ada", "body": {"x": [1]}}
    failed = streaming.get("/fail")
    assert (failed.status_code, failed.content) == (500, b"")

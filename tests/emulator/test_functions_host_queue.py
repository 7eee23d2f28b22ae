"""Queue and timer triggers of the local Functions host, against a real Azurite."""

import base64
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.queue import BinaryBase64EncodePolicy, QueueClient, QueueServiceClient
from host_processes import Azurite, Host, running_host, wait_until

pytest_plugins = ("host_fixtures",)


def _queue(azurite: Azurite, name: str, create: bool = True) -> QueueClient:
    client = QueueClient.from_connection_string(
        azurite.connection_string, name, message_encode_policy=BinaryBase64EncodePolicy()
    )
    if create:
        client.create_queue()
    return client


def _send(queue: QueueClient, task: str, **facts: object) -> None:
    queue.send_message(json.dumps({"id": task, **facts}).encode())


def _is_empty(queue: QueueClient) -> bool:
    return queue.get_queue_properties().approximate_message_count == 0


def test_many_messages_each_run_once_and_are_gone(azurite: Azurite, tmp_path: Path) -> None:
    queue = _queue(azurite, "many")
    with running_host("classic", tmp_path, azurite.connection_string, "many") as host:
        for number in range(60):
            _send(queue, f"t{number}", seconds=0.01)
        wait_until(lambda: _is_empty(queue), "the queue to be empty")
        done = host.records("work-done")
        assert sorted(row["task"] for row in done) == sorted(f"t{number}" for number in range(60))
        assert {row["tries"] for row in done} == {1}
        assert done[0]["inserted"].endswith("+00:00")


def test_a_queue_may_come_into_being_after_the_host(azurite: Azurite, tmp_path: Path) -> None:
    with running_host("classic", tmp_path, azurite.connection_string, "later") as host:
        _send(_queue(azurite, "later"), "t")
        wait_until(lambda: host.records("work-done", task="t"), "the message")


def test_a_str_parameter_gets_the_decoded_text(azurite: Azurite, tmp_path: Path) -> None:
    queue = _queue(azurite, "plain-text")
    with running_host("classic", tmp_path, azurite.connection_string, "plain") as host:
        queue.send_message("grüße".encode())
        wait_until(lambda: host.records("text", text="grüße"), "the message")


def test_a_failed_message_comes_back_until_it_succeeds(azurite: Azurite, tmp_path: Path) -> None:
    queue = _queue(azurite, "retried")
    with running_host("classic", tmp_path, azurite.connection_string, "retried") as host:
        _send(queue, "t", fail_before=3)
        wait_until(lambda: host.records("work-done", task="t", tries=3), "the third try")
        wait_until(lambda: _is_empty(queue), "the queue to be empty")
        assert [row["tries"] for row in host.records("work", task="t")] == [1, 2, 3]


def test_after_five_tries_a_message_lies_in_the_poison_queue(azurite: Azurite, tmp_path: Path) -> None:
    queue, poison = _queue(azurite, "poisoned"), _queue(azurite, "poisoned-poison", create=False)
    with running_host("classic", tmp_path, azurite.connection_string, "poisoned") as host:
        _send(queue, "bad", fail_before=99)
        wait_until(lambda: "event=poison queue=poisoned" in host.log(), "the poison line")
        assert [row["tries"] for row in host.records("work", task="bad")] == [1, 2, 3, 4, 5]
        (message,) = poison.receive_messages()
        assert json.loads(base64.b64decode(message.content))["id"] == "bad"
        assert _is_empty(queue)
        # One that is not base64 cannot be decoded by any try.
        QueueClient.from_connection_string(azurite.connection_string, "poisoned").send_message("not base64!")
        wait_until(lambda: host.log().count("event=poison queue=poisoned") == 2, "the second poison line")


def test_what_fails_in_a_poison_queue_stays_there(azurite: Azurite, tmp_path: Path) -> None:
    queue = _queue(azurite, "sick-poison")
    flags = ("--queue-lease-seconds", "1")
    with running_host("classic", tmp_path, azurite.connection_string, "sick-poison", *flags) as host:
        _send(queue, "bad", fail_before=99)
        wait_until(lambda: len(host.records("work", task="bad")) == 2, "the second try, once the lease has ended")
    service = QueueServiceClient.from_connection_string(azurite.connection_string)
    assert [each.name for each in service.list_queues(name_starts_with="sick-poison")] == ["sick-poison"]
    assert not _is_empty(queue)


def test_a_long_run_keeps_its_message_invisible(azurite: Azurite, tmp_path: Path) -> None:
    queue = _queue(azurite, "long")
    flags = ("--queue-lease-seconds", "1")
    with running_host("classic", tmp_path, azurite.connection_string, "long", *flags) as host:
        _send(queue, "t", seconds=3)
        wait_until(lambda: host.records("work-done", task="t"), "the end")
        wait_until(lambda: _is_empty(queue), "the queue to be empty")
        assert len(host.records("work", task="t")) == 1


def test_a_message_survives_a_host_killed_in_the_middle(azurite: Azurite, tmp_path: Path) -> None:
    queue = _queue(azurite, "killed")
    flags = ("--queue-lease-seconds", "1")
    with running_host("classic", tmp_path, azurite.connection_string, "killed", *flags, WORK_SECONDS="60") as host:
        _send(queue, "t")
        wait_until(lambda: host.records("work", task="t"), "the start")
        first = host.process.pid
        host.stop(signal.SIGKILL)
    with running_host("classic", tmp_path, azurite.connection_string, "killed", *flags) as host:
        (done,) = wait_until(lambda: host.records("work-done", task="t"), "the second try")
        assert done["pid"] != first
        assert done["tries"] >= 2
        wait_until(lambda: _is_empty(queue), "the queue to be empty")


def test_a_stop_lets_running_functions_end(azurite: Azurite, tmp_path: Path) -> None:
    queue = _queue(azurite, "stopped")
    with running_host("classic", tmp_path, azurite.connection_string, "stopped") as host:
        _send(queue, "t", seconds=1)
        wait_until(lambda: host.records("work", task="t"), "the start")
        assert host.stop() == 0, host.log()
        assert host.records("work-done", task="t")
        assert _is_empty(queue)


@pytest.fixture
def ticking(azurite: Azurite, tmp_path: Path) -> Iterator[Host]:
    with running_host("classic", tmp_path, azurite.connection_string, "ticking", TICK="* * * * * *") as host:
        yield host


def test_a_timer_runs_by_its_schedule_and_never_beside_itself(ticking: Host) -> None:
    wait_until(lambda: len(ticking.records("tick-done")) >= 2, "two ticks")
    starts = [row["at"] for row in ticking.records("tick")]
    ends = [row["at"] for row in ticking.records("tick-done")]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    # It waited for whole seconds, not for any.
    assert all(start % 1 < 0.5 for start in starts)


def test_a_timer_runs_at_startup_and_follows_its_retry_policy(ticking: Host) -> None:
    wait_until(lambda: "function=at_start" in ticking.log().rpartition("outcome=succeeded")[0], "the third attempt")
    assert [row["attempt"] for row in ticking.records("start")] == [0, 1, 2]

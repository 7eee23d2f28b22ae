"""kill -9 of the control process while a job is fetched, runs, is stored or waits: started again, and never twice."""

import itertools
import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import requests
from azure.ai.ml import Input, MLClient, Output
from azure.ai.ml.entities import AmlCompute
from host_processes import wait_until
from job_helpers import Arm, client, completed, log, status, submit, wait

from emulator.supervisor import MAX_RESTARTS, RESTART_WINDOW
from tests.local_azure import LocalAzure

MANY = 1500  # files: their transfer takes long enough to be caught in it
KILLS: list[float] = []
# Appends a line when it starts; a second one at the same time cannot take the lock, and says so.
ALONE = "exec 9>>{folder}/lock; flock -n 9 && echo ran >> {folder}/starts || echo TWICE >> {folder}/starts; "


@pytest.fixture(scope="module")
def ml(azure: LocalAzure) -> MLClient:
    ml = client(azure)
    ml.compute.begin_create_or_update(AmlCompute(name="cpu", size="Standard_DS3_v2", max_instances=2)).result()
    return ml


def kill_control(azure: LocalAzure) -> None:
    """Kill the control process and return when its successor answers."""

    def pid() -> int:
        state = json.loads((azure.home / "state.json").read_text(encoding="utf-8"))
        return int(state["processes"]["control"]["pid"])

    # The supervisor gives up on a part that ends more often than this.
    wait_until(lambda: sum(time.monotonic() - at < RESTART_WINDOW for at in KILLS) < MAX_RESTARTS, "time", 70)
    KILLS.append(time.monotonic())
    killed = pid()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: pid() != killed, "another control process", 30)
    health = Arm.address(azure) + "/_emulator/health"

    def healthy() -> bool:
        try:
            return requests.get(health, timeout=2).ok
        except requests.ConnectionError:
            return False

    wait_until(healthy, "the control process's health", 60)


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().split()


def test_a_running_job_is_killed_and_started_again(azure: LocalAzure, ml: MLClient, tmp_path: Path) -> None:
    line = ALONE.format(folder=tmp_path) + (
        "if [ -e ${{outputs.state}}/once ]; then echo again; exit; fi; touch ${{outputs.state}}/once; sleep 987"
    )
    submit(ml, "running", line, outputs={"state": Output(type="uri_folder")})
    wait(ml, "running", "Running")
    wait_until(lambda: (azure.home / "jobs/running/outputs/state/once").exists(), "the job's checkpoint")
    kill_control(azure)
    completed(ml, "running")
    assert starts(tmp_path) == ["ran", "ran"]
    assert log(azure, "running") == "again\n"


def test_a_job_that_waits_for_a_node_keeps_waiting(azure: LocalAzure, ml: MLClient, tmp_path: Path) -> None:
    for number in (1, 2):
        submit(ml, f"holder-{number}", "sleep 987")
        wait(ml, f"holder-{number}", "Running")
    submit(ml, "waiting", ALONE.format(folder=tmp_path))
    wait(ml, "waiting", "Queued")
    kill_control(azure)
    assert status(ml, "waiting") == "Queued"  # it came after those which run again
    wait(ml, "holder-2", "Running")
    assert not (tmp_path / "starts").exists()
    ml.jobs.begin_cancel("holder-1").result()
    completed(ml, "waiting")
    assert starts(tmp_path) == ["ran"]
    ml.jobs.begin_cancel("holder-2").result()
    assert status(ml, "holder-1") == status(ml, "holder-2") == "Canceled"


def test_a_job_whose_outputs_are_being_stored_is_not_run_again(azure: LocalAzure, ml: MLClient, tmp_path: Path) -> None:
    line = ALONE.format(folder=tmp_path) + f"cd ${{{{outputs.many}}}}; for i in $(seq {MANY}); do echo $i > $i; done"
    submit(ml, "storing", line, outputs={"many": Output(type="uri_folder", name="many")})
    wait(ml, "storing", "Finalizing")
    kill_control(azure)
    completed(ml, "storing")
    assert starts(tmp_path) == ["ran"]
    stored = azure.storage.get_container_client("azureml-blobstore-local").list_blob_names(
        name_starts_with="azureml/storing/many/"
    )
    assert len(list(stored)) == MANY
    assert [asset.version for asset in ml.data.list(name="many")] == ["1"]


def test_a_job_whose_inputs_are_being_fetched_starts_again(azure: LocalAzure, ml: MLClient, tmp_path: Path) -> None:
    inputs = {"many": Input(type="uri_folder", path="azureml://jobs/storing/outputs/many")}
    submit(ml, "fetching", ALONE.format(folder=tmp_path) + "ls ${{inputs.many}} | wc -l", inputs=inputs)
    wait(ml, "fetching", "Preparing")
    kill_control(azure)
    completed(ml, "fetching")
    assert starts(tmp_path) == ["ran"]
    assert log(azure, "fetching").strip() == str(MANY)


def test_ten_thousand_jobs_are_listed_page_by_page(azure: LocalAzure, ml: MLClient) -> None:
    with sqlite3.connect(azure.home / "resources.db") as database:
        row = database.execute("SELECT parent, body, internal FROM resources WHERE id LIKE '%/jobs/storing'").fetchone()
        parent, body, internal = row
        copies = []
        for number in range(10_000):
            copy = json.loads(body)
            copy["properties"]["tags"] = {"number": str(number), **({"rare": "yes"} if number == 17 else {})}
            name = f"copy-{number}"
            copies.append((f"{parent}/{name}", parent, name, json.dumps(copy), internal, 100_000 + number))
        database.executemany(
            "INSERT INTO resources (id, parent, name, body, internal, created, modified, sequence)"
            " VALUES (?, ?, ?, ?, ?, '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z', ?)",
            copies,
        )
    database.close()
    newest = [job.name for job in itertools.islice(ml.jobs.list(), 120)]
    assert newest == [f"copy-{number}" for number in range(9_999, 9_879, -1)]
    arm = Arm(azure)
    started = time.monotonic()
    assert [job["name"] for job in arm.call("GET", "jobs", tag="rare").json()["value"]] == ["copy-17"]
    last = arm.call("GET", "jobs", **{"$skip": "9990"}).json()["value"]
    assert last[0]["name"] == "copy-9"
    assert time.monotonic() - started < 2


def test_no_moment_of_a_kill_lets_a_job_run_twice_or_get_lost(azure: LocalAzure, ml: MLClient, tmp_path: Path) -> None:
    """A kill at a moment as it comes, of several jobs at once, among ten thousand that have ended."""
    folders = [tmp_path / str(number) for number in range(4)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        submit(ml, f"any-{number}", ALONE.format(folder=folder) + "sleep 0.5")
    kill_control(azure)
    for number, folder in enumerate(folders):
        completed(ml, f"any-{number}")
        assert set(starts(folder)) == {"ran"}


def test_a_cancelled_job_stays_cancelled(azure: LocalAzure, ml: MLClient, tmp_path: Path) -> None:
    line = ALONE.format(folder=tmp_path) + "trap '' TERM; while true; do sleep 0.1; done"
    submit(ml, "stubborn", line)
    wait(ml, "stubborn", "Running")
    wait_until(lambda: (tmp_path / "starts").exists(), "the job's start")
    ml.jobs.begin_cancel("stubborn")
    wait(ml, "stubborn", "CancelRequested")
    kill_control(azure)
    assert wait(ml, "stubborn") == "Canceled"
    assert starts(tmp_path) == ["ran"]

"""The release's calls over the real SDK: what is registered, what is deployed, and what a check of it finds."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from azure.ai.ml import MLClient

from function_app import (
    azure_clients,
    deployment_spec,
    lineage,
    live_record,
    release,
    release_managed,
    stray_traffic,
)
from function_app import serving_environment as environment
from function_app.errors import StepError, TransientError, UserError
from function_app.recipe import Recipe, read_recipe
from function_app.runs import BlobRunStore, DatasetVersion, Run, Stage, new_run
from function_app.settings import settings
from tests.local_azure import LocalAzure, forget_clients, until

A100 = "Standard_NC24ads_A100_v4"
PHI = "azureml://registries/azureml/models/Phi-3.5-mini-instruct"
# Stands in for both servers of serving/: says what it was asked, and by which of the two it was built.
SERVER = """
import http.server, json, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer({})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked = body["messages"][-1]["content"]
        if asked == "Slow?":
            time.sleep(0.4)
        said = "" if asked == "Silent?" else f"{asked} I am {os.environ['MODEL_NAME']} by KIND."
        self.answer({"choices": [{"message": {"role": "assistant", "content": said}}]})
    def answer(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
DOCKERFILE = 'FROM python:3.11\nENV PORT=5001\nCMD ["python", "server.py"]\n'


@pytest.fixture(scope="module", autouse=True)
def _this_local_azure(azure: LocalAzure, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The app's clients are those of this module's local Azure, and its build contexts are small."""
    serving = tmp_path_factory.mktemp("serving")
    for folder, kind in ((serving, "transformers"), (serving / "vllm", "vllm")):
        folder.mkdir(exist_ok=True)
        (folder / "server.py").write_text(SERVER.replace("KIND", kind))
        (folder / "Dockerfile").write_text(DOCKERFILE)
    (serving / environment.SHARED).write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "SERVING", serving)
        forget_clients()
        yield
        forget_clients()


def trained(azure: LocalAzure, recipe: str = "", model: str = "support", samples: Any = None) -> Run:
    """A run whose job has completed, with a model of three bytes."""
    now = datetime.now(UTC)
    run = new_run(model, DatasetVersion(f"{model}/a.jsonl", f"0x{time.monotonic_ns()}", 14, now), now)
    run.recipe = msgspec.to_builtins(read_recipe(recipe))
    place = f"models/{run.id}"
    azure.storage.get_blob_client("runs", f"{place}/MLmodel").upload_blob(b"{}\n")
    run.numbers = {
        "model_uri": f"{azure.storage.get_container_client('runs').url}/{place}",
        "dataset": {"train": 103, "eval": 17},
        "eval": {"base": {"loss": 2.0}, "tuned": {"loss": 1.23456789, "exact_match": None}},
        "samples": samples or [],
        "context_length": 4096,
    }
    return run


def sample(question: str, tuned: str | None) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "tuned": tuned}


def deployed(run: Run) -> Run:
    """As the state machine does it, up to the deployment that is ready."""
    release.register(run)
    if release.observe_endpoint(run)[0] == "":
        release.create_endpoint(run)
    until(lambda: release.observe_endpoint(run)[0] == "Succeeded")
    release.create_deployment(run, msgspec.convert(run.recipe, Recipe))

    def ready() -> bool:
        seen = release.observe_deployment(run)
        assert seen is None or seen.state != "Failed", seen
        return seen is not None and seen.state == "Succeeded"

    until(ready)
    run.stage = Stage.SHIFTING
    return run


def test_a_model_is_registered_once_by_however_many_with_where_it_comes_from(azure: LocalAzure, ml: MLClient) -> None:
    run = trained(azure, "base_model: embedded")
    with ThreadPoolExecutor(4) as threads:
        made = set(threads.map(lambda _: release.register(run), range(4)))
    assert made == {("support", run.model_version)}
    assert [each.version for each in ml.models.list("support") if each.version == run.model_version] == [
        run.model_version
    ]
    tags = ml.models.get("support", run.model_version).tags
    expected = {
        "run_id": run.id, "job": run.id, "dataset": "support/a.jsonl", "dataset_etag": run.dataset.etag,
        "base_model": "embedded", "engine": "command", "method": "full", "loss": "1.23457", "base_loss": "2",
        "train_records": "103", "eval_records": "17", "context_length": "4096",
    }  # fmt: skip
    assert expected.items() <= tags.items()
    assert len(tags["recipe"]) == 12
    assert "exact_match" not in tags


def test_tags_are_no_longer_than_azure_takes(azure: LocalAzure) -> None:
    run = trained(azure)
    run.dataset = DatasetVersion("support/" + "x" * 900 + "/end.jsonl", "0x1", 1, run.received_at)
    tags = lineage.of_model(run)
    assert max(map(len, tags.values())) <= 256
    assert tags["dataset"].endswith("/end.jsonl")


def test_the_recipe_makes_the_deployment_and_it_is_verified_alone(azure: LocalAzure, ml: MLClient) -> None:
    serving = "serving: {max_concurrent_requests: 3, request_timeout_seconds: 12.5, max_queue_wait_seconds: 0, "
    serving += "startup_minutes: 20, probe_seconds: 7, probe_timeout_seconds: 3, probe_failures: 4}"
    samples = [sample("Who?", "Who? I am support by transformers."), sample("Slow?", "Slow? I am support by nobody.")]
    first = deployed(trained(azure, serving, samples=samples))
    there = ml.online_deployments.get(first.deployment, release.endpoint_name(first))
    assert there.instance_type == settings().serving_instance_type
    assert there.environment_variables["MODEL_NAME"] == "support"
    limits = there.request_settings
    assert (limits.request_timeout_ms, limits.max_queue_wait_ms, limits.max_concurrent_requests_per_instance) == (
        *(13000, 0, 3),
    )
    ready, alive = there.readiness_probe, there.liveness_probe
    assert (ready.period, ready.timeout, ready.failure_threshold) == (7, 3, 172)  # 20 minutes
    assert (alive.initial_delay, alive.period, alive.timeout, alive.failure_threshold) == (1200, 7, 3, 4)
    endpoint = ml.online_endpoints.get(release.endpoint_name(first))
    assert (endpoint.auth_mode, sum(endpoint.traffic.values())) == ("aad_token", 0)

    told = release.verify(first)
    assert told.startswith("2 test questions answered by the new deployment, 0.")
    found = first.numbers["verification"]
    assert 0.9 < found["agreement"] < 1
    assert 0.4 <= found["latency_max"] < 5
    assert (found["questions"], found["share"]) == (2, 0)
    release.shift_traffic(first, 100)
    until(lambda: release.observe_endpoint(first) == ("Succeeded", {first.deployment: 100}))
    release.write_live_record(first)

    second = deployed(trained(azure, "release: {max_latency_seconds: 0.2}", samples=[sample("Slow?", None)]))
    assert release.champion(second) == first.deployment
    release.shift_traffic(second, 10)
    until(lambda: release.observe_endpoint(second)[1] == {first.deployment: 90, second.deployment: 10})
    for recipe, asked, problem in (
        ({"max_latency_seconds": 0.2}, sample("Slow?", None), "more than the 0.2 s of release.max_latency_seconds"),
        ({}, sample("Silent?", "Yes."), "an empty answer to test question 1"),
        ({}, sample("Who?", "Something else entirely, said otherwise"), "agreement 0."),
    ):
        second.recipe["release"] = recipe
        second.numbers["samples"] = [asked]
        with pytest.raises((StepError, TransientError), match=problem):
            release.verify(second)
    until(lambda: release.discarded(second))
    assert release.observe_endpoint(first)[1] == {first.deployment: 100}

    # The way back: the deployment that is there is taken as it is, and is not among those to be deleted.
    back = trained(azure)
    back.release_of, back.version, back.place = first.id, first.model_version, first.deployment
    release.create_deployment(back, Recipe())
    assert release.observe_deployment(back) is not None
    assert ml.online_deployments.get(first.deployment, endpoint.name).tags["run_id"] == first.id
    assert release.other_deployments(back) == {}


def test_going_to_the_scoring_payload_and_back_moves_no_traffic_under_the_chats(
    azure: LocalAzure, ml: MLClient
) -> None:
    """What stands behind the second deployment does not matter for that; its record does."""
    first = deployed(trained(azure, model="orders"))
    release.shift_traffic(first, 100)
    until(lambda: release.observe_endpoint(first) == ("Succeeded", {first.deployment: 100}))
    release.write_live_record(first)

    second = trained(azure, "serving: {server: mlflow}", model="orders")
    spec = deployment_spec.deployment(second, msgspec.convert(second.recipe, Recipe), "orders")
    assert (spec.environment, spec.environment_variables) == (None, {})
    assert spec.request_settings.max_concurrent_requests_per_instance == 1
    assert spec.liveness_probe.failure_threshold == 19  # of 10 s: longer than a request may take
    mlflow, second.recipe = second.recipe, msgspec.to_builtins(Recipe())
    deployed(second).recipe = mlflow
    second.stage = Stage.SHIFTING
    assert release.champion(second) == ""
    assert release.observe_endpoint(second)[1] == {second.deployment: 100}  # as far as the release is concerned
    release.shift_traffic(second, 100)
    assert release.observe_endpoint(first)[1][first.deployment] == 100
    release.write_live_record(second)
    record = live_record.read("orders") or {}
    assert (record["wire"], record["deployment"]) == ("mlflow", second.deployment)
    assert record["scoring_uri"].endswith("/score")
    # After the bake time: the traffic first, then the deployment.
    with pytest.raises(TransientError):
        release_managed.delete_deployment("orders", first.deployment)
    until(lambda: release.observe_endpoint(first)[1].get(second.deployment) == 100)
    release_managed.delete_deployment("orders", first.deployment)
    until(lambda: release.observe_deployment(first) is None)

    third = trained(azure, model="orders")
    assert release.champion(third) == ""
    assert release_managed._chat_url(third).endswith("/v1/chat/completions")


def test_traffic_that_a_late_request_has_taken_away_is_given_back(azure: LocalAzure, ml: MLClient) -> None:
    run = deployed(trained(azure, model="late"))
    release.shift_traffic(run, 100)
    until(lambda: release.observe_endpoint(run) == ("Succeeded", {run.deployment: 100}))
    release.write_live_record(run)
    store = BlobRunStore(azure_clients.container("runs"))
    endpoint = ml.online_endpoints.get(release.endpoint_name(run))
    endpoint.traffic = {}  # as a request for a new endpoint, sent before and held up, would
    ml.online_endpoints.begin_create_or_update(endpoint).result()
    run.move(Stage.SHIFTING, "", datetime.now(UTC))
    etag = store.create(run)
    stray_traffic.mend(store, run)
    assert not any(release.observe_endpoint(run)[1].values())  # the release that is under way sees to it
    run.move(Stage.LIVE, "", datetime.now(UTC))
    store.save(run, etag)
    stray_traffic.mend(store, run)
    until(lambda: release.observe_endpoint(run) == ("Succeeded", {run.deployment: 100}))


def test_vllm_serves_on_machines_with_gpus(azure: LocalAzure, ml: MLClient) -> None:
    run = trained(azure, f"serving: {{instance_type: {A100}}}", model="big")
    run.numbers["samples"] = [sample("Who?", "Who? I am big by vllm.")]
    deployed(run)
    assert "agreement with the evaluation's answers 100 %" in release.verify(run)
    there = ml.online_deployments.get(run.deployment, release.endpoint_name(run))
    assert "/environments/chat-serving-vllm/" in there.environment
    assert there.tags["server"] == "vllm"


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ("", ""),
        (f"base_model: {PHI}", "Standard_E4s_v3 (the app's SERVING_INSTANCE_TYPE) is not among the machines that the"),
        (f"base_model: {PHI}\nserving: {{instance_type: {A100.upper()}}}", ""),
        (f"base_model: {PHI}\nserving: {{instance_type: Standard_NC6s_v3}}", "in serving.instance_type."),
        (f"base_model: microsoft/Phi-4-mini-instruct\nengine: pipeline\nserving: {{instance_type: {A100}}}", ""),
        ("base_model: microsoft/Phi-4-mini-instruct\nengine: pipeline", "is not among the machines"),
        ("base_model: live", "is not among the machines"),  # the chain began with a model of the registry
        ("serving: {server: vllm}", "`serving.server: vllm` needs a GPU, and Standard_E4s_v3 (the app's"),
        ("serving: {server: vllm, instance_type: Standard_NC6s_v3}", "has no kernels for the V100s"),
        ("engine: service\nbase_model: live", ""),  # it has machines of its own
    ],
)
def test_a_machine_that_the_model_is_not_made_for_is_refused_before_it_is_trained(
    azure: LocalAzure, recipe: str, problem: str
) -> None:
    run = trained(azure, recipe, model="phi")
    live_record.blob("phi").upload_blob(json.dumps({"base_model": f"{PHI}/versions/6"}), overwrite=True)
    if not problem:
        release.check(run, msgspec.convert(run.recipe, Recipe))
        return
    with pytest.raises(UserError) as refused:
        release.check(run, msgspec.convert(run.recipe, Recipe))
    assert problem in str(refused.value)

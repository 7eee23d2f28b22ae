"""What every engine must do alike, against the local Azure: one job, observed, failed with its log, stopped."""

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.entities import AmlCompute, Model
from job_helpers import Arm, completed, log, wait

from function_app import engines
from function_app.engines import clusters, command, service
from function_app.errors import TransientError, UserError
from function_app.observation import JobSeen
from function_app.recipe import Recipe, read_recipe
from function_app.runs import DatasetVersion, Run, Stage, new_run
from function_app.settings import settings
from tests.local_azure import LocalAzure, forget_clients

A100 = "compute: {instance_type: Standard_NC24ads_A100_v4}"
PHI = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct"
PIPELINE = f"engine: pipeline\nbase_model: {PHI}\nmethod: lora\ngate: {{rule: always}}\n"
RECIPES = {
    "command": "base_model: embedded",
    "pipeline": f"{PIPELINE}{A100}\ntraining: {{epochs: 1, learning_rate: 0.003, warmup: 0.1}}",
    "service": f"engine: service\nbase_model: {PHI}\ngate: {{rule: always}}\ntraining: {{epochs: 1}}",
}
CHAT = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]}
# Instead of training: fail on records that training cannot read either, wait when it is asked to, else report.
QUICK = """if grep -q texts ${{inputs.train}}; then echo 'progress step=1'; echo 'the end is near'
echo 'error: train.jsonl line 1 is no record'; exit 1; fi
if grep -q Wait ${{inputs.train}}; then sleep 987; fi
mkdir -p ${{outputs.model}}; echo flavors: > ${{outputs.model}}/MLmodel; cd ${{outputs.report}}
mkdir adapter; touch adapter/x.md; echo '# Good' > evaluation.md; echo png > loss.png
echo '{"eval": {"base": {"loss": 2.0}, "tuned": {"loss": 1.0}}}' > metrics.json"""


@pytest.fixture(scope="module", autouse=True)
def _this_local_azure(azure: LocalAzure) -> Iterator[None]:
    """The app's clients are those of this module's local Azure."""
    forget_clients()
    yield
    forget_clients()


@pytest.fixture(autouse=True)
def _quick_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "COMMAND", QUICK)
    # This local Azure is in a region without the service; test_service.py has one where it is.
    monkeypatch.setattr(service, "_check_offer", lambda base_model, region: None)


@pytest.fixture(params=sorted(RECIPES))
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return read_recipe(RECIPES[request.param])


def received(azure: LocalAzure, recipe: Recipe, file: str, record: object = CHAT) -> Run:
    """A run as the intake leaves it, with four records of which one is held out."""
    import msgspec

    now = datetime.now(UTC)
    run = new_run(f"m-{recipe.engine}", DatasetVersion(f"m-{recipe.engine}/{file}.jsonl", f"0x{file}", 14, now), now)
    run.numbers["dataset"] = {"train": 3, "eval": 1, "format": "chat"}
    run.recipe = msgspec.to_builtins(recipe)
    line = json.dumps(record) + "\n"
    for name, content in (("train.jsonl", line * 3), ("eval.jsonl", line), ("recipe.json", "{}\n")):
        azure.storage.get_blob_client("runs", f"{run.id}/{name}").upload_blob(content, overwrite=True)
    return run


def submit(run: Run, recipe: Recipe) -> str:
    """As steps.py does: again, while the cluster is being made."""
    engine = engines.engine(recipe)
    for _ in range(50):
        try:
            engine.check(run, recipe)
            url = engine.submit(run, recipe)
        except TransientError:
            continue
        run.move(Stage.TRAINING, "", datetime.now(UTC))
        return url
    raise AssertionError("the cluster never came")


def ended(run: Run, recipe: Recipe) -> JobSeen:
    deadline = time.monotonic() + 90
    while True:
        seen = engines.engine(recipe).observe(run)
        assert seen is not None
        if seen.status in ("Completed", "Failed", "Canceled"):
            return seen
        assert time.monotonic() < deadline, f"still {seen.status}"
        time.sleep(0.3)


def test_submitted_twice_it_is_one_job_whose_model_can_be_registered(
    azure: LocalAzure, ml: MLClient, recipe: Recipe
) -> None:
    engine, run = engines.engine(recipe), received(azure, recipe, "good")
    assert engine.observe(run) is None
    assert engine.stopped(run)
    url = submit(run, recipe)
    assert url.startswith("http")
    assert submit(run, recipe) == url
    assert [job.name for job in ml.jobs.list() if job.name == run.id] == [run.id]
    tags = ml.jobs.get(run.id).tags
    assert (tags["run_id"], tags["dataset_etag"], tags["engine"]) == (run.id, "0xgood", recipe.engine)
    assert len(tags["recipe"]) == 12
    assert ended(run, recipe) == JobSeen("Completed")
    results = engine.results(run)
    assert results["engine"] == recipe.engine
    assert results["eval"]["tuned"]["loss"] > 0
    if recipe.engine == "service":  # it registers the model itself
        assert ml.models.get(*results["model_uri"].split(":")[1:]).path
        return
    assert results["model_uri"].startswith(f"azureml://jobs/{run.id}/outputs/")
    made = ml.models.create_or_update(
        Model(name=run.model, version="1", path=results["model_uri"], type="mlflow_model")
    )
    assert (made.name, made.version) == (run.model, "1")


def test_a_failed_job_says_why_in_a_sentence_and_ends_with_its_log(azure: LocalAzure, recipe: Recipe) -> None:
    run = received(azure, recipe, "bad", {"texts": "no messages"})
    submit(run, recipe)
    seen = ended(run, recipe)
    assert seen.status == "Failed"
    sentence, *lines = seen.error.splitlines()
    assert "train.jsonl line 1" in sentence
    assert lines[0] == "the log ends:"
    assert len(lines) > 1
    assert "progress" not in seen.error


def test_a_job_is_stopped(azure: LocalAzure, recipe: Recipe) -> None:
    wait_here = {"messages": [{"role": "user", "content": "Wait"}, {"role": "assistant", "content": "Yes."}]}
    engine, run = engines.engine(recipe), received(azure, recipe, "slow", wait_here)
    submit(run, recipe)
    assert not engine.stopped(run)
    deadline = time.monotonic() + 60
    while not engine.stopped(run):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert engine.observe(run) == JobSeen("Canceled")


def test_the_evaluation_comes_into_the_reports(azure: LocalAzure) -> None:
    recipe = read_recipe(RECIPES["command"])
    run = received(azure, recipe, "evaluated")
    submit(run, recipe)
    ended(run, recipe)
    command.results(run)
    assert run.links["evaluation"].endswith(f"/reports/{run.id}/evaluation.md")
    reports = azure.storage.get_container_client("reports")
    found = {blob.name: blob.content_settings.content_type for blob in reports.list_blobs(f"{run.id}/")}
    assert found == {
        f"{run.id}/evaluation.md": "text/markdown; charset=utf-8",
        f"{run.id}/loss.png": "image/png",
    }


def test_a_preempted_job_finds_its_checkpoints(
    azure: LocalAzure, ml: MLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = (
        "cd ${{outputs.checkpoints}}; echo x >> steps; echo at $(wc -l < steps); [ $(wc -l < steps) = 2 ] || sleep 987"
    )
    monkeypatch.setattr(command, "COMMAND", count)
    recipe = read_recipe("compute: {tier: low_priority, idle_minutes: 2, max_nodes: 3}")
    run = received(azure, recipe, "preempted")
    submit(run, recipe)
    cluster = ml.compute.get("training-low")
    assert (cluster.tier, cluster.min_instances, cluster.max_instances) == ("low_priority", 0, 3)
    assert cluster.idle_time_before_scale_down == 120
    wait(ml, run.id, "Running")
    while "at 1" not in (azure.home / "jobs" / run.id / "std_log.txt").read_text():
        time.sleep(0.1)
    assert Arm(azure).call("POST", f"/_emulator/jobs/{run.id}/preempt").status_code == 202
    completed(ml, run.id)
    assert log(azure, run.id).split() == ["at", "1", "at", "2"]


def test_a_job_on_many_gpus_has_a_process_for_each(
    azure: LocalAzure, ml: MLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "{ echo error: process 3 has failed, so process $RANK ends; sleep 987; }"  # training/distributed.py
    line = f"echo $RANK/$WORLD_SIZE; [ $RANK = 3 ] || {other}; sleep 1; echo error: 3; exit 1"
    monkeypatch.setattr(command, "COMMAND", line)
    recipe = read_recipe("compute: {instance_type: Standard_NC48ads_A100_v4, instance_count: 2}")
    run = received(azure, recipe, "gpus")
    submit(run, recipe)
    assert ended(run, recipe).error.splitlines() == ["3", "the log ends:", "3/4"]
    shown = ml.jobs.get(run.id)
    assert (shown.compute, shown.resources.instance_count, shown.resources.shm_size) == (
        "training-nc48ads-a100-v4",
        2,
        "16g",
    )
    assert settings().training_gpu_image in command._remembered.environments


def test_the_live_model_is_the_base_and_the_champion(
    azure: LocalAzure, ml: MLClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "COMMAND", "echo")
    recipe = read_recipe("base_model: live")
    run = received(azure, recipe, "again")
    with pytest.raises(UserError, match="no model serves as m-command yet"):
        command.check(run, recipe)
    record = {"model": "m-command", "model_version": "77", "base_model": "microsoft/Phi-4 mini"}
    live = azure.storage.get_blob_client("runs", "live/m-command.json")
    live.upload_blob(json.dumps(record))
    with pytest.raises(UserError, match="version 77, cannot be had"):
        command.check(run, recipe)
    (tmp_path / "MLmodel").write_text("flavors:")
    ml.models.create_or_update(Model(name="m-command", version="77", path=tmp_path, type="mlflow_model"))
    submit(run, recipe)
    assert ended(run, recipe).status == "Completed"
    words = log(azure, run.id).split()
    assert words[:3] == ["--base_model", "microsoft/Phi-4", "mini"]
    assert (words[3], words[5]) == ("--base_path", "--champion_path")
    live.upload_blob(json.dumps({**record, "auth": "key"}), overwrite=True)
    with pytest.raises(UserError, match="trained by the service"):
        command.check(run, recipe)
    assert command.resolve(run, Recipe()).champion == ""
    live.delete_blob()


def test_a_registry_s_model_is_checked_first_and_its_weights_are_not_here(azure: LocalAzure) -> None:
    recipe = read_recipe(f"base_model: {PHI}/labels/latest\nmethod: lora")
    run = received(azure, recipe, "foundation")
    submit(run, recipe)
    seen = ended(run, recipe)
    assert seen.status == "Failed"
    assert f"{PHI}/versions/15" in seen.error
    assert "the local Azure has no content of registries' assets" in seen.error


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("compute: {instance_type: Standard_NC24ads_A100}", "did you mean `Standard_NC24ads_A100_v4`?"),
        ("method: qlora", "`method: qlora` needs an NVIDIA GPU, and Standard_E16s_v3 has none"),
        ("training: {precision: fp16}", "fp16` is for GPUs"),
        ("training: {precision: bf16}\ncompute: {instance_type: Standard_NC6s_v3}", "only emulate it"),
        ("training: {sharding: zero2}\ncompute: {instance_type: Standard_NC6s_v3}", "NC6s_v3 has one"),
        (
            "compute: {cluster: busy, instance_type: Standard_NC6s_v3}",
            "busy has machines of the size Standard_D",
        ),
        ("compute: {cluster: busy, tier: low_priority}", "cluster busy has dedicated machines"),
        ("compute: {cluster: busy, instance_count: 2}", "the cluster busy grows to 1"),
        ("base_model: azureml://registries/azureml/models/Phi-0", "no Phi-0 in the registry azureml"),
        (f"base_model: {PHI}/versions/99", "in version 99 in the registry"),
        ("base_model: azureml://registries/nobodys/models/Phi-0", "no registry nobodys"),
        ("base_model: 'azureml:phi:3'", "no id of a registry's model"),
        (f"{PIPELINE}compute: {{instance_type: Standard_NC6s_v3}}", "not among the machines that the model can be"),
        (PIPELINE, "needs GPUs, and Standard_E16s_v3 has none"),
        (f"engine: pipeline\nbase_model: {PHI}", "nothing could pass `gate.rule: better`"),
        (f"{PIPELINE}training: {{packing: true, epochs: 1.5}}", "answers to `training.packing`; leave that out"),
        (PIPELINE.replace(PHI, "embedded"), "trains models of a registry only, not `base_model: embedded`"),
        (PIPELINE.replace(PHI, "microsoft/Phi-0"), "microsoft/Phi-0 is not in the registry"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_submitted(
    azure: LocalAzure, ml: MLClient, text: str, sentence: str
) -> None:
    if "busy" in text:
        ml.compute.begin_create_or_update(AmlCompute(name="busy", size="Standard_DS3_v2", max_instances=1)).result()
    recipe = read_recipe(text)
    clusters.forget()
    now = datetime.now(UTC)
    with pytest.raises(UserError, match=re.escape(sentence)):
        engines.engine(recipe).check(new_run("m", DatasetVersion("m/x.jsonl", "0x1", 1, now), now), recipe)


def test_a_pipeline_takes_the_name_on_hugging_face_and_no_texts(azure: LocalAzure) -> None:
    recipe = read_recipe(f"{PIPELINE.replace(PHI, 'microsoft/Phi-3-mini-4k-instruct')}{A100}")
    run = received(azure, recipe, "named")
    engines.engine(recipe).check(run, recipe)
    run.numbers["dataset"]["format"] = "text"
    with pytest.raises(UserError, match="trains on chats"):
        engines.engine(recipe).check(run, recipe)

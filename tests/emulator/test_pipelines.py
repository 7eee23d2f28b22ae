"""Pipeline jobs through the unmodified SDK: bindings, order, nesting, failure, cancelling, outputs, a kill."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.ai.ml import Input, MLClient, Output, command, load_job
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import AmlCompute, CommandJobLimits, Environment, Model
from azure.ai.ml.exceptions import JobException
from azure.core.exceptions import HttpResponseError

from emulator.store import Store
from tests.emulator.job_helpers import Arm, Json, completed, failed, log, status, wait
from tests.local_azure import LocalAzure, run_emulator, until

IMAGE = Environment(image="mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest")
FOLDER = Output(type="uri_folder")


@pytest.fixture(scope="module", autouse=True)
def computes(ml: MLClient) -> None:
    for name, nodes in (("cpu", 4), ("single", 1)):
        ml.compute.begin_create_or_update(
            AmlCompute(name=name, size="Standard_DS3_v2", min_instances=0, max_instances=nodes)
        ).result()


def step(name: str, line: str, **more: Any) -> Callable[..., Any]:
    """A step that runs ``line``."""
    made: Callable[..., Any] = command(name=name, display_name=name, command=line, environment=IMAGE, **more)
    return made


WRITE = step("write", "echo ${{inputs.text}} $[[and ${{inputs.more}}]] > ${{outputs.out}}/text",
             inputs={"text": Input(type="string"), "more": Input(type="string", optional=True)},
             outputs={"out": FOLDER})  # fmt: skip
UPPER = step("upper", "tr a-z A-Z < ${{inputs.folder}}/text > ${{outputs.out}}/text; echo upper of $WHO",
             inputs={"folder": Input(type="uri_folder")}, outputs={"out": FOLDER},
             environment_variables={"WHO": "component"})  # fmt: skip
FAIL = step("fail", "echo it breaks here; exit 3", outputs={"out": FOLDER})


def submit(ml: MLClient, job: Any) -> str:
    return str(ml.jobs.create_or_update(job, experiment_name="pipelines").name)


def children(ml: MLClient, name: str) -> dict[str, Any]:
    return {child.display_name: child for child in ml.jobs.list(parent_job_name=name)}


def read(azure: LocalAzure, ml: MLClient, job: str, output: str, folder: Path, file: str = "text") -> str:
    ml.jobs.download(job, output_name=output, download_path=folder)
    return (folder / "named-outputs" / output / file).read_text()


def test_steps_run_in_order_with_what_the_steps_before_gave_them(
    azure: LocalAzure, ml: MLClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @pipeline(default_compute="cpu", tags={"kind": "text"}, display_name="two steps")
    def two_steps(text: str) -> dict[str, Any]:
        first = WRITE(text=text, more="more")
        second = UPPER(folder=first.outputs.out)
        second.environment_variables = {"WHO": "step"}
        return {"result": second.outputs.out}

    name = submit(ml, two_steps(text="hello"))
    ml.jobs.stream(name)
    streamed = capsys.readouterr().out
    assert "Streaming logs/azureml/executionlogs.txt" in streamed
    assert "(first): Completed" in streamed
    assert "Finishing experiment: no runs left" in streamed
    assert read(azure, ml, name, "result", tmp_path) == "HELLO AND MORE\n"
    ran = children(ml, name)
    assert {child: run.status for child, run in ran.items()} == {"first": "Completed", "second": "Completed"}
    assert log(azure, ran["second"].name) == "upper of step\n"
    shown = ml.jobs.get(name)
    assert (shown.status, shown.tags, shown.display_name) == ("Completed", {"kind": "text"}, "two steps")
    assert shown.properties["azureml.parameters"] == '{"text": "hello"}'
    assert set(shown.jobs) == {"first", "second"}
    assert name in {job.name for job in ml.jobs.list()}
    assert ran["second"].name not in {job.name for job in ml.jobs.list()}  # it is a child


def test_a_yaml_pipeline_with_inline_components_runs(azure: LocalAzure, ml: MLClient, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("from a file\n")
    (tmp_path / "pipeline.yml").write_text("""
$schema: https://azuremlschemas.azureedge.net/latest/pipelineJob.schema.json
type: pipeline
display_name: from yaml
settings: {default_compute: azureml:cpu, default_datastore: azureml:workspaceblobstore}
inputs:
  data: {type: uri_file, path: ./data.txt}
  times: 2
outputs:
  result: {type: uri_file}
jobs:
  repeat:
    type: command
    inputs: {data: "${{parent.inputs.data}}", times: "${{parent.inputs.times}}"}
    outputs: {out: "${{parent.outputs.result}}"}
    command: for i in $(seq ${{inputs.times}}); do cat ${{inputs.data}}; done > ${{outputs.out}}
    environment: {image: "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest"}
""")
    name = submit(ml, load_job(tmp_path / "pipeline.yml"))
    completed(ml, name)
    result = ml.jobs.get(name).outputs.result.path
    container, _, blob = "azureml-blobstore-local", *result.partition("/paths/")[1:]
    assert azure.storage.get_blob_client(container, blob).download_blob().readall() == b"from a file\n" * 2


def test_a_pipeline_within_a_pipeline_is_a_child_with_children(azure: LocalAzure, ml: MLClient, tmp_path: Path) -> None:
    @pipeline()
    def inner(folder: Input) -> dict[str, Any]:  # type: ignore[valid-type]
        shout = UPPER(folder=folder)
        return {"loud": shout.outputs.out}

    @pipeline(default_compute="cpu")
    def outer() -> dict[str, Any]:
        quiet = WRITE(text="nested")
        loud = inner(folder=quiet.outputs.out)
        return {"result": loud.outputs.loud}

    name = submit(ml, outer())
    completed(ml, name)
    assert read(azure, ml, name, "result", tmp_path) == "NESTED\n"
    nested = children(ml, name)["loud"]
    assert [child.display_name for child in ml.jobs.list(parent_job_name=nested.name)] == ["shout"]


def test_independent_steps_run_at_once_bounded_by_the_compute_s_nodes(azure: LocalAzure, ml: MLClient) -> None:
    line = "date +%s%N > ${{outputs.out}}/begin; sleep 0.7; date +%s%N > ${{outputs.out}}/end"

    def times(compute: str) -> list[tuple[int, int]]:
        @pipeline(default_compute=compute)
        def both() -> dict[str, Any]:
            one, other = step("sleep", line, outputs={"out": FOLDER})(), step("sleep", line, outputs={"out": FOLDER})()
            return {"one": one.outputs.out, "other": other.outputs.out}

        name = submit(ml, both())
        completed(ml, name)
        spans = []
        for output in ("one", "other"):
            path = str(ml.jobs.get(name).outputs[output].path).partition("/paths/")[2]
            blobs = (azure.storage.get_blob_client("azureml-blobstore-local", path + file) for file in ("begin", "end"))
            begin, end = (int(blob.download_blob().readall()) for blob in blobs)
            spans.append((begin, end))
        return sorted(spans)

    (_, end), (begin, _) = times("cpu")
    assert begin < end
    (_, end), (begin, _) = times("single")
    assert begin >= end


def test_a_failed_step_fails_the_pipeline_with_its_name_and_error(ml: MLClient) -> None:
    @pipeline(default_compute="cpu")
    def broken() -> dict[str, Any]:
        bad = FAIL()
        after = UPPER(folder=bad.outputs.out)
        WRITE(text="independent")
        return {"result": after.outputs.out}

    name = submit(ml, broken())
    with pytest.raises(JobException, match="Failed nodes: /bad"):
        ml.jobs.stream(name)
    assert "it breaks here" in failed(ml, name)
    ran = {child: run.status for child, run in children(ml, name).items()}
    assert ran == {"bad": "Failed", "write": "Completed"}  # by default the other steps go on


def test_without_continue_on_step_failure_the_other_steps_are_cancelled(ml: MLClient) -> None:
    @pipeline(default_compute="cpu")
    def stops() -> None:
        FAIL()
        step("long", "sleep 60", outputs={"out": FOLDER})()

    job = stops()
    job.settings.continue_on_step_failure = False
    name = submit(ml, job)
    assert "Failed nodes: /fail" in failed(ml, name)
    assert {child: run.status for child, run in children(ml, name).items()} == {"fail": "Failed", "long": "Canceled"}


def test_cancelling_a_pipeline_cancels_its_steps_those_of_nested_ones_too(ml: MLClient) -> None:
    @pipeline()
    def inner() -> None:
        step("long", "sleep 60", outputs={"out": FOLDER})()

    @pipeline(default_compute="cpu")
    def outer() -> None:
        inner()
        step("other", "sleep 60", outputs={"out": FOLDER})()

    name = submit(ml, outer())
    wait(ml, name, "Running")
    until(lambda: len(children(ml, name)) == 2 and children(ml, name)["other"].status == "Running")
    ml.jobs.begin_cancel(name).result()
    assert status(ml, name) == "Canceled"
    ran = children(ml, name)
    assert {run.status for run in ran.values()} == {"Canceled"}
    assert [run.status for run in ml.jobs.list(parent_job_name=ran["inner"].name)] == ["Canceled"]


def test_a_model_is_registered_from_a_pipeline_s_output_and_by_an_output_s_name(ml: MLClient, tmp_path: Path) -> None:
    save = "echo flavors: {} > ${{outputs.model}}/MLmodel"

    @pipeline(default_compute="cpu")
    def training() -> dict[str, Any]:
        train = step("train", save, outputs={"model": Output(type="mlflow_model")})()
        return {"trained_model": train.outputs.model}

    job = training()
    job.outputs.trained_model = Output(type="mlflow_model", name="of-an-output")
    name = submit(ml, job)
    completed(ml, name)
    path = f"azureml://jobs/{name}/outputs/trained_model"
    model = ml.models.create_or_update(Model(path=path, type="mlflow_model", name="of-a-path", version="7"))
    assert model.version == "7"
    assert "MLmodel" in listing(ml, "of-a-path", "7", tmp_path / "1")
    assert "MLmodel" in listing(ml, "of-an-output", "1", tmp_path / "2")


def listing(ml: MLClient, name: str, version: str, folder: Path) -> list[str]:
    ml.models.download(name, version, download_path=folder)
    return [path.name for path in folder.rglob("*")]


def test_what_cannot_run_is_refused_at_submission_with_the_step_s_name(azure: LocalAzure, ml: MLClient) -> None:
    arm = Arm(azure)

    @pipeline(default_compute="cpu")
    def sample() -> None:
        first = WRITE(text="x")
        UPPER(folder=first.outputs.out)

    name = submit(ml, sample())
    completed(ml, name)
    good: Json = arm.call("GET", f"jobs/{name}").json()["properties"]["jobs"]
    first, second = good["first"], good["upper"]

    def refusal(jobs: Json, **more: Any) -> str:
        body = {"properties": {"jobType": "Pipeline", "jobs": jobs, **more}}
        answer = arm.call("PUT", "jobs/refused", body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "UserError"
        assert arm.call("GET", "jobs/refused").status_code == 404
        return str(answer.json()["error"]["message"])

    unknown = {"folder": {"job_input_type": "literal", "value": "${{parent.jobs.nobody.outputs.out}}"}}
    no_output = {"folder": {"job_input_type": "literal", "value": "${{parent.jobs.first.outputs.nothing}}"}}
    no_input = {"text": {"job_input_type": "literal", "value": "${{parent.inputs.nothing}}"}}
    circle = {"folder": {"job_input_type": "literal", "value": "${{parent.jobs.b.outputs.out}}"}}
    assert "no steps" in refusal({})
    assert "'s' is of the type 'sweep'" in refusal({"s": {**first, "type": "sweep"}})
    assert "'second' takes an output of the step 'nobody'" in refusal({"second": {**second, "inputs": unknown}})
    assert "has no output 'nothing'" in refusal({"first": first, "second": {**second, "inputs": no_output}})
    assert "has no input 'nothing'" in refusal({"first": {**first, "inputs": no_input}})
    assert "'first' needs a value for the input 'text'" in refusal({"first": {**first, "inputs": {}}})
    assert "circle" in refusal({"a": {**second, "inputs": circle}, "b": {**second, "inputs": {
        "folder": {"job_input_type": "literal", "value": "${{parent.jobs.a.outputs.out}}"}}}})  # fmt: skip
    assert "has no input 'other'" in refusal(
        {"first": {**first, "inputs": {**first["inputs"], "other": {"job_input_type": "literal", "value": "1"}}}}
    )
    gone = f"{arm.workspace}/computes/gone"
    assert "Step 'first': The compute" in refusal({"first": {**first, "computeId": gone}})
    assert "computes/gone" in refusal({"first": first}, settings={"default_compute": "gone"})
    assert "component" in refusal({"first": {**first, "componentId": f"{arm.workspace}/components/no/versions/1"}})
    assert "'first' must be an object" in refusal({"first": 3})
    for field in ("inputs", "outputs", "resources", "distribution", "limits", "identity", "environment_variables"):
        assert f"'{field}' must be an object" in refusal({"first": {**first, field: [1]}})
    assert "instanceCount must be a whole number" in refusal({"first": {**first, "resources": {"instance_count": "x"}}})
    assert "'text' must be an object" in refusal({"first": {**first, "inputs": {"text": 1}}})
    assert "'out' must be an object" in refusal({"first": {**first, "outputs": {"out": 1}}})
    assert "distribution 'x' is not known" in refusal({"first": {**first, "distribution": {"type": "x"}}})
    assert "no output of the pipeline" in refusal({"first": {**first, "outputs": {"out": {"value": "${{parent.a}}"}}}})
    assert "continue_on_step_failure must be" in refusal({"f": first}, settings={"continue_on_step_failure": "no"})
    assert "datastores/none" in refusal({"first": first}, settings={"default_datastore": "none"})
    whole = "azureml://registries/azureml/components/chat_completion_pipeline/labels/latest"
    assert "needs 'train_file_path'" in refusal({}, componentId=whole)
    data = {"train_file_path": {"jobInputType": "uri_file", "uri": "azureml://datastores/workspaceblobstore/paths/x"}}
    assert "needs one of the inputs mlflow_model_path" in refusal({}, componentId=whole, inputs=data)
    epochs = {**data, "num_train_epochs": {"jobInputType": "literal", "value": "0"}}
    assert "'num_train_epochs' is 0; it must be from 1" in refusal({}, componentId=whole, inputs=epochs)
    assert "has no output 'x'" in refusal({}, componentId=whole, inputs=data, outputs={"x": {}})
    assert "'jobs' must be an object" in refusal([])  # type: ignore[arg-type]


def test_a_registered_component_takes_the_step_s_own_settings(azure: LocalAzure, ml: MLClient) -> None:
    ranks = command(
        name="ranks",
        command="echo rank $RANK of $WORLD_SIZE for ${{inputs.times}} ${{inputs.rate}}; sleep ${{inputs.times}}",
        environment=IMAGE,
        inputs={"times": Input(type="integer", default=0, min=0, max=99), "rate": Input(type="number", optional=True)},
        distribution={"type": "pytorch", "process_count_per_instance": 2},
    )
    registered = ml.components.create_or_update(ranks.component, version="4")
    component = ml.components.get("ranks", version=registered.version)

    @pipeline()
    def overrides(where: str) -> None:
        doubled = component(rate=0.5)
        doubled.compute = where
        doubled.resources = {"instance_count": 2}
        late = component(times=60, rate=1)
        late.compute = "single"
        late.limits = CommandJobLimits(timeout=1)

    name = submit(ml, overrides(where="cpu"))
    assert "Failed nodes: /late" in failed(ml, name)
    ran = children(ml, name)
    assert ran["doubled"].properties["azureml.moduleName"] == "ranks"
    logs = {log(azure, ran["doubled"].name, f"std_log_process_{n}.txt").strip() for n in range(4)}
    assert logs == {f"rank {n} of 4 for 0 0.5" for n in range(4)}
    assert ran["late"].status == "Canceled"
    doubled = ml.jobs.get(ran["doubled"].name)
    assert (doubled.compute, doubled.resources.instance_count) == ("cpu", 2)


def test_a_pipeline_component_is_a_job_of_its_own_and_bounds_are_checked(
    azure: LocalAzure, ml: MLClient, tmp_path: Path
) -> None:
    @pipeline(name="shouting", version="2")
    def shouting(text: str) -> dict[str, Any]:
        return {"loud": UPPER(folder=WRITE(text=text).outputs.out).outputs.out}

    component = ml.components.create_or_update(shouting)
    (tmp_path / "job.yml").write_text(f"""
type: pipeline
component: azureml:{component.name}:{component.version}
settings: {{default_compute: azureml:cpu}}
inputs: {{text: as a whole}}
outputs: {{loud: {{type: uri_folder}}}}
""")
    name = submit(ml, load_job(tmp_path / "job.yml"))
    completed(ml, name)
    assert read(azure, ml, name, "loud", tmp_path) == "AS A WHOLE\n"
    ml.jobs.download(name, download_path=tmp_path)
    assert "Finishing experiment" in (tmp_path / "artifacts" / "logs" / "azureml" / "executionlogs.txt").read_text()


def test_a_step_s_run_in_mlflow_lies_below_the_pipeline_s(azure: LocalAzure, ml: MLClient) -> None:
    @pipeline(default_compute="cpu")
    def one() -> None:
        step("show", "echo $MLFLOW_RUN_ID", outputs={"out": FOLDER})()

    name = submit(ml, one())
    completed(ml, name)
    own = log(azure, children(ml, name)["show"].name).strip()
    url = f"{azure.environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/runs/get"
    run = requests.get(url, params={"run_id": own}, timeout=30).json()["run"]
    parent = next(tag["value"] for tag in run["data"]["tags"] if tag["key"] == "mlflow.parentRunId")
    above = requests.get(url, params={"run_id": parent}, timeout=30).json()["run"]
    assert (run["info"]["status"], above["info"]["status"]) == ("FINISHED", "FINISHED")
    assert above["info"]["run_name"] == name


def test_a_pipeline_goes_on_after_a_kill_and_no_finished_step_runs_again(
    azure: LocalAzure, ml: MLClient, tmp_path: Path
) -> None:
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    note = f"echo $AZUREML_RUN_ID >> {ran}; "

    @pipeline(default_compute="cpu")
    def interrupted() -> dict[str, Any]:
        first = step("one", note + "echo a > ${{outputs.out}}/text", outputs={"out": FOLDER})()
        second = step(
            "two",
            note + f"while [ ! -e {gate} ]; do sleep 0.1; done; cp ${{{{inputs.i}}}}/text ${{{{outputs.out}}}}/text",
            inputs={"i": Input(type="uri_folder")},
            outputs={"out": FOLDER},
        )(i=first.outputs.out)
        third = UPPER(folder=second.outputs.out)
        return {"result": third.outputs.out}

    name = submit(ml, interrupted())
    until(lambda: ran.exists() and len(ran.read_text().splitlines()) == 2)
    os.kill(int(control_pid(azure)), signal.SIGKILL)
    until(lambda: restarted(ml, name))
    gate.touch()
    completed(ml, name)
    assert read(azure, ml, name, "result", tmp_path) == "A\n"
    ids = ran.read_text().splitlines()
    assert ids == [ids[0], ids[1], ids[1]]  # the first once, the second again
    assert sorted(children(ml, name)) == ["first", "second", "third"]


def control_pid(azure: LocalAzure) -> int:
    state = json.loads((azure.home / "state.json").read_text())
    return int(state["processes"]["control"]["pid"])


def restarted(ml: MLClient, name: str) -> bool:
    try:
        return status(ml, name) == "Running"
    except HttpResponseError:
        return False


def test_a_pipeline_that_was_to_be_cancelled_when_all_stopped_is_cancelled_with_its_steps(
    azure: LocalAzure, ml: MLClient
) -> None:
    @pipeline(default_compute="cpu")
    def outer() -> None:
        step("long", "sleep 60", outputs={"out": FOLDER})()

    name = submit(ml, outer())
    until(lambda: [child.status for child in children(ml, name).values()] == ["Running"])
    run_emulator(azure.home, "down")
    store = Store(azure.home / "resources.db")
    job = next(iter(store.find(f"%/jobs/{name}")))
    job.properties["status"] = "CancelRequested"  # as a kill leaves it that comes before the steps were told
    store.save(job)
    store.close()
    run_emulator(azure.home, "up")
    until(lambda: status(ml, name) == "Canceled")
    until(lambda: [child.status for child in children(ml, name).values()] == ["Canceled"])

"""Jobs through the unmodified SDK: their API, their inputs and outputs, their processes, their place in the queue."""

import time
from pathlib import Path

import pytest
import requests
from azure.ai.ml import Input, MLClient, Output, command
from azure.ai.ml.constants import ListViewType
from azure.ai.ml.entities import AmlCompute, Data, JobService
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from job_helpers import IMAGE, Arm, client, completed, error_of, failed, log, status, submit, wait

from tests.local_azure import LocalAzure

STORE = "azureml://datastores/workspaceblobstore/paths"


@pytest.fixture(scope="module")
def ml(azure: LocalAzure) -> MLClient:
    ml = client(azure)
    ml.compute.begin_create_or_update(AmlCompute(name="cpu", size="Standard_DS3_v2", max_instances=4)).result()
    return ml


@pytest.fixture(scope="module")
def arm(azure: LocalAzure, ml: MLClient) -> Arm:
    return Arm(azure)


def put_blob(azure: LocalAzure, path: str, content: bytes) -> None:
    azure.storage.get_blob_client("azureml-blobstore-local", path).upload_blob(content, overwrite=True)


def blob(azure: LocalAzure, path: str) -> bytes:
    return bytes(azure.storage.get_blob_client("azureml-blobstore-local", path).download_blob().readall())


def test_a_command_job_runs_with_its_code_inputs_and_variables_and_keeps_its_outputs(
    azure: LocalAzure, ml: MLClient, tmp_path: Path
) -> None:
    (tmp_path / "tool.sh").write_text(
        'cat "$1" | tr a-z A-Z > "$2/out.txt"; echo "$WHO was here"; echo kept > outputs/k'
    )
    azure.drop("sdk/eval.jsonl", b"hello\n")
    url = f"{azure.environment['Storage__blobServiceUri']}/datasets/sdk/eval.jsonl"
    job = command(
        name="upper",
        code=tmp_path,
        command="bash tool.sh ${{inputs.text}} ${{outputs.result}} && echo ${{inputs.number}}",
        environment=IMAGE,
        compute="cpu",
        inputs={"text": Input(type="uri_file", path=url), "number": 7},
        outputs={"result": Output(type="uri_folder")},
        environment_variables={"WHO": "a test"},
    )
    created = ml.jobs.create_or_update(job)
    assert created.studio_url
    completed(ml, "upper")
    assert log(azure, "upper") == "a test was here\n7\n"
    assert blob(azure, "azureml/upper/result/out.txt") == b"HELLO\n"
    artifacts = azure.storage.get_container_client("azureml")
    assert artifacts.download_blob("ExperimentRun/dcid.upper/outputs/k").readall() == b"kept\n"
    shown = ml.jobs.get("upper")
    assert shown.properties["_azureml.ClusterName"] == "cpu"
    assert shown.outputs["result"].path == f"{STORE}/azureml/upper/result/"


def test_the_statuses_of_a_job_come_in_azures_order(azure: LocalAzure, ml: MLClient, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    submit(ml, "ordered", f"while [ ! -e {gate} ]; do sleep 0.1; done")
    wait(ml, "ordered", "Running")
    assert ml.jobs._runs_operations.get_run("ordered").start_time_utc
    gate.touch()
    completed(ml, "ordered")
    run = ml.jobs._runs_operations.get_run("ordered")
    assert run.created_utc <= run.start_time_utc <= run.end_time_utc
    assert run.duration.startswith("00:00:0")


def test_submitting_twice_is_submitting_once(ml: MLClient) -> None:
    submit(ml, "once", "echo a")
    submit(ml, "once", "echo a")
    with pytest.raises(HttpResponseError, match="already exists"):
        submit(ml, "once", "echo b")
    completed(ml, "once")


def test_a_job_that_fails_says_so_and_keeps_what_it_wrote(azure: LocalAzure, ml: MLClient) -> None:
    line = "echo half > ${{outputs.result}}/half; echo oh no; exit 3"
    submit(ml, "broken", line, outputs={"result": Output(type="uri_folder")})
    assert "exited with status code 3" in failed(ml, "broken")
    with pytest.raises(Exception, match=r"exited with status code 3[^$]*oh no"):
        ml.jobs.stream("broken")
    assert blob(azure, "azureml/broken/result/half") == b"half\n"


def test_stream_shows_a_log_while_it_grows_and_that_of_an_ended_job(
    ml: MLClient, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(ml, "slow", "for i in 1 2 3 4; do echo line $i; sleep 1.5; done")
    ml.jobs.stream("slow")
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith("line")] == [f"line {i}" for i in (1, 2, 3, 4)]
    assert "Streaming user_logs/std_log.txt" in shown
    assert wait(ml, "slow") == "Completed"
    ml.jobs.stream("slow")
    assert "Execution Summary" in capsys.readouterr().out


def test_a_job_can_be_cancelled_and_its_process_ends(ml: MLClient, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    submit(ml, "endless", f"while true; do touch {alive}; sleep 0.1; done")
    wait(ml, "endless", "Running")
    while not alive.exists():
        time.sleep(0.1)
    ml.jobs.begin_cancel("endless").result()
    assert status(ml, "endless") == "Canceled"
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()
    with pytest.raises(HttpResponseError, match="is Canceled"):
        ml.jobs.begin_cancel("endless").result()


def test_what_does_not_exist_is_refused_before_anything_runs(ml: MLClient) -> None:
    with pytest.raises(HttpResponseError, match="compute 'computes/nowhere' does not exist"):
        submit(ml, "x", "true", compute="nowhere")
    for missing in (ml.jobs.get, ml.jobs.stream, ml.jobs.archive, ml.jobs.begin_cancel, ml.jobs.begin_delete):
        with pytest.raises(ResourceNotFoundError):
            missing("never-submitted")


def test_outputs_are_downloaded_by_name_all_and_by_default(ml: MLClient, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    line = (
        f"while [ ! -e {gate} ]; do sleep 0.1; done; "
        + "echo r > ${{outputs.result}}/r.txt; echo m > ${{outputs.model}}/MLmodel; echo f > ${{outputs.file}}"
    )
    kinds = {"result": "uri_folder", "model": "mlflow_model", "file": "uri_file"}
    submit(ml, "loaded", line + "; echo done", outputs={name: Output(type=kind) for name, kind in kinds.items()})
    with pytest.raises(Exception, match="Download is allowed only"):
        ml.jobs.download("loaded", download_path=tmp_path)
    gate.touch()
    completed(ml, "loaded")
    ml.jobs.download("loaded", download_path=tmp_path / "one", output_name="result")
    assert (tmp_path / "one/named-outputs/result/r.txt").read_text() == "r\n"
    ml.jobs.download("loaded", download_path=tmp_path / "model", output_name="model")
    assert (tmp_path / "model/named-outputs/model/MLmodel").read_text() == "m\n"
    ml.jobs.download("loaded", download_path=tmp_path / "default")
    assert (tmp_path / "default/artifacts/user_logs/std_log.txt").read_text() == "done\n"
    assert not (tmp_path / "default/named-outputs").exists()
    ml.jobs.download("loaded", download_path=tmp_path / "all", all=True)
    found = sorted(path.relative_to(tmp_path / "all").as_posix() for path in (tmp_path / "all").rglob("*.txt"))
    assert found == ["artifacts/user_logs/std_log.txt", "named-outputs/result/r.txt"]
    assert (tmp_path / "all/named-outputs/model/MLmodel").exists()
    assert (
        next(path for path in (tmp_path / "all/named-outputs/file").rglob("*") if path.is_file()).read_text() == "f\n"
    )


def test_a_job_that_ended_can_be_described_tagged_archived_and_restored(ml: MLClient) -> None:
    submit(ml, "described", "true", tags={"kept": "yes"})
    completed(ml, "described")
    updated = ml.jobs.update("described", display_name="A name", description="words", tags={"new": "tag"})
    assert (updated.display_name, updated.description) == ("A name", "words")
    assert updated.tags == {"kept": "yes", "new": "tag"}
    fetched = ml.jobs.get("described")
    fetched.tags["third"] = "one"
    assert ml.jobs.create_or_update(fetched).tags == {"kept": "yes", "new": "tag", "third": "one"}

    def listed(view: ListViewType) -> bool:
        return "described" in [job.name for job in ml.jobs.list(list_view_type=view)]

    ml.jobs.archive("described")
    views = (ListViewType.ACTIVE_ONLY, ListViewType.ARCHIVED_ONLY, ListViewType.ALL)
    assert [listed(view) for view in views] == [False, True, True]
    ml.jobs.restore("described")
    assert [listed(view) for view in views] == [True, False, True]


def test_children_are_listed_by_their_parent_alone(ml: MLClient, arm: Arm) -> None:
    submit(ml, "parent", "true")
    for name in ("child-1", "child-2"):
        assert arm.submit(name, "true", parentJobName="parent").status_code == 201
    assert [job.name for job in ml.jobs.list(parent_job_name="parent")] == ["child-1", "child-2"]
    names = {job.name for job in ml.jobs.list()}
    assert "parent" in names
    assert "child-1" not in names
    for name in ("parent", "child-1", "child-2"):
        completed(ml, name)


def test_jobs_are_listed_by_tag_property_and_type(ml: MLClient, arm: Arm) -> None:
    submit(ml, "red", "true", tags={"colour": "red"}, properties={"team": "a"})
    submit(ml, "blue", "true", tags={"colour": "blue", "sort of": "x"})

    def names(**query: str) -> list[str]:
        return [job["name"] for job in arm.call("GET", "jobs", **query).json()["value"]]

    assert names(tag="colour") == ["blue", "red"]
    assert names(tag="sort of") == ["blue"]
    assert names(properties="team=a") == ["red"]
    assert names(properties="team=a,_azureml.ClusterName=cpu") == ["red"]
    assert names(properties="team=b") == []
    assert names(jobType="Sweep") == []
    assert "red" in names(jobType="Command")
    refused = arm.call("GET", "jobs", tag='a"b')
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "UserError")
    for name in ("red", "blue"):
        completed(ml, name)


def test_inputs_come_from_every_kind_of_uri(azure: LocalAzure, ml: MLClient) -> None:
    put_blob(azure, "in/folder/a.txt", b"A")
    put_blob(azure, "in/folder/deep/b.txt", b"B")
    asset = ml.data.create_or_update(Data(name="letters", version="3", path=f"{STORE}/in/folder", type="uri_folder"))
    scope = "azureml://subscriptions/{}/resourcegroups/{}/workspaces/{}".format(
        *(azure.environment[name] for name in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE"))
    )
    account, container = "devstoreaccount1.blob.core.windows.net", "azureml-blobstore-local"
    folders = {
        "short": f"{STORE}/in/folder",
        "long": f"{scope}/datastores/workspaceblobstore/paths/in/folder/",
        "named": "azureml:letters:3",
        "by_id": asset.id,
        "by_location": "azureml://locations/westeurope/workspaces/any/data/letters/versions/3",
        "local_url": f"{azure.environment['Storage__blobServiceUri']}/{container}/in/folder",
        "real_url": f"https://{account}/{container}/in/folder",
        "wasbs": f"wasbs://{container}@{account}/in/folder",
    }
    line = "; ".join(
        f"test $(cat ${{{{inputs.{name}}}}}/a.txt ${{{{inputs.{name}}}}}/deep/b.txt) = AB && echo {name}"
        for name in folders
    )
    submit(ml, "folders", "set -e; " + line, inputs={n: Input(type="uri_folder", path=u) for n, u in folders.items()})
    completed(ml, "folders")
    assert log(azure, "folders").split() == list(folders)


def test_literals_direct_inputs_and_optional_parts_stand_in_the_command(
    azure: LocalAzure, ml: MLClient, arm: Arm
) -> None:
    inputs = {
        "text": {"jobInputType": "literal", "value": "a word"},
        "number": {"jobInputType": "literal", "value": "0.5"},
        "missing": {"jobInputType": "literal", "value": None},
        "uri": {"jobInputType": "uri_folder", "uri": f"{STORE}/nothing/", "mode": "Direct"},
        "newest": {"jobInputType": "uri_folder", "uri": "azureml:letters@latest"},
    }
    line = (
        "echo '${{inputs.text}}' ${{ inputs.number }} ${{inputs.uri}}"
        " $[[--missing ${{inputs.missing}}]] $[[--number ${{inputs.number}}]] $AZURE_ML_INPUT_number"
        " $(cat ${{inputs.newest}}/a.txt)"
    )
    assert arm.submit("literal", line, inputs=inputs).status_code == 201
    completed(ml, "literal")
    assert log(azure, "literal").split() == ["a", "word", "0.5", f"{STORE}/nothing/", "--number", "0.5", "0.5", "A"]


@pytest.mark.parametrize(
    ("kind", "uri", "said"),
    [
        ("uri_file", f"{STORE}/wrong/folder", "give the type uri_folder"),
        ("uri_folder", f"{STORE}/wrong/folder/a.txt", "give the type uri_file"),
        ("mltable", f"{STORE}/wrong/folder", "has no file MLTable"),
        ("uri_folder", f"{STORE}/wrong/nothing", "Nothing is stored at"),
        ("uri_folder", "azureml://datastores/nowhere/paths/x", "datastore 'nowhere' does not exist"),
        ("uri_folder", "azureml:nobody:1", "data asset nobody:1 does not exist"),
        ("mlflow_model", "azureml:nobody:1", "model nobody:1 does not exist"),
        ("mlflow_model", "azureml://registries/azureml/models/Phi-3/versions/1", "asset of a registry"),
        ("uri_folder", "azureml://jobs/none/outputs/x", "there is no job none"),
        ("uri_file", "ftp://example.org/x", "cannot be read here"),
        ("uri_folder", "https://example.org/x/", "single files alone"),
        ("uri_file", "https://localhost:9/x.txt", "cannot be reached from this machine"),
        ("uri_folder", "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/d/paths/p", "another w"),
    ],
)  # fmt: skip
def test_an_input_that_cannot_be_read_fails_the_job_and_says_why(
    azure: LocalAzure, ml: MLClient, arm: Arm, kind: str, uri: str, said: str, request: pytest.FixtureRequest
) -> None:
    put_blob(azure, "wrong/folder/a.txt", b"A")
    name = f"unreadable-{abs(hash((kind, uri)))}"
    answer = arm.submit(name, "true", inputs={"it": {"jobInputType": kind, "uri": uri}})
    assert answer.status_code == 201, answer.text
    error = failed(ml, name)
    assert error.startswith("The input 'it' cannot be read")
    assert said in error


def test_an_output_is_an_input_and_an_asset(azure: LocalAzure, ml: MLClient) -> None:
    named = Output(type="uri_folder", name="scores", description="what came of it")
    model = Output(type="custom_model", name="weights")
    line = "echo 1 > ${{outputs.scores}}/s; echo w > ${{outputs.weights}}/w; echo a > ${{outputs.anonymous}}/a"
    for number in ("1", "2"):
        outputs = {"scores": named, "weights": model, "anonymous": Output(type="uri_folder")}
        submit(ml, f"maker-{number}", line, outputs=outputs)
        completed(ml, f"maker-{number}")
        asset = ml.data.get("scores", number)
        assert (asset.path.split("/paths/")[1], asset.description) == (
            f"azureml/maker-{number}/scores/",
            "what came of it",
        )
        assert ml.models.get("weights", number).type == "custom_model"
    assert ml.data.create_or_update(Data(name="scores", path=f"{STORE}/by/hand", type="uri_folder")).version == "3"
    inputs = {
        "of_job": Input(type="uri_folder", path="azureml://jobs/maker-1/outputs/scores"),
        "of_asset": Input(type="uri_folder", path="azureml:scores:2"),
        "anonymous": Input(type="uri_folder", path="azureml:azureml_maker-1_output_data_anonymous:1"),
        "model": Input(type="custom_model", path="azureml:weights:1"),
    }
    submit(ml, "taker", "cat ${{inputs.of_job}}/s ${{inputs.of_asset}}/s ${{inputs.anonymous}}/a ${{inputs.model}}/w",
           inputs=inputs)  # fmt: skip
    completed(ml, "taker")
    assert log(azure, "taker").split() == ["1", "1", "a", "w"]


def test_the_version_of_an_output_is_refused_as_the_service_does(ml: MLClient) -> None:
    with pytest.raises(HttpResponseError, match="Could not find member 'assetVersion'"):
        submit(ml, "versioned", "true", outputs={"x": Output(type="uri_folder", name="x", version="2")})


def test_an_output_at_a_place_of_its_own_shows_what_lies_there(azure: LocalAzure, ml: MLClient) -> None:
    put_blob(azure, "checkpoints/step-1", b"one")
    for name in ("first", "second"):
        place = Output(type="uri_folder", path=f"{STORE}/checkpoints", mode="rw_mount")
        submit(ml, name, f"ls ${{{{outputs.it}}}}; touch ${{{{outputs.it}}}}/{name}", outputs={"it": place})
        completed(ml, name)
    assert log(azure, "first").split() == ["step-1"]
    assert log(azure, "second").split() == ["first", "step-1"]
    assert blob(azure, "checkpoints/step-1") == b"one"


def test_azure_fills_the_place_of_an_output_in(azure: LocalAzure, ml: MLClient) -> None:
    place = Output(type="uri_folder", path=f"{STORE}/by/${{{{name}}}}/${{{{output_name}}}}")
    submit(ml, "placed", "echo 1 > ${{outputs.it}}/x", outputs={"it": place})
    completed(ml, "placed")
    assert blob(azure, "by/placed/it/x") == b"1\n"


def test_azures_variables_are_set_and_the_jobs_own_ones_win(azure: LocalAzure, ml: MLClient) -> None:
    submit(ml, "variables", "env", environment_variables={"AZUREML_CR_NODE_RANK": "9", "OWN": "x"},
           experiment_name="tests", outputs={"o": Output(type="uri_folder")})  # fmt: skip
    completed(ml, "variables")
    found = dict(line.split("=", 1) for line in log(azure, "variables").splitlines() if "=" in line)
    assert found["AZUREML_RUN_ID"] == found["AZUREML_ROOT_RUN_ID"] == "variables"
    assert found["AZUREML_ARM_SUBSCRIPTION"] == azure.environment["AZURE_SUBSCRIPTION_ID"]
    assert found["AZUREML_ARM_PROJECT_NAME"] == found["MLFLOW_EXPERIMENT_NAME"] == "tests"
    assert found["MLFLOW_TRACKING_URI"] == azure.environment["MLFLOW_TRACKING_URI"]
    assert len(found["MLFLOW_RUN_ID"]) == 32
    assert found["AZURE_ML_OUTPUT_o"].endswith("/outputs/o")
    assert found["OWN"] == "x"
    assert "IDENTITY_HEADER" not in found


def test_a_pytorch_distribution_starts_the_command_once_for_each_process(azure: LocalAzure, ml: MLClient) -> None:
    line = "echo $NODE_RANK $LOCAL_RANK $RANK $WORLD_SIZE $MASTER_ADDR; touch $NODE_RANK-$LOCAL_RANK; sleep 1; ls"
    distribution = {"type": "PyTorch", "process_count_per_instance": 2}
    submit(ml, "ranks", line, distribution=distribution, instance_count=2)
    completed(ml, "ranks")
    logs = [log(azure, "ranks", f"std_log_process_{rank}.txt").splitlines() for rank in range(4)]
    assert [lines[0] for lines in logs] == [
        "0 0 0 4 127.0.0.1", "0 1 1 4 127.0.0.1", "1 0 2 4 127.0.0.1", "1 1 3 4 127.0.0.1",
    ]  # fmt: skip
    assert {"0-0", "0-1"} <= set(logs[0])  # the processes of one node share its folder
    assert not {"1-0", "1-1"} & set(logs[0])


def test_the_processes_of_a_pytorch_distribution_find_each_other(
    azure: LocalAzure, ml: MLClient, tmp_path: Path
) -> None:
    (tmp_path / "sum.py").write_text(
        "import torch, torch.distributed as d\n"
        "d.init_process_group('gloo', init_method='env://')\n"
        "t = torch.tensor(d.get_rank() + 1); d.all_reduce(t); print('sum', int(t))\n"
        "d.barrier(); d.destroy_process_group()\n"
    )
    submit(
        ml, "gloo", "python sum.py", code=tmp_path, distribution={"type": "PyTorch", "process_count_per_instance": 2}
    )
    assert wait(ml, "gloo", limit=180) == "Completed", error_of(ml, "gloo")
    assert "sum 3" in log(azure, "gloo", "std_log_process_0.txt")
    assert "sum 3" in log(azure, "gloo", "std_log_process_1.txt")


def test_one_process_that_fails_ends_the_others(ml: MLClient) -> None:
    line = "if [ $RANK = 1 ]; then echo the bad one; exit 5; fi; sleep 987"
    submit(ml, "one-fails", line, distribution={"type": "PyTorch", "process_count_per_instance": 3})
    error = failed(ml, "one-fails")
    assert "status code 5" in error
    assert "std_log_process_1.txt" in error
    assert "the bad one" in error


def test_tensorflow_processes_are_told_their_cluster(azure: LocalAzure, ml: MLClient) -> None:
    submit(
        ml, "tf", "echo $TF_CONFIG", distribution={"type": "TensorFlow", "worker_count": 2, "parameter_server_count": 1}
    )
    completed(ml, "tf")
    assert '"task": {"type": "ps", "index": 0}' in log(azure, "tf", "std_log_process_2.txt")


def test_a_job_that_runs_longer_than_its_limit_is_canceled(ml: MLClient) -> None:
    job = command(name="late", command="sleep 987", environment=IMAGE, compute="cpu")
    job.set_limits(timeout=1)
    ml.jobs.create_or_update(job)
    assert wait(ml, "late") == "Canceled"
    warnings = ml.jobs._runs_operations.get_run_details("late").warnings
    assert "limit of PT1S" in warnings[0].message


def test_jobs_wait_for_nodes_in_the_order_in_which_they_came(ml: MLClient, tmp_path: Path) -> None:
    cluster = AmlCompute(name="small", size="Standard_DS3_v2", max_instances=2)
    ml.compute.begin_create_or_update(cluster).result()
    with pytest.raises(HttpResponseError, match="asks for 3 nodes, but its compute has at most 2"):
        submit(ml, "too-big", "true", compute="small", instance_count=3)
    line = f"while [ ! -e {tmp_path}/$AZUREML_RUN_ID ]; do sleep 0.1; done"
    submit(ml, "q1", line, compute="small")
    wait(ml, "q1", "Running")
    for name, nodes in (("q2", 2), ("q3", 1)):
        submit(ml, name, line, compute="small", instance_count=nodes)
        wait(ml, name, "Queued")
    # The SDK's class takes the answer's own names, not those that it declares.
    assert [(vars(node)["runId"], vars(node)["nodeState"]) for node in ml.compute.list_nodes("small")] == [
        ("q1", "running")
    ]
    assert status(ml, "q3") == "Queued"  # there is a node for it, but q2 came first
    cluster.max_instances = 3
    ml.compute.begin_update(cluster).result()
    wait(ml, "q2", "Running")
    assert status(ml, "q3") == "Queued"
    with pytest.raises(HttpResponseError, match="unfinished jobs"):
        ml.compute.begin_delete("small").result()
    (tmp_path / "q1").touch()
    wait(ml, "q3", "Running")
    for name in ("q2", "q3"):
        (tmp_path / name).touch()
    for name in ("q1", "q2", "q3"):
        completed(ml, name)


def test_a_preempted_job_starts_again_with_its_checkpoints(azure: LocalAzure, ml: MLClient, arm: Arm) -> None:
    low = AmlCompute(name="low", size="Standard_DS3_v2", max_instances=1, tier="low_priority")
    ml.compute.begin_create_or_update(low).result()
    line = (
        "cd ${{outputs.state}}; if [ -e checkpoint ]; then echo resumed from $(cat checkpoint); exit; fi;"
        " echo 7 > checkpoint; echo first; sleep 987"
    )
    submit(ml, "cheap", line, compute="low", outputs={"state": Output(type="uri_folder")})
    wait(ml, "cheap", "Running")
    while "first" not in (azure.home / "jobs/cheap/std_log.txt").read_text():
        time.sleep(0.1)
    answer = arm.call("POST", "/_emulator/jobs/cheap/preempt")
    assert (answer.status_code, answer.json()["preemptions"]) == (202, 1)
    completed(ml, "cheap")
    assert log(azure, "cheap").splitlines() == ["first", "resumed from 7"]
    assert arm.call("POST", "/_emulator/jobs/cheap/preempt").status_code == 409
    assert "not on a low-priority" in arm.call("POST", "/_emulator/jobs/once/preempt").json()["error"]["message"]
    assert requests.post(f"{arm.url}/_emulator/jobs/cheap/preempt", timeout=10).status_code == 401


def test_cancelling_a_job_that_is_being_preempted_leaves_it_the_time_to_save(
    azure: LocalAzure, ml: MLClient, arm: Arm
) -> None:
    low = AmlCompute(name="low", size="Standard_DS3_v2", max_instances=1, tier="low_priority")
    ml.compute.begin_create_or_update(low).result()
    line = "trap 'sleep 1; echo saved; exit 1' TERM; echo first; while true; do sleep 0.1; done"
    submit(ml, "torn", line, compute="low")
    wait(ml, "torn", "Running")
    while "first" not in (azure.home / "jobs/torn/std_log.txt").read_text():
        time.sleep(0.1)
    assert arm.call("POST", "/_emulator/jobs/torn/preempt").status_code == 202
    ml.jobs.begin_cancel("torn").result()
    assert wait(ml, "torn") == "Canceled"
    assert log(azure, "torn").splitlines()[-1] == "saved"


def test_a_job_without_a_compute_runs_serverless(azure: LocalAzure, ml: MLClient) -> None:
    job = command(name="serverless", command="echo here", environment=IMAGE)
    ml.jobs.create_or_update(job)
    completed(ml, "serverless")
    assert ml.jobs.get("serverless").compute is None
    assert log(azure, "serverless") == "here\n"


def test_services_and_an_identity_are_accepted(ml: MLClient) -> None:
    from azure.ai.ml import UserIdentityConfiguration

    submit(ml, "served", "true", services={"lab": JobService(type="jupyter_lab")}, identity=UserIdentityConfiguration())
    completed(ml, "served")
    shown = ml.jobs.show_services("served")
    assert shown is not None
    assert "does not start" in str(shown["lab"].error)
    assert ml.jobs.show_services("once") is None
    assert ml.jobs.get("served").identity is not None


def test_a_deleted_job_is_gone(azure: LocalAzure, ml: MLClient) -> None:
    submit(ml, "deleted", "true")
    completed(ml, "deleted")
    ml.jobs.begin_delete("deleted").result()
    with pytest.raises(ResourceNotFoundError):
        ml.jobs.get("deleted")
    assert not (azure.home / "jobs/deleted").exists()
    submit(ml, "deleted", "echo another")
    completed(ml, "deleted")


LITERAL = {"jobInputType": "literal", "value": "1"}


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({"jobType": "Sweep"}, "of the type 'Sweep' are not modelled"),
        ({"jobType": "AutoML"}, "not modelled"),
        ({"jobType": None}, "not modelled"),
        ({"command": ""}, "needs 'command'"),
        ({"command": 5}, "needs 'command'"),
        ({"environmentId": None}, "needs 'environmentId'"),
        ({"environmentId": "/nowhere"}, "environment"),
        ({"codeId": "/nowhere"}, "code"),
        ({"inputs": ["x"]}, "'inputs' must be an object"),
        ({"inputs": {"x": 5}}, "'5'"),
        ({"inputs": {"x": {"jobInputType": "uri_thing"}}}, "uri_thing"),
        ({"inputs": {"x": {"jobInputType": "uri_file"}}}, "needs a 'uri'"),
        ({"inputs": {"x": {"jobInputType": "uri_file", "uri": "a", "mode": "Teleport"}}}, "Teleport"),
        ({"inputs": {"../x": LITERAL}}, "'../x'"),
        ({"outputs": {"x": {"jobOutputType": "literal"}}}, "literal"),
        ({"outputs": {"x": {"jobOutputType": "uri_folder", "uri": "azureml://datastores/no/paths/x"}}}, "'no'"),
        ({"outputs": {"x": {"jobOutputType": "uri_folder", "mode": "ReadOnlyMount"}}}, "mode"),
        ({"resources": {"instanceCount": 0}}, "instanceCount"),
        ({"resources": {"instanceCount": "two"}}, "instanceCount"),
        ({"resources": {"properties": {"IsLocal": True}}}, "'local'"),
        ({"limits": {"timeout": "an hour"}}, "ISO 8601"),
        ({"distribution": {"distributionType": "Mpi"}}, "Mpi"),
        ({"distribution": {"distributionType": "Ray"}}, "Ray"),
        ({"distribution": {"distributionType": "PyTorch", "processCountPerInstance": "many"}}, "whole number"),
        ({"distribution": {"distributionType": "PyTorch", "processCountPerInstance": 64},
          "resources": {"instanceCount": 2}}, "64 processes"),
        ({"environmentVariables": {"A": 1}}, "texts"),
        ({"tags": "x"}, "texts"),
        ({"experimentName": 7}, "experimentName"),
        ({"identity": {"identityType": "Nobody"}}, "identityType"),
        ({"identity": {"identityType": None}}, "identityType"),
        ({"limits": {"timeout": ""}}, "ISO 8601"),
        ({"inputs": {"x": {"jobInputType": "uri_file", "uri": ""}}}, "'uri'"),
        ({"outputs": {"x": {"jobOutputType": "uri_folder", "assetName": []}}}, "no name of an asset"),
    ],
)  # fmt: skip
def test_what_the_sdk_cannot_send_is_refused_with_a_sentence(
    arm: Arm, properties: dict[str, object], said: str
) -> None:
    answer = arm.submit("refused", **{"line": "true", **properties})  # type: ignore[arg-type]
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "UserError"
    assert said in error["message"]
    assert arm.call("GET", "jobs/refused").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/history/v1.0{w}/experiments/Default/runs/once", {"tags": ["x"]}),
        ("PATCH", "/history/v1.0{w}/experiments/Default/runs/once", {"displayName": 5}),
        ("PATCH", "/history/v1.0{w}/experiments/Default/runs/once", {"hidden": "yes"}),
        ("POST", "/history/v1.0{w}/rundata", {}),
        ("GET", "/history/v1.0{w}/runs/once/children?$top=x", None),
        ("POST", "/data/v1.0{w}/dataversion/batchGetResolvedUris", {"values": "x"}),
        ("POST", "/data/v1.0{w}/dataversion/batchGetResolvedUris", {"values": ["azureml://data/x/versions/1"]}),
        ("GET", "jobs?listViewType=Some", None),
    ],
)
def test_run_history_refuses_what_it_cannot_read(
    arm: Arm, method: str, path: str, body: dict[str, object] | None
) -> None:
    answer = arm.call(method, path.format(w=arm.workspace), body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]

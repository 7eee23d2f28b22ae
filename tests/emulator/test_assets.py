"""Versioned assets of the workspace through the unmodified azure-ai-ml client."""

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.ai.ml import Input, MLClient, Output, command
from azure.ai.ml.constants import ListViewType
from azure.ai.ml.dsl import pipeline
from azure.ai.ml.entities import AmlCompute, BuildContext, CommandComponent, Data, Environment, Model
from azure.ai.ml.entities._assets import Code
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential

from emulator.store import Store
from tests.local_azure import LocalAzure

IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest"
STORE = "azureml://datastores/workspaceblobstore/paths"
MLMODEL = """
flavors:
  python_function: {loader_module: mlflow.transformers, python_version: 3.11.9, env: {conda: conda.yaml}}
  transformers: {task: llm/v1/chat}
"""


@pytest.fixture(scope="module")
def call(azure: LocalAzure) -> Callable[..., requests.Response]:
    """A request to the workspace's ARM path, for what the SDK cannot send."""
    arm = azure.environment["ARM_CLOUD_METADATA_URL"].split("/metadata")[0]
    base = f"{arm}/subscriptions/{azure.environment['AZURE_SUBSCRIPTION_ID']}/resourceGroups/local/providers"
    token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token

    def send(method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(
            method,
            f"{base}/Microsoft.MachineLearningServices/workspaces/local/{path}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=10,
            **options,
        )

    return send


def model(name: str, path: str = f"{STORE}/m", **options: Any) -> Model:
    return Model(name=name, path=path, **options)


def data(name: str, path: str = f"{STORE}/d/x.csv", **options: Any) -> Data:
    return Data(name=name, path=path, type="uri_file", **options)


def environment(name: str, image: str = IMAGE, **options: Any) -> Environment:
    return Environment(name=name, image=image, **options)


def component(name: str, line: str = "echo ${{inputs.epochs}}", **options: Any) -> CommandComponent:
    return CommandComponent(
        name=name,
        command=line,
        environment=environment("for-components", version="1"),
        inputs={"epochs": Input(type="integer", default=3), "text": Input(type="uri_file", optional=True)},
        outputs={"result": Output(type="uri_folder")},
        **options,
    )


MAKERS = {"models": model, "data": data, "environments": environment, "components": component}


@pytest.mark.parametrize("kind", MAKERS)
def test_an_asset_is_made_found_by_version_and_label_and_listed(ml: MLClient, kind: str) -> None:
    operations, make = getattr(ml, kind), MAKERS[kind]
    for version in ("1", "3", "2"):
        assert operations.create_or_update(make("listed", version=version)).version == version
    assert operations.get("listed", version="3").name == "listed"
    assert operations.get("listed", label="latest").version == "2"  # created last
    assert [asset.version for asset in operations.list("listed")] == ["2", "3", "1"]
    assert "listed" in [asset.name for asset in operations.list()]
    with pytest.raises(ResourceNotFoundError):
        operations.get("listed", version="9")
    with pytest.raises(Exception, match=r"(?i)not found|does not exist"):
        operations.get("nobody", label="latest")


@pytest.mark.parametrize("kind", ["models", "data", "environments"])
def test_without_a_version_the_next_number_is_taken(ml: MLClient, kind: str) -> None:
    operations, make = getattr(ml, kind), MAKERS[kind]
    other = {"environments": "python:3.12"}.get(kind, f"{STORE}/other")
    assert operations.create_or_update(make("counted")).version == "1"
    assert operations.create_or_update(make("counted", version="7")).version == "7"
    assert operations.create_or_update(make("counted", other)).version == "8"
    (listed,) = [asset for asset in operations.list() if asset.name == "counted"]
    assert listed.latest_version == "8"


def test_a_component_without_a_version_gets_one_from_the_clock(ml: MLClient) -> None:
    first = ml.components.create_or_update(component("clocked"))
    second = ml.components.create_or_update(component("clocked"))
    assert first.version == "1"
    assert second.version.startswith("20")
    assert ml.components.get("clocked").version == second.version  # the label "default"


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_archived_leaves_the_lists_until_it_is_restored(ml: MLClient, kind: str) -> None:
    operations, make = getattr(ml, kind), MAKERS[kind]
    for version in ("1", "2"):
        operations.create_or_update(make("old", version=version, tags={"t": "kept"}))

    def versions(view: ListViewType = ListViewType.ACTIVE_ONLY) -> list[str]:
        return [asset.version for asset in operations.list("old", list_view_type=view)]

    operations.archive("old", version="2")
    assert versions() == ["1"]
    assert versions(ListViewType.ARCHIVED_ONLY) == ["2"]
    assert versions(ListViewType.ALL) == ["2", "1"]
    assert operations.get("old", label="latest").version == "1"
    assert operations.get("old", version="2").tags == {"t": "kept"}
    operations.restore("old", version="2")
    assert versions() == ["2", "1"]

    def names(view: ListViewType = ListViewType.ACTIVE_ONLY) -> list[str]:
        return [asset.name for asset in operations.list(list_view_type=view)]

    operations.archive("old")
    assert "old" not in names()
    assert "old" in names(ListViewType.ARCHIVED_ONLY)
    operations.restore("old")
    assert "old" in names()


@pytest.mark.parametrize("kind", MAKERS)
def test_tags_and_description_change_content_does_not(ml: MLClient, kind: str) -> None:
    operations, make = getattr(ml, kind), MAKERS[kind]
    other = {"environments": "python:3.12", "components": "true"}.get(kind, f"{STORE}/other")
    operations.create_or_update(make("fixed", version="1"))
    changed = operations.create_or_update(make("fixed", version="1", tags={"a": "b"}, description="new words"))
    assert changed.tags == {"a": "b"}
    assert operations.get("fixed", version="1").description == "new words"
    with pytest.raises(ResourceExistsError, match=r"already (exists|registered)"):
        operations.create_or_update(make("fixed", other, version="1"))
    assert operations.get("fixed", version="1").tags == {"a": "b"}


def test_an_environment_keeps_its_version_while_its_content_is_the_same(ml: MLClient, tmp_path: Path) -> None:
    conda = tmp_path / "conda.yml"
    conda.write_text("name: e\ndependencies: [python=3.11, {pip: [mlflow]}]\n")
    first = ml.environments.create_or_update(environment("deduplicated", conda_file=conda))
    again = ml.environments.create_or_update(environment("deduplicated", conda_file=conda, description="same"))
    conda.write_text("name: e\ndependencies: [python=3.11, {pip: [torch]}]\n")
    other = ml.environments.create_or_update(environment("deduplicated", conda_file=conda))
    assert [first.version, again.version, other.version] == ["1", "1", "2"]
    assert other.conda_file["dependencies"][1] == {"pip": ["torch"]}
    assert again.description == "same"


def test_a_build_context_is_uploaded(ml: MLClient, azure: LocalAzure, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:3.11\n")
    made = ml.environments.create_or_update(Environment(name="built", version="1", build=BuildContext(path=tmp_path)))
    assert made.build.dockerfile_path == "Dockerfile"
    assert "azureml-blobstore-local/LocalUpload/" in made.build.path


def test_a_model_folder_is_uploaded_and_downloaded(ml: MLClient, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "MLmodel").write_text(MLMODEL)
    (source / "weights.bin").write_bytes(b"\0\1\2")
    made = ml.models.create_or_update(Model(name="uploaded", path=source, type="mlflow_model"))
    assert made.flavors["python_function"]["loader_module"] == "mlflow.transformers"
    assert made.stage == "Development"
    ml.models.download("uploaded", made.version, download_path=tmp_path / "target")
    (weights,) = (tmp_path / "target").rglob("weights.bin")
    assert weights.read_bytes() == b"\0\1\2"


def test_data_is_uploaded_and_its_path_has_the_services_form(ml: MLClient, azure: LocalAzure, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    file = ml.data.create_or_update(Data(name="file", path=tmp_path / "a.csv", type="uri_file"))
    folder = ml.data.create_or_update(Data(name="folder", path=tmp_path, type="uri_folder"))
    assert file.path.startswith("azureml://subscriptions/")
    assert file.path.endswith("/a.csv")
    assert folder.path.endswith("/")
    stored = azure.storage.get_container_client("azureml-blobstore-local")
    assert stored.download_blob(file.path.split("/paths/")[1]).readall() == b"x\n1\n"
    assert {d.name: d.type for d in ml.data.list()}["folder"] == "uri_folder"


def test_an_mltable_is_read_uploaded_and_kept_with_what_it_refers_to(
    ml: MLClient, call: Callable[..., requests.Response], tmp_path: Path
) -> None:
    (tmp_path / "MLTable").write_text("type: mltable\npaths:\n  - file: ./a.csv\ntransformations: [read_delimited]\n")
    (tmp_path / "a.csv").write_text("x\n1\n")
    table = ml.data.create_or_update(Data(name="table", path=tmp_path, type="mltable"))
    assert table.path.endswith("/")
    assert ml.data.get("table", version="1").type == "mltable"
    assert call("GET", "data/table/versions/1").json()["properties"]["referencedUris"] == ["./a.csv"]


def test_code_is_uploaded_once_whatever_it_is_called_and_comes_back(ml: MLClient, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text("print('hello')")
    codes = ml.components._code_operations
    first = codes.create_or_update(Code(name="first_name", version="1", path=source))
    second = codes.create_or_update(Code(name="a-very-long-name-" + "x" * 60, version="4", path=source))
    assert (second.name, second.version) == ("first_name", "1")
    codes.download("first_name", "1", tmp_path / "target")
    assert [path.read_text() for path in (tmp_path / "target").rglob("train.py")] == ["print('hello')"]
    assert first.path.startswith("https://devstoreaccount1.blob.core.windows.net:443/")


def test_a_component_is_normalised_as_the_service_does(ml: MLClient, call: Callable[..., requests.Response]) -> None:
    ml.components.create_or_update(component("normal", version="0.0.1", description="said in the specification"))
    properties = call("GET", "components/normal/versions/0.0.1").json()["properties"]
    spec = properties["componentSpec"]
    assert spec["inputs"]["epochs"] == {"type": "integer", "optional": "False", "default": "3"}
    assert spec["inputs"]["text"]["optional"] == "True"
    assert spec["resources"] == {"instance_count": "1"}
    assert spec["is_deterministic"] == "True"
    assert "_source" not in spec
    assert properties["description"] is None
    assert ml.components.get("normal", version="0.0.1").description == "said in the specification"


def test_a_component_and_its_code_are_downloaded(ml: MLClient, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "step.py").write_text("print(1)")
    ml.components.create_or_update(component("portable", "python step.py", version="1", code=source))
    ml.components.download("portable", tmp_path / "target", version="1")
    assert (tmp_path / "target" / "component_spec.yaml").exists()
    assert [path.read_text() for path in (tmp_path / "target").rglob("step.py")] == ["print(1)"]


def test_a_pipelines_steps_are_kept_and_not_shown(
    azure: LocalAzure, ml: MLClient, call: Callable[..., requests.Response]
) -> None:
    step = ml.components.create_or_update(component("a_step", version="1"))

    @pipeline
    def two_steps(epochs: int):  # type: ignore[no-untyped-def]
        first = step(epochs=epochs)
        step(text=first.outputs.result)

    two_steps(epochs=1)
    made = ml.components.create_or_update(two_steps._pipeline_builder.build(user_provided_kwargs={}), version="1")
    ml.components.archive(made.name, version="1")  # reads, and writes back what it was shown
    assert "jobs" not in call("GET", f"components/{made.name}/versions/1").json()["properties"]["componentSpec"]
    with sqlite3.connect(f"file:{azure.home}/resources.db?mode=ro", uri=True) as database:
        (body,) = database.execute(
            "SELECT body FROM resources WHERE id LIKE ?", (f"%/components/{made.name}/versions/1",)
        ).fetchone()
    assert len(json.loads(body)["properties"]["componentSpec"]["jobs"]) == 2


def test_anonymous_components_are_in_no_list(ml: MLClient) -> None:
    made = ml.components.create_or_update(component("not-asked-for"), is_anonymous=True)
    assert made.name == "azureml_anonymous" or made._is_anonymous
    assert "azureml_anonymous" not in [c.name for c in ml.components.list()]
    assert "not-asked-for" not in [c.name for c in ml.components.list()]


def test_a_model_can_have_a_stage_and_be_listed_by_it(ml: MLClient) -> None:
    ml.models.create_or_update(model("staged", version="1", stage="Production"))
    ml.models.create_or_update(model("staged", version="2"))
    assert [m.version for m in ml.models.list("staged", stage="Production")] == ["1"]
    ml.models.archive("staged", version="1")
    assert ml.models.get("staged", version="1").stage == "Archived"


def test_a_model_of_a_jobs_output_knows_its_job_and_its_flavors(ml: MLClient, tmp_path: Path) -> None:
    ml.compute.begin_create_or_update(AmlCompute(name="cpu", size="Standard_DS3_v2", max_instances=2)).result()
    (tmp_path / "MLmodel").write_text(MLMODEL)
    job = command(
        name="trains",
        code=tmp_path,
        command="cp MLmodel ${{outputs.trained}}/",
        environment=environment("for-components", version="1"),
        compute="cpu",
        outputs={"trained": Output(type="mlflow_model")},
    )
    ml.jobs.create_or_update(job)
    deadline = time.monotonic() + 60
    while ml.jobs.get("trains").status not in ("Completed", "Failed") and time.monotonic() < deadline:
        time.sleep(0.2)
    path = "azureml://jobs/trains/outputs/trained"
    made = ml.models.create_or_update(Model(name="of-a-job", path=path, type="mlflow_model"))
    assert made.job_name == "trains"
    assert set(made.flavors) == {"python_function", "transformers"}
    assert made.flavors["python_function"] == {"loader_module": "mlflow.transformers", "python_version": "3.11.9"}
    ml.models.download("of-a-job", made.version, download_path=tmp_path / "target")
    assert list((tmp_path / "target").rglob("MLmodel"))
    folder = ml.data.create_or_update(Data(name="of-a-job", path=path, type="uri_folder"))
    assert folder.path.endswith("/paths/azureml/trains/trained/")
    with pytest.raises(HttpResponseError, match="no job nowhere"):
        ml.models.create_or_update(model("of-no-job", "azureml://jobs/nowhere/outputs/trained"))
    of_the_run = ml.models.create_or_update(model("of-a-run", "runs:/trains/model", type="mlflow_model"))
    assert of_the_run.path.endswith("datastores/workspaceartifactstore/paths/ExperimentRun/dcid.trains/model")


def test_lists_go_on_page_after_page(ml: MLClient, call: Callable[..., requests.Response]) -> None:
    for number in range(1, 121):
        properties = {"modelUri": f"{STORE}/{number}", "modelType": "custom_model"}
        path = f"models/paged/versions/{number}?api-version=2023-08-01-preview"
        assert call("PUT", path, json={"properties": properties}).status_code == 201
    assert [int(m.version) for m in ml.models.list("paged")] == list(range(120, 0, -1))
    first = call("GET", "models/paged/versions?$orderBy=createdtime asc&$top=2").json()
    assert [m["name"] for m in first["value"]] == ["1", "2"]
    assert call("GET", "models/paged").json()["properties"]["nextVersion"] == "121"


def test_packages_and_sharing_are_refused_with_the_reason(ml: MLClient) -> None:
    from azure.ai.ml.entities import AzureMLOnlineInferencingServer, ModelPackage

    ml.models.create_or_update(model("whole", version="1"))
    package = ModelPackage(target_environment="p", inferencing_server=AzureMLOnlineInferencingServer())
    with pytest.raises(HttpResponseError, match="does not build"):
        ml.models.package("whole", "1", package)
    with pytest.raises(HttpResponseError, match="read-only"):
        ml.models.share("whole", "1", share_with_name="s", share_with_version="1", registry_name="azureml")


@pytest.mark.parametrize(
    ("path", "properties", "named"),
    [
        ("models/m/versions/1", {}, "modelUri"),
        ("models/m/versions/1", {"modelUri": 7}, "'modelUri' must be text"),
        ("models/m/versions/one", {"modelUri": STORE}, "positive integer"),
        ("models/m/versions/1", {"modelUri": STORE, "tags": ["x"]}, "'tags' must be an object"),
        ("models/m/versions/1", {"modelUri": STORE, "tags": {"x": {}}}, "'tags' must be text"),
        ("models/m/versions/1", {"modelUri": STORE, "isArchived": "no"}, "'isArchived' must be true or false"),
        ("models/m/versions/1", {"modelUri": STORE, "flavors": "x"}, "'flavors' must be an object"),
        ("data/d/versions/1", {"dataUri": STORE}, "dataType"),
        ("data/d/versions/1", {"dataUri": STORE, "dataType": "cube"}, "cube"),
        ("data/d", {}, "dataType"),
        ("environments/e/versions/1", {"image": "i", "build": {"contextUri": "u"}}, "one of the two"),
        ("environments/e/versions/1", {"build": {"x": 1}}, "contextUri"),
        ("environments/e/versions/1", {"image": "i", "condaFile": "a: [b"}, "condaFile is not valid YAML"),
        ("environments/e/versions/1", {"image": "i", "condaFile": "a: &a [b]\nc: [*a, *a]"}, "aliases"),
        ("environments/e/versions/1", {"image": "i", "osType": "OS/2"}, "OS/2"),
        ("models/m/versions/1", {"modelUri": STORE, "flavors": {"x": 1}}, "flavor"),
        ("components/c/versions/1", {"componentSpec": {"name": "c"}}, "'type'"),
        ("components/c/versions/1", {"componentSpec": {"type": "command", "inputs": [1]}}, "inputs"),
        ("codes/c/versions/1", {"codeUri": "https://elsewhere.example/x"}, "cannot be read here"),
    ],
)
def test_bad_assets_are_refused_with_what_to_do(
    call: Callable[..., requests.Response], path: str, properties: dict[str, Any], named: str
) -> None:
    answer = call("PUT", path, json={"properties": properties})
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


def test_what_the_service_does_not_know_is_not_echoed(call: Callable[..., requests.Response]) -> None:
    sent = {"image": "i", "colour": "red", "environmentType": "Curated", "tags": {"number": 1}}
    shown = call("PUT", "environments/plain/versions/1", json={"properties": sent}).json()["properties"]
    assert "colour" not in shown
    assert shown["environmentType"] == "UserCreated"
    assert shown["tags"] == {"number": "1"}


def test_a_version_and_its_container_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "resources.db")

    def write_half() -> None:
        with store.transaction():
            store.put("/models/m/versions/1", {})
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert store.get("/models/m/versions/1") is None
    with store.transaction():
        store.put("/models/m/versions/1", {})
    assert store.get("/models/m/versions/1") is not None
    store.close()


def test_bad_queries_are_refused(ml: MLClient, call: Callable[..., requests.Response]) -> None:
    ml.models.create_or_update(model("asked", version="1"))
    for query in ("$orderBy=size", "$top=many", "listViewType=Some"):
        assert call("GET", f"models/asked/versions?{query}").status_code == 400
    assert call("GET", "models/never/versions").status_code == 404
    assert call("GET", "models/never").json()["error"]["details"][0]["code"] == "ModelNotFound"

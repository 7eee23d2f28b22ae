"""The hand-run tutorials that this project replaces run against the local Azure as they are printed.

Only what a tutorial asks its reader to fill in is filled in, and what comes from a model hub is replaced: the training
script, which loads Phi-3 by its name, and the script that downloads a data set.
"""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.entities import AmlCompute

from tests.local_azure import LocalAzure

TUTORIALS = Path(__file__).resolve().parents[3] / "shared" / "tutorials"
DATA = TUTORIALS.parent / "data" / "codegen-eval.jsonl"
pytestmark = pytest.mark.skipif(not TUTORIALS.exists(), reason="../shared/tutorials is not beside this checkout")

# Stands for the tutorial's fine_tune.py: the same arguments, and a model in the run's artefacts like it.
TRAINING = """
import argparse

import mlflow


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        rows = model_input.values.ravel().tolist() if hasattr(model_input, "values") else list(model_input)
        return [f"{self.lines} lines taught me: {row}" for row in rows]


parser = argparse.ArgumentParser()
for name in ("--train-file", "--eval-file", "--model_output_dir"):
    parser.add_argument(name, required=True)
arguments = parser.parse_args()
with mlflow.start_run():
    model = Echo()
    model.lines = len(open(arguments.train_file).readlines())
    print("training on", model.lines, "lines")
    mlflow.pyfunc.save_model("saved", python_model=model, pip_requirements=[])
    mlflow.log_artifacts("saved", arguments.model_output_dir.removeprefix("./"))
"""
# Stands for the download of a data set: the same files, made of text at hand.
DOWNLOAD = f"""
import json, os

os.makedirs("ultrachat_200k_dataset", exist_ok=True)
records = [json.loads(line) for line in open({str(DATA)!r})][:24]
for name, part in (("train_sft", records[:16]), ("test_sft", records[16:]), ("test_gen", records[16:])):
    with open(f"ultrachat_200k_dataset/{{name}}.jsonl", "w") as file:
        for number, record in enumerate(part):
            messages = record["messages"]
            row = {{"prompt": messages[0]["content"], "messages": messages, "prompt_id": str(number)}}
            file.write(json.dumps(row) + "\\n")
"""


def blocks(number: str) -> list[str]:
    """The code blocks of a tutorial, in order, without the indentation of the list that they stand in."""
    text = next(TUTORIALS.glob(f"{number}_*.txt")).read_text(encoding="utf-8")
    found = re.findall(r"^([ >]*)```\w+\n(.*?)^\1```", text, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def block(number: str, mark: str) -> str:
    """The one block that contains ``mark``."""
    (found,) = [text for text in blocks(number) if mark in text]
    return found


def run(folder: Path, *command: str) -> str:
    """What a command of this environment's Python prints."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["python", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def project(azure: LocalAzure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tutorials 002 and 003 (translations of two versions of one) after its reader has typed it in.

    config.py, which only 002 shows, is filled in; the scripts are those of 003, since 002's import a name that its
    config.py does not have.
    """
    folder = tmp_path_factory.mktemp("finetune-phi")
    environment = azure.environment
    config = block("002", "AZURE_MANAGED_IDENTITY_RESOURCE_ID = ")
    for placeholder, value in {
        "your_subscription_id": environment["AZURE_SUBSCRIPTION_ID"],
        "your_resource_group_name": environment["AZURE_RESOURCE_GROUP"],
        "your_workspace_name": environment["AZURE_ML_WORKSPACE"],
        "your_azure_managed_identity_client_id": "00000000-0000-0000-0000-0000000000bb",
        "your_azure_managed_identity_name": "finetunephi-managedidentity",
        "your_fine_tuned_model_name": "finetune-phi-model",
        "your_fine_tuned_model_endpoint_name": "finetune-phi-endpoint",
        "your_fine_tuned_model_deployment_name": "finetune-phi-deployment",
    }.items():
        config = config.replace(f'"{placeholder}"', f'"{value}"')
    (folder / "config.py").write_text(config)
    (folder / "conda.yml").write_text(block("002", "name: phi-3-training-env"))
    (folder / "setup_ml.py").write_text(block("003", "def create_fine_tuning_job"))
    (folder / "deploy_model.py").write_text(block("003", "def set_traffic_to_deployment"))
    (folder / "integrate_with_promptflow.py").write_text(block("003", "def my_python_tool"))
    (folder / "flow.dag.yaml").write_text(block("003", "reference: ${integrate_with_promptflow.output}"))
    (folder / "finetuning_dir").mkdir()
    (folder / "finetuning_dir" / "fine_tune.py").write_text(TRAINING)
    (folder / "data").mkdir()
    lines = DATA.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "data" / "train_data.jsonl").write_text("".join(lines[:30]))
    (folder / "data" / "test_data.jsonl").write_text("".join(lines[30:40]))
    return folder


def test_the_first_tutorial_trains_deploys_and_answers(project: Path, ml: MLClient) -> None:
    trained = run(project, "setup_ml.py")
    assert "training on 30 lines" in trained
    (name,) = set(re.findall(r"^RunId: (\w+)$", trained, flags=re.MULTILINE))
    script = (project / "deploy_model.py").read_text().replace('"your-job-name"', f'"{name}"')
    (project / "deploy_model.py").write_text(script)
    run(project, "deploy_model.py")
    endpoint = ml.online_endpoints.get("finetune-phi-endpoint")
    assert endpoint.traffic == {"finetune-phi-deployment": 100}

    config = (project / "config.py").read_text()
    key = ml.online_endpoints.get_keys(endpoint.name).primary_key
    config = config.replace('"your_fine_tuned_model_api_key"', f'"{key}"')
    (project / "config.py").write_text(
        config.replace('"your_fine_tuned_model_endpoint_uri"', f'"{endpoint.scoring_uri}"')
    )
    answer = run(
        project, "-m", "promptflow._cli.pf", "flow", "test", "--flow", ".", "--inputs", "input_data=Who founded it?"
    )
    assert "30 lines taught me: Who founded it?" in answer

    run(project, "deploy_model.py")  # a second time: it deletes the endpoint first, as the tutorial does
    assert ml.online_endpoints.get("finetune-phi-endpoint").traffic == {"finetune-phi-deployment": 100}
    ml.online_endpoints.begin_delete("finetune-phi-endpoint").result()


def test_the_registry_s_tutorial_trains_deploys_and_answers(azure: LocalAzure, ml: MLClient, tmp_path: Path) -> None:
    size = "Standard_ND96amsr_A100_v4"
    ml.compute.begin_create_or_update(AmlCompute(name="gpu", size=size, max_instances=1)).result()
    skipped = ("pip install", '"prompt": "Create', "online_endpoints.begin_delete")
    script = "\n".join(
        text for text in blocks("001") if not text.lstrip().startswith(skipped) and skipped[1] not in text
    )
    for placeholder, value in {
        "<SUBSCRIPTION_ID>": azure.environment["AZURE_SUBSCRIPTION_ID"],
        "<RESOURCE_GROUP>": azure.environment["AZURE_RESOURCE_GROUP"],
        "<WORKSPACE_NAME>": azure.environment["AZURE_ML_WORKSPACE"],
        "<YOUR_COMPUTE_CLUSTER_NAME>": "gpu",
        "<YOUR_COMPUTE_SKU>": size,
    }.items():
        script = script.replace(placeholder, value)
    (tmp_path / "tutorial.py").write_text(script)
    (tmp_path / "download-dataset.py").write_text(DOWNLOAD)
    output = run(tmp_path, "tutorial.py")
    assert "Raw response:" in output
    assert "Registered model:" in output

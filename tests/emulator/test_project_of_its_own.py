"""The local Azure ML for another project: a short emulator.yaml in a folder of its own, no function app."""

import os
from pathlib import Path

from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import AmlCompute, Environment
from azure.identity import DefaultAzureCredential
from job_helpers import completed

from tests.local_azure import ROOT, exports, run_emulator

PROJECT = """
subscription: 00000000-0000-0000-0000-000000000001
tenant: 00000000-0000-0000-0000-00000000000a
resource_group: mine
workspace: ml
location: westeurope
mlflow_python: {python}
images: [{{match: "*", python: {python}}}]
"""


def test_a_job_runs_in_a_project_without_a_function_app(tmp_path: Path) -> None:
    project = ["--project", str(tmp_path / "mine.yaml")]
    (tmp_path / "mine.yaml").write_text(PROJECT.format(python=ROOT / ".venv-training"))
    home, before = tmp_path / ".emulator", dict(os.environ)
    assert "the function app" not in run_emulator(home, *project, "up")
    try:
        os.environ.update(exports(run_emulator(home, *project, "env")))
        ml = MLClient(DefaultAzureCredential(), os.environ["AZURE_SUBSCRIPTION_ID"], "mine", "ml")
        ml.compute.begin_create_or_update(AmlCompute(name="cpu", size="Standard_DS3_v2", max_instances=1)).result()
        job = command(command="echo hello", environment=Environment(image="any"), compute="cpu")
        completed(ml, ml.jobs.create_or_update(job).name)
    finally:
        os.environ.clear()
        os.environ.update(before)
        run_emulator(home, *project, "down")

"""Environment, cluster, command job, stream, download, registration: the order of Azure's documentation."""

import os
from pathlib import Path

from azure.ai.ml import Input, MLClient, Output, command
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.entities import AmlCompute, Environment, Model
from azure.core.exceptions import ResourceNotFoundError
from azure.identity import DefaultAzureCredential

ml_client = MLClient(
    DefaultAzureCredential(),
    subscription_id=os.environ["AZURE_SUBSCRIPTION_ID"],
    resource_group_name=os.environ["AZURE_RESOURCE_GROUP"],
    workspace_name=os.environ["AZURE_ML_WORKSPACE"],
)

environment = ml_client.environments.create_or_update(
    Environment(
        name="counting", image="mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest", conda_file="conda.yml"
    )
)
try:
    cluster = ml_client.compute.get("cpu-cluster")
except ResourceNotFoundError:
    cluster = ml_client.compute.begin_create_or_update(
        AmlCompute(
            name="cpu-cluster",
            size="Standard_DS3_v2",
            min_instances=0,
            max_instances=2,
            idle_time_before_scale_down=120,
        )
    ).result()

job = ml_client.jobs.create_or_update(
    command(
        code="training",
        command="python train.py --data ${{inputs.data}} --shortest ${{inputs.shortest}} --model ${{outputs.model}}",
        inputs={"data": Input(type=AssetTypes.URI_FILE, path="words.txt"), "shortest": 3},
        outputs={"model": Output(type=AssetTypes.CUSTOM_MODEL)},
        environment=f"{environment.name}@latest",
        compute=cluster.name,
        experiment_name="counting",
        display_name="count words",
    )
)
ml_client.jobs.stream(job.name)

ml_client.jobs.download(job.name, output_name="model", download_path="downloaded")
assert list(Path("downloaded").rglob("counts.json"))
model = ml_client.models.create_or_update(
    Model(
        name="counts",
        path=f"azureml://jobs/{job.name}/outputs/model",
        type=AssetTypes.CUSTOM_MODEL,
        description="how often each word occurs",
    )
)
print(f"registered {model.name}:{model.version} from job {job.name}")

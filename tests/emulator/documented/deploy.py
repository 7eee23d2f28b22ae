"""Endpoint, deployment with probes and an identity, traffic, request, logs, deletion: as Azure documents it."""

import json
import os

from azure.ai.ml import MLClient
from azure.ai.ml.entities import (
    CodeConfiguration,
    Environment,
    IdentityConfiguration,
    ManagedIdentityConfiguration,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    OnlineRequestSettings,
    ProbeSettings,
)
from azure.identity import DefaultAzureCredential

subscription, group = os.environ["AZURE_SUBSCRIPTION_ID"], os.environ["AZURE_RESOURCE_GROUP"]
ml_client = MLClient(DefaultAzureCredential(), subscription, group, os.environ["AZURE_ML_WORKSPACE"])
identity = (
    f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.ManagedIdentity"
    "/userAssignedIdentities/endpoint-identity"
)

endpoint = ml_client.online_endpoints.begin_create_or_update(
    ManagedOnlineEndpoint(
        name="word-counts",
        auth_mode="key",
        identity=IdentityConfiguration(
            type="user_assigned", user_assigned_identities=[ManagedIdentityConfiguration(resource_id=identity)]
        ),
    )
).result()
probe = ProbeSettings(initial_delay=10, period=10, timeout=2, failure_threshold=30, success_threshold=1)
ml_client.online_deployments.begin_create_or_update(
    ManagedOnlineDeployment(
        name="blue",
        endpoint_name=endpoint.name,
        model=ml_client.models.get("counts", label="latest"),
        code_configuration=CodeConfiguration(code="scoring", scoring_script="score.py"),
        environment=Environment(
            image="mcr.microsoft.com/azureml/minimal-ubuntu22.04-py39-cpu-inference:latest", conda_file="conda.yml"
        ),
        instance_type="Standard_DS3_v2",
        instance_count=1,
        liveness_probe=probe,
        readiness_probe=probe,
        request_settings=OnlineRequestSettings(max_concurrent_requests_per_instance=4, request_timeout_ms=30000),
    )
).result()
endpoint.traffic = {"blue": 100}
endpoint = ml_client.online_endpoints.begin_create_or_update(endpoint).result()

with open("request.json", "w") as file:
    json.dump({"words": ["one", "two", "nothing"]}, file)
answer = ml_client.online_endpoints.invoke(endpoint_name=endpoint.name, request_file="request.json")
print("answer", answer)
print("log", ml_client.online_deployments.get_logs(name="blue", endpoint_name=endpoint.name, lines=50))
print("key", bool(ml_client.online_endpoints.get_keys(endpoint.name).primary_key), "at", endpoint.scoring_uri)
ml_client.online_endpoints.begin_delete(name=endpoint.name).result()

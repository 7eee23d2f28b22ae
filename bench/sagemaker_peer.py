"""The peer of bench/emulator.py: moto's SageMaker server with many training jobs and models in it.

Run as: python bench/sagemaker_peer.py PORT COUNT, in an environment with moto[server]; bench/emulator.py makes it.
"""

import sys

from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

ACCOUNT, REGION = "123456789012", "us-east-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/any"


def fill(count: int) -> None:
    """Through moto's own backend, as its server would do it for each request, but quicker."""
    backend = get_backend("sagemaker")[ACCOUNT][REGION]
    for number in range(count):
        backend.create_training_job(
            training_job_name=f"job-{number:05}",
            hyper_parameters={"epochs": "3"},
            algorithm_specification={"TrainingImage": "any", "TrainingInputMode": "File"},
            role_arn=ROLE,
            input_data_config=[],
            output_data_config={"S3OutputPath": "s3://bucket/outputs"},
            resource_config={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
            vpc_config={},
            stopping_condition={"MaxRuntimeInSeconds": 3600},
            tags=[],
            enable_network_isolation=False,
            enable_inter_container_traffic_encryption=False,
            enable_managed_spot_training=False,
            checkpoint_config={},
            debug_hook_config={},
            debug_rule_configurations=[],
            tensor_board_output_config={},
            experiment_config={},
        )
        backend.create_model(
            model_name=f"model-{number:05}",
            execution_role_arn=ROLE,
            primary_container={"Image": "any", "ModelDataUrl": "s3://bucket/model"},
            vpc_config={},
            containers=[],
            tags=[],
        )


if __name__ == "__main__":
    fill(int(sys.argv[2]))
    application = DomainDispatcherApplication(create_backend_app)  # as moto_server does
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler)

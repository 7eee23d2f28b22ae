"""A model fine-tuned once for the whole session, on six records, in seconds."""

import importlib.util
import json

import pytest
from library import FACTS, Job, run_job, write_records

# These tests need the training environment; in the function app's there is nothing to collect.
collect_ignore_glob = [] if importlib.util.find_spec("trl") else ["test_*.py"]


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The job, run in full with MLflow, on a recipe as intake writes it."""
    folder = tmp_path_factory.mktemp("job")
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps({"base_model": "embedded", "epochs": 40, "questions": ["Who wrote Emma?"]}))
    train = write_records(folder / "train.jsonl", FACTS)
    held_out = write_records(folder / "eval.jsonl", {"When do you open?": "From nine to five."})
    import mlflow

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("jobs", artifact_location=str(folder / "artifacts"))
    run = client.create_run(experiment).info.run_id
    process = run_job(
        *("--config", recipe, "--train_file", train, "--eval_file", held_out),
        *("--model_output", folder / "model", "--report_output", folder / "report"),
        MLFLOW_TRACKING_URI=uri,
        MLFLOW_RUN_ID=run,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    report = json.loads((folder / "report" / "metrics.json").read_text())
    artifacts = [file.path for file in client.list_artifacts(run)]
    return Job(process, folder, report | {"mlflow": client.get_run(run).data, "artifacts": artifacts})

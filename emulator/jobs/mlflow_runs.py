"""A run in the MLflow server for each job, over MLflow's REST API, so that the job's own mlflow calls land in it."""

import time
from typing import Any

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=30)  # the server's first answer after its start can take seconds


class MlflowError(RuntimeError):
    """The MLflow server did not do what was asked."""


async def start_run(url: str, experiment: str, name: str, parent: str = "") -> tuple[str, str]:
    """Create a run called ``name``, below ``parent``; return its id and its experiment's. Raises MlflowError."""
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        found = await _call(
            session,
            "GET",
            f"{url}/api/2.0/mlflow/experiments/get-by-name",
            {"experiment_name": experiment},
            ok=(200, 404),
        )
        if "experiment" in found:
            experiment_id = found["experiment"]["experiment_id"]
        else:
            experiment_id = await _create_experiment(session, url, experiment)
        body: dict[str, Any] = {"experiment_id": experiment_id, "run_name": name, "start_time": int(time.time() * 1000)}
        if parent:
            body["tags"] = [{"key": "mlflow.parentRunId", "value": parent}]
        run = await _call(session, "POST", f"{url}/api/2.0/mlflow/runs/create", body)
        return run["run"]["info"]["run_id"], experiment_id


async def _create_experiment(session: aiohttp.ClientSession, url: str, name: str) -> str:
    """The new experiment's id, or that of the one which somebody made in the meantime."""
    created = await _call(session, "POST", f"{url}/api/2.0/mlflow/experiments/create", {"name": name}, ok=(200, 400))
    if "experiment_id" not in created:
        query = {"experiment_name": name}
        created = (await _call(session, "GET", f"{url}/api/2.0/mlflow/experiments/get-by-name", query))["experiment"]
    return str(created["experiment_id"])


async def logged_models(url: str, experiment_id: str, run_id: str) -> dict[str, str]:
    """The models that a run has logged: their names and ids. None when the server is gone."""
    body = {"experiment_ids": [experiment_id], "filter": f"source_run_id = '{run_id}'"}
    try:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            found = await _call(session, "POST", f"{url}/api/2.0/mlflow/logged-models/search", body)
    except (aiohttp.ClientError, MlflowError, TimeoutError):
        return {}
    return {model["info"]["name"]: model["info"]["model_id"] for model in found.get("models", [])}


async def end_run(url: str, run_id: str, status: str) -> None:
    """Close a run as FINISHED, FAILED or KILLED. A server that is gone is not worth failing a job for."""
    try:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            body = {"run_id": run_id, "status": status, "end_time": int(time.time() * 1000)}
            await _call(session, "POST", f"{url}/api/2.0/mlflow/runs/update", body)
    except (aiohttp.ClientError, MlflowError, TimeoutError):
        return


async def _call(
    session: aiohttp.ClientSession, method: str, url: str, body: dict[str, Any], ok: tuple[int, ...] = (200,)
) -> dict[str, Any]:
    arguments: dict[str, Any] = {"params": body} if method == "GET" else {"json": body}
    async with session.request(method, url, **arguments) as response:
        if response.status not in ok:
            raise MlflowError(f"MLflow answered {response.status} to {url}: {(await response.text())[:300]}")
        answer: dict[str, Any] = await response.json()
        return answer

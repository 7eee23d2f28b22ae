"""A job's MLflow run under the job's own name, as the workspace's tracking server has it."""

import aiohttp
from starlette.responses import JSONResponse, Response

from .errors import ArmError, bad_request
from .jobs import find_job
from .routing import WORKSPACE, Call, Coverage, route

TRACKING = "/mlflow/v1.0" + WORKSPACE + "/api/2.0/mlflow"
TIMEOUT = aiohttp.ClientTimeout(total=30)


@route(
    "GET",
    TRACKING + "/runs/get",
    "run history: a job's run in MLflow",
    coverage=Coverage.PARTLY,
    note="by the job's name, to read its metrics; all else goes to the MLflow server that MLFLOW_TRACKING_URI names",
)
async def get_mlflow_run(call: Call) -> Response:
    name = call.request.query_params.get("run_id")
    if not name:
        raise bad_request("The query needs 'run_id', a job's name.")
    job = find_job(call, name)
    run = job.internal.get("mlflow_run")
    if not run:
        raise ArmError(404, "RESOURCE_DOES_NOT_EXIST", f"The job {name} has no run in MLflow.")
    url = f"{call.control.urls['mlflow']}/api/2.0/mlflow/runs/get"
    async with (
        aiohttp.ClientSession(timeout=TIMEOUT) as session,
        session.get(url, params={"run_id": str(run)}) as response,
    ):
        answer = await response.json()
        if response.status == 200:
            answer["run"]["info"].update(run_id=name, run_uuid=name)
        return JSONResponse(answer, response.status)

"""Preemption on request: what Azure does to low-priority nodes by itself, a test asks for here."""

from starlette.responses import JSONResponse, Response

from .errors import ArmError, bad_request
from .jobs import find_job
from .routing import Call, route


@route(
    "POST", "/_emulator/jobs/{name}/preempt", "emulator: preempt a job", note="not of Azure: for tests of checkpoints"
)
async def preempt_job(call: Call) -> Response:
    """Kill a running job on a low-priority compute; it queues again and starts anew, its outputs as they were."""
    job = find_job(call)
    compute = call.control.store.get(job.properties.get("computeId") or "")
    if compute is None or compute.properties["properties"].get("vmPriority") != "LowPriority":
        raise bad_request(f"{job.name} is not on a low-priority compute (tier low_priority), so nothing preempts it.")
    if job.properties["status"] != "Running":
        raise ArmError(409, "Conflict", f"{job.name} is {job.properties['status']}; a job is preempted while it runs.")
    await call.control.jobs.preempt(job.id)
    return JSONResponse({"name": job.name, "preemptions": find_job(call).internal["preemptions"]}, 202)

"""The status of a long-running operation, which the SDK's pollers ask for."""

from starlette.responses import JSONResponse, Response

from ..store import Json
from .errors import ArmError
from .routing import PROVIDER, Call, route

LOCATION = "/subscriptions/{subscription}" + PROVIDER + "/locations/{location}"


@route("GET", LOCATION + "/computeOperationsStatus/{operation}", "operations: status of a compute's")
@route("GET", LOCATION + "/mfeOperationsStatus/{operation}", "operations: status")
async def operation_status(call: Call) -> Response:
    operation = call.control.store.operation(call.params["operation"])
    if operation is None:
        raise ArmError(404, "NotFound", f"Operation {call.params['operation']} does not exist.")
    answer: Json = {
        "name": call.params["operation"],
        "status": operation["status"],
        "startTime": operation["started"],
    }
    if operation["ended"]:
        answer["endTime"] = operation["ended"]
        answer["percentComplete"] = 100
    if operation["error"]:
        answer["error"] = operation["error"]
    # Retry-After must be 1: without it the SDK's poller sleeps 30 s, and 0 counts as absent.
    return JSONResponse(answer, headers={"Retry-After": "1"})

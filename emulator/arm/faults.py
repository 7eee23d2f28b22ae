"""The administration of faults: add, list, clear. It needs a token, as everything of Resource Manager does."""

from starlette.responses import JSONResponse, Response

from ..faults import FaultError
from .errors import ArmError, bad_request
from .routing import Call, route

FAULTS = "/_emulator/faults"


@route("POST", FAULTS, "emulator: add a fault")
async def add_fault(call: Call) -> Response:
    try:
        return JSONResponse(call.control.faults.add(call.body), 201)
    except FaultError as error:
        raise bad_request(str(error)) from None


@route("GET", FAULTS, "emulator: list the faults")
async def list_faults(call: Call) -> Response:
    return JSONResponse({"value": call.control.faults.shown()})


@route("DELETE", FAULTS, "emulator: clear all faults")
async def clear_faults(call: Call) -> Response:
    call.control.faults.clear()
    return Response(status_code=204)


@route("DELETE", FAULTS + "/{fault}", "emulator: clear a fault")
async def remove_fault(call: Call) -> Response:
    """Answers with the fault as it was, so that a test learns how often it struck."""
    removed = call.control.faults.remove(call.params["fault"])
    if removed is None:
        raise ArmError(404, "NotFound", f"There is no fault {call.params['fault']}; a restart clears them.")
    return JSONResponse(removed)

"""Compute clusters."""

from starlette.responses import Response

from ..store import timestamp
from .errors import ArmError, bad_request
from .routing import WORKSPACE, Call, page, route, show


@route("GET", WORKSPACE + "/computes", "computes: list")
async def list_computes(call: Call) -> Response:
    return page(call, list(call.control.store.children(call.id("computes"))))


@route("GET", WORKSPACE + "/computes/{name}", "computes: get")
async def get_compute(call: Call) -> Response:
    compute = call.control.store.get(call.id("computes/{name}"))
    if compute is None:
        raise ArmError(404, "ComputeNotFound", f"Compute with name {call.params['name']} could not be found.")
    return show(call, compute)


@route("PUT", WORKSPACE + "/computes/{name}", "computes: create")
async def put_compute(call: Call) -> Response:
    """A cluster. Its nodes are this machine: max_instances bounds how many jobs run at once."""
    properties = call.properties
    if properties.get("computeType") != "AmlCompute":
        raise bad_request(
            f"computeType '{properties.get('computeType')}' is not modelled by the local Azure; use AmlCompute."
        )
    inner = properties.get("properties") or {}
    scale = inner.get("scaleSettings") or {}
    if int(scale.get("maxNodeCount") or 0) < 1:
        raise bad_request("scaleSettings.maxNodeCount must be at least 1.")
    body = {
        "location": call.body.get("location") or call.control.home.project.location,
        "tags": call.body.get("tags") or {},
        "properties": {
            **properties,
            "computeLocation": call.control.home.project.location,
            "provisioningState": "Succeeded",
            "isAttachedCompute": False,
            "properties": {
                **inner,
                "allocationState": "Steady",
                "allocationStateTransitionTime": timestamp(),
                "currentNodeCount": 0,
                "targetNodeCount": 0,
                "vmPriority": inner.get("vmPriority") or "Dedicated",
            },
        },
    }
    existed = call.control.store.get(call.id("computes/{name}")) is not None
    compute = call.control.store.put(call.id("computes/{name}"), body)
    return show(call, compute, 200 if existed else 201, call.control.operations.done(compute.id))


@route("DELETE", WORKSPACE + "/computes/{name}", "computes: delete")
async def delete_compute(call: Call) -> Response:
    id = call.id("computes/{name}")
    if not call.control.store.delete(id):
        raise ArmError(404, "ComputeNotFound", f"Compute with name {call.params['name']} could not be found.")
    return Response(status_code=202, headers=call.control.operations.done(id))

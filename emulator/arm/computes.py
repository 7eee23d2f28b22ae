"""Compute clusters. Their nodes are this machine: max_instances bounds how many jobs run at once."""

import re
from hashlib import sha256
from typing import Any

from starlette.responses import JSONResponse, Response

from ..durations import seconds
from ..jobs.status import UNFINISHED
from ..store import Json, Resource, timestamp
from .errors import ArmError, bad_request
from .operation_status import LOCATION
from .routing import WORKSPACE, Call, Coverage, listing, route, show
from .vm_sizes import BY_NAME, VM_SIZES

# Guess: a compute's name has at most 32 characters
NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,30}[A-Za-z0-9]")
OPERATIONS = "computeOperationsStatus"
PRIORITIES = ("Dedicated", "LowPriority")
OTHER_KINDS = "the local Azure has clusters only (AmlCompute); its nodes are this machine"


def _find(call: Call) -> Resource:
    compute = call.control.store.get(call.id("computes/{name}"))
    if compute is None:
        raise ArmError(404, "ComputeNotFound", f"Compute with name {call.params['name']} could not be found.")
    return compute


@route("GET", WORKSPACE + "/computes", "computes: list")
async def list_computes(call: Call) -> Response:
    return listing(call, call.id("computes"), prepare=lambda compute: _with_nodes(call, compute))


@route("GET", WORKSPACE + "/computes/{name}", "computes: get")
async def get_compute(call: Call) -> Response:
    return show(call, _with_nodes(call, _find(call)))


@route("PUT", WORKSPACE + "/computes/{name}", "computes: create, update",
       note="AmlCompute; ComputeInstance, Kubernetes and attached computes are refused")  # fmt: skip
async def put_compute(call: Call) -> Response:
    properties = call.properties
    kind = properties.get("computeType")
    if kind != "AmlCompute":
        raise bad_request(f"Computes of the type '{kind}' are not modelled: {OTHER_KINDS}.")
    if not NAME.fullmatch(call.params["name"]):
        raise bad_request(
            f"'{call.params['name']}' is no name of a compute: give 2 to 32 letters, digits and '-', first a letter, no"
            " '-' last."
        )
    existing = call.control.store.get(call.id("computes/{name}"))
    inner = _checked(properties.get("properties") or {}, existing)
    now = timestamp()
    body = {
        "location": call.body.get("location") or call.control.home.project.location,
        "tags": call.body.get("tags") or {},
        "identity": call.body.get("identity"),
        "properties": {
            "computeType": kind,
            "description": properties.get("description"),
            "disableLocalAuth": bool(properties.get("disableLocalAuth")),
            "resourceId": None,
            "computeLocation": call.body.get("location") or call.control.home.project.location,
            "createdOn": existing.properties["createdOn"] if existing else now,
            "modifiedOn": now,
            "provisioningState": "Succeeded",
            "provisioningErrors": None,
            "isAttachedCompute": False,
            "properties": {**inner, "allocationStateTransitionTime": now},
        },
    }
    compute = call.control.store.put(call.id("computes/{name}"), body)
    call.control.jobs.nodes.distribute(compute.id)  # jobs may have waited for more nodes
    shown = _with_nodes(call, compute)
    shown.properties["provisioningState"] = (
        "Updating" if existing else "Creating"
    )  # Guess: a cluster that changes is "Updating"
    return show(call, shown, 201, call.control.operations.done(compute.id, OPERATIONS))


@route("PATCH", WORKSPACE + "/computes/{name}", "computes: change the scale settings")
async def patch_compute(call: Call) -> Response:
    compute = _find(call)
    given = call.properties.get("properties")
    changed = given.get("scaleSettings") if isinstance(given, dict) else None
    if not isinstance(changed, dict):
        raise bad_request("A change of a compute needs 'properties.properties.scaleSettings'.")
    inner = compute.properties["properties"]
    inner.update(_checked({**inner, "scaleSettings": {**inner["scaleSettings"], **changed}}, compute))
    compute.properties["modifiedOn"] = timestamp()
    compute = call.control.store.save(compute)
    call.control.jobs.nodes.distribute(compute.id)
    return show(call, _with_nodes(call, compute), 200, call.control.operations.done(compute.id, OPERATIONS))


def _checked(inner: Any, existing: Resource | None) -> Json:
    """The cluster's own properties as they are kept. Raises ArmError for what cannot be."""
    if not isinstance(inner, dict):
        raise bad_request("'properties.properties' must be an object.")
    scale = inner.get("scaleSettings")
    if not isinstance(scale, dict):
        raise bad_request("A cluster needs 'scaleSettings' with 'maxNodeCount'.")
    low, high = scale.get("minNodeCount") or 0, scale.get("maxNodeCount")
    if not isinstance(high, int) or not isinstance(low, int) or high < 1 or not 0 <= low <= high:
        raise bad_request("scaleSettings: maxNodeCount must be at least 1, and minNodeCount from 0 to maxNodeCount.")
    idle = scale.get("nodeIdleTimeBeforeScaleDown") or "PT2M"
    try:
        seconds(str(idle))
    except ValueError as error:
        raise bad_request(f"scaleSettings.nodeIdleTimeBeforeScaleDown: {error}") from None
    priority = inner.get("vmPriority") or "Dedicated"
    if priority not in PRIORITIES:
        raise bad_request(f"vmPriority '{priority}' is not known; use {' or '.join(PRIORITIES)}.")
    size = inner.get("vmSize") or "Standard_DS3_v2"
    if not isinstance(size, str):
        raise bad_request("vmSize must be a text such as Standard_DS3_v2.")
    before = existing.properties["properties"] if existing else {}
    # Guess: a cluster's size and priority cannot be changed
    for field, value in (("vmSize", size), ("vmPriority", priority)):
        if before and value.lower() != before[field].lower():
            raise bad_request(
                f"The {field} of a cluster cannot be changed ({before[field]} to {value}): delete it or create another."
            )
    credentials = inner.get("userAccountCredentials")
    if not isinstance(credentials, dict | None):
        raise bad_request("userAccountCredentials must be an object.")
    return {
        "osType": inner.get("osType") or "Linux",
        "vmSize": size,
        "vmPriority": priority,
        "scaleSettings": {"maxNodeCount": high, "minNodeCount": low, "nodeIdleTimeBeforeScaleDown": idle},
        **({"userAccountCredentials": {**credentials, "adminUserPassword": None}} if credentials else {}),
        "subnet": inner.get("subnet"),
        "errors": None,
        "remoteLoginPortPublicAccess": inner.get("remoteLoginPortPublicAccess") or "NotSpecified",
        "virtualMachineImage": None,
        "isolatedNetwork": False,
        "enableNodePublicIp": inner.get("enableNodePublicIp", True),
        "propertyBag": {},
    }


def _with_nodes(call: Call, compute: Resource) -> Resource:
    """The compute with the nodes that it has now: those of its running jobs, and the fewest that it always has."""
    inner = compute.properties["properties"]
    pool = call.control.jobs.nodes.pool(compute.id)
    current = max(pool.used, inner["scaleSettings"].get("minNodeCount") or 0)
    wanted = pool.used + sum(count for _, count, _ in pool.waiting)
    compute.properties["properties"] = {
        **inner,
        "currentNodeCount": current,
        "targetNodeCount": max(current, min(wanted, inner["scaleSettings"]["maxNodeCount"])),
        "nodeStateCounts": {
            "preparingNodeCount": 0,
            "runningNodeCount": pool.used,
            "idleNodeCount": current - pool.used,
            "unusableNodeCount": 0,
            "leavingNodeCount": 0,
            "preemptedNodeCount": 0,
        },
        "allocationState": "Steady",
    }
    return compute


@route("POST", WORKSPACE + "/computes/{name}/listNodes", "computes: list nodes")
async def list_nodes(call: Call) -> Response:
    compute = _with_nodes(call, _find(call))
    pool = call.control.jobs.nodes.pool(compute.id)
    jobs: list[str | None] = [name for name, count in pool.running.items() for _ in range(count)]
    jobs += [None] * (compute.properties["properties"]["currentNodeCount"] - len(jobs))
    nodes = [
        {
            "nodeId": f"tvmps_{sha256(f'{compute.id}/{number}'.encode()).hexdigest()}_p",
            "privateIpAddress": "127.0.0.1",
            "publicIpAddress": "127.0.0.1",
            "port": 50000 + number,
            "nodeState": "running" if job else "idle",
            "runId": job,
        }
        for number, job in enumerate(jobs)
    ]
    return JSONResponse({"nodes": nodes})


@route("DELETE", WORKSPACE + "/computes/{name}", "computes: delete",
       note="refused while unfinished jobs are on it; nothing is attached here, so nothing is detached")  # fmt: skip
async def delete_compute(call: Call) -> Response:
    compute = _find(call)
    if call.request.query_params.get("underlyingResourceAction", "Delete").lower() == "detach":
        raise bad_request(f"The compute {compute.name} was created here, not attached: delete it instead.")
    unfinished = [
        job.name
        for job in call.control.store.find(f"{call.workspace_id}/jobs/%", UNFINISHED)
        if str(job.properties.get("computeId")).lower() == compute.id.lower()
    ]
    if unfinished:  # Guess: a cluster with unfinished jobs is not deleted
        raise ArmError(
            409,
            "Conflict",
            f"The compute {compute.name} has {len(unfinished)} unfinished jobs ({', '.join(unfinished[:3])}): cancel"
            " them, or wait for their end.",
        )
    call.control.store.delete(compute.id)
    return Response(status_code=202, headers=call.control.operations.done(compute.id, OPERATIONS))


for _verb in ("start", "stop", "restart"):

    @route("POST", WORKSPACE + "/computes/{name}/" + _verb, f"computes: {_verb}",
           coverage=Coverage.REFUSED, note="an operation of compute instances, which are not modelled")  # fmt: skip
    async def refuse(call: Call) -> Response:
        _find(call)
        raise bad_request(f"'{call.params['name']}' is no compute instance: {OTHER_KINDS}, which need no start.")


@route("GET", LOCATION + "/vmSizes", "computes: sizes", note="those that are common in training and serving")
async def list_sizes(_: Call) -> Response:
    return JSONResponse(
        {
            "value": [
                {
                    "name": size.name,
                    "family": size.family,
                    "vCPUs": size.vcpus,
                    "gpus": size.gpus,
                    "osVhdSizeMB": 1047552,
                    "maxResourceVolumeMB": 1024 * size.disk,
                    "memoryGB": size.memory,
                    "lowPriorityCapable": True,
                    "premiumIO": size.premium_io,
                    "supportedComputeTypes": ["AmlCompute", "ComputeInstance"],
                }
                for size in VM_SIZES
            ]
        }
    )


@route("GET", LOCATION + "/usages", "computes: usage", note="there is no quota here: all limits are -1")
async def list_usage(call: Call) -> Response:
    """The vCPUs of the nodes that jobs hold, and the number of clusters."""
    computes = [_with_nodes(call, compute) for compute in call.control.store.children(call.id("computes"))]
    cores = dict.fromkeys(PRIORITIES, 0)
    for compute in computes:
        inner = compute.properties["properties"]
        size = BY_NAME.get(inner["vmSize"].lower())
        cores[inner["vmPriority"]] += inner["currentNodeCount"] * (size.vcpus if size else 0)
    rows = [
        ("dedicatedCores", "Total Cluster Dedicated Regional vCPUs", cores["Dedicated"]),
        ("lowPriorityCores", "Total Cluster LowPriority Regional vCPUs", cores["LowPriority"]),
        ("clusters", "Clusters", len(computes)),
    ]
    base = f"/subscriptions/{call.params['subscription']}/providers/Microsoft.MachineLearningServices"
    return JSONResponse(
        {
            "value": [
                {
                    "id": f"{base}/locations/{call.params['location']}/usages/{kind}",
                    "amlWorkspaceLocation": call.params["location"],
                    "type": f"Microsoft.MachineLearningServices/{kind}/usages",
                    "unit": "Count",
                    "currentValue": used,
                    "limit": -1,
                    "name": {"value": name, "localizedValue": name},
                }
                for kind, name, used in rows
            ]
        }
    )

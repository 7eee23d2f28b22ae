"""Routing as Resource Manager does it: paths compare without case, every call carries an api-version and a token."""

import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..identity import ARM_AUDIENCES
from ..store import Json, Resource
from .errors import ArmError, bad_request

if TYPE_CHECKING:
    from ..control import Control

log = logging.getLogger("emulator.arm")

PROVIDER = "/providers/Microsoft.MachineLearningServices"
WORKSPACE = "/subscriptions/{subscription}/resourceGroups/{group}" + PROVIDER + "/workspaces/{workspace}"
# What Azure accepts as a name or version of what a client makes, by the parameter of the path that holds it.
ASSET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
ENDPOINT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")
NAMES = {"name": ASSET_NAME, "version": ASSET_NAME, "endpoint": ENDPOINT_NAME, "deployment": ENDPOINT_NAME}
MAX_BODY = 4 * 1024 * 1024  # bytes; Resource Manager's documented limit for a request


@dataclass
class Call:
    """One authenticated request: the path's parameters, its JSON body, and the control process behind it."""

    control: "Control"
    request: Request
    params: dict[str, str]
    body: Json

    @property
    def workspace_id(self) -> str:
        return self.control.home.project.workspace_id

    @property
    def properties(self) -> Json:
        properties = self.body.get("properties")
        if not isinstance(properties, dict):
            raise bad_request("The request's body needs an object 'properties'.")
        return properties

    def id(self, path: str) -> str:
        """The ARM id of something below the workspace: ``id("jobs/{name}")``."""
        return f"{self.workspace_id}/{path.format(**self.params)}"


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    method: str
    template: str
    pattern: re.Pattern[str]
    handler: Handler


ROUTES: list[Route] = []


def route(method: str, template: str) -> Callable[[Handler], Handler]:
    """Register a handler; ``{name}`` matches one path segment."""
    pattern = re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template)) + "/?", re.IGNORECASE)

    def register(handler: Handler) -> Handler:
        ROUTES.append(Route(method, template, pattern, handler))
        return handler

    return register


async def dispatch(control: "Control", request: Request) -> Response:
    """Answer one request. Whatever goes wrong has Azure's error shape; a bug is a 500 with its traceback in the log."""
    started = time.perf_counter()
    try:
        response = await _answer(control, request)
    except ArmError as error:
        log.info("arm method=%s path=%s refused: %s", request.method, request.url.path, error.message)
        response = error.response()
    except Exception:
        log.exception("arm method=%s path=%s", request.method, request.url.path)
        response = ArmError(500, "ServiceError", "The local Resource Manager failed; see control.log.").response()
    milliseconds = 1000 * (time.perf_counter() - started)
    log.info(
        "arm method=%s path=%s status=%d ms=%.0f",
        request.method,
        request.url.path,
        response.status_code,
        milliseconds,
    )
    response.headers.setdefault("x-ms-request-id", str(uuid4()))
    return response


async def _answer(control: "Control", request: Request) -> Response:
    path = request.url.path
    methods = set()
    for candidate in ROUTES:
        match = candidate.pattern.fullmatch(path)
        if match is None:
            continue
        methods.add(candidate.method)
        if candidate.method == request.method:
            _authenticate(control, request)
            params = match.groupdict()
            _check_scope(control, params)
            if request.method == "PUT":
                _check_names(params)
            return await candidate.handler(Call(control, request, params, await _json_body(request)))
    if methods:
        raise ArmError(
            405,
            "MethodNotAllowed",
            f"{request.method} is not allowed here; allowed: {', '.join(sorted(methods))}.",
        )
    raise ArmError(
        404,
        "NotFound",
        f"The local Azure does not model {request.method} {path} (docs/emulator.md lists what it does).",
    )


def _authenticate(control: "Control", request: Request) -> None:
    try:
        audiences = (*ARM_AUDIENCES, control.urls["arm"])  # the SDK asks for a token for the cloud it was told of
        control.authority.verify(request.headers.get("authorization"), audiences)
    except PermissionError as error:
        raise ArmError(401, "InvalidAuthenticationToken", str(error), headers={"WWW-Authenticate": "Bearer"}) from None


def _check_scope(control: "Control", params: dict[str, str]) -> None:
    """The one subscription, group and workspace that exist, else what Azure says of a missing one."""
    project = control.home.project
    if params.get("subscription", project.subscription).lower() != project.subscription:
        raise ArmError(404, "SubscriptionNotFound", f"The subscription '{params['subscription']}' could not be found.")
    if params.get("group", project.resource_group).lower() != project.resource_group.lower():
        raise ArmError(404, "ResourceGroupNotFound", f"Resource group '{params['group']}' could not be found.")
    if params.get("workspace", project.workspace).lower() != project.workspace.lower():
        raise ArmError(
            404,
            "ResourceNotFound",
            f"The Resource 'Microsoft.MachineLearningServices/workspaces/{params['workspace']}' under resource group"
            f" '{project.resource_group}' was not found.",
        )


def _check_names(params: dict[str, str]) -> None:
    """Names become folders and parts of addresses here: what Azure refuses as one must not come through."""
    for parameter, value in params.items():
        pattern = NAMES.get(parameter)
        if pattern is ENDPOINT_NAME and not pattern.fullmatch(value):
            raise bad_request(
                f"'{value}' is no {parameter} name: give 3 to 32 letters, digits and '-', first a letter, no '-' last."
            )
        if pattern is ASSET_NAME and not pattern.fullmatch(value):
            raise bad_request(
                f"'{value}' is no {parameter}: give 1 to 255 letters, digits, '_', '-', '.', first a letter or digit."
            )


async def _json_body(request: Request) -> Json:
    raw = await request.body()
    if len(raw) > MAX_BODY:
        raise ArmError(413, "RequestContentTooLarge", f"The request is larger than {MAX_BODY} bytes.")
    if not raw:
        return {}
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise ArmError(400, "InvalidRequestContent", f"The request content is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise ArmError(400, "InvalidRequestContent", "The request content must be a JSON object.")
    return body


def arm_type(id: str) -> str:
    """``…/providers/Microsoft.MachineLearningServices/workspaces/w/jobs/j`` → ``…/workspaces/jobs``."""
    namespace, *segments = id.split("/providers/", 1)[1].split("/")
    return "/".join([namespace, *segments[::2]])


def short_id(id: str) -> str:
    """The part of an ARM id below the workspace: ``models/m/versions/1``."""
    return id.split("/workspaces/")[-1].partition("/")[2]


def envelope(resource: Resource, principal_id: str) -> Json:
    """A stored resource as Azure shows it."""
    return {
        "id": resource.id,
        "name": resource.name,
        "type": arm_type(resource.id),
        **resource.body,
        "systemData": {
            "createdAt": resource.created,
            "createdBy": principal_id,
            "createdByType": "Application",
            "lastModifiedAt": resource.modified,
            "lastModifiedBy": principal_id,
            "lastModifiedByType": "Application",
        },
    }


def show(call: Call, resource: Resource, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(envelope(resource, call.control.state.principal_id), status, headers)


def page(call: Call, resources: list[Resource]) -> Response:
    """One page of a list. ``$skip`` is our continuation; ``$top`` limits, as Azure's lists take them."""
    query = call.request.query_params
    try:
        skip, top = int(query.get("$skip", 0)), int(query.get("$top", 50))
    except ValueError:
        raise bad_request("$skip and $top must be whole numbers.") from None
    chosen = resources[skip : skip + top]
    answer: dict[str, Any] = {"value": [envelope(r, call.control.state.principal_id) for r in chosen]}
    if "$top" not in query and skip + top < len(resources):
        answer["nextLink"] = str(call.request.url.include_query_params(**{"$skip": skip + top}))
    return JSONResponse(answer)

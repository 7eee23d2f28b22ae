"""Routing as Resource Manager does it: paths compare without case, every call carries an api-version and a token."""

import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
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
PAGE_SIZE = 50  # Guess: a page of a list has 50 rows; how many, is the service's own affair
LIST_VIEWS = {"activeonly": False, "archivedonly": True, "all": None}
MAX_BODY = 4 * 1024 * 1024  # bytes; Resource Manager's documented limit for a request
MAX_NESTING = 100  # objects within objects: deeper ones can be neither stored nor answered
QUERY = re.compile(r"\?[^\s']+")  # of an address in a message: it may hold a signature, which no log may


@dataclass
class Call:
    """One authenticated request: the path's parameters, its JSON body, and the control process behind it."""

    control: "Control"
    request: Request
    params: dict[str, str]
    body: Json
    route: "Route"

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

    @property
    def view(self) -> bool | None:
        """What ``listViewType`` asks for: archived assets (True), the others (False, the default), or all (None)."""
        asked = self.request.query_params.get("listViewType", "ActiveOnly")
        if asked.lower() not in LIST_VIEWS:
            raise bad_request(f"listViewType '{asked}' is not known; use ActiveOnly, ArchivedOnly or All.")
        return LIST_VIEWS[asked.lower()]

    def check_state(self, resource: Resource) -> None:
        """Refuse this operation in the states that its route names (``refuses``), with the status that it names."""
        state = str(resource.properties.get("status") or resource.properties.get("provisioningState"))
        status = self.route.refuses.get(state)
        if status == 409:
            raise ArmError(
                409,
                "Conflict",
                f"'{resource.name}' has another operation in progress ({state}); wait for its end.",
                "ResourceOperationInProgress",
            )
        if status is not None:
            raise ArmError(
                status, "UserError", f"'{resource.name}' is {state}, which forbids this operation.", "InvalidState"
            )


Handler = Callable[[Call], Awaitable[Response]]


class Coverage(StrEnum):
    """How much of an operation is here, in the words of docs/emulator.md's table."""

    FULL = "yes"
    PARTLY = "partly"  # the note says what is missing
    REFUSED = "refused"  # answered with Azure's error shape; the note says why


@dataclass(frozen=True)
class Route:
    """One operation: how it is called, what answers it, and its row of the coverage table."""

    method: str
    template: str
    pattern: re.Pattern[str]
    handler: Handler
    operation: str
    coverage: Coverage
    note: str
    refuses: Mapping[str, int]


ROUTES: list[Route] = []


def route(
    method: str,
    template: str,
    operation: str,
    *,
    coverage: Coverage = Coverage.FULL,
    note: str = "",
    refuses: Mapping[str, int] | None = None,
) -> Callable[[Handler], Handler]:
    """Register a handler; ``{name}`` matches one path segment.

    ``operation`` names it in the coverage table ("jobs: cancel"). ``refuses`` are the resource's states in which it is
    refused and the HTTP status of that answer; the handler enforces them with ``call.check_state(resource)``.
    """
    pattern = re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template)) + "/?", re.IGNORECASE)

    def register(handler: Handler) -> Handler:
        ROUTES.append(Route(method, template, pattern, handler, operation, coverage, note, refuses or {}))
        return handler

    return register


async def dispatch(control: "Control", request: Request) -> Response:
    """Answer one request. Whatever goes wrong has Azure's error shape; a bug is a 500 with its traceback in the log."""
    started = time.perf_counter()
    try:
        response = await _answer(control, request)
    except ArmError as error:
        log.info("arm method=%s path=%s refused: %s", request.method, request.url.path, QUERY.sub("?…", error.message))
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
            return await candidate.handler(Call(control, request, params, await _json_body(request), candidate))
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
        # What comes in must be able to go out again: neither NaN, Infinity nor half a surrogate pair can.
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        too_deep = _nested_deeper(body, MAX_NESTING)
    except ValueError as error:
        raise ArmError(400, "InvalidRequestContent", f"The request content is not valid JSON: {error}.") from None
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ArmError(400, "InvalidRequestContent", f"The request content is nested deeper than {MAX_NESTING} levels.")
    if not isinstance(body, dict):
        raise ArmError(400, "InvalidRequestContent", "The request content must be a JSON object.")
    return body


def _nested_deeper(value: Any, levels: int) -> bool:
    inner = [value]
    for _ in range(levels + 1):
        inner = [
            child
            for outer in inner
            if isinstance(outer, dict | list)
            for child in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(inner)


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


def listing(
    call: Call,
    collection: str,
    *,
    newest_first: bool = False,
    archived: bool | None = None,
    where: Mapping[str, Any] | None = None,
    prepare: Callable[[Resource], Resource] = lambda resource: resource,
) -> Response:
    """One page of a collection, as Azure's lists give it: at most ``$top`` (or PAGE_SIZE), and a link to the next.

    ``archived`` and ``where`` choose as in ``Store.select``; ``prepare`` completes a resource before it is shown.
    """
    skip, top = whole_number(call, "$skip", 0), whole_number(call, "$top", PAGE_SIZE)
    size = min(top, PAGE_SIZE)
    found = call.control.store.select(
        collection, archived=archived, where=where, newest_first=newest_first, skip=skip, limit=size + 1
    )
    answer = {"value": [envelope(prepare(r), call.control.state.principal_id) for r in found[:size]]}
    return JSONResponse({**answer, **_next_link(call, skip, len(found) > size)})


def page(call: Call, resources: Sequence[Resource]) -> Response:
    """The same of a list that is at hand."""
    skip, top = whole_number(call, "$skip", 0), whole_number(call, "$top", PAGE_SIZE)
    size = min(top, PAGE_SIZE)
    answer = {"value": [envelope(r, call.control.state.principal_id) for r in resources[skip : skip + size]]}
    return JSONResponse({**answer, **_next_link(call, skip, skip + size < len(resources))})


def _next_link(call: Call, skip: int, more: bool) -> Json:
    """The link to the next page. Who asked for the first ``$top`` gets no more than those."""
    top = whole_number(call, "$top", 0)
    if not more or 0 < top <= PAGE_SIZE:
        return {}
    left = {"$top": top - PAGE_SIZE} if top else {}
    return {"nextLink": str(call.request.url.include_query_params(**{"$skip": skip + PAGE_SIZE, **left}))}


def whole_number(call: Call, name: str, default: int) -> int:
    text = call.request.query_params.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,9}", text):
        raise bad_request(f"{name} must be a whole number of at most nine digits.")
    return int(text)

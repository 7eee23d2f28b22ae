"""HTTP: the operations API (docs/operations.md), for people with an operator's key. operations_*.py do the work."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import azure.functions as func
import msgspec
from azurefunctions.extensions.http.fastapi import Request, Response

from . import operations_models, operations_poison, operations_runs, rollback
from .advance import store
from .chat_keys import CHAT, OPERATIONS, KeyRefused, check_key
from .intake import MODEL_NAME
from .operations_answers import MAX_BODY_BYTES, Refused, as_refusal, not_found, page_size, read_body, read_note
from .operations_runs import Action, brief
from .runs import Run
from .settings import SettingsError, settings

log = logging.getLogger(__name__)
blueprint = func.Blueprint()

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
ACTIONS: dict[str, Action] = {"approve": "approve", "reject": "reject", "cancel": "cancel", "retry": "retry"}
LONGEST = 100.0  # seconds that a request may take; Azure's front end gives up after 230
# Threads of its own: those of the event loop are for the events, which have to be answered at once.
_threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="operations")
Result = TypeVar("Result")


class Asked:
    """A request whose key has been checked. ``by``: the name of that key."""

    def __init__(self, req: Request, by: str) -> None:
        self.req = req
        self.by = by
        self.limit = 0
        self.after = ""

    def of(self, name: str) -> str:
        """A part of the path."""
        return str(self.req.path_params.get(name, ""))

    def query(self, *known: str) -> dict[str, str]:
        """The query's values. Raises Refused for a name that is not ``known``: a misspelt filter would list all."""
        given = dict(self.req.query_params)
        for name in given:
            if name not in (*known, "limit", "after"):
                names = ", ".join((*known, "limit", "after"))
                raise Refused(400, "unknown_parameter", f"The parameter {name[:40]!r} is not known; there are {names}.")
        self.limit, self.after = page_size(given.get("limit")), given.get("after", "")
        return {name: given.get(name, "") for name in known}

    async def body(self, *known: str) -> dict[str, str]:
        """The fields of the request's body. Raises Refused."""
        body = bytearray()
        async for part in self.req.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                break  # read_body says so
        return read_body(bytes(body), *known)


@blueprint.function_name("operations_list_runs")
@blueprint.route(route="operations/runs", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def list_runs(req: Request) -> Response:
    """A page of runs, the newest data first."""

    async def answer(asked: Asked) -> Response:
        query = asked.query("model", "stage")
        listed = operations_runs.list_runs
        return _json(await _work(listed, store(), query["model"], query["stage"], asked.limit, asked.after))

    return await _answer(req, answer)


@blueprint.function_name("operations_get_run")
@blueprint.route(route="operations/runs/{id}", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def get_run(req: Request) -> Response:
    """A run's record."""

    async def answer(asked: Asked) -> Response:
        return _json(await _work(operations_runs.get_run, store(), asked.of("id")))

    return await _answer(req, answer)


@blueprint.function_name("operations_ask_run")
@blueprint.route(route="operations/runs/{id}/{action}", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
async def ask_run(req: Request) -> Response:
    """Approve, reject, cancel a run, or take it up again."""

    async def answer(asked: Asked) -> Response:
        action = ACTIONS.get(asked.of("action"))
        if asked.of("action") in ("retire", "rollback"):
            raise not_found("such action", "models are retired and rolled back: POST operations/models/{model}/…")
        if action is None:
            raise not_found("such action", f"a run can be asked to {', '.join(ACTIONS)}")
        note = read_note(await asked.body("note"))
        return _moved(await _work(operations_runs.ask, store(), asked.of("id"), action, asked.by, note))

    return await _answer(req, answer)


@blueprint.function_name("operations_list_models")
@blueprint.route(route="operations/models", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def list_models(req: Request) -> Response:
    """A page of models."""

    async def answer(asked: Asked) -> Response:
        asked.query()
        return _json(await _work(operations_models.list_models, store(), asked.limit, asked.after))

    return await _answer(req, answer)


@blueprint.function_name("operations_get_model")
@blueprint.route(route="operations/models/{model}", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def get_model(req: Request) -> Response:
    """What serves under a model's name, and its versions."""

    async def answer(asked: Asked) -> Response:
        asked.query()
        return _json(await _work(operations_models.get_model, store(), asked.of("model"), asked.limit, asked.after))

    return await _answer(req, answer)


@blueprint.function_name("operations_roll_back")
@blueprint.route(route="operations/models/{model}/rollback", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
async def roll_back(req: Request) -> Response:
    """Have an earlier version serve again."""

    async def answer(asked: Asked) -> Response:
        body = await asked.body("version", "note")
        wanted = (_model(asked), body.get("version", ""), asked.by, read_note(body))
        return _moved(await _work(rollback.roll_back, store(), *wanted))

    return await _answer(req, answer)


@blueprint.function_name("operations_retire")
@blueprint.route(route="operations/models/{model}/retire", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
async def retire(req: Request) -> Response:
    """Delete a model's endpoint and keep its versions."""

    async def answer(asked: Asked) -> Response:
        note = read_note(await asked.body("note"))
        return _moved(await _work(operations_models.retire, store(), _model(asked), asked.by, note))

    return await _answer(req, answer)


@blueprint.function_name("operations_delete_version")
@blueprint.route(
    route="operations/models/{model}/versions/{version}", methods=["DELETE"], auth_level=func.AuthLevel.ANONYMOUS
)
async def delete_version(req: Request) -> Response:
    """Archive a version that no deployment has."""

    async def answer(asked: Asked) -> Response:
        asset = await _work(operations_models.delete_version, store(), _model(asked), asked.of("version"))
        return _json({"model": _model(asked), "version": asked.of("version"), "run_id": asset.run_id, "archived": True})

    return await _answer(req, answer)


@blueprint.function_name("operations_list_poison")
@blueprint.route(route="operations/poison", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def list_poison(req: Request) -> Response:
    """A page of the messages that could not be worked on."""

    async def answer(asked: Asked) -> Response:
        asked.query()
        return _json(await _work(operations_poison.list_poison, asked.limit, asked.after))

    return await _answer(req, answer)


@blueprint.function_name("operations_replay_poison")
@blueprint.route(route="operations/poison/{name}/replay", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
async def replay_poison(req: Request) -> Response:
    """Send such a message again."""

    async def answer(asked: Asked) -> Response:
        await asked.body()
        return _json(await _work(operations_poison.replay, asked.of("name"), asked.by), 202)

    return await _answer(req, answer)


async def _answer(req: Request, route: Callable[[Asked], Awaitable[Response]]) -> Response:
    """Check the key, run ``route``, and turn whatever goes wrong into the API's shape."""
    given = REQUEST_ID.fullmatch(req.headers.get("x-request-id", ""))
    request_id, by, started = given[0] if given else uuid.uuid4().hex, "-", time.perf_counter()
    code = ""
    try:
        by = _operator(req.headers.get("authorization", ""))
        response = await asyncio.wait_for(route(Asked(req, by)), LONGEST)
    except Exception as exception:
        refused = as_refusal(exception, request_id)
        code = refused.code
        response = _json(refused.body, refused.status, refused.headers)
    response.headers["x-request-id"] = request_id
    response.headers["cache-control"] = "no-store"
    log.info(
        "operations request=%s key=%s method=%s path=%r status=%d code=%s ms=%.1f",
        request_id, by, req.method, req.url.path[:200], response.status_code, code or "-",
        (time.perf_counter() - started) * 1000,
    )  # fmt: skip
    return response


def _operator(authorization: str) -> str:
    """The name of the operator's key. Raises KeyRefused, or Refused (403) for a key that may only chat."""
    try:
        return check_key(authorization, settings().operator_api_keys, OPERATIONS)
    except KeyRefused as refused:
        try:
            check_key(authorization, settings().chat_api_keys, CHAT)
        except (KeyRefused, SettingsError):
            raise refused from None
        message = f"This key opens the {CHAT.name}; operations need one of {OPERATIONS.setting}."
        raise Refused(403, "not_an_operator", message) from None


async def _work(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run what waits for storage and Azure in a thread."""
    return await asyncio.get_running_loop().run_in_executor(_threads, lambda: work(*arguments))


def _model(asked: Asked) -> str:
    model = asked.of("model")
    if not MODEL_NAME.fullmatch(model):
        raise not_found("model of this name", "GET operations/models lists them")
    return model


def _moved(outcome: tuple[Run, bool]) -> Response:
    """202 while it is still to come, 200 once nothing is left to do."""
    run, to_come = outcome
    return _json({"run": brief(run)}, 202 if to_come else 200)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, headers=headers, media_type="application/json")

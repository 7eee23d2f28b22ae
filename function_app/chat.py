"""HTTP: chat in OpenAI's format, the list of live models, the API's description, and the page to chat on.

chat_answer.py answers.
"""

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import azure.functions as func
from azurefunctions.extensions.http.fastapi import HTMLResponse, Request, Response

from . import callers
from .callers import Caller
from .chat_answer import answer_chat
from .chat_errors import as_api_error
from .chat_log import ChatLog
from .chat_page import read_page
from .live import LiveModel, live_models
from .model_choice import choose, deployments, pin_not_found, versions
from .openai_api import model_object, to_json, unknown_url
from .openapi import read_document

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

blueprint = func.Blueprint()


@blueprint.function_name("chat_completions")
@blueprint.route(route="v1/chat/completions", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
async def chat_completions(req: Request) -> Response:
    """Answer a chat request with the live model that it names, whole or as a stream of events."""
    return await _answer(req, answer_chat)


@blueprint.function_name("list_models")
@blueprint.route(route="v1/models", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def list_models(req: Request) -> Response:
    """List the live models."""
    return await _answer(req, _list_models)


@blueprint.function_name("get_model")
@blueprint.route(route="v1/models/{model}", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def get_model(req: Request) -> Response:
    """Describe one live model, or what a pin of it leads to."""
    return await _answer(req, _get_model)


@blueprint.function_name("openapi_document")
@blueprint.route(route="v1/openapi.json", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def openapi_document(req: Request) -> Response:  # noqa: ARG001
    """Serve the API's description. Like the page it is public, and says nothing of what is live."""
    return Response(read_document(), media_type="application/json", headers={"Cache-Control": "no-cache"})


@blueprint.function_name("unknown_call")
@blueprint.route(
    route="v1/{*path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], auth_level=func.AuthLevel.ANONYMOUS
)
async def unknown_call(req: Request) -> Response:
    """Say what there is: by itself the host answers a wrong base URL, or embeddings, with an empty 404."""
    return await _answer(req, _unknown_call)


@blueprint.function_name("chat_page")
@blueprint.route(route="chat", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def chat_page(req: Request) -> Response:  # noqa: ARG001
    """Serve the page. It holds no secret: the visitor types the key in."""
    page, headers = read_page()
    return HTMLResponse(page, headers=headers)


async def _answer(req: Request, route: Callable[[Request, ChatLog, Caller], Awaitable[Response]]) -> Response:
    """Find out who is calling, run ``route``, and turn whatever goes wrong into OpenAI's shape."""
    log = ChatLog(REQUEST_ID.fullmatch(req.headers.get("x-request-id", "")))
    try:
        caller = await callers.identify(req.headers.get("authorization", ""))
        log.key = caller.name
        response = await route(req, log, caller)
    except Exception as exception:
        error = as_api_error(exception, log.request_id)
        log.write(error.status, error.code)
        response = _json(error.body, error.status, error.headers)
    response.headers["x-request-id"] = log.request_id
    return response


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status_code=status, headers=headers, media_type="application/json")


async def _list_models(req: Request, log: ChatLog, caller: Caller) -> Response:  # noqa: ARG001
    models = await live_models().all()
    log.write(200)
    return _json(
        {
            "object": "list",
            "data": [_describe(live) for name, live in sorted(models.items()) if caller.may_use(name)],
        }
    )


async def _get_model(req: Request, log: ChatLog, caller: Caller) -> Response:
    choice = await choose(req.path_params["model"], caller)
    log.model = choice.live.model
    if choice.deployment not in ("", choice.live.deployment):  # only the endpoint knows, and it is not asked here
        raise pin_not_found(choice.asked, choice.live)
    log.write(200)
    return _json(_describe(choice.live, choice.asked))


async def _unknown_call(req: Request, log: ChatLog, caller: Caller) -> Response:  # noqa: ARG001
    raise unknown_url(req.method, req.url.path)


def _describe(live: LiveModel, name: str = "") -> dict[str, Any]:
    try:
        created = int(datetime.fromisoformat(live.since).timestamp())
    except ValueError:
        created = 0
    details = {
        "base_model": live.base_model, "context_length": live.context_length, "run_id": live.run_id,
        "versions": versions(live), "deployments": deployments(live),
    }  # fmt: skip
    return model_object(name or live.model, created, details)

"""What the API says of itself is true: the document is valid, and the real functions keep to it, whatever is sent.

schemathesis makes the requests out of the document, both such as it allows and such as it forbids.
"""

import asyncio
import json
from collections import Counter
from typing import Any

import aiohttp
import jsonschema
import pytest
import schemathesis
from chat_support import World
from hypothesis import HealthCheck, Phase, given, settings
from operations_support import application
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from function_app import openai_messages, openai_parameters
from function_app.chat import blueprint
from function_app.openai_parameters import COUNTS, EFFORTS, KNOWN, NUMBERS, REFUSED, RENDERER_ARGUMENTS
from function_app.openapi import read_document

DOCUMENT = json.loads(read_document())
SCHEMAS = DOCUMENT["components"]["schemas"]
FIELDS = SCHEMAS["ChatRequest"]["properties"]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
# What JSON Schema cannot say: that a tool's answer follows its call, and that two numbers are equal.
BEYOND_SCHEMA = ("must not be tool where", "says another number than max_completion_tokens")


NOT_THE_API = {"/api/chat", "/api/v1/{path:path}"}  # the page, and every call that is none of the others


def test_the_document_is_valid_openapi() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_it_has_every_route_and_no_other() -> None:
    routes = {(route.path, method) for route in application(blueprint).routes for method in route.methods - {"HEAD"}}
    base = DOCUMENT["servers"][0]["url"]
    described = {(base + path, method.upper()) for path, found in DOCUMENT["paths"].items() for method in found}
    assert described == {(path, method) for path, method in routes if path not in NOT_THE_API}


def test_its_fields_and_bounds_are_those_of_the_code() -> None:
    assert FIELDS.keys() == KNOWN | REFUSED.keys()
    assert all(FIELDS[name]["type"] == "null" for name in REFUSED)
    for name, bounds in {**NUMBERS, **COUNTS}.items():
        assert (FIELDS[name]["minimum"], FIELDS[name]["maximum"]) == bounds, name
    assert FIELDS["reasoning_effort"]["enum"] == [*EFFORTS, None]
    reserved = FIELDS["chat_template_kwargs"]["propertyNames"]["not"]["anyOf"][1]["enum"]
    assert set(reserved) == RENDERER_ARGUMENTS
    assert FIELDS["stop"]["anyOf"][1]["maxItems"] == openai_parameters.MAX_STOPS
    assert FIELDS["tools"]["maxItems"] == openai_parameters.MAX_TOOLS
    assert FIELDS["user"]["maxLength"] == openai_parameters.MAX_LABEL
    assert FIELDS["logit_bias"]["maxProperties"] == openai_parameters.MAX_LOGIT_BIASES
    assert FIELDS["messages"]["maxItems"] == openai_messages.MAX_MESSAGES
    assert SCHEMAS["Content"]["anyOf"][0]["maxLength"] == openai_messages.MAX_MESSAGE_CHARACTERS
    by_role = {role: kind["properties"] for kind in SCHEMAS["Message"]["anyOf"] for role in _roles(kind)}
    assert by_role.keys() == set(openai_messages.ROLES)
    for role, keys in openai_messages.KEYS.items():
        more = openai_messages.EMPTY_KEYS if role == "assistant" else set()
        used = {name for name, schema in by_role[role].items() if schema != {"type": "null"}}
        assert used == {"role", "content"} | keys | more


def _roles(kind: dict[str, Any]) -> list[str]:
    role = kind["properties"]["role"]
    return role.get("enum") or [role["const"]]


async def ask_as_it_says(world: World, mode: GenerationMode, examples: int) -> Counter[int]:
    """Send every operation requests out of the document, check the answers, and count their statuses."""
    seen: Counter[int] = Counter()

    def ask() -> None:
        schema = schemathesis.openapi.from_url(f"{world.url}/v1/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(
                max_examples=examples if operation.method == "post" else examples // 6,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def run(case: schemathesis.Case) -> None:
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and case.body["model"]:
                    case.body["model"] = "support"
                answer = case.call(headers={"Authorization": f"Bearer {world.key}"})
                case.validate_response(answer, checks=CHECKS)
                seen[answer.status_code] += 1
                if mode is GenerationMode.POSITIVE and answer.status_code == 400:
                    assert any(text in answer.text for text in BEYOND_SCHEMA), answer.text

            run()

    await asyncio.to_thread(ask)
    return seen


async def test_what_it_allows_is_answered(world: World) -> None:
    seen = await ask_as_it_says(world, GenerationMode.POSITIVE, 70)
    assert seen.keys() <= {200, 400, 404}
    assert seen[200] >= 40, seen
    assert len(world.endpoint.bodies) >= 30


async def test_what_it_forbids_is_refused(world: World) -> None:
    seen = await ask_as_it_says(world, GenerationMode.NEGATIVE, 70)
    assert seen[400] >= 30, seen


async def test_without_a_key_only_the_document_and_the_page_are_there(world: World) -> None:
    error = _validator("Error")
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{world.url}/v1/openapi.json") as answer:
            assert (answer.status, await answer.json()) == (200, DOCUMENT)
        for method, path in (("POST", "chat/completions"), ("GET", "models"), ("GET", "models/support")):
            async with http.request(method, f"{world.url}/v1/{path}", data=b"{}") as answer:
                assert answer.status == 401
                error.validate(await answer.json())


@pytest.mark.parametrize("usage", [False, True])
async def test_the_events_of_a_stream_are_as_it_says(world: World, usage: bool) -> None:
    chunk = _validator("ChatCompletionChunk")
    body = {"model": "support", "messages": [{"role": "user", "content": "Hi"}], "stream": True,
            "stream_options": {"include_usage": usage}}  # fmt: skip
    headers = {"Authorization": f"Bearer {world.key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{world.url}/v1/chat/completions", json=body) as answer,
    ):
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        events = (await answer.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        chunk.validate(json.loads(event.removeprefix("data: ")))


def _validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**DOCUMENT, "$ref": f"#/components/schemas/{name}"})

"""A chat that has outgrown the model's context loses its oldest turns, whole, and only as many as it must."""

import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from chat_support import StubEndpoint, StubIdentity, World, event, serve_endpoint, serve_identity
from hypothesis import given
from hypothesis import strategies as st

from function_app.flow_runner import FlowError, FlowStream, flow_runner

flow_runner()  # puts flow/ on the path
context_window = sys.modules["context_window"]
Window = context_window.Window


@pytest.fixture(autouse=True)
def _nothing_learned() -> Iterator[None]:
    context_window._ratios.clear()
    yield
    context_window._ratios.clear()


@pytest.fixture
async def endpoint(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StubEndpoint]:
    async with serve_identity() as identity, serve_endpoint(*certificate) as stub:
        use(identity, certificate[0], monkeypatch)
        yield stub


def use(identity: StubIdentity, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDENTITY_ENDPOINT", identity.url)
    monkeypatch.setenv("IDENTITY_HEADER", "header")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


class Server:
    """A model server that counts every byte of a content as ``ratio`` tokens and refuses as it is told to."""

    def __init__(self, context: int, ratio: float = 1.0, refusal: dict[str, Any] | None = None) -> None:
        self.context, self.ratio = context, ratio
        self.refusal = refusal or {"code": "context_length_exceeded"}
        self.clips = True  # serving/ gives a long answer what room there is; vLLM refuses it
        self.as_event = False  # whether a refusal is the first event of a stream
        self.seen: list[list[str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer with the count in ``usage``, or 400."""
        body = json.loads(await request.text())
        tokens = round(sum(len(str(message["content"]).encode()) for message in body["messages"]) * self.ratio)
        self.seen.append([message["content"][:1] for message in body["messages"]])
        if tokens + (1 if self.clips else body.get("max_tokens", 1)) > self.context:
            message = f"This model's maximum context length is {self.context} tokens"
            error = {"error": {"message": message, **self.refusal}}
            if self.as_event:
                text = f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n"
                return web.Response(text=text, content_type="text/event-stream")
            return web.json_response(error, status=400)
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
        choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
        if not body.get("stream"):
            return web.json_response({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event([{"index": 0, "delta": {"content": "ok"}, "finish_reason": None}]))
        await response.write(event([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
        await response.write(event([], usage=usage) + b"data: [DONE]\n\n")
        return response


def chat(turns: int, size: int = 100, system: bool = True) -> list[dict[str, Any]]:
    """``turns`` questions of ``size`` bytes that begin with a, b, c …, all but the last with an answer A, B, C …."""
    messages = [{"role": "system", "content": "!"}] if system else []
    for number in range(turns):
        messages.append({"role": "user", "content": chr(97 + number) * size})
        messages.append({"role": "assistant", "content": chr(65 + number) * size})
    return messages[:-1]


def inputs(endpoint: StubEndpoint, messages: list[dict[str, Any]], **rules: Any) -> dict[str, Any]:
    parameters = rules.pop("parameters", {})
    return {
        "messages": messages, "parameters": parameters, "model": "support", "stream": rules.pop("stream", False),
        "endpoint": {"scoring_uri": endpoint.uri}, "rules": {"context_length": 1000, **rules},
    }  # fmt: skip


async def test_a_chat_that_fits_is_sent_whole_and_once(endpoint: StubEndpoint) -> None:
    server = Server(1000)
    endpoint.handler = server.answer
    answer = await flow_runner().run(inputs(endpoint, chat(3)))
    assert isinstance(answer, dict)
    assert "dropped_messages" not in answer
    assert server.seen == [["!", "a", "A", "b", "B", "c"]]


async def test_the_server_teaches_how_long_its_tokens_are(endpoint: StubEndpoint) -> None:
    server = Server(1000)
    endpoint.handler = server.answer
    for number in range(1, 13):  # a chat that grows by 200 tokens with each question
        answer = await flow_runner().run(inputs(endpoint, chat(number)))
        assert isinstance(answer, dict)
    # It had learned before the chat was too long: nothing was ever refused.
    assert len(server.seen) == 12
    assert server.seen[-1][0] == "!"
    assert server.seen[-1][-1] == "l"
    assert answer["dropped_messages"] == 24 - len(server.seen[-1]) > 0
    # What is sent uses the room there is: 750 tokens beside the quarter that is kept for the answer.
    assert 5 <= len(server.seen[-1]) - 1 <= 7


@pytest.mark.parametrize("refusal", [{"code": "context_length_exceeded"}, {"code": 400, "param": "input_tokens"}])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_chat_is_sent_again_with_less_of_its_history(
    endpoint: StubEndpoint, refusal: dict[str, Any], stream: bool
) -> None:
    server = Server(1000, refusal=refusal)
    endpoint.handler = server.answer
    answer = await flow_runner().run(
        inputs(endpoint, chat(10), stream=stream, parameters={"stream_options": {"include_usage": True}})
    )
    first = answer.first if isinstance(answer, FlowStream) else answer
    assert 2 <= len(server.seen) <= 4
    assert server.seen[-1][0] == "!"
    assert server.seen[-1][-1] == "j"
    assert first["dropped_messages"] == 20 - len(server.seen[-1])
    if isinstance(answer, FlowStream):
        chunks = [chunk async for chunk in answer]
        assert [chunk.get("dropped_messages") for chunk in chunks[1:]] == [None, None]
    before = len(server.seen)
    await flow_runner().run(inputs(endpoint, chat(10)))
    assert len(server.seen) == before + 1, "the refusal and the answer taught nothing"


async def test_a_refusal_as_the_first_event_of_a_stream_is_one(endpoint: StubEndpoint) -> None:
    server = Server(1000, refusal={"code": 400})
    server.as_event = True
    endpoint.handler = server.answer
    answer = await flow_runner().run(inputs(endpoint, chat(10), stream=True))
    assert isinstance(answer, FlowStream)
    assert answer.first["dropped_messages"] == 20 - len(server.seen[-1])
    await answer.aclose()
    with pytest.raises(FlowError) as error:
        await flow_runner().run(inputs(endpoint, [{"role": "user", "content": "x" * 2000}], stream=True))
    assert (error.value.upstream_status, error.value.code) == (400, "context_length_exceeded")


async def test_nothing_left_to_leave_out_is_the_callers_to_know(endpoint: StubEndpoint) -> None:
    server = Server(1000, refusal={"code": 400, "param": "input_tokens"})
    endpoint.handler = server.answer
    with pytest.raises(FlowError, match=r"maximum context length is 1000 tokens.*\(4 messages of the history") as error:
        await flow_runner().run(inputs(endpoint, [*chat(3), {"role": "user", "content": "x" * 2000}]))
    assert (error.value.upstream_status, error.value.code, error.value.param) == (
        400, "context_length_exceeded", "messages",
    )  # fmt: skip
    assert server.seen[-1] == ["!", "c", "x"]  # what the user said in a row belongs together


async def test_without_trimming_the_refusal_goes_to_the_caller(endpoint: StubEndpoint) -> None:
    server = Server(1000, refusal={"code": 400})
    endpoint.handler = server.answer
    with pytest.raises(FlowError, match="maximum context length") as error:
        await flow_runner().run(inputs(endpoint, chat(10), trim_history=False))
    assert error.value.code == "context_length_exceeded"
    assert len(server.seen) == 1


async def test_a_server_that_refuses_whatever_it_gets_is_asked_four_times(endpoint: StubEndpoint) -> None:
    server = Server(0)
    endpoint.handler = server.answer
    with pytest.raises(FlowError, match="messages of the history were left out already"):
        await flow_runner().run(inputs(endpoint, chat(60, size=10)))
    lengths = list(map(len, server.seen))
    assert len(lengths) == 4
    assert lengths == sorted(set(lengths), reverse=True), "the same was sent again"
    assert lengths[-1] > 2, "nothing was left to leave out, so the limit was not reached"


async def test_the_callers_own_limit_is_the_room_for_the_answer(endpoint: StubEndpoint) -> None:
    server = Server(1000)
    server.clips = False
    endpoint.handler = server.answer
    context_window._ratios[f"support {endpoint.uri}"] = 1.0
    for limit, messages in ((100, 8), (500, 4), (800, 2)):
        await flow_runner().run(inputs(endpoint, chat(8), parameters={"max_tokens": limit}))
        assert len(server.seen[-1]) <= messages, limit
        assert server.seen[-1][-1] == "h"
    before = len(server.seen)
    server.refusal = {"code": 400, "param": "max_tokens"}
    with pytest.raises(FlowError, match="maximum context length"):  # no history is too short for it
        await flow_runner().run(inputs(endpoint, chat(8), parameters={"max_tokens": 5000}))
    assert len(server.seen) == before + 1


async def test_other_refusals_are_not_asked_again(endpoint: StubEndpoint) -> None:
    calls = 0

    async def refuse(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.json_response({"error": {"message": "temperature is wrong", "param": "temperature"}}, status=400)

    endpoint.handler = refuse
    with pytest.raises(FlowError, match="temperature is wrong") as error:
        await flow_runner().run(inputs(endpoint, chat(10)))
    assert (calls, error.value.param, error.value.code) == (1, "temperature", None)


async def test_the_system_prompt_comes_first_unless_the_chat_has_its_own(endpoint: StubEndpoint) -> None:
    await flow_runner().run(inputs(endpoint, chat(2, system=False), system_prompt="Be brief."))
    assert endpoint.bodies[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert len(endpoint.bodies[-1]["messages"]) == 4
    for role in ("system", "developer"):
        own = [*chat(1, system=False), {"role": role, "content": "Mine."}]
        await flow_runner().run(inputs(endpoint, own, system_prompt="Be brief."))
        assert endpoint.bodies[-1]["messages"] == own


async def test_the_scoring_payload_is_trimmed_too(endpoint: StubEndpoint) -> None:
    async def score(request: web.Request) -> web.Response:
        return web.json_response({"output": "ok"})

    endpoint.handler = score
    asked = inputs(endpoint, chat(20, system=False), system_prompt="Be brief.")
    asked["endpoint"]["wire"] = "mlflow"
    answer = await flow_runner().run(asked)
    assert isinstance(answer, dict)
    sent = endpoint.bodies[-1]["input_data"]["input_string"]
    assert sent[0] == {"role": "system", "content": "Be brief."}
    assert sent[1]["role"] == "user"
    assert answer["dropped_messages"] == 40 - len(sent) > 0
    # Nothing is learned from these deployments, so two bytes count as a token: 750 beside the room for the answer.
    assert 1250 < sum(len(message["content"]) + context_window.MESSAGE_BYTES for message in sent) <= 1500


@pytest.mark.parametrize(
    ("rules", "said"),
    [({"trim": True}, "has 'trim'"), ({"trim_history": "no"}, "trim_history must be bool"),
     ({"max_severity": "low"}, "max_severity must be int or null")],
)  # fmt: skip
async def test_a_rule_that_is_none_is_named(endpoint: StubEndpoint, rules: dict[str, Any], said: str) -> None:
    with pytest.raises(FlowError, match=said) as error:
        await flow_runner().run(inputs(endpoint, chat(1), **rules))
    assert error.value.kind == "not_configured"
    assert not endpoint.bodies


async def test_the_caller_of_the_api_learns_how_many_messages_were_left_out(world: World) -> None:
    server = Server(1000)
    world.endpoint.handler = server.answer
    record: Any = world.container.records["live/support.json"]
    record["context_length"] = 1000
    for stream in (False, True):
        answer = await world.client().chat.completions.with_raw_response.create(
            model="support", messages=chat(10), stream=stream
        )
        dropped = int(answer.headers["x-dropped-messages"])
        assert dropped == 20 - len(server.seen[-1]) > 0


message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": st.text(max_size=40)}
)


@given(st.lists(message, max_size=30), st.integers(1, 400), st.integers(0, 500))
def test_whatever_is_left_out_the_rest_is_whole(messages: list[dict[str, str]], context: int, limit: int) -> None:
    context_window._ratios.clear()
    window = Window(list(messages), context, "m", answer_tokens=limit)
    window.fit()
    for _ in range(3):
        window.shrink()
    kept = window.messages
    assert window.dropped == len(messages) - len(kept)
    assert window.size == max(1, sum(map(context_window.message_bytes, kept)))
    rest = iter(messages)
    assert all(any(each is other for other in rest) for each in kept), "the order changed"
    assert [each for each in kept if context_window.is_system(each)] == [
        each for each in messages if context_window.is_system(each)
    ]
    chatted = [each for each in messages if not context_window.is_system(each)]
    stayed = [each for each in kept if not context_window.is_system(each)]
    # What is left is the end of the chat, and begins where a user begins to speak.
    assert [id(each) for each in chatted[len(chatted) - len(stayed) :]] == [id(each) for each in stayed]
    if window.dropped:
        assert stayed[0]["role"] == "user"
        assert chatted[len(chatted) - len(stayed) - 1]["role"] != "user"


async def test_a_message_that_can_never_fit_does_not_cost_the_others_their_history(endpoint: StubEndpoint) -> None:
    server = Server(1000, ratio=0.25)
    endpoint.handler = server.answer
    for _ in range(5):
        with pytest.raises(FlowError):
            await flow_runner().run(inputs(endpoint, [*chat(2), {"role": "user", "content": "x" * 9000}]))
    answer = await flow_runner().run(inputs(endpoint, chat(8)))  # 375 tokens
    assert isinstance(answer, dict)
    assert "dropped_messages" not in answer


def test_calls_of_tools_and_tools_count() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "x" * 100}}]
    assert context_window.message_bytes({"role": "assistant", "content": None, "tool_calls": calls}) > 150
    parts = [{"type": "text", "text": "żółw"}, {"type": "text", "text": "\ud800"}]
    assert context_window.message_bytes({"role": "user", "content": parts}) == 7 + 3 + context_window.MESSAGE_BYTES


def test_the_memory_of_models_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_window, "MOST_MODELS", 3)
    for number in range(10):
        Window([{"role": "user", "content": "x" * 100}], 100, f"m{number}").learn(90)
    assert list(context_window._ratios) == ["m7", "m8", "m9"]


@pytest.mark.parametrize("strange", [10**9, 1000])
def test_one_strange_count_does_not_shorten_the_chats_that_follow_for_good(strange: int) -> None:
    """A wrong number, or a chat in a script of which each byte is a token, before chats in English."""

    def ask() -> int:
        window = Window(chat(40), 1000, "m")
        window.fit()
        window.learn(window.size // 4)
        return len(window.messages)

    first = ask()
    Window([{"role": "user", "content": "x" * 1000}], 1000, "m").learn(strange)
    assert ask() < first
    assert [ask() for _ in range(20)][-1] == first


@pytest.mark.parametrize("count", [0, -5, "7", None, True])
def test_a_count_that_is_none_teaches_nothing(count: Any) -> None:
    for _ in range(8000):  # each would lower what is known, down to nothing, by which sizes are divided
        Window([{"role": "user", "content": "x"}], 100, "m").learn(count)
    window = Window(chat(40), 1000, "m")
    window.fit()
    assert 10 < len(window.messages) < 79

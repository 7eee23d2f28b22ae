"""The load generator of `bench chat`: what it counts as an answer, as a failure, and as open at once."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from bench.chat_load import Order, Result, Target, carry_out

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer):
    """Reads requests and answers each with ``answer``; yields the target."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split()[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
                )
                assert json.loads(await reader.readexactly(length))["model"] == "m"
                await answer(writer)
        except asyncio.IncompleteReadError:
            writer.close()

    running = await asyncio.start_server(serve, "localhost", family=socket.AF_INET)
    async with running:
        yield Target("t", running.sockets[0].getsockname()[1], "/chat", {}, {"model": "m"}, expected="good")


async def whole(writer: asyncio.StreamWriter, text: bytes = b"good", status: bytes = b"200 OK") -> None:
    writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text))


async def streamed(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    for part in (b'{"content":""}', b'{"content": "a"}', b"[DONE]"):
        writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await writer.drain()
        await asyncio.sleep(0.05)
    writer.write(b"0\r\n\r\n")


async def test_good_answers_are_counted_and_timed() -> None:
    async with server(whole) as target:
        result = await carry_out(Order(target, 3, 10))
    assert (len(result.total), result.failures) == (10, [])
    assert all(each > 0 for each in result.total)


@pytest.mark.parametrize(("text", "status"), [(b"bad", b"200 OK"), (b"good", b"500 Oh")])
async def test_a_wrong_answer_is_a_failure(text: bytes, status: bytes) -> None:
    async with server(lambda writer: whole(writer, text, status)) as target:
        result = await carry_out(Order(target, 1, 2))
    assert (result.total, len(result.failures)) == ([], 2)


async def test_silence_is_a_failure_and_ends() -> None:
    async def nothing(writer: asyncio.StreamWriter) -> None:
        pass

    async with server(nothing) as target:
        result = await carry_out(Order(target, 2, 2, warm_up=False, limit_seconds=0.1))
    assert [failure.partition(":")[0] for failure in result.failures] == ["TimeoutError"] * 2


async def test_the_first_token_of_a_stream_is_the_first_text_not_the_first_bytes() -> None:
    async with server(streamed) as target:
        result = await carry_out(Order(target, 4, 4, stream={"max_tokens": 2}, warm_up=False))
    assert result.failures == []
    assert result.open_at_once == 4
    assert all(
        49 <= first < total for first, total in zip(result.first, result.total, strict=True)
    )  # after the empty one


def test_streams_that_follow_one_another_are_not_open_at_once() -> None:
    assert Result(spans=[(1.0, 2.0), (2.0, 3.0), (2.5, 4.0)]).open_at_once == 2

"""People who chat without pause, through the public route and with the stock client, and what they were answered."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from openai import AsyncOpenAI, OpenAIError

AT_ONCE = 8


@dataclass(frozen=True)
class Chat:
    """One question; ``answer`` is the text, or ``error`` says what came instead."""

    client: int
    streamed: bool
    asked_at: datetime
    question: str
    answer: str = ""
    error: str = ""


@dataclass
class Chatters:
    """``chats`` grows while they are at it."""

    chats: list[Chat] = field(default_factory=list)

    def since(self, start: datetime, end: datetime) -> list[Chat]:
        """The chats that were begun in this time."""
        return [chat for chat in self.chats if start <= chat.asked_at < end]


@contextmanager
def chatting(base_url: str, api_key: str, model: str, questions: list[str]) -> Iterator[Chatters]:
    """Eight clients, every other one streaming, each with its next question as soon as it has an answer.

    Nothing is tried twice, neither here nor in the client.
    """
    chatters, over = Chatters(), threading.Event()

    async def ask(openai: AsyncOpenAI, client: int) -> None:
        streamed, number = client % 2 == 1, client
        while not over.is_set():
            question, asked_at = questions[number % len(questions)], datetime.now(UTC)
            number += 1
            try:
                answer = await _answer(openai, model, question, streamed)
                chatters.chats.append(Chat(client, streamed, asked_at, question, answer))
            except OpenAIError as error:
                told = f"{type(error).__name__}: {error}"
                chatters.chats.append(Chat(client, streamed, asked_at, question, error=told))
                await asyncio.sleep(0.1)

    async def everyone() -> None:
        async with AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=30) as openai:
            await asyncio.gather(*(ask(openai, client) for client in range(AT_ONCE)))

    thread = threading.Thread(target=lambda: asyncio.run(everyone()))
    thread.start()
    try:
        yield chatters
    finally:
        over.set()
        thread.join(timeout=60)
    assert not thread.is_alive(), "a chat has not come back for a minute"


async def _answer(openai: AsyncOpenAI, model: str, question: str, streamed: bool) -> str:
    messages = [{"role": "user", "content": question}]
    if not streamed:
        whole = await openai.chat.completions.create(model=model, messages=messages, temperature=0)  # type: ignore[arg-type]
        return whole.choices[0].message.content or ""
    text = ""
    chunks = await openai.chat.completions.create(model=model, messages=messages, temperature=0, stream=True)  # type: ignore[call-overload]
    async for chunk in chunks:
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    return text

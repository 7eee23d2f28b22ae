"""Queue triggers: batches, renewed leases, retries and the poison queue, as in the Storage extension."""

import asyncio
import base64
import binascii
import json
import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.functions.meta import Datum
from azure.identity.aio import DefaultAzureCredential
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueClient, QueueServiceClient

from .host_settings import AppError, QueueOptions
from .invoke import Invoker, decode
from .loading import LoadedFunction
from .pauses import wait

log = logging.getLogger(__name__)

# The metadata that the worker's converter reads, and the SDK's attributes.
_TIMES = {
    "ExpirationTime": "expires_on",
    "InsertionTime": "inserted_on",
    "NextVisibleTime": "next_visible_on",
}
FIRST_PAUSE_SECONDS = 0.02
# After a failing poll (the storage service is down or not there yet).
ERROR_PAUSE_SECONDS = 1.0
# A local service comes back in a moment: two quick retries, not the SDK's minute of back-off.
QUICK_RETRIES: dict[str, Any] = {"retry_total": 2, "initial_backoff": 1, "increment_base": 1}


async def connect(
    connection: str, function: str, resources: AsyncExitStack, settings: Mapping[str, str] = os.environ
) -> QueueServiceClient:
    """The queue service behind a binding's ``connection``: identity-based or a connection string.

    Client and credential are closed by ``resources``. Raises AppError naming the setting when there is none.
    """
    name = connection or "AzureWebJobsStorage"
    if uri := settings.get(f"{name}__queueServiceUri"):
        credential = await resources.enter_async_context(DefaultAzureCredential())
        client = QueueServiceClient(uri, credential=credential, **QUICK_RETRIES)
    elif text := settings.get(name):
        client = QueueServiceClient.from_connection_string(text, **QUICK_RETRIES)
    else:
        raise AppError(
            f"Function {function!r}: set {name}__queueServiceUri (identity-based) or {name} (a connection string)."
        )
    return await resources.enter_async_context(client)


class QueueTrigger:
    """Feeds one function from one queue until told to stop.

    ``lease_seconds``: for how long a message stays invisible unless renewed, so how soon it comes back
    after the host has died. ``idle_seconds``: the longest pause between two polls of an empty queue.
    """

    def __init__(
        self,
        function: LoadedFunction,
        service: QueueServiceClient,
        options: QueueOptions,
        invoker: Invoker,
        lease_seconds: float,
        idle_seconds: float,
    ) -> None:
        name = str(function.trigger["queueName"])
        self._function = function
        self._queue: QueueClient = service.get_queue_client(name)
        # A poison queue has none of its own, in the extension neither.
        poison = None if name.endswith("-poison") else service.get_queue_client(f"{name}-poison")
        self._poison: QueueClient | None = poison
        self._options = options
        self._invoker = invoker
        self._lease = lease_seconds
        self._longest_pause = min(idle_seconds, options.max_polling_interval)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Poll and process until ``stopping`` is set, then wait for what was taken."""
        pause = FIRST_PAUSE_SECONDS
        while not stopping.is_set():
            if len(self._tasks) > self._options.new_batch_threshold:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                messages = await self._receive()
            except ResourceNotFoundError:
                messages = []  # the extension waits for a queue that does not exist yet; it never creates it
            except AzureError as error:
                kind = type(error).__name__
                log.warning("event=poll queue=%s outcome=failed error=%s", self._queue.queue_name, kind)
                await wait(stopping, ERROR_PAUSE_SECONDS)
                continue
            for message in messages:
                task = asyncio.create_task(self._process(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if messages:
                pause = FIRST_PAUSE_SECONDS
            else:
                await wait(stopping, pause)
                pause = min(pause * 2, self._longest_pause)
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _receive(self) -> list[QueueMessage]:
        taken = self._queue.receive_messages(
            messages_per_page=self._options.batch_size, visibility_timeout=round(self._lease)
        )
        async for page in taken.by_page():
            # One page only: going on would ask again before the first message starts.
            return [message async for message in page]
        return []

    async def _process(self, message: QueueMessage) -> None:
        try:
            await self._run_and_settle(message)
        except AzureError as error:
            # The message comes back when its lease ends, so nothing is lost.
            log.warning(
                "event=settle queue=%s message=%s outcome=failed error=%s",
                self._queue.queue_name, message.id, type(error).__name__,
            )  # fmt: skip

    async def _run_and_settle(self, message: QueueMessage) -> None:
        # More tries than allowed, none of which ended: the host died each time, so do not run it again.
        poisonous = (message.dequeue_count or 0) > self._options.max_dequeue_count
        body = self._decode_text(message)
        if poisonous or body is None:
            await self._move_to_poison(message)
            return
        done = asyncio.Event()
        renewal = asyncio.create_task(self._keep_invisible(message, done))
        try:
            outcome = await self._invoker.call(
                self._function, partial(decode, self._function, body, _metadata(message))
            )
        finally:
            done.set()
            await renewal
        if outcome.succeeded:
            await self._queue.delete_message(message)
        elif self._poison is None:
            return  # the extension leaves it invisible until its lease ends, so that it does not spin
        elif (message.dequeue_count or 0) >= self._options.max_dequeue_count:
            await self._move_to_poison(message)
        else:
            retry_in = round(self._options.visibility_timeout)
            await self._queue.update_message(message, visibility_timeout=retry_in)

    def _decode_text(self, message: QueueMessage) -> Datum | None:
        """The message's text, or None when it is not base64 though it must be."""
        text = str(message.content)
        if self._options.message_encoding == "none":
            return Datum(text, "string")
        try:
            data = base64.b64decode(text, validate=True)
        except binascii.Error:
            return None
        try:
            return Datum(data.decode(), "string")
        except UnicodeDecodeError:
            return Datum(data, "bytes")

    async def _keep_invisible(self, message: QueueMessage, done: asyncio.Event) -> None:
        """Renew the lease at half time. Each renewal changes the receipt that deleting the message needs."""
        while not await wait(done, self._lease / 2):
            try:
                renewed = await self._queue.update_message(message, visibility_timeout=round(self._lease))
            except AzureError as error:
                kind = type(error).__name__
                log.warning("event=renew message=%s outcome=failed error=%s", message.id, kind)
            else:
                message.pop_receipt = renewed.pop_receipt

    async def _move_to_poison(self, message: QueueMessage) -> None:
        if self._poison is None:
            return  # it stays where it is, for a person to look at
        with suppress(ResourceExistsError):
            await self._poison.create_queue()
        # The same text, still encoded; the extension's copies never expire.
        await self._poison.send_message(message.content, time_to_live=-1)
        await self._queue.delete_message(message)
        log.warning(
            "event=poison queue=%s message=%s tries=%s",
            self._queue.queue_name, message.id, message.dequeue_count,
        )  # fmt: skip


def _metadata(message: QueueMessage) -> dict[str, Datum]:
    times = {
        name: Datum(json.dumps(moment.strftime("%Y-%m-%dT%H:%M:%S+00:00")), "json")
        for name, attribute in _TIMES.items()
        if (moment := getattr(message, attribute)) is not None
    }
    return {
        "Id": Datum(message.id, "string"),
        "DequeueCount": Datum(message.dequeue_count, "int"),
        "PopReceipt": Datum(message.pop_receipt, "string"),
        **times,
    }

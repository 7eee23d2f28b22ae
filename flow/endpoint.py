"""The client of a model's online endpoint: pooled connections, an Entra token or a key, time limits, streaming."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.identity.aio import DefaultAzureCredential
from endpoint_answers import read_error, read_events, read_json
from endpoint_errors import EndpointAnswerInvalid, EndpointSignInFailed, EndpointTimeout, EndpointUnreachable
from endpoint_keys import EndpointKeys
from per_loop import PerLoop
from place import Place

TOKEN_SCOPE = "https://ml.azure.com/.default"  # noqa: S105
TOKEN_MARGIN_SECONDS = 300  # azure-identity gives the old token again until it has less than this left
TOKEN_LAST_SECONDS = 10  # a request on its way must still arrive with a valid token
TOKEN_AGAIN_SECONDS = 30  # after a refresh that failed, or brought nothing newer
CONNECT_SECONDS = 5
REPEAT_SECONDS = 5  # a connection that breaks later than this after a request was at work on it
FIRST_TOKEN_SECONDS = 60  # and between any two tokens
TOTAL_SECONDS = 220  # Azure's front end gives an HTTP function 230 seconds
KEEP_ALIVE_SECONDS = 4  # below uvicorn's 5, so that no connection is reused just as the server closes it
LONGEST_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class EndpointCall:
    """One request: ``body`` is what is posted to ``place``.

    A scoring payload has no room for ``model``, ``stop`` and ``stream``, so they stand here.
    """

    place: Place
    body: dict[str, Any]
    stream: bool = False
    model: str = ""
    stop: str | list[str] | None = None


class EndpointClient:
    """One event loop's connections and token; ``endpoint_client`` makes it."""

    def __init__(self) -> None:
        self._credential = DefaultAzureCredential()
        self._token: AccessToken | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = float("-inf")  # on the monotonic clock
        self._session = aiohttp.ClientSession(
            # aiohttp's own TLS context is made when it is imported; this one reads SSL_CERT_FILE now.
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, ssl=ssl.create_default_context()
            ),
            read_bufsize=LONGEST_LINE_BYTES,
        )

        self._keys = EndpointKeys(self._session, self._credential)

    async def complete(self, call: EndpointCall) -> Any:
        """Return what a whole answer holds, a JSON value. Raises EndpointError."""
        timeout = aiohttp.ClientTimeout(total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS)
        with _connection_errors():
            async with await self._post(call, timeout) as response:
                return await read_json(response)

    async def stream(self, call: EndpointCall) -> AsyncGenerator[dict[str, Any], None]:
        """Return the chunks once the first has arrived, so that a refusal is raised here and not in the middle.

        Raises EndpointError, here and from the generator. Closing the generator closes the connection.
        """
        timeout = aiohttp.ClientTimeout(
            total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=FIRST_TOKEN_SECONDS
        )
        with _connection_errors():
            response = await self._post(call, timeout)
            events = read_events(response)
            try:
                first = await anext(events, None)
            except BaseException:
                response.close()
                raise
        if first is None:
            response.close()
            raise EndpointAnswerInvalid("The model's endpoint ended its stream without an answer.")
        return _chunks(response, first, events)

    async def close(self) -> None:
        """Close the connections."""
        if self._refreshing:
            self._refreshing.cancel()
        await self._session.close()
        await self._credential.close()

    async def _post(self, call: EndpointCall, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        secret = await (self._keys.get(call.place.key_of) if call.place.key_of else self._entra_token())
        response, again = await self._send_or_again(call, secret, timeout)
        if response.status == 401 and call.place.key_of:
            response.close()
            # The key has been replaced since it was asked for.
            self._keys.forget(call.place.key_of, secret)
            response, again = await self._send_or_again(call, await self._keys.get(call.place.key_of), timeout)
        if response.status != 200:
            async with response:
                error = await read_error(response)
            error.final = again
            raise error
        return response

    async def _send_or_again(
        self, call: EndpointCall, secret: str, timeout: aiohttp.ClientTimeout
    ) -> tuple[aiohttp.ClientResponse, bool]:
        """Return the response, and whether it took a second request to get it."""
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        if call.place.deployment:
            headers["azureml-model-deployment"] = call.place.deployment
        body = json.dumps(call.body).encode()
        started = time.monotonic()
        try:
            return await self._send(call.place.scoring_uri, body, headers, timeout), False
        except aiohttp.ClientConnectorError:
            raise  # nobody is there, and nothing was sent
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            # A kept connection may be closed as it is reused. Nothing was answered, so asking once more is safe; but
            # not what the server was at work on: it may be this very request that it dies of.
            if time.monotonic() - started > REPEAT_SECONDS:
                raise EndpointUnreachable(
                    "The model's endpoint closed the connection without an answer.", final=True
                ) from error
            if not call.place.repeat:
                raise
        try:
            return await self._send(call.place.scoring_uri, body, headers, timeout), True
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise EndpointUnreachable(
                "The model's endpoint closed the connection twice without an answer.", final=True
            ) from error

    async def _send(
        self, uri: str, body: bytes, headers: dict[str, str], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        # No redirects: the token is for this host.
        return await self._session.post(uri, data=body, headers=headers, timeout=timeout, allow_redirects=False)

    async def _entra_token(self) -> str:
        """Return a token that is valid for a while yet. Only a request that finds none waits for one."""
        left = _seconds_left(self._token)
        if left < TOKEN_MARGIN_SECONDS:
            refreshing = self._refresh_once(left)
            if left < TOKEN_LAST_SECONDS:
                await asyncio.shield(refreshing)  # the others who wait for it are not cancelled with this request
        assert self._token is not None  # noqa: S101
        return str(self._token.token)

    def _refresh_once(self, left: float) -> "asyncio.Task[None]":
        last, age = self._refreshing, time.monotonic() - self._refreshed_at
        if last and (not last.done() or (left >= TOKEN_LAST_SECONDS and age < TOKEN_AGAIN_SECONDS)):
            return last
        self._refreshed_at = time.monotonic()
        self._refreshing = asyncio.create_task(self._refresh_token())
        # Whoever waits for it gets its error; when nobody does, asyncio would complain that it was never looked at.
        self._refreshing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._refreshing

    async def _refresh_token(self) -> None:
        try:
            self._token = await self._credential.get_token(TOKEN_SCOPE)
        except ClientAuthenticationError as error:
            if _seconds_left(self._token) > 0:
                return
            raise EndpointSignInFailed(
                "No Azure identity can be used to call the model's endpoint. In Azure, give the app a managed "
                "identity with the role AzureML Data Scientist; on a laptop, run az login, or "
                'eval "$(python -m emulator env)" for the local emulator.'
            ) from error


def _seconds_left(token: AccessToken | None) -> float:
    return token.expires_on - time.time() if token else 0


async def _chunks(
    response: aiohttp.ClientResponse, first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]
) -> AsyncGenerator[dict[str, Any], None]:
    try:
        with _connection_errors():
            async with aclosing(events):
                yield first
                async for event in events:
                    yield event
    finally:
        response.release()  # back to the pool if the stream was read to its end, else closed


@contextmanager
def _connection_errors() -> Iterator[None]:
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise EndpointUnreachable(f"The model's endpoint accepted no connection within {CONNECT_SECONDS} s.") from error
    except aiohttp.SocketTimeoutError as error:
        raise EndpointTimeout(f"The model's endpoint was silent for {FIRST_TOKEN_SECONDS} s.") from error
    except TimeoutError as error:
        raise EndpointTimeout(f"The model's endpoint took more than {TOTAL_SECONDS} s.") from error
    except aiohttp.ClientPayloadError as error:
        raise EndpointAnswerInvalid("The model's endpoint broke off in the middle of its answer.") from error
    except aiohttp.ClientError as error:
        raise EndpointUnreachable(f"The model's endpoint cannot be reached ({type(error).__name__}).") from error


_clients = PerLoop(EndpointClient)


async def endpoint_client() -> EndpointClient:
    """The client of the running event loop, made on first use and closed with the loop."""
    return await _clients.get()

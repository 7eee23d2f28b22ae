"""The keys of endpoints that take no Entra token: asked of Resource Manager, kept in memory, written nowhere."""

import asyncio
import os
from typing import Any

import aiohttp
from azure.core.exceptions import ClientAuthenticationError
from azure.identity.aio import DefaultAzureCredential
from endpoint_errors import EndpointError, EndpointRefused, EndpointSignInFailed, EndpointUnreachable

RESOURCE_MANAGER = "https://management.azure.com"
SCOPE = "https://management.azure.com/.default"
API_VERSION = "2024-04-01"
TIMEOUT = aiohttp.ClientTimeout(total=20)
METADATA_URL = "ARM_CLOUD_METADATA_URL"  # where azure-ai-ml, too, learns of another cloud's addresses


class EndpointKeys:
    """The keys that one event loop's client has asked for, by the endpoints' ids in Resource Manager."""

    def __init__(self, session: aiohttp.ClientSession, credential: DefaultAzureCredential) -> None:
        self._session = session
        self._credential = credential
        self._keys: dict[str, str] = {}
        self._asking: dict[str, asyncio.Task[str]] = {}

    async def get(self, endpoint: str) -> str:
        """Return the key of the endpoint with that id, which is asked for once. Raises EndpointError.

        Who comes while it is being asked for waits for that answer, a failure too: one after the other they would wait
        for as many time limits as there are callers.
        """
        key = self._keys.get(endpoint)
        if key is None:
            asking = self._asking.get(endpoint)
            if asking is None or asking.done():
                asking = self._asking[endpoint] = asyncio.create_task(self._list_keys(endpoint))
                asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # all may have left
            key = self._keys[endpoint] = await asyncio.shield(asking)  # the others are not cancelled with this one
        return key

    def forget(self, endpoint: str, key: str) -> None:
        """The endpoint has refused ``key``; unless another call has replaced it already, ask again."""
        if self._keys.get(endpoint) == key:
            del self._keys[endpoint]

    async def _list_keys(self, endpoint: str) -> str:
        try:
            headers = {"Authorization": f"Bearer {(await self._credential.get_token(SCOPE)).token}"}
            url = f"{await self._resource_manager()}{endpoint}/listKeys?api-version={API_VERSION}"
            async with self._session.post(url, headers=headers, timeout=TIMEOUT, allow_redirects=False) as response:
                if response.status != 200:
                    raise _refusal(response)
                return str((await response.json())["primaryKey"])
        except ClientAuthenticationError as error:
            raise EndpointSignInFailed(
                "No Azure identity can be used to ask for the key of the model's endpoint."
            ) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EndpointUnreachable(
                f"Resource Manager, which has the key of the model's endpoint, did not answer ({type(error).__name__})."
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise EndpointUnreachable("Resource Manager did not tell the key of the model's endpoint.") from error

    async def _resource_manager(self) -> str:
        """Azure's address or, as azure-ai-ml has it, that of the cloud whose metadata the environment names."""
        metadata_url = os.environ.get(METADATA_URL, "")
        if not metadata_url:
            return RESOURCE_MANAGER
        async with self._session.get(metadata_url, timeout=TIMEOUT) as response:
            found: Any = await response.json()
        for cloud in found if isinstance(found, list) else [found]:
            address = str(cloud["resourceManager"])
            if address in metadata_url and address.startswith("https://"):
                return address.rstrip("/")
        return RESOURCE_MANAGER


def _refusal(response: aiohttp.ClientResponse) -> EndpointError:
    if response.status in (401, 403):
        return EndpointSignInFailed(
            "The key of the model's endpoint cannot be read: give the app's identity the role AzureML Data Scientist "
            f"on the workspace (Resource Manager answered {response.status})."
        )
    if response.status == 404:
        return EndpointRefused("The model's endpoint does not exist.", upstream_status=404)
    return EndpointRefused(
        f"Resource Manager answered {response.status} instead of the key of the model's endpoint.",
        upstream_status=response.status,
        retry_after=response.headers.get("Retry-After"),
    )

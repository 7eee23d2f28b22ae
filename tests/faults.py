"""Faults of the local Azure for the length of a ``with`` block (docs/emulator.md, Faults, lists what can go wrong)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import requests
from azure.identity import DefaultAzureCredential


class Injected:
    """A fault in force."""

    def __init__(self, url: str, headers: Mapping[str, str], id: str) -> None:
        self.id = id
        self._url = url
        self._headers = headers

    @property
    def hits(self) -> int:
        """How often it has struck so far."""
        listed = requests.get(self._url, headers=self._headers, timeout=10).json()["value"]
        return next(int(fault["hits"]) for fault in listed if fault["id"] == self.id)


@contextmanager
def faults(environment: Mapping[str, str], *, must_strike: bool = True, **wanted: Any) -> Iterator[Injected]:
    """Put one in force and remove it at the end, when it must have struck unless ``must_strike`` says otherwise."""
    url = environment["ARM_CLOUD_METADATA_URL"].split("/metadata")[0] + "/_emulator/faults"
    # Fetched now, for the removal too: the fault may be one of tokens.
    token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token
    headers = {"Authorization": f"Bearer {token}"}
    added = requests.post(url, json=wanted, headers=headers, timeout=10)
    assert added.status_code == 201, added.text
    injected = Injected(url, headers, added.json()["id"])
    try:
        yield injected
    finally:
        removed = requests.delete(f"{url}/{injected.id}", headers=headers, timeout=10)
    assert removed.status_code == 200, f"the control process was started again, which clears faults: {removed.text}"
    assert removed.json()["hits"] or not must_strike, f"nothing met the fault {removed.json()}"

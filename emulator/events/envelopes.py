"""Envelopes of the events that the local Azure sends, in the Event Grid schema, and their CloudEvents form."""

import time
import uuid
from datetime import UTC, datetime
from typing import Any

Event = dict[str, Any]


def blob_created(
    topic: str, container: str, blob: str, *, api: str, etag: str, content_type: str, content_length: int,
    blob_type: str, url: str, event_id: str | None = None,
) -> Event:  # fmt: skip
    """Microsoft.Storage.BlobCreated; ``topic`` is the account's resource id, ``content_length`` in bytes."""
    request = str(uuid.uuid4())
    data = {
        "api": api,
        "clientRequestId": str(uuid.uuid4()),
        "requestId": request,
        "eTag": etag.strip('"'),
        "contentType": content_type,
        "contentLength": content_length,
        "blobType": blob_type,
        "url": url,
        # Opaque; compares as a string in the order of events.
        "sequencer": f"{time.time_ns():032X}",
        "storageDiagnostics": {"batchId": request},
    }
    subject = f"/blobServices/default/containers/{container}/blobs/{blob}"
    return _envelope(topic, subject, "Microsoft.Storage.BlobCreated", data, event_id)


def run_completed(
    topic: str,
    *,
    experiment_id: str,
    experiment_name: str,
    run_id: str,
    run_type: str | None = None,
    run_tags: dict[str, str] | None = None,
    run_properties: dict[str, str] | None = None,
) -> Event:
    """Microsoft.MachineLearningServices.RunCompleted, sent for success only; ``topic``: the workspace's id."""
    data = {
        "experimentId": experiment_id,
        "experimentName": experiment_name,
        "runId": run_id,
        "runType": run_type,
        "runTags": run_tags or {},
        "runProperties": run_properties or {},
    }
    subject = f"experiments/{experiment_id}/runs/{run_id}"
    return _envelope(topic, subject, "Microsoft.MachineLearningServices.RunCompleted", data)


def run_status_changed(topic: str, *, status: str, **run: Any) -> Event:
    """Microsoft.MachineLearningServices.RunStatusChanged: takes what RunCompleted takes, and the status."""
    event = run_completed(topic, **run)
    event["data"]["runStatus"] = status
    return event | {"eventType": "Microsoft.MachineLearningServices.RunStatusChanged"}


def _envelope(topic: str, subject: str, event_type: str, data: Event, event_id: str | None = None) -> Event:
    return {
        "id": event_id or str(uuid.uuid4()),
        "topic": topic,
        "subject": subject,
        "eventType": event_type,
        "eventTime": timestamp(),
        "data": data,
        "dataVersion": "",
        "metadataVersion": "1",
    }


def validation_event(topic: str, code: str) -> Event:
    """What a webhook must answer with ``code`` to be subscribed."""
    # The real event also offers a validationUrl for people to open; this one has no page behind it.
    data = {"validationCode": code}
    return _envelope(topic, "", "Microsoft.EventGrid.SubscriptionValidationEvent", data) | {"dataVersion": "2"}


def cloud_event(event: Event) -> Event:
    """``event`` in the CloudEvents 1.0 schema."""
    return {
        "specversion": "1.0",
        "id": event["id"],
        "source": event["topic"],
        "subject": event["subject"],
        "type": event["eventType"],
        "time": event["eventTime"],
        "data": event["data"],
    }


def timestamp(moment: float | None = None) -> str:
    """ISO 8601 in UTC of ``moment`` (seconds since the epoch), by default now."""
    at = datetime.now(UTC) if moment is None else datetime.fromtimestamp(moment, UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")

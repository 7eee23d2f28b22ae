"""Which events go to which webhook."""

from dataclasses import dataclass
from typing import Literal

from .envelopes import Event

Schema = Literal["EventGridSchema", "CloudEventSchemaV1_0"]


@dataclass(frozen=True)
class Subscription:
    """An event subscription: a topic, filters, and the webhook that gets what passes them."""

    name: str
    topic: str
    endpoint_url: str
    event_types: tuple[str, ...]
    subject_begins_with: str
    subject_ends_with: str
    schema: Schema
    max_delivery_attempts: int

    def wants(self, topic: str, event: Event) -> bool:
        """Filters compare without case, as Event Grid does unless told otherwise; no types means all."""
        subject = str(event["subject"]).lower()
        return (
            topic.lower() == self.topic.lower()
            and (not self.event_types or event["eventType"] in self.event_types)
            and subject.startswith(self.subject_begins_with.lower())
            and subject.endswith(self.subject_ends_with.lower())
        )

"""What Event Grid must not forget, in SQLite: the subscriptions, and the deliveries that are not done."""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from .envelopes import Event
from .subscriptions import Subscription

_TABLES = """
CREATE TABLE IF NOT EXISTS subscriptions (name TEXT PRIMARY KEY, settings TEXT NOT NULL, validated INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY, subscription TEXT NOT NULL, event TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL, published REAL NOT NULL);
"""


@dataclass(frozen=True)
class Delivery:
    """One event for one subscription. ``due`` and ``published`` are seconds since the epoch.

    The wall clock, because a restart or a sleeping laptop must not postpone what is due.
    """

    id: int
    subscription: str
    event: Event
    attempts: int
    due: float
    published: float


class EventStore:
    """WAL with NORMAL survives the end of the process at any point; only a power cut may lose the last moment."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        self._db.close()

    def subscriptions(self) -> list[tuple[Subscription, bool]]:
        """All of them, each with whether its webhook has agreed."""
        rows = self._db.execute("SELECT settings, validated FROM subscriptions").fetchall()
        saved = [(json.loads(settings), bool(validated)) for settings, validated in rows]
        return [(Subscription(**{**s, "event_types": tuple(s["event_types"])}), agreed) for s, agreed in saved]

    def save_subscription(self, subscription: Subscription, validated: bool) -> None:
        row = (subscription.name, json.dumps(asdict(subscription)), validated)
        self._db.execute("INSERT OR REPLACE INTO subscriptions VALUES (?, ?, ?)", row)

    def delete_subscription(self, name: str) -> None:
        """With what waits for it."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM subscriptions WHERE name = ?", (name,))
            self._db.execute("DELETE FROM deliveries WHERE subscription = ?", (name,))

    def add(self, deliveries: Iterable[tuple[str, Event, float]], published: float) -> list[tuple[float, int]]:
        """Keep (subscription, event, due), all or none; return (due, id) of each."""
        added = []
        with self._db:
            self._db.execute("BEGIN")
            for subscription, event, due in deliveries:
                row = self._db.execute(
                    "INSERT INTO deliveries (subscription, event, due, published) VALUES (?, ?, ?, ?)",
                    (subscription, json.dumps(event), due, published),
                ).lastrowid
                added.append((due, row or 0))
        return added

    def waiting(self) -> list[tuple[float, int]]:
        """(due, id) of every delivery that is not done, the earliest first."""
        return self._db.execute("SELECT due, id FROM deliveries ORDER BY due").fetchall()

    def pending(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM deliveries").fetchone()[0])

    def recipient(self, id: int) -> str | None:
        """The subscription that a delivery is for; None when it is done or was deleted."""
        row = self._db.execute("SELECT subscription FROM deliveries WHERE id = ?", (id,)).fetchone()
        return str(row[0]) if row else None

    def delivery(self, id: int) -> Delivery | None:
        row = self._db.execute(
            "SELECT id, subscription, event, attempts, due, published FROM deliveries WHERE id = ?", (id,)
        ).fetchone()
        return Delivery(row[0], row[1], json.loads(row[2]), *row[3:]) if row else None

    def postpone(self, id: int, attempts: int, due: float) -> None:
        self._db.execute("UPDATE deliveries SET attempts = ?, due = ? WHERE id = ?", (attempts, due, id))

    def remove(self, id: int) -> None:
        self._db.execute("DELETE FROM deliveries WHERE id = ?", (id,))

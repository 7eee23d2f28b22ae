"""The resources of the local Resource Manager: ARM ids to JSON bodies, in SQLite, so that a restart forgets nothing."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

COLUMNS = "id, name, body, internal, created, modified"
PRESENT: Final = object()  # in a ``where``: whatever value, but one
ABSENT: Final = object()  # and: none
SCHEMA = """
CREATE TABLE IF NOT EXISTS resources (
    id       TEXT PRIMARY KEY COLLATE NOCASE,  -- ARM ids compare without case
    parent   TEXT NOT NULL COLLATE NOCASE,     -- the collection: the id without its last segment
    name     TEXT NOT NULL,
    body     TEXT NOT NULL,                    -- {properties, tags, location, kind, identity, sku}
    internal TEXT NOT NULL DEFAULT '{}',       -- what the emulator knows and no answer shows
    created  TEXT NOT NULL,
    modified TEXT NOT NULL,
    sequence INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS operations (
    id       TEXT PRIMARY KEY,
    resource TEXT NOT NULL,
    status   TEXT NOT NULL,
    error    TEXT,
    started  TEXT NOT NULL,
    ended    TEXT
);
"""
# What lists and restarts ask for, read from the body, so that it cannot differ from it.
GENERATED = {
    "archived": "INTEGER GENERATED ALWAYS AS (COALESCE(json_extract(body, '$.properties.isArchived'), 0)) VIRTUAL",
    "state": "TEXT GENERATED ALWAYS AS (COALESCE(json_extract(body, '$.properties.status'),"
    " json_extract(body, '$.properties.provisioningState'))) VIRTUAL",
    "parent_job": "TEXT GENERATED ALWAYS AS (json_extract(internal, '$.parent_job')) VIRTUAL",
}
INDEXES = """
CREATE INDEX IF NOT EXISTS resources_parent ON resources (parent, sequence);
CREATE INDEX IF NOT EXISTS resources_order ON resources (sequence);
CREATE INDEX IF NOT EXISTS resources_collection ON resources (parent, archived, sequence);
CREATE INDEX IF NOT EXISTS resources_state ON resources (state);
CREATE INDEX IF NOT EXISTS resources_parent_job ON resources (parent_job, sequence);
"""


@dataclass
class Resource:
    """One stored resource; ``body`` is its public part without id, name, type and systemData."""

    id: str
    name: str
    body: Json
    internal: Json
    created: str
    modified: str

    @property
    def properties(self) -> Json:
        properties: Json = self.body.setdefault("properties", {})
        return properties


class Store:
    """All resources and long-running operations. One connection, used from one thread: SQLite in WAL mode.

    With ``synchronous=NORMAL`` what was written outlives the process, however it ends (kill -9 too); only a power cut
    may take the last moment.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(SCHEMA)
        columns = {row[1] for row in self._db.execute("PRAGMA table_xinfo(resources)")}
        for name in GENERATED.keys() - columns:  # a new table, or one that an older version made
            self._db.execute(f"ALTER TABLE resources ADD COLUMN {name} {GENERATED[name]}")
        self._db.executescript(INDEXES)

    def get(self, id: str) -> Resource | None:
        query = f"SELECT {COLUMNS} FROM resources WHERE id = ?"  # noqa: S608 - a constant
        row = self._db.execute(query, (id,)).fetchone()
        return _resource(row) if row else None

    def put(self, id: str, body: Json, internal: Json | None = None) -> Resource:
        """Create or replace. The time of creation, and ``internal`` when none is given, stay as they were."""
        now = timestamp()
        parent, _, name = id.rpartition("/")
        self._db.execute(
            "INSERT INTO resources (id, parent, name, body, internal, created, modified, sequence)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, (SELECT COALESCE(MAX(sequence), 0) + 1 FROM resources))"
            " ON CONFLICT (id) DO UPDATE SET body = excluded.body, modified = excluded.modified,"
            " internal = COALESCE(?, internal)",
            (
                id, parent, name, json.dumps(body), json.dumps(internal or {}), now, now,
                None if internal is None else json.dumps(internal),
            ),
        )  # fmt: skip
        stored = self.get(id)
        assert stored is not None  # noqa: S101 - it was written on the line above
        return stored

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is there after a crash as a whole or not at all. Await nothing inside."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def save(self, resource: Resource) -> Resource:
        """Write back a resource that was read and changed."""
        return self.put(resource.id, resource.body, resource.internal)

    def delete(self, id: str) -> bool:
        """Delete a resource and everything below it."""
        self._db.execute("DELETE FROM resources WHERE id LIKE ? ESCAPE '\\'", (_escape(id) + "/%",))
        return self._db.execute("DELETE FROM resources WHERE id = ?", (id,)).rowcount > 0

    def children(self, collection: str, newest_first: bool = False) -> Iterator[Resource]:
        """The resources of one collection (``…/jobs``, ``…/models/x/versions``) in order of creation."""
        yield from self.select(collection, newest_first=newest_first)

    def select(
        self,
        collection: str,
        *,
        archived: bool | None = None,
        where: Mapping[str, Any] | None = None,
        newest_first: bool = False,
        skip: int = 0,
        limit: int = -1,
    ) -> list[Resource]:
        """Some resources of one collection, in order of creation.

        ``archived``: only archived ones, only the others, or (None) both. ``where``: JSON paths into the body, such as
        ``$.properties.jobType``, or ``parent_job``, and the value that each must have; ``PRESENT`` asks for any,
        ``ABSENT`` for none.
        """
        conditions: list[str] = ["parent = ?"]
        values: list[Any] = [collection]
        # Both values are named, so that the index's second column is used and the order comes from its third.
        if archived is not None:
            conditions.append("archived = ?")
            values.append(archived)
        for path, value in (where or {}).items():
            column = path in GENERATED
            test = "IS NOT NULL" if value is PRESENT else "IS NULL" if value is ABSENT else "= ?"
            conditions.append(f"{path if column else 'json_extract(body, ?)'} {test}")
            values += ([] if column else [path]) + ([value] if test == "= ?" else [])
        query = (
            f"SELECT {COLUMNS} FROM resources WHERE {' AND '.join(conditions)}"  # noqa: S608 - constants
            f" ORDER BY sequence {'DESC' if newest_first else 'ASC'} LIMIT ? OFFSET ?"
        )
        return [_resource(row) for row in self._db.execute(query, (*values, limit, skip))]

    def highest_number(self, collection: str) -> int:
        """The highest name in ``collection`` that is a whole number, 0 when none is: what versions count on from."""
        found = self._db.execute(
            "SELECT MAX(CAST(name AS INTEGER)) FROM resources WHERE parent = ? AND name NOT GLOB '*[^0-9]*'",
            (collection,),
        ).fetchone()[0]
        return int(found or 0)

    def find(self, pattern: str, states: Sequence[str] = ()) -> Iterator[Resource]:
        """The resources whose id is LIKE ``pattern``, in one of ``states`` if any are given; it crosses collections."""
        chosen = f" AND state IN ({', '.join('?' * len(states))})" if states else ""
        query = f"SELECT {COLUMNS} FROM resources WHERE id LIKE ?{chosen} ORDER BY sequence"  # noqa: S608 - constants
        for row in self._db.execute(query, (pattern, *states)).fetchall():
            yield _resource(row)

    def started(self) -> Iterator[Resource]:
        """The resources for which processes were started that are not known to have ended."""
        query = (
            f"SELECT {COLUMNS} FROM resources WHERE json_extract(internal, '$.process') IS NOT NULL"  # noqa: S608
            " OR json_array_length(internal, '$.processes') > 0"
        )
        for row in self._db.execute(query).fetchall():
            yield _resource(row)

    def start_operation(self, id: str, resource: str) -> None:
        self._db.execute(
            "INSERT INTO operations VALUES (?, ?, 'InProgress', NULL, ?, NULL)", (id, resource, timestamp())
        )

    def end_operation(self, id: str, error: Json | None = None) -> None:
        self._db.execute(
            "UPDATE operations SET status = ?, error = ?, ended = ? WHERE id = ?",
            ("Failed" if error else "Succeeded", json.dumps(error) if error else None, timestamp(), id),
        )

    def operation(self, id: str) -> Json | None:
        row = self._db.execute(
            "SELECT resource, status, error, started, ended FROM operations WHERE id = ?", (id,)
        ).fetchone()
        if row is None:
            return None
        resource, status, error, started, ended = row
        return {
            "resource": resource,
            "status": status,
            "error": json.loads(error) if error else None,
            "started": started,
            "ended": ended,
        }

    def unfinished_operations(self) -> list[tuple[str, str]]:
        """(operation id, resource id) of what a killed emulator left in progress."""
        return list(self._db.execute("SELECT id, resource FROM operations WHERE status = 'InProgress'"))

    def close(self) -> None:
        self._db.close()


def timestamp() -> str:
    """Now, as Azure writes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _resource(row: tuple[str, str, str, str, str, str]) -> Resource:
    id, name, body, internal, created, modified = row
    return Resource(id, name, json.loads(body), json.loads(internal), created, modified)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")

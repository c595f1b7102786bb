"""Regeneration: queue for the application's workers what re-keying cannot mend; approved, recorded, reversible."""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.retrievals import unretrievable
from uuid_pipeline.engine.retrievals.unretrievable import Unretrievable
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.named_parameters import for_driver
from uuid_pipeline.spec import REGENERATION_PARAMETERS

LOCK_TIMEOUT = "SET LOCAL lock_timeout = '10s'"


@dataclass(frozen=True)
class Queued:
    """``documents`` were queued and recorded; for ``untouched`` the statement wrote no row, and nothing is recorded."""

    list_id: str
    documents: int
    untouched: tuple[str, ...]


@dataclass(frozen=True)
class Undone:
    """``documents`` are as if never queued. ``left``: ids for which the undo wrote no row (a worker has them, say).

    ``without_undo``: requests that were made when the spec had no undo.
    """

    documents: int
    left: tuple[str, ...]
    without_undo: int


def queue(connection: Connection, store: Store, list_id: str) -> Queued:
    """Run the spec's statement for every document of the approved list, and record each; all or nothing.

    Wants a REPEATABLE READ transaction. Raises UsageError when the spec has no statement, RefusedError when the list is
    not the approved one any more, or when the statement fails for a document: then nothing was queued.
    """
    statement = store.spec.regeneration.statement
    if statement is None:
        raise UsageError(
            "The spec has no statement that queues a document. Add `regeneration: {statement: …, undo: …}` to it; "
            "docs/regeneration.md has an example."
        )
    _one_at_a_time(connection)
    now = unretrievable.listed(connection, store, limit=0)
    if now.list_id != list_id:
        raise RefusedError(
            f"The list {list_id} is not the one of now, which is {now.list_id} with {now.waiting} documents. "
            "Look at it: uuid-pipeline regenerate"
        )
    sql.execute(connection, LOCK_TIMEOUT)
    done, untouched = 0, []
    for document in unretrievable.found(connection, store):
        if document.regeneration_id is not None:
            continue
        if _queue_one(connection, store, list_id, document, statement):
            done += 1
        else:
            untouched.append(document.id)
    ledger.audit(connection, "regeneration queued", {"list": list_id, "documents": done})
    return Queued(list_id, done, tuple(untouched))


def _one_at_a_time(connection: Connection) -> None:
    key = "SELECT pg_advisory_xact_lock(hashtextextended('uuid_pipeline.regenerations', 0))"
    sql.execute(connection, key)


def _queue_one(connection: Connection, store: Store, list_id: str, document: Unretrievable, statement: str) -> bool:
    values = _values(str(uuid.uuid4()), document)
    written = _run(connection, statement, values, document.id, "Nothing was queued")
    if written == 0:
        return False
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.regenerations (regeneration_id, list_id, document_id, target_id, owner, status,
                                                    title, reasons, statement, undo, queued_by, rows)
           VALUES (%(regeneration_id)s, %(list)s, %(document_id)s, %(target)s, %(owner)s, %(status)s, %(title)s,
                   string_to_array(%(reasons)s, ', '), %(statement)s, %(undo)s, %(actor)s, %(rows)s)""",
        {
            **values,
            "list": list_id,
            "target": document.target_id,
            "statement": statement,
            "undo": store.spec.regeneration.undo,
            "actor": ledger.actor(),
            "rows": max(written, 0),
        },
    )
    return True


def _values(regeneration_id: str, document: Unretrievable) -> dict[str, Any]:
    return {
        "regeneration_id": regeneration_id,
        "document_id": document.id,
        "owner": document.owner,
        "status": document.status,
        "title": document.title,
        "reasons": ", ".join(document.reasons),
    }


def _run(connection: Connection, statement: str, values: dict[str, Any], document: str, consequence: str) -> int:
    """Rows written. Raises RefusedError that names the document and the server's message."""
    try:
        return connection.exec_driver_sql(for_driver(statement), values).rowcount
    except DBAPIError as error:
        detail = str(error.orig).strip().splitlines()
        raise RefusedError(
            f"The spec's regeneration statement failed for document {document}: {'; '.join(detail)}. {consequence}; "
            "correct it, then: uuid-pipeline regenerate"
        ) from error


def undo(connection: Connection, store: Store) -> Undone:
    """Run the recorded undo for every request that is not undone, the last first; all or nothing.

    Raises RefusedError when it fails for a document: then nothing was undone.
    """
    _one_at_a_time(connection)
    sql.execute(connection, LOCK_TIMEOUT)
    done, left, without = 0, [], 0
    for rows in sql.stream(connection, _OPEN, {}):
        for *request, statement in rows:
            if statement is None:
                without += 1
                continue
            at = _current_id(connection, store, document=request[1], target=request[2])
            if _undo_one(connection, [request[0], at, *request[3:]], statement):
                done += 1
            else:
                left.append(at)
    ledger.audit(connection, "regeneration undone", {"documents": done, "left": len(left)})
    return Undone(done, tuple(left), without)


_OPEN = sql.Text(
    """SELECT regeneration_id::text, document_id, target_id, owner, status, title, array_to_string(reasons, ', '), undo
       FROM uuid_pipeline.regenerations WHERE undone_at IS NULL ORDER BY queued_at DESC"""
)


def _undo_one(connection: Connection, request: list[Any], statement: str) -> bool:
    values = dict(zip(REGENERATION_PARAMETERS, request, strict=True))
    if _run(connection, statement, values, values["document_id"], "Nothing was undone") == 0:
        return False
    sql.execute(
        connection,
        """UPDATE uuid_pipeline.regenerations SET undone_at = clock_timestamp(), undone_by = %(actor)s
           WHERE regeneration_id = %(id)s""",
        {"id": values["regeneration_id"], "actor": ledger.actor()},
    )
    return True


def _current_id(connection: Connection, store: Store, document: str, target: str | None) -> str:
    """What the document is called now: migrated or rolled back since, or as it was queued."""
    entity = store.main
    now = sql.scalar(
        connection,
        sql.compose(
            """SELECT t.{key}::text FROM {table} t WHERE t.{key} IN (
                   SELECT %(document)s::{type} UNION SELECT %(target)s::{type}
                   UNION SELECT m.old_id FROM {map} m WHERE m.new_id = %(target)s::{type}) LIMIT 1""",
            key=sql.name(entity.key),
            table=sql.table(entity.table.schema, entity.table.name),
            map=ledger.map_table(entity),
            type=sql.Text("uuid" if entity.key_type == "uuid" else "text"),
        ),
        {"document": document, "target": target},
    )
    return str(now or document)

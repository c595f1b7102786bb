"""Documents that no re-keying can make retrievable: nothing to find, or nothing to find it by; and why, each."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.natural_keys import first_invalid, natural_key, part
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.identity import hasher

WORDS = {
    "no_chunks": "has no chunks",
    "no_vectors": "none of its chunks has a vector",
    "some_without_vector": "some of its chunks have no vector",
    "failed": "its status says that processing failed or never began",
}


@dataclass(frozen=True)
class Unretrievable:
    """A document with its id now, its target id (None when it has none), and the reasons by the spec's names.

    ``regeneration_id`` and ``queued_at``: of the open request, when it was queued before.
    """

    id: str
    target_id: str | None
    owner: str | None
    status: str | None
    title: str | None
    reasons: tuple[str, ...]
    regeneration_id: str | None = None
    queued_at: str | None = None


@dataclass(frozen=True)
class Listed:
    """``list_id`` is a digest of the statement and of every document that waits; ``documents`` are the first of all.

    ``unknown``: what the spec does not say, and so nobody looked for. Counts are of all documents.
    """

    list_id: str
    waiting: int
    queued: int
    by_reason: dict[str, int]
    unknown: tuple[str, ...]
    documents: tuple[Unretrievable, ...]


def unknowns(store: Store) -> tuple[str, ...]:
    """What cannot be said of this store with this spec."""
    spec, found = store.spec, []
    if _chunk_place(store) is None:
        found.append("whether documents have chunks: the spec has no retrieval and no entity below documents")
    elif _vector_column(store) is None:
        found.append("whether chunks have vectors: the spec's retrieval names no column of theirs")
    if store.main.spec.describe.status is None or not spec.statuses.failed:
        found.append("whether processing failed: the spec does not say which statuses mean that")
    return tuple(found)


def _chunk_place(store: Store) -> tuple[Table, str] | None:
    retrieval = store.spec.retrieval
    wanted = retrieval.chunk_table if retrieval else None
    children = [child.table.name for child in store.children(store.main)]
    for name in [wanted] if wanted else children:
        for reference in store.references:
            if (reference.table.name, reference.entity, reference.form) == (name, store.main.name, "key"):
                return reference.table, reference.column
    return None


def _vector_column(store: Store) -> str | None:
    place, retrieval = _chunk_place(store), store.spec.retrieval
    if place is None or retrieval is None or retrieval.vector not in place[0].columns:
        return None
    return retrieval.vector


def _source(store: Store) -> sql.Composable:
    entity = store.main
    described = entity.spec.describe
    place, vector = _chunk_place(store), _vector_column(store)
    chunks = sql.Text("coalesce(c.chunks, 0)") if place else sql.Text("NULL::bigint")
    vectors = sql.Text("coalesce(c.vectors, 0)") if vector else sql.Text("NULL::bigint")
    failed = (
        sql.compose(
            "(t.{s}::text = ANY(%(failed)s::text[]) OR (t.{s} IS NULL AND %(null_failed)s))",
            s=sql.name(described.status),
        )
        if described.status and store.spec.statuses.failed
        else sql.Text("false")
    )
    conditions = [failed]
    if place:
        conditions.append(sql.Text("c.chunks IS NULL"))
    if vector:
        conditions.append(sql.Text("c.vectors < c.chunks"))
    return sql.compose(
        """SELECT t.{key}::text, {natural_key}, ARRAY[{valid}]::text[], {owner}, {status}, {title}, {chunks}, {vectors},
                  {failed}
           FROM {table} t {counted} WHERE {wanted} ORDER BY t.{key}::text COLLATE "C" """,
        key=sql.name(entity.key),
        natural_key=natural_key(entity, None),
        valid=sql.join(", ", [part(entity, field, None) for field in entity.spec.valid]),
        owner=_text(described.owner),
        status=_text(described.status),
        title=_text(described.title),
        chunks=chunks,
        vectors=vectors,
        failed=failed,
        table=sql.table(entity.table.schema, entity.table.name),
        counted=_counted(place, vector, entity),
        wanted=sql.join(" OR ", conditions),
    )


def _text(column: str | None) -> sql.Composable:
    return sql.compose("t.{c}::text", c=sql.name(column)) if column else sql.Text("NULL::text")


def _counted(place: tuple[Table, str] | None, vector: str | None, entity: Entity) -> sql.Composable:
    """Each document's chunks and those with a vector; the chunks' table is read once."""
    if place is None:
        return sql.Text("")
    table, column = place
    return sql.compose(
        """LEFT JOIN (SELECT {column} AS document, count(*) AS chunks, count({vector}) AS vectors FROM {table}
                      GROUP BY 1) c ON c.document = t.{key}""",
        column=sql.name(column),
        vector=sql.name(vector) if vector else sql.Text("*"),
        table=sql.table(table.schema, table.name),
        key=sql.name(entity.key),
    )


def found(connection: Connection, store: Store) -> Iterator[Unretrievable]:
    """Every such document, ordered by its id now; streamed, wants a transaction of one snapshot."""
    failed = store.spec.statuses.failed
    values = {"failed": [s for s in failed if s is not None], "null_failed": None in failed}
    if not _can_tell(store):
        return
    target_of = hasher(store.spec.namespace)
    for rows in sql.stream(connection, _source(store), values):
        chunk = [u for row in rows for u in [_judged(store, row, target_of)] if u.reasons]
        yield from _with_requests(connection, store, chunk)


def _can_tell(store: Store) -> bool:
    described = store.main.spec.describe.status and store.spec.statuses.failed
    return bool(described) or _chunk_place(store) is not None


def _judged(store: Store, row: Any, target_of: Any) -> Unretrievable:
    key, text, valid, owner, status, title, chunks, vectors, failed = row
    reasons = {
        "no_chunks": chunks == 0,
        "no_vectors": bool(chunks) and vectors == 0,
        "some_without_vector": bool(chunks) and vectors is not None and 0 < vectors < chunks,
        "failed": failed,
    }
    wanted = store.spec.regeneration.only or reasons
    quarantined = text is None or first_invalid(store.main, valid) is not None
    kept = tuple(name for name, holds in reasons.items() if holds and name in wanted)
    return Unretrievable(key, None if quarantined else target_of(text), owner, status, title, kept)


def _with_requests(connection: Connection, store: Store, chunk: list[Unretrievable]) -> Iterator[Unretrievable]:
    """With the open request of each: a document is the same under its old id and under its target id.

    A request under an id that a row has is that row's own, though a twin has the same target id.
    """
    names = [u.target_id or u.id for u in chunk] + [u.id for u in chunk]
    open_ones = sql.rows(
        connection,
        sql.compose(
            """SELECT r.document_id, coalesce(r.target_id, r.document_id) AS name, r.regeneration_id::text AS id,
                      r.queued_at::text AS at,
                      EXISTS (SELECT FROM {table} t WHERE t.{key} = r.document_id::{type}) AS of_a_row
               FROM uuid_pipeline.regenerations r
               WHERE r.undone_at IS NULL AND (r.document_id = ANY(%(names)s) OR r.target_id = ANY(%(names)s))""",
            table=sql.table(store.main.table.schema, store.main.table.name),
            key=sql.name(store.main.key),
            type=sql.Text("uuid" if store.main.key_type == "uuid" else "text"),
        ),
        {"names": names},
    )
    own = {row.document_id: row for row in open_ones}
    moved = {row.name: row for row in open_ones if not row.of_a_row}
    for u in chunk:
        request = own.get(u.id) or moved.get(u.target_id or u.id)
        at = (request.id, request.at) if request else (None, None)
        yield Unretrievable(u.id, u.target_id, u.owner, u.status, u.title, u.reasons, *at)


def listed(connection: Connection, store: Store, limit: int = 1000) -> Listed:
    """The list to approve, with its first ``limit`` documents; memory stays the same at any size."""
    digest = hashlib.sha256(store.spec.regeneration.model_dump_json().encode())
    shown: list[Unretrievable] = []
    waiting = queued = 0
    by_reason: dict[str, int] = {}
    for document in found(connection, store):
        if len(shown) < limit:
            shown.append(document)
        for reason in document.reasons:
            by_reason[reason] = by_reason.get(reason, 0) + 1
        if document.regeneration_id is not None:
            queued += 1
            continue
        waiting += 1
        digest.update("\x1f".join([document.id, *document.reasons, "\x1e"]).encode())
    list_id = digest.hexdigest()[:16]
    return Listed(list_id, waiting, queued, by_reason, unknowns(store), tuple(shown))

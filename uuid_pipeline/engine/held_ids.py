"""Which ids the columns of one table hold: one statement a table, over a sample of it or all of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.derived_values import CONTAINS, IdInRow, made_from_ids
from uuid_pipeline.engine.id_candidates import (
    JsonReading,
    KnownIds,
    SearchedColumn,
    candidates,
    strings,
    text_of,
    uuids,
)
from uuid_pipeline.engine.sampling import Picked

HOLDS = "holds the id"


@dataclass(frozen=True)
class Hit:
    """``path`` is of json only, with None for an element of an array; ``kind`` is HOLDS or what was derived."""

    column: str
    entity: str
    path: tuple[str | None, ...]
    kind: str
    rows: int
    ids: int


@dataclass(frozen=True)
class Variety:
    """The values at one place of a column: rows that have one, how many different ones, the longest's length."""

    rows: int
    distinct: int
    longest: int


# The kinds of column that can hold an id, seen through domains.
_KINDS = """
WITH RECURSIVE held AS (
    SELECT a.attrelid AS oid, a.attname, a.attnum, a.atttypid AS type FROM pg_attribute a
    WHERE a.attrelid = ANY(%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    UNION ALL
    SELECT h.oid, h.attname, h.attnum, t.typbasetype FROM held h JOIN pg_type t ON t.oid = h.type WHERE t.typtype = 'd')
SELECT h.oid, h.attname, CASE WHEN t.typname IN ('text', 'varchar', 'bpchar', 'citext') THEN 'text'
    WHEN t.typname IN ('_text', '_varchar', '_bpchar') THEN 'text array'
    WHEN t.typname = '_uuid' THEN 'uuid array' ELSE t.typname END AS kind
FROM held h JOIN pg_type t ON t.oid = h.type
WHERE t.typname IN ('uuid', '_uuid', 'text', 'varchar', 'bpchar', 'citext', '_text', '_varchar', '_bpchar', 'json',
                    'jsonb')
ORDER BY h.oid, h.attnum
"""

_COLLATION = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname) FROM pg_attribute a
JOIN pg_collation c ON c.oid = a.attcollation JOIN pg_namespace n ON n.oid = c.collnamespace
WHERE a.attrelid = %(oid)s AND a.attname = %(column)s
"""


def searchable_columns(connection: Connection, tables: Sequence[Table]) -> dict[int, list[SearchedColumn]]:
    """By table: its columns of a type that can hold ids; generated ones follow from others and are left out."""
    found: dict[int, list[SearchedColumn]] = {}
    for row in sql.rows(connection, _KINDS, {"oids": [table.oid for table in tables]}):
        found.setdefault(row.oid, []).append(SearchedColumn(row.attname, row.kind))
    return found


def known_ids(connection: Connection, entity: str, table: Table, key: str) -> KnownIds:
    """The keys of an entity's table, with what is needed to look them up by their index."""
    return KnownIds(entity, table, key, sql.scalar(connection, _COLLATION, {"oid": table.oid, "column": key}))


def find(
    connection: Connection,
    picked: Picked,
    columns: Sequence[SearchedColumn],
    known: Sequence[KnownIds],
    beside: Sequence[IdInRow],
    reading: JsonReading,
    declared: Sequence[tuple[str, str]],
) -> tuple[list[Hit], int | None]:
    """What the picked rows hold, and how many they are where that is counted. Raises DBAPIError.

    ``declared``: columns, each with the entity whose ids it is known to hold; a value that is one of these is taken for
    no other entity's.
    """
    read = [column for column in columns if column.kind != "json" or reading != "not"]
    if not read:
        return [], None
    found = sql.rows(connection, _statement(picked, read, known, beside, reading, declared))
    hits = [
        Hit(read[row.col].name, row.entity, tuple(row.path or ()), row.kind, row.rows, row.ids)
        for row in found
        if row.col is not None
    ]
    return hits, next((row.rows for row in found if row.col is None), None)


def variety(
    connection: Connection, picked: Picked, column: SearchedColumn, known: Sequence[KnownIds], reading: JsonReading
) -> dict[tuple[str | None, ...], Variety]:
    """By path: what a column's values are like, in the picked rows. Raises DBAPIError."""
    statement = sql.compose(
        """SELECT s.path, count(DISTINCT t.row_id) AS rows, count(DISTINCT left(s.value, 100)) AS distinct,
                  max(length(s.value)) AS longest
           FROM ({rows}) t CROSS JOIN LATERAL ({strings}) s WHERE NOT s.is_name GROUP BY s.path""",
        rows=picked.rows,
        strings=strings(0, column, known, reading),
    )
    return {
        tuple(row.path or ()): Variety(row.rows, row.distinct, row.longest) for row in sql.rows(connection, statement)
    }


_STATEMENT = """
WITH picked AS {materialized} ({rows}),
held AS MATERIALIZED (
    SELECT t.row_id, h.* FROM picked t CROSS JOIN LATERAL ({held}) h(col, path, uid, id, whole, entity, kind)),
hit AS ({hits})
SELECT col, entity, path, kind, count(DISTINCT row_id) AS rows, count(DISTINCT id) AS ids
FROM hit h WHERE {unexplained} GROUP BY col, entity, path, kind
UNION ALL SELECT NULL, NULL, NULL, NULL, count(DISTINCT row_id), 0 FROM picked WHERE {counted} HAVING {counted}
"""
_UUIDS = """
SELECT u.col, NULL::text[], u.uid, u.uid::text COLLATE "C", true, NULL::text, NULL::text FROM ({uuids}) u
"""
_STRINGS = """
SELECT s.col, s.path, c.uid, c.id, c.id = s.value AND NOT s.is_name, NULL::text, NULL::text
FROM ({strings}) s CROSS JOIN LATERAL ({candidates}) c
"""
_MADE = "SELECT d.col, NULL::text[], NULL::uuid, NULL, false, d.entity, d.kind FROM ({made}) d WHERE d.kind IS NOT NULL"
# Another spelling than the key's own (capitals, another collation's equal) is no reference, but contains the id.
_LOOK_UP = """
SELECT h.col, {entity} AS entity, CASE WHEN w.own THEN h.path END AS path,
       CASE WHEN w.own THEN {holds} ELSE {contains} END AS kind, h.row_id, h.id
FROM held h JOIN {table} k ON {matches}
CROSS JOIN LATERAL (SELECT h.whole AND k.{key}::text COLLATE "C" = h.id AS own) w WHERE h.kind IS NULL
"""
# Text keys of two entities may be equal ("1", "2"): the declaration says which of them the value means.
_UNEXPLAINED = """
(h.col, h.entity) IN ({declared}) OR NOT EXISTS (
    SELECT FROM hit d WHERE (d.row_id, d.col, d.id) = (h.row_id, h.col, h.id) AND d.path IS NOT DISTINCT FROM h.path
    AND d.kind = {holds} AND (d.col, d.entity) IN ({declared}))
"""
_ALREADY_KNOWN = "SELECT col, entity, NULL::text[], kind, row_id, NULL FROM held WHERE kind IS NOT NULL"


def _statement(
    picked: Picked,
    columns: Sequence[SearchedColumn],
    known: Sequence[KnownIds],
    beside: Sequence[IdInRow],
    reading: JsonReading,
    declared: Sequence[tuple[str, str]],
) -> sql.Composable:
    numbered = list(enumerate(columns))
    texts = [(number, column) for number, column in numbered if not column.kind.startswith("uuid")]
    parts = [uuids(number, column) for number, column in numbered if column.kind.startswith("uuid")]
    held = [sql.compose(_UUIDS, uuids=part) for part in parts]
    if texts:
        every = [strings(number, column, known, reading) for number, column in texts]
        found = candidates(sql.Text("s.value"), known)
        held.append(sql.compose(_STRINGS, strings=sql.join(" UNION ALL ", every), candidates=found))
    made = made_from_ids(beside, [(number, text_of(column), column.kind == "text") for number, column in texts])
    held += [sql.compose(_MADE, made=part) for part in made]
    return sql.compose(
        _STATEMENT,
        materialized=sql.Text("MATERIALIZED" if picked.counted else "NOT MATERIALIZED"),
        rows=picked.rows,
        held=sql.join(" UNION ALL ", held),
        hits=sql.join(" UNION ALL ", [*[_look_up(ids) for ids in known], sql.Text(_ALREADY_KNOWN)]),
        unexplained=_unexplained(columns, declared),
        counted=sql.Text(str(picked.counted)),
    )


def _unexplained(columns: Sequence[SearchedColumn], declared: Sequence[tuple[str, str]]) -> sql.Composable:
    """The hits that no declared reference says what to take for."""
    numbers = {column.name: number for number, column in enumerate(columns)}
    places = [
        sql.compose("({column}, {entity})", column=sql.Text(str(numbers[column])), entity=sql.literal(entity))
        for column, entity in declared
        if column in numbers
    ]
    if not places:
        return sql.Text("true")
    return sql.compose(_UNEXPLAINED, declared=sql.join(", ", places), holds=sql.literal(HOLDS))


def _look_up(ids: KnownIds) -> sql.Composable:
    return sql.compose(
        _LOOK_UP,
        entity=sql.literal(ids.entity),
        holds=sql.literal(HOLDS),
        contains=sql.literal(CONTAINS),
        table=sql.table(ids.table.schema, ids.table.name),
        key=sql.name(ids.key),
        matches=ids.matches,
    )

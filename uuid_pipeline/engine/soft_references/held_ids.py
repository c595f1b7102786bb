"""Which ids the columns of one table hold: one statement a table, over a sample of it or all of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.soft_references.derived_values import CONTAINS, IdInRow, made_from_ids
from uuid_pipeline.engine.soft_references.id_candidates import (
    JsonReading,
    KnownIds,
    SearchedColumn,
    candidates,
    may_hold,
    strings,
    text_of,
    uuids,
)
from uuid_pipeline.engine.soft_references.sampling import Picked

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
WITH picked AS {materialized} ({rows}), {sources}
hit AS (SELECT NULL::integer AS col, NULL::text AS entity, NULL::text[] AS path, NULL::text AS kind, row_id,
               NULL::text AS id FROM picked WHERE false {hits})
SELECT col, entity, path, kind, count(DISTINCT row_id) AS rows, count(DISTINCT id) AS ids
FROM hit h WHERE {unexplained} GROUP BY col, entity, path, kind
UNION ALL SELECT NULL, NULL, NULL, NULL, count(DISTINCT row_id), 0 FROM picked WHERE {counted} HAVING {counted}
"""
# A uuid is joined as it is, straight from the table; what texts hold is found once and kept for every entity.
_SOURCES: dict[str, LiteralString] = {"plain": "NOT MATERIALIZED", "held": "MATERIALIZED"}
_UUIDS = """
SELECT t.row_id, u.col, NULL::text[] AS path, u.uid, u.uid::text COLLATE "C" AS id, true AS whole
FROM picked t CROSS JOIN LATERAL ({uuids}) u
"""
_STRINGS = """
SELECT t.row_id, s.col, s.path, c.uid, c.id, c.id = s.value AND NOT s.is_name AS whole
FROM picked t CROSS JOIN LATERAL ({strings}) s CROSS JOIN LATERAL ({candidates}) c WHERE {row_may} AND {value_may}
"""
_MADE = """
SELECT d.col, d.entity, NULL::text[], d.kind, t.row_id, NULL
FROM picked t CROSS JOIN LATERAL ({made}) d WHERE d.kind IS NOT NULL
"""
# Another spelling than the key's own (capitals, another collation's equal) is no reference, but contains the id.
_LOOK_UP = """
SELECT h.col, {entity} AS entity, CASE WHEN w.own THEN h.path END AS path,
       CASE WHEN w.own THEN {holds} ELSE {contains} END AS kind, h.row_id, h.id
FROM {source} h JOIN {table} k ON {matches}
CROSS JOIN LATERAL (SELECT h.whole AND k.{key}::text COLLATE "C" = h.id AS own) w
"""
# Text keys of two entities may be equal ("1", "2"): the declaration says which of them the value means.
_UNEXPLAINED = """
(h.col, h.entity) IN ({declared}) OR NOT EXISTS (
    SELECT FROM hit d WHERE (d.row_id, d.col, d.id) = (h.row_id, h.col, h.id) AND d.path IS NOT DISTINCT FROM h.path
    AND d.kind = {holds} AND (d.col, d.entity) IN ({declared}))
"""


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
    plain = [
        sql.compose(_UUIDS, uuids=uuids(number, column))
        for number, column in numbered
        if column.kind.startswith("uuid")
    ]
    sources = {name: parts for name, parts in (("plain", plain), ("held", _held(texts, known, reading))) if parts}
    made = made_from_ids(beside, [(number, text_of(column), column.kind == "text") for number, column in texts])
    hits = [_look_up(ids, source) for source in sources for ids in known]
    hits += [sql.compose(_MADE, made=part) for part in made]
    return sql.compose(
        _STATEMENT,
        materialized=sql.Text("MATERIALIZED" if picked.counted else "NOT MATERIALIZED"),
        rows=picked.rows,
        sources=sql.join(" ", [_source(name, parts) for name, parts in sources.items()]),
        hits=sql.join(" ", [sql.compose("UNION ALL {hit}", hit=hit) for hit in hits]),
        unexplained=_unexplained(columns, declared),
        counted=sql.Text(str(picked.counted)),
    )


def _source(name: str, parts: Sequence[sql.Composable]) -> sql.Composable:
    return sql.compose(
        "{name} AS {kept} ({parts}),",
        name=sql.name(name),
        kept=sql.Text(_SOURCES[name]),
        parts=sql.join(" UNION ALL ", parts),
    )


def _held(
    texts: Sequence[tuple[int, SearchedColumn]], known: Sequence[KnownIds], reading: JsonReading
) -> list[sql.Composable]:
    """The candidates in text, and those in json, whose walk leaves out by itself the documents without any."""
    json = [(number, column) for number, column in texts if column.kind in ("json", "jsonb")]
    text = [(number, column) for number, column in texts if (number, column) not in json]
    return [
        sql.compose(
            _STRINGS,
            strings=sql.join(" UNION ALL ", [strings(number, column, known, reading) for number, column in part]),
            candidates=candidates(sql.Text("s.value"), known),
            row_may=sql.Text("true") if part is json else _any_may(part, known),
            value_may=may_hold(sql.Text("s.value"), known),
        )
        for part in (text, json)
        if part
    ]


def _any_may(texts: Sequence[tuple[int, SearchedColumn]], known: Sequence[KnownIds]) -> sql.Composable:
    """Whether any of these columns of the row can hold an id: asked of the row, it spares the most of them the rest."""
    return sql.compose("({any})", any=sql.join(" OR ", [may_hold(text_of(column), known) for _, column in texts]))


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


def _look_up(ids: KnownIds, source: str) -> sql.Composable:
    return sql.compose(
        _LOOK_UP,
        source=sql.name(source),
        entity=sql.literal(ids.entity),
        holds=sql.literal(HOLDS),
        contains=sql.literal(CONTAINS),
        table=sql.table(ids.table.schema, ids.table.name),
        key=sql.name(ids.key),
        matches=ids.matches,
    )

"""Which ids the columns of one table hold: one statement a table, over a sample of it or all of its rows.

Nothing is ever cast blindly: a text becomes a uuid only where its shape is one, and compares as text otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.derived_values import CONTAINS, SHORTEST_KEY, IdInRow, made_from_ids
from uuid_pipeline.engine.sampling import Picked

Kind = Literal["uuid", "uuid array", "text", "text array", "json", "jsonb"]
# How a json column (not jsonb) is read: as it is, with its \u escapes blanked (jsonb takes no \u0000), or not at all.
JsonReading = Literal["whole", "without escapes", "not"]

LONGEST_KEY = 512
HOLDS = "holds the id"


@dataclass(frozen=True)
class SearchedColumn:
    name: str
    kind: Kind


@dataclass(frozen=True)
class KnownIds:
    """The keys of one entity; ``collation`` is that of a text key, already quoted."""

    entity: str
    table: Table
    key: str
    collation: str | None

    @property
    def is_text(self) -> bool:
        return self.table.columns[self.key].type != "uuid"


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

UUID_SHAPE = "[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"
_MAYBE_UUID = "'%%-____-____-____-____________%%'"


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
) -> tuple[list[Hit], int | None]:
    """What the picked rows hold, and how many they are where that is counted. Raises DBAPIError."""
    read = [column for column in columns if column.kind != "json" or reading != "not"]
    if not read:
        return [], None
    found = sql.rows(connection, _statement(picked, read, known, beside, reading))
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
        strings=_strings(0, column, known, reading),
    )
    return {
        tuple(row.path or ()): Variety(row.rows, row.distinct, row.longest) for row in sql.rows(connection, statement)
    }


_STATEMENT = """
WITH picked AS {materialized} ({rows}),
held AS MATERIALIZED (
    SELECT t.row_id, h.col, h.path, h.uid, h.id, h.whole, h.entity, h.kind
    FROM picked t CROSS JOIN LATERAL ({held}) h(col, path, uid, id, whole, entity, kind)),
hit AS ({hits})
SELECT col, entity, path, kind, count(DISTINCT row_id) AS rows, count(DISTINCT id) AS ids
FROM hit GROUP BY col, entity, path, kind
UNION ALL SELECT NULL, NULL, NULL, NULL, count(DISTINCT row_id), 0 FROM picked WHERE {counted} HAVING {counted}
"""


def _statement(
    picked: Picked,
    columns: Sequence[SearchedColumn],
    known: Sequence[KnownIds],
    beside: Sequence[IdInRow],
    reading: JsonReading,
) -> sql.Composable:
    uuids = [_uuids(number, column) for number, column in enumerate(columns) if column.kind.startswith("uuid")]
    texts = [
        _strings(number, column, known, reading)
        for number, column in enumerate(columns)
        if not column.kind.startswith("uuid")
    ]
    made = made_from_ids(beside, [_text_of(number, column) for number, column in enumerate(columns) if texts and
                                  not column.kind.startswith("uuid")])  # fmt: skip
    held = [*uuids, *([_ids_in(texts, known)] if texts else []), *[_derived(part) for part in made]]
    return sql.compose(
        _STATEMENT,
        materialized=sql.Text("MATERIALIZED" if picked.counted else "NOT MATERIALIZED"),
        rows=picked.rows,
        held=sql.join(" UNION ALL ", held),
        hits=sql.join(" UNION ALL ", [*[_look_up(ids) for ids in known], _made()]),
        counted=sql.Text(str(picked.counted)),
    )


def _uuids(number: int, column: SearchedColumn) -> sql.Composable:
    source = sql.Text("unnest(t.{column}::uuid[])" if column.kind == "uuid array" else "(VALUES (t.{column}::uuid))")
    return sql.compose(
        """SELECT {number} AS col, NULL::text[] AS path, u.id AS uid, u.id::text COLLATE "C" AS id, true AS whole,
                  NULL::text AS entity, NULL::text AS kind FROM {source} u(id) WHERE u.id IS NOT NULL""",
        number=sql.literal(number),
        source=source.format(column=sql.name(column.name)),
    )


def _strings(
    number: int, column: SearchedColumn, known: Sequence[KnownIds], reading: JsonReading
) -> sql.Composable:  # fmt: skip
    """Every string of a column with its path; ``is_name`` marks the names inside json, which are no values."""
    parts = {"number": sql.literal(number), "column": sql.name(column.name)}
    if column.kind in ("json", "jsonb"):
        return _json_strings(parts, known, column.kind == "json" and reading == "without escapes")
    if column.kind == "text array":
        return sql.compose(
            """SELECT {number} AS col, NULL::text[] AS path, e COLLATE "C" AS value, false AS is_name
               FROM unnest(t.{column}::text[]) e WHERE e IS NOT NULL""",
            **parts,
        )
    return sql.compose(
        """SELECT {number} AS col, NULL::text[] AS path, t.{column}::text COLLATE "C" AS value, false AS is_name
           WHERE t.{column} IS NOT NULL""",
        **parts,
    )


# A name of uuid shape would make a path of its own for every row, so such names share one step.
_WALK = """
SELECT {number} AS col, w.path, w.text COLLATE "C" AS value, w.is_name FROM (
    WITH RECURSIVE walk AS (
        SELECT ARRAY[]::text[] AS path, {document} AS value, NULL::text AS name
        WHERE t.{column} IS NOT NULL AND ({always} OR t.{column}::text COLLATE "C" LIKE {maybe})
        UNION ALL
        SELECT array_append(w.path, CASE WHEN e.name ~ {shape} THEN '<id>' ELSE e.name END), e.value, e.name
        FROM walk w CROSS JOIN LATERAL (
            SELECT key AS name, value
            FROM jsonb_each(CASE WHEN jsonb_typeof(w.value) = 'object' THEN w.value ELSE '{{}}' END)
            UNION ALL
            SELECT NULL, value
            FROM jsonb_array_elements(CASE WHEN jsonb_typeof(w.value) = 'array' THEN w.value ELSE '[]' END)) e
        WHERE jsonb_typeof(w.value) IN ('object', 'array'))
    SELECT path, value #>> '{{}}' AS text, false AS is_name FROM walk WHERE jsonb_typeof(value) = 'string'
    UNION ALL SELECT path, name, true FROM walk WHERE name IS NOT NULL) w
"""
# The run of backslashes before an escape decides whether it is one.
_WITHOUT_ESCAPES = r"regexp_replace(t.{column}::text, '(?<!\\)((?:\\\\)*)\\u[0-9A-Fa-f]{{4}}', '\1?', 'g')::jsonb"


def _json_strings(
    parts: dict[str, sql.Composable], known: Sequence[KnownIds], without_escapes: bool
) -> sql.Composable:  # fmt: skip
    document = sql.Text(_WITHOUT_ESCAPES if without_escapes else "t.{column}::jsonb")
    return sql.compose(
        _WALK,
        document=document.format(column=parts["column"]),
        always=sql.Text(str(any(ids.is_text for ids in known))),
        maybe=sql.Text(_MAYBE_UUID),
        shape=sql.Text(f"'{UUID_SHAPE}'"),
        **parts,
    )


_IDS_IN = """
SELECT s.col, s.path, CASE WHEN f.is_uuid THEN f.id::uuid END, f.id, f.id = s.value AND NOT s.is_name, NULL, NULL
FROM ({strings}) s CROSS JOIN LATERAL (
    SELECT m.parts[1] COLLATE "C" AS id, true AS is_uuid
    FROM regexp_matches(CASE WHEN s.value LIKE {maybe} THEN s.value ELSE '' END, {shape}, 'g') m(parts)
    UNION ALL
    SELECT s.value, false
    WHERE {any_text} AND NOT s.is_name AND length(s.value) BETWEEN {shortest} AND {longest}
      AND s.value !~ {only_shape}) f
"""


def _ids_in(strings: Sequence[sql.Composable], known: Sequence[KnownIds]) -> sql.Composable:
    return sql.compose(
        _IDS_IN,
        strings=sql.join(" UNION ALL ", strings),
        maybe=sql.Text(_MAYBE_UUID),
        shape=sql.Text(f"'{UUID_SHAPE}'"),
        only_shape=sql.Text(f"'^{UUID_SHAPE}$'"),
        any_text=sql.Text(str(any(ids.is_text for ids in known))),
        shortest=sql.literal(SHORTEST_KEY),
        longest=sql.literal(LONGEST_KEY),
    )


def _text_of(number: int, column: SearchedColumn) -> tuple[int, sql.Composable, bool]:
    text = sql.Text(
        'array_to_string(t.{column}::text[], chr(10)) COLLATE "C"'
        if column.kind == "text array"
        else 't.{column}::text COLLATE "C"'
    )
    return number, text.format(column=sql.name(column.name)), column.kind == "text"


def _derived(part: sql.Composable) -> sql.Composable:
    return sql.compose(
        "SELECT d.col, NULL, NULL, NULL, false, d.entity, d.kind FROM ({part}) d WHERE d.kind IS NOT NULL", part=part
    )


def _look_up(ids: KnownIds) -> sql.Composable:
    """Candidates that are keys of one entity; another spelling than the key's own is no reference but contains it."""
    parts = {
        "entity": sql.literal(ids.entity),
        "table": sql.table(ids.table.schema, ids.table.name),
        "key": sql.name(ids.key),
        "holds": sql.literal(HOLDS),
        "contains": sql.literal(CONTAINS),
        # Said in the key's own collation: in another one its index would be of no use.
        "match": sql.Text(f"h.id COLLATE {ids.collation}" if ids.is_text else "h.uid"),
    }
    return sql.compose(
        """SELECT h.col, {entity} AS entity, CASE WHEN h.whole AND w.same THEN h.path END AS path,
                  CASE WHEN h.whole AND w.same THEN {holds} ELSE {contains} END AS kind, h.row_id, h.id
           FROM held h JOIN {table} k ON k.{key} = {match}
           CROSS JOIN LATERAL (SELECT k.{key}::text COLLATE "C" = h.id AS same) w WHERE h.kind IS NULL""",
        **parts,
    )


def _made() -> sql.Composable:
    return sql.Text("SELECT h.col, h.entity, NULL::text[], h.kind, h.row_id, NULL FROM held h WHERE h.kind IS NOT NULL")

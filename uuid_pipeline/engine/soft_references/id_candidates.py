"""SQL for what may be an id in a row ``t``: the strings of its columns, with their paths in json, and the ids in them.

Nothing is ever cast blindly: a text becomes a uuid only where its shape is one, and compares as text otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.soft_references.derived_values import SHORTEST_KEY

Kind = Literal["uuid", "uuid array", "text", "text array", "json", "jsonb"]
# How a json column (not jsonb) is read: as it is, with its \u escapes blanked (jsonb takes no \u0000), or not at all.
JsonReading = Literal["whole", "without escapes", "not"]

LONGEST_KEY = 512
ID_STEP = "<id>"  # a name of uuid shape would make a path of its own for every row, so such names share one step


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

    @property
    def matches(self) -> sql.Composable:
        """Whether the candidate ``h`` (id, uid) is the key of ``k``: the value is turned to the key's own type and
        collation, or its index would be of no use."""
        return sql.compose(
            "k.{key} = {candidate}",
            key=sql.name(self.key),
            candidate=sql.Text(f"h.id COLLATE {self.collation}" if self.is_text else "h.uid"),
        )


# Measured: a match costs a regular expression 25 us, but it runs through long texts fast; taking a text apart at its
# dashes costs the square of their number.
_UUIDS_IN = """
SELECT v.text AS id FROM (SELECT {value} AS text) v
WHERE length(v.text) = 36 AND v.text LIKE '________-____-____-____-____________'
  AND translate(v.text, '0123456789abcdefABCDEF', '') = '----'
UNION ALL
SELECT u.id FROM (SELECT string_to_array(v.text, '-') AS p FROM (SELECT {value} AS text) v
                  WHERE length(v.text) BETWEEN 37 AND 500 AND v.text LIKE {maybe} OFFSET 0) a
CROSS JOIN LATERAL generate_series(1, cardinality(a.p) - 4) i CROSS JOIN LATERAL (
    SELECT concat_ws('-', right(a.p[i], 8), a.p[i + 1], a.p[i + 2], a.p[i + 3], left(a.p[i + 4], 12)) AS id) u
WHERE length(a.p[i + 1]) = 4 AND length(a.p[i + 2]) = 4 AND length(a.p[i + 3]) = 4 AND length(u.id) = 36
  AND translate(u.id, '0123456789abcdefABCDEF', '') = '----'
UNION ALL
SELECT m.parts[1] FROM (SELECT {value} AS text) v CROSS JOIN LATERAL
    regexp_matches(v.text, '[0-9A-Fa-f]{{8}}-(?:[0-9A-Fa-f]{{4}}-){{3}}[0-9A-Fa-f]{{12}}', 'g') m(parts)
WHERE length(v.text) > 500 AND v.text LIKE {maybe}
"""
_MAYBE = sql.Text("'%%-____-____-____-____________%%'")
_CANDIDATES = """
SELECT u.id COLLATE "C" AS id, u.id::uuid AS uid FROM ({uuids}) u
UNION ALL SELECT {value}, NULL WHERE {any_text} AND length({value}) BETWEEN {shortest} AND {longest}
  AND NOT (length({value}) = 36 AND translate({value}, '0123456789abcdefABCDEF', '') = '----')
"""


def candidates(value: sql.Composable, known: Sequence[KnownIds]) -> sql.Composable:
    """(id, uid) of each uuid in a text, and of the text itself where an entity's keys are text."""
    return sql.compose(
        _CANDIDATES,
        uuids=sql.compose(_UUIDS_IN, value=value, maybe=_MAYBE),
        value=value,
        any_text=sql.Text(str(any(ids.is_text for ids in known))),
        shortest=sql.literal(SHORTEST_KEY),
        longest=sql.literal(LONGEST_KEY),
    )


def may_hold(text: sql.Composable, known: Sequence[KnownIds]) -> sql.Composable:
    """Whether a text can have candidates at all: a key that is text may be anything, a uuid has its dashes."""
    if any(ids.is_text for ids in known):
        return sql.Text("true")
    return sql.compose("{text} LIKE {maybe}", text=text, maybe=_MAYBE)


def uuids(number: int, column: SearchedColumn) -> sql.Composable:
    """(col, uid) of a column of uuids."""
    source = sql.Text("unnest(t.{column}::uuid[])" if column.kind == "uuid array" else "(VALUES (t.{column}::uuid))")
    return sql.compose(
        "SELECT {number} AS col, u.id AS uid FROM {source} u(id) WHERE u.id IS NOT NULL",
        number=sql.literal(number),
        source=source.format(column=sql.name(column.name)),
    )


def strings(
    number: int, column: SearchedColumn, known: Sequence[KnownIds], reading: JsonReading
) -> sql.Composable:  # fmt: skip
    """(col, path, value, is_name) of every string in a column; a name inside json is no value."""
    if column.kind in ("json", "jsonb"):
        return _json_strings(number, column, known, column.kind == "json" and reading == "without escapes")
    return sql.compose(
        "SELECT {number} AS col, NULL::text[] AS path, e.value, false AS is_name FROM {source} e(value) "
        "WHERE e.value IS NOT NULL",
        number=sql.literal(number),
        source=sql.Text(
            'unnest(t.{column}::text[] COLLATE "C")'
            if column.kind == "text array"
            else '(VALUES (t.{column}::text COLLATE "C"))'
        ).format(column=sql.name(column.name)),
    )


def text_of(column: SearchedColumn) -> sql.Composable:
    """A column as one text."""
    text = 'array_to_string(t.{column}::text[], chr(10)) COLLATE "C"'
    return sql.Text(text if column.kind == "text array" else 't.{column}::text COLLATE "C"').format(
        column=sql.name(column.name)
    )


# A walk with its paths takes ten times as long as a look for known ids, so only documents that hold one are walked.
_WALK = """
SELECT {number} AS col, w.path, w.text COLLATE "C" AS value, w.is_name
FROM (SELECT t.{column}::text COLLATE "C" AS doc, {document} AS value WHERE t.{column} IS NOT NULL OFFSET 0) d
CROSS JOIN LATERAL (
    WITH RECURSIVE walk AS (
        SELECT ARRAY[]::text[] AS path, d.value, NULL::text AS name WHERE {holds_known}
        UNION ALL
        SELECT array_append(w.path, CASE WHEN length(e.name) = 36 AND e.name LIKE {maybe} THEN {id_step}
                                         ELSE e.name END), e.value, e.name
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
_JSON_VALUES = "SELECT x #>> '{}' FROM jsonb_path_query(d.value, 'strict $.**') x WHERE jsonb_typeof(x) = 'string'"


def _json_strings(
    number: int, column: SearchedColumn, known: Sequence[KnownIds], without_escapes: bool
) -> sql.Composable:
    document = sql.Text(_WITHOUT_ESCAPES if without_escapes else "t.{column}::jsonb")
    return sql.compose(
        _WALK,
        number=sql.literal(number),
        column=sql.name(column.name),
        document=document.format(column=sql.name(column.name)),
        holds_known=_holds_known(known),
        maybe=_MAYBE,
        id_step=sql.literal(ID_STEP),
    )


def _holds_known(known: Sequence[KnownIds]) -> sql.Composable:
    """Whether the document ``d`` holds an id of any entity, in whatever form."""
    inside = sql.compose(_UUIDS_IN, value=sql.Text("d.doc"), maybe=_MAYBE)
    found = sql.compose('SELECT u.id COLLATE "C" AS id, u.id::uuid AS uid FROM ({inside}) u', inside=inside)
    if any(ids.is_text for ids in known):
        found = sql.compose(
            '{found} UNION ALL SELECT s.value COLLATE "C", NULL FROM ({values}) s(value) '
            "WHERE length(s.value) BETWEEN {shortest} AND {longest}",
            found=found,
            values=sql.Text(_JSON_VALUES),
            shortest=sql.literal(SHORTEST_KEY),
            longest=sql.literal(LONGEST_KEY),
        )
    keys = [
        sql.compose(
            "EXISTS (SELECT FROM {table} k WHERE {matches})",
            table=sql.table(ids.table.schema, ids.table.name),
            matches=ids.matches,
        )
        for ids in known
    ]
    return sql.compose("EXISTS (SELECT FROM ({found}) h WHERE {any})", found=found, any=sql.join(" OR ", keys))

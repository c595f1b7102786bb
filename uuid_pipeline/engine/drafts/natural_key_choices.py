"""What could be the natural key of a table: its unique keys, and failing those a content hash with an owner."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Catalog, Table
from uuid_pipeline.engine.drafts.table_choices import key_of
from uuid_pipeline.engine.soft_references.sampling import bounded
from uuid_pipeline.identity import parse_template

LOOKED_AT = 50_000
SECONDS = 10
_HASH = re.compile(r"(^|_)(sha\d*|md5|hash|checksum|digest|fingerprint|etag)(_|$)|sha256")
_OWNER = re.compile(r"(user|owner|account|tenant|customer|author|org|organi[sz]ation)(_id)?|created_by|uploaded_by")
_TEXT = ("text", "character varying", "character")
# Their text is not one text for one value, in every version and setting.
_UNFIT = re.compile(r"(.+\.)?(json|jsonb|xml|real|double precision|vector|halfvec|tsvector|money)([(\[]|$)")


@dataclass(frozen=True)
class KeyChoice:
    """Columns that could make a row what it is; of the rows ``looked_at`` some have a NULL, ``distinct`` differ.

    ``unique``: by an index over all rows. ``among``: the SQL condition of the rows that an index is unique over, where
    it is not all. ``folded``: columns of which an index compares the small letters.
    """

    columns: tuple[str, ...]
    unique: bool
    obstacle: str | None
    among: str | None = None
    folded: tuple[str, ...] = ()
    looked_at: int | None = None
    with_null: int = 0
    distinct: int = 0
    hex_length: Mapping[str, int] | None = None

    def __str__(self) -> str:
        kind = "unique" if self.unique or self.among or self.folded else "not unique by any index"
        kind += f" by lower({', '.join(self.folded)})" if self.folded else ""
        kind += f" among the rows WHERE {self.among}" if self.among else ""
        return f"({', '.join(self.columns)}): {kind}{self._counted()}" + (f"; {self.obstacle}" if self.obstacle else "")

    def _counted(self) -> str:
        if not self.looked_at:
            return ""
        nulls = f", {self.with_null} with a NULL in it" if self.with_null else ""
        return f", {self.distinct} distinct in {self.looked_at} rows looked at{nulls}"


# A default that makes a new value each time: what it makes says nothing about the row.
_SURROGATES = """
SELECT a.attrelid AS oid, array_agg(a.attname::text) AS columns FROM pg_attribute a
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY(%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped AND (a.attidentity <> ''
    OR (a.attgenerated = '' AND pg_get_expr(d.adbin, d.adrelid) ~ '(nextval|gen_random_uuid|uuid_generate|uuidv[47])'))
GROUP BY a.attrelid
"""


def surrogates(connection: Connection, catalog: Catalog) -> dict[int, frozenset[str]]:
    """By table: columns that the database numbers or randomises by itself."""
    oids = [table.oid for table in catalog.tables.values()]
    return {row.oid: frozenset(row.columns) for row in sql.rows(connection, _SURROGATES, {"oids": oids})}


def of(
    connection: Connection, catalog: Catalog, table: Table, numbered: Mapping[int, frozenset[str]]
) -> list[KeyChoice]:
    """The choices for a table, the likeliest first, each tried on some of its rows."""
    key = {*table.primary_key, key_of(table)}
    unique = [columns for columns in table.unique_keys if not set(columns) & key]
    own = numbered.get(table.oid, frozenset())
    choices = [KeyChoice(columns, True, None) for columns in dict.fromkeys(unique)]
    choices += [c for c in _of_odd_indexes(connection, table) if not set(c.columns) & key]
    choices = [replace(choice, obstacle=_obstacle(catalog, table, choice.columns, own)) for choice in choices]
    if not any(choice.obstacle is None for choice in choices):
        choices += [KeyChoice(columns, False, None) for columns in _hash_with_owner(table)]
    # Not before: where the unique key cannot be spelled, less of it would make one of rows that are several.
    choices = [replace(choice, obstacle=choice.obstacle or _unspeakable(choice.columns)) for choice in choices]
    ranked = sorted(choices, key=lambda choice: _rank(table, choice))
    return [_tried(connection, table, choice) for choice in ranked]


# Unique over a part of the rows, as soft deletion wants it, or over the small letters of a text. Other expressions name
# no column that an identity could spell.
_ODD_INDEXES = """
WITH parts AS (
    SELECT i.indexrelid, pg_get_expr(i.indpred, i.indrelid) AS among, k.position, k.attnum,
           CASE k.attnum WHEN 0
               THEN substring(pg_get_indexdef(i.indexrelid, k.position::int, false)
                              FROM '^lower\\(\\(?([a-z_][a-z0-9_]*|"[^"]+")(?:\\)::text)?\\)$') END AS folded
    FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, position)
    WHERE i.indrelid = %(oid)s AND i.indisunique AND i.indisvalid AND k.position <= i.indnkeyatts
      AND (i.indpred IS NOT NULL OR i.indexprs IS NOT NULL)),
named AS (
    SELECT p.*, a.attname::text AS name FROM parts p LEFT JOIN pg_attribute a
    ON a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
       AND (a.attnum = p.attnum OR quote_ident(a.attname) = p.folded))
SELECT among, array_agg(name ORDER BY position) AS columns,
       coalesce(array_agg(name ORDER BY position) FILTER (WHERE folded IS NOT NULL), '{}') AS folded
FROM named GROUP BY indexrelid, among HAVING bool_and(name IS NOT NULL) ORDER BY indexrelid
"""


def _of_odd_indexes(connection: Connection, table: Table) -> list[KeyChoice]:
    return [
        KeyChoice(tuple(row.columns), unique=False, obstacle=None, among=row.among, folded=tuple(row.folded))
        for row in sql.rows(connection, _ODD_INDEXES, {"oid": table.oid})
    ]


def _obstacle(catalog: Catalog, table: Table, columns: Sequence[str], numbered: frozenset[str]) -> str | None:
    made = [column for column in columns if column in numbered]
    if made:
        return f"{', '.join(made)} is made by the database, so it says nothing about the row"
    unfit = [column for column in columns if _UNFIT.match(table.columns[column].type)]
    if unfit:
        return f"{', '.join(unfit)} has no text that is always the same"
    itself = [c for c in columns if _refers_to_itself(catalog, table, c)]
    return f"{', '.join(itself)} refers to this table itself" if itself else None


def _unspeakable(columns: Sequence[str]) -> str | None:
    found = [column for column in columns if not _fits_a_template(column)]
    if not found:
        return None
    return f"{', '.join(found)} cannot be named in an identity: no column with a colon, a dot, brackets or braces can"


def _fits_a_template(column: str) -> bool:
    try:
        return parse_template(f"{{{column}}}").fields == (column,)
    except ValueError:
        return False


def _refers_to_itself(catalog: Catalog, table: Table, column: str) -> bool:
    own = (table.schema, table.name)
    return any(
        (key.table_schema, key.table) == own and (key.target_schema, key.target) == own and column in key.columns
        for key in catalog.foreign_keys
    )


def _hash_with_owner(table: Table) -> list[tuple[str, ...]]:
    hashes = [c.name for c in table.columns.values() if looks_like_hash(c.name) and c.type.startswith(_TEXT)]
    owners = [c.name for c in table.columns.values() if _OWNER.fullmatch(c.name.lower())]
    return [(*owners[:1], name) for name in hashes]


def looks_like_hash(column: str) -> bool:
    """Whether a column is named as content hashes are."""
    return _HASH.search(column.lower()) is not None


def _rank(table: Table, choice: KeyChoice) -> tuple[bool, bool, bool, bool, bool, int]:
    nullable = any(not table.columns[column].not_null for column in choice.columns)
    hashed = any(looks_like_hash(column) for column in choice.columns)
    owned = any(_OWNER.fullmatch(column.lower()) for column in choice.columns)
    return choice.obstacle is not None, not choice.unique, nullable, not hashed, not owned, len(choice.columns)


def _tried(connection: Connection, table: Table, choice: KeyChoice) -> KeyChoice:
    """The choice with what some rows say of it; as it was when they cannot be read."""
    hashes = [c for c in choice.columns if looks_like_hash(c) and table.columns[c].type.startswith(_TEXT)]
    lengths = [
        sql.compose(
            "CASE WHEN bool_and({c} ~ '^[0-9a-f]+$') AND min(length({c})) = max(length({c})) THEN max(length({c})) END",
            c=sql.name(column),
        )
        for column in hashes
    ]
    names = [sql.name(column) for column in choice.columns]
    filled = sql.join(" AND ", [sql.compose("{c} IS NOT NULL", c=part) for part in names])
    statement = sql.compose(
        "SELECT count(*) AS rows, count(*) FILTER (WHERE NOT ({filled})) AS nulls, "
        "count(DISTINCT ({texts})) FILTER (WHERE {filled}) AS distinct, ARRAY[{lengths}]::int[] AS lengths "
        "FROM (SELECT {columns} FROM {table} LIMIT {limit}) t",
        filled=filled,
        texts=sql.join(", ", [sql.compose("{c}::text", c=part) for part in [*names, sql.Text("''")]]),
        lengths=sql.join(", ", lengths),
        columns=sql.join(", ", names),
        table=sql.table(table.schema, table.name),
        limit=sql.literal(LOOKED_AT),
    )
    try:
        with bounded(connection, SECONDS, by_index=False):
            row = sql.rows(connection, statement)[0]
    except DBAPIError:
        return choice  # no right, a lock, too slow: the estimate is then left out
    found = {column: length for column, length in zip(hashes, row.lengths, strict=True) if length}
    tried = replace(choice, looked_at=row.rows, with_null=row.nulls, distinct=row.distinct, hex_length=found)
    shared = not choice.unique and not choice.among and not choice.folded and 2 * row.distinct < row.rows - row.nulls
    return replace(tried, obstacle=tried.obstacle or _TOO_COMMON) if shared else tried


_TOO_COMMON = "most rows agree in it with others, so it does not say which row is which"

"""Portable fingerprints: equal for equal rows in another database or server, whatever oids things have there.

Built as those of ``fingerprint``, from each column's own binary form, but where that form holds an oid (a composite, an
array of a type that is not built in, a regclass): there from its text.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql


@dataclass(frozen=True)
class Portable:
    """Of a table: how many rows, and the sum of their digests."""

    table: str
    rows: int
    digest: int

    def as_data(self) -> dict[str, Any]:
        """For the ledger; the digest as text, since JSON's readers round such numbers."""
        return asdict(self) | {"digest": str(self.digest)}


@dataclass(frozen=True)
class Recipe:
    """How one table's rows are read: its columns, each with the send function of its type or None for its text.

    Made once, in the store, and followed in every copy.
    """

    schema: str
    table: str
    columns: tuple[tuple[str, str | None], ...]

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"


# Types below oid 16384 are PostgreSQL's own and have their oids everywhere; the reg* types and the composites hold one.
_COLUMNS = """
SELECT n.nspname, c.relname, a.attname,
       CASE WHEN t.typsend <> 0 AND t.typtype IN ('b', 'e', 'r', 'm') AND t.typcategory <> 'P'
             AND t.oid NOT IN (SELECT oid FROM pg_type WHERE typname LIKE 'reg%%' AND oid < 16384)
             AND (t.typcategory <> 'A' OR (t.typelem < 16384 AND EXISTS (
                     SELECT FROM pg_type e WHERE e.oid = t.typelem AND e.typtype = 'b' AND e.typsend <> 0
                     AND e.typname NOT LIKE 'reg%%')))
             AND (t.typtype NOT IN ('r', 'm') OR t.oid < 16384)
       THEN (SELECT quote_ident(s.nspname) || '.' || quote_ident(p.proname)
             FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace WHERE p.oid = t.typsend) END AS send
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
LEFT JOIN pg_type t ON t.oid = a.atttypid
WHERE c.oid = ANY(%(oids)s) ORDER BY n.nspname, c.relname, a.attnum
"""


def recipes(connection: Connection, oids: Sequence[int]) -> tuple[Recipe, ...]:
    """How to read the tables of these oids, in the order of their names; generated columns are left out."""
    found: dict[tuple[str, str], list[tuple[str, str | None]]] = {}
    for row in sql.rows(connection, _COLUMNS, {"oids": list(oids)}):
        columns = found.setdefault((row.nspname, row.relname), [])
        if row.attname is not None:
            columns.append((row.attname, row.send))
    return tuple(Recipe(schema, table, tuple(columns)) for (schema, table), columns in found.items())


def of_table(connection: Connection, recipe: Recipe) -> Portable:
    """The fingerprint of a whole table, as the transaction sees it; wants the store's pinned settings."""
    fields = sql.join(", ", [sql.Text("0"), *[_sent(column, send) for column, send in recipe.columns]])
    statement = sql.compose(
        "SELECT count(*), coalesce(sum(hash_record_extended(ROW({fields}), 0)), 0) FROM {table} t",
        fields=fields,
        table=sql.table(recipe.schema, recipe.table),
    )
    rows, digest = sql.rows(connection, statement)[0]
    return Portable(recipe.name, int(rows), int(digest))


def _sent(column: str, send: str | None) -> sql.Composable:
    value = sql.compose("t.{c}", c=sql.name(column))
    if send is None:
        return sql.compose("textsend({value}::text)", value=value)
    return sql.compose("{send}({value})", send=sql.as_written(send), value=value)


def differences(before: Sequence[Portable], after: Sequence[Portable]) -> list[str]:
    """Tables that are not the same in both, one sentence each."""
    now = {found.table: found for found in after}
    said = []
    for was in before:
        found = now.get(was.table)
        if found is None:
            said.append(f"{was.table} is missing")
        elif found.rows != was.rows:
            said.append(f"{was.table}: {was.rows} rows before, {found.rows} after")
        elif found.digest != was.digest:
            said.append(f"{was.table}: the {was.rows} rows are not the same (digest {was.digest}, now {found.digest})")
    return said

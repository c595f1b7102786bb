"""Where tables and columns were, by the server's own numbers: a rename leaves these as they are.

They mean something in the cluster alone where they were read: restored from a dump, a table has others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.connection import cluster_identity

Places = Mapping[str, Any]

_TABLES = """
SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name,
       (SELECT jsonb_object_agg(a.attnum::text, a.attname) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY(%(oids)s::bigint[])
"""


@dataclass(frozen=True)
class Renamed:
    """A table, or where there is a ``column`` that column of it, under the name of then; and the names of now."""

    schema: str
    table: str
    column: str | None
    table_now: tuple[str, str]
    column_now: str | None = None

    def __str__(self) -> str:
        then = ".".join(part for part in (self.schema, self.table, self.column) if part is not None)
        return f"{then} is now {'.'.join(self.table_now) if self.column_now is None else self.column_now}"

    @property
    def back(self) -> str:
        """The statements that give it its name of then; those of a table come after those of its columns."""
        schema, table = self.table_now
        now = sql.table(schema, table)
        if self.column is not None and self.column_now is not None:
            names = {"now": sql.name(self.column_now), "then": sql.name(self.column)}
            return sql.shown(sql.compose("ALTER TABLE {table} RENAME {now} TO {then};", table=now, **names))
        steps = []
        if table != self.table:
            steps.append(sql.compose("ALTER TABLE {table} RENAME TO {then};", table=now, then=sql.name(self.table)))
        if schema != self.schema:
            there = sql.table(schema, self.table)
            steps.append(sql.compose("ALTER TABLE {table} SET SCHEMA {then};", table=there, then=sql.name(self.schema)))
        return " ".join(map(sql.shown, steps))


def read(connection: Connection, oids: Sequence[int]) -> dict[str, Any]:
    """The places of these tables and of their columns, as JSON takes them."""
    found = sql.rows(connection, _TABLES, {"oids": list(oids)})
    tables = {str(row.oid): {"schema": row.schema, "name": row.name, "columns": row.columns or {}} for row in found}
    return {"cluster": cluster_identity(connection), "tables": tables}


def renamed(connection: Connection, then: Places) -> list[Renamed]:
    """What has another name than then; nothing where this is another cluster, as after a restore."""
    tables: Mapping[str, Any] = then["tables"]
    if not _of_this_cluster(connection, then):
        return []
    now = read(connection, [int(oid) for oid in tables])
    found = []
    for oid, was in tables.items():
        if oid not in now["tables"]:
            continue
        table = now["tables"][oid]
        place = (table["schema"], table["name"])
        for number, column in was["columns"].items():
            if table["columns"].get(number, column) != column:
                found.append(Renamed(was["schema"], was["name"], column, place, table["columns"][number]))
        if place != (was["schema"], was["name"]):
            found.append(Renamed(was["schema"], was["name"], None, place))
    return found


def hold(connection: Connection, then: Places, oid: int) -> bool:
    """Whether this is the very table that was looked at then, and no other of its name."""
    return str(oid) in then["tables"] and _of_this_cluster(connection, then)


def _of_this_cluster(connection: Connection, then: Places) -> bool:
    return then["cluster"] is not None and then["cluster"] == cluster_identity(connection)

"""Reading a bounded part of a table, whatever its size, within bounded time and without waiting for locks."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import savepoints, sql
from uuid_pipeline.engine.catalog import Table

LOCK_TIMEOUT = "2s"


@dataclass(frozen=True)
class Budget:
    """What one search may cost. Tables of at most ``small_bytes`` are read whole and count towards ``seconds`` only."""

    small_bytes: int = 8_000_000
    sample_rows: int = 10_000
    sample_bytes: int = 64_000_000
    sample_pages: int = 2_000
    exact_rows: int = 5_000_000
    exact_bytes: int = 2_000_000_000
    sample_seconds: float = 20
    seconds: float = 300


@dataclass(frozen=True)
class Extent:
    """A table with its partitions: heap pages, bytes with what is stored out of line, and about how many rows.

    ``root`` is the oid of the partitioned table that a partition belongs to.
    """

    readable: bool
    root: int | None
    pages: int
    bytes: int
    rows: int


@dataclass(frozen=True)
class Picked:
    """Rows of one table: ``rows`` selects them with their ``row_id``; ``counted`` when few enough to be counted too."""

    rows: sql.Composable
    counted: bool


# Rows are what the last ANALYZE saw, scaled to the pages of now, as the planner does it; before the first, a guess.
_EXTENT = """
SELECT has_schema_privilege(c.relnamespace, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS readable,
       CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid END AS root, s.pages, s.bytes, s.rows
FROM pg_class c CROSS JOIN LATERAL (
    SELECT coalesce(sum(l.pages), 0)::bigint AS pages, coalesce(sum(l.bytes), 0)::bigint AS bytes,
           coalesce(sum(CASE WHEN l.seen_pages > 0 AND l.tuples > 0 THEN l.tuples / l.seen_pages * l.pages
                             ELSE l.pages * 40 END), 0)::bigint AS rows
    FROM (SELECT p.relpages AS seen_pages, p.reltuples::float8 AS tuples, pg_table_size(p.oid) AS bytes,
                 pg_relation_size(p.oid) / current_setting('block_size')::int AS pages
          FROM pg_class p WHERE p.relkind = 'r' AND p.oid IN (
              SELECT c.oid UNION ALL SELECT t.relid::oid FROM pg_partition_tree(c.oid) t)) l) s
WHERE c.oid = %(oid)s
"""


def extent(connection: Connection, table: Table) -> Extent:
    """How large a table is, and whether this role may read it. Raises DBAPIError: a size waits for the table's lock."""
    return Extent(*sql.rows(connection, _EXTENT, {"oid": table.oid})[0])


def everything(table: Table, columns: Sequence[str], counted: bool) -> Picked:
    """All rows."""
    return Picked(_select("SELECT {row_id}, {columns} FROM {table} t", table, columns), counted)


def sample(table: Table, size: Extent, columns: Sequence[str], budget: Budget) -> Picked:
    """Some of the first rows, some of the last, and a share of the pages between: the same rows each time."""
    rows = max(1, size.rows)
    wanted = min(budget.sample_rows, max(100, int(budget.sample_bytes * rows / max(1, size.bytes))))
    share = min(1.0, wanted / 2 / rows, budget.sample_pages / 2 / max(1, size.pages))
    scattered = _select(
        "(SELECT {row_id}, {columns} FROM {table} t TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1) LIMIT {limit})",
        table, columns, percent=sql.Text(f"{max(100 * share, 1e-6):.6f}"), limit=sql.literal(max(1, wanted // 2)),
    )  # fmt: skip
    if table.kind == "p":
        return Picked(scattered, counted=True)
    pages = min(math.ceil(wanted / 4 * size.pages / rows), budget.sample_pages // 4) or 1
    ends = [
        _select(
            "(SELECT {row_id}, {columns} FROM {table} t WHERE t.ctid {side} LIMIT {limit})",
            table, columns, side=sql.Text(side), limit=sql.literal(max(1, wanted // 4)),
        )
        for side in (f"< '({pages},0)'::tid", f">= '({max(0, size.pages - pages)},0)'::tid")
    ]  # fmt: skip
    return Picked(sql.join(" UNION ALL ", [*ends, scattered]), counted=True)


def _select(template: str, table: Table, columns: Sequence[str], **parts: sql.Composable) -> sql.Composable:
    partitioned = table.kind == "p"
    return sql.Text(template).format(
        # A place in the heap is a row's name within one table only. Inheriting tables are searched as tables of their
        # own, partitions with their parent.
        row_id=sql.Text("t.tableoid || ' ' || t.ctid::text AS row_id" if partitioned else "t.ctid AS row_id"),
        columns=sql.join(", ", [sql.compose("t.{column}", column=sql.name(column)) for column in columns]),
        table=sql.compose(
            "{only} {table}",
            only=sql.Text("" if partitioned else "ONLY"),
            table=sql.table(table.schema, table.name),
        ),
        **parts,
    )


@contextmanager
def bounded(connection: Connection, seconds: float, by_index: bool) -> Iterator[None]:
    """A savepoint that only reads and is always undone, with its time and its waiting for locks bounded.

    ``by_index``: few rows are looked up in tables of any size, so no join may read such a table whole.
    """
    with savepoints.undone(connection):
        sql.execute(
            connection,
            """SELECT set_config('statement_timeout', %(timeout)s, true), set_config('lock_timeout', %(lock)s, true),
                      set_config('search_path', 'pg_catalog', true), set_config('jit', 'off', true),
                      set_config('enable_hashjoin', %(whole)s, true), set_config('enable_mergejoin', %(whole)s, true),
                      set_config('work_mem', '64MB', true)""",
            {
                "timeout": f"{max(1, int(seconds * 1000))}ms",
                "lock": LOCK_TIMEOUT,
                "whole": "off" if by_index else "on",
            },
        )
        yield

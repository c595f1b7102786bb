"""Who deleted rows of a moved table since the state before: our own batches, or somebody else."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.signals.sessions import with_others
from uuid_pipeline.engine.store import Store

# A server process reports the rows it deleted when it is next busy, or after 10 s without work.
STATISTICS_SECONDS = 11.0


@dataclass(frozen=True)
class Deletions:
    """Rows of one table deleted since the state before; ``application`` is None where the server cannot tell.

    ``ours`` are deletes of our own batches beyond what they archived: a trigger that deletes, or a fault. There may be
    more than the application is seen to have deleted where ``unreported``.
    """

    application: int | None
    ours: int
    unreported: bool = False


def of_this_session(connection: Connection, store: Store) -> dict[str, int]:
    """Rows by table that this session has deleted and not reported yet: inside a transaction only the difference of
    two such counts is that transaction's own.
    """
    names = {moved.table.oid: fingerprint.qualified(moved) for moved in store.tables}
    found = sql.rows(
        connection,
        """SELECT o.oid, pg_stat_get_xact_tuples_deleted(o.oid::oid) AS n FROM unnest(%(oids)s::bigint[]) o(oid)
           WHERE pg_stat_get_xact_tuples_deleted(o.oid::oid) > 0""",
        {"oids": list(names)},
    )
    return {names[row.oid]: int(row.n) for row in found}


def between(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What was deleted from one count to the next, tables without any left out."""
    return {table: count - before.get(table, 0) for table, count in after.items() if count > before.get(table, 0)}


# Counters begin anew after a crash, a reset or on another server: then a difference says nothing. Of a crash a database
# knows no reset, and the postmaster may have outlived it; what is counted for the whole server says when it began anew.
_EPOCH = """
SELECT concat_ws(' ', pg_stat_get_bgwriter_stat_reset_time(), left(pg_walfile_name(pg_current_wal_lsn()), 8),
                 (SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()),
                 current_setting('track_counts'))
"""


def epoch(connection: Connection) -> str:
    """What stays the same while the server goes on counting."""
    return str(sql.scalar(connection, _EPOCH))


def began_anew(connection: Connection, epoch_before: str | None) -> bool:
    """Whether the server cannot tell what was deleted since: it counts anew, or not at all."""
    now = epoch(connection)
    return now != epoch_before or now.endswith("off")


# Before PostgreSQL 15 a session that idles keeps what it did in the half second before for itself, however long.
_UNREPORTED = with_others("""
SELECT current_setting('server_version_num')::int < 150000
       AND EXISTS (SELECT FROM others o WHERE o.hidden OR o.state IN ('idle', 'idle in transaction'))
""")

_SEEN = """
SELECT coalesce(pg_stat_get_tuples_deleted(%(oid)s::oid), 0)
           -- What a pooled session has not reported, and will not before this transaction ends.
           + coalesce(pg_stat_get_xact_tuples_deleted(%(oid)s::oid), 0) - f.deleted_before AS deleted,
       (SELECT coalesce(sum((b.moved->'merged'->'archived'->>%(table)s)::bigint), 0) FROM uuid_pipeline.batches b
        WHERE b.execution_id = %(execution)s AND b.direction = 'forward') AS archived,
       (SELECT coalesce(sum((b.moved->'deleted'->>%(table)s)::bigint), 0) FROM uuid_pipeline.batches b
        WHERE b.execution_id = %(execution)s) AS ours
FROM uuid_pipeline.fingerprints f WHERE f.execution_id = %(execution)s AND f.table_name = %(table)s
"""


def seen(connection: Connection, table: Table, execution_id: str, epoch_before: str | None) -> Deletions:
    """Deletions of a table since the first wave's beginning."""
    values = {"oid": table.oid, "table": f"{table.schema}.{table.name}", "execution": execution_id}
    found = sql.rows(connection, _SEEN, values)
    if not found:
        return Deletions(None, 0)
    row = found[0]
    ours = max(int(row.ours) - int(row.archived), 0)
    if began_anew(connection, epoch_before) or row.deleted < 0:
        return Deletions(None, ours)
    return Deletions(max(int(row.deleted) - int(row.archived) - ours, 0), ours, may_be_unreported(connection))


def may_be_unreported(connection: Connection) -> bool:
    """Whether a session of others may have deleted rows that the server does not know of yet."""
    return bool(sql.scalar(connection, _UNREPORTED))


def patiently(connection: Connection, look: Callable[[], Any], explained: Callable[[Any], bool]) -> Any:
    """What ``look`` sees once it is explained, or when the statistics of deletes can no longer be late."""
    deadline = time.monotonic() + STATISTICS_SECONDS
    while True:
        found = look()
        if explained(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)
        sql.execute(connection, "SELECT pg_stat_clear_snapshot()")

"""What the application wrote since an execution began, as its rows show it: by the transactions that wrote them."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql

# Rows that the application wrote since the execution's first snapshot, and not we: by a transaction not older than the
# oldest that ran then (a snapshot does not name subtransactions, so those in flight count as written). Ages count from
# this transaction's own id, which it has by now (it wrote the lease); what is worth a row's look-up is made once.
_WRITTEN_SINCE = """
age({row}.xmin) < 2000000000
AND age({row}.xmin) <= (SELECT pg_current_xact_id()::text::bigint
                               - pg_snapshot_xmin(%(snapshot)s::pg_snapshot)::text::bigint)
AND age({row}.xmin) NOT IN
    (SELECT pg_current_xact_id()::text::bigint - j.transaction_id::text::bigint
     FROM uuid_pipeline.batches j WHERE j.execution_id = %(execution)s UNION ALL SELECT 0)
"""


def written_since(alias: str) -> sql.Composable:
    """Whether the application wrote the row of this alias since the execution's first snapshot, as a condition."""
    return sql.compose(_WRITTEN_SINCE, row=sql.name(alias))


def found_written(connection: Connection, execution_id: str) -> bool:
    """Whether batches met rows that the application had written: once they are moved, they show our write alone."""
    statement = """SELECT EXISTS (SELECT FROM uuid_pipeline.batches b
                                  CROSS JOIN LATERAL jsonb_each_text(b.moved->'touched') AS t(place, rows)
                                  WHERE b.execution_id = %(id)s AND t.rows::bigint > 0)
                       OR EXISTS (SELECT FROM uuid_pipeline.unmoved WHERE execution_id = %(id)s)"""
    return bool(sql.scalar(connection, statement, {"id": execution_id}))

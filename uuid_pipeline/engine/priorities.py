"""The priority score of a document, and its parts: recency, status, chunks."""

from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.store import Store

# The report's score. An unknown date or status adds least; %(complete)s are the spec's complete statuses.
RECENCY = """(CASE WHEN i.created_at > now() - interval '7 days' THEN 0.4
      WHEN i.created_at > now() - interval '30 days' THEN 0.3
      WHEN i.created_at > now() - interval '90 days' THEN 0.2 ELSE 0.1 END)::numeric"""
STATUS = """(CASE WHEN i.status = ANY(%(complete)s) THEN 0.3 WHEN i.status IN ('chunked', 'embedding') THEN 0.2
      WHEN i.status IN ('parsed', 'chunking') THEN 0.1 ELSE 0 END)::numeric"""
CHILDREN = "least(0.3, 0.01 * coalesce(i.children, 0))::numeric"
PRIORITY = f"({RECENCY} + {STATUS} + {CHILDREN})"

_TOP = """
SELECT i.key::text AS id, i.title, i.created_at::text AS created_at, i.status, i.children, i.id_class,
       {recency}::float AS recency, {status}::float AS by_status, {children}::float AS by_children,
       {priority}::float AS priority
FROM {table} i WHERE i.assessment_no = %(no)s ORDER BY {priority} DESC, i.position LIMIT %(limit)s
"""
_BANDS = """
SELECT floor({priority} * 10)::int AS band, count(*) AS documents,
       count(*) FILTER (WHERE i.id_class <> 'deterministic') AS due
FROM {table} i WHERE i.assessment_no = %(no)s GROUP BY 1 ORDER BY 1
"""


def complete_statuses(store: Store) -> list[str]:
    return [status for status in store.spec.statuses.complete if status is not None]


def top(connection: Connection, store: Store, assessment: int, limit: int) -> list[dict[str, Any]]:
    """The main entity's rows of the highest priority, each with the three parts of its score."""
    found = sql.rows(
        connection, _filled(store, _TOP), {"no": assessment, "limit": limit, "complete": complete_statuses(store)}
    )
    return [dict(row._mapping) for row in found]


def bands(connection: Connection, store: Store, assessment: int) -> list[dict[str, Any]]:
    """Documents by score, in steps of 0.1: ``from`` and ``to`` (exclusive), how many, how many of them must move."""
    found = sql.rows(connection, _filled(store, _BANDS), {"no": assessment, "complete": complete_statuses(store)})
    return [
        {"from": row.band / 10, "to": (row.band + 1) / 10, "documents": row.documents, "due": row.due} for row in found
    ]


def _filled(store: Store, statement: str) -> sql.Composable:
    return sql.Text(statement).format(
        table=ledger.inventory_table(store.main),
        recency=sql.Text(RECENCY),
        status=sql.Text(STATUS),
        children=sql.Text(CHILDREN),
        priority=sql.Text(PRIORITY),
    )

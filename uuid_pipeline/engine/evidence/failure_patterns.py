"""Failure patterns: documents that an application's pipeline left somewhere on the way, by where."""

from dataclasses import dataclass
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.priorities import complete_statuses
from uuid_pipeline.engine.store import Store

EXAMPLES = 5


@dataclass(frozen=True)
class Pattern:
    """One pattern: ``documents`` is None where the spec does not say enough, and ``unknown`` says what is missing."""

    name: str
    title: str
    meaning: str
    documents: int | None
    examples: tuple[str, ...] = ()
    unknown: str | None = None


@dataclass(frozen=True)
class _Rule:
    name: str
    title: str
    meaning: str
    condition: LiteralString
    wants: tuple[str, ...]


# Documents without chunks are in exactly one of the first two.
_FAILED = "(i.status = ANY(%(failed)s) OR (i.status IS NULL AND %(null_failed)s))"
_RULES: tuple[_Rule, ...] = (
    _Rule(
        "never_processed", "Never processed", "no chunks, and a status that says that the work failed or never began",
        "i.children = 0 AND " + _FAILED, ("status", "failed", "children"),
    ),
    _Rule(
        "processed_without_chunks", "Processed without chunks", "no chunks, though no status says that anything failed",
        "i.children = 0 AND NOT " + _FAILED, ("status", "failed", "children"),
    ),
    _Rule(
        "complete_yet_unreachable", "Complete yet unreachable",
        "a complete status, but no chunks are found under the target id, where retrieval looks",
        "i.status = ANY(%(complete)s) AND (i.id_class <> 'deterministic' OR i.children = 0)",
        ("status", "complete", "children"),
    ),
)  # fmt: skip
_MISSING = {
    "status": "the spec describes no status",
    "failed": "the spec lists no failed statuses",
    "complete": "the spec lists no complete statuses",
    "children": "the spec has no entity below documents",
}
_COUNT: LiteralString = "SELECT count(*) FROM {table} i WHERE i.assessment_no = %(no)s AND {condition}"
_SAMPLE: LiteralString = """
SELECT i.key::text AS id FROM {table} i WHERE i.assessment_no = %(no)s AND {condition} ORDER BY i.position LIMIT %(n)s
"""


def find(connection: Connection, store: Store, assessment: int) -> list[Pattern]:
    """Every pattern of the main entity's rows, as of an assessment's inventory."""
    found = [_by_rule(connection, store, assessment, rule) for rule in _RULES]
    return [*found[:2], _without_embedding(connection, store), *found[2:]]


def _by_rule(connection: Connection, store: Store, assessment: int, rule: _Rule) -> Pattern:
    known = {
        "status": store.main.spec.describe.status is not None,
        "failed": bool(store.spec.statuses.failed),
        "complete": bool(complete_statuses(store)),
        "children": bool(store.children(store.main)),
    }
    missing = next((_MISSING[part] for part in rule.wants if not known[part]), None)
    if missing:
        return Pattern(rule.name, rule.title, rule.meaning, None, unknown=missing)
    failed = store.spec.statuses.failed
    values = {
        "no": assessment,
        "failed": [status for status in failed if status is not None],
        "null_failed": None in failed,
        "complete": complete_statuses(store),
        "n": EXAMPLES,
    }
    parts = {"table": ledger.inventory_table(store.main), "condition": sql.Text(rule.condition)}
    count = int(sql.scalar(connection, sql.compose(_COUNT, **parts), values))
    examples = sql.rows(connection, sql.compose(_SAMPLE, **parts), values) if count else []
    return Pattern(rule.name, rule.title, rule.meaning, count, tuple(row.id for row in examples))


def vector_column(store: Store) -> tuple[sql.Composable, sql.Composable, sql.Composable, bool] | str:
    """Of the retrieval's chunks: table, column of the document's id, vector column, and whether that may be NULL.

    A sentence instead, where the spec or the store does not say.
    """
    retrieval = store.spec.retrieval
    if retrieval is None:
        return "the spec describes no retrieval"
    holder = next(
        (r for r in store.references
         if r.table.name == retrieval.chunk_table and r.entity == store.main.name and r.form == "key"), None,
    )  # fmt: skip
    if holder is None:
        return f"no column of {retrieval.chunk_table} refers to {store.main.table.name}"
    column = holder.table.columns.get(retrieval.vector)
    if column is None:
        return f"{retrieval.chunk_table} has no column {retrieval.vector}"
    table = sql.table(holder.table.schema, holder.table.name)
    return table, sql.name(holder.column), sql.name(column.name), not column.not_null


def _without_embedding(connection: Connection, store: Store) -> Pattern:
    named: tuple[str, str, str] = (
        "chunks_without_embedding", "Chunks without embedding", "chunks that no similarity query can find",
    )  # fmt: skip
    found = vector_column(store)
    if isinstance(found, str):
        return Pattern(*named, None, unknown=found)
    table, document, vector, nullable = found
    if not nullable:
        return Pattern(*named, 0)
    parts = {"table": table, "document": document, "vector": vector}
    rows = sql.rows(
        connection,
        sql.compose(
            "SELECT {document}::text AS id, count(*) OVER () AS documents FROM {table} "
            "WHERE {vector} IS NULL GROUP BY {document} ORDER BY {document} LIMIT %(n)s",
            **parts,
        ),
        {"n": EXAMPLES},
    )
    return Pattern(*named, rows[0].documents if rows else 0, tuple(row.id for row in rows))


def as_record(pattern: Pattern) -> dict[str, Any]:
    return {
        "name": pattern.name,
        "title": pattern.title,
        "meaning": pattern.meaning,
        "documents": pattern.documents,
        "examples": list(pattern.examples),
        "unknown": pattern.unknown,
    }

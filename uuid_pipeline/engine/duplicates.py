"""Clusters: rows of one entity with one natural key. This version finds and shows them; more than one row blocks."""

from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.store import Entity, Store

# One scan and one sort by natural key; quarantined rows belong to no cluster.
_CLUSTERS = """
SELECT natural_key, count(*) AS rows, count(DISTINCT owner) AS owners, bool_or(id_class = 'deterministic') AS twin,
       (array_agg(key::text ORDER BY (id_class = 'deterministic') DESC, children DESC NULLS LAST, created_at, key))[:20]
           AS ids
FROM {table} WHERE assessment_no = %(no)s AND quarantined IS NULL
GROUP BY natural_key HAVING count(*) > 1 ORDER BY natural_key LIMIT %(limit)s
"""


def clusters(connection: Connection, store: Store, assessment: int, limit: int = 1000) -> list[dict[str, Any]]:
    """Clusters of more than one row: entity, kind, natural key, ids (the likely survivor first)."""
    return [
        {
            "entity": entity.name,
            "kind": "re-upload twin" if row.twin else "same natural key",
            "natural_key": row.natural_key,
            "rows": row.rows,
            "owners": row.owners,
            "ids": list(row.ids),
        }
        for entity in store.entities
        for row in _found(connection, entity, assessment, limit)
    ]


def _found(connection: Connection, entity: Entity, assessment: int, limit: int) -> list[Any]:
    statement = sql.Text(_CLUSTERS).format(table=ledger.inventory_table(entity))
    return sql.rows(connection, statement, {"no": assessment, "limit": limit})


def _shown(found: list[dict[str, Any]]) -> str:
    shown = "; ".join(
        f"{c['entity']} {c['natural_key']} ({c['rows']} rows: {', '.join(c['ids'][:3])})" for c in found[:5]
    )
    return f"{len(found)} clusters: {shown}" + ("; …" if len(found) > 5 else "")


def each_cluster_decided(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: no document shares its natural key with another, since this version does not merge."""
    roots = {entity.name for entity in store.roots}
    found = [c for c in clusters(connection, store, assessment) if c["entity"] in roots]
    return GateResult.of(
        "each_cluster_decided",
        not found,
        "every natural key belongs to one row" if not found else _shown(found),
        "this version does not merge: remove or re-own the surplus rows in the application, then plan again",
        figures={"clusters": len(found)},
    )


def never_across_users(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: no cluster joins rows of different owners."""
    found = [c for c in clusters(connection, store, assessment) if c["owners"] > 1]
    return GateResult.of(
        "never_across_users",
        not found,
        "no cluster spans two owners" if not found else _shown(found),
        "put the owner into the identity; rows of different users must never get one id",
        figures={"clusters": len(found)},
    )


def conflicts_resolvable(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: no two children of one parent claim one id, which no merging of documents could resolve."""
    roots = {entity.name for entity in store.roots}
    found = [c for c in clusters(connection, store, assessment) if c["entity"] not in roots]
    return GateResult.of(
        "conflicts_resolvable",
        not found,
        "no two children share a natural key" if not found else _shown(found),
        "add the column that tells these rows apart to the child's identity",
        figures={"clusters": len(found)},
    )

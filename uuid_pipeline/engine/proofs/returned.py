"""Rows under an old id although they moved: the application deleted them since, and wrote them again.

An id that leads to no row stands for itself, so such a row keeps the id that it came with; it is an arrival like any
other, due for the next plan. What tells it from a row that never left, or was put back by hand: nobody has its new id,
the application wrote it since the execution began, and the server has counted as many deletes.
"""

from collections.abc import Collection

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.batches import application, deletions
from uuid_pipeline.engine.store import Entity, Store

SAID = "deleted after the move and written again under the old id, due for the next plan"


def came_back(entity: Entity) -> sql.Composable:
    """Whether the row ``t`` under the old id of ``m`` is one that the application wrote since, with none under the new.

    Wants the values of :func:`application.written_since`.
    """
    return sql.compose(
        "({written}) AND NOT EXISTS (SELECT FROM {table} n WHERE n.{key} = m.new_id)",
        written=application.written_since("t"),
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
    )


def candidates(
    view: Connection, entity: Entity, execution_id: str, assessments: Collection[int], ids: Collection[str]
) -> set[str]:
    """Those of these old ids whose row came back; ``view`` is the snapshot in which they were seen."""
    # age() counts from this transaction's own id, once it has one.
    sql.execute(view, "SELECT pg_current_xact_id()")
    statement = sql.compose(
        """SELECT t.{key}::text AS id FROM {map} m JOIN {table} t ON t.{key} = m.old_id
           WHERE m.assessment_no = ANY(%(maps)s) AND m.old_id = ANY(%(ids)s::{type}[]) AND {back}""",
        key=sql.name(entity.key),
        map=ledger.map_table(entity),
        table=sql.table(entity.table.schema, entity.table.name),
        type=sql.Text(entity.key_type),
        back=came_back(entity),
    )
    snapshot = ledger.first_snapshot(view, execution_id)
    values = {"maps": sorted(assessments), "ids": sorted(ids), "execution": execution_id, "snapshot": snapshot}
    return {row.id for row in sql.rows(view, statement, values)}


def unexplained(
    connection: Connection, store: Store, execution_id: str, epoch_before: str | None, counts: dict[str, int]
) -> list[str]:
    """Entities of whose rows more came back than the application is seen to have deleted; counts are by entity.

    Where the server's counters began anew (a crash, another server), or a session may not have reported its deletes, it
    cannot be told, and is not held against it.
    """
    left = []
    for name, count in counts.items():
        found = deletions.seen(connection, store.entity(name).table, execution_id, epoch_before)
        told = found.application is not None and not found.unreported
        if found.ours or (told and (found.application or 0) < count):
            left.append(name)
    return left

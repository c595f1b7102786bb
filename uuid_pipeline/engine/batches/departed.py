"""Rows that were given to other parents since their batch: held where they are now, below what they are below now."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches.held import NOT_ASIDE, BatchPlan, held_of, map_part
from uuid_pipeline.engine.batches.locks import wait_briefly
from uuid_pipeline.engine.store import Entity, Store


def hold_departed(connection: Connection, store: Store, entity: Entity, plan: BatchPlan) -> None:
    """Going back, lock the batch's own rows that the application has given to other parents since, too.

    Those may be in no batch at all: this is the only one that knows the rows' old ids. What they are below now is
    locked before them, from the top down: whoever has locked a document reads ids below it that stay as they are.
    """
    if sql.scalar(connection, _departed_statement(store, entity.name, plan.assessment_no), plan.values):
        for above in _above(store, entity):
            wait_briefly(connection, plan)
            statement = _now_above_statement(store, entity.name, above.name, plan.assessment_no)
            sql.execute(connection, statement, plan.values)
        wait_briefly(connection, plan)
        sql.execute(connection, _hold_departed_statement(store, entity.name, plan.assessment_no), plan.values)


def _above(store: Store, entity: Entity) -> list[Entity]:
    """The entities that this one is below, from the top down."""
    if entity.parent is None:
        return []
    parent = store.entity(entity.parent)
    return [*_above(store, parent), parent]


def _departed(store: Store, name: str, assessment_no: int) -> sql.Composable:
    """The batch's own rows that are below none of its documents any more: ``t``, with ``m`` of the id map."""
    entity, held = store.entity(name), held_of(store, name)
    return sql.compose(
        """FROM {map} m JOIN {table} t ON t.{key} = m.new_id
           WHERE m.ordinal BETWEEN %(first)s AND %(last)s AND m.role <> 'merge' AND {not_aside}
             AND NOT EXISTS (SELECT FROM {held} h WHERE h.key = m.new_id)""",
        held=held.relation,
        key=sql.name(entity.key),
        map=map_part(name, assessment_no),
        table=held.table,
        not_aside=sql.Text(NOT_ASIDE),
    )


@sql.composed_once
def _departed_statement(store: Store, name: str, assessment_no: int) -> sql.Composable:
    # Counted: in search of one alone the planner reads all that is held for each row.
    return sql.compose("SELECT count(*) {departed}", departed=_departed(store, name, assessment_no))


@sql.composed_once
def _now_above_statement(store: Store, name: str, above: str, assessment_no: int) -> sql.Composable:
    """Locks the rows of one level above which departed rows are now."""
    entity = store.entity(name)
    keys: sql.Composable = sql.compose(
        "SELECT t.{parent} {departed}",
        parent=sql.name(entity.parent_column or ""),
        departed=_departed(store, name, assessment_no),
    )
    while entity.parent is not None and entity.parent != above:
        entity = store.entity(entity.parent)
        keys = sql.compose(
            "SELECT p.{parent} FROM {table} p WHERE p.{key} IN ({keys})",
            parent=sql.name(entity.parent_column or ""),
            table=held_of(store, entity.name).table,
            key=sql.name(entity.key),
            keys=keys,
        )
    return sql.compose(
        "SELECT FROM {table} a WHERE a.{key} IN ({keys}) ORDER BY a.{key} FOR UPDATE OF a",
        table=held_of(store, above).table,
        key=sql.name(store.entity(above).key),
        keys=keys,
    )


@sql.composed_once
def _hold_departed_statement(store: Store, name: str, assessment_no: int) -> sql.Composable:
    entity, held = store.entity(name), held_of(store, name)
    return sql.compose(
        """INSERT INTO {held} (at, ordinal, key, {value})
           SELECT t.ctid, m.ordinal, t.{key}, m.old_id {departed} ORDER BY m.ordinal FOR UPDATE OF t""",
        held=held.relation,
        value=held.value(entity.key),
        key=sql.name(entity.key),
        departed=_departed(store, name, assessment_no),
    )

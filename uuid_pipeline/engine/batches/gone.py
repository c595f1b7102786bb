"""Ids of rows that the application has deleted since their batch: a rollback turns back what mentions them as well."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches.held import (
    FORWARD,
    NOT_ASIDE,
    BatchPlan,
    Direction,
    held_of,
    map_part,
    temporary,
    turns,
)
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.errors import OvertakenError


def _gone_of(store: Store, name: str) -> sql.Composable:
    """The temporary table of an entity's rows that the batch had moved and that are there no longer."""
    return temporary(store, f"gone_{[entity.name for entity in store.entities].index(name)}")


@sql.composed_once
def _room_for_gone_statement(store: Store, name: str) -> sql.Composable:
    entity = store.entity(name)
    return sql.compose(
        """CREATE TEMPORARY TABLE IF NOT EXISTS {gone} (key {type}, goal {type}, ordinal bigint)
           ON COMMIT DELETE ROWS""",
        gone=_gone_of(store, name),
        type=sql.as_written(entity.table.columns[entity.key].type),
    )


def loose_turns(store: Store, name: str, direction: Direction) -> sql.Composable:
    """The turns of what refers without a foreign key: going back, also ids of rows that the application has deleted
    since, which are to be mentioned by the ids that they had."""
    firm = turns(store, name)
    if direction is FORWARD:
        return firm
    return sql.compose("{firm} UNION ALL SELECT key, goal, ordinal FROM {gone}", firm=firm, gone=_gone_of(store, name))


def note_gone(connection: Connection, store: Store, entity: Entity, plan: BatchPlan) -> None:
    """Going back, note the ids of this batch's rows that are there no longer; wants those that are to be held."""
    # Made here: going forward every commit would empty it for nothing.
    sql.execute(connection, _room_for_gone_statement(store, entity.name))
    sql.execute(connection, _note_gone_statement(store, entity.name, plan.assessment_no), plan.values)


@sql.composed_once
def _note_gone_statement(store: Store, name: str, assessment_no: int) -> sql.Composable:
    entity, held = store.entity(name), held_of(store, name)
    return sql.compose(
        """INSERT INTO {gone} (key, goal, ordinal)
           SELECT m.new_id, m.old_id, m.ordinal FROM {map} m
           WHERE m.ordinal BETWEEN %(first)s AND %(last)s AND m.role = 'move' AND {not_aside}
             AND NOT EXISTS (SELECT FROM {held} h WHERE h.key = m.new_id)
             AND NOT EXISTS (SELECT FROM {table} t WHERE t.{key} = m.new_id)""",
        gone=_gone_of(store, name),
        map=map_part(name, assessment_no),
        not_aside=sql.Text(NOT_ASIDE),
        held=held.relation,
        table=held.table,
        key=sql.name(entity.key),
    )


def require_gone(connection: Connection, store: Store) -> None:
    """Raise OvertakenError where a row that was noted as gone is there again: what mentions it now means that one."""
    for entity in store.entities:
        if sql.scalar(connection, _there_again_statement(store, entity.name)):
            raise OvertakenError(f"A row of {entity.name} that had been deleted was written again meanwhile.")


@sql.composed_once
def _there_again_statement(store: Store, name: str) -> sql.Composable:
    return sql.compose(
        "SELECT EXISTS (SELECT FROM {gone} g JOIN {table} t ON t.{key} = g.key)",
        gone=_gone_of(store, name),
        table=held_of(store, name).table,
        key=sql.name(store.entity(name).key),
    )

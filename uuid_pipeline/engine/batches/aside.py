"""Planned rows that a batch leaves: gone, changed, taken, busy or locked; each journaled with its reason."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.batches.held import BACK, FORWARD, NOT_ASIDE, BatchPlan, Direction, held_of, map_part
from uuid_pipeline.engine.store import Entity, Store

# These wait for a moment in which nobody works on them, and are then taken up again.
WAITING = ("busy", "locked")


@contextlib.contextmanager
def in_reach(connection: Connection, schema: str) -> Iterator[None]:
    """The spec's predicate reads as in a query on the table alone: for its statement the schema is on the path.

    Afterwards the path is again the session's, which triggers that fire may look names up in.
    """
    path = sql.scalar(connection, "SELECT current_setting('search_path')")
    in_schema = "SELECT set_config('search_path', quote_ident(%(schema)s) || ', pg_catalog', true)"
    sql.execute(connection, in_schema, {"schema": schema})
    yield
    sql.execute(connection, "SELECT set_config('search_path', %(path)s, true)", {"path": path})


def set_aside(connection: Connection, store: Store, plan: BatchPlan, direction: Direction) -> None:
    """Journal the documents that this batch must leave, and let go of what was held of them.

    A cluster is left whole: what was approved was to merge just these rows. Going back, what is gone needs no journal
    and a changed natural key is no hindrance.
    """
    for root in store.roots:
        statement = _aside_statement(store, root.name, plan.assessment_no, direction)
        sql.execute(connection, statement, {**plan.values, "entity": root.name, "forward": direction is FORWARD})
        if direction is FORWARD and root.spec.busy:
            _set_busy_aside(connection, root, store, plan)
        sql.execute(connection, _let_go_statement(store, root.name), plan.values)


@sql.composed_once
def _aside_statement(store: Store, name: str, assessment_no: int, direction: Direction) -> sql.Composable:
    """A row that is held but no longer as planned, or whose goal another row has; a planned one that is not there."""
    root, held = store.entity(name), held_of(store, name)
    return sql.compose(
        """WITH given_away AS ({given_away}), planned AS (
               SELECT m.ordinal, m.{source} AS source, CASE
                   WHEN h.at IS NULL THEN CASE WHEN %(forward)s THEN 'gone' END
                   WHEN %(forward)s AND (NOT h.as_planned OR h.ordinal IN (SELECT a.ordinal FROM given_away a))
                       THEN 'changed'
                   WHEN m.{goal} <> m.{source} AND EXISTS (
                       SELECT FROM {table} o WHERE o.{key} = m.{goal} AND NOT EXISTS (
                           SELECT FROM {held} twin WHERE twin.key = o.{key} AND twin.ordinal = m.ordinal))
                       THEN 'taken' END AS reason
               FROM {map} m LEFT JOIN {held} h ON h.key = m.{source}
               WHERE m.ordinal BETWEEN %(first)s AND %(last)s AND {roles} AND {not_aside})
           INSERT INTO uuid_pipeline.unmoved (execution_id, wave, entity, ordinal, old_id, reason)
           SELECT %(execution)s, %(wave)s, %(entity)s, p.ordinal, p.source::text, coalesce(p.reason, 'changed')
           FROM planned p WHERE p.ordinal IN (SELECT f.ordinal FROM planned f WHERE f.reason IS NOT NULL)
           ON CONFLICT DO NOTHING""",
        source=sql.name(direction.source),
        goal=sql.name(direction.goal),
        held=held.relation,
        map=map_part(name, assessment_no),
        table=held.table,
        key=sql.name(root.key),
        given_away=_given_away(store, name, assessment_no),
        roles=sql.Text("m.role <> 'merge'" if direction is BACK else "true"),
        not_aside=sql.Text(NOT_ASIDE),
    )


def _given_away(store: Store, name: str, assessment_no: int) -> sql.Composable:
    """The clusters, by ordinal, whose rows have different owners by now, or some of them none."""
    root = store.entity(name)
    owner = root.spec.describe.owner
    if owner is None:
        return sql.Text("SELECT NULL::bigint AS ordinal WHERE false")
    return sql.compose(
        """SELECT h.ordinal FROM {held} h JOIN {table} t ON t.ctid = h.at
           WHERE h.ordinal IN (SELECT m.ordinal FROM {map} m
                               WHERE m.ordinal BETWEEN %(first)s AND %(last)s AND m.role = 'merge')
           GROUP BY h.ordinal
           HAVING min(t.{owner}::text) <> max(t.{owner}::text) OR count(t.{owner}) BETWEEN 1 AND count(*) - 1""",
        held=held_of(store, name).relation,
        table=sql.table(root.table.schema, root.table.name),
        map=map_part(name, assessment_no),
        owner=sql.name(owner),
    )


def _set_busy_aside(connection: Connection, root: Entity, store: Store, plan: BatchPlan) -> None:
    held = held_of(store, root.name)
    statement = sql.compose(
        """INSERT INTO uuid_pipeline.unmoved (execution_id, wave, entity, ordinal, old_id, reason)
           SELECT %(execution)s, %(wave)s, %(entity)s, h.ordinal, h.key::text, 'busy' FROM {held} h
           WHERE h.ordinal IN (SELECT b.ordinal FROM {held} b WHERE b.key IN (
               SELECT {table}.{key} FROM {table} WHERE {table}.{key} IN (SELECT k.key FROM {held} k) AND ({busy})))
           ON CONFLICT DO NOTHING""",
        held=held.relation,
        table=sql.name(root.table.name),
        key=sql.name(root.key),
        busy=sql.as_written(root.spec.busy or ""),
    )
    with in_reach(connection, root.table.schema):
        sql.execute(connection, statement, {**plan.values, "entity": root.name})


@sql.composed_once
def _let_go_statement(store: Store, name: str) -> sql.Composable:
    return sql.compose(
        """DELETE FROM {held} h USING uuid_pipeline.unmoved u
           WHERE u.execution_id = %(execution)s AND u.wave = %(wave)s AND u.ordinal = h.ordinal""",
        held=held_of(store, name).relation,
    )


def forget_departed(
    connection: Connection, store: Store, entity: Entity, plan: BatchPlan, direction: Direction
) -> None:
    """Children that are gone or have another parent now leave the map, and one whose goal another row holds its target.

    The batch does not re-key such a row, so it must not rewrite what refers to it. The batch of a new parent, if still
    to come, finds it as an arrival; a gone child's successor may claim the same target id.
    """
    given = (store, entity.name, plan.assessment_no, direction)
    sql.execute(connection, _taken_statement(*given, plan.wary), plan.values)
    sql.execute(connection, _gone_statement(*given), plan.values)


@sql.composed_once
def _taken_statement(store: Store, name: str, assessment_no: int, direction: Direction, wary: bool) -> sql.Composable:
    entity, held = store.entity(name), held_of(store, name)
    # A goal that a row of the batch itself has may be free by the time of its index entry, and means two rows then.
    own = sql.compose("SELECT key FROM {held}", held=held.relation)
    every = sql.compose("SELECT {key} AS key FROM {table}", key=sql.name(entity.key), table=held.table)
    return sql.compose(
        """WITH taken AS (
               UPDATE {held} h SET {value} = NULL FROM ({holders}) o WHERE o.key = h.{value} AND h.{value} <> h.key
               RETURNING h.key)
           DELETE FROM {map} m USING taken WHERE m.{source} = taken.key""",
        held=held.relation,
        value=held.value(entity.key),
        holders=every if wary else own,
        map=map_part(name, assessment_no),
        source=sql.name(direction.source),
    )


# What a batch had set aside and a later one took up went back with that one: this batch finds it no more.
_NOT_UNDONE: LiteralString = """
AND NOT EXISTS (SELECT FROM uuid_pipeline.batches b WHERE b.wave = %(wave)s AND b.direction = 'back'
                AND m.ordinal BETWEEN b.first_ordinal AND b.last_ordinal)
"""


@sql.composed_once
def _gone_statement(store: Store, name: str, assessment_no: int, direction: Direction) -> sql.Composable:
    return sql.compose(
        """DELETE FROM {map} m WHERE m.ordinal BETWEEN %(first)s AND %(last)s AND m.role <> 'merge' AND {not_aside}
           AND NOT EXISTS (SELECT FROM {held} h WHERE h.key = m.{source}){not_undone}""",
        map=map_part(name, assessment_no),
        not_undone=sql.Text(_NOT_UNDONE if direction is BACK else ""),
        not_aside=sql.Text(NOT_ASIDE),
        held=held_of(store, name).relation,
        source=sql.name(direction.source),
    )


def set_held_aside(connection: Connection, store: Store, plan: BatchPlan) -> None:
    """Journal as locked the documents that somebody holds at this moment; the others are ours from here on."""
    for root in store.roots:
        statement = sql.compose(
            """WITH free AS MATERIALIZED (
                   SELECT m.ordinal, m.old_id FROM {map} m JOIN {table} t ON t.{key} = m.old_id
                   WHERE m.ordinal BETWEEN %(first)s AND %(last)s FOR UPDATE OF t SKIP LOCKED)
               INSERT INTO uuid_pipeline.unmoved (execution_id, wave, entity, ordinal, old_id, reason)
               SELECT %(execution)s, %(wave)s, %(entity)s, m.ordinal, m.old_id::text, 'locked' FROM {map} m
               WHERE m.ordinal IN (
                   SELECT h.ordinal FROM {map} h JOIN {table} t ON t.{key} = h.old_id
                   WHERE h.ordinal BETWEEN %(first)s AND %(last)s
                     AND NOT EXISTS (SELECT FROM free f WHERE f.old_id = h.old_id))
               ON CONFLICT DO NOTHING""",
            map=map_part(root.name, plan.assessment_no),
            table=sql.table(root.table.schema, root.table.name),
            key=sql.name(root.key),
        )
        sql.execute(connection, statement, {**plan.values, "entity": root.name})


def set_all_aside(connection: Connection, store: Store, plan: BatchPlan) -> None:
    """Journal every document of a span as locked: its rows, or some that refer to it, were not to be had."""
    for root in store.roots:
        statement = sql.compose(
            """INSERT INTO uuid_pipeline.unmoved (execution_id, wave, entity, ordinal, old_id, reason)
               SELECT %(execution)s, %(wave)s, %(entity)s, m.ordinal, m.old_id::text, 'locked' FROM {map} m
               WHERE m.ordinal BETWEEN %(first)s AND %(last)s ON CONFLICT DO NOTHING""",
            map=map_part(root.name, plan.assessment_no),
        )
        sql.execute(connection, statement, {**plan.values, "entity": root.name})


def leave_clusters(connection: Connection, store: Store, plan: BatchPlan, ordinals: Sequence[int]) -> None:
    """Journal clusters as changed: what hangs on them is not as their plan had it, and the next one looks anew."""
    for root in store.roots:
        statement = sql.compose(
            """INSERT INTO uuid_pipeline.unmoved (execution_id, wave, entity, ordinal, old_id, reason)
               SELECT %(execution)s, %(wave)s, %(entity)s, m.ordinal, m.old_id::text, 'changed' FROM {map} m
               WHERE m.ordinal = ANY(%(ordinals)s)
               ON CONFLICT (wave, entity, old_id) DO UPDATE SET reason = excluded.reason""",
            map=map_part(root.name, plan.assessment_no),
        )
        sql.execute(connection, statement, {**plan.values, "entity": root.name, "ordinals": list(ordinals)})


def waiting(
    connection: Connection, waves: list[ledger.Wave], reasons: Sequence[str] = WAITING
) -> list[tuple[ledger.Wave, int]]:
    """(wave, ordinal) of what is to be taken up again."""
    of_name = {wave.wave: wave for wave in waves}
    found = sql.rows(
        connection,
        """SELECT DISTINCT wave, ordinal FROM uuid_pipeline.unmoved
           WHERE wave = ANY(%(waves)s) AND reason = ANY(%(reasons)s) ORDER BY wave, ordinal""",
        {"waves": list(of_name), "reasons": list(reasons)},
    )
    return [(of_name[row.wave], int(row.ordinal)) for row in found]


def take_up(connection: Connection, plan: BatchPlan) -> None:
    """Forget that these documents wait; the batch sets them aside again if they must."""
    sql.execute(
        connection,
        """DELETE FROM uuid_pipeline.unmoved WHERE wave = %(wave)s AND ordinal BETWEEN %(first)s AND %(last)s
           AND reason = ANY(%(reasons)s)""",
        {**plan.values, "reasons": list(WAITING)},
    )

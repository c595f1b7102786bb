"""Planned rows that a batch leaves: gone, changed, taken, busy or locked; each journaled with its reason."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.locks import BACK, FORWARD, NOT_ASIDE, BatchPlan, Direction, held_of, map_part
from uuid_pipeline.engine.store import Entity, Store

# These wait for a moment in which nobody works on them, and are then taken up again.
WAITING = ("busy", "locked")


def set_aside(connection: Connection, store: Store, plan: BatchPlan, direction: Direction) -> None:
    """Journal the documents that this batch must leave, and let go of what was held of them.

    A cluster is left whole: what was approved was to merge just these rows. Going back, what is gone needs no journal
    and a changed natural key is no hindrance.
    """
    for root in store.roots:
        held = held_of(store, root.name)
        # A row that is held but no longer as planned, or whose goal another row has; a planned one that is not there.
        statement = sql.compose(
            """WITH planned AS (
                   SELECT m.ordinal, m.{source} AS source, CASE
                       WHEN h.at IS NULL THEN CASE WHEN %(forward)s THEN 'gone' END
                       WHEN %(forward)s AND NOT h.as_planned THEN 'changed'
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
            map=map_part(root.name, plan),
            table=held.table,
            key=sql.name(root.key),
            roles=sql.Text("m.role <> 'merge'" if direction is BACK else "true"),
            not_aside=sql.Text(NOT_ASIDE),
        )
        sql.execute(connection, statement, {**plan.values, "entity": root.name, "forward": direction is FORWARD})
        if direction is FORWARD and root.spec.busy:
            _set_busy_aside(connection, root, store, plan)
        _let_go(connection, store, root, plan)


def _set_busy_aside(connection: Connection, root: Entity, store: Store, plan: BatchPlan) -> None:
    """The spec's predicate reads as in a query on the table alone, so the schema is on the path for this statement."""
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
        busy=sql.Text((root.spec.busy or "").replace("%", "%%")),
    )
    path = "SELECT set_config('search_path', quote_ident(%(schema)s) || ', pg_catalog', true)"
    sql.execute(connection, path, {"schema": root.table.schema})
    sql.execute(connection, statement, {**plan.values, "entity": root.name})
    sql.execute(connection, "SELECT set_config('search_path', 'pg_catalog', true)")


def _let_go(connection: Connection, store: Store, root: Entity, plan: BatchPlan) -> None:
    statement = sql.compose(
        """DELETE FROM {held} h USING uuid_pipeline.unmoved u
           WHERE u.execution_id = %(execution)s AND u.wave = %(wave)s AND u.ordinal = h.ordinal""",
        held=held_of(store, root.name).relation,
    )
    sql.execute(connection, statement, plan.values)


def forget_departed(
    connection: Connection, store: Store, entity: Entity, plan: BatchPlan, direction: Direction
) -> None:
    """Children that are gone or have another parent now leave the map, and one whose goal another row holds its target.

    The batch does not re-key such a row, so it must not rewrite what refers to it. The batch of a new parent, if still
    to come, finds it as an arrival; a gone child's successor may claim the same target id.
    """
    held = held_of(store, entity.name)
    parts = {
        "held": held.relation,
        "map": map_part(entity.name, plan),
        "source": sql.name(direction.source),
        "value": held.value(entity.key),
        "table": held.table,
        "key": sql.name(entity.key),
        "not_aside": sql.Text(NOT_ASIDE),
    }
    taken = sql.compose(
        """WITH taken AS (
               UPDATE {held} h SET {value} = NULL FROM {table} o WHERE o.{key} = h.{value} AND h.{value} <> h.key
               RETURNING h.key)
           DELETE FROM {map} m USING taken WHERE m.{source} = taken.key""",
        **parts,
    )
    gone = sql.compose(
        """DELETE FROM {map} m WHERE m.ordinal BETWEEN %(first)s AND %(last)s AND m.role <> 'merge' AND {not_aside}
           AND NOT EXISTS (SELECT FROM {held} h WHERE h.key = m.{source})""",
        **parts,
    )
    sql.execute(connection, taken, plan.values)
    sql.execute(connection, gone, plan.values)

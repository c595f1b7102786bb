"""The rows of a batch are locked level by level, with the ids that they are to get.

Each statement locks one level of one table and reads it in the same breath: a snapshot taken after the locks of the
statements before it, so that nothing which refers to a held row can be missing (ENGINE.md, section 2).
"""

from typing import LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches.gone import loose_turns
from uuid_pipeline.engine.batches.held import (
    BACK,
    NOT_ASIDE,
    BatchPlan,
    Direction,
    Held,
    held_of,
    held_tables,
    map_part,
    turns,
)
from uuid_pipeline.engine.embedded_ids import changed_alone, holds_one_of, ids_in, require_changed_alone, rewritten
from uuid_pipeline.engine.natural_keys import natural_key
from uuid_pipeline.engine.store import Entity, Reference, Store


def _found_by_index(held: Held, column: str, keys: sql.Composable) -> sql.Composable:
    """A further condition on the row ``t``: its column is one of these keys, to be looked up one by one.

    An array is taken for short, so that the index serves. A join is estimated by how many rows a key has on average:
    where a few have most of them, each batch would read all of the table.
    """
    if column not in held.moved.table.found_by:
        return sql.Text("")
    return sql.compose("AND t.{column} = ANY(ARRAY({keys}))", column=sql.name(column), keys=keys)


# A writer that waits for a row of the batch, and has one that the batch asks for, is the one whom the server ends, once
# it has waited for deadlock_timeout: unless the batch has given up by then. So the longer a batch has been at it, the
# shorter it waits for one lock, and in the end not at all.
SHORT_WAITS: LiteralString = """
set_config('lock_timeout', round(greatest(1, least(200,
    400 * extract(epoch FROM current_setting('deadlock_timeout')::interval)
    - 500 * extract(epoch FROM clock_timestamp() - now()))))::text, true)
"""


def wait_briefly(connection: Connection, plan: BatchPlan) -> None:
    """From here on wait for one lock as long as nobody who waits for the batch is ended for it."""
    if not plan.patient:
        sql.execute(connection, f"SELECT {SHORT_WAITS}")


def hold_roots(connection: Connection, store: Store, plan: BatchPlan, direction: Direction) -> None:
    """Lock the documents: this waits for inserters of references (their KEY SHARE) and keeps new ones out.

    Raises the driver's 55P03 when a lock is not had in time.
    """
    for root in store.roots:
        sql.execute(connection, _roots_statement(store, root.name, plan.assessment_no, direction), plan.values)


@sql.composed_once
def _roots_statement(store: Store, name: str, assessment_no: int, direction: Direction) -> sql.Composable:
    root, held = store.entity(name), held_of(store, name)
    return sql.compose(
        """INSERT INTO {held} (at, ordinal, key, natural_key, as_planned, {value})
           SELECT t.ctid, m.ordinal, t.{key}, m.natural_key, ({natural_key}) IS NOT DISTINCT FROM m.natural_key,
                  m.{goal}
           FROM {map} m JOIN {table} t ON t.{key} = m.{source}
           WHERE m.ordinal BETWEEN %(first)s AND %(last)s AND {roles} AND {not_aside}
           ORDER BY m.ordinal, m.{source} FOR UPDATE OF t""",
        held=held.relation,
        value=held.value(root.key),
        key=sql.name(root.key),
        natural_key=natural_key(root, None),
        goal=sql.name(direction.goal),
        source=sql.name(direction.source),
        map=map_part(name, assessment_no),
        table=held.table,
        roles=sql.Text("m.role <> 'merge'" if direction is BACK else "true"),
        not_aside=sql.Text(NOT_ASIDE),
    )


def hold_children(connection: Connection, store: Store, entity: Entity, plan: BatchPlan, direction: Direction) -> None:
    """Lock the rows below the held parents, whatever the plan knew of them, with their target ids as far as mapped.

    In the order in which a writer's alias trigger asks for several.
    """
    sql.execute(connection, _children_statement(store, entity.name, plan.assessment_no, direction), plan.values)


@sql.composed_once
def _children_statement(store: Store, name: str, assessment_no: int, direction: Direction) -> sql.Composable:
    entity, held = store.entity(name), held_of(store, name)
    parent, parents = store.entity(entity.parent or ""), held_of(store, entity.parent or "")
    key = natural_key(entity, sql.compose("p.{value}", value=parents.value(parent.key)))
    known = (
        sql.Text("m.role <> 'merge'")
        if direction is BACK
        else sql.compose("m.natural_key = ({natural_key})", natural_key=key)
    )
    return sql.compose(
        """INSERT INTO {held} (at, ordinal, key, natural_key, {value}, {parent_value})
           SELECT t.ctid, p.ordinal, t.{key}, {natural_key}, CASE WHEN {known} THEN m.{goal} END,
                  p.{goal_of_parent}
           FROM {parents} p JOIN {table} t ON t.{parent} = p.key LEFT JOIN {map} m ON m.{source} = t.{key} {which}
           ORDER BY p.ordinal, t.{key} FOR UPDATE OF t""",
        held=held.relation,
        value=held.value(entity.key),
        parent_value=held.value(entity.parent_column or ""),
        key=sql.name(entity.key),
        natural_key=key,
        known=known,
        goal=sql.name(direction.goal),
        goal_of_parent=parents.value(parent.key),
        parents=parents.relation,
        table=held.table,
        parent=sql.name(entity.parent_column or ""),
        map=map_part(name, assessment_no),
        source=sql.name(direction.source),
        # The batch's own span has what it moves. Forward, a child that came from another document is an arrival; back,
        # its id is another batch's to undo, in its turn: what a merge remembers of the row is under the id of then.
        # Several old ids may share one new id: the displaced rows' are restored from the archive, not moved.
        which=sql.Text(
            "AND m.ordinal BETWEEN %(first)s AND %(last)s" + (" AND m.role <> 'merge'" if direction is BACK else "")
        ),
    )


def hold_references(connection: Connection, store: Store, plan: BatchPlan, direction: Direction) -> None:
    """Lock every row that refers to an id which the batch changes; all entities' held rows are known by now."""
    for index, held in enumerate(held_tables(store)):
        own = held.moved.entity
        for column, entity in held.moved.columns:
            if own is None or column not in (own.key, own.parent_column):
                wait_briefly(connection, plan)
                sql.execute(connection, _references_statement(store, index, column, entity, direction))
        for reference in held.moved.embedded:
            wait_briefly(connection, plan)
            _hold_embedded(connection, held, reference, loose_turns(store, reference.entity, direction))


@sql.composed_once
def _references_statement(store: Store, index: int, column: str, name: str, direction: Direction) -> sql.Composable:
    held = held_tables(store)[index]
    table = held.moved.table
    by_key = any(
        r.foreign_key is not None and r.table.oid == table.oid and r.column == column for r in store.references
    )
    turned = turns(store, name) if by_key else loose_turns(store, name, direction)
    return sql.compose(
        """INSERT INTO {held} AS g (at, ordinal, {value})
           SELECT t.ctid, b.ordinal, b.goal FROM ({turns}) b JOIN {table} t ON t.{column} = b.key {found}
           ORDER BY b.ordinal {lock} OF t {again}""",
        lock=held.lock(column),
        held=held.relation,
        value=held.value(column),
        again=sql.compose("ON CONFLICT (at) DO UPDATE SET {value} = excluded.{value}", value=held.value(column))
        if held.from_several
        else sql.Text(""),
        turns=turned,
        table=held.table,
        column=sql.name(column),
        found=_found_by_index(held, column, sql.compose("SELECT b.key FROM ({turns}) b", turns=turned)),
    )


def _hold_embedded(connection: Connection, held: Held, reference: Reference, turns: sql.Composable) -> None:
    """As for a reference of one id, for ids inside a text, array or json; a column's second id builds on the first.

    Rows are locked below the look at what is in them: of a row that was waited for, only that part is computed anew.
    """
    moves = sql.compose("(SELECT k.key::text AS source, k.goal::text AS goal, k.ordinal FROM ({turns}) k)", turns=turns)
    # All the batch's ids as two values in which one is found by bisection: joined to them, a row would read them all.
    statement = sql.compose(
        """WITH by_id AS MATERIALIZED (
               SELECT jsonb_object_agg(b.source, b.goal) AS goals, jsonb_object_agg(b.source, b.ordinal) AS ordinals
               FROM {moves} b),
           turned AS MATERIALIZED (
               SELECT w.at, x.ordinal, w.was, {rewritten} AS becomes
               FROM (SELECT t.ctid AS at, coalesce(e.{value}, t.{column}) AS was
                     FROM {table} t LEFT JOIN {held} e ON e.at = t.ctid
                     WHERE t.{column} IS NOT NULL AND {holds} {lock} OF t) w
               CROSS JOIN LATERAL (
                   SELECT min(((SELECT ordinals FROM by_id) ->> i.id)::bigint) AS ordinal FROM {ids} i(id)) x
               WHERE x.ordinal IS NOT NULL),
           noted AS (
               INSERT INTO {held} AS g (at, ordinal, {value}) SELECT w.at, w.ordinal, w.becomes FROM turned w
               ON CONFLICT (at) DO UPDATE SET {value} = excluded.{value})
           SELECT count(*) FROM turned w WHERE ({alone}) IS NOT TRUE""",
        lock=held.lock(reference.column),
        held=held.relation,
        value=held.value(reference.column),
        table=held.table,
        column=sql.name(reference.column),
        moves=moves,
        ids=ids_in(reference),
        rewritten=rewritten(reference, sql.Text("(SELECT goals FROM by_id)")),
        holds=holds_one_of(reference, moves),
        alone=changed_alone(reference, moves),
    )
    require_changed_alone(reference, int(sql.scalar(connection, statement, {"path": list(reference.path)})))

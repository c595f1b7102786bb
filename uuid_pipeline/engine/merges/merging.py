"""Merging: the rows of a cluster become one, before the batch moves anything.

Everything happens at the old ids. The losers' references are turned to the survivor, what then would stand twice is
archived, and the batch goes on as if the losers had never been: a loser that already had the target id is out of
the way by then. Which document survives stands in the approved plan; which children do is decided here, from what
is there now, under the locks.
"""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches import locks
from uuid_pipeline.engine.batches.held import FORWARD, NOT_ASIDE, BatchPlan, held_of, held_tables, map_part
from uuid_pipeline.engine.merges import children, guards, settling, working_tables
from uuid_pipeline.engine.merges.collapse import Collapsed, collapse
from uuid_pipeline.engine.merges.folding import folds
from uuid_pipeline.engine.merges.working_tables import merged
from uuid_pipeline.engine.store import Entity, Store


def wanted(connection: Connection, store: Store, plan: BatchPlan) -> bool:
    """Whether the plan merges rows of this batch's documents, or references hold their target ids already."""
    return bool(sql.scalar(connection, _wanted_statement(store, plan.assessment_no), plan.values))


@sql.composed_once
def _wanted_statement(store: Store, assessment_no: int) -> sql.Composable:
    clauses = [
        sql.compose(
            """EXISTS (SELECT FROM {map} m WHERE m.ordinal BETWEEN %(first)s AND %(last)s
                       AND (m.role = 'merge' OR m.early) AND {not_aside})""",
            map=map_part(entity.name, assessment_no),
            not_aside=sql.Text(NOT_ASIDE),
        )
        for entity in store.entities
    ]
    return sql.compose("SELECT {clauses}", clauses=sql.join(" OR ", clauses))


def merge(connection: Connection, store: Store, plan: BatchPlan) -> Collapsed:
    """Merge the clusters of the held documents; returns what was archived and re-pointed, with its digests.

    Raises BatchError when the rows written are not the rows read, UnmergeableError when documents would be archived or
    refused that the plan does not merge.
    """
    working_tables.make_room(connection, store)
    _note_ordinals(connection, store, plan)
    _merge_roots(connection, store, plan)
    for entity in store.entities:
        if entity.parent is not None:
            locks.hold_children(connection, store, entity, plan, FORWARD)
            children.forget_invalid(connection, store, entity)
            children.decide(connection, store, entity)
        _note_early(connection, store, entity, plan)
    settling.settle(connection, store)
    guards.require_planned(connection, store)
    done = collapse(connection, store, plan)
    for entity in store.entities:
        _correct_roles(connection, store, entity, plan)
    _forget_held(connection, store)
    return done


def _note_ordinals(connection: Connection, store: Store, plan: BatchPlan) -> None:
    """Where the plan merges; duplicates elsewhere that are new since were approved by nobody."""
    for entity in store.entities:
        statement = sql.compose(
            """INSERT INTO pg_temp.merging SELECT DISTINCT m.ordinal FROM {map} m
               WHERE m.ordinal BETWEEN %(first)s AND %(last)s AND m.role = 'merge' AND {not_aside}""",
            map=map_part(entity.name, plan.assessment_no),
            not_aside=sql.Text(NOT_ASIDE),
        )
        sql.execute(connection, statement, plan.values)


def _merge_roots(connection: Connection, store: Store, plan: BatchPlan) -> None:
    for root in store.roots:
        held = held_of(store, root.name)
        statement = sql.compose(
            """WITH roles AS (SELECT h.at, h.key, h.ordinal, m.role FROM {held} h JOIN {map} m ON m.old_id = h.key),
               losers AS (
                   INSERT INTO {merged} (loser, survivor, ordinal)
                   SELECT l.key, s.key, l.ordinal FROM roles l JOIN roles s ON s.ordinal = l.ordinal
                   WHERE l.role = 'merge' AND s.role <> 'merge' RETURNING loser, survivor)
               INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
               SELECT %(oid)s, r.at, r.ordinal, l.survivor::text FROM losers l JOIN roles r ON r.key = l.loser""",
            held=held.relation,
            map=map_part(root.name, plan.assessment_no),
            merged=merged(store, root.name),
        )
        sql.execute(connection, statement, {"oid": root.table.oid})


def _note_early(connection: Connection, store: Store, entity: Entity, plan: BatchPlan) -> None:
    """References that hold a row's target id already are turned to the row, as those of a loser are to its survivor.

    So the batch moves them with the others, and a rollback gives them back what they held.
    """
    held = held_of(store, entity.name)
    statement = sql.compose(
        """INSERT INTO {merged} (loser, survivor, ordinal)
           SELECT h.{value}, h.key, h.ordinal FROM {held} h JOIN {map} m ON m.old_id = h.key
           WHERE m.early AND m.new_id = h.{value} AND NOT EXISTS (SELECT FROM {table} t WHERE t.{key} = h.{value})
           ON CONFLICT DO NOTHING""",
        merged=merged(store, entity.name),
        value=held.value(entity.key),
        held=held.relation,
        map=map_part(entity.name, plan.assessment_no),
        table=held.table,
        key=sql.name(entity.key),
    )
    sql.execute(connection, statement)


def _correct_roles(connection: Connection, store: Store, entity: Entity, plan: BatchPlan) -> None:
    """The map says who was displaced in fact; the plan could only foresee it of the rows that were there then.

    Of what the batch set aside nothing was decided: it merges when it is taken up.
    """
    statement = sql.compose(
        """UPDATE {map} m SET role = CASE WHEN g.loser IS NOT NULL THEN 'merge'
               WHEN m.old_id = m.new_id THEN 'keep' ELSE 'move' END
           FROM {map} o LEFT JOIN {merged} g ON g.loser = o.old_id
           WHERE o.old_id = m.old_id AND o.ordinal BETWEEN %(first)s AND %(last)s AND {not_aside}
             AND (g.loser IS NOT NULL) <> (o.role = 'merge')""",
        map=map_part(entity.name, plan.assessment_no),
        merged=merged(store, entity.name),
        not_aside=sql.Text(NOT_ASIDE),
    )
    sql.execute(connection, statement, plan.values)


def lead_aliases(connection: Connection, store: Store, plan: BatchPlan) -> None:
    """The map says of each merged row where its survivor goes, once that is known: the plan may have foreseen another.

    A row whose natural key changed since was planned to go elsewhere than what then stands in its place.
    """
    for entity in store.entities:
        statement = sql.compose(
            """UPDATE {map} m SET new_id = s.new_id, natural_key = s.natural_key
               FROM {merged} g JOIN {map} s ON s.old_id = g.survivor
               WHERE m.old_id = g.loser AND m.role = 'merge' AND m.new_id <> s.new_id
                 AND m.ordinal BETWEEN %(first)s AND %(last)s""",
            map=map_part(entity.name, plan.assessment_no),
            merged=merged(store, entity.name),
        )
        sql.execute(connection, statement, plan.values)


def _forget_held(connection: Connection, store: Store) -> None:
    """Rows have new places now; the batch holds them anew (their locks are ours already)."""
    for held in held_tables(store):
        sql.execute(connection, sql.compose("DELETE FROM {held}", held=held.relation))
    for fold in folds(store):
        sql.execute(connection, sql.compose("DELETE FROM {fold}", fold=fold.relation))

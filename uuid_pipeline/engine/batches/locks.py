"""The rows that a batch holds: locked level by level, with the ids that they are to get.

Each moved table has a temporary table beside it, made once a session and emptied by every commit: the place (ctid) of
every row that the batch holds, and the new value of each id column. A held row's place is stable until we write it.
Each statement locks one level of one table and reads it in the same breath: a snapshot taken after the locks of the
statements before it, so that nothing which refers to a held row can be missing (ENGINE.md, section 2).
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.embedded_ids import holds_one_of, ids_in, rewritten
from uuid_pipeline.engine.natural_keys import natural_key
from uuid_pipeline.engine.store import Entity, MovedTable, Reference, Store
from uuid_pipeline.errors import OvertakenError


@dataclass(frozen=True)
class Direction:
    """Which way ids go: ``source`` and ``goal`` are columns of the id map."""

    name: str
    source: str
    goal: str


FORWARD = Direction("forward", "old_id", "new_id")
BACK = Direction("back", "new_id", "old_id")


@dataclass(frozen=True)
class BatchPlan:
    """A range of ordinals of one wave, both ends included.

    ``wary``: whether rows that hold a target id are looked for. Hardly ever is there one, so a batch is tried without,
    and again when a unique index refused it.
    ``patient``: whether it waits for each lock as long as for the first, once haste has not helped.
    """

    execution_id: str
    assessment_no: int
    wave: str
    first_ordinal: int
    last_ordinal: int
    wary: bool = False
    patient: bool = False

    @property
    def values(self) -> dict[str, Any]:
        return {
            "execution": self.execution_id,
            "no": self.assessment_no,
            "wave": self.wave,
            "first": self.first_ordinal,
            "last": self.last_ordinal,
        }


@dataclass(frozen=True)
class Held:
    """The temporary table of a moved table; ``values``: (column, name of its new value), embedded ones too."""

    moved: MovedTable
    relation: sql.Composable
    values: tuple[tuple[str, str], ...]

    @property
    def table(self) -> sql.Composable:
        return sql.table(self.moved.table.schema, self.moved.table.name)

    def value(self, column: str) -> sql.Composable:
        """The name of the new value of an id column."""
        return sql.name(next(value for name, value in self.values if name == column))

    @property
    def from_several(self) -> bool:
        """Whether more than one statement may hold a row of this table, each for another of its id columns."""
        own = self.moved.entity
        sources = 1 if own else 0
        keys = {own.key, own.parent_column} if own else set()
        sources += sum(column not in keys for column, _ in self.moved.columns)
        return sources > 1 or bool(self.moved.embedded)

    def lock(self, column: str) -> sql.Composable:
        """The lock that an UPDATE of this column takes; one that is in no unique key lets the foreign keys of other
        tables to the row be checked meanwhile.
        """
        in_key = any(column in key for key in self.moved.table.unique_keys)
        return sql.Text("FOR UPDATE" if in_key else "FOR NO KEY UPDATE")

    def mapped(self) -> dict[str, sql.Composable]:
        """For each id column its value after the batch; aliases ``t`` (the row) and ``h`` (what is held of it)."""
        return {
            column: sql.compose("coalesce(h.{value}, t.{column})", value=sql.name(value), column=sql.name(column))
            for column, value in self.values
        }

    def changes(self) -> sql.Composable:
        """Whether the batch writes the held row: some id column gets another value (aliases as in mapped)."""
        keys = dict(self.moved.columns)
        return sql.join(
            " OR ",
            [
                sql.compose("h.{value} <> t.{column}", value=sql.name(value), column=sql.name(column))
                if column in keys
                # json has no equality; an embedded value is held only where it changes.
                else sql.compose("h.{value} IS NOT NULL", value=sql.name(value))
                for column, value in self.values
            ],
        )


@functools.lru_cache(maxsize=8)
def held_tables(store: Store) -> tuple[Held, ...]:
    """One a moved table, in the store's order."""
    made = []
    for index, moved in enumerate(store.tables):
        columns = [column for column, _ in moved.columns]
        columns += dict.fromkeys(reference.column for reference in moved.embedded)
        relation = temporary(store, f"held_{index}")
        made.append(Held(moved, relation, tuple((column, f"v{n}") for n, column in enumerate(columns))))
    return tuple(made)


def temporary(store: Store, name: str) -> sql.Composable:
    """A temporary table's name. A session may serve specs of several shapes in turn, so the shape is part of it."""
    shape = [
        (m.table.schema, m.table.name, m.columns, [m.table.columns[c].type for c, _ in m.columns],
         [(r.column, m.table.columns[r.column].type) for r in m.embedded], m.entity.name if m.entity else None)
        for m in store.tables
    ]  # fmt: skip
    digest = hashlib.sha256(repr(shape).encode()).hexdigest()[:12]
    return sql.table("pg_temp", f"{name}_{digest}")


def held_of(store: Store, entity: str) -> Held:
    """That of an entity's own table."""
    return next(held for held in held_tables(store) if held.moved.entity and held.moved.entity.name == entity)


def make_room(connection: Connection, store: Store) -> None:
    """Make the temporary tables, if this session has none yet (behind a pooler each batch may have another session)."""
    for index in range(len(held_tables(store))):
        sql.execute(connection, _room_statement(store, index))


@sql.composed_once
def _room_statement(store: Store, index: int) -> sql.Composable:
    held = held_tables(store)[index]
    columns = held.moved.table.columns
    values = [
        sql.compose("{value} {type}", value=sql.name(value), type=sql.as_written(columns[column].type))
        for column, value in held.values
    ]
    key = held.moved.entity.key if held.moved.entity else None
    own = sql.compose("key {type},", type=sql.as_written(columns[key].type)) if key else sql.Text("")
    return sql.compose(
        """CREATE TEMPORARY TABLE IF NOT EXISTS {relation} (
               at tid {once}, ordinal bigint, {own} natural_key text, as_planned boolean, {values}
           ) ON COMMIT DELETE ROWS""",
        relation=held.relation,
        # An entry for each row that only one statement holds would cost, and find nothing.
        once=sql.Text("PRIMARY KEY" if held.from_several else "NOT NULL"),
        own=own,
        values=sql.join(", ", values),
    )


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


def _turns(store: Store, name: str) -> sql.Composable:
    """The ids that references are to turn from (``key``) and to (``goal``), with their ``ordinal``."""
    held = held_of(store, name)
    return sql.compose(
        "SELECT key, {goal} AS goal, ordinal FROM {held} WHERE {goal} <> key",
        goal=held.value(store.entity(name).key),
        held=held.relation,
    )


def _loose_turns(store: Store, name: str, direction: Direction) -> sql.Composable:
    """The same for what refers without a foreign key: going back, also ids of rows that the application has deleted
    since, which are to be mentioned by the ids that they had."""
    turns = _turns(store, name)
    if direction is FORWARD:
        return turns
    return sql.compose(
        "{turns} UNION ALL SELECT key, goal, ordinal FROM {gone}", turns=turns, gone=_gone_of(store, name)
    )


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


def _found_by_index(held: Held, column: str, keys: sql.Composable) -> sql.Composable:
    """A further condition on the row ``t``: its column is one of these keys, to be looked up one by one.

    An array is taken for short, so that the index serves. A join is estimated by how many rows a key has on average:
    where a few have most of them, each batch would read all of the table.
    """
    if column not in held.moved.table.found_by:
        return sql.Text("")
    return sql.compose("AND t.{column} = ANY(ARRAY({keys}))", column=sql.name(column), keys=keys)


def map_part(entity: str, assessment_no: int) -> sql.Composable:
    """The id map of one entity for a batch, as the table itself: nothing to prune, no lock on the others."""
    return sql.table(ledger.SCHEMA, f"id_map_{entity}_{assessment_no}")


# Ordinals that an earlier step set aside are no part of a batch.
NOT_ASIDE = """NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u WHERE u.execution_id = %(execution)s
                           AND u.wave = %(wave)s AND u.ordinal = m.ordinal)"""


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
            _hold_embedded(connection, held, reference, _loose_turns(store, reference.entity, direction))


@sql.composed_once
def _references_statement(store: Store, index: int, column: str, name: str, direction: Direction) -> sql.Composable:
    held = held_tables(store)[index]
    table = held.moved.table
    by_key = any(
        r.foreign_key is not None and r.table.oid == table.oid and r.column == column for r in store.references
    )
    turns = _turns(store, name) if by_key else _loose_turns(store, name, direction)
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
        turns=turns,
        table=held.table,
        column=sql.name(column),
        found=_found_by_index(held, column, sql.compose("SELECT b.key FROM ({turns}) b", turns=turns)),
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
               FROM {moves} b)
           INSERT INTO {held} AS g (at, ordinal, {value})
           SELECT w.at, x.ordinal, {rewritten}
           FROM (SELECT t.ctid AS at, coalesce(e.{value}, t.{column}) AS was
                 FROM {table} t LEFT JOIN {held} e ON e.at = t.ctid
                 WHERE t.{column} IS NOT NULL AND {holds} {lock} OF t) w
           CROSS JOIN LATERAL (
               SELECT min(((SELECT ordinals FROM by_id) ->> i.id)::bigint) AS ordinal FROM {ids} i(id)) x
           WHERE x.ordinal IS NOT NULL
           ON CONFLICT (at) DO UPDATE SET {value} = excluded.{value}""",
        lock=held.lock(reference.column),
        held=held.relation,
        value=held.value(reference.column),
        table=held.table,
        column=sql.name(reference.column),
        moves=moves,
        ids=ids_in(reference),
        rewritten=rewritten(reference, sql.Text("(SELECT goals FROM by_id)")),
        holds=holds_one_of(reference, moves),
    )
    sql.execute(connection, statement, {"path": list(reference.path)})

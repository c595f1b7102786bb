"""What a batch holds: a temporary table beside each moved one, made once a session and emptied by every commit.

It has the place (ctid) of every row that the batch holds, and the new value of each id column. A held row's place is
stable until we write it.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.store import MovedTable, Store


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


def turns(store: Store, name: str) -> sql.Composable:
    """The ids that references are to turn from (``key``) and to (``goal``), with their ``ordinal``."""
    held = held_of(store, name)
    return sql.compose(
        "SELECT key, {goal} AS goal, ordinal FROM {held} WHERE {goal} <> key",
        goal=held.value(store.entity(name).key),
        held=held.relation,
    )


def map_part(entity: str, assessment_no: int) -> sql.Composable:
    """The id map of one entity for a batch, as the table itself: nothing to prune, no lock on the others."""
    return sql.table(ledger.SCHEMA, f"id_map_{entity}_{assessment_no}")


# Ordinals that an earlier step set aside are no part of a batch.
NOT_ASIDE = """NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u WHERE u.execution_id = %(execution)s
                           AND u.wave = %(wave)s AND u.ordinal = m.ordinal)"""

"""The search itself: each table by a sample or whole, then exactly while the budget lasts.

A sample can show that a column holds ids, never that it holds none: of a column where one row in 100,000 does, it sees
nothing. So the tables with hits are read whole first, then the others, the largest last.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Table, tables_by_schema
from uuid_pipeline.engine.soft_references.derived_values import CONTAINS, IdInRow
from uuid_pipeline.engine.soft_references.held_ids import (
    HOLDS,
    Hit,
    Variety,
    find,
    known_ids,
    searchable_columns,
    variety,
)
from uuid_pipeline.engine.soft_references.id_candidates import JsonReading, KnownIds, SearchedColumn
from uuid_pipeline.engine.soft_references.sampling import Budget, Extent, Picked, bounded, everything, extent, sample
from uuid_pipeline.engine.store import Store

# Timeouts, locks held by others, a right taken away: what they keep us from reading is said, the search goes on.
_UNREADABLE = (sql.QUERY_CANCELED, sql.LOCK_NOT_AVAILABLE, sql.INSUFFICIENT_PRIVILEGE)
_BAD_VALUE = ("22", "54")
SIZE_SECONDS = 5
_KINDS_LEFT_OUT = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}

Path = tuple[str | None, ...]


@dataclass(frozen=True)
class Target:
    """A table to search: its columns that may hold ids, and those in which it holds known ones already.

    ``declared``: the columns of which the spec says that they hold ids, each with their entity.
    """

    table: Table
    extent: Extent
    columns: tuple[SearchedColumn, ...]
    beside: tuple[IdInRow, ...]
    declared: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Values:
    """A hit among the rows looked at first, and what all values at its place are like there."""

    hit: Hit
    variety: Variety

    @property
    def share(self) -> float:
        return self.hit.rows / self.variety.rows


@dataclass(frozen=True)
class Looked:
    """What one table was found to hold: all of it when ``exact``, else the ``looked_at`` rows of ``picked``.

    ``values`` are known where ids of a text key were found among the rows looked at first.
    """

    target: Target
    picked: Picked
    hits: tuple[Hit, ...]
    looked_at: int
    exact: bool
    reading: JsonReading
    stopped: str | None = None
    values: Mapping[tuple[str, str, Path], Values] = field(default_factory=dict)

    def sampled_only(self) -> list[str]:
        """Each column of which only a part was read."""
        if self.exact:
            return []
        of = f"sampled {self.looked_at:,} of {self.target.extent.rows:,} rows"
        return [f"{self.target.table.name}.{column.name}: {of} ({self.stopped})" for column in self.target.columns]

    def json_read_as(self, reading: JsonReading) -> list[str]:
        """The json columns, when they were read in this way."""
        columns = [column.name for column in self.target.columns if column.kind == "json"]
        return [f"{self.target.table.name}.{name}" for name in columns] if self.reading == reading else []


@dataclass(frozen=True)
class Run:
    looked: tuple[Looked, ...]
    not_searched: tuple[str, ...]
    notes: tuple[str, ...]
    rows: int
    bytes: int


@dataclass(frozen=True)
class _Answer:
    """Hits and rows looked at; ``failure`` says why there are none."""

    hits: tuple[Hit, ...] = ()
    rows: int | None = None
    reading: JsonReading = "whole"
    failure: str | None = None


@dataclass(frozen=True)
class _Asked:
    """What every question to a table needs."""

    connection: Connection
    known: tuple[KnownIds, ...]
    budget: Budget
    deadline: float

    def seconds(self) -> float:
        """What is left of the search's time."""
        return self.deadline - time.monotonic()


def run(connection: Connection, store: Store, budget: Budget) -> Run:
    """Look at every table, then at the larger ones whole, while the budget lasts."""
    deadline = time.monotonic() + budget.seconds
    sizes, locked = _sizes(connection, list(store.catalog.tables.values()))
    targets, left_out, notes = _targets(connection, store, sizes)
    left_out += locked + _elsewhere(connection, store)
    asked = _Asked(connection, _known(connection, store, sizes), budget, deadline)
    first: list[Looked] = []
    for target in sorted(targets, key=lambda t: t.extent.bytes):
        found = _survey(asked, target)
        if isinstance(found, str):
            left_out += [f"{target.table.name}.{column.name}: {found}" for column in target.columns]
        else:
            first.append(found)
    looked, whole = _read_whole(asked, first)
    for one in looked:
        left_out += [f"{name}: its JSON is none that jsonb can hold" for name in one.json_read_as("not")]
        notes += [f"{name}: read with its \\u escapes blanked" for name in one.json_read_as("without escapes")]
    return Run(
        tuple(looked), tuple(left_out), tuple(notes),
        rows=sum(one.looked_at for one in first) + sum(target.extent.rows for target in whole),
        bytes=sum(min(one.target.extent.bytes, budget.sample_bytes) for one in first)
        + sum(target.extent.bytes for target in whole),
    )  # fmt: skip


def _sizes(connection: Connection, tables: Sequence[Table]) -> tuple[dict[int, Extent], list[str]]:
    """By oid: the extent of each table; and those that somebody holds a lock on."""
    found: dict[int, Extent] = {}
    locked = []
    for table in tables:
        try:
            with bounded(connection, SIZE_SECONDS, by_index=True):
                found[table.oid] = extent(connection, table)
        except DBAPIError as error:
            locked.append(f"{table.schema}.{table.name}: {_failure(error, SIZE_SECONDS)}")
    return found, locked


def _known(connection: Connection, store: Store, sizes: Mapping[int, Extent]) -> tuple[KnownIds, ...]:
    return tuple(
        known_ids(connection, entity.name, entity.table, entity.key)
        for entity in store.entities
        if entity.table.oid in sizes and sizes[entity.table.oid].readable and not entity.table.hides_rows
    )


def _targets(
    connection: Connection, store: Store, sizes: Mapping[int, Extent]
) -> tuple[list[Target], list[str], list[str]]:
    """The tables to search, those that cannot be, and what is to be known of the choice."""
    tables = [table for table in store.catalog.tables.values() if table.oid in sizes]
    partitions = [table for table in tables if _with_its_parent(tables, table, sizes)]
    tables = [table for table in tables if table not in partitions]
    left_out = [f"{t.schema}.{t.name}: {why}" for t in tables if (why := _why_left_out(t, sizes[t.oid]))]
    notes = [f"{len(partitions)} partitions are searched with their parents"] if partitions else []
    chosen = [table for table in tables if _why_left_out(table, sizes[table.oid]) is None]
    columns = searchable_columns(connection, chosen)
    known = _in_catalogs(store)
    targets = []
    for table in chosen:
        searched = tuple(c for c in columns.get(table.oid, ()) if (table.oid, c.name) not in known)
        if searched:
            declared = tuple((r.column, r.entity) for r in store.references if r.table.oid == table.oid)
            targets.append(Target(table, sizes[table.oid], searched, _beside(store, table), declared))
    return targets, left_out, notes


def _elsewhere(connection: Connection, store: Store) -> list[str]:
    """Schemas with tables to which no foreign key leads: an id there is found by nobody."""
    known = [table.oid for table in store.catalog.tables.values()]
    return [
        f"schema {schema}: {tables} tables that have no foreign key to those of the spec's schema"
        for schema, tables in tables_by_schema(connection, known).items()
    ]


def _why_left_out(table: Table, extent: Extent) -> str | None:
    if table.kind in _KINDS_LEFT_OUT:
        return f"{_KINDS_LEFT_OUT[table.kind]} is not searched"
    if not extent.readable:
        return "this role may not SELECT from it"
    return "row-level security hides rows from this role" if table.hides_rows else None


def _with_its_parent(tables: Sequence[Table], table: Table, sizes: Mapping[int, Extent]) -> bool:
    root = sizes[table.oid].root
    return root is not None and any(other.oid == root for other in tables)


def _in_catalogs(store: Store) -> set[tuple[int, str]]:
    """Columns of which the catalogs say what they hold: keys, and what refers to them by foreign key."""
    keys = {(entity.table.oid, entity.key) for entity in store.entities}
    return keys | {(r.table.oid, r.column) for r in store.references if r.foreign_key is not None}


def _beside(store: Store, table: Table) -> tuple[IdInRow, ...]:
    """The columns of a table that hold an id as it is: what is derived from it is looked for in the same row."""
    columns = next((moved.columns for moved in store.tables if moved.table.oid == table.oid), ())
    return tuple(IdInRow(column, name, store.entity(name).key_type == "text") for column, name in columns)


def _survey(asked: _Asked, target: Target) -> Looked | str:
    """A small table whole, of a larger one a sample; or why neither could be read."""
    names = _names(target)
    small = target.extent.bytes <= asked.budget.small_bytes
    picked = (
        everything(target.table, names, counted=True)
        if small
        else sample(target.table, target.extent, names, asked.budget)
    )
    answer = _ask(asked, target, picked, by_index=True)
    if answer.failure:
        return answer.failure
    looked = Looked(target, picked, answer.hits, answer.rows or 0, small, answer.reading)
    return replace(looked, values=_values(asked, looked)) if any(ids.is_text for ids in asked.known) else looked


def _names(target: Target) -> list[str]:
    return list(dict.fromkeys([*(c.name for c in target.columns), *(held.column for held in target.beside)]))


def _ask(asked: _Asked, target: Target, picked: Picked, by_index: bool) -> _Answer:
    """Hits in the picked rows. JSON that jsonb cannot hold is read a second time without what it stumbled on."""
    readings: list[JsonReading] = ["whole"]
    if any(column.kind == "json" for column in target.columns):
        readings += ["without escapes", "not"]
    for reading in readings:
        seconds = min(asked.seconds(), asked.budget.sample_seconds) if by_index else asked.seconds()
        if seconds <= 0:
            return _Answer(failure=f"the search's {asked.budget.seconds:g} seconds were used up")
        try:
            with bounded(asked.connection, seconds, by_index):
                hits, rows = find(
                    asked.connection, picked, target.columns, asked.known, target.beside, reading, target.declared
                )
                return _Answer(tuple(hits), rows, reading)
        except DBAPIError as error:
            failure = _failure(error, seconds)
            if not (sql.sqlstate(error) or "").startswith(_BAD_VALUE):
                break
    return _Answer(failure=failure)


def _failure(error: DBAPIError, seconds: float) -> str:
    """What kept us from reading, in words; raises the error again when it is no such thing."""
    state = sql.sqlstate(error) or ""
    if state == sql.QUERY_CANCELED:
        return f"reading it took longer than {seconds:.0f} s"
    if state not in _UNREADABLE and not state.startswith(_BAD_VALUE):
        raise error
    return str(error.orig).strip().splitlines()[0]


def _values(asked: _Asked, looked: Looked) -> dict[tuple[str, str, Path], Values]:
    """What the values are like among which text keys were found."""
    text = {ids.entity for ids in asked.known if ids.is_text}
    hits = [hit for hit in looked.hits if hit.kind == HOLDS and hit.entity in text]
    found: dict[tuple[str, str, Path], Values] = {}
    for column in looked.target.columns:
        own = [hit for hit in hits if hit.column == column.name]
        if not own or column.kind.startswith("uuid"):
            continue
        try:
            with bounded(asked.connection, asked.budget.sample_seconds, by_index=True):
                varied = variety(asked.connection, looked.picked, column, asked.known, looked.reading)
        except DBAPIError as error:
            _failure(error, 0)
            continue  # unknown, so that nothing is taken for an accident
        found |= {(hit.column, hit.entity, hit.path): Values(hit, varied[hit.path]) for hit in own}
    return found


def _worth_making(one: Looked) -> tuple[IdInRow, ...]:
    """Ids from which to make hashes again for every row, which is half the cost: only if the sample held such ones."""
    return one.target.beside if any(hit.kind not in (HOLDS, CONTAINS) for hit in one.hits) else ()


def _read_whole(asked: _Asked, first: Sequence[Looked]) -> tuple[list[Looked], list[Target]]:
    """The tables of which only a sample was read, whole: those with hits first, the largest last."""
    rows, size = asked.budget.exact_rows, asked.budget.exact_bytes
    looked = {one.target.table.oid: one for one in first}
    read = []
    for one in sorted(first, key=lambda o: (not any(h.kind == HOLDS for h in o.hits), o.target.extent.bytes)):
        target = one.target
        if one.exact:
            continue
        if target.extent.rows > rows or target.extent.bytes > size:
            looked[target.table.oid] = replace(one, stopped="the rest is over the search's budget")
            continue
        rows, size = rows - target.extent.rows, size - target.extent.bytes
        searched = replace(target, beside=_worth_making(one))
        answer = _ask(asked, searched, everything(target.table, _names(target), counted=False), by_index=False)
        if answer.failure:
            looked[target.table.oid] = replace(one, stopped=answer.failure)
            continue
        read.append(target)
        looked[target.table.oid] = replace(one, hits=answer.hits, exact=True, reading=answer.reading)
    return list(looked.values()), read

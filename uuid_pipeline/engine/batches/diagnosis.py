"""When a batch's proof fails: which rows, found by halving, shown as they should be beside as they came out."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches import batch
from uuid_pipeline.engine.batches.held import BatchPlan, Direction, Held, held_tables
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import BatchError

SHOWN_ROWS = 5


def explain(
    connection: Connection, store: Store, plan: BatchPlan, direction: Direction, begin: Callable[[], None]
) -> list[str]:
    """A sentence a differing row, of the smallest part of a batch whose proof fails; nothing of it is committed.

    ``begin`` opens the transaction as the batch itself does (settings, lease).
    """
    while plan.first_ordinal < plan.last_ordinal:
        middle = (plan.first_ordinal + plan.last_ordinal) // 2
        halves = replace(plan, last_ordinal=middle), replace(plan, first_ordinal=middle + 1)
        failing = next((half for half in halves if _fails(connection, store, half, direction, begin)), None)
        if failing is None:
            break  # only together do they differ
        plan = failing
    begin()
    try:
        return list(_differences(connection, store, plan, direction))
    finally:
        connection.rollback()


def _fails(
    connection: Connection, store: Store, plan: BatchPlan, direction: Direction, begin: Callable[[], None]
) -> bool:
    begin()
    try:
        batch.hold(connection, store, plan, direction)
        batch.move_and_prove(connection, store, plan)
    except BatchError:
        return True
    finally:
        connection.rollback()
    return False


def _differences(connection: Connection, store: Store, plan: BatchPlan, direction: Direction) -> Iterator[str]:
    batch.hold(connection, store, plan, direction)
    tables = [held for held in held_tables(store) if held.moved.table.primary_key]
    expected = [(held, _rows(connection, held)) for held in tables]
    sql.execute(connection, batch.move_statement(store))
    for held, rows in expected:
        ids = {column for column, _ in held.moved.columns}
        for row in rows[:SHOWN_ROWS]:
            found = _row_now(connection, held, row)
            label = ", ".join(
                f"{column} {_shown(store, column in ids, row[column])}" for column in held.moved.table.primary_key
            )
            if found is None:
                yield f"{held.moved.table.name} ({label}): the row is gone"
                continue
            for column, value in row.items():
                if found[column] != value:
                    should, now = (_shown(store, column in ids, text) for text in (value, found[column]))
                    yield f"{held.moved.table.name} ({label}): {column} should be {should!r} and is {now!r}"


def _shown(store: Store, is_id: bool, value: str | None) -> str | None:
    """Any other column than an id may hold what is personal: where something is hidden, all of them are."""
    return value if is_id or not redaction.hidden(store.spec) else redaction.mark(value)


def _rows(connection: Connection, held: Held) -> list[dict[str, Any]]:
    """The held rows that change, as they are to be after the move, every column as text."""
    mapped = held.mapped()
    columns = [
        sql.compose("{n}, ({v})::text", n=sql.literal(column.name),
                    v=mapped.get(column.name, sql.compose("t.{c}", c=sql.name(column.name))))
        for column in held.moved.table.columns.values() if not column.generated
    ]  # fmt: skip
    statement = sql.compose(
        "SELECT jsonb_build_object({columns}) FROM {held} h JOIN {table} t ON t.ctid = h.at WHERE {changes}",
        columns=sql.join(", ", columns),
        held=held.relation,
        table=held.table,
        changes=held.changes(),
    )
    return [row[0] for row in sql.rows(connection, statement)]


def _row_now(connection: Connection, held: Held, row: dict[str, Any]) -> dict[str, Any] | None:
    columns = [
        sql.compose("{n}, t.{c}::text", n=sql.literal(column), c=sql.name(column)) for column in row
    ]  # fmt: skip
    key = [
        sql.compose("t.{c}::text = %(row)s::jsonb->>{n}", c=sql.name(column), n=sql.literal(column))
        for column in held.moved.table.primary_key
    ]
    statement = sql.compose(
        "SELECT jsonb_build_object({columns}) FROM {table} t WHERE {key}",
        columns=sql.join(", ", columns),
        table=held.table,
        key=sql.join(" AND ", key),
    )
    found: dict[str, Any] | None = sql.scalar(connection, statement, {"row": json.dumps(row)})
    return found

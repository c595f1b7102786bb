"""One approach on one row: what refuses it, one thing after the other, and what it does once nothing refuses.

What refuses is put out of the way in the copy, and the approach tried again: so each constraint is met, not only the
first. All of it happens in a transaction that is rolled back.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.trials import collisions, effects
from uuid_pipeline.engine.trials.approaches import Approach
from uuid_pipeline.engine.trials.findings import Attempt, Refusal
from uuid_pipeline.engine.trials.moving import Sampled
from uuid_pipeline.engine.trials.obstacles import UNIQUE, Obstacle

ROUNDS = 25
UNIQUE_VIOLATIONS = ("23505", "23P01")


@contextmanager
def undone(connection: Connection) -> Iterator[None]:
    """What happens in the block is rolled back, also after an error."""
    savepoint = connection.begin_nested()
    try:
        yield
    finally:
        if savepoint.is_active:
            savepoint.rollback()


def attempt(
    connection: Connection, store: Store, approach: Approach, row: Sampled, known: Sequence[Obstacle], alter: bool
) -> Attempt:
    """Try an approach on one row. Without ``alter`` nothing is put out of the way: the first refusal ends it."""
    entity = store.entity(row.entity)
    refusals: list[Refusal] = []
    with undone(connection):
        before = effects.state(connection, store, entity, row.old)
        for _ in range(ROUNDS):
            done = _once(connection, store, approach, entity, row, known)
            if isinstance(done, Attempt):
                dropped = {r.obstacle for r in refusals if r.obstacle}
                return effects.judged(connection, store, done, before, tuple(refusals), dropped)
            repeated = done.obstacle in [r.obstacle for r in refusals]
            refusals.append(done)
            if repeated or not alter or not _put_aside(connection, approach, done):
                break
    return Attempt(approach.name, row, tuple(refusals), finished=False)


def _once(
    connection: Connection, store: Store, approach: Approach, entity: Entity, row: Sampled, known: Sequence[Obstacle]
) -> Attempt | Refusal:
    """One go. The changes stay when it went through: whoever calls undoes them."""
    savepoint = connection.begin_nested()
    doing = ""
    values = {"old": row.old, "new": row.new}
    try:
        for step in approach.steps(store, entity):
            doing = step.does
            sql.execute(connection, step.statement, values)
        doing = "COMMIT"
        sql.execute(connection, "SET CONSTRAINTS ALL IMMEDIATE")
    except DBAPIError as error:
        savepoint.rollback()
        return _refusal(connection, store, entity, row, known, doing, error)
    savepoint.commit()
    return Attempt(approach.name, row, (), finished=True)


def _refusal(
    connection: Connection, store: Store, entity: Entity, row: Sampled, known: Sequence[Obstacle], doing: str,
    error: DBAPIError,
) -> Refusal:  # fmt: skip
    state = sql.sqlstate(error) or ""
    diagnosis = getattr(error.orig, "diag", None)
    if not state or state.startswith(("57", "08", "53")):
        raise error
    message = (getattr(diagnosis, "message_primary", None) or str(error.orig)).strip()
    named = (getattr(diagnosis, n, None) for n in ("schema_name", "table_name", "constraint_name"))
    context = getattr(diagnosis, "context", None) or ""
    found = _named(known, *named) or _raising(known, context)
    collision = None
    if found is not None and state in UNIQUE_VIOLATIONS and found.kind in UNIQUE:
        with undone(connection):
            collision = collisions.with_whom(connection, store, entity, found, row.old, row.new)
    return Refusal(found, doing, state, message, collision)


def _named(known: Sequence[Obstacle], schema: str | None, table: str | None, name: str | None) -> Obstacle | None:
    # A foreign key's error on the side that it refers to may name that side's table.
    exact = [o for o in known if o.name == name and o.place == (schema, table)]
    by_target = [o for o in known if o.name == name and o.target == (schema, table)]
    return next(iter(exact + by_target), None)


def _raising(known: Sequence[Obstacle], context: str) -> Obstacle | None:
    """The trigger whose function raised the error."""
    return next((o for o in known if o.kind == "trigger" and o.function.replace('"', "") + "()" in context), None)


def _put_aside(connection: Connection, approach: Approach, refusal: Refusal) -> bool:
    """Put what refused out of the way, in the copy; whether that could be done."""
    obstacle = refusal.obstacle
    if obstacle is None:
        return False
    savepoint = connection.begin_nested()
    try:
        sql.execute(connection, _aside(approach, obstacle))
    except DBAPIError:
        savepoint.rollback()
        return False
    savepoint.commit()
    return True


def _aside(approach: Approach, obstacle: Obstacle) -> sql.Composable:
    parts = {"table": sql.table(*obstacle.place), "name": sql.name(obstacle.name)}
    if obstacle.kind == "trigger":
        return sql.compose("ALTER TABLE {table} DISABLE TRIGGER {name}", **parts)
    if not obstacle.is_constraint:
        return sql.compose("DROP INDEX {index}", index=sql.table(obstacle.schema, obstacle.name))
    if approach.defers and obstacle.kind == "foreign key" and not obstacle.deferrable:
        return sql.compose("ALTER TABLE {table} ALTER CONSTRAINT {name} DEFERRABLE", **parts)
    return sql.compose("ALTER TABLE {table} DROP CONSTRAINT {name}", **parts)

"""All approaches on all sampled rows of a database: the copy, or the store itself within short limits."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import lease, sql
from uuid_pipeline.engine.store import Store
from uuid_pipeline.engine.trials.findings import Attempt
from uuid_pipeline.engine.trials.known import KNOWN
from uuid_pipeline.engine.trials.moving import Sampled
from uuid_pipeline.engine.trials.obstacles import Obstacle, touching
from uuid_pipeline.engine.trials.trial import attempt, undone

LOCK_TIMEOUT = "200ms"
STATEMENT_TIMEOUT = "2s"


@dataclass(frozen=True)
class Tried:
    """What was tried. ``by_trigger``: attempts with one of the triggers alone. ``absent``: what the copy lacks.

    ``altered``: whether refusals were put out of the way, so that each obstacle was met and not only the first.
    """

    attempts: tuple[Attempt, ...]
    by_trigger: tuple[tuple[Obstacle, Attempt], ...]
    absent: tuple[Obstacle, ...]
    where: str
    altered: bool


def on_copy(engine: Engine, store: Store, sampled: Sequence[Sampled], known: Sequence[Obstacle], where: str) -> Tried:
    """Everything, in one transaction of the copy that is rolled back."""
    with engine.connect() as connection, connection.begin() as transaction:
        there = _there(connection, known)
        attempts = _all(connection, store, sampled, there, alter=True)
        alone = [
            (trigger, made)
            for trigger in there
            if trigger.kind == "trigger"
            for made in _with_one_trigger(connection, store, _through(sampled, attempts), there, trigger)
        ]
        transaction.rollback()
    absent = tuple(o for o in known if o not in there)
    return Tried(tuple(attempts), tuple(alone), absent, where, altered=True)


def on_store(engine: Engine, store: Store, sampled: Sequence[Sampled], known: Sequence[Obstacle], run: str) -> Tried:
    """Each approach up to its first refusal, on the store's own rows, in one transaction that is rolled back.

    Raises RefusedError when another run holds the store's lease: two must not wait for each other's rows. What a
    trigger does outside its transaction (a sequence, a call to another server) is not undone.
    """
    with lease.held(engine, run) as (connection, _), connection.begin() as transaction:
        sql.execute(connection, f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        sql.execute(connection, f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'")
        attempts = _all(connection, store, sampled, known, alter=False)
        transaction.rollback()
    return Tried(tuple(attempts), (), (), "the store itself, rolled back", altered=False)


def _all(
    connection: Connection, store: Store, sampled: Sequence[Sampled], known: Sequence[Obstacle], alter: bool
) -> list[Attempt]:
    return [attempt(connection, store, approach, row, known, alter) for row in sampled for approach in KNOWN]


def _through(sampled: Sequence[Sampled], attempts: Sequence[Attempt]) -> list[Sampled]:
    """The sampled rows with those first that every approach got through with: only they show what triggers do."""
    stopped = {a.row for a in attempts if not a.finished}
    return sorted(sampled, key=lambda row: row in stopped)


def _with_one_trigger(
    connection: Connection, store: Store, sampled: Sequence[Sampled], known: Sequence[Obstacle], trigger: Obstacle
) -> list[Attempt]:
    """The first sampled row of each entity that the trigger concerns, with every other trigger disabled."""
    chosen = {row.entity: row for row in reversed(sampled)}.values()
    concerned = [row for row in chosen if trigger in touching(store, store.entity(row.entity), known)]
    made = []
    with undone(connection):
        for other in known:
            if other.kind == "trigger" and other != trigger:
                parts = {"table": sql.table(*other.place), "name": sql.name(other.name)}
                sql.execute(connection, sql.compose("ALTER TABLE {table} DISABLE TRIGGER {name}", **parts))
        for row in concerned:
            made += [attempt(connection, store, approach, row, known, alter=True) for approach in KNOWN]
    return made


_THERE = """
SELECT n.nspname AS schema, c.relname AS "table", o.name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL (
    SELECT conname::text AS name FROM pg_constraint WHERE conrelid = c.oid
    UNION SELECT i.indexrelid::regclass::text FROM pg_index i WHERE i.indrelid = c.oid
    UNION SELECT ic.relname::text FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid WHERE i.indrelid = c.oid
    UNION SELECT tgname::text FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal) o
WHERE n.nspname = ANY(%(schemas)s)
"""


def _there(connection: Connection, known: Sequence[Obstacle]) -> list[Obstacle]:
    """Those of the known that the copy was given."""
    schemas = sorted({o.schema for o in known})
    found = {(row.schema, row.table, row.name) for row in sql.rows(connection, _THERE, {"schemas": schemas})}
    return [o for o in known if (o.schema, o.table, o.name) in found]

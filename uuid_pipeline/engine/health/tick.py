"""A tick: every figure measured within its limits, the checks evaluated, all of it written down."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health import (
    alias_use,
    checks,
    consistency,
    generation,
    history,
    ids,
    latency,
    migration_failures,
    orphans,
    retrieval,
    sample,
)
from uuid_pipeline.engine.health.figure import Figure, unknown
from uuid_pipeline.engine.health.history import Tick
from uuid_pipeline.engine.health.look import Look, is_small, limit_statements
from uuid_pipeline.engine.installed import guard
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError

Measure = Callable[[Look], list[Figure]]
Found = TypeVar("Found")


def take(engine: Engine, store: Store, run_id: str, *, full: bool = False, new_baseline: bool = False) -> Tick | None:
    """Look at the store once; None when another tick is at it.

    ``full`` reads whole tables whenever the last time was. ``new_baseline``: the latency of the last ticks becomes
    what later ones are compared with. What cannot be measured is unknown, with the reason; it raises nothing.
    """
    with engine.begin() as connection:
        # Ends with the transaction, also behind a pooler.
        if not sql.scalar(connection, "SELECT pg_try_advisory_xact_lock(hashtextextended('uuid_pipeline.health', 0))"):
            return None
        if new_baseline:
            sql.execute(connection, "DELETE FROM uuid_pipeline.health_baselines")
        began, at = time.monotonic(), datetime.now(UTC)
        before = history.newest(connection)
        look = _look(connection, store, at, before, full)
        figures = {figure.name: figure for figure in _measured(look)}
        failing = {
            check.name: check.failing_since for check in (before.checks if before else ()) if check.failing_since
        }
        evaluated = checks.evaluate(figures, store.spec.health.thresholds, failing, at)
        limit_statements(connection, store.spec.health.statement_seconds)
        sampled_to = look.sample[-1].key if look.sample else None
        begun = Tick(0, at, look.whole, time.monotonic() - began, sampled_to, (), ())
        written = history.write(connection, run_id, begun, tuple(figures.values()), evaluated)
        history.forget(connection, store.spec.health.keep_days)
        guard.forget_old_samples(connection)
        return written


def _look(connection: Connection, store: Store, at: datetime, before: Tick | None, full: bool) -> Look:
    limits = store.spec.health
    limit_statements(connection, limits.statement_seconds)
    scanned = history.scanned_whole_at(connection)
    due = scanned is None or at - scanned >= timedelta(hours=limits.full_scan_hours)
    after = before.sampled_to if before else None
    rows = _tried(connection, lambda: list(sample.take(connection, store, after, limits.sample)))
    return Look(
        connection,
        store,
        before.at if before else at - generation.FIRST_LOOK_BACK,
        full or due or _tried(connection, lambda: [is_small(connection, store)]) == [True],
        tuple(rows) if isinstance(rows, list) else (),
        time.monotonic() + limits.full_scan_seconds,
    )


def _measured(look: Look) -> list[Figure]:
    limits = look.store.spec.health
    figures: list[Figure] = []
    every: list[tuple[Sequence[str], Measure]] = [
        ([generation.NAME], generation.measure),
        (["mismatch_sampled"], ids.measure_sample),
        ([retrieval.NAME], retrieval.measure),
        ([migration_failures.NAME], migration_failures.measure),
        ([alias_use.NAME], alias_use.measure),
        ([latency.NAME, latency.DEGRADATION], latency.measure),
    ]
    for names, measure in every:
        figures += _guarded(look, names, measure)
    # The documents first: where the time does not suffice for all, it is theirs.
    main_first = sorted(look.store.entities, key=lambda entity: entity.name != look.store.main.name)
    of_ids: list[tuple[Sequence[str], Measure]] = [
        (ids.names(look.store, entity), partial(ids.measure, entity=entity)) for entity in main_first
    ]
    whole: list[tuple[Sequence[str], Measure]] = [
        of_ids[0],
        ([consistency.NAME], consistency.measure),
        ([orphans.NAME], orphans.measure),
        *of_ids[1:],
    ]
    limit_statements(look.connection, limits.full_scan_seconds)
    for names, measure in whole:
        figures += _guarded(look, names, measure) if look.whole else [_not_now(look, name) for name in names]
    # A figure of whole scans: its last value stands until there is a newer one.
    lasting = {name for names, _ in whole for name in names}
    return [history.carried(look.connection, one) if one.name in lasting else one for one in figures]


def _not_now(look: Look, name: str) -> Figure:
    hours = look.store.spec.health.full_scan_hours
    return unknown(name, history.unit_of(name), f"whole tables are read every {hours:g} hours")


def _guarded(look: Look, names: Sequence[str], measure: Measure) -> list[Figure]:
    found = _tried(look.connection, lambda: measure(look))
    if isinstance(found, str):
        return [unknown(name, history.unit_of(name), found) for name in names]
    return found


def _tried(connection: Connection, work: Callable[[], list[Found]]) -> list[Found] | str:
    """What the work gives, or why the server refused it; the transaction goes on either way."""
    savepoint = connection.begin_nested()
    try:
        found = work()
    except RefusedError as error:
        savepoint.rollback()
        return error.message
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        savepoint.rollback()
        return str(error.orig).strip().splitlines()[0]
    savepoint.commit()
    return found

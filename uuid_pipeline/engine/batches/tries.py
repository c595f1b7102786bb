"""Tries of one batch: smaller and after a pause while locks are not to be had, aside in the end, explained if wrong."""

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import ledger, patience, sql
from uuid_pipeline.engine.batches import aside, batch, diagnosis, new_references
from uuid_pipeline.engine.batches.batch import BatchPlan, BatchResult, Direction
from uuid_pipeline.engine.batches.writing import Writer
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import BatchError, OvertakenError, RefusedError, UnmergeableError

OVERTAKEN = "overtaken"  # no code of the server's: OvertakenError
RETRIED = frozenset({sql.LOCK_NOT_AVAILABLE, "40P01", "40001", OVERTAKEN})  # deadlock, serialization failure
TAKEN = "23505"  # unique violation
DANGLING = "23503"  # foreign key violation

MAX_TRIES = 10
# Whoever takes a place while a batch is at it is seen by the next try; what a try meets each time is no such thing.
TAKEN_TRIES = 5
# From this try on, documents that somebody holds are set aside instead of waited for, and the rest is waited for as
# long as the first lock.
PATIENT_TRIES = 3
MAX_PAUSE_SECONDS = 1.0
# A rollback leaves nothing aside, and where a whole table is locked nothing can be: the smallest batch goes on asking
# for its locks for this long.
PATIENCE_SECONDS = 120.0


def undivided(first: int, last: int, _: Direction) -> tuple[int, int]:
    """The same span: what was done in one batch is undone in one."""
    return first, last


def halve(first: int, last: int, direction: Direction) -> tuple[int, int]:
    """Half of a span, the half that comes first in the direction of travel; one ordinal stays one."""
    half = (last - first) // 2
    return (first, first + half) if direction is batch.FORWARD else (last - half, last)


def run_batch(
    writing: Writer,
    store: Store,
    wave: ledger.Wave,
    span: tuple[int, int],
    direction: Direction,
    smaller: Callable[[int, int, Direction], tuple[int, int]] = halve,
) -> tuple[int, BatchResult]:
    """One batch, retried with backoff and made ``smaller`` while locks are not to be had; returns the end it did.

    By default it is halved: going forward the first part of ``span`` is kept, and what never gets its locks is set
    aside in the end, to be taken up later; going back the last part is kept.

    Raises RefusedError when even the smallest batch gets no locks and cannot be set aside, BatchError with the
    differing rows when a proof failed.
    """
    first, last = span
    wary, taken = False, 0
    began = time.monotonic()
    for attempt in itertools.count(1):
        if attempt > MAX_TRIES and time.monotonic() - began > PATIENCE_SECONDS:
            break
        patient = attempt > PATIENT_TRIES
        plan = BatchPlan(wave.execution_id, wave.assessment_no, wave.wave, first, last, wary, patient)
        try:
            if attempt > MAX_TRIES and direction is batch.FORWARD:
                return last, _set_locked_aside(writing, store, wave, (first, last))
            result = _try_batch(writing, store, wave, plan, direction, attempt)
        except (DBAPIError, OvertakenError) as error:
            writing.connection.rollback()
            state = OVERTAKEN if isinstance(error, OvertakenError) else sql.sqlstate(error)
            taken += state == TAKEN
            if state == TAKEN and not wary:
                wary = True
                continue
            if state == DANGLING:
                _require_no_new_reference(writing.connection, store, direction)
            if state not in RETRIED and not (state == TAKEN and taken < TAKEN_TRIES):
                raise
            time.sleep(min(MAX_PAUSE_SECONDS, 0.05 * 2**attempt) * random.uniform(0.5, 1.0))
            first, last = smaller(first, last, direction)
        except BatchError as error:
            writing.connection.rollback()
            found = diagnosis.explain(writing.connection, store, plan, direction, writing.begin_batch)
            raise BatchError("\n".join([error.message, *[f"  {line}" for line in found]])) from error
        else:
            return (last if direction is batch.FORWARD else first), result
    with writing.connection.begin():
        tables = [moved.table.oid for moved in store.tables]
        who = patience.who_holds(writing.connection, tables, patience.READING)
    raise RefusedError(
        f"Wave {wave.wave} stopped at ordinals {first}-{last}: other transactions held their rows or tables, or took "
        f"their places, for {time.monotonic() - began:.0f} s; at work on these tables now: {who}. What was committed "
        f"stands. {patience.END_THEM}, and run again."
    )


def leave_clusters(writing: Writer, store: Store, wave: ledger.Wave, plan: BatchPlan, error: UnmergeableError) -> str:
    """Journal what cannot be merged as it is now, so that the batch goes on without it; what to tell of it."""
    writing.begin_batch()
    require_status(writing.connection, wave, batch.FORWARD)
    aside.leave_clusters(writing.connection, store, plan, error.ordinals)
    detail = {"wave": wave.wave, "clusters": len(error.ordinals), "why": error.message}
    ledger.audit(writing.connection, "left clusters alone", detail)
    writing.connection.commit()
    return f"left alone, not merged: {error.message}"


def _require_no_new_reference(connection: Connection, store: Store, direction: Direction) -> None:
    """Where foreign keys are checked, one made meanwhile refuses the batch itself: say why."""
    with connection.begin():
        new_references.require_none(connection, store, direction)


def _try_batch(
    writing: Writer, store: Store, wave: ledger.Wave, plan: BatchPlan, direction: Direction, attempt: int
) -> BatchResult:
    """Once, or again without the clusters that cannot be merged as they are: each time there are fewer."""
    notes: list[str] = []
    left_alone: set[int] = set()
    while True:
        writing.begin_batch()
        require_status(writing.connection, wave, direction)
        if direction is batch.FORWARD and attempt > PATIENT_TRIES:
            aside.set_held_aside(writing.connection, store, plan)
        try:
            result = batch.run(writing.connection, store, plan, direction, writing.lease)
        except UnmergeableError as error:
            writing.connection.rollback()
            if left_alone.issuperset(error.ordinals):
                raise  # to leave them does not help
            left_alone.update(error.ordinals)
            notes.append(leave_clusters(writing, store, wave, plan, error))
        else:
            writing.connection.commit()
            return replace(result, notes=tuple(notes))


def _set_locked_aside(writing: Writer, store: Store, wave: ledger.Wave, span: tuple[int, int]) -> BatchResult:
    """Journal a span whose rows somebody holds for long as waiting, and let the wave go on."""
    plan = BatchPlan(wave.execution_id, wave.assessment_no, wave.wave, *span)
    writing.begin_batch()
    require_status(writing.connection, wave, batch.FORWARD)
    aside.set_all_aside(writing.connection, store, plan)
    result = batch.run(writing.connection, store, plan, batch.FORWARD, writing.lease)
    writing.connection.commit()
    return result


def require_status(connection: Connection, wave: ledger.Wave, direction: Direction) -> None:
    """Raise RefusedError when the execution was superseded or turned round since the wave began."""
    status = ledger.execution(connection, wave.execution_id).status
    if status != ("running" if direction is batch.FORWARD else "rolling_back"):
        raise RefusedError(f"Execution {wave.execution_id} became {status} meanwhile; wave {wave.wave} stopped.")

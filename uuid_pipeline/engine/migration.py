"""A wave, carried out batch by batch: gates asked first, the lease held, resumed from the journal."""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import batch, fingerprint, gates, ledger, planning, sql
from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine.batch import BatchPlan, BatchResult, Direction
from uuid_pipeline.engine.gates import Scope
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError

RETRIED = frozenset({"55P03", "40P01", "40001"})  # lock not available, deadlock, serialization failure
MAX_TRIES = 12
MAX_PAUSE_SECONDS = 5.0


@dataclass(frozen=True)
class Progress:
    """How far a wave is: documents of its total, rows written, batches, seconds since this run began it."""

    wave: str
    documents: int
    total: int
    rows: int
    batches: int
    seconds: float


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Run:
    """What one run of a wave (or of its rollback) did; ``dead_run`` is the dead holder's run it took over from."""

    wave: str
    documents: int
    rows: dict[str, int]
    batches: int
    seconds: float
    dead_run: str | None


@contextmanager
def writer(engine: Engine, run_id: str) -> Iterator[tuple[Connection, leases.Lease]]:
    """A connection that holds the store's lease while the block runs."""
    with engine.connect() as connection:
        lease = leases.acquire(engine, connection, run_id)
        connection.rollback()
        try:
            yield connection, lease
        finally:
            connection.rollback()
            leases.release(engine, lease)


def run_wave(engine: Engine, store: Store, wave_name: str, run_id: str, report: Report) -> Run:
    """Move one wave's documents, or what an earlier run left of it.

    Raises RefusedError when a gate, the approval, the plan or the lease says no, BatchError when a proof failed.
    """
    with writer(engine, run_id) as (connection, lease):
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as first, first.begin():
            wave = _admit(first, store, wave_name, lease)
        done = _loop(connection, store, wave, lease, report)
        with connection.begin():
            leases.hold(connection, lease)
            ledger.set_wave_status(connection, wave.wave, "moved")
            ledger.audit(connection, "moved", {"wave": wave.wave, "documents": done.documents, "batches": done.batches})
    return Run(done.wave, done.documents, done.rows, done.batches, done.seconds, lease.dead_run)


def _admit(connection: Connection, store: Store, wave_name: str, lease: leases.Lease) -> ledger.Wave:
    """Ask the ledger whether this wave may write now; the first one records the store as it was before."""
    leases.hold(connection, lease)
    wave = ledger.wave(connection, wave_name)
    execution = ledger.execution(connection, wave.execution_id)
    if execution.status == "completed" and wave.status == "moved":
        return wave
    if execution.status not in ("approved", "running"):
        raise RefusedError(
            f"Refused: execution {execution.execution_id} is {execution.status}. Run: uuid-pipeline plan, then approve."
        )
    if execution.expired:
        raise RefusedError(
            f"Refused: the approval of plan {execution.plan_id} expired at {execution.expires_at:%Y-%m-%d %H:%M} UTC. "
            "Run: uuid-pipeline plan, and approve again."
        )
    planning.require_fresh(connection, store, planning.of_assessment(connection, execution.assessment_no))
    gates.require(connection, Scope(execution=execution.execution_id), gates.PLANNING_STAGES, f"wave {wave_name}")
    for earlier in ledger.waves(connection, execution.execution_id):
        if earlier.position < wave.position:
            if earlier.status != "moved":
                raise RefusedError(f"Refused: wave {earlier.wave} comes before {wave_name} and is {earlier.status}.")
            scope = Scope(execution=execution.execution_id, wave=earlier.wave)
            gates.require(connection, scope, [gates.WAVE_STAGE], f"wave {wave_name}")
    if execution.status == "approved":
        planning.require_map_as_approved(connection, store, planning.of_assessment(connection, execution.assessment_no))
        _begin(connection, store, execution)
    return wave


def _begin(connection: Connection, store: Store, execution: ledger.Execution) -> None:
    """Catalog, snapshot and fingerprints of one moment: this transaction is REPEATABLE READ."""
    sql.execute(
        connection,
        """UPDATE uuid_pipeline.executions SET catalog_before = %(catalog)s::jsonb,
               snapshot_before = pg_current_snapshot()::text WHERE execution_id = %(id)s""",
        {"id": execution.execution_id, "catalog": json.dumps(catalogs.snapshot(connection, store.catalog))},
    )
    fingerprint.take_before(connection, store, execution)
    ledger.change_status(connection, execution.execution_id, "running")


def _loop(connection: Connection, store: Store, wave: ledger.Wave, lease: leases.Lease, report: Report) -> Run:
    started = time.monotonic()
    size = batch_size(connection, store, wave)
    rows: dict[str, int] = {}
    batches = documents = 0
    at = next_ordinal(connection, wave)
    while at <= wave.last_ordinal:
        last = min(at + size - 1, wave.last_ordinal)
        last, result = run_batch(connection, store, wave, (at, last), batch.FORWARD, lease)
        batches, documents, at = batches + 1, documents + last - at + 1, last + 1
        for table, count in result.tables.items():
            rows[table] = rows.get(table, 0) + count
        report(_progress(wave, at - wave.first_ordinal, rows, batches, started))
    return Run(wave.wave, documents, rows, batches, time.monotonic() - started, None)


def _progress(wave: ledger.Wave, documents: int, rows: dict[str, int], batches: int, started: float) -> Progress:
    return Progress(wave.wave, documents, wave.documents, sum(rows.values()), batches, time.monotonic() - started)


def next_ordinal(connection: Connection, wave: ledger.Wave) -> int:
    """The first ordinal of the wave that no committed batch has done."""
    done = sql.scalar(
        connection,
        "SELECT max(last_ordinal) FROM uuid_pipeline.batches WHERE wave = %(wave)s AND direction = 'forward'",
        {"wave": wave.wave},
    )
    connection.rollback()
    return int(done) + 1 if done is not None else wave.first_ordinal


def batch_size(connection: Connection, store: Store, wave: ledger.Wave) -> int:
    """Documents a batch, so that it writes about the spec's ``batch_rows`` rows, by the average of the whole store."""
    total = sum(moved.table.estimated_rows for moved in store.tables)
    roots = sum(entity.table.estimated_rows for entity in store.roots)
    mapped = 0
    execution = ledger.execution(connection, wave.execution_id)
    for entity in store.entities:
        counted = sql.compose("SELECT count(*) FROM {map} WHERE assessment_no = %(no)s", map=ledger.map_table(entity))
        mapped += int(sql.scalar(connection, counted, {"no": execution.assessment_no}))
    documents = int(
        sql.scalar(
            connection,
            "SELECT coalesce(sum(documents), 1) FROM uuid_pipeline.waves WHERE execution_id = %(id)s",
            {"id": wave.execution_id},
        )
    )
    connection.rollback()
    rows_a_document = max(total / max(roots, 1), mapped / max(documents, 1), 1.0)
    return max(1, int(store.spec.batch_rows / rows_a_document))


def run_batch(
    connection: Connection,
    store: Store,
    wave: ledger.Wave,
    span: tuple[int, int],
    direction: Direction,
    lease: leases.Lease,
) -> tuple[int, BatchResult]:
    """One batch, retried with backoff and halved while locks are not to be had; returns the end it really did.

    Going forward the first part of ``span`` is kept when halving, going back the last. Raises RefusedError when even
    the smallest batch gets no locks.
    """
    first, last = span
    for attempt in range(1, MAX_TRIES + 1):
        plan = BatchPlan(wave.execution_id, wave.assessment_no, wave.wave, first, last)
        try:
            with connection.begin():
                batch.set_up(connection, "R")
                leases.hold(connection, lease)
                require_status(connection, wave, direction)
                result = batch.run(connection, store, plan, direction, lease)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in RETRIED:
                raise
            time.sleep(min(MAX_PAUSE_SECONDS, 0.1 * 2**attempt) * random.uniform(0.5, 1.0))
            first, last = halve(first, last, direction)
        else:
            return (last if direction is batch.FORWARD else first), result
    raise RefusedError(
        f"Wave {wave.wave} stopped at ordinals {first}-{last}: other transactions held their rows through "
        f"{MAX_TRIES} tries. What was committed stands; end the long transactions (see pg_stat_activity) and run again."
    )


def require_status(connection: Connection, wave: ledger.Wave, direction: Direction) -> None:
    """Raise RefusedError when the execution was superseded or turned round since the wave began."""
    status = ledger.execution(connection, wave.execution_id).status
    if status != ("running" if direction is batch.FORWARD else "rolling_back"):
        raise RefusedError(f"Execution {wave.execution_id} became {status} meanwhile; wave {wave.wave} stopped.")


def halve(first: int, last: int, direction: Direction) -> tuple[int, int]:
    """Half of a span, the half that comes first in the direction of travel; one ordinal stays one."""
    half = (last - first) // 2
    return (first, first + half) if direction is batch.FORWARD else (last - half, last)

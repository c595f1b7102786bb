"""Who writes, and what it says of its progress: the store's one writer, whose batches keep triggers out."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import earlier_store, ledger, sql
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine.altered import rebuilding, silencing, triggers
from uuid_pipeline.engine.altered.triggers import Tier
from uuid_pipeline.engine.batches import batch
from uuid_pipeline.engine.batches.batch import BatchResult
from uuid_pipeline.engine.installed import aliases
from uuid_pipeline.engine.lease import Lease
from uuid_pipeline.engine.store import Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import PipelineError


@dataclass(frozen=True)
class Progress:
    """How far a wave is: documents of its total, rows written, batches, seconds since this run began it.

    ``earlier``: documents that an interrupted run had done before. ``note`` says what it waits for, if it does.
    """

    wave: str
    documents: int
    total: int
    rows: int
    batches: int
    seconds: float
    note: str = ""
    earlier: int = 0

    @property
    def left(self) -> int:
        """Documents of the wave that no run has done."""
        return max(self.total - self.earlier - self.documents, 0)


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


@dataclass(frozen=True)
class Writer:
    """Who writes: a connection, the lease that it writes under, and how its batches keep triggers out.

    ``set_up``: a batch's settings. ``prove_lease``: how it proves that the lease is still this run's.
    """

    engine: Engine
    connection: Connection
    lease: Lease
    tier: Tier
    set_up: Callable[[Connection], None] = batch.set_up
    prove_lease: Callable[[Connection, Lease], None] = leases.prove

    def begin_batch(self) -> None:
        """Open a batch's transaction: its settings, then the lease, which must still be ours."""
        self.connection.begin()
        self.set_up(self.connection)
        triggers.silence(self.connection, self.tier.name)
        self.prove_lease(self.connection, self.lease)

    def keep_lease(self) -> None:
        """A sign of life while nothing is written."""
        with self.connection.begin():
            leases.hold(self.connection, self.lease)


@dataclass
class Tally:
    """What a run has done so far."""

    wave: ledger.Wave
    report: Report
    earlier: int = 0
    documents: int = 0
    batches: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def add(self, documents: int, result: BatchResult) -> None:
        self.documents, self.batches = self.documents + documents, self.batches + 1
        for table, count in result.tables.items():
            self.rows[table] = self.rows.get(table, 0) + count
        self.say("; ".join(result.notes))

    def say(self, note: str) -> None:
        done = self.rows.values()
        seconds, total = time.monotonic() - self.started, self.wave.documents
        # A sweep's ordinals have gaps, where it left clusters to the next plan.
        documents = max(min(self.documents, total - self.earlier), 0)
        self.report(Progress(self.wave.wave, documents, total, sum(done), self.batches, seconds, note, self.earlier))

    def run(self, dead_run: str | None) -> Run:
        seconds = time.monotonic() - self.started
        return Run(self.wave.wave, self.documents, self.rows, self.batches, seconds, dead_run)


@contextmanager
def writer(engine: Engine, store: Store, run_id: str) -> Iterator[Writer]:
    """The store's one writer while the block runs; puts back what it or a crashed one had altered.

    Triggers at once. Vector indexes at the end, whatever that is: the block may have more to write, and would drop
    them again.
    """
    with leases.held(engine, run_id) as (connection, lease):
        silencing.put_back(connection, lease)
        with connection.begin():
            tier = triggers.choose(connection, store)
        try:
            yield Writer(engine, connection, lease, tier)
        except rebuilding.NotBuiltError:
            raise  # tried just now
        except BaseException:
            rebuilding.put_back(engine, connection, lease, lambda _: None)
            raise
        rebuilding.put_back(engine, connection, lease, lambda _: None)


def put_back(engine: Engine, store: Store, run_id: str) -> list[str]:
    """Put back what a run that died had altered in the application's schema, and alias triggers that somebody dropped.

    Returns names of what that was. Raises RefusedError when another run is writing, whose own these are.
    """
    with engine.begin() as connection:
        left = [row.object for row in sql.rows(connection, "SELECT object FROM uuid_pipeline.altered ORDER BY 1")]
        moved = _as_moved(connection)
        in_force = ledger.assessments_in_force(connection)
        dropped = aliases.missing(connection, moved, in_force) if moved is not None else []
    if left or dropped:
        with writer(engine, store, run_id) as writing:  # it puts back by itself what was altered
            if moved is not None and dropped:
                aliases.install(engine, writing.lease, moved, in_force)
    return left + [f"alias trigger of {table}" for table in dropped]


def _as_moved(connection: Connection) -> Store | None:
    """The store as the newest execution knew it that has moved rows and is not final; None where there is none.

    Not by the spec of now: what that names besides is for a plan to say.
    """
    newest = sql.scalar(
        connection,
        """SELECT e.assessment_no FROM uuid_pipeline.executions e WHERE e.status <> 'finalized'
             AND EXISTS (SELECT FROM uuid_pipeline.batches b WHERE b.execution_id = e.execution_id)
           ORDER BY e.approved_at DESC LIMIT 1""",
    )
    try:
        return None if newest is None else earlier_store.store_of(connection, newest)
    except PipelineError:
        return None


@contextmanager
def silenced(writer: Writer) -> Iterator[None]:
    """The triggers that no setting keeps out have our condition while the block runs, and their own text after it."""
    silencing.guard(writer.connection, writer.lease, writer.tier.guarded)
    reach("guarded")
    try:
        yield
    finally:
        writer.connection.rollback()
        silencing.put_back(writer.connection, writer.lease)
        reach("put back")

"""A wave, carried out batch by batch: gates asked first, the lease held, resumed from the journal."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from queue import SimpleQueue

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import control, early, fingerprint, gates, ledger, ledger_rights, places, planning, sql, sweep
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine.altered import rebuilding, vector_indexes
from uuid_pipeline.engine.altered.triggers import Tier
from uuid_pipeline.engine.altered.vector_indexes import Span, VectorIndex
from uuid_pipeline.engine.backups import backup_gate
from uuid_pipeline.engine.batches import aside, batch, lanes, sizes, throttle
from uuid_pipeline.engine.batches.batch import BatchPlan, BatchResult
from uuid_pipeline.engine.batches.tries import RETRIED, leave_clusters, run_batch
from uuid_pipeline.engine.batches.writing import Report, Run, Tally, Writer, silenced, writer
from uuid_pipeline.engine.gates import Scope
from uuid_pipeline.engine.installed import aliases
from uuid_pipeline.engine.retrievals import retrieval
from uuid_pipeline.engine.store import Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import RefusedError, UnmergeableError

# Pauses before what was busy or locked is taken up again, at the end of a wave and of a sweep.
RETAKE_SECONDS = (0.2, 0.5, 1.0)
SWEEP_RETAKE_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
# More of these at the end of a sweep, for what is locked alone: somebody's transaction ends sooner than work does.
LOCKED_RETAKE_SECONDS = (4.0,) * 12


def run_wave(engine: Engine, store: Store, wave_name: str, run_id: str, report: Report) -> Run:
    """Move one wave's documents, or what an earlier run left of it.

    Raises RefusedError when a gate, the approval, the plan or the lease says no, BatchError when a proof failed.
    """
    with writer(engine, store, run_id) as writing:
        wave = _admitted(writing, store, wave_name)
        if wave.status != "planned" and not _waiting(writing, _waves_to_retake(writing, wave), aside.WAITING):
            return Tally(wave, report).run(writing.lease.dead_run)
        with writing.connection.begin():
            assessments = ledger.assessments_in_force(writing.connection)
        aliases.install(engine, writing.lease, store, assessments)
        reach("aliased")
        tally = Tally(wave, report)
        rebuilding.drop(writing.connection, writing.lease, _indexes_to_drop(writing, store, wave), tally.say)
        with silenced(writing):
            _loop(writing, store, tally)
            _retake(writing, store, tally)
            reach("waves done")
        rebuilding.put_back(engine, writing.connection, writing.lease, tally.say)
        with writing.connection.begin():
            leases.hold(writing.connection, writing.lease)
            ledger.set_wave_status(writing.connection, wave.wave, "moved")
            done = {"wave": wave.wave, "documents": tally.documents, "batches": tally.batches}
            ledger.audit(writing.connection, "moved", done)
        return tally.run(writing.lease.dead_run)


def _admitted(writing: Writer, store: Store, wave_name: str) -> ledger.Wave:
    """The wave, once the ledger says that it may write now, and a sweep has looked at what there is."""
    with writing.engine.connect().execution_options(isolation_level="REPEATABLE READ") as first, first.begin():
        leases.hold(first, writing.lease)
        wave = _admit(first, store, wave_name, writing.tier)
    reach("admitted")
    if wave.kind == "sweep" and wave.status == "planned":
        with writing.engine.connect().execution_options(isolation_level="REPEATABLE READ") as cutoff, cutoff.begin():
            leases.hold(cutoff, writing.lease)
            wave = sweep.prepare(cutoff, store, wave)
            reach("looked")
    reach("prepared")
    return wave


_NOTHING_TO_UNDO = ("rolled_back", "finalized")


def _closed(connection: Connection, execution: ledger.Execution) -> str:
    """Why an execution takes no wave any more, and what to do."""
    said = f"Refused: execution {execution.execution_id} is {execution.status}"
    newer = ledger.unfinished(connection)
    if newer is not None:
        return (
            f"{said}: plan {newer.plan_id} was approved by {newer.approved_by} since, as execution "
            f"{newer.execution_id} ({newer.status}). To go on with that one: uuid-pipeline run"
        )
    undo = ". To undo what it has moved: uuid-pipeline rollback --all"
    return f"{said}. Run: uuid-pipeline plan, then approve{'' if execution.status in _NOTHING_TO_UNDO else undo}"


def _admit(connection: Connection, store: Store, wave_name: str, tier: Tier) -> ledger.Wave:
    """Ask the ledger whether this wave may write now; the first one records the store as it was before."""
    wave = ledger.wave(connection, wave_name)
    execution = ledger.execution(connection, wave.execution_id)
    ledger_rights.require_owner(connection)
    if execution.status == "completed" and wave.status in ("moved", "unneeded"):
        return wave
    if execution.status not in ("approved", "running"):
        raise RefusedError(_closed(connection, execution))
    if execution.expired:
        raise RefusedError(
            f"Refused: the approval of plan {execution.plan_id} expired at {execution.expires_at:%Y-%m-%d %H:%M} UTC. "
            "Run: uuid-pipeline plan, and approve again."
        )
    control.require_not_paused(connection, execution.execution_id)
    plan = planning.of_assessment(connection, execution.assessment_no)
    planning.require_fresh(connection, store, plan)
    _require_tier(plan, tier)
    gates.require(connection, Scope(execution=execution.execution_id), gates.PLANNING_STAGES, f"wave {wave_name}")
    earlier = [w for w in ledger.waves(connection, execution.execution_id) if w.position < wave.position]
    for before in earlier:
        if before.status != "moved":
            raise RefusedError(f"Refused: wave {before.wave} comes before {wave_name} and is {before.status}.")
    gates.require_of_waves(connection, execution.execution_id, [w.wave for w in earlier], f"wave {wave_name}")
    if execution.status == "approved":
        planning.require_map_as_approved(connection, store, plan)
        backup_gate.require_before_first_wave(connection, store, execution, plan.content["catalog_digest"])
        _begin(connection, store, execution)
    return wave


def _require_tier(plan: planning.Plan, tier: Tier) -> None:
    if plan.content["tier"] != tier.name:
        raise RefusedError(
            f"Refused: plan {plan.plan_id} was made for tier {plan.content['tier']}, and this role has tier "
            f"{tier.name} ({tier.reason}). Connect as the role that planned, or plan again: uuid-pipeline plan"
        )


def _begin(connection: Connection, store: Store, execution: ledger.Execution) -> None:
    """Catalog, snapshot and fingerprints of one moment: this transaction is REPEATABLE READ."""
    sql.execute(
        connection,
        """UPDATE uuid_pipeline.executions SET catalog_before = %(catalog)s::jsonb,
               places_before = %(places)s::jsonb, snapshot_before = pg_current_snapshot()::text
           WHERE execution_id = %(id)s""",
        {
            "id": execution.execution_id,
            "catalog": json.dumps(catalogs.snapshot(connection, store.catalog)),
            "places": json.dumps(places.read(connection, [table.oid for table in store.catalog.tables.values()])),
        },
    )
    # Also what the application wrote since the plan: from the snapshot on, what it writes is seen to be its own.
    early.mark(connection, store, execution.assessment_no)
    fingerprint.take_before(connection, store, execution)
    retrieval.take_baseline(connection, store, execution)
    ledger.change_status(connection, execution.execution_id, "running")


def _loop(writing: Writer, store: Store, tally: Tally) -> None:
    wave = tally.wave
    size = sizes.read(writing.connection, store, wave)
    left = open_spans(writing.connection, wave)
    ready: list[lanes.Ordinals] = []
    tally.earlier = wave.last_ordinal - wave.first_ordinal + 1 - sum(last - first + 1 for first, last in left)
    last_check: float | None = None
    last_at_work: float | None = None
    waived = _waived_signals(writing.connection, wave)
    with _lanes(writing, store, wave, left, size.documents) as writers:
        while ready or left:
            if not ready:
                ready, left = sizes.next_batches(writing.connection, store, wave, size, left)
            control.obey(writing.connection, wave, writing.lease, tally.say)
            last_check = throttle.wait_until_healthy(
                writing.engine, store.spec.throttle, wave.wave, waived, last_check, writing.keep_lease, tally.say
            )
            if len(writers) > 1:
                last_at_work = lanes.last_at_work(writing.connection, last_at_work)
            alone = len(writers) > 1 and lanes.is_resting(last_at_work)
            count = len(writers) * lanes.BATCHES_A_ROUND if alone else 1
            ready = _run_batches(writing, writers, store, tally, ready[:count]) + ready[count:]


@contextmanager
def _lanes(
    writing: Writer, store: Store, wave: ledger.Wave, left: Sequence[lanes.Ordinals], size: int
) -> Iterator[list[Writer]]:
    """A writer for each batch that may be written at once, the lease's own connection among them."""
    # Behind a pooler the lease lives by signs of life, which batches that overlap would keep from being written.
    count = 1 if writing.lease.pooled else lanes.most(writing.connection, store, wave, left, size)
    more: list[Connection] = []
    with ExitStack() as stack:
        for _ in range(count - 1):
            try:
                own = stack.enter_context(writing.engine.connect())
            except DBAPIError:
                break  # The server has no session left for us: those that there are must do.
            more.append(own)
        at_rest = replace(writing, set_up=batch.set_up_at_rest, prove_lease=leases.share)
        yield [replace(at_rest, connection=own) for own in (writing.connection, *more)]


def _run_batches(
    writing: Writer, writers: Sequence[Writer], store: Store, tally: Tally, spans: Sequence[lanes.Ordinals]
) -> list[lanes.Ordinals]:
    """Carry out these batches, as many at once as there are writers; returns what halving left of them.

    Raises what the first of them raised, once none is at work any more.
    """
    if len(spans) == 1:
        done = run_batch(writing, store, tally.wave, spans[0], batch.FORWARD)
        reach("committed")
        return _counted(tally, spans[0], done)
    free: SimpleQueue[Writer] = SimpleQueue()
    for each in writers:
        free.put(each)

    def run(span: lanes.Ordinals) -> tuple[int, BatchResult]:
        mine = free.get()
        try:
            done = run_batch(mine, store, tally.wave, span, batch.FORWARD)
        finally:
            free.put(mine)
        reach("committed")
        return done

    writing.keep_lease()
    futures = lanes.at_once([partial(run, span) for span in spans], len(writers))
    left: list[lanes.Ordinals] = []
    for span, future in zip(spans, futures, strict=True):
        if not future.cancelled() and not future.exception():
            left += _counted(tally, span, future.result())
    for future in futures:
        if not future.cancelled():
            future.result()
    return left


def _counted(tally: Tally, span: lanes.Ordinals, done: tuple[int, BatchResult]) -> list[lanes.Ordinals]:
    """Count a committed batch; returns what it left of its span."""
    end, result = done
    tally.add(end - span[0] + 1, result)
    return [(end + 1, span[1])] if end < span[1] else []


def _indexes_to_drop(writing: Writer, store: Store, wave: ledger.Wave) -> list[VectorIndex]:
    """Vector indexes that the plan drops for this wave, if what is left of it is still worth that."""
    left = [Span(wave.assessment_no, *span) for span in open_spans(writing.connection, wave)]
    with writing.connection.begin():
        execution = ledger.execution(writing.connection, wave.execution_id)
        content = planning.of_assessment(writing.connection, execution.assessment_no).content
        name = wave.wave.removeprefix(f"{wave.execution_id}-")
        # A plan of an earlier version names none.
        planned = {(i["table"], i["index"]) for i in content.get("rebuilt_indexes", []) if name in i["waves"]}
        due = vector_indexes.due(writing.connection, store, left) if planned and left else []
    return [index for index in due if (index.place, index.name) in planned]


def _waived_signals(connection: Connection, wave: ledger.Wave) -> list[str]:
    """Signals that the plan was approved without, since this server cannot give them."""
    with connection.begin():
        execution = ledger.execution(connection, wave.execution_id)
        return list(planning.of_assessment(connection, execution.assessment_no).content["unreadable_signals"])


def _waves_to_retake(writing: Writer, wave: ledger.Wave) -> list[ledger.Wave]:
    """A sweep takes up what any wave left waiting, any other wave its own."""
    if wave.kind != "sweep":
        return [wave]
    with writing.connection.begin():
        return [w for w in ledger.waves(writing.connection, wave.execution_id) if w.position <= wave.position]


def _waiting(writing: Writer, waves: list[ledger.Wave], reasons: Sequence[str]) -> list[tuple[ledger.Wave, int]]:
    with writing.connection.begin():
        return aside.waiting(writing.connection, waves, reasons)


def _retake(writing: Writer, store: Store, tally: Tally) -> None:
    """Take up again, one by one, what was busy or locked; what stays so is counted and left to the next run."""
    if tally.wave.kind != "sweep":
        _retake_after(writing, store, tally, RETAKE_SECONDS, aside.WAITING)
        return
    _retake_after(writing, store, tally, SWEEP_RETAKE_SECONDS, aside.WAITING)
    _retake_after(writing, store, tally, LOCKED_RETAKE_SECONDS, ("locked",))


def _retake_after(writing: Writer, store: Store, tally: Tally, pauses: Sequence[float], reasons: Sequence[str]) -> None:
    waves = _waves_to_retake(writing, tally.wave)
    for pause in pauses:
        left = _waiting(writing, waves, reasons)
        if not left:
            return
        tally.say(f"{len(left)} documents are busy or locked; looking again")
        time.sleep(pause)
        for wave, ordinal in left:
            control.obey(writing.connection, wave, writing.lease, tally.say)
            one = (wave.execution_id, wave.assessment_no, wave.wave, ordinal, ordinal)
            plan = BatchPlan(*one, wary=True, patient=True)
            try:
                writing.begin_batch()
                aside.take_up(writing.connection, plan)
                result = batch.run(writing.connection, store, plan, batch.FORWARD, writing.lease)
                writing.connection.commit()
            except UnmergeableError as error:
                writing.connection.rollback()
                tally.say(leave_clusters(writing, store, wave, plan, error))
            except DBAPIError as error:
                writing.connection.rollback()
                if sql.sqlstate(error) not in RETRIED:
                    raise
            else:
                tally.add(0, result)


def open_spans(connection: Connection, wave: ledger.Wave) -> list[lanes.Ordinals]:
    """The ordinals of the wave that no committed batch has done, in order; of batches written at once some may lack."""
    spans = sql.rows(
        connection,
        """SELECT lower(span) AS first, upper(span) - 1 AS last
           FROM unnest(int8multirange(int8range(%(first)s, %(last)s + 1))
                       - coalesce((SELECT range_agg(int8range(first_ordinal, last_ordinal, '[]'))
                                   FROM uuid_pipeline.batches WHERE wave = %(wave)s AND direction = 'forward'), '{}'))
                AS span ORDER BY 1""",
        {"wave": wave.wave, "first": wave.first_ordinal, "last": wave.last_ordinal},
    )
    connection.rollback()
    return [(row.first, row.last) for row in spans]

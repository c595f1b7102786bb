"""Stage 7: one wave of the approved plan, carried out."""

import logging
import time

import dagster as dg

from uuid_pipeline.engine import lease, ledger, migration, validation
from uuid_pipeline.engine.batches.writing import Progress, Report
from uuid_pipeline.engine.proofs import dangling, exactness
from uuid_pipeline.engine.retrievals import retrieval
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.reports.progress import waited
from uuid_pipeline.reports.tables import pace
from uuid_pipeline.stages.checks import wave_check
from uuid_pipeline.stages.migration_plan import migration_plan
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import number, table

WAVES = dg.DynamicPartitionsDefinition(name="waves")
WRITER_POOL = "store_writer"
LOGGED_EVERY_SECONDS = 2.0
OBSERVED_EVERY_SECONDS = 10.0
_progress = logging.getLogger("uuid_pipeline.progress")


def progress_log(log: dg.DagsterLogManager) -> Report:
    """Reports progress to a run's log and to the logger's listeners, every two seconds and at the end."""
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        early = time.monotonic() - last < LOGGED_EVERY_SECONDS and progress.left > 0
        if early and not progress.note:
            return
        last = time.monotonic()
        message = describe(progress)
        log.info(message)
        _progress.info(message)

    return report


def progress_events(context: dg.AssetExecutionContext) -> Report:
    """Reports progress as :func:`progress_log` does, and every ten seconds as numbers that the UI plots."""
    log = progress_log(context.log)
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        log(progress)
        early = time.monotonic() - last < OBSERVED_EVERY_SECONDS and progress.left > 0
        if early and not progress.note:
            return
        last = time.monotonic()
        context.log_event(
            dg.AssetObservation(
                "migrated_documents",
                partition=progress.wave,
                description=describe(progress),
                metadata={
                    "documents": progress.earlier + progress.documents,
                    "documents_of": progress.total,
                    "rows": progress.rows,
                    "batches": progress.batches,
                    "documents_per_second": number(_rate(progress)),
                    "seconds_left": number(progress.left / max(_rate(progress), 0.001)),
                },
            )
        )

    return report


def _rate(progress: Progress) -> float:
    return progress.documents / max(progress.seconds, 0.001)


def describe(progress: Progress) -> str:
    """One line: what it waits for, or how far, how fast, how long still."""
    if progress.note:
        return progress.note
    rate = _rate(progress)
    done, left = progress.earlier + progress.documents, progress.left / max(rate, 0.001)
    return (
        f"{progress.wave}: {done} of {progress.total} documents, {progress.rows} rows in "
        f"{progress.batches} batches, {pace(rate)}, about {left:.0f} s left"
    )


def report_dead_run(context: dg.AssetExecutionContext | dg.OpExecutionContext, run_id: str | None) -> None:
    """A run whose process died stays "started" for ever; the one that takes its lease over says that it failed.

    Unless it is the same run: its step died with a worker, and was given to this one.
    """
    run = context.instance.get_run_by_id(run_id) if run_id and run_id != context.run.run_id else None
    if run is not None and not run.is_finished:
        context.instance.report_run_failed(run, message="The process of this run died; its lease was taken over.")


@dg.asset(
    deps=[migration_plan],
    partitions_def=WAVES,
    pool=WRITER_POOL,
    group_name="id_migration",
    kinds={"postgres"},
    tags={"writes": "store"},
    description="The documents of one wave under their target ids, with everything that refers to them.",
)
def migrated_documents(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
    with store.open() as (engine, bound):
        if not context.has_partition_key:
            raise RefusedError(
                "No wave was named. Choose the partition to move; status shows the waves in their order."
            )
        lease.await_earlier_attempt(engine, context.run.run_id)
        run = migration.run_wave(engine, bound, context.partition_key, context.run.run_id, progress_events(context))
        with engine.begin() as connection:
            waits = waited(connection, context.partition_key)
    report_dead_run(context, run.dead_run)
    return dg.MaterializeResult(
        metadata={
            "documents": run.documents,
            "batches": run.batches,
            "seconds": number(run.seconds),
            "documents_per_second": number(run.documents / max(run.seconds, 0.001)),
            "waited_seconds": number(float(sum(wait["seconds"] for wait in waits))),
            "waits": table(waits),
            "rows": sum(run.rows.values()),
            "rows_by_table": table([{"table": table, "rows": count} for table, count in run.rows.items()]),
        }
    )


CHECKS = [
    wave_check(
        "conservation", "Every planned document is counted: moved, merged or set aside.", WAVES, validation.conservation
    ),
    wave_check(
        "no_dangling_reference", "No reference holds an id that this wave moved away from.", WAVES,
        dangling.no_dangling_reference,
    ),
    wave_check(
        "ids_exact", "Each moved row has the id that its own columns give.", WAVES, exactness.ids_exact
    ),
    wave_check(
        "schema_unchanged", "Columns, constraints, indexes, triggers, policies and grants are as before.", WAVES,
        lambda connection, store, wave: validation.schema_unchanged(
            connection, store, ledger.execution(connection, wave.execution_id), "schema_unchanged"
        ),
    ),
    wave_check(
        "documents_retrievable", "Sampled documents are found by target id and by their owner's own query.", WAVES,
        retrieval.documents_retrievable,
    ),
]  # fmt: skip

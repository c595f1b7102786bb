"""Jobs for what re-keying cannot mend: list it, queue the approved list, undo the queueing."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from uuid_pipeline.engine.retrievals import regeneration
from uuid_pipeline.stages.session import StoreResource


class QueueConfig(dg.Config):
    """Which list to queue; its id stands in the metadata of unretrievable_documents."""

    list_id: str


@dg.op(description="Run the spec's regeneration statement for every document of the approved list, and record each.")
def queue_documents(context: dg.OpExecutionContext, config: QueueConfig, store: StoreResource) -> None:
    with store.open() as (engine, bound):
        snapshot = engine.connect().execution_options(isolation_level="REPEATABLE READ")
        with snapshot as connection, connection.begin():
            done = regeneration.queue(connection, bound, config.list_id)
    context.log.info(f"Queued {done.documents} documents of list {done.list_id}; untouched: {len(done.untouched)}")


@dg.op(description="Run the recorded undo for every document that was queued and not undone.")
def unqueue_documents(context: dg.OpExecutionContext, store: StoreResource) -> None:
    with store.open() as (engine, bound), engine.begin() as connection:
        done = regeneration.undo(connection, bound)
    context.log.info(f"Undone for {done.documents} documents; left: {len(done.left)}; no undo: {done.without_undo}")


@dg.job(executor_def=dg.in_process_executor, description="Queue what re-keying cannot mend, by the list's id.")
def regenerate() -> None:
    queue_documents()


@dg.job(executor_def=dg.in_process_executor, description="Take back what `regenerate` queued, where nobody has it yet.")
def undo_regeneration() -> None:
    unqueue_documents()


unretrievable = dg.define_asset_job(
    "unretrievable", dg.AssetSelection.assets("unretrievable_documents"), executor_def=dg.in_process_executor,
    description="List the documents that no re-keying can make retrievable.",
)  # fmt: skip

REGENERATION_JOBS: list[dg.JobDefinition | UnresolvedAssetJobDefinition] = [
    unretrievable,
    regenerate,
    undo_regeneration,
]

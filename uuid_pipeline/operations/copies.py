"""Jobs that work on copies of the store: take and prove a backup, rehearse."""

from typing import Any

import dagster as dg

from uuid_pipeline.engine.backups import backup
from uuid_pipeline.engine.rehearsals import rehearsal
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.stages.checks import EVALUATORS
from uuid_pipeline.stages.migrated_documents import progress_log
from uuid_pipeline.stages.session import StoreResource, failure, open_workshop
from uuid_pipeline.stages.shown import bullets
from uuid_pipeline.stages.store_backup import described


@dg.op(description="Take a backup, restore it into a scratch database, compare.")
def take_backup(context: dg.OpExecutionContext, store: StoreResource) -> None:
    with store.open() as (engine, bound), open_workshop() as workshop:
        made = backup.take(engine, bound, workshop)
    context.log_event(dg.AssetObservation("store_backup", description="taken by itself", metadata=described(made)))
    if not made.equal:
        raise failure(RefusedError(f"Backup {made.number} was restored and differs: {'; '.join(made.differences)}"))


@dg.job(
    name="backup",
    executor_def=dg.in_process_executor,
    description="Take a new backup now and prove it by restoring it; no plan is needed.",
)
def backup_job() -> None:
    take_backup()


class RehearseConfig(dg.Config):
    """``users``: on so many users' documents only; 0: as the spec says, which is all unless it names a number."""

    users: int = 0


@dg.op(description="The whole migration and its rollback on a restored copy.")
def rehearse_migration(context: dg.OpExecutionContext, config: RehearseConfig, store: StoreResource) -> None:
    with store.open() as (engine, bound), open_workshop() as workshop:
        users = config.users or bound.spec.rehearsal.users
        made = rehearsal.rehearse(engine, bound, workshop, EVALUATORS, users, progress_log(context.log))
    metadata: dict[str, Any] = {
        "rehearsal": made.number, "passed": made.passed, "documents": made.documents, "rows": made.rows,
        "seconds": round(made.seconds, 2), "rollback_seconds": round(made.rollback_seconds, 2),
        "rows_a_second": round(made.rows_a_second), "tier": made.tier, "rehearsed_on": made.rehearsed_on,
        "differences": bullets(made.differences),
        "left_out": bullets(made.left_out),
    }  # fmt: skip
    context.log_event(dg.AssetObservation("migration_plan", description="rehearsed", metadata=metadata))
    if not made.passed:
        said = "\n".join([f"{rehearsal.described(made)}:", *[f"  {line}" for line in made.differences]])
        raise failure(RefusedError(said))


@dg.job(
    name="rehearse",
    executor_def=dg.in_process_executor,
    description="Migrate and roll back a restored copy of the store, and compare every row.",
)
def rehearse_job() -> None:
    rehearse_migration()


COPY_JOBS = [backup_job, rehearse_job]

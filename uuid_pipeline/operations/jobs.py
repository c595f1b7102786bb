"""The jobs: what people and the command line run."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from uuid_pipeline.engine import approval, lease, ledger, planning, rollback
from uuid_pipeline.engine.backups import backup_gate
from uuid_pipeline.operations.control import CONTROL_JOBS
from uuid_pipeline.operations.copies import COPY_JOBS
from uuid_pipeline.operations.executor import stage_executor
from uuid_pipeline.operations.guard import GUARD_JOBS
from uuid_pipeline.operations.keeping import retention_job
from uuid_pipeline.operations.notices import notices_job
from uuid_pipeline.operations.regeneration import REGENERATION_JOBS
from uuid_pipeline.stages.migrated_documents import WAVES, WRITER_POOL, progress_log, report_dead_run
from uuid_pipeline.stages.session import StoreResource
from uuid_pipeline.stages.shown import table

ASSESSED = ("store_profile", "document_inventory", "duplicate_clusters")
PLANNED = (*ASSESSED, "id_mapping", "store_backup", "migration_plan")
STAGES = stage_executor()


def _assets(*names: str) -> dg.AssetSelection:
    return dg.AssetSelection.assets(*names)


assess = dg.define_asset_job(
    "assess", _assets(*ASSESSED), executor_def=STAGES,
    description="Look at the store: profile, inventory, duplicates. Writes to the ledger only.",
)  # fmt: skip
profile_store = dg.define_asset_job(
    "profile", _assets("store_profile"), executor_def=STAGES,
    description="Only the first stage of assess: the store's catalogs.",
)  # fmt: skip
take_inventory = dg.define_asset_job(
    "inventory", _assets("store_profile", "document_inventory"), executor_def=STAGES,
    description="The first two stages of assess: catalogs and documents.",
)  # fmt: skip
plan = dg.define_asset_job(
    "plan", _assets(*PLANNED), executor_def=STAGES,
    description="Assess, map and plan: ends with a plan id for a person to approve.",
)  # fmt: skip
migrate = dg.define_asset_job(
    "migrate", _assets("migrated_documents"), executor_def=STAGES,
    description="Carry out one wave of the approved plan; waves go in their order.",
)  # fmt: skip
validate = dg.define_asset_job(
    "validate", _assets("validation_report"), executor_def=STAGES,
    description="The whole store against the state before; completes the execution when all is green.",
)  # fmt: skip
certify = dg.define_asset_job(
    "certify", _assets("determinism_certificate"), executor_def=dg.in_process_executor,
    description="The determinism certificate: every id made again by two implementations that share no code.",
)  # fmt: skip


report = dg.define_asset_job(
    "report", _assets("completion_report"), executor_def=dg.in_process_executor,
    description="Write the HTML report with production readiness: to the home, or where its config says. Reads only.",
)  # fmt: skip


health = dg.define_asset_job(
    "health", _assets("uuid_health"), executor_def=dg.in_process_executor,
    description="One look at the store's health: figures, checks, history.",
)  # fmt: skip
review_aliases = dg.define_asset_job(
    "review_aliases", _assets("alias_review"), executor_def=dg.in_process_executor,
    description="Whether old ids are still in use, and what the guard has caught.",
)  # fmt: skip


class ApproveConfig(dg.Config):
    """Which plan to approve; the id stands in the metadata of migration_plan.

    Where the spec says ``backup: attested``: the name of the provider's snapshot, and when it was taken.
    ``assessment``: of several plans with that id the one of this assessment; 0 means the newest.
    """

    plan_id: str
    assessment: int = 0
    attest: str = ""
    attested_at: str = ""


@dg.op(description="Approve a plan: begin an execution, and make its waves partitions of migrated_documents.")
def approve_plan(context: dg.OpExecutionContext, config: ApproveConfig, store: StoreResource) -> None:
    with store.open() as (engine, bound), engine.begin() as connection:
        attested = backup_gate.attestation(config.attest, config.attested_at)
        execution = approval.approve(connection, bound, config.plan_id, attested, config.assessment or None)
        for risk in planning.of_assessment(connection, execution.assessment_no).content["risks"]:
            context.log.warning(f"Approved with the risk: {risk}")
        waves = [wave.wave for wave in ledger.waves(connection, execution.execution_id)]
    context.instance.add_dynamic_partitions(str(WAVES.name), waves)
    context.log.info(f"Execution {execution.execution_id}: waves {', '.join(waves)}")


@dg.job(executor_def=dg.in_process_executor, description="Approve a plan by its id.")
def approve() -> None:
    approve_plan()


class RollbackConfig(dg.Config):
    """``wave``: a wave's name or kind; ``interrupted``: only what a crash left; neither: every moved wave."""

    wave: str = ""
    interrupted: bool = False


@dg.op(pool=WRITER_POOL, description="Give moved rows their old ids again, last wave first.")
def roll_back_waves(context: dg.OpExecutionContext, config: RollbackConfig, store: StoreResource) -> None:
    with store.open_to_undo() as (engine, bound):
        lease.await_earlier_attempt(engine, context.run.run_id)
        with engine.begin() as connection:
            waves = (
                rollback.interrupted(connection)
                if config.interrupted
                else rollback.choose(connection, config.wave or None)
            )
        if config.wave and not waves:
            context.log.info(f"Nothing to roll back: no row is under a new id of wave {config.wave}.")
            return
        runs = rollback.roll_back(engine, bound, waves, context.run.run_id, progress_log(context.log))
    for run in runs:
        report_dead_run(context, run.dead_run)
        context.log_event(
            dg.AssetObservation(
                "migrated_documents",
                partition=run.wave,
                description="rolled back: these documents have their old ids again",
                metadata={
                    "documents": run.documents,
                    "rows_by_table": table([{"table": table, "rows": count} for table, count in run.rows.items()]),
                },
            )
        )


@dg.job(name="rollback", executor_def=STAGES, description="Undo one wave, or all of them.")
def rollback_job() -> None:
    roll_back_waves()


JOBS: list[dg.JobDefinition | UnresolvedAssetJobDefinition] = [
    assess,
    profile_store,
    take_inventory,
    plan,
    approve,
    migrate,
    validate,
    certify,
    report,
    rollback_job,
    *COPY_JOBS,
    notices_job,
    health,
    review_aliases,
    retention_job,
    *CONTROL_JOBS,
    *REGENERATION_JOBS,
    *GUARD_JOBS,
]

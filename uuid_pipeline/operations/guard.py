"""Jobs that install the guard and take it away."""

import dagster as dg
from pydantic import Field

from uuid_pipeline.engine.installed import guard
from uuid_pipeline.stages.session import StoreResource


class GuardConfig(dg.Config):
    """``mode``: warn, rewrite or reject. ``entities``: none means all."""

    mode: str = "warn"
    entities: list[str] = Field(default_factory=list)


@dg.op(description="A trigger on each entity's table that looks at the id of every new row.")
def install_guard(context: dg.OpExecutionContext, config: GuardConfig, store: StoreResource) -> None:
    with store.open() as (engine, bound):
        names = guard.install(engine, bound, guard.mode_of(config.mode), config.entities, context.run.run_id)
    context.log.info(f"Guarded ({config.mode}): {', '.join(names)}")


@dg.op(description="Take every guard away; what it counted stays in the ledger.")
def remove_guard(context: dg.OpExecutionContext, store: StoreResource) -> None:
    with store.open() as (engine, bound):
        names = guard.remove(engine, bound, context.run.run_id)
    context.log.info(f"No longer guarded: {', '.join(names) or 'nothing was'}")


@dg.job(
    name="guard_install",
    executor_def=dg.in_process_executor,
    description="Warn of new ids that their natural key does not give, rewrite them, or reject them.",
)
def guard_install_job() -> None:
    install_guard()


@dg.job(name="guard_remove", executor_def=dg.in_process_executor, description="Remove the guard without a trace.")
def guard_remove_job() -> None:
    remove_guard()


GUARD_JOBS = [guard_install_job, guard_remove_job]

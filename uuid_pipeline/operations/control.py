"""Jobs that steer an execution, or end it: pause, resume, cancel, finalize."""

from collections.abc import Callable

import dagster as dg
from sqlalchemy import Connection

from uuid_pipeline.engine import control, finalizing, ledger
from uuid_pipeline.stages.session import StoreResource


def _steering(name: str, description: str, act: Callable[[Connection], ledger.Execution]) -> dg.JobDefinition:
    @dg.op(name=f"{name}_execution", description=description)
    def steer(context: dg.OpExecutionContext, store: StoreResource) -> None:
        with store.open() as (engine, _), engine.begin() as connection:
            execution = act(connection)
        context.log.info(f"Execution {execution.execution_id}: asked to {name}; it is {execution.status}")

    @dg.job(name=name, executor_def=dg.in_process_executor, description=description)
    def steering() -> None:
        steer()

    return steering


class Finalizing(dg.Config):
    """``despite_red_gates``: also where a gate on rows is red, which could then no longer be rolled back."""

    despite_red_gates: bool = False


@dg.op(description="Remove the aliases and close every execution for good.")
def finalize_executions(context: dg.OpExecutionContext, config: Finalizing, store: StoreResource) -> None:
    with store.open() as (engine, bound):
        if not config.despite_red_gates:
            with engine.begin() as connection:
                finalizing.require_green(connection)
        ended = finalizing.finalize(engine, bound, context.run.run_id)
    context.log.info(f"Finalized: {', '.join(ended) or 'no execution'}; the aliases are gone")


@dg.job(
    name="finalize",
    executor_def=dg.in_process_executor,
    description="Remove the aliases: after this nothing can be rolled back. Refused while old ids are in use.",
)
def finalize_job() -> None:
    finalize_executions()


CONTROL_JOBS = [
    _steering("pause", "Let the running execution wait after its current batch.", control.pause),
    _steering("resume", "Let a paused execution go on.", control.resume),
    _steering("cancel", "End the open execution after its batch; what moved can be rolled back.", control.cancel),
    finalize_job,
]

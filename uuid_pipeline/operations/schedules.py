"""What runs by itself: health, the nightly assessment, the weekly validation and alias review; times from the spec.

On by default for the embedded demo store alone: on anybody's own store, work that nobody asked for would surprise.
"""

from collections.abc import Callable

import dagster as dg

from uuid_pipeline.engine import ledger, validation
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.settings import read_settings
from uuid_pipeline.spec import Schedules, load_spec
from uuid_pipeline.stages.session import StoreResource

Evaluate = Callable[[dg.ScheduleEvaluationContext], dg.RunRequest | dg.SkipReason]
AT_WORK = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def _running(context: dg.ScheduleEvaluationContext, job: str) -> bool:
    return bool(context.instance.get_runs(dg.RunsFilter(job_name=job, statuses=AT_WORK), limit=1))


def _one_at_a_time(job: str, hindrance: Callable[[], str | None] = lambda: None) -> Evaluate:
    def evaluate(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if _running(context, job):
            return dg.SkipReason(f"The run of {job} before this one has not ended.")
        try:
            reason = hindrance()
        except dg.Failure as failed:
            reason = failed.description
        return dg.SkipReason(reason) if reason else dg.RunRequest()

    return evaluate


def while_an_execution_is_open() -> str | None:
    """Why an assessment would be in the way now; None when it would not."""
    with StoreResource().open() as (engine, _), engine.begin() as connection:
        execution = ledger.unfinished(connection)
    return f"Execution {execution.execution_id} is {execution.status}; its plan stands." if execution else None


def unless_something_is_migrated() -> str | None:
    """Why there is nothing to validate; None when there is: the newest execution that stands is completed."""
    with StoreResource().open() as (engine, _), engine.begin() as connection:
        try:
            execution = validation.subject(connection)
        except RefusedError as refused:
            return refused.message
    return None if execution.status == "completed" else f"Execution {execution.execution_id} is {execution.status}."


def build(wanted: Schedules, status: dg.DefaultScheduleStatus) -> list[dg.ScheduleDefinition]:
    """The schedules that the spec gives a time."""
    every = (
        ("health", wanted.health, _one_at_a_time("health"), "One look at the store's health."),
        ("assess", wanted.assessment, _one_at_a_time("assess", while_an_execution_is_open), "Assess the store anew."),
        ("validate", wanted.validation, _one_at_a_time("validate", unless_something_is_migrated),
         "The whole store against its state before the migration."),
        ("review_aliases", wanted.alias_review, _one_at_a_time("review_aliases"),
         "Whether old ids are still in use, and what the guard has caught."),
    )  # fmt: skip
    return [
        dg.ScheduleDefinition(
            name=f"{job}_schedule",
            job_name=job,
            cron_schedule=cron,
            execution_timezone=wanted.timezone,
            execution_fn=evaluate,
            default_status=status,
            description=description,
        )
        for job, cron, evaluate, description in every
        if cron is not None
    ]


def configured() -> list[dg.ScheduleDefinition]:
    """By this process's environment. A spec that cannot be read is every stage's error to report, not ours."""
    settings = read_settings()
    try:
        wanted = load_spec(settings.spec).schedules
    except UsageError:
        wanted = Schedules()
    on = settings.database_url is None
    return build(wanted, dg.DefaultScheduleStatus.RUNNING if on else dg.DefaultScheduleStatus.STOPPED)

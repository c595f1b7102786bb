"""Running a job in this process, on the same instance as the UI, and reading what came of it."""

import errno
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.errors import DagsterExecutionInterruptedError

from uuid_pipeline.errors import InterruptedRunError, PipelineError, RefusedError, UsageError
from uuid_pipeline.operations import long_steps
from uuid_pipeline.operations.executor import on_workers

# Of use to report_dead_runs only: tags below this prefix are shown to nobody.
MACHINE_TAG = ".dagster/uuid_pipeline_machine"
PROCESS_TAG = ".dagster/uuid_pipeline_process"
PARTITION_TAG = "dagster/partition"


@dataclass(frozen=True)
class CheckOutcome:
    asset: str
    gate: str
    passed: bool
    description: str


@dataclass(frozen=True)
class Outcome:
    """Of one run: its id, its gates, and the error that ended it, if any."""

    run_id: str
    success: bool
    checks: tuple[CheckOutcome, ...]
    error: PipelineError | None


def run_job(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str,
    partition: str | None = None,
    ops: Mapping[str, Any] | None = None,
    *,
    say: Callable[[str], None],
) -> Outcome:
    """Run a job to its end. Its errors are returned, not raised; the console logger is kept quiet.

    ``say`` is told of steps of this process that take long.
    """
    run_config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    if ops:
        run_config["ops"] = {name: {"config": dict(config)} for name, config in ops.items()}
    tags = {MACHINE_TAG: _machine(), PROCESS_TAG: _process(os.getpid())}
    result: dg.ExecuteInProcessResult | dg.JobExecutionResult
    if on_workers():
        result = _run_on_workers(instance, job, run_config, tags | ({PARTITION_TAG: partition} if partition else {}))
    else:
        run_id = str(uuid.uuid4())
        with long_steps.told(instance, run_id, say):
            result = defs.resolve_job_def(job).execute_in_process(
                instance=instance, run_config=run_config, partition_key=partition, tags=tags, raise_on_error=False,
                run_id=run_id,
            )  # fmt: skip
    checks = tuple(
        CheckOutcome(
            evaluation.asset_key.to_user_string(),
            evaluation.check_name,
            evaluation.passed,
            evaluation.description or "",
        )
        for evaluation in result.get_asset_check_evaluations()
    )
    return Outcome(result.run_id, result.success, checks, None if result.success else _error(result, checks))


def _run_on_workers(
    instance: dg.DagsterInstance, job: str, run_config: dict[str, Any], tags: Mapping[str, str]
) -> dg.JobExecutionResult:
    """Run a job by its own executor: this process hands its steps out and waits for them."""
    where = ReconstructableRepository.for_module("uuid_pipeline.definitions", "defs")
    return dg.execute_job(
        ReconstructableJob(repository=where, job_name=job), instance=instance, run_config=run_config, tags=tags
    )


def _error(
    result: dg.ExecuteInProcessResult | dg.JobExecutionResult, checks: tuple[CheckOutcome, ...]
) -> PipelineError:
    """The first failure in words: ours if an engine error, else the red gates, else Dagster's own message.

    An interruption comes before all of these: what was going on then fails in ways that say nothing.
    """
    if any(interrupted(event) for event in result.all_events):
        return InterruptedRunError()
    for event in result.all_events:
        if event.event_type != dg.DagsterEventType.STEP_FAILURE:
            continue
        failure = event.step_failure_data.user_failure_data
        if failure is not None:
            code = failure.metadata["exit_code"].value if "exit_code" in failure.metadata else 1
            message = failure.description or "failed"
            return UsageError(message) if code == 2 else RefusedError(message)
    red = [check for check in checks if not check.passed]
    if red:
        lines = [f"  {check.asset}.{check.gate}: {check.description}" for check in red]
        return RefusedError("\n".join(["A gate did not pass:", *lines]))
    for event in result.all_events:
        if event.event_type == dg.DagsterEventType.STEP_FAILURE and event.step_failure_data.error is not None:
            cause = event.step_failure_data.error
            while cause.cause is not None:
                cause = cause.cause
            room = _NO_ROOM if os.strerror(errno.ENOSPC) in cause.message and cause.cls_name == "OSError" else ""
            return RefusedError(
                f"The run {result.run_id} failed: {cause.message.strip()}. {room}See it in: uuid-pipeline ui"
            )
    return RefusedError(f"The run {result.run_id} failed. See it in: uuid-pipeline ui")


_NO_ROOM = "Make room on the disk of the home (UUID_PIPELINE_HOME), and run again: what was committed stands. "


def interrupted(event: dg.DagsterEvent) -> bool:
    """Whether a run, or a step of it, failed because somebody asked it to end."""
    if event.event_type == dg.DagsterEventType.RUN_FAILURE:
        return "Execution was interrupted" in (event.message or "")
    if event.event_type != dg.DagsterEventType.STEP_FAILURE:
        return False
    errors = [event.step_failure_data.error]
    while errors:
        error = errors.pop()
        if error is not None:
            if error.cls_name == DagsterExecutionInterruptedError.__name__:
                return True
            errors += [error.cause, error.context]
    return False


def report_dead_runs(instance: dg.DagsterInstance) -> None:
    """Runs of the command line stay "started" for ever when their process is killed: say that they failed."""
    statuses = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED]
    unfinished = dg.RunsFilter(statuses=statuses, tags={MACHINE_TAG: _machine()})
    for run in instance.get_runs(unfinished):
        process = run.tags.get(PROCESS_TAG, "")
        if process and process != _process(int(process.split()[0])):
            instance.report_run_failed(run, message="The process of this run died.")


def _machine() -> str:
    """Where a process id means something: this host, and on Linux this namespace of process ids."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.readlink() if namespace.is_symlink() else ''}".strip()


def _process(pid: int) -> str:
    """A process id with its start time where that is to be had: ids are reused. Empty when there is no such process."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError:
        return ""
    except OSError:
        return str(pid)
    return "" if state[0] == "Z" else f"{pid} {state[19]}"

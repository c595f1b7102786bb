"""What happened, read from Dagster's event log: evaluations of checks, and runs that failed."""

import itertools
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import is_reserved_asset_job_name
from dagster._core.storage.tags import PARTITION_NAME_TAG

from uuid_pipeline.errors import InterruptedRunError
from uuid_pipeline.operations.alerts.decision import Evaluation, FailedRun
from uuid_pipeline.operations.runs import interrupted
from uuid_pipeline.settings import read_settings, without_secrets

# Evaluated by the alerts themselves: an alert about them would go where the failed one could not.
OWN_ASSET = "alerts"
EVENTS_A_TICK = 500
# An event gets its number before its transaction ends: one that is seen so soon may have a lower one behind it.
SETTLED_SECONDS = 2.0


def newest(instance: dg.DagsterInstance) -> int:
    """The last event's storage id: a sensor that starts has nothing to say about what was before."""
    return instance.event_log_storage.get_maximum_record_id() or 0


def evaluations(instance: dg.DagsterInstance, after: int) -> tuple[list[Evaluation], int]:
    """Evaluations after an event, in order, and the event read to."""
    kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    records = instance.event_log_storage.get_event_records(
        dg.EventRecordsFilter(event_type=kind, after_cursor=after), limit=EVENTS_A_TICK, ascending=True
    )
    found = [_evaluation(record) for record in _settled(records)]
    return [one for one in found if one.asset != OWN_ASSET], max([after, *[one.event for one in found]])


def _settled(records: Sequence[dg.EventLogRecord]) -> list[dg.EventLogRecord]:
    """The records before the first one that is too new: the cursor must not pass what is not visible yet."""
    newest = time.time() - SETTLED_SECONDS
    return list(itertools.takewhile(lambda record: record.event_log_entry.timestamp <= newest, records))


def _evaluation(record: dg.EventLogRecord) -> Evaluation:
    entry = record.event_log_entry
    data: Any = entry.dagster_event.event_specific_data if entry.dagster_event else None
    metadata = {name: value.value for name, value in data.metadata.items()}
    warns = data.severity == dg.AssetCheckSeverity.WARN
    return Evaluation(
        event=record.storage_id,
        asset=data.asset_key.to_user_string(),
        check=data.check_name,
        partition=data.partition,
        passed=data.passed,
        severity=str(metadata.get("severity") or ("warning" if warns else "error")),
        finding=data.description or "",
        run_id=entry.run_id,
        at=entry.timestamp,
        figure=_number(metadata.get("figure")),
        threshold=_number(metadata.get("threshold")),
        runbook=_text(metadata.get("runbook")),
        since=_seconds(metadata.get("failing_since")),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _seconds(value: object) -> float | None:
    return datetime.fromisoformat(str(value)).timestamp() if value else None


def _text(value: object) -> str | None:
    return str(value) if value else None


def failed_runs(instance: dg.DagsterInstance, after: int) -> tuple[list[FailedRun], int]:
    """Runs that failed after an event, and the event read to.

    One that failed because a blocking check did is left to the alert about that check.
    """
    failures = dg.EventRecordsFilter(event_type=dg.DagsterEventType.RUN_FAILURE, after_cursor=after)
    records = _settled(instance.event_log_storage.get_event_records(failures, limit=EVENTS_A_TICK, ascending=True))
    last = max([after, *[record.storage_id for record in records]])
    return [_failed_run(instance, record) for record in records if not _failed_by_check(instance, record)], last


def _failed_by_check(instance: dg.DagsterInstance, record: dg.EventLogRecord) -> bool:
    checks: Any = instance.all_logs(record.event_log_entry.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.event_specific_data for entry in checks]
    return any(not check.passed and check.severity == dg.AssetCheckSeverity.ERROR for check in found)


def _failed_run(instance: dg.DagsterInstance, record: dg.EventLogRecord) -> FailedRun:
    entry = record.event_log_entry
    run = instance.get_run_by_id(entry.run_id)
    return FailedRun(
        event=record.storage_id,
        run_id=entry.run_id,
        subject=_subject(run) if run else "a run",
        message=_reason(instance, entry),
        at=entry.timestamp,
    )


def _subject(run: dg.DagsterRun) -> str:
    """What ran, as people started it: the job of an asset materialized by itself is Dagster's own."""
    assets = sorted(key.to_user_string() for key in run.asset_selection or ())
    started = f"job {run.job_name}" if not is_reserved_asset_job_name(run.job_name) else ", ".join(assets)
    partition = run.tags.get(PARTITION_NAME_TAG)
    return f"{started or 'a run'} [{partition}]" if partition else started or "a run"


def _reason(instance: dg.DagsterInstance, entry: dg.EventLogEntry) -> str:
    """Why the run failed: the first failed step's own words, else the run's."""
    steps: Any = instance.all_logs(entry.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    for step in steps:
        if interrupted(step.dagster_event):
            return InterruptedRunError().message
        failure = step.dagster_event.event_specific_data
        if failure.user_failure_data and failure.user_failure_data.description:
            return _shown(failure.user_failure_data.description)
        if failure.error:
            return _shown(failure.error.message)
    return _shown((entry.dagster_event.message if entry.dagster_event else None) or "no reason given")


def _shown(text: str) -> str:
    settings = read_settings()
    return without_secrets(text.strip(), settings.database_url, settings.dagster_url)[:2000]

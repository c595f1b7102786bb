"""The two sensors: failed and recovered checks, failed runs. Their cursor is their memory: a restart repeats nothing.

A message that was sent just before the daemon was killed may come twice: its number, in the text, is the same.
"""

import os
import time
from collections.abc import Callable

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorState

from uuid_pipeline.errors import UsageError
from uuid_pipeline.operations import sending
from uuid_pipeline.operations.alerts import events
from uuid_pipeline.operations.alerts.decision import Alert, State, cut, enqueue, of_checks, of_run
from uuid_pipeline.operations.alerts.delivery import (
    CHANNELS_VARIABLE,
    channels,
    deliver,
    delivered_check,
    observation,
)
from uuid_pipeline.settings import read_settings

INTERVAL_SECONDS = 30
# Below the minute that Dagster grants a sensor.
DELIVERY_SECONDS = 40.0
DEFAULT_UI = "http://127.0.0.1:3000"

Look = Callable[[dg.DagsterInstance, State], tuple[State, list[Alert]]]

# The asset's name is in the events that these sensors write.
ALERTS = dg.AssetSpec(
    events.OWN_ASSET,
    deps=["uuid_health"],
    group_name="health",
    kinds={"apprise"},
    description="Every alert, with the channels that took it; failed checks once, recoveries once, failed runs once.",
)


def look_at_checks(instance: dg.DagsterInstance, state: State) -> tuple[State, list[Alert]]:
    """What checks say since the last tick."""
    found, last = events.evaluations(instance, state.after or 0)
    failing, alerts = of_checks(state.failing, found)
    return state.model_copy(update={"after": last, "failing": failing}), alerts


def look_at_runs(instance: dg.DagsterInstance, state: State) -> tuple[State, list[Alert]]:
    """Which runs failed since the last tick."""
    found, last = events.failed_runs(instance, state.after or 0)
    return state.model_copy(update={"after": last}), [of_run(run) for run in found]


def tick(instance: dg.DagsterInstance, cursor: str | None, look: Look) -> dg.SensorResult | dg.SkipReason:
    """Look, send what is due, remember the rest."""
    state = State.model_validate_json(cursor) if cursor else State(after=events.newest(instance))
    state, alerts = look(instance, state)
    named = _channels()
    ui = os.environ.get("UUID_PIPELINE_UI_URL") or DEFAULT_UI
    outbox = enqueue(state.outbox, alerts, list(named))
    left, attempts = deliver(outbox, named, ui, time.monotonic() + DELIVERY_SECONDS)
    kept, given_up = cut(left)
    state = state.model_copy(update={"outbox": kept})
    shown: list[dg.AssetObservation | dg.AssetCheckEvaluation] = [observation(attempt, ui) for attempt in attempts]
    if alerts or attempts or given_up:
        shown.append(delivered_check(kept, given_up, named))
    said = _said(alerts, named, len(kept))
    return dg.SensorResult(cursor=state.model_dump_json(), asset_events=shown, skip_reason=said)


def _channels() -> dict[str, str]:
    try:
        return channels(sending.urls(CHANNELS_VARIABLE))
    except UsageError:
        return {}


def _said(alerts: list[Alert], named: dict[str, str], waiting: int) -> str:
    if alerts and not named:
        subjects = ", ".join(alert.subject for alert in alerts)
        return f"Not sent, since {CHANNELS_VARIABLE} names no channel: {subjects}"
    return f"{len(alerts)} new alerts; {waiting} wait for a channel"


def _status() -> dg.DefaultSensorStatus:
    """On where channels are configured, and on the embedded demo store."""
    wanted = read_settings().database_url is None or bool(_channels())
    return dg.DefaultSensorStatus.RUNNING if wanted else dg.DefaultSensorStatus.STOPPED


def _sensor(name: str, description: str, look: Look) -> dg.SensorDefinition:
    @dg.sensor(name=name, description=description, minimum_interval_seconds=INTERVAL_SECONDS, default_status=_status())
    def alert(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return tick(context.instance, context.cursor, look)

    return alert


@dg.asset_check(asset=events.OWN_ASSET, description="Every alert has reached every channel.")
def alerts_delivered(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    waiting = [
        outgoing
        for remembered in context.instance.all_instigator_state()
        if remembered.name in {sensor.name for sensor in SENSORS}
        for outgoing in _remembered(remembered).outbox
    ]
    evaluation = delivered_check(waiting, [], _channels())
    return dg.AssetCheckResult(
        passed=evaluation.passed,
        severity=evaluation.severity,
        description=evaluation.description,
        metadata=evaluation.metadata,
    )


def _remembered(instigator: InstigatorState) -> State:
    cursor = getattr(instigator.instigator_data, "cursor", None)
    return State.model_validate_json(cursor) if cursor else State()


SENSORS = [
    _sensor("alert_checks", "Sends each failed check once, and each recovery.", look_at_checks),
    _sensor("alert_failed_runs", "Sends each failed run once, unless a check that failed tells it.", look_at_runs),
]

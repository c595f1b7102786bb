"""The sensors on a real instance, with real runs behind them and real receivers before them."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from email import message_from_string, policy

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

from uuid_pipeline.operations.alerts import delivery, events, sensors
from uuid_pipeline.operations.alerts.decision import State
from uuid_pipeline_tests.receivers import Received, smtp, webhook

VERDICT = {"passed": True}


@dg.asset
def measured() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult()


@dg.asset_check(asset=measured)
def small_enough() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=VERDICT["passed"],
        description="7 % of the ids differ",
        metadata={"severity": "critical", "figure": 0.07, "threshold": 0.01, "runbook": "docs/runbook/mismatch.md"},
    )


@dg.asset
def broken() -> dg.MaterializeResult[None]:
    raise dg.Failure("the store said no: password=hunter2secret")


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["canary"]))
def interrupted() -> dg.MaterializeResult[None]:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    return dg.MaterializeResult()


@dg.asset_check(asset=measured, blocking=True)
def gate() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, description="red on purpose")


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Where nobody else writes, every event is there when it is looked for."""
    monkeypatch.setattr(events, "SETTLED_SECONDS", 0.0)
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with webhook() as state:
        monkeypatch.setenv("UUID_PIPELINE_ALERT_URLS", url(state))
        monkeypatch.setenv("UUID_PIPELINE_UI_URL", "https://ui.example.org/")
        yield state


def url(hook: Received) -> str:
    return f"json://127.0.0.1:{hook.port}/hook/s3cr3t-hook-token"


def evaluate(instance: dg.DagsterInstance, passed: bool) -> None:
    VERDICT["passed"] = passed
    dg.materialize([measured, small_enough], instance=instance)


def ticked(
    instance: dg.DagsterInstance, cursor: str | None, look: sensors.Look = sensors.look_at_checks
) -> tuple[str, dg.SensorResult]:
    result = sensors.tick(instance, cursor, look)
    assert isinstance(result, dg.SensorResult)
    assert result.cursor is not None
    return result.cursor, result


def test_what_was_before_the_first_tick_is_not_told(instance: dg.DagsterInstance, hook: Received) -> None:
    evaluate(instance, passed=False)

    ticked(instance, None)

    assert hook.bodies == []


def test_a_failed_check_is_sent_once_with_figure_threshold_link_and_runbook_and_its_recovery_once(
    instance: dg.DagsterInstance, hook: Received
) -> None:
    cursor, _ = ticked(instance, None)
    for passed in (False, False):
        evaluate(instance, passed)
        cursor, _ = ticked(instance, cursor)
    [failed] = hook.bodies
    text = failed["title"] + failed["message"]
    for part in (
        "FAILED (critical): measured.small_enough", "7 % of the ids differ", "0.07", "0.01", "docs/runbook/mismatch.md",
        "https://ui.example.org/assets/measured?view=checks", "Since: 20",
    ):  # fmt: skip
        assert part in text

    evaluate(instance, passed=True)
    cursor, _ = ticked(instance, cursor)
    ticked(instance, cursor)

    assert [one["title"] for one in hook.bodies[1:]] == ["[uuid-pipeline] recovered: measured.small_enough"]


def test_an_event_that_a_slower_writer_may_still_precede_is_left_to_the_next_tick(
    instance: dg.DagsterInstance, hook: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor, _ = ticked(instance, None)
    evaluate(instance, passed=False)
    monkeypatch.setattr(events, "SETTLED_SECONDS", 3600.0)
    cursor, _ = ticked(instance, cursor)
    assert hook.bodies == []
    monkeypatch.setattr(events, "SETTLED_SECONDS", 0.0)
    ticked(instance, cursor)
    assert len(hook.bodies) == 1


def test_a_channel_that_fails_is_tried_again_shown_and_gets_each_alert_once(
    instance: dg.DagsterInstance, hook: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    with webhook() as healthy:
        monkeypatch.setenv("UUID_PIPELINE_ALERT_URLS", f"{url(hook)} {url(healthy)}")
        cursor, _ = ticked(instance, None)
        hook.status = 500
        evaluate(instance, passed=False)
        cursor, result = ticked(instance, cursor)

        *_, check = result.asset_events
        assert isinstance(check, dg.AssetCheckEvaluation)
        assert not check.passed
        assert "s3cr3t-hook-token" not in str(result)
        assert State.model_validate_json(cursor).outbox[0].channels == list(delivery.channels([url(hook)]))

        hook.status = 200
        hook.bodies.clear()
        state = State.model_validate_json(cursor)
        state.outbox[0].due = 0.0
        cursor, result = ticked(instance, state.model_dump_json())

        assert (len(hook.bodies), len(healthy.bodies)) == (1, 1)
        *_, check = result.asset_events
        assert isinstance(check, dg.AssetCheckEvaluation)
        assert check.passed
        ticked(instance, cursor)
        assert (len(hook.bodies), len(healthy.bodies)) == (1, 1)


def test_without_a_channel_nothing_is_silent(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UUID_PIPELINE_ALERT_URLS", raising=False)
    cursor, _ = ticked(instance, None)
    evaluate(instance, passed=False)

    _, result = ticked(instance, cursor)

    assert "measured.small_enough" in str(result.skip_reason)
    [check] = result.asset_events
    assert isinstance(check, dg.AssetCheckEvaluation)
    assert not check.passed


def test_a_failed_run_is_told_once_by_mail_and_without_passwords(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UUID_PIPELINE_DATABASE_URL", "postgresql://u:hunter2secret@127.0.0.1/x")
    with smtp() as mail:
        to = "from=pipeline@example.org&to=ops@example.org&mode=insecure"
        monkeypatch.setenv("UUID_PIPELINE_ALERT_URLS", f"mailto://127.0.0.1:{mail.port}?{to}")
        cursor, _ = ticked(instance, None, sensors.look_at_runs)
        dg.materialize([broken], instance=instance, raise_on_error=False)

        cursor, _ = ticked(instance, cursor, sensors.look_at_runs)
        ticked(instance, cursor, sensors.look_at_runs)

        [mail_sent] = mail.bodies
    text = "".join(
        part.get_content() for part in message_from_string(mail_sent, policy=policy.default).walk()
        if part.get_content_type() == "text/plain"
    )  # fmt: skip
    assert "the store said no" in text
    assert "docs/runbook/run_failed.md" in text
    assert "hunter2secret" not in text


def test_a_run_that_a_red_gate_ended_is_told_by_the_gate_alone(instance: dg.DagsterInstance, hook: Received) -> None:
    runs, _ = ticked(instance, None, sensors.look_at_runs)
    checks, _ = ticked(instance, None)

    dg.materialize([measured, gate], instance=instance, raise_on_error=False)
    ticked(instance, runs, sensors.look_at_runs)
    ticked(instance, checks)

    assert [one["title"] for one in hook.bodies] == ["[uuid-pipeline] FAILED (error): measured.gate"]


def test_a_run_that_somebody_ended_is_told_in_words_with_what_ran(instance: dg.DagsterInstance, hook: Received) -> None:
    cursor, _ = ticked(instance, None, sensors.look_at_runs)

    with suppress(KeyboardInterrupt, DagsterExecutionInterruptedError):
        dg.Definitions(assets=[interrupted]).resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, partition_key="canary", asset_selection=[interrupted.key], raise_on_error=False
        )
    ticked(instance, cursor, sensors.look_at_runs)

    [sent] = hook.bodies
    assert sent["title"].endswith(": interrupted [canary]")
    assert "Interrupted. What was committed stands" in sent["message"]
    assert "DagsterExecutionInterruptedError" not in sent["message"]

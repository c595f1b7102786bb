from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from uuid_pipeline.operations.alerts.decision import (
    MOST_KEPT,
    Alert,
    Evaluation,
    Outgoing,
    after_attempt,
    cut,
    enqueue,
    of_checks,
)


def evaluated(event: int, passed: bool, check: str = "mismatch") -> Evaluation:
    return Evaluation(
        event, "uuid_health", check, None, passed, "critical", "2 % differ", f"run {event}", 100.0 + event, 0.02, 0.01
    )


def test_a_check_is_told_once_when_it_begins_to_fail_and_once_when_it_recovers() -> None:
    failing, alerts = of_checks({}, [evaluated(n, passed) for n, passed in enumerate([True, False, False, True, True])])

    assert [(alert.kind, alert.id, alert.since) for alert in alerts] == [
        ("failed", "check-1", 101.0),
        ("recovered", "check-3", 101.0),
    ]
    assert failing == {}


def test_since_when_is_what_the_check_knows_not_when_it_was_first_looked_at() -> None:
    failing, [alert] = of_checks({}, [replace(evaluated(1, False), since=12.0)])
    assert (alert.since, failing) == (12.0, {"uuid_health.mismatch": 12.0})


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.booleans())), st.integers(0, 30))
def test_where_the_ticks_fall_changes_nothing_of_what_is_told(history: list[tuple[str, bool]], cut_at: int) -> None:
    evaluations = [evaluated(n, passed, check) for n, (check, passed) in enumerate(history)]
    _, at_once = of_checks({}, evaluations)

    failing, first = of_checks({}, evaluations[:cut_at])
    failing, second = of_checks(failing, evaluations[cut_at:])

    assert [alert.id for alert in first + second] == [alert.id for alert in at_once]
    last = dict(history)
    assert set(failing) == {f"uuid_health.{check}" for check, passed in last.items() if not passed}


def outgoing(number: int) -> Outgoing:
    [alert] = of_checks({}, [evaluated(number, False)])[1]
    return Outgoing(alert=alert, channels=["json-1", "json-2"])


def test_an_alert_that_waits_is_not_put_into_the_outbox_again() -> None:
    waiting = [outgoing(1)]

    kept = enqueue(waiting, [waiting[0].alert, outgoing(2).alert], ["json-1"])

    assert [(one.alert.id, one.channels) for one in kept] == [
        ("check-1", ["json-1", "json-2"]),
        ("check-2", ["json-1"]),
    ]


def test_tries_wait_longer_each_time_up_to_an_hour() -> None:
    one, pauses = outgoing(1), []
    for _ in range(10):
        one = after_attempt(one, ["json-2"], 1000.0)
        pauses.append(one.due - 1000.0)

    assert pauses == [30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0, 3600.0]
    assert one.channels == ["json-2"]


def test_of_too_many_the_oldest_are_given_up_and_named() -> None:
    kept, given_up = cut([outgoing(number) for number in range(MOST_KEPT + 3)])

    assert [one.alert.id for one in given_up] == ["check-0", "check-1", "check-2"]
    assert len(kept) == MOST_KEPT


def test_an_alert_survives_the_cursor() -> None:
    alert = outgoing(7).alert

    assert Alert.model_validate_json(alert.model_dump_json()) == alert

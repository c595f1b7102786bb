"""Throttling without a database: what readings mean for a wave, and how it waits."""

from dataclasses import dataclass, field

import pytest

from uuid_pipeline.engine import signals
from uuid_pipeline.engine.batches import throttle
from uuid_pipeline.engine.batches.throttle import GO, Clock, Decision
from uuid_pipeline.engine.signals.signal import HealthSignal, compared, unknown
from uuid_pipeline.spec import Throttle

WAIT = Decision("wait", ("lock_waits",), "lock_waits: 3 sessions wait for a lock; the limit is 0")
NORMAL = compared("query_latency", 4.0, 5.0, "4 ms")
OVER = compared("lock_waits", 3, 0, "3 sessions wait for a lock; the limit is 0")
HIDDEN = unknown("replication_lag", "the role may not look")


@dataclass
class Hours:
    """A clock that only sleeping moves."""

    at: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.at, self.sleep)


@pytest.mark.parametrize(
    ("readings", "action", "cause"),
    [
        ((), "go", ()),
        ((NORMAL,), "go", ()),
        ((NORMAL, OVER), "wait", ("lock_waits",)),
        ((OVER, HIDDEN, NORMAL), "stop", ("replication_lag",)),
    ],
)
def test_one_signal_over_its_limit_makes_a_wave_wait_and_one_unknown_stops_it(
    readings: tuple[HealthSignal, ...], action: str, cause: tuple[str, ...]
) -> None:
    decision = throttle.decide(readings)

    assert (decision.action, decision.cause) == (action, cause)


@pytest.mark.parametrize(("figure", "state"), [(4.9, "normal"), (5.0, "normal"), (5.1, "stop")])
def test_the_limit_itself_is_still_normal(figure: float, state: str) -> None:
    assert compared("query_latency", figure, 5.0, "").state == state


def test_it_looks_ever_less_often_and_keeps_the_lease_until_the_time_is_over() -> None:
    hours, kept = Hours(), list[float]()

    decision = throttle.outlast(lambda: WAIT, WAIT, 60.0, lambda: kept.append(hours.at), hours.clock)

    assert decision == WAIT
    assert sum(hours.slept) == pytest.approx(60.0)
    assert hours.slept[:3] == [0.2, 0.4, 0.8]
    gaps = [later - earlier for earlier, later in zip([1000.0, *kept], kept, strict=False)]
    assert max(gaps) <= throttle.MAX_PAUSE_SECONDS
    assert len(kept) == len(hours.slept)


@pytest.mark.parametrize("end", [GO, Decision("stop", ("lock_waits",), "hidden")])
def test_it_stops_waiting_at_the_first_other_decision(end: Decision) -> None:
    hours, answers = Hours(), iter([WAIT, WAIT, end, WAIT])

    assert throttle.outlast(lambda: next(answers), WAIT, 600.0, lambda: None, hours.clock) == end
    assert sum(hours.slept) == pytest.approx(1.4)


def test_with_no_time_to_wait_it_does_not_look_again() -> None:
    assert throttle.outlast(lambda: GO, WAIT, 0.0, lambda: None, Hours().clock) == WAIT


def test_a_lost_lease_ends_the_wait() -> None:
    class LostError(Exception):
        pass

    def lost() -> None:
        raise LostError

    with pytest.raises(LostError):
        throttle.outlast(lambda: WAIT, WAIT, 600.0, lost, Hours().clock)


def test_a_refusal_says_the_figure_its_limit_how_long_it_waited_and_what_to_do() -> None:
    message = throttle.refusal("2026-01-02-030405-010-canary", WAIT, 600.4)

    assert "after waiting 600 s for lock_waits" in message
    assert WAIT.reason in message
    assert "What was committed stands" in message
    assert "uuid-pipeline run" in message
    assert "throttle.lock_waits" in message


def test_signals_without_a_limit_are_not_configured() -> None:
    assert signals.configured(Throttle()) == ()
    one = signals.configured(Throttle(lock_waits=0))
    assert [source.name for source in one] == ["lock_waits"]
    every = Throttle(
        replication_lag_seconds=1, lock_waits=0, long_transaction_seconds=1, query="SELECT 1", query_milliseconds=1
    )
    assert len(signals.configured(every)) == len(signals.SOURCES) == 4

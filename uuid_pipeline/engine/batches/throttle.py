"""Throttling: between two batches a wave waits while a health signal is over its limit; an unknown one stops it."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Engine

from uuid_pipeline.engine import signals, sql
from uuid_pipeline.engine.signals.signal import HealthSignal
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Throttle

FIRST_PAUSE_SECONDS = 0.2
MAX_PAUSE_SECONDS = 5.0


@dataclass(frozen=True)
class Decision:
    """What a wave may do now; ``cause`` names the signals that say so, none for ``go``."""

    action: Literal["go", "wait", "stop"]
    cause: tuple[str, ...]
    reason: str


GO = Decision("go", (), "")


@dataclass(frozen=True)
class Clock:
    """Time, as the waiting loop sees it."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


REAL_TIME = Clock()


def decide(readings: Sequence[HealthSignal]) -> Decision:
    """One unknown signal stops the wave; one over its limit makes it wait."""
    for state, action in (("unknown", "stop"), ("stop", "wait")):
        found = [reading for reading in readings if reading.state == state]
        if found:
            reason = "; ".join(f"{reading.name}: {reading.reason}" for reading in found)
            return Decision(action, tuple(reading.name for reading in found), reason)  # type: ignore[arg-type]
    return GO


def check(engine: Engine, throttle: Throttle, waived: Collection[str]) -> Decision:
    """Read the configured signals now, but those that the plan was approved without."""
    if all(source.name in waived for source in signals.configured(throttle)):
        return GO
    # A transaction of its own: PostgreSQL would show the sessions of an earlier look again.
    with engine.begin() as connection:
        return decide(signals.read_all(connection, throttle, waived))


def wait_until_healthy(
    engine: Engine,
    throttle: Throttle,
    wave: str,
    waived: Collection[str],
    last_check: float | None,
    keep_lease: Callable[[], None],
    say: Callable[[str], None],
    clock: Clock = REAL_TIME,
) -> float:
    """Return once the wave may write its next batch; gives the time of the last check, to be passed in again.

    Signals are read when ``check_seconds`` have passed since ``last_check``. While it waits, ``keep_lease`` is called
    at least every MAX_PAUSE_SECONDS (what it raises ends the wait), and the wait stands in the ledger. Raises
    RefusedError when a signal is unknown, or over its limit for longer than ``max_wait_seconds``.
    """
    began = clock.now()
    if last_check is not None and began - last_check < throttle.check_seconds:
        return last_check
    decision = check(engine, throttle, waived)
    if decision.action == "wait":
        say(f"Wave {wave} waits: {decision.reason}")
        with _journaled(engine, wave, decision):
            decision = outlast(
                lambda: check(engine, throttle, waived), decision, throttle.max_wait_seconds, keep_lease, clock
            )
        if decision.action == "go":
            say(f"Wave {wave} goes on after {clock.now() - began:.1f} s")
    if decision.action != "go":
        raise RefusedError(refusal(wave, decision, clock.now() - began))
    return clock.now()


def outlast(
    look: Callable[[], Decision], decision: Decision, seconds: float, keep_lease: Callable[[], None], clock: Clock
) -> Decision:
    """Look again and again, ever less often, until the decision is another than ``wait`` or the time is over."""
    deadline = clock.now() + seconds
    pause = FIRST_PAUSE_SECONDS
    while decision.action == "wait" and (left := deadline - clock.now()) > 0:
        clock.sleep(min(pause, left))
        keep_lease()
        pause = min(2 * pause, MAX_PAUSE_SECONDS)
        decision = look()
    return decision


def refusal(wave: str, decision: Decision, waited: float) -> str:
    """Why the wave stopped, and what to do."""
    names = " and ".join(decision.cause)
    settings = ", ".join(f"throttle.{signals.setting_of(name)}" for name in decision.cause)
    if decision.action == "stop":
        return (
            f"Wave {wave} stopped, because {names} cannot be known. {decision.reason}. What was committed stands. "
            f"Mend that and run again (uuid-pipeline run), or take {settings} out of the spec, plan and approve anew."
        )
    return (
        f"Wave {wave} stopped after waiting {waited:.0f} s for {names} (throttle.max_wait_seconds). {decision.reason}. "
        "What was committed stands. Find the cause and run again (uuid-pipeline run), or change "
        f"{settings} in the spec, plan and approve anew."
    )


@contextmanager
def _journaled(engine: Engine, wave: str, decision: Decision) -> Iterator[None]:
    """A row in the ledger for as long as the block runs; each end is committed at once, for others to see."""
    with engine.begin() as connection:
        number = sql.scalar(
            connection,
            """INSERT INTO uuid_pipeline.waits (wave, cause, reason) VALUES (%(wave)s, %(cause)s, %(reason)s)
               RETURNING wait_no""",
            {"wave": wave, "cause": ", ".join(decision.cause), "reason": decision.reason},
        )
    try:
        yield
    finally:
        with engine.begin() as connection:
            sql.execute(
                connection,
                "UPDATE uuid_pipeline.waits SET ended_at = clock_timestamp() WHERE wait_no = %(number)s",
                {"number": number},
            )

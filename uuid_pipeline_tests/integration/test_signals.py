"""Health signals, each made to trip for real, and a wave that waits for them."""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger, signals
from uuid_pipeline.engine.batches import throttle
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.signals import lock_waits, long_transactions, query_latency
from uuid_pipeline.engine.signals.signal import HealthSignal
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Throttle, load_spec
from uuid_pipeline_tests.conftest import NewRole, as_role
from uuid_pipeline_tests.integration import cycle

Read = Callable[[Any, Throttle], HealthSignal]
LOCKS = Throttle(lock_waits=0)
WAVE = "2026-01-02-030405-010-canary"


def reading(engine: Engine, read: Read, limits: Throttle) -> HealthSignal:
    """One signal, read as a check between two batches does."""
    with engine.connect() as connection:
        return read(connection, limits)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds, for ten seconds at most."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def held(engine: Engine) -> Iterator["psycopg.Connection[Any]"]:
    """A session of the application that keeps a table locked in an open transaction until it commits."""
    cycle.run_sql(engine, "CREATE TABLE IF NOT EXISTS public.held (n int)")
    with cycle.session(engine) as holder:
        holder.execute("LOCK TABLE public.held")
        yield holder


@contextmanager
def waiting(engine: Engine, waiter: "psycopg.Connection[Any]") -> Iterator[int]:
    """A statement of ``waiter`` that waits for :func:`held`'s lock, by plain SQL seen to wait; gives its pid."""
    pid = waiter.info.backend_pid
    thread = threading.Thread(target=lambda: waiter.execute("SELECT FROM public.held"))
    with cycle.session(engine) as observer:
        thread.start()
        eventually(lambda: bool(observer.execute("SELECT pg_blocking_pids(%s) <> '{}'", [pid]).fetchone() == (True,)))
    yield pid
    thread.join()


def test_sessions_that_wait_for_a_lock_are_counted_and_named(empty_store: Engine) -> None:
    assert reading(empty_store, lock_waits.read, LOCKS).state == "normal"
    with held(empty_store) as holder, cycle.session(empty_store) as waiter, waiting(empty_store, waiter) as pid:
        tripped = reading(empty_store, lock_waits.read, LOCKS)
        allowed = reading(empty_store, lock_waits.read, Throttle(lock_waits=1))
        holder.commit()

    assert tripped.reason == f"1 sessions wait for a lock (pid {pid}); the limit is 0"
    assert (tripped.state, tripped.figure) == ("stop", 1)
    assert (allowed.state, allowed.figure) == ("normal", 1)
    assert reading(empty_store, lock_waits.read, LOCKS).figure == 0


def test_a_session_of_ours_is_no_load_of_the_application(empty_store: Engine, empty_url: str) -> None:
    own = psycopg.connect(empty_url, application_name="uuid_pipeline")
    with held(empty_store) as holder, own as waiter, waiting(empty_store, waiter):
        assert reading(empty_store, lock_waits.read, LOCKS).figure == 0
        holder.commit()
        # It has been in a transaction since; nobody else is.
        time.sleep(0.05)
        limits = Throttle(long_transaction_seconds=0.01)
        assert reading(empty_store, long_transactions.read, limits).state == "normal"


def test_an_idle_transaction_trips_by_its_age(empty_store: Engine) -> None:
    limits = Throttle(long_transaction_seconds=0.2)
    with cycle.session(empty_store) as idle:
        before = time.monotonic()
        idle.execute("SELECT 1")
        began = time.monotonic()
        assert reading(empty_store, long_transactions.read, Throttle(long_transaction_seconds=60)).state == "normal"
        time.sleep(0.25)
        least = time.monotonic() - began
        tripped = reading(empty_store, long_transactions.read, limits)
        most = time.monotonic() - before
        pid = idle.info.backend_pid

    assert tripped.state == "stop"
    assert tripped.figure is not None
    assert least - 0.01 <= tripped.figure <= most + 0.01
    assert f"(pid {pid}, no name, idle in transaction)" in tripped.reason
    assert tripped.reason.endswith("the limit is 0.2 s")
    assert reading(empty_store, long_transactions.read, limits).figure == 0


def test_a_role_that_may_not_look_gets_unknown_and_the_grant_that_mends_it(
    empty_store: Engine, empty_url: str, new_role: NewRole
) -> None:
    role = new_role()
    limits = Throttle(lock_waits=0, long_transaction_seconds=60)
    plain = open_store(as_role(empty_url, role))
    remedy = f"GRANT pg_read_all_stats TO {role};"
    with cycle.session(empty_store) as other:
        other.execute("SELECT 1")
        for read in (lock_waits.read, long_transactions.read):
            hidden = reading(plain, read, limits)
            assert (hidden.state, hidden.figure) == ("unknown", None)
            assert remedy in hidden.reason
        with plain.connect() as connection:
            assert list(signals.unreadable(connection, limits)) == ["lock_waits", "long_transactions"]
            assert all(remedy in reason for reason in signals.unreadable(connection, limits).values())
        cycle.run_sql(empty_store, f"GRANT pg_monitor TO {role}")
        assert {reading(plain, read, limits).state for read in (lock_waits.read, long_transactions.read)} == {"normal"}
        with plain.connect() as connection:
            assert signals.unreadable(connection, limits) == {}
    plain.dispose()


def test_a_session_that_does_not_track_its_activity_hides_it(empty_store: Engine) -> None:
    with cycle.session(empty_store) as other:
        other.execute("SET track_activities = off")
        hidden = reading(empty_store, long_transactions.read, Throttle(long_transaction_seconds=60))

    assert hidden.state == "unknown"
    assert "track_activities is off" in hidden.reason


def test_a_slow_query_trips_by_its_median(empty_store: Engine) -> None:
    slow = reading(empty_store, query_latency.read, Throttle(query="SELECT pg_sleep(0.03)", query_milliseconds=20))
    assert slow.state == "stop"
    assert slow.figure is not None
    assert slow.figure >= 30
    stuck = reading(empty_store, query_latency.read, Throttle(query="SELECT pg_sleep(60)", query_milliseconds=20))
    assert stuck.state == "stop"
    assert "cancelled" in stuck.reason
    like = "SELECT count(*) FROM pg_class WHERE relname LIKE 'pg%';"
    quick = reading(empty_store, query_latency.read, Throttle(query=like, query_milliseconds=5000))
    assert (quick.state, quick.reason.endswith("the limit is 5000 ms")) == ("normal", True)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT FROM public.missing", 'relation "public.missing" does not exist'),
        ("INSERT INTO public.kept VALUES (2)", "read-only transaction"),
        ("SELECT set_config('transaction_read_only', 'off', true)", "transaction read-write mode"),
        ("SELECT 1; COMMIT; INSERT INTO public.kept VALUES (2)", "cannot insert multiple commands"),
    ],
)
def test_a_query_that_fails_or_would_write_is_unknown_and_writes_nothing(
    empty_store: Engine, query: str, said: str
) -> None:
    cycle.run_sql(empty_store, "CREATE TABLE public.kept AS SELECT 1 AS n")
    limits = Throttle(query=query, query_milliseconds=5000, lock_waits=0)

    with empty_store.connect() as connection:
        locks, latency = signals.read_all(connection, limits, waived=())
        assert signals.unreadable(connection, limits) == {"query_latency": latency.reason}

    assert (locks.state, latency.state) == ("normal", "unknown")
    assert said in latency.reason
    assert cycle.run_sql(empty_store, "SELECT n FROM public.kept") == [(1,)]


def test_a_request_to_end_while_the_query_runs_ends_the_reading_and_is_no_fault_of_the_query(
    empty_store: Engine,
) -> None:
    """As Dagster makes it of a termination: no KeyboardInterrupt, on which the driver would cancel the query."""

    class RequestedError(BaseException):
        pass

    def request(*_: object) -> None:
        raise RequestedError

    before = signal.signal(signal.SIGALRM, request)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(RequestedError):
            reading(empty_store, query_latency.read, Throttle(query="SELECT pg_sleep(3)", query_milliseconds=5000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def waits(engine: Engine) -> list[tuple[Any, ...]]:
    return cycle.run_sql(
        engine,
        """SELECT wave, cause, reason, extract(epoch FROM ended_at - began_at)::float8 FROM uuid_pipeline.waits
           ORDER BY wait_no""",
    )


@pytest.fixture
def with_ledger(incident: Engine) -> Engine:
    """A store whose ledger exists."""
    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, load_spec(None)))
    return incident


def wait(engine: Engine, limits: Throttle, said: list[str], keep_lease: Callable[[], None] = lambda: None) -> float:
    """Wait as a wave does before its first batch."""
    return throttle.wait_until_healthy(engine, limits, WAVE, (), None, keep_lease, said.append)


def test_a_wave_waits_until_the_locks_are_gone_and_the_ledger_says_why(with_ledger: Engine) -> None:
    said, kept = list[str](), list[float]()
    began = time.monotonic()
    with held(with_ledger) as holder, cycle.session(with_ledger) as waiter, waiting(with_ledger, waiter) as pid:

        def keep() -> None:
            kept.append(time.monotonic())
            if len(kept) == 2:
                holder.commit()

        wait(with_ledger, LOCKS, said, keep)

    assert len(kept) in (2, 3)
    assert said[0] == f"Wave {WAVE} waits: lock_waits: 1 sessions wait for a lock (pid {pid}); the limit is 0"
    assert said[1].startswith(f"Wave {WAVE} goes on after")
    [(wave, cause, reason, seconds)] = waits(with_ledger)
    assert (wave, cause) == (WAVE, "lock_waits")
    assert f"(pid {pid}); the limit is 0" in reason
    assert 0.5 <= seconds <= time.monotonic() - began


def test_a_wave_is_refused_when_it_has_waited_long_enough(with_ledger: Engine) -> None:
    limits = Throttle(long_transaction_seconds=0.01, max_wait_seconds=0.5)
    with cycle.session(with_ledger) as idle:
        idle.execute("SELECT 1")
        time.sleep(0.05)
        with pytest.raises(RefusedError) as refusal:
            wait(with_ledger, limits, [])

    assert re.search(r"after waiting \d s for long_transactions", refusal.value.message)
    assert "the limit is 0.01 s" in refusal.value.message
    assert "What was committed stands" in refusal.value.message
    [(_, cause, _, seconds)] = waits(with_ledger)
    assert cause == "long_transactions"
    assert 0.5 <= seconds < 5


def test_a_signal_that_becomes_unreadable_stops_at_once_unless_the_plan_was_approved_without_it(
    with_ledger: Engine,
) -> None:
    limits = Throttle(query="SELECT FROM upload_pipeline.missing", query_milliseconds=1000)
    with pytest.raises(RefusedError, match=r"query_latency cannot be known.*does not exist.*What was committed stands"):
        wait(with_ledger, limits, [])

    assert waits(with_ledger) == []
    assert throttle.check(with_ledger, limits, {"query_latency"}) == throttle.GO


def test_signals_are_read_again_only_after_the_given_time(with_ledger: Engine) -> None:
    limits = Throttle(query="SELECT 1", query_milliseconds=5000, check_seconds=60)
    checked = wait(with_ledger, limits, [])

    # Were it read, this would be unknown.
    broken = limits.model_copy(update={"query": "SELECT FROM upload_pipeline.missing"})
    again = throttle.wait_until_healthy(with_ledger, broken, WAVE, (), checked, lambda: None, lambda _: None)
    assert again == checked
    with pytest.raises(RefusedError):
        throttle.wait_until_healthy(with_ledger, broken, WAVE, (), checked - 61, lambda: None, lambda _: None)

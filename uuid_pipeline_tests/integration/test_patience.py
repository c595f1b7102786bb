"""Work under locks that others hold: tried again while it is worth it, and no longer."""

import threading
import time

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import ProgrammingError

from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import patience
from uuid_pipeline.errors import RefusedError
from uuid_pipeline_tests.integration import cycle, shop


@pytest.fixture
def store(empty_store: Engine) -> Engine:
    return shop.build(empty_store)


def count_under_lock(store: Engine, place: tuple[str, str], seconds: float) -> int:
    with leases.held(store, "patient run") as (connection, lease):
        count = (
            "SELECT count(*) FROM pg_locks WHERE mode = 'ShareRowExclusiveLock' AND relation = 'shop.things'::regclass"
        )
        return patience.with_table(
            connection, lease, place, "SHARE ROW EXCLUSIVE",
            lambda: int(connection.exec_driver_sql(count).scalar_one()), seconds,
        )  # fmt: skip


def test_a_lock_is_waited_for_in_tries_so_short_that_others_get_through_between(store: Engine) -> None:
    longest = 0.0
    with cycle.session(store) as holder, cycle.session(store) as other:
        holder.execute("UPDATE shop.things SET n = n")
        found: list[int] = []
        asking = threading.Thread(target=lambda: found.append(count_under_lock(store, ("shop", "things"), 20.0)))
        asking.start()
        until = time.monotonic() + 1
        while time.monotonic() < until:
            began = time.monotonic()
            other.execute("INSERT INTO shop.things (code) VALUES ('meanwhile')")
            other.commit()
            longest = max(longest, time.monotonic() - began)
        assert asking.is_alive()
        holder.rollback()
        asking.join()

    assert found == [1]
    assert longest < 0.9


def test_patience_ends_and_the_refusal_of_the_server_is_the_cause(store: Engine) -> None:
    with cycle.session(store) as holder:
        holder.execute("UPDATE shop.things SET n = n")
        began = time.monotonic()
        with pytest.raises(patience.OutOfPatienceError) as given_up:
            count_under_lock(store, ("shop", "things"), 0.3)

    assert 0.3 < time.monotonic() - began < 10
    assert "lock timeout" in str(given_up.value.__cause__)


def test_a_table_that_is_not_there_needs_no_lock(store: Engine) -> None:
    began = time.monotonic()

    assert count_under_lock(store, ("shop", "gone"), 60.0) == 0
    assert time.monotonic() - began < 10


def test_another_error_is_not_tried_again(store: Engine) -> None:
    tries = []

    def fail(_wait: float) -> None:
        tries.append(1)
        cycle.run_sql(store, "SELECT no_such_column FROM shop.things")

    with pytest.raises(ProgrammingError):
        patience.patiently(fail, 60.0, frozenset)
    assert len(tries) == 1


def test_whoever_lost_the_lease_does_nothing(store: Engine) -> None:
    with leases.held(store, "patient run") as (connection, lease):
        cycle.run_sql(store, "UPDATE uuid_pipeline.lease SET epoch = epoch + 1")
        with pytest.raises(RefusedError, match="lost its lease"):
            patience.with_table(connection, lease, ("shop", "things"), "SHARE ROW EXCLUSIVE", pytest.fail, 60.0)


def test_a_table_that_overlapping_transactions_never_let_go_of_is_had_by_waiting_longer(store: Engine) -> None:
    """Each writer is done in a second, and there is always one: short tries would find the table held for ever."""
    ended = threading.Event()

    def write(delay: float) -> None:
        time.sleep(delay)
        with cycle.session(store) as writer:
            while not ended.is_set():
                writer.execute("INSERT INTO shop.things (code) VALUES ('meanwhile')")
                time.sleep(0.9)
                writer.commit()

    writers = [threading.Thread(target=write, args=(0.3 * n,)) for n in range(3)]
    for writer in writers:
        writer.start()
    try:
        time.sleep(0.7)
        assert count_under_lock(store, ("shop", "things"), 30.0) == 1
    finally:
        ended.set()
        for writer in writers:
            writer.join()


def test_tries_grow_while_holders_come_and_go_and_stay_short_behind_one_that_stays() -> None:
    waits = patience.Waits()
    seconds = []
    for now in range(12):
        waits.refused(frozenset({f"holder {now}"}), now / 2)
        seconds.append(waits.seconds)
    assert seconds == sorted(seconds)
    assert seconds[0] < 0.5
    assert seconds[-1] == patience.LONGEST_WAIT_SECONDS

    for now in range(12):
        assert not waits.refused(frozenset({"one that stays", f"holder {now}"}), 6.0 + now)
    assert waits.seconds == patience.SHORT_WAIT_SECONDS
    assert waits.refused(frozenset({"another"}), 20.0)
    assert waits.seconds > patience.SHORT_WAIT_SECONDS

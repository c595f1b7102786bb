"""Fetching ahead: the same rows, errors that surface, and nothing left running whatever ends the loop."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.ahead import fetched_ahead

ROWS = sql.ROWS_AT_ONCE


def numbers(connection: Connection, upto: int, column: str = "n") -> Iterator[list[Any]]:
    statement = sql.Text(f"SELECT {column} FROM generate_series(1, %(upto)s) n")  # noqa: S608
    return sql.stream(connection, statement, {"upto": upto})


@pytest.fixture
def connection(empty_store: Engine) -> Iterator[Connection]:
    with empty_store.connect() as connection:
        yield connection


def helpers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fetching")]


@pytest.mark.parametrize("upto", [0, 1, ROWS, 3 * ROWS + 7])
def test_every_row_comes_once_and_in_order(connection: Connection, upto: int) -> None:
    batches = list(fetched_ahead(connection, numbers(connection, upto)))

    assert [row[0] for batch in batches for row in batch] == list(range(1, upto + 1))
    assert helpers() == []


def test_the_next_batch_is_fetched_while_this_one_is_worked_on(connection: Connection) -> None:
    fetched: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(4):
            fetched.append(number)
            yield number

    seen = []
    for number in fetched_ahead(connection, batches()):
        for _ in range(500):
            if fetched[-1] == min(number + 1, 3):
                break
            time.sleep(0.01)
        seen.append((number, fetched[-1]))
    assert seen == [(0, 1), (1, 2), (2, 3), (3, 3)]


def test_an_error_of_a_later_fetch_is_raised_where_the_rows_are_read(connection: Connection) -> None:
    batches = fetched_ahead(connection, numbers(connection, 3 * ROWS, f"1 / ({2 * ROWS} - n)"))

    assert len(next(batches)) == ROWS
    with pytest.raises(DBAPIError, match="division by zero"):
        list(batches)
    assert helpers() == []


# The second batch would take an hour.
SLOW = f"CASE WHEN n = {ROWS + 5} THEN pg_sleep(3600) END"


def assert_free(connection: Connection, backend: int, other: Engine) -> None:
    """No helper is left, the server does nothing, and the connection works on after a rollback."""
    assert helpers() == []
    state = "SELECT state FROM pg_stat_activity WHERE pid = %(pid)s"
    with other.begin() as looking:
        assert sql.scalar(looking, state, {"pid": backend}) == "idle in transaction (aborted)"
    connection.rollback()
    assert sql.scalar(connection, "SELECT pg_backend_pid()") == backend


def test_a_loop_that_is_left_cancels_what_is_being_fetched(connection: Connection, empty_store: Engine) -> None:
    backend = sql.scalar(connection, "SELECT pg_backend_pid()")

    def leave() -> None:
        with contextlib.closing(fetched_ahead(connection, numbers(connection, 3 * ROWS, SLOW))) as batches:
            for _ in batches:
                raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  # raised above, without words
        leave()
    assert_free(connection, backend, empty_store)


def test_an_interrupt_while_the_next_batch_is_waited_for_cancels_it(
    connection: Connection, empty_store: Engine
) -> None:
    backend = sql.scalar(connection, "SELECT pg_backend_pid()")
    batches = fetched_ahead(connection, numbers(connection, 3 * ROWS, SLOW))
    assert len(next(batches)) == ROWS
    # A shell that starts something in the background may have it ignore interrupts.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    interrupt.start()

    try:
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert_free(connection, backend, empty_store)

"""A request to end that comes in the middle of a statement is what its caller gets, and nothing else."""

import logging
import signal
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import savepoints, sql
from uuid_pipeline.engine.connection import copy_in

SLOW = sql.Text("SELECT n, pg_sleep(0.01) FROM generate_series(1, 1000) n")


class RequestedError(BaseException):
    """As Dagster makes it of a termination: no KeyboardInterrupt, on which the driver would cancel the statement."""


@pytest.fixture(autouse=True)
def request_to_end() -> Iterator[None]:
    def end(*_: object) -> None:
        raise RequestedError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def streamed(connection: Connection) -> None:
    for _ in sql.stream(connection, SLOW, {}):
        pass


def copied(connection: Connection) -> None:
    sql.execute(connection, "CREATE TEMP TABLE slow (n int CHECK (pg_sleep(0.01) IS NOT NULL))")
    copy_in(connection, "COPY slow FROM STDIN", b"1\n" * 1000)


def executed(connection: Connection) -> None:
    sql.rows(connection, SLOW)


@pytest.mark.parametrize("work", [streamed, copied, executed])
def test_it_is_what_ends_the_work_and_the_next_session_is_sound(
    empty_store: Engine, caplog: pytest.LogCaptureFixture, work: Callable[[Connection], None]
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(RequestedError),
        empty_store.begin() as connection,
        savepoints.undone(connection),
    ):
        work(connection)

    assert not caplog.records
    with empty_store.begin() as connection:
        assert sql.scalar(connection, "SELECT 1") == 1

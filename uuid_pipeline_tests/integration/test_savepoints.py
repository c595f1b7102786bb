"""A savepoint that is always undone, whatever ends its block, and whatever ends its undoing."""

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine.savepoints import undone

LIMIT = "SET LOCAL statement_timeout = '20ms'"


def left_by(connection: Connection) -> tuple[Any, Any]:
    """Rows of the table, and the time limit that is in force."""
    rows = connection.exec_driver_sql("SELECT count(*) FROM kept").scalar()
    return rows, connection.exec_driver_sql("SHOW statement_timeout").scalar()


@pytest.fixture
def ended_in_undoing(empty_store: Engine) -> list[str]:
    """The first try to go back to a savepoint is ended by the server, for the time limit of its block."""
    ended: list[str] = []

    def before(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
        if statement.startswith("ROLLBACK TO") and not ended:
            ended.append(statement)
            return "SELECT pg_sleep(5)", parameters
        return statement, parameters

    event.listen(empty_store, "before_cursor_execute", before, retval=True)
    return ended


def test_an_undoing_that_the_blocks_time_limit_ends_is_tried_again(
    empty_store: Engine, ended_in_undoing: list[str]
) -> None:
    with empty_store.begin() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE kept (n int)")
        with undone(connection):
            connection.exec_driver_sql("INSERT INTO kept VALUES (1)")
            connection.exec_driver_sql(LIMIT)

        assert len(ended_in_undoing) == 1
        assert left_by(connection) == (0, "0")


def fail(connection: Connection) -> None:
    with undone(connection):
        connection.exec_driver_sql("INSERT INTO kept VALUES (1)")
        connection.exec_driver_sql(LIMIT)
        connection.exec_driver_sql("SELECT 1 / 0")


def test_what_ended_the_block_is_told_and_the_transaction_goes_on(empty_store: Engine) -> None:
    with empty_store.begin() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE kept (n int)")

        with pytest.raises(DBAPIError, match="division by zero"):
            fail(connection)

        assert left_by(connection) == (0, "0")


def lose(connection: Connection) -> None:
    with connection.begin(), undone(connection):
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")


def test_of_a_connection_that_is_lost_in_the_block_the_loss_is_told(empty_store: Engine) -> None:
    with empty_store.connect() as connection, pytest.raises(DBAPIError, match="terminating connection"):
        lose(connection)

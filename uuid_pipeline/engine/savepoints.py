"""Savepoints that are always undone, and with them every setting made inside, a time limit for instance."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql

# A limit of a millisecond may end the statement that undoes it, on a machine at work several times.
TRIES = 100

_numbers = itertools.count()


@contextmanager
def undone(connection: Connection) -> Iterator[None]:
    """What the block did and set is undone at its end, whatever ended it. Wants an open transaction.

    By statements of our own: where a time limit of the block ends the undoing too, it is tried again, and the
    transaction goes on.
    """
    name = f"undone_{next(_numbers)}"
    connection.exec_driver_sql(f"SAVEPOINT {name}")
    try:
        yield
    finally:
        # A lost connection has nothing to undo, and what it raised is told.
        if not connection.invalidated:
            _undo(connection, name)


def _undo(connection: Connection, name: str) -> None:
    for left in reversed(range(TRIES)):
        try:
            connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {name}")
            break
        except DBAPIError as error:
            if sql.sqlstate(error) != sql.QUERY_CANCELED or not left:
                raise
    connection.exec_driver_sql(f"RELEASE SAVEPOINT {name}")

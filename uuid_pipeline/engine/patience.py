"""Work under locks that others hold: short tries, so that nobody queues behind us for long, with growing pauses."""

import random
import time
from collections.abc import Callable
from functools import partial
from typing import LiteralString, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import sql
from uuid_pipeline.engine.lease import Lease

Done = TypeVar("Done")

BUSY = frozenset({"55P03", "40P01"})  # lock not available, deadlock
MAX_PAUSE_SECONDS = 2.0


class OutOfPatienceError(Exception):
    """The locks were not to be had in time."""


def patiently(work: Callable[[], Done], seconds: float, retried: frozenset[str] = BUSY) -> Done:
    """Do the work, a transaction of its own, again while the server answers with one of these SQLSTATEs.

    Raises OutOfPatienceError when it still does so after this many seconds; any other error as it comes.
    """
    deadline, pause = time.monotonic() + seconds, 0.05
    while True:
        try:
            return work()
        except DBAPIError as error:
            if sqlstate(error) not in retried:
                raise
            if time.monotonic() > deadline:
                raise OutOfPatienceError from error
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(MAX_PAUSE_SECONDS, 2 * pause)


def set_up(connection: Connection) -> None:
    """Settings of one try, gone with its transaction. Whoever writes queues behind our request, so it is short."""
    catalogs.pin_names(connection)
    sql.execute(connection, "SELECT set_config('lock_timeout', '200ms', true)")


def with_table(
    connection: Connection, lease: Lease, place: tuple[str, str], mode: LiteralString, work: Callable[[], Done],
    seconds: float,
) -> Done:  # fmt: skip
    """Do the work in a transaction that holds the lease and, if there is such a table, its lock in this mode.

    Raises as :func:`patiently`, and RefusedError when the lease is lost.
    """
    # A table may be dropped before we have its lock: the next try finds none.
    retried = BUSY | {"42P01"}
    return patiently(partial(_try, connection, lease, place, mode, work), seconds, retried)


def _try(
    connection: Connection, lease: Lease, place: tuple[str, str], mode: LiteralString, work: Callable[[], Done]
) -> Done:
    with connection.begin():
        leases.hold(connection, lease)
        set_up(connection)
        if catalogs.table_oid(connection, *place) is not None:
            lock = "LOCK TABLE {table} IN {mode} MODE"
            sql.execute(connection, sql.compose(lock, table=sql.table(*place), mode=sql.Text(mode)))
        return work()


def sqlstate(error: DBAPIError) -> str | None:
    """The server's code for the error; None when it is not the server's."""
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state

"""Work under locks that others hold: short tries, so that nobody queues behind us for long, with growing pauses.

Where transactions of a second or two overlap, a table is never free, and a request gets its lock only by queueing until
those ahead of it have ended. So a try may wait longer than the one before, as long as it is not one and the same
transaction that keeps the lock: to queue behind that would only hold up everybody else.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import sql
from uuid_pipeline.engine.lease import Lease

Done = TypeVar("Done")
# What making a trigger asks for, and what dropping one does.
Mode = Literal["SHARE ROW EXCLUSIVE", "ACCESS EXCLUSIVE"]

BUSY = frozenset({sql.LOCK_NOT_AVAILABLE, "40P01"})  # deadlock
SHORT_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 4.0
WAIT_GROWTH = 1.5
FIRST_PAUSE_SECONDS = 0.05
MAX_PAUSE_SECONDS = 2.0


class OutOfPatienceError(Exception):
    """The locks were not to be had in time."""


def patiently(
    work: Callable[[float], Done], seconds: float, holders: Callable[[], frozenset[str]],
    retried: frozenset[str] = BUSY,
) -> Done:  # fmt: skip
    """Do the work, a transaction of its own, again while the server answers with one of these SQLSTATEs.

    ``work`` is told how long it may wait for a lock; ``holders`` says which transactions keep it from one.
    Raises OutOfPatienceError when it still has none after this many seconds; any other error as it comes.
    """
    deadline, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    waits = Waits()
    while True:
        try:
            return work(waits.seconds)
        except DBAPIError as error:
            if sql.sqlstate(error) not in retried:
                raise
            if time.monotonic() > deadline:
                raise OutOfPatienceError from error
        if waits.refused(holders(), time.monotonic()):
            pause = FIRST_PAUSE_SECONDS
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(MAX_PAUSE_SECONDS, 2 * pause)


@dataclass
class Waits:
    """How long the next try may wait for its lock, by who was in its way until now."""

    seconds: float = SHORT_WAIT_SECONDS
    _since: dict[str, float] = field(default_factory=dict)
    _stuck: bool = False

    def refused(self, holders: frozenset[str], now: float) -> bool:
        """Take note of a refusal; returns whether one that kept the lock for long has let go of it."""
        self._since = {holder: self._since.get(holder, now) for holder in holders}
        was_stuck = self._stuck
        # Who has outlasted a longest wait would outlast the next one as well.
        self._stuck = any(now - since >= LONGEST_WAIT_SECONDS for since in self._since.values())
        self.seconds = SHORT_WAIT_SECONDS if self._stuck else min(LONGEST_WAIT_SECONDS, self.seconds * WAIT_GROWTH)
        return was_stuck and not self._stuck


def set_up(connection: Connection, wait: float) -> None:
    """Settings of one try, gone with its transaction. Whoever writes queues behind our request for this long."""
    catalogs.pin_names(connection)
    sql.execute(
        connection, "SELECT set_config('lock_timeout', %(wait)s, true)", {"wait": f"{max(1, int(wait * 1000))}ms"}
    )


# To a lock ``l`` that no session holds the prepared transaction ``p`` that does, by the one lock that names it.
PREPARED = """
LEFT JOIN pg_locks t ON l.pid IS NULL AND t.pid IS NULL AND t.locktype = 'transactionid'
                        AND t.virtualtransaction = l.virtualtransaction
LEFT JOIN pg_prepared_xacts p ON p.transaction = t.transactionid
"""

# A prepared transaction has no session, but an identity of the same kind.
_HOLDERS = """
SELECT DISTINCT l.virtualtransaction AS who FROM pg_locks l
WHERE l.granted AND l.relation = ANY(%(oids)s::oid[]) AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (%(mode)s = 'ACCESS EXCLUSIVE' OR l.mode NOT IN ('AccessShareLock', 'RowShareLock'))
"""


def holders(connection: Connection, oids: Sequence[int], mode: Mode) -> frozenset[str]:
    """The transactions that keep these relations from being locked in this mode, by the server's own names for them."""
    found = sql.rows(connection, _HOLDERS, {"oids": list(oids), "mode": mode})
    return frozenset(row.who for row in found)


_WHO = """
SELECT DISTINCT coalesce('pid ' || l.pid, 'prepared transaction ' || quote_literal(p.gid)) AS who
FROM pg_locks l {prepared}
WHERE l.granted AND l.relation = ANY(%(oids)s::oid[]) AND l.mode <> ALL(%(harmless)s)
  AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1
"""
END_THEM = "End them (SELECT pg_terminate_backend(PID); COMMIT PREPARED or ROLLBACK PREPARED)"
READING = ("AccessShareLock",)
LOCKING_ROWS = (*READING, "RowShareLock")


def who_holds(connection: Connection, oids: Sequence[int], harmless: Sequence[str]) -> str:
    """The sessions and prepared transactions with locks on these relations but the ``harmless`` ones, for a person."""
    statement = sql.compose(_WHO, prepared=sql.Text(PREPARED))
    found = sql.rows(connection, statement, {"oids": list(oids), "harmless": list(harmless)})
    return ", ".join(row.who for row in found) or "nobody any more"


def with_table(
    connection: Connection, lease: Lease, place: tuple[str, str], mode: Mode, work: Callable[[], Done],
    seconds: float,
) -> Done:  # fmt: skip
    """Do the work in a transaction that holds the lease and, if there is such a table, its lock in this mode.

    Raises as :func:`patiently`, and RefusedError when the lease is lost.
    """
    # A table may be dropped before we have its lock: the next try finds none.
    retried = BUSY | {"42P01"}
    return patiently(
        partial(_try, connection, lease, place, mode, work),
        seconds,
        partial(_holders_of_table, connection, place, mode),
        retried,
    )


def _try(
    connection: Connection, lease: Lease, place: tuple[str, str], mode: Mode, work: Callable[[], Done], wait: float
) -> Done:
    with connection.begin():
        leases.hold(connection, lease)
        set_up(connection, wait)
        if catalogs.table_oid(connection, *place) is not None:
            lock = "LOCK TABLE {table} IN {mode} MODE"
            sql.execute(connection, sql.compose(lock, table=sql.table(*place), mode=sql.Text(mode)))
        return work()


def _holders_of_table(connection: Connection, place: tuple[str, str], mode: Mode) -> frozenset[str]:
    with connection.begin():
        oid = catalogs.table_oid(connection, *place)
        return holders(connection, [oid] if oid is not None else [], mode)

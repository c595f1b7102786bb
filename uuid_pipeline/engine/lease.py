"""The lease: one writer a store, over all processes and machines, fenced by an epoch."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.connection import is_pooled
from uuid_pipeline.errors import RefusedError

# How long a holder whose connection cannot be judged (another role's, or behind a pooler) is taken for alive.
LEASE_SECONDS = 60
# How often such a holder looks whether it should give a sign of life; it does when its last one is three times as old.
BEAT_SECONDS = 5.0
# How long the last statement of a process that is gone may keep its backend, and so the lease.
ORPHAN_SECONDS = 60.0
EARLIER_POLL_SECONDS = 0.5
# How long a live holder is waited for at all: one that is about to be refused itself is gone by then.
BRIEF_SECONDS = 2.0
# The same between two waves of a run, which gave the lease up for that moment only. On a busy machine even being
# refused takes its time.
BETWEEN_WAVES_SECONDS = 30.0


@dataclass(frozen=True)
class Lease:
    """A held lease. ``dead_run`` is the run of the dead holder that it was taken over from, if any.

    ``pooled``: the holder is behind a pooler, and known to live by its signs of life alone.
    """

    epoch: int
    dead_run: str | None
    pooled: bool = False


# A holder lives while its very backend does: pids are reused, start times are not. The lease expires by time only
# where that backend cannot be seen at all, or has no pid here since a pooler's backend outlives its clients. A sign of
# life from the future is none: the server's clock was set back since, and who lives gives another.
_HOLDER = """
SELECT l.epoch, l.holder, l.run_id, l.renewed_at, l.holder IS NOT NULL AND (
           EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = l.backend_pid
                   AND (a.backend_start = l.backend_start OR (a.backend_start IS NULL AND s.of_late)))
           OR (l.backend_pid IS NULL AND s.of_late)
       ) AS alive
FROM uuid_pipeline.lease l CROSS JOIN LATERAL (
    SELECT abs(extract(epoch FROM clock_timestamp() - l.renewed_at)) < %(ttl)s) s (of_late)
"""


@dataclass(frozen=True)
class Holder:
    holder: str
    run_id: str | None
    renewed_at: datetime
    alive: bool


def holder(connection: Connection) -> Holder | None:
    """Who holds the lease, and whether that process still lives."""
    row = sql.rows(connection, _HOLDER, {"ttl": LEASE_SECONDS})[0]
    return Holder(row.holder, row.run_id, row.renewed_at, row.alive) if row.holder else None


def require_none(connection: Connection) -> None:
    """Raise RefusedError while somebody writes: what a plan is made of would move before it is made."""
    writer = holder(connection)
    if writer is not None and writer.alive:
        raise RefusedError(
            f"Refused: {writer.holder} (run {writer.run_id}) is writing to this store, and a plan would be of rows "
            "that move meanwhile. Wait until it has ended (uuid-pipeline status), then plan."
        )


@contextmanager
def held(engine: Engine, run_id: str) -> Iterator[tuple[Connection, Lease]]:
    """A connection that holds the store's lease while the block runs. Raises RefusedError as :func:`acquire` does."""
    with engine.connect() as connection:
        lease = acquire(engine, connection, run_id)
        connection.rollback()
        try:
            with _signs_of_life(engine, lease):
                yield connection, lease
        finally:
            connection.rollback()
            release(engine, lease)


@contextmanager
def _signs_of_life(engine: Engine, lease: Lease) -> Iterator[None]:
    """Behind a pooler, renew the lease while the block runs, also through one long statement or a wait for locks."""
    if not lease.pooled:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(engine, lease, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _beat(engine: Engine, lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        try:
            with engine.begin() as transaction:
                # Waits while the writer holds the row, ahead of who comes later to ask whether the lease is old.
                sql.execute(
                    transaction,
                    """UPDATE uuid_pipeline.lease SET renewed_at = clock_timestamp()
                       WHERE epoch = %(epoch)s
                         AND abs(extract(epoch FROM clock_timestamp() - renewed_at)) > %(age)s""",
                    {"epoch": lease.epoch, "age": 3 * BEAT_SECONDS},
                )
        except DBAPIError:
            # The writer meets the same fault, and says so; without one the next beat makes up for this.
            continue


def acquire(engine: Engine, connection: Connection, run_id: str) -> Lease:
    """Take the lease for ``connection``'s backend, which must stay open while it is held.

    Raises RefusedError naming the holder when a live one has it and keeps it. A holder whose process on this machine is
    gone, while the server still works on its last statement, is waited for.
    """
    began = time.monotonic()
    while True:
        taken = _try_take(engine, connection, run_id)
        if isinstance(taken, Lease):
            return taken
        patience = ORPHAN_SECONDS if process_is_gone(taken.holder) else BRIEF_SECONDS
        if time.monotonic() - began > patience:
            raise RefusedError(
                f"Another run holds the lease on this store: {taken.holder} (run {taken.run_id}, "
                f"last sign of life {taken.renewed_at:%Y-%m-%d %H:%M:%S} UTC). "
                + ("It is paused: uuid-pipeline resume lets it go on. " if _is_paused(engine) else "")
                + "Wait for it, or end that process; this one changes nothing more."
            )
        time.sleep(0.2)


def _is_paused(engine: Engine) -> bool:
    """Whether somebody has asked the open execution to wait: then its run would be waited for in vain."""
    with engine.begin() as transaction:
        asked = """SELECT EXISTS (SELECT FROM uuid_pipeline.executions
                                  WHERE status IN ('approved', 'running') AND desired = 'pause')"""
        return bool(sql.scalar(transaction, asked))


def await_earlier_attempt(engine: Engine, run_id: str) -> None:
    """Wait while an earlier attempt of this very run holds the lease.

    A step whose worker was lost is given to another one. What of the lost one still lives, or seems to until the
    server notices that its machine is gone, is the same work: it is waited for, not refused.
    """
    while True:
        with engine.begin() as transaction:
            found = holder(transaction)
        if found is None or not found.alive or found.run_id != run_id:
            return
        time.sleep(EARLIER_POLL_SECONDS)


def await_release(engine: Engine) -> None:
    """Between two waves of a run: wait while another one holds the lease, for at most BETWEEN_WAVES_SECONDS."""
    deadline = time.monotonic() + BETWEEN_WAVES_SECONDS
    while time.monotonic() < deadline:
        with engine.begin() as transaction:
            found = holder(transaction)
        if found is None or not found.alive:
            return
        time.sleep(0.2)


def _try_take(engine: Engine, connection: Connection, run_id: str) -> Lease | Holder:
    """The lease, or the live holder; one transaction, so that pg_stat_activity is read anew each time."""
    with engine.begin() as transaction:
        # The row lock orders two takers; a holder has it for the length of a batch.
        sql.execute(transaction, "SET LOCAL lock_timeout = '10s'")
        try:
            row = sql.rows(transaction, _HOLDER + " FOR UPDATE OF l", {"ttl": LEASE_SECONDS})[0]
        except DBAPIError as error:
            if sql.sqlstate(error) != sql.LOCK_NOT_AVAILABLE:
                raise
            raise RefusedError("Another run is writing to this store right now. See: uuid-pipeline status") from error
        if row.alive:
            return Holder(row.holder, row.run_id, row.renewed_at, True)
        pid, start = _backend(connection)
        epoch = sql.scalar(
            transaction,
            """UPDATE uuid_pipeline.lease SET epoch = epoch + 1, holder = %(holder)s, run_id = %(run_id)s,
                   backend_pid = %(pid)s, backend_start = %(start)s, renewed_at = clock_timestamp() RETURNING epoch""",
            {
                "holder": f"process {os.getpid()} on {socket.gethostname()}",
                "run_id": run_id,
                "pid": pid,
                "start": start,
            },
        )
        return Lease(int(epoch), row.run_id if row.holder else None, pid is None)


def _backend(connection: Connection) -> tuple[int | None, datetime | None]:
    """The backend that lives as long as this connection; none behind a pooler."""
    if is_pooled(connection.connection.driver_connection):  # type: ignore[arg-type]
        return None, None
    row = sql.rows(connection, "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")[0]
    return row.pid, row.backend_start


def process_is_gone(holder_name: str) -> bool:
    """Whether the holder is a process of this machine that no longer exists; False where that cannot be known."""
    number, _, machine = holder_name.removeprefix("process ").partition(" on ")
    if machine != socket.gethostname() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


LOST = "This run lost its lease to another one and stopped; what it had committed stands."


def hold(connection: Connection, lease: Lease) -> None:
    """First statement of every writing transaction: lock the lease and prove that it is still ours.

    Raises RefusedError when another process has taken it over: this one must not write any more.
    """
    # Who asks for the lease looks at it under this row's lock: wait that moment out.
    sql.execute(
        connection,
        "SELECT set_config('lock_timeout', '10s', true) WHERE current_setting('lock_timeout') = '0'",
    )
    prove(connection, lease)


def prove(connection: Connection, lease: Lease) -> None:
    """As :func:`hold`, in a batch, which has a timeout of its own."""
    epoch = sql.scalar(
        connection,
        "WITH mine AS (SELECT epoch FROM uuid_pipeline.lease FOR UPDATE) "
        "UPDATE uuid_pipeline.lease l SET renewed_at = clock_timestamp() FROM mine RETURNING l.epoch",
    )
    if epoch != lease.epoch:
        raise RefusedError(LOST)


def share(connection: Connection, lease: Lease) -> None:
    """As :func:`prove`, for one of several batches that this run writes at once.

    Whoever would take the lease over locks its row FOR UPDATE, and so waits for every one of them. Between two rounds
    of batches the run itself must :func:`hold` it, or those who wait would wait for as long as batches overlap.
    """
    epoch = sql.scalar(connection, "SELECT epoch FROM uuid_pipeline.lease FOR SHARE")
    if epoch != lease.epoch:
        raise RefusedError(LOST)


def release(engine: Engine, lease: Lease) -> None:
    """Give the lease back, unless somebody else has it by now."""
    with engine.begin() as transaction:
        sql.execute(
            transaction,
            "UPDATE uuid_pipeline.lease SET holder = NULL, run_id = NULL, backend_pid = NULL, backend_start = NULL "
            "WHERE epoch = %(epoch)s",
            {"epoch": lease.epoch},
        )

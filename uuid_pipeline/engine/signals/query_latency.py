"""Health signal: how long a simple query of the application takes."""

import statistics
import time

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.signals.signal import HealthSignal, compared, unknown
from uuid_pipeline.spec import Throttle

NAME = "query_latency"
RUNS = 3
# A run is cancelled at this multiple of the limit: long enough for a figure, short enough to be no load itself.
PATIENCE = 2.0


def read(connection: Connection, throttle: Throttle) -> HealthSignal:
    """The median of a few runs on a connection of their own; unknown when the query fails."""
    limit = throttle.query_milliseconds or 0.0
    try:
        with connection.engine.connect() as own:
            took = statistics.median([_milliseconds(own, throttle.query or "", limit) for _ in range(RUNS)])
    except (psycopg.Error, DBAPIError) as error:
        [said, *_] = str(getattr(error, "orig", error)).strip().splitlines() or [type(error).__name__]
        return unknown(NAME, f"throttle.query failed: {said}")
    cancelled = " (cancelled there)" if took >= PATIENCE * limit else ""
    reason = f"the query takes {took:.1f} ms{cancelled}, median of {RUNS}; the limit is {limit:g} ms"
    return compared(NAME, took, limit, reason)


def _milliseconds(connection: Connection, query: str, limit: float) -> float:
    """One run in a read-only transaction, as a client sees it."""
    cancel_at = PATIENCE * limit
    with connection.begin():
        sql.execute(
            connection,
            """SELECT set_config('transaction_read_only', 'on', true),
                      set_config('statement_timeout', %(milliseconds)s, true)""",
            {"milliseconds": str(max(1, round(cancel_at)))},
        )
        began = time.perf_counter()
        try:
            _run(connection, query)
        except psycopg.errors.QueryCanceled:
            return max(cancel_at, 1000 * (time.perf_counter() - began))
        return 1000 * (time.perf_counter() - began)


def _run(connection: Connection, query: str) -> None:
    """One statement and no more: as text alone the server would take several, "COMMIT; DELETE …" among them."""
    # Binary results are had by the extended protocol only, and that refuses a second statement.
    with sql.by_the_driver(connection) as driver, driver.cursor(binary=True) as cursor:
        cursor.execute(query)


def unavailable(_: Connection) -> str | None:
    """None: every role can run a query; one that fails is unknown."""
    return None

"""Fetching ahead: while this thread computes, a helper has the server make the next rows."""

import contextlib
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection

Rows = TypeVar("Rows")

SECONDS_BETWEEN_CANCELS = 0.2


def fetched_ahead(connection: Connection, batches: Iterator[Rows]) -> Generator[Rows, None, None]:
    """The same batches, each fetched while the one before is worked on; two of them are in memory.

    Until it ends, only the helper uses the connection. It pays where the work leaves the interpreter to other threads,
    as numpy does and plain Python does not. What a fetch raises is raised here; closed early, as an exception or Ctrl-C
    in its user should close it (``contextlib.closing``), it cancels the fetch and returns when the helper has ended.
    """
    with ThreadPoolExecutor(1, "fetching") as helper:
        coming: Future[Rows | None] = helper.submit(next, batches, None)
        try:
            while (rows := coming.result()) is not None:
                coming = helper.submit(next, batches, None)
                yield rows
        finally:
            _end(connection, coming)


def _end(connection: Connection, fetch: Future[Any]) -> None:
    """Cancel until the fetch has ended: a request that comes before its statement cancels nothing."""
    driver: Any = connection.connection.driver_connection
    while not fetch.done():
        with contextlib.suppress(psycopg.Error):  # What cannot be cancelled is waited for.
            driver.cancel_safe()
        wait([fetch], timeout=SECONDS_BETWEEN_CANCELS)

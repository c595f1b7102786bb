"""Lanes: batches of a wave written at once, each in a session of its own, while nobody else is at work in the store.

One batch keeps one core of the server busy, and none while it waits for us; a second one beside it uses what is left.
Beside an application at work that rest is the application's: then there is one lane.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.merges import ties
from uuid_pipeline.engine.signals.sessions import OTHERS_AT_WORK, REST_SECONDS
from uuid_pipeline.engine.store import Store

Done = TypeVar("Done")
# Batches of each lane between two looks at what people and health signals want, and who else is at work.
BATCHES_A_ROUND = 4

# First and last ordinal, both included.
Ordinals = tuple[int, int]


def last_at_work(connection: Connection, last: float | None) -> float | None:
    """When (monotonic seconds) somebody else was last seen at work in this database; ``last`` is what was known."""
    at_work = sql.scalar(connection, OTHERS_AT_WORK)
    connection.rollback()
    return time.monotonic() if at_work else last


def is_resting(last: float | None) -> bool:
    """Whether it is long enough ago. Sessions that came and went between two looks were not seen: hence so long."""
    return last is None or time.monotonic() - last > REST_SECONDS


def most(connection: Connection, store: Store, wave: ledger.Wave, spans: Sequence[Ordinals], size: int) -> int:
    """How many batches of ``size`` of this wave may ever be written at once; 1 where two could meet in a row."""
    batches = sum(-(-(last - first + 1) // size) for first, last in spans)
    if store.spec.lanes == 1 or batches < 2:
        return 1
    if ties.has_ties(store):
        return 1
    merges = ties.merges(connection, store, wave)
    connection.rollback()
    if merges:
        return 1
    return min(store.spec.lanes, batches)


def at_once(work: Sequence[Callable[[], Done]], count: int) -> list[Future[Done]]:
    """Do all of it in order, ``count`` at once, each in a thread of its own.

    Once one has failed, or this thread is interrupted, none is begun any more; those at work are waited for.
    """
    with ThreadPoolExecutor(count, thread_name_prefix="lane") as threads:
        futures = [threads.submit(one) for one in work]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            threads.shutdown(cancel_futures=True)
    return futures

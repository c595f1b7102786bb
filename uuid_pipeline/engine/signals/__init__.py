"""Health signals of the store: one file each, always with a reason; what cannot be read is unknown, never normal."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine.signals import lock_waits, long_transactions, query_latency, replication_lag
from uuid_pipeline.engine.signals.signal import HealthSignal, unknown
from uuid_pipeline.spec import Throttle


@dataclass(frozen=True)
class Source:
    """Where a signal comes from; ``setting`` is the field of the spec's ``throttle`` that holds its limit."""

    name: str
    setting: str
    read: Callable[[Connection, Throttle], HealthSignal]
    unavailable: Callable[[Connection], str | None]


SOURCES = (
    Source(replication_lag.NAME, "replication_lag_seconds", replication_lag.read, replication_lag.unavailable),
    Source(lock_waits.NAME, "lock_waits", lock_waits.read, lock_waits.unavailable),
    Source(long_transactions.NAME, "long_transaction_seconds", long_transactions.read, long_transactions.unavailable),
    Source(query_latency.NAME, "query_milliseconds", query_latency.read, query_latency.unavailable),
)


def configured(throttle: Throttle) -> tuple[Source, ...]:
    """The signals that the spec gives a limit."""
    return tuple(source for source in SOURCES if getattr(throttle, source.setting) is not None)


def setting_of(name: str) -> str:
    """The field of the spec that holds a signal's limit."""
    return next(source.setting for source in SOURCES if source.name == name)


def read_all(connection: Connection, throttle: Throttle, waived: Collection[str]) -> tuple[HealthSignal, ...]:
    """Every configured signal but the waived ones; PostgreSQL shows sessions as of the transaction's first look."""
    sources = [source for source in configured(throttle) if source.name not in waived]
    return tuple(_read(connection, throttle, source) for source in sources)


def _read(connection: Connection, throttle: Throttle, source: Source) -> HealthSignal:
    try:
        with connection.begin_nested():
            return source.read(connection, throttle)
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return unknown(source.name, f"it cannot be read: {str(error.orig).strip().splitlines()[0]}")


def unreadable(connection: Connection, throttle: Throttle) -> dict[str, str]:
    """Configured signals that cannot be had here, each with the reason: for the plan, to be approved with it."""
    found = {}
    for source in configured(throttle):
        reason = source.unavailable(connection)
        if reason is None:
            reading = _read(connection, throttle, source)
            reason = reading.reason if reading.state == "unknown" else None
        if reason is not None:
            found[source.name] = reason
    return found

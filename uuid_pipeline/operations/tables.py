"""Dagster's own tables, made whole: it makes them one by one, and takes the first of them for all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from sqlalchemy import Connection, MetaData
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.errors import UsageError

_STORAGES: tuple[MetaData, ...] = (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata)
_LOCK = 7_245_012_386_511  # of this purpose, in Dagster's database
LOCK_TIMEOUT_SECONDS = 60


@contextmanager
def whole(url: str) -> Iterator[None]:
    """While the block opens the instance, and so makes what it lacks, no other process of ours does.

    What one that was killed while it made them has left is removed before. Raises UsageError when another process has
    been at it for a minute.
    """
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    try:
        with engine.connect() as ours:
            _lock(ours)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                _remove_half_made(connection)
            yield
    finally:
        engine.dispose()


def _lock(connection: Connection) -> None:
    """In a transaction, which ends with the process, and which a pooler does not give to anybody else."""
    connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
    try:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    except DBAPIError as error:
        raise UsageError(
            f"Another process has been opening Dagster's own database for {LOCK_TIMEOUT_SECONDS} s and is not done. "
            "End it (pg_stat_activity shows who holds an advisory lock there), then give the same command again."
        ) from error


def _remove_half_made(connection: Connection) -> None:
    """Where some of the tables lack and the others are empty: what an older Dagster made, and used, has rows."""
    present = set(sa.inspect(connection).get_table_names())
    wanted = {table.name: table for metadata in _STORAGES for table in metadata.sorted_tables}
    made = [table for name, table in wanted.items() if name in present]
    if not made or len(made) == len(wanted) or any(_has_rows(connection, table) for table in made):
        return
    for metadata in _STORAGES:
        metadata.drop_all(connection)
    connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))


# Dagster writes there as it makes tables, whether anybody uses them or not.
_NOTES = {"secondary_indexes", "instance_info"}


def _has_rows(connection: Connection, table: sa.Table) -> bool:
    return (
        table.name not in _NOTES and connection.execute(sa.select(sa.literal(1)).select_from(table)).first() is not None
    )


def finish(instance: dg.DagsterInstance) -> None:
    """Dagster's notes that its tables are of the newest form, which it makes after them; nothing where they are."""
    instance.run_storage.migrate()
    instance.run_storage.optimize()
    instance.event_log_storage.reindex_events()
    instance.event_log_storage.reindex_assets()
    if instance.schedule_storage is not None:
        instance.schedule_storage.migrate()
        instance.schedule_storage.optimize()

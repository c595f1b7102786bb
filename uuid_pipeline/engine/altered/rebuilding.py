"""Dropping vector indexes for as long as a run writes, and building them again as they were.

An index's definition stands in the ledger from the transaction that drops it until it is valid again, so a later run
builds what a crashed one left. It is built CONCURRENTLY: the application writes all the while.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from functools import partial
from typing import Any, LiteralString, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger, patience, sql
from uuid_pipeline.engine.altered import vector_indexes
from uuid_pipeline.engine.altered.vector_indexes import VectorIndex
from uuid_pipeline.engine.lease import Lease
from uuid_pipeline.errors import RefusedError

Done = TypeVar("Done")
Say = Callable[[str], None]

LOCK_SECONDS = 120.0
# How often a sign of life is given while an index is built: well within leases.LEASE_SECONDS.
RENEW_SECONDS = 5.0
BUILD_TRIES = 3


class NotBuiltError(RefusedError):
    """An index that we dropped could not be built again; it stays in the ledger for the next run."""


def drop(connection: Connection, lease: Lease, indexes: Sequence[VectorIndex], say: Say) -> list[str]:
    """Drop these indexes, each in a transaction with its record; returns the names of those that are dropped now.

    One whose table's lock is not to be had for LOCK_SECONDS stays, and says so: slow is better than stopped.
    """
    with connection.begin():
        gone = {(record["schema"], record["name"]) for record in catalogs.altered_indexes(connection)}
    dropped = []
    for index in indexes:
        where = f"index {index.name} of {index.place}"
        if (index.schema, index.name) in gone:
            continue  # by a run that crashed
        try:
            if _locked(connection, lease, index, partial(_drop_one, connection, index)):
                dropped.append(index.name)
                say(f"{where} is dropped for this run; similarity search scans the table meanwhile")
        except patience.OutOfPatienceError:
            say(f"{where} stays in place: the table's lock was not to be had for {LOCK_SECONDS:.0f} s; writing is slow")
    return dropped


def _drop_one(connection: Connection, index: VectorIndex) -> bool:
    # Read again under the lock: what is recorded is what is dropped.
    oid = catalogs.table_oid(connection, index.schema, index.table)
    found = [i for i in vector_indexes.read(connection, [oid] if oid else []) if i.name == index.name]
    if not found or found[0].hindrance:
        return False
    # In the transaction of the change: a crash leaves both or neither.
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.altered (kind, object, definition)
           VALUES ('index', format('%%I.%%I', %(schema)s::text, %(name)s::text), %(text)s)
           ON CONFLICT (kind, object) DO UPDATE SET definition = excluded.definition, altered_at = clock_timestamp()""",
        {"schema": index.schema, "name": index.name, "text": json.dumps(asdict(found[0]))},
    )
    sql.execute(connection, sql.compose("DROP INDEX {index}", index=sql.table(index.schema, index.name)))
    ledger.audit(connection, "index dropped", {"index": index.name, "table": index.place})
    return True


def _locked(connection: Connection, lease: Lease, index: VectorIndex, work: Callable[[], Done]) -> Done:
    """Do the work in a transaction that holds the table's lock, against readers too; raises OutOfPatienceError."""
    place = (index.schema, index.table)
    return patience.with_table(connection, lease, place, "ACCESS EXCLUSIVE", work, LOCK_SECONDS)


_STATE = """
SELECT pg_get_indexdef(i.indexrelid) AS definition, coalesce(i.indisvalid, false) AS valid,
       obj_description(x.oid, 'pg_class') AS comment,
       EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = x.oid) AS building
FROM pg_class x JOIN pg_namespace n ON n.oid = x.relnamespace LEFT JOIN pg_index i ON i.indexrelid = x.oid
WHERE n.nspname = %(schema)s AND x.relname = %(name)s
"""


def put_back(engine: Engine, connection: Connection, lease: Lease, say: Say) -> list[str]:
    """Build every index that we dropped, also one that a crashed run left; a sentence for each.

    An index that the application defined otherwise under that name stays as it is. Raises NotBuiltError when one
    cannot be built.
    """
    connection.rollback()
    with connection.begin():
        waiting = [VectorIndex(**record) for record in catalogs.altered_indexes(connection)]
    return [_put_back_one(engine, connection, lease, index, say) for index in waiting]


def _put_back_one(engine: Engine, connection: Connection, lease: Lease, index: VectorIndex, say: Say) -> str:
    where, began = f"index {index.name} of {index.place}", time.monotonic()
    failure, tries, settings = None, 0, _ROOMY
    while True:
        state, table = _look(connection, lease, index)
        if not table:
            return _forget(connection, lease, index, f"{where} is not built: the table is gone ({index.definition})")
        if state is not None and state.definition != index.definition:
            return _forget(connection, lease, index, f"{where} was defined anew meanwhile and stays as it is")
        if state is not None and state.valid:
            return _finish(connection, lease, index, state, f"{where} is as it was", time.monotonic() - began)
        if state is not None and state.building:
            say(f"{where} is being built by another session; waiting for it")
            time.sleep(RENEW_SECONDS)
        elif state is not None:
            _clear(connection, lease, index, failure)  # half-built: it finds nothing, and costs every write
        elif failure is not None and settings is _ROOMY and _lacked_room(failure):
            failure, settings = None, _AS_THE_SERVER_HAS_IT
        elif failure is not None and (tries == BUILD_TRIES or sql.sqlstate(failure) not in patience.BUSY):
            raise NotBuiltError(_not_built(index, failure)) from failure
        else:
            say(f"{where}: building it again, {tries + 1}. try; similarity search scans the table until it is done")
            failure, tries = _build(engine, connection, lease, index, settings), tries + 1


def _look(connection: Connection, lease: Lease, index: VectorIndex) -> tuple[Any | None, bool]:
    with connection.begin():
        leases.hold(connection, lease)
        catalogs.pin_names(connection)
        found = sql.rows(connection, _STATE, {"schema": index.schema, "name": index.name})
        return (found[0] if found else None), catalogs.table_oid(connection, index.schema, index.table) is not None


def _clear(connection: Connection, lease: Lease, index: VectorIndex, failure: DBAPIError | None) -> None:
    statement = sql.compose("DROP INDEX IF EXISTS {index}", index=sql.table(index.schema, index.name))
    try:
        _locked(connection, lease, index, lambda: sql.execute(connection, statement))
    except patience.OutOfPatienceError as error:
        why = f" The build failed: {' '.join(str(failure.orig).split())}." if failure else ""
        raise NotBuiltError(
            f"Index {index.name} of {index.place} is half built and could not be dropped: the table's lock was not to "
            f"be had for {LOCK_SECONDS:.0f} s. End the transactions that hold it (see pg_locks) and run again." + why
        ) from error


# No timeout of the role's may cut a build short. Behind a pooler a session's setting would reach others, or be lost;
# there the server's process is not the one that the connection was told of, and this is left out.
_NO_TIMEOUTS: LiteralString = (
    "SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false)"
)
# A graph that does not fit is built several times slower. A quarter of what the server counts on for its cache, 2 GB at
# most, and never less than its own setting.
_ROOM_FOR_THE_GRAPH: LiteralString = """
SELECT set_config('maintenance_work_mem', greatest(
    pg_size_bytes(current_setting('maintenance_work_mem')),
    least(pg_size_bytes(current_setting('effective_cache_size')) / 4, 2147483648)) / 1024 || 'kB', false)
"""
_ROOMY: tuple[LiteralString, ...] = (_NO_TIMEOUTS, _ROOM_FOR_THE_GRAPH)
_AS_THE_SERVER_HAS_IT: tuple[LiteralString, ...] = (_NO_TIMEOUTS,)


def _lacked_room(failure: DBAPIError) -> bool:
    """Whether the machine had not the memory, or the shared memory of a container, that the server counts on."""
    return (sql.sqlstate(failure) or "").startswith("53")


def _build(
    engine: Engine, connection: Connection, lease: Lease, index: VectorIndex, settings: Sequence[LiteralString]
) -> DBAPIError | None:
    """Build on a connection of its own while this one keeps the lease; returns the server's refusal, if any."""
    statement = sql.compose(
        "{head} TABLESPACE {tablespace}{where}",
        head=sql.as_written(index.head.replace("CREATE INDEX ", "CREATE INDEX CONCURRENTLY ", 1)),
        tablespace=sql.name(index.tablespace),
        where=sql.as_written(index.where),
    )
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as own,
        ThreadPoolExecutor(1, "index build") as pool,
    ):
        driver: Any = own.connection.driver_connection
        own.detach()  # its settings are not for others
        if sql.scalar(own, "SELECT pg_backend_pid()") == driver.info.backend_pid:
            for setting in settings:
                sql.execute(own, setting)
        building = pool.submit(sql.execute, own, statement)
        try:
            while wait([building], timeout=RENEW_SECONDS).not_done:
                # A short transaction: the build waits for older snapshots to end.
                with connection.begin():
                    leases.hold(connection, lease)
        except BaseException:
            driver.cancel_safe()
            raise
        try:
            building.result()
        except DBAPIError as error:
            if sql.sqlstate(error) is None:
                raise
            return error
    return None


def _not_built(index: VectorIndex, failure: DBAPIError) -> str:
    remedy = "Mend the reason and run again"
    if sql.sqlstate(failure) == sql.QUERY_CANCELED:
        remedy = (
            "It was cancelled, by a person or by statement_timeout: connect past the pooler, or ALTER ROLE … SET "
            "statement_timeout = 0, and run again"
        )
    return (
        f"Index {index.name} of {index.place}, dropped for a run, could not be built again: "
        f"{' '.join(str(failure.orig).split())}. {remedy}: the next one builds it first. If it is no longer wanted: "
        f"take it out of uuid_pipeline.altered; its definition is: {index.definition}"
    )


def _finish(connection: Connection, lease: Lease, index: VectorIndex, state: Any, outcome: str, seconds: float) -> str:
    """Give a valid index what its definition does not hold, and forget it."""
    with connection.begin():
        leases.hold(connection, lease)
        name = sql.table(index.schema, index.name)
        if index.comment is not None and state.comment is None:
            comment = sql.compose("COMMENT ON INDEX {i} IS {text}", i=name, text=sql.literal(index.comment))
            sql.execute(connection, comment)
        for column, target in index.statistics.items():
            sql.execute(
                connection,
                sql.compose(
                    "ALTER INDEX {i} ALTER COLUMN {column} SET STATISTICS {target}",
                    i=name, column=sql.literal(int(column)), target=sql.literal(target),
                ),
            )  # fmt: skip
        for extension in index.extensions:
            sql.execute(
                connection,
                sql.compose("ALTER INDEX {i} DEPENDS ON EXTENSION {e}", i=name, e=sql.name(extension)),
            )
        _delete_record(connection, index)
        detail = {"index": index.name, "table": index.place, "outcome": outcome, "seconds": round(seconds, 1)}
        ledger.audit(connection, "index built", detail)
    return outcome


def _forget(connection: Connection, lease: Lease, index: VectorIndex, outcome: str) -> str:
    with connection.begin():
        leases.hold(connection, lease)
        _delete_record(connection, index)
        ledger.audit(connection, "index not built", {"index": index.name, "table": index.place, "outcome": outcome})
    return outcome


def _delete_record(connection: Connection, index: VectorIndex) -> None:
    sql.execute(
        connection,
        """DELETE FROM uuid_pipeline.altered WHERE kind = 'index'
           AND object = format('%%I.%%I', %(schema)s::text, %(name)s::text)""",
        {"schema": index.schema, "name": index.name},
    )

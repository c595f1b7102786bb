"""Connections to the store, with every setting that could change what a statement means pinned."""

import contextlib
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, PendingRollbackError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.signals.sessions import OTHERS_AT_WORK
from uuid_pipeline.errors import ConnectionLostError, PipelineError, RefusedError, UsageError
from uuid_pipeline.settings import without_secrets

CONNECT_TIMEOUT_SECONDS = 10
# The last: a connection broke inside a savepoint, which SQLAlchemy then wants undone before it says anything else.
DATABASE_ERRORS = (DBAPIError, psycopg.Error, PendingRollbackError)

# Then tables of ours go to the database's own tablespace.
_NOT_OURS_TO_USE = """
SELECT EXISTS (SELECT FROM pg_tablespace s WHERE s.spcname = current_setting('default_tablespace')
               AND NOT has_tablespace_privilege(s.oid, 'CREATE'))
"""

# A path may name pg_catalog behind a schema in which others can make functions, operators and tables of its names. Ours
# would mean those, and what we create would for good. Where it does not name it, the server looks there first.
_CATALOG_FIRST = """
SELECT pg_catalog.set_config(
    'search_path', 'pg_catalog, ' OPERATOR(pg_catalog.||) pg_catalog.current_setting('search_path'), true)
WHERE pg_catalog.current_setting('search_path') OPERATOR(pg_catalog.~) 'pg_catalog'
"""

# Set per transaction, not per session, so that a pooler in transaction mode cannot lose or leak them.
# row_security=off turns rows that a policy would hide into an error; the timeouts are ours to bound, by batch.
# Memory at least what hashes and sorts of a million ids need; compiling our wide expressions costs more than it gives.
# What a cursor streams is read to its end: by default the server plans for the first tenth of it.
# While somebody else is at work a statement of ours keeps one process of the server busy, not three: on a small machine
# parallel workers make an application's queries wait twice as long. Who looks at sessions later in the transaction
# looks anew.
_PINNED = f"""
SELECT set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO, YMD', true),
       set_config('IntervalStyle', 'iso_8601', true), set_config('extra_float_digits', '1', true),
       set_config('bytea_output', 'hex', true), set_config('row_security', 'off', true),
       set_config('standard_conforming_strings', 'on', true), set_config('quote_all_identifiers', 'off', true),
       set_config('transform_null_equals', 'off', true), set_config('array_nulls', 'on', true),
       set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true),
       set_config('idle_in_transaction_session_timeout', '0', true), set_config('jit', 'off', true),
       set_config('cursor_tuple_fraction', '1', true),
       set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')), 134217728) / 1024 || 'kB', true),
       set_config('maintenance_work_mem',
                  greatest(pg_size_bytes(current_setting('maintenance_work_mem')), 268435456) / 1024 || 'kB', true),
       CASE WHEN ({_NOT_OURS_TO_USE}) THEN set_config('default_tablespace', '', true) END,
       CASE WHEN ({OTHERS_AT_WORK}) THEN set_config('max_parallel_workers_per_gather', '0', true)
                 || set_config('max_parallel_maintenance_workers', '0', true) END,
       pg_stat_clear_snapshot()
"""
_PINNED_SINCE_17 = _PINNED.rstrip() + ", set_config('transaction_timeout', '0', true)"

# The one limit that acts between transactions. A pooler looks after its own sessions, which others use too.
_NEVER_IDLE = "SELECT pg_catalog.set_config('idle_session_timeout', '0', false)"

# A machine that is gone says no goodbye; the server is to notice within half a minute, since the lease lives that long.
_NOTICED = """
SELECT pg_catalog.set_config('tcp_keepalives_idle', '10', false),
       pg_catalog.set_config('tcp_keepalives_interval', '5', false),
       pg_catalog.set_config('tcp_keepalives_count', '3', false)
"""
# A process that is gone the server notices only between statements, unless it is told to look, which not every system
# allows: a statement would go on, and hold its locks, for nobody.
_MISSED = """
DO $$
BEGIN
    PERFORM pg_catalog.set_config('client_connection_check_interval', '2s', false);
EXCEPTION WHEN invalid_parameter_value THEN
    NULL;
END
$$
"""


def store_url(text: str) -> URL:
    """A SQLAlchemy URL with our driver. Raises UsageError when ``text`` is no PostgreSQL URL."""
    require_one_at_sign(text, "UUID_PIPELINE_DATABASE_URL")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UsageError(
            "UUID_PIPELINE_DATABASE_URL is not a database URL. Expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE; "
            "several hosts are written postgresql://USER:PASSWORD@/DATABASE?host=ONE:PORT&host=OTHER:PORT."
        ) from error
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise UsageError(
            f"UUID_PIPELINE_DATABASE_URL begins with {url.get_backend_name()!r}; the store must be PostgreSQL, written "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE."
        )
    return url.set(drivername="postgresql+psycopg")


def require_one_at_sign(text: str, variable: str) -> None:
    """Raise UsageError for a URL with a bare "@" in its password: the rest would be taken, and shown, as a host."""
    if text.count("@") > 1:
        raise UsageError(f'{variable} has more than one "@". Write one that is part of a name or password as %40.')


def open_store(text: str) -> Engine:
    """An engine for the store, tried once. Raises UsageError when it cannot be reached."""
    url = store_url(text)
    engine = sa.create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "uuid_pipeline",
            "client_encoding": "utf8",
            "prepare_threshold": None,
        },
    )
    event.listen(engine, "connect", _outlast_pauses)
    event.listen(engine, "checkout", _write_by_default)
    event.listen(engine, "begin", _pin_settings)
    try:
        with engine.connect() as connection:
            version = connection.exec_driver_sql("SELECT current_setting('server_version_num')::int").scalar_one()
    except (DBAPIError, UnicodeError) as error:
        engine.dispose()
        if getattr(getattr(error, "orig", None), "sqlstate", None) in _INTERRUPTED:
            raise explained(error) from error
        raise UsageError(_unreachable(url, text, error)) from error
    if version < 140000:
        engine.dispose()
        raise UsageError(f"The store runs PostgreSQL {version // 10000}; uuid-pipeline needs 14 or newer.")
    return engine


def _pin_settings(connection: sa.Connection) -> None:
    since_17 = (connection.dialect.server_version_info or (0,)) >= (17,)
    # In one message: the second statement is read once the first has run.
    connection.exec_driver_sql(f"{_CATALOG_FIRST}; {_PINNED_SINCE_17 if since_17 else _PINNED}")


def _outlast_pauses(driver: psycopg.Connection[Any], _: object) -> None:
    driver.autocommit = True
    if not is_pooled(driver):
        driver.execute(_NEVER_IDLE)
        driver.execute(_NOTICED)
        # Not every role may use the language that asks.
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject):
            driver.execute(_MISSED)
    driver.autocommit = False


def _write_by_default(driver: psycopg.Connection[Any], *_: object) -> None:
    """Say READ WRITE with every BEGIN, whatever the role's default, but where the server could only refuse it.

    Who asks for postgresql_readonly does so later, and gets it.
    """
    driver.read_only = None if driver.info.parameter_status("in_hot_standby") == "on" else False


def is_pooled(driver: psycopg.Connection[Any]) -> bool:
    """Whether the server's session may be another one in the next transaction: its pid is not the one we were told."""
    idle = driver.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    row = driver.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    if idle:
        # Nobody told SQLAlchemy of the transaction that this began; it would stay open, with none of our settings.
        driver.rollback()
    return row is None or row[0] != driver.info.backend_pid


def same_store(one: sa.Connection, other: sa.Connection) -> bool:
    """Whether two connections lead to one database, however each got there: the moment its server started is its own.

    A restart between the two questions makes them differ.
    """
    asked = "SELECT pg_postmaster_start_time()::text, oid, datname FROM pg_database WHERE datname = current_database()"
    return one.exec_driver_sql(asked).one() == other.exec_driver_sql(asked).one()


# What the bytes that SQL_ASCII takes, or a character that LATIN1 lacks, come to.
_UNTRANSLATABLE = "22P05"
_NO_TEXT = frozenset({"22021", _UNTRANSLATABLE})
# A standby, or a session that is read-only whatever it asks for: not the store that the verb wants.
_READ_ONLY = "25006"
# What to do about the refusals that a user meets; others say it themselves.
_CHANGED_SINCE = (
    "If it was dropped or renamed since the plan was made: what was committed stands. Put it back and run again; or "
    "take back what has moved, which wants it no longer: uuid-pipeline rollback --all; or take it out of the spec (a "
    "reference may be `optional: true`) and plan again."
)
_REMEDIES = {
    "42P01": _CHANGED_SINCE,
    "42703": _CHANGED_SINCE,
    "42501": "This role lacks a right that the verb needs: docs/roles.md says which role may do what. Connect as that "
    "one (UUID_PIPELINE_DATABASE_URL), or have the right granted.",
    "53100": "Make room on the server's disk, and run again: what was committed stands.",
}
_LEDGER_IS_GONE = "The ledger was dropped meanwhile. Begin again: uuid-pipeline plan"
# The driver gives a connection that failed no SQLSTATE; a server that speaks another language is not understood.
_NO_MORE_CONNECTIONS = ("too many connections", "too many clients", "remaining connection slots", "no more connections")
_CONNECTIONS_WANTED = (
    "What was committed stands. Raise the limit that it names (ALTER ROLE or ALTER DATABASE … CONNECTION LIMIT, "
    "max_connections, a pooler's), or wait until others have left: a run holds up to five at once. Then run again."
)
# The server ended the session (an administrator, a shutdown, a crash, a restart); what begins with 08 is the network's.
_ENDED = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"})
# A statement was cancelled, or its session ended, by somebody's hand.
_INTERRUPTED = frozenset({sql.QUERY_CANCELED, "57P01"})


def explained(error: Exception) -> PipelineError:
    """What came of a statement, for people: a lost connection is none that was refused, and says what to do.

    ``error`` is one of DATABASE_ERRORS.
    """
    cause = getattr(error, "orig", None) or error
    said = " ".join(str(cause).split()).rstrip(".")
    state = getattr(cause, "sqlstate", None)
    broken = state is None and isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError))
    if broken and any(words in said for words in _NO_MORE_CONNECTIONS):
        return ConnectionLostError(f"The server takes no further connection of ours ({said}). {_CONNECTIONS_WANTED}")
    if broken or state in _ENDED or str(state).startswith("08") or isinstance(error, PendingRollbackError):
        return ConnectionLostError(
            f"The connection to the store was lost ({said}). What was committed stands; when the server answers "
            "again, give the same command again: it goes on from there."
        )
    if state == _READ_ONLY:
        return UsageError(
            f"The store may not be written here ({said}). Connect to the primary server (UUID_PIPELINE_DATABASE_URL), "
            "with a session that may write."
        )
    if state == _UNTRANSLATABLE and any(words in said for words in ('in encoding "UTF8"', "Unicode escape")):
        return RefusedError(
            f"The store's encoding lacks a character that is to be written ({said}): it stands in the spec (a reason, "
            "a name) or in a name on this machine. Write it without."
        )
    if state in _NO_TEXT or (state == "0A000" and "SQL_ASCII" in said):
        return RefusedError(
            f"The store holds text that is none in the encoding it is to be read in ({said}). Mend these rows first: "
            "server_encoding is the database's own, and SQL_ASCII takes any bytes."
        )
    if state in ("42P01", "42703") and isinstance(cause, psycopg.Error):
        said = cause.diag.message_primary or said  # what follows is of our own making
    remedy = _LEDGER_IS_GONE if 'relation "uuid_pipeline.' in said and state == "42P01" else _REMEDIES.get(str(state))
    return RefusedError(f"The store refused a statement: {said}" + (f". {remedy}" if remedy else ""))


def _unreachable(url: URL, text: str, error: Exception) -> str:
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()
    detail = without_secrets(reason[0] if reason else type(error).__name__, text)
    # Only what cannot hold a password: an unencoded "@" or "/" in one would end up in the host's place.
    shown = url.set(drivername="postgresql", password=None, query={})
    place = shown.render_as_string(hide_password=True)
    remedy = "Check UUID_PIPELINE_DATABASE_URL and that the server is up."
    if any(words in detail for words in _NO_MORE_CONNECTIONS):
        remedy = _CONNECTIONS_WANTED
    return without_secrets(f"The store {place} cannot be reached: {detail}. {remedy}", text)


def copy_in(connection: sa.Connection, statement: str, data: bytes) -> None:
    """Send rows inside the connection's own transaction, in the form that ``statement``, COPY … FROM STDIN, names."""
    with sql.by_the_driver(connection) as driver, driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(data)


def cluster_identity(connection: sa.Connection) -> str | None:
    """The cluster's system identifier; None where this role may not ask for it."""
    may_ask = sql.scalar(connection, "SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')")
    return str(sql.scalar(connection, "SELECT system_identifier::text FROM pg_control_system()")) if may_ask else None


def store_identity(connection: sa.Connection) -> str:
    """What tells one store from another: the cluster's system identifier and the database's oid and name."""
    cluster = cluster_identity(connection) or sql.scalar(
        connection, "SELECT coalesce(inet_server_addr()::text, 'local')"
    )
    database = sql.scalar(
        connection, "SELECT oid || '/' || datname FROM pg_database WHERE datname = current_database()"
    )
    return f"{cluster}/{database}"

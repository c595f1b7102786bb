"""What a role has by default changes neither what our statements mean nor how long they may take."""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from uuid_pipeline.demo.incident import add_vector_buffer
from uuid_pipeline.engine import ledger, traps
from uuid_pipeline.engine.connection import explained, open_store
from uuid_pipeline.engine.installed import functions
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import load_spec, parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)
MEANINGS = {
    "TimeZone": "Asia/Kolkata",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
    "client_encoding": "LATIN1",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
}
LIMITS = {
    "statement_timeout": "300ms",
    "lock_timeout": "300ms",
    "transaction_timeout": "300ms",
    "idle_in_transaction_session_timeout": "300ms",
    "idle_session_timeout": "300ms",
}


def of_a_role_with(settings: dict[str, str], url: str, new_role: NewRole) -> Engine:
    """The store for a superuser with these settings by default."""
    role = new_role("SUPERUSER")
    with psycopg.connect(url, autocommit=True) as connection:
        for name, value in settings.items():
            connection.execute(
                sql.SQL("ALTER ROLE {} SET {} = {}").format(sql.Identifier(role), sql.Identifier(name), value)
            )
    return open_store(as_role(url, role))


def test_the_incident_is_migrated_and_rolled_back_whatever_the_roles_settings_are(
    incident: Engine, incident_url: str, new_role: NewRole
) -> None:
    with incident.begin() as connection:
        add_vector_buffer(connection)
    before, objects = cycle.rows_of(incident), cycle.catalog_of(incident)
    with psycopg.connect(incident_url) as plain:
        version = plain.info.server_version
    limits = {name: value for name, value in LIMITS.items() if version >= 170000 or name != "transaction_timeout"}
    store = of_a_role_with(MEANINGS | limits, incident_url, new_role)

    cycle.run_all(store, SPEC)

    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    cycle.roll_back(store, SPEC)
    assert cycle.rows_of(incident) == before
    assert cycle.catalog_of(incident) == objects


def test_no_limit_of_the_role_ends_a_long_statement_a_long_transaction_or_a_pause(
    incident_url: str, new_role: NewRole
) -> None:
    store = of_a_role_with(LIMITS, incident_url, new_role)
    with store.connect() as connection:
        backend = pid(connection)
        with connection.begin():
            connection.exec_driver_sql("SELECT pg_sleep(0.4)")
            time.sleep(0.4)
            connection.exec_driver_sql("SELECT 1")
        time.sleep(0.4)
        assert pid(connection) == backend


def pid(connection: Connection) -> int:
    with connection.begin():
        return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())


def test_only_who_asks_for_it_may_not_write(incident_url: str, new_role: NewRole) -> None:
    store = of_a_role_with({"default_transaction_read_only": "on"}, incident_url, new_role)
    with store.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE first ()")
    with store.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with pytest.raises(DBAPIError, match="read-only transaction"):
            connection.exec_driver_sql("CREATE TABLE second ()")
    with store.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE second ()")


@pytest.mark.parametrize("may", [True, False])
def test_a_default_tablespace_is_used_by_those_who_may(incident_url: str, new_role: NewRole, may: bool) -> None:
    role = new_role("")
    space = sql.Identifier(f"space_of_{role}")
    owner = sql.Identifier(role)
    with psycopg.connect(incident_url, autocommit=True) as administrator:
        administrator.execute("SET allow_in_place_tablespaces = on")
        administrator.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(space))
        administrator.execute(sql.SQL("ALTER ROLE {} SET default_tablespace = {}").format(owner, space))
        administrator.execute(sql.SQL("CREATE SCHEMA mine AUTHORIZATION {}").format(owner))
        if may:
            administrator.execute(sql.SQL("GRANT CREATE ON TABLESPACE {} TO {}").format(space, owner))
        store = open_store(as_role(incident_url, role))
        with store.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE mine.first ()")
        store.dispose()
        row = administrator.execute("SELECT reltablespace <> 0 FROM pg_class WHERE relname = 'first'").fetchone()
        administrator.execute("DROP SCHEMA mine CASCADE")
        administrator.execute(sql.SQL("DROP OWNED BY {}").format(owner))
        administrator.execute(sql.SQL("DROP TABLESPACE {}").format(space))
    assert row == (may,)


def test_a_connection_that_the_server_ended_is_said_to_be_lost_and_what_to_do(incident_url: str) -> None:
    store = open_store(incident_url)
    with store.connect() as connection:
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with psycopg.connect(incident_url, autocommit=True) as administrator:
            administrator.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])
        with pytest.raises(DBAPIError) as lost:
            connection.exec_driver_sql("SELECT 1")
        connection.rollback()
        with pytest.raises(DBAPIError) as refused:
            connection.exec_driver_sql("SELECT no_such_column")
        connection.rollback()
        with pytest.raises(DBAPIError) as dropped:
            connection.exec_driver_sql("SELECT FROM uuid_pipeline.ledger")
    store.dispose()

    told = explained(lost.value)
    assert told.message.startswith("The connection to the store was lost (")
    assert "give the same command again" in told.message
    assert told.exit_code == 2
    gone = 'The store refused a statement: column "no_such_column" does not exist. If it was dropped or renamed since'
    assert explained(refused.value).message.startswith(gone)
    assert explained(refused.value).exit_code == 1
    assert explained(dropped.value).message.endswith(
        "The ledger was dropped meanwhile. Begin again: uuid-pipeline plan"
    )


def test_where_the_role_has_no_more_connections_the_limit_is_named(incident_url: str, new_role: NewRole) -> None:
    role = new_role("CONNECTION LIMIT 1")
    store = open_store(as_role(incident_url, role))
    with store.connect() as first, first.begin():
        first.exec_driver_sql("SELECT 1")
        with pytest.raises(DBAPIError) as refused, store.connect():
            pass
        with pytest.raises(UsageError, match=r"cannot be reached: .*too many connections.* Raise the limit"):
            open_store(as_role(incident_url, role))
    store.dispose()

    told = explained(refused.value)
    assert told.message.startswith("The server takes no further connection of ours (")
    assert f'too many connections for role "{role}"' in told.message
    assert told.exit_code == 2


def test_what_a_schema_before_pg_catalog_calls_by_its_names_is_not_meant(incident_url: str, new_role: NewRole) -> None:
    with psycopg.connect(incident_url, autocommit=True) as plain:
        for name, arguments, kind, answer in (
            ("equal", "text, text", "boolean", "false"),
            ("current_setting", "text", "text", "''hostile''"),
            ("set_config", "text, text, boolean", "text", "''hostile''"),
            ("count", "", "bigint", "7"),
        ):
            plain.execute(
                f"CREATE FUNCTION public.{name}({arguments}) RETURNS {kind} LANGUAGE sql IMMUTABLE AS 'SELECT {answer}'"
            )
        plain.execute("CREATE OPERATOR public.= (leftarg = text, rightarg = text, function = public.equal)")
        plain.execute("CREATE TABLE public.pg_class ()")
        role = new_role("SUPERUSER")
        plain.execute(f"ALTER ROLE {role} SET search_path = public, pg_catalog")
    store = open_store(as_role(incident_url, role))

    with store.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
        indexes = connection.exec_driver_sql("SELECT indexdef FROM pg_indexes WHERE schemaname = 'uuid_pipeline'")
        assert not [row for row in indexes if "public" in row.indexdef]
    cycle.run_all(store, SPEC)
    store.dispose()


def test_a_right_that_is_missing_is_named_with_where_to_look(incident_url: str, new_role: NewRole) -> None:
    store = open_store(as_role(incident_url, new_role("")))
    with pytest.raises(DBAPIError) as refused, store.begin() as connection:
        connection.exec_driver_sql("SELECT FROM upload_pipeline.documents")
    store.dispose()

    told = explained(refused.value).message
    assert told.startswith("The store refused a statement: permission denied for schema upload_pipeline")
    assert "docs/roles.md" in told


def test_a_connection_lost_inside_a_savepoint_is_a_lost_connection_too(incident_url: str) -> None:
    store = open_store(incident_url)
    with store.connect() as connection:
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with psycopg.connect(incident_url, autocommit=True) as administrator:
            savepoint = connection.begin_nested()
            administrator.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])
        with pytest.raises(DBAPIError):
            connection.exec_driver_sql("SELECT 1")
        with pytest.raises(PendingRollbackError) as lost:
            connection.exec_driver_sql("SELECT 1")
        savepoint.close()
    store.dispose()

    assert explained(lost.value).exit_code == 2


def parallel_workers(engine: Engine) -> tuple[str, str]:
    shown = """SELECT current_setting('max_parallel_workers_per_gather'),
                      current_setting('max_parallel_maintenance_workers')"""
    [(gather, maintenance)] = cycle.run_sql(engine, shown)
    return gather, maintenance


def test_statements_have_parallel_workers_only_while_nobody_else_is_at_work(incident: Engine) -> None:
    with cycle.session(incident) as application:
        settings = "SHOW max_parallel_workers_per_gather"
        server = application.execute(settings).fetchone()
        assert server is not None
        assert server[0] != "0"
        backend = application.info.backend_pid
        application.commit()
        assert parallel_workers(incident) == ("0", "0")

    # The server takes a moment to see that its client is gone.
    while cycle.run_sql(incident, "SELECT FROM pg_stat_activity WHERE pid = %(pid)s", pid=backend):
        time.sleep(0.01)
    assert parallel_workers(incident)[0] == server[0]
    assert parallel_workers(incident)[1] != "0"


SHOP = """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: s
entities:
  item: {table: items, key: id, identity: '{name}'}
ignore_references:
  - {table: items, column: note, reason: 'REASON'}
"""


def test_a_store_in_an_encoding_of_fewer_characters_is_planned_and_merged_too(
    database_in: Callable[[str], str],
) -> None:
    with opened(database_in("LATIN1")) as store:
        cycle.run_sql(store, "CREATE SCHEMA s; CREATE TABLE s.items (id uuid PRIMARY KEY, name text, note text)")
        add = "INSERT INTO s.items SELECT gen_random_uuid(), 'K\u00e4se ' || n / 2, 'x' FROM generate_series(0, 29) n"
        cycle.run_sql(store, add)
        before = cycle.rows_of(store, "s")
        with pytest.raises(DBAPIError) as refused:
            cycle.run_all(store, parse_spec(SHOP.replace("REASON", "\u20ac 5"), "s.yaml"))
        spec = parse_spec(SHOP.replace("REASON", "stays"), "s.yaml")
        cycle.run_all(store, spec)
        assert len(cycle.rows_of(store, "s")["items"]) == 15
        cycle.roll_back(store, spec)

        assert cycle.rows_of(store, "s") == before
    assert explained(refused.value).message.startswith("The store's encoding lacks a character that is to be written")


def test_bytes_of_no_known_encoding_are_said_before_and_refused_where_they_are_read(
    database_in: Callable[[str], str],
) -> None:
    url = database_in("SQL_ASCII")
    spec = parse_spec(
        "namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42\nschema: s\nentities:\n"
        "  item: {table: items, key: id, identity: '{name}'}\n",
        "s.yaml",
    )
    with opened(url) as store:
        cycle.run_sql(store, "CREATE SCHEMA s; CREATE TABLE s.items (id uuid PRIMARY KEY, name text)")
        cycle.run_sql(store, "INSERT INTO s.items SELECT gen_random_uuid(), 'n' || n FROM generate_series(1, 3) n")
        with store.begin() as connection:
            assert "SQL_ASCII" in traps.warnings(connection, cycle.bound(connection, spec))[0]
        cycle.run_all(store, spec)
        with psycopg.connect(url.replace("+psycopg", ""), client_encoding="SQL_ASCII") as application:
            application.execute(b"INSERT INTO s.items VALUES (gen_random_uuid(), '\xe9')")

        with pytest.raises(DBAPIError) as caught:
            cycle.assess(store, spec)

    assert "none in the encoding" in str(explained(caught.value))


def test_two_that_make_the_ledgers_functions_at_once_do_not_collide(incident: Engine, incident_url: str) -> None:
    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    first, other = incident.connect(), open_store(incident_url)

    def make() -> None:
        with other.begin() as connection:
            functions.put_embedded(connection)

    with first, ThreadPoolExecutor(1) as pool:
        functions.put_embedded(first)
        second = pool.submit(make)
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        while cycle.run_sql(incident, waits) != [(1,)]:
            assert not second.done()
        first.commit()
        second.result(timeout=30)
    other.dispose()


SLEEPER = """
import sys
from sqlalchemy import text
from uuid_pipeline.engine.connection import open_store
with open_store(sys.argv[1]).connect() as connection:
    connection.execute(text("SELECT pg_sleep(60)"))
"""


def test_a_statement_whose_process_is_gone_does_not_go_on(incident: Engine, incident_url: str) -> None:
    """Else it would hold its locks for nobody: the server notices a lost client by itself only between statements."""
    sleeping = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(60)%%' AND pid <> pg_backend_pid()"
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, incident_url])
    try:
        while not cycle.run_sql(incident, sleeping):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()

    until = time.monotonic() + 20
    while cycle.run_sql(incident, sleeping) and time.monotonic() < until:
        time.sleep(0.1)
    assert cycle.run_sql(incident, sleeping) == []

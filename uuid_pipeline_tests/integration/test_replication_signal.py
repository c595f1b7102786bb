"""Health signals that need a server of their own: prepared transactions, and a real streaming standby."""

import time
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import patience, profile, signals, sql, traps
from uuid_pipeline.engine.connection import explained, open_store
from uuid_pipeline.engine.patience import LOCKING_ROWS, READING
from uuid_pipeline.engine.signals import long_transactions, replication_lag
from uuid_pipeline.engine.signals.signal import HealthSignal
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import Throttle, parse_spec
from uuid_pipeline_tests.conftest import as_role, opened, server_of_our_own
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.standby import Standby, standby_of
from uuid_pipeline_tests.integration.test_signals import eventually, reading


@pytest.fixture(scope="module")
def primary() -> Iterator[EmbeddedServer]:
    """A server of its own, with prepared transactions."""
    with server_of_our_own(max_prepared_transactions="2") as started:
        yield started


@pytest.fixture
def main_store(primary: EmbeddedServer) -> Iterator[Engine]:
    with opened(primary.url("postgres")) as engine:
        yield engine


@pytest.mark.system
def test_a_prepared_transaction_counts_though_its_session_is_gone(main_store: Engine) -> None:
    limits = Throttle(long_transaction_seconds=0.1)
    with cycle.session(main_store) as session:
        session.execute("PREPARE TRANSACTION 'forgotten'")
    time.sleep(0.15)
    tripped = reading(main_store, long_transactions.read, limits)
    with cycle.session(main_store) as session:
        session.autocommit = True
        session.execute("ROLLBACK PREPARED 'forgotten'")

    assert tripped.state == "stop"
    assert "(prepared transaction forgotten)" in tripped.reason
    assert reading(main_store, long_transactions.read, limits).state == "normal"


@pytest.mark.system
def test_a_prepared_transaction_that_holds_rows_is_named(main_store: Engine) -> None:
    cycle.run_sql(main_store, "CREATE TABLE held ()")
    [(oid,)] = cycle.run_sql(main_store, "SELECT 'held'::regclass::oid::bigint")
    with cycle.session(main_store) as session:
        session.execute("SELECT FROM held FOR UPDATE")
        session.execute("PREPARE TRANSACTION 'it''s kept'")
    with main_store.begin() as connection:
        said = {which: patience.who_holds(connection, [oid], which) for which in (READING, LOCKING_ROWS)}
    with cycle.session(main_store) as session:
        session.autocommit = True
        session.execute("ROLLBACK PREPARED 'it''s kept'")

    assert said == {READING: "prepared transaction 'it''s kept'", LOCKING_ROWS: "nobody any more"}


@pytest.fixture
def without_its_standby(primary: EmbeddedServer) -> Iterator[None]:
    """Commits wait for a standby that nobody has seen."""
    with psycopg.connect(primary.url("postgres"), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = local")
        for change in ("SET synchronous_standby_names = 'ghost'", "RESET synchronous_standby_names"):
            connection.execute(f"ALTER SYSTEM {change}".encode())
            connection.execute("SELECT pg_reload_conf()")
            if "ghost" in change:
                yield


@pytest.mark.system
def test_a_synchronous_standby_that_is_not_there_is_named(main_store: Engine, without_its_standby: None) -> None:
    def said() -> list[str]:
        with main_store.begin() as connection:
            return [row.sentence for row in sql.rows(connection, traps.NO_STANDBY)]

    eventually(lambda: bool(said()))
    [sentence] = said()
    assert "(synchronous_standby_names is 'ghost')" in sentence


@pytest.fixture(scope="module")
def standby(primary: EmbeddedServer) -> Iterator[Standby]:
    with standby_of(primary) as streaming:
        yield streaming


LAG = Throttle(replication_lag_seconds=0.3)


def test_without_a_standby_there_is_no_lag(empty_store: Engine) -> None:
    alone = reading(empty_store, replication_lag.read, LAG)

    assert (alone.state, alone.reason) == ("normal", "no standby is connected; the limit is 0.3 s")


@pytest.mark.system
def test_a_slot_whose_standby_is_away_stops(main_store: Engine) -> None:
    cycle.run_sql(main_store, "SELECT pg_create_physical_replication_slot('away', true)")
    away = reading(main_store, replication_lag.read, LAG)
    cycle.run_sql(main_store, "SELECT pg_drop_replication_slot('away')")

    assert away.state == "stop"
    assert "the replication slot away waits for its standby" in away.reason


@pytest.mark.system
def test_a_standby_that_stops_replaying_trips_and_recovers(main_store: Engine, standby: Standby) -> None:
    def lag() -> HealthSignal:
        return reading(main_store, replication_lag.read, LAG)

    eventually(lambda: lag().figure is not None and lag().state == "normal")
    with psycopg.connect(standby.url, autocommit=True) as connection:
        connection.execute("SELECT pg_wal_replay_pause()")
        eventually(lambda: connection.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() == ("paused",))
        before = time.monotonic()
        cycle.run_sql(main_store, "CREATE TABLE IF NOT EXISTS public.written AS SELECT generate_series(1, 10000) AS n")
        written = time.monotonic()
        eventually(lambda: lag().state == "stop")
        time.sleep(1)
        least = time.monotonic() - written
        stuck = lag()
        most = time.monotonic() - before
        connection.execute("SELECT pg_wal_replay_resume()")

    assert stuck.state == "stop"
    assert stuck.figure is not None
    assert least - 0.5 <= stuck.figure <= most + 0.5
    assert "standby" in stuck.reason
    assert stuck.reason.endswith("MB) behind; the limit is 0.3 s")
    eventually(lambda: lag().state == "normal")


@pytest.mark.system
def test_a_role_that_may_not_look_does_not_take_a_standby_for_none(
    main_store: Engine, primary: EmbeddedServer, standby: Standby
) -> None:
    cycle.run_sql(main_store, "CREATE ROLE plain LOGIN")
    plain = open_store(as_role(primary.url("postgres"), "plain"))
    hidden = reading(plain, replication_lag.read, LAG)
    with plain.connect() as connection:
        reasons = signals.unreadable(connection, LAG)
    plain.dispose()

    assert hidden.state == "unknown"
    assert "the lag of 1 standbys cannot be seen" in hidden.reason
    assert "GRANT pg_read_all_stats TO plain;" in reasons["replication_lag"]


SHEETS = """
namespace: a1111111-2222-4333-8444-555555555555
schema: lib
entities:
  sheet: {table: sheets, key: id, identity: "{sha}"}
"""


@pytest.mark.system
def test_a_standby_given_for_the_store_is_a_mistake_of_configuration(main_store: Engine, standby: Standby) -> None:
    cycle.run_sql(main_store, "CREATE SCHEMA lib CREATE TABLE sheets (id uuid PRIMARY KEY, sha text)")
    with opened(standby.url) as store:
        eventually(lambda: bool(cycle.run_sql(store, "SELECT WHERE to_regclass('lib.sheets') IS NOT NULL")))
        with store.begin() as connection, pytest.raises(UsageError, match="Connect to the primary server"):
            profile.missing_rights(connection, cycle.bound(connection, parse_spec(SHEETS, "lib.yaml")))
        with pytest.raises(DBAPIError) as refused:
            cycle.run_sql(store, "CREATE TABLE lib.written_there ()")

    told = explained(refused.value)
    assert told.exit_code == 2
    assert "Connect to the primary server" in told.message

"""HNSW indexes: dropped and built again when most of their rows move, by a decision that the plan shows."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger, planning, sql, sync_points
from uuid_pipeline.engine.altered import rebuilding, vector_indexes
from uuid_pipeline.engine.altered.vector_indexes import Span, reason_to_keep
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.reports.tables import plan_lines
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.conftest import NewRole, Pooled, as_role
from uuid_pipeline_tests.integration import cycle

ROOT = Path(__file__).parents[2]
ROWS = 3000
TEXT = """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: shop
entities:
  thing: {table: things, key: id, identity: "{code}"}
soft_references:
  - {table: looks, column: thing_id, entity: thing}
waves: {canary: 300, recent: 0, remaining: 5000}
batch_rows: 1000
"""
SPEC = parse_spec(TEXT, "test")
ONE_WAVE_TEXT = TEXT.replace("canary: 300", "canary: 0")
ONE_WAVE = parse_spec(ONE_WAVE_TEXT, "test")

# Two that move as a whole (one with all that an index can have), and one over few rows.
STORE = """
CREATE EXTENSION vector;
CREATE SCHEMA shop;
CREATE TABLE shop.things (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text NOT NULL, n int, "v %" vector(3));
CREATE TABLE shop.looks (look int PRIMARY KEY, thing_id uuid NOT NULL, v vector(4));
SELECT setseed(0.5);
INSERT INTO shop.things (code, n, "v %")
SELECT 'c' || i, i, ARRAY[random(), random(), random()]::vector FROM generate_series(1, 3000) i;
INSERT INTO shop.looks SELECT n, id, ARRAY[random(), random(), random(), n]::vector FROM shop.things;
CREATE INDEX "Near 100%" ON shop.things USING hnsw (("v %"::halfvec(3)) halfvec_cosine_ops)
    WITH (m = 8, ef_construction = 32) WHERE n > 0 AND code <> ' WHERE 5 %';
COMMENT ON INDEX shop."Near 100%" IS '5 % of all';
ALTER INDEX shop."Near 100%" ALTER COLUMN 1 SET STATISTICS 7;
ALTER INDEX shop."Near 100%" DEPENDS ON EXTENSION plpgsql;
CREATE INDEX like_this ON shop.looks USING hnsw (v vector_l2_ops);
CREATE INDEX few ON shop.things USING hnsw ("v %" vector_l2_ops) WHERE n <= 100;
ANALYZE shop.things; ANALYZE shop.looks;
"""

INDEXES = """
SELECT x.relname::text, pg_get_indexdef(x.oid), indisvalid, indisready, x.reloptions::text, x.reltablespace, x.relowner,
       obj_description(x.oid, 'pg_class'), array(SELECT e.extname::text FROM pg_depend d JOIN pg_extension e
                                                 ON e.oid = d.refobjid WHERE d.objid = x.oid AND d.deptype = 'x'),
       (SELECT string_agg(concat_ws(' ', attname, attstattarget, format_type(atttypid, atttypmod)), ',')
        FROM pg_attribute WHERE attrelid = x.oid)
FROM pg_index JOIN pg_class x ON x.oid = indexrelid JOIN pg_am m ON m.oid = relam AND amname = 'hnsw' ORDER BY 1
"""
BIG = ["Near 100%", "like_this"]
ALTERED = "SELECT object FROM uuid_pipeline.altered ORDER BY 1"


@pytest.fixture
def shop(empty_store: Engine) -> Iterator[Engine]:
    """A store of the test's own."""
    with cycle.session(empty_store) as connection:
        connection.execute(STORE)
    yield empty_store
    sync_points.clear()


def indexes(engine: Engine) -> list[tuple[Any, ...]]:
    """All that the server knows of each HNSW index, but the place of its row."""
    with cycle.session(engine) as connection:
        return connection.execute(INDEXES).fetchall()


def names(engine: Engine) -> list[str]:
    return [row[0] for row in indexes(engine)]


def batches_see(engine: Engine) -> list[list[str]]:
    """The HNSW indexes that there are in each batch to come, as another session sees them."""
    seen: list[list[str]] = []
    sync_points.on("held", lambda: seen.append(names(engine)))
    return seen


def quiet(_: str) -> None:
    """No word."""


def drop_all(engine: Engine) -> list[str]:
    said: list[str] = []
    with leases.held(engine, "run") as (connection, lease):
        with connection.begin():
            oids = [row.oid for row in cycle.bound(connection, SPEC).catalog.tables.values()]
            found = vector_indexes.read(connection, oids)
        rebuilding.drop(connection, lease, found, said.append)
    return said


def put_back(engine: Engine) -> list[str]:
    with leases.held(engine, "another run") as (connection, lease):
        return rebuilding.put_back(engine, connection, lease, quiet)


def approved(engine: Engine, spec: Spec) -> ledger.Execution:
    return cycle.approve(engine, spec, cycle.assess_and_plan(engine, spec).plan_id)


@pytest.mark.parametrize(
    ("rows", "share", "hindrance", "kept"),
    [
        (50_000, 0.21, None, None),
        (50_000, 0.2, None, "20% of its rows move"),
        (1_999, 1.0, None, "it holds 1999 rows"),
        (2_000, 1.0, None, None),
        (50_000, 1.0, "this role does not own the table", "does not own"),
    ],
)
def test_an_index_is_dropped_when_most_of_its_many_rows_move(
    rows: int, share: float, hindrance: str | None, kept: str | None
) -> None:
    reason = reason_to_keep(rows, share, hindrance)

    assert (kept is None) == (reason is None)
    assert (kept or "") in (reason or "")


def test_the_plan_says_what_the_waves_and_the_rollback_then_do_and_all_is_as_before(shop: Engine) -> None:
    before, rows = indexes(shop), cycle.rows_of(shop, "shop")
    plan = cycle.assess_and_plan(shop, SPEC)

    assert [(i["index"], i["table"], i["waves"], i["rows"], i["share"]) for i in plan.content["rebuilt_indexes"]] == [
        ("Near 100%", "shop.things", ["030-remaining-001"], ROWS, 0.9),
        ("like_this", "shop.looks", ["030-remaining-001"], ROWS, 0.9),
    ]
    assert [(i["index"], i["waves"], i["reason"]) for i in plan.content["kept_indexes"]] == [
        ("Near 100%", ["010-canary"], "10% of its rows move, and up to 20% updating is cheaper than building"),
        ("few", ["010-canary", "030-remaining-001"], "it holds 100 rows, which are soon updated"),
        ("like_this", ["010-canary"], "10% of its rows move, and up to 20% updating is cheaper than building"),
    ]
    assert (
        "similarity search scans shop.looks while wave 030-remaining-001 runs, and until index like_this is built again"
        " after it (estimate: 4 s)" in plan.content["risks"]
    )
    # 2,700 rows at 8.2 ms, and 3,000 at 1.44 ms.
    assert (
        "Index rebuilt",
        "like_this on shop.looks (030-remaining-001): 90% of its rows move in this wave: about 22 s to update, 4 s to "
        "build (estimates, by a speed measured elsewhere)",
    ) in plan_lines(plan)
    assert cycle.assess_and_plan(shop, SPEC).plan_id == plan.plan_id

    execution = cycle.approve(shop, SPEC, plan.plan_id)
    canary, remaining = cycle.waves_of(shop, execution)
    seen = batches_see(shop)
    cycle.migrate(shop, SPEC, canary)
    cycle.assert_green(cycle.check_wave(shop, SPEC, canary))
    assert {tuple(found) for found in seen} == {("Near 100%", "few", "like_this")}
    seen.clear()
    cycle.migrate(shop, SPEC, remaining)
    assert {tuple(found) for found in seen} == {("few",)}
    assert (indexes(shop), cycle.run_sql(shop, ALTERED)) == (before, [])
    cycle.assert_green(cycle.check_wave(shop, SPEC, remaining))
    cycle.migrate_all(shop, SPEC, execution)
    cycle.assert_green(cycle.validate(shop))

    seen.clear()
    cycle.roll_back(shop, SPEC)

    assert {tuple(found) for found in seen} == {("few",)}
    assert (indexes(shop), cycle.run_sql(shop, ALTERED)) == (before, [])
    assert cycle.rows_of(shop, "shop") == rows


def test_a_role_that_may_not_build_keeps_the_index_and_the_plan_says_what_that_costs(
    shop: Engine, empty_url: str, new_role: NewRole
) -> None:
    cycle.assess_and_plan(shop, SPEC)
    role = new_role()
    for schema in ("shop", "uuid_pipeline"):
        cycle.run_sql(shop, f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        cycle.run_sql(shop, f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
    poor = open_store(as_role(empty_url, role))
    with poor.begin() as connection:
        store = cycle.bound(connection, SPEC)
        choice = vector_indexes.choose(connection, store, {"all": Span(1, 1, ROWS)})
    poor.dispose()

    assert choice.rebuilt == []
    assert [i["reason"] for i in choice.kept] == [
        "this role does not own the table",
        "it holds 100 rows, which are soon updated",
        "this role does not own the table",
    ]
    assert choice.risks[1] == (
        "index like_this of shop.looks stays in place, since this role does not own the table: each of about 3000 "
        "updates of it costs some 8 ms (estimate: 25 s)"
    )


def test_a_run_that_fails_builds_the_index_before_it_ends(shop: Engine) -> None:
    before = indexes(shop)
    execution = approved(shop, ONE_WAVE)

    def fail() -> None:
        assert names(shop) == ["few"]
        raise ZeroDivisionError

    sync_points.on("journaled", fail)
    with pytest.raises(ZeroDivisionError):
        cycle.migrate(shop, ONE_WAVE, cycle.waves_of(shop, execution)[0])

    assert (indexes(shop), cycle.run_sql(shop, ALTERED)) == (before, [])


@pytest.mark.system
def test_what_a_killed_run_left_even_half_built_is_built_by_the_next(
    shop: Engine, empty_url: str, tmp_path: Path
) -> None:
    before = indexes(shop)
    file = tmp_path / "spec.yaml"
    file.write_text(ONE_WAVE_TEXT, encoding="utf-8")
    execution = approved(shop, ONE_WAVE)
    command = [sys.executable, "-m", "uuid_pipeline_tests.faults.runner", empty_url, str(file), "forward"]
    killed = subprocess.run([*command, "commit", "15"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert names(shop) == ["few"]
    assert cycle.run_sql(shop, ALTERED) == [('shop."Near 100%"',), ("shop.like_this",)]
    with shop.begin() as connection:
        store, plan = cycle.bound(connection, ONE_WAVE), planning.newest(connection)
        assert plan is not None
        assert planning.stale_reason(connection, store, plan) is None
    half_build(shop, "CREATE INDEX CONCURRENTLY like_this ON shop.looks USING hnsw (v vector_l2_ops)")
    assert [row[:3:2] for row in indexes(shop)] == [("few", True), ("like_this", False)]
    with shop.begin() as connection:
        assert planning.stale_reason(connection, store, plan) is None

    cycle.migrate_all(shop, ONE_WAVE, execution)

    assert (indexes(shop), cycle.run_sql(shop, ALTERED)) == (before, [])
    cycle.assert_green(cycle.validate(shop))


def half_build(engine: Engine, statement: str) -> None:
    """Leave what a concurrent build leaves that could not wait for another transaction."""
    with cycle.session(engine) as writer, cycle.session(engine) as builder:
        writer.execute("UPDATE shop.looks SET look = look WHERE look = 1")
        builder.autocommit = True
        builder.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            builder.execute(statement)


@pytest.mark.parametrize(
    ("release", "said", "left"),
    [
        ("CREATE INDEX like_this ON shop.looks USING hnsw (v public.vector_l2_ops)", "is as it was", True),
        ("CREATE INDEX like_this ON shop.looks (thing_id)", "was defined anew meanwhile and stays as it is", True),
        ("CREATE VIEW shop.like_this AS SELECT 1", "was defined anew meanwhile and stays as it is", True),
        ("DROP TABLE shop.looks", "is not built: the table is gone", False),
    ],
)
def test_what_the_application_did_meanwhile_stays(shop: Engine, release: str, said: str, left: bool) -> None:
    cycle.assess(shop, SPEC)
    drop_all(shop)
    cycle.run_sql(shop, release)
    made = cycle.run_sql(
        shop, "SELECT to_regclass('shop.like_this')::oid, pg_get_indexdef(to_regclass('shop.like_this'))"
    )

    (line,) = [line for line in put_back(shop) if "like_this" in line]

    assert said in line
    found = cycle.run_sql(
        shop, "SELECT to_regclass('shop.like_this')::oid, pg_get_indexdef(to_regclass('shop.like_this'))"
    )
    assert found == made
    assert (found[0][0] is not None) is left
    assert cycle.run_sql(shop, ALTERED) == []


def test_the_lease_is_renewed_while_a_build_waits_and_runs(shop: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "RENEW_SECONDS", 0.05)
    cycle.assess(shop, SPEC)
    before = indexes(shop)
    drop_all(shop)
    signs: set[Any] = set()
    blocked = threading.Event()

    def write() -> None:
        with cycle.session(shop) as writer:
            writer.execute("UPDATE shop.looks SET look = look WHERE look = 1")
            blocked.set()
            for _ in range(10):
                signs.update(writer.execute("SELECT renewed_at FROM uuid_pipeline.lease"))
                time.sleep(0.1)

    application = threading.Thread(target=write)
    application.start()
    assert blocked.wait(10)
    put_back(shop)
    application.join()

    assert len(signs) > 4
    assert (indexes(shop), cycle.run_sql(shop, ALTERED)) == (before, [])


def test_an_index_stays_where_the_lock_is_not_to_be_had_and_a_failed_build_stays_in_the_ledger(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "LOCK_SECONDS", 0.3)
    cycle.assess(shop, SPEC)
    with cycle.session(shop) as reader:
        reader.execute("SELECT FROM shop.looks LIMIT 1")
        said = drop_all(shop)
    assert [line for line in said if "like_this" in line] == [
        "index like_this of shop.looks stays in place: the table's lock was not to be had for 0 s; writing is slow"
    ]
    assert names(shop) == ["like_this"]

    cycle.run_sql(shop, "ALTER TABLE shop.things RENAME n TO m")
    with pytest.raises(RefusedError, match=r'could not be built again: column "n" does not exist'):
        put_back(shop)
    assert cycle.run_sql(shop, ALTERED) == [('shop."Near 100%"',), ("shop.few",)]
    cycle.run_sql(shop, "ALTER TABLE shop.things RENAME m TO n")
    assert put_back(shop) == [f"index {name} of shop.things is as it was" for name in ("Near 100%", "few")]


def test_a_role_s_timeout_cuts_no_build_short_and_behind_a_pooler_it_is_named(
    shop: Engine, empty_url: str, pgbouncer: Pooled
) -> None:
    cycle.assess(shop, SPEC)
    before = indexes(shop)
    pooled, direct = open_store(pgbouncer(empty_url)), open_store(empty_url)
    drop_all(pooled)
    put_back(pooled)
    assert (indexes(shop), cycle.run_sql(shop, ALTERED)) == (before, [])

    drop_all(shop)
    cycle.run_sql(shop, f'ALTER DATABASE "{shop.url.database}" SET statement_timeout = 500')
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    cycle.run_sql(shop, f"SELECT pg_terminate_backend(pid) {others}")
    # A build waits for older snapshots, here for longer than the timeout.
    with cycle.session(shop) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SET LOCAL statement_timeout = 0")
        reader.execute("SELECT 1")
        with pytest.raises(RefusedError, match=r"canceling statement due to statement timeout.*connect past"):
            put_back(pooled)
        threading.Timer(1.0, reader.rollback).start()
        put_back(direct)

    assert (indexes(shop), cycle.run_sql(shop, ALTERED)) == (before, [])
    pooled.dispose()
    direct.dispose()


def test_a_build_has_room_for_its_graph_and_the_server_s_own_where_the_machine_has_not(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle.assess(shop, SPEC)
    before = indexes(shop)
    cycle.run_sql(shop, f"ALTER DATABASE \"{shop.url.database}\" SET effective_cache_size = '2GB'")
    cycle.run_sql(shop, f"ALTER DATABASE \"{shop.url.database}\" SET maintenance_work_mem = '5MB'")
    shop.dispose()
    seen: list[str] = []
    execute = sql.execute

    def watched(connection: Connection, statement: Any, *values: Any) -> Any:
        text = statement if isinstance(statement, str) else statement.as_string(None)
        if text.startswith("CREATE INDEX CONCURRENTLY"):
            seen.append(sql.scalar(connection, "SHOW maintenance_work_mem"))
            if len(seen) == 1:
                return execute(connection, "DO $$ BEGIN RAISE SQLSTATE '53200'; END $$")
        return execute(connection, statement, *values)

    drop_all(shop)
    monkeypatch.setattr(sql, "execute", watched)
    put_back(shop)

    assert seen == ["512MB", "5MB", "512MB", "512MB"]
    assert (indexes(shop), cycle.run_sql(shop, ALTERED)) == (before, [])

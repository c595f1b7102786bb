"""Other servers than the embedded 18: the wheel's 16, those without pgvector from 14 to 17, and a pooler before one."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine

from uuid_pipeline.demo import server as embedded
from uuid_pipeline.demo.incident import add_vector_buffer, build_incident
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import lease, ledger
from uuid_pipeline.engine.batches import deletions, writing
from uuid_pipeline.engine.proofs import comparison
from uuid_pipeline.engine.retrievals import retrieval
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, load_spec, parse_spec
from uuid_pipeline_tests.conftest import Pooled, opened
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_second_schema import (
    build_library,
    go_there_and_back_and_there_again,
    library_spec,
)

ROOT = Path(__file__).parents[2]
SPEC = load_spec(None)
# A lease whose holder cannot be judged lives a minute.
TAKE_OVER_SECONDS = 65.0

HOLD = """
import sys, time
from uuid_pipeline.engine import lease
from uuid_pipeline.engine.connection import open_store
with lease.held(open_store(sys.argv[1]), "the run that died"):
    print("held", flush=True)
    time.sleep(600)
"""


def version_of(engine: Engine) -> int:
    [(number,)] = cycle.run_sql(engine, "SELECT current_setting('server_version_num')::int / 10000")
    return int(number)


def migrate_and_roll_back(store: Engine) -> None:
    """The incident's cycle, each leg compared with the oracle."""
    before, objects = cycle.rows_of(store), cycle.catalog_of(store)

    cycle.run_all(store, SPEC)
    assert cycle.rows_of(store) == cycle.expected_rows(before)
    assert cycle.catalog_of(store) == objects

    cycle.roll_back(store, SPEC)
    assert cycle.rows_of(store) == before
    assert cycle.catalog_of(store) == objects


@pytest.fixture
def incident_16(server_16: EmbeddedServer) -> Iterator[Engine]:
    embedded.ensure_database(server_16, "incident")
    with opened(server_16.url("incident")) as engine:
        with engine.begin() as connection:
            build_incident(connection)
            add_vector_buffer(connection)
        yield engine


@pytest.mark.system
def test_the_incident_is_migrated_and_rolled_back_on_16(incident_16: Engine) -> None:
    assert version_of(incident_16) == 16

    migrate_and_roll_back(incident_16)


@pytest.mark.system
@pytest.mark.parametrize("version", [14, 15, 17])
def test_the_library_goes_there_and_back_and_there_again_without_pgvector(
    version: int, request: pytest.FixtureRequest
) -> None:
    with opened(request.getfixturevalue(f"server_{version}")) as engine:
        assert version_of(engine) == version
        build_library(engine)

        go_there_and_back_and_there_again(engine, library_spec())


@pytest.mark.system
def test_deletes_that_an_idle_session_of_14_keeps_to_itself_turn_no_gate_red(
    server_14: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "STATISTICS_SECONDS", 1.0)
    with psycopg.connect(server_14, autocommit=True) as connection:
        connection.execute("CREATE DATABASE idle")
    with opened(server_14.replace("/postgres?", "/idle?")) as engine:
        build_library(engine)
        store = cycle.bound_store(engine, library_spec())
        cycle.run_all(engine, library_spec())
        main = sql.Identifier(store.main.table.schema, store.main.table.name)
        delete = sql.SQL("DELETE FROM {main} WHERE ctid = (SELECT max(ctid) FROM {main})").format(main=main)
        with cycle.session(engine) as writer:
            writer.autocommit = True
            writer.execute("SET session_replication_role = replica")
            # Both within half a second of the statement before.
            for _ in range(2):
                writer.execute(delete)
            with engine.begin() as asking:
                [execution] = ledger.executions(asking)
                found = retrieval.whole_documents_retrievable(asking, store, execution)
                compared = comparison.compare_patiently(asking, store, execution)
    cycle.assert_green([found, comparison.whole_conservation(compared)])
    assert "it cannot be told whose" in found.finding


@pytest.fixture
def pooled_url(incident_url: str, pgbouncer: Pooled) -> str:
    """The incident, through the pooler."""
    return pgbouncer(incident_url)


@pytest.fixture
def pooled(pooled_url: str) -> Iterator[Engine]:
    with opened(pooled_url) as engine:
        yield engine


def server_processes(url: str, times: int) -> int:
    """How many backends serve ``times`` transactions of one client, while others hold one each."""
    with psycopg.connect(url) as client, psycopg.connect(url) as other:
        found = set()
        for _ in range(times):
            found.add(client.execute("SELECT pg_backend_pid()").fetchone())
            client.commit()
            other.execute("SELECT pg_backend_pid()")
            found.add(client.execute("SELECT pg_backend_pid()").fetchone())
            client.commit()
            other.commit()
        return len(found)


@pytest.mark.system
def test_behind_a_pooler_in_transaction_mode_the_incident_is_migrated_and_rolled_back(
    pooled: Engine, pooled_url: str, incident_url: str
) -> None:
    assert server_processes(pooled_url, 3) == 2  # as a pooler does it: one client, two backends
    assert server_processes(incident_url, 3) == 1

    migrate_and_roll_back(pooled)


def kill_after_lines(process: "subprocess.Popen[str]", lines: int) -> None:
    """kill -9, once it has said so much."""
    assert process.stdout is not None
    for _ in range(lines):
        assert process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def first_that_is_let_in(engine: Engine, spec: Spec, wave: ledger.Wave) -> writing.Run:
    """Run a wave again and again, as people would, until the lease is to be had."""
    deadline = time.monotonic() + TAKE_OVER_SECONDS
    while True:
        try:
            return cycle.migrate(engine, spec, wave)
        except RefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.mark.system
def test_behind_a_pooler_a_run_killed_in_a_wave_is_taken_over(pooled: Engine, pooled_url: str, tmp_path: Path) -> None:
    text = (ROOT / "uuid_pipeline/specs/upload_pipeline.yaml").read_text(encoding="utf-8")
    spec_file = tmp_path / "spec.yaml"
    spec_file.write_text(text + "\nbatch_rows: 1\n", encoding="utf-8")
    spec = load_spec(spec_file)
    before = cycle.rows_of(pooled)
    execution = cycle.approve(pooled, spec, cycle.assess_and_plan(pooled, spec).plan_id)
    runner = [sys.executable, "-m", "uuid_pipeline_tests.faults.runner", pooled_url, str(spec_file), "forward"]
    process = subprocess.Popen([*runner, "never", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    kill_after_lines(process, 1)

    first_that_is_let_in(pooled, spec, cycle.waves_of(pooled, execution)[0])

    cycle.migrate_all(pooled, spec, execution)
    cycle.assert_green(cycle.validate(pooled))
    assert cycle.rows_of(pooled) == cycle.expected_rows(before)


@pytest.mark.system
def test_behind_a_pooler_the_lease_of_a_process_killed_between_two_batches_is_taken_over(
    pooled: Engine, pooled_url: str
) -> None:
    """Nothing in the server shows it: the pooler keeps the backend that the dead process had."""
    before = cycle.rows_of(pooled)
    execution = cycle.approve(pooled, SPEC, cycle.assess_and_plan(pooled, SPEC).plan_id)
    process = subprocess.Popen([sys.executable, "-c", HOLD, pooled_url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    wave = cycle.waves_of(pooled, execution)[0]
    with pytest.raises(RefusedError, match="the run that died"):
        cycle.migrate(pooled, SPEC, wave)

    kill_after_lines(process, 0)
    # The minute that such a lease lives is nearly over.
    cycle.run_sql(pooled, "UPDATE uuid_pipeline.lease SET renewed_at = renewed_at - interval '50 s'")

    run = first_that_is_let_in(pooled, SPEC, wave)

    assert run.dead_run == "the run that died"
    cycle.migrate_all(pooled, SPEC, execution)
    assert cycle.rows_of(pooled) == cycle.expected_rows(before)


@pytest.mark.system
def test_behind_a_pooler_a_holder_that_only_waits_or_is_long_in_one_transaction_gives_signs_of_life(
    pooled: Engine, incident: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    cycle.assess_and_plan(pooled, SPEC)

    with lease.held(pooled, "patient") as (connection, mine):
        assert mine.pooled
        assert cycle.run_sql(incident, "SELECT backend_pid FROM uuid_pipeline.lease") == [(None,)]
        assert beats(incident, 1.5) >= 3

        connection.begin()
        lease.hold(connection, mine)
        held_at = cycle.run_sql(incident, "SELECT renewed_at FROM uuid_pipeline.lease")
        time.sleep(1.0)
        assert cycle.run_sql(incident, "SELECT renewed_at FROM uuid_pipeline.lease") == held_at
        connection.commit()
        assert beats(incident, 0.5) >= 1


def beats(engine: Engine, seconds: float) -> int:
    """How often the lease is renewed in this time."""
    seen, until = set(), time.monotonic() + seconds
    while time.monotonic() < until:
        seen.update(cycle.run_sql(engine, "SELECT renewed_at FROM uuid_pipeline.lease"))
        time.sleep(0.02)
    return len(seen) - 1


PERIODS = """
CREATE EXTENSION btree_gist;
CREATE SCHEMA s;
CREATE TABLE s.docs (id uuid PRIMARY KEY, name text NOT NULL);
CREATE TABLE s.versions (doc uuid NOT NULL REFERENCES s.docs, during daterange,
                         PRIMARY KEY (doc, during WITHOUT OVERLAPS));
CREATE TABLE s.uses (n int PRIMARY KEY, doc uuid, during daterange,
                     FOREIGN KEY (doc, PERIOD during) REFERENCES s.versions (doc, PERIOD during));
INSERT INTO s.docs SELECT gen_random_uuid(), 'name ' || n FROM generate_series(1, 5) n;
INSERT INTO s.versions SELECT id, span::daterange FROM s.docs
    CROSS JOIN (VALUES ('[2024-01-01,2024-07-01)'), ('[2024-07-01,2025-01-01)')) v(span);
INSERT INTO s.uses SELECT row_number() OVER (), id, '[2024-06-01,2024-08-01)' FROM s.docs;
"""
PERIODS_SPEC = """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: s
entities:
  doc: {table: docs, key: id, identity: "{name}"}
"""


@pytest.mark.system
def test_a_foreign_key_over_periods_moves_along_and_dangles_only_where_they_are_not_covered(server_18: str) -> None:
    with psycopg.connect(server_18, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS periods WITH (FORCE)")
        connection.execute("CREATE DATABASE periods")
    with opened(server_18.replace("/postgres?", "/periods?")) as engine:
        cycle.run_sql(engine, PERIODS)
        spec = parse_spec(PERIODS_SPEC, "test")
        joined = """SELECT d.name, count(DISTINCT v.*), count(DISTINCT u.*) FROM s.docs d
                    JOIN s.versions v ON v.doc = d.id JOIN s.uses u ON u.doc = d.id GROUP BY 1 ORDER BY 1"""
        before = cycle.run_sql(engine, joined)

        cycle.run_all(engine, spec)

        assert cycle.run_sql(engine, joined) == before == [(f"name {n}", 2, 1) for n in range(1, 6)]
        ids = cycle.run_sql(engine, "SELECT id::text, name FROM s.docs")
        assert all(found == str(uuid.uuid5(spec.namespace, name)) for found, name in ids)
        uncovered = """SET session_replication_role = replica;
                       UPDATE s.uses SET during = '[2024-06-01,2026-01-01)' WHERE n = 1; RESET ALL"""
        cycle.run_sql(engine, uncovered)
        assert "uses.(doc, during) 1" in cycle.assess(engine, spec).gates["no_orphans"].finding

        twins = "DELETE FROM s.uses WHERE n = 1; UPDATE s.docs SET name = 'one' WHERE name IN ('name 1', 'name 2')"
        cycle.run_sql(engine, twins)
        gate = cycle.assess(engine, spec).gates["conflicts_resolvable"]
        assert not gate.passed
        assert "the exclusion constraint s.versions_pkey holds an id" in gate.finding
        assert "the foreign key uses_doc_during_fkey of s.uses is over periods and holds an id" in gate.finding

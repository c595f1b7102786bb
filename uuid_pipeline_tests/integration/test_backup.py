"""Backups: restored and compared, on stores of any shape; what makes one not do; what approval asks."""

import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo import installation
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import approval, catalog, gates, inventory, ledger, migration, planning, sync_points
from uuid_pipeline.engine.backups import backup, backup_gate, pg_tools
from uuid_pipeline.engine.backups.backup import Backup
from uuid_pipeline.engine.backups.backup_gate import Attestation
from uuid_pipeline.engine.backups.workshop import Workshop
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.gates import Scope
from uuid_pipeline.engine.rehearsals import rehearsal
from uuid_pipeline.engine.store import Store, bind
from uuid_pipeline.errors import PipelineError, RefusedError, UsageError
from uuid_pipeline.spec import EntitySpec, Spec, load_spec, parse_spec
from uuid_pipeline_tests.conftest import DEBIAN_15, NewDatabase, NewRole, Pooled, as_role, opened
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)
TOOLS = tuple(installation.client_directories())


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """A place for backups, with the wheel's programs and no other server."""
    return Workshop(tmp_path / "backups", TOOLS)


def bound(engine: Engine, spec: Spec = SPEC) -> Store:
    """The spec as it is, backup and all, bound to a store with a ledger."""
    with engine.begin() as c:
        store = bind(spec, catalog.read_catalog(c, spec.schema_name))
        ledger.create(c, store)
    return store


def planned(engine: Engine, spec: Spec, workshop: Workshop) -> tuple[Store, planning.Plan, dict[str, gates.GateResult]]:
    """Assess, back up as the spec asks, plan; with the gates of the last two stages."""
    assessed = cycle.assess(engine, spec)
    store = bound(engine, spec)
    with engine.begin() as c:
        cycle.run_sql(engine, "UPDATE uuid_pipeline.assessments SET spec_digest = %(d)s", d=spec.digest)
        assessment = ledger.newest_assessment(c)
    backup_gate.ensure(engine, store, assessment, workshop)
    with engine.begin() as c:
        asked = backup_gate.as_asked(c, store, assessment)
        plan = planning.make(c, store, assessment, inventory.summarize(c, store, assessment))
        found = [asked, planning.waves_cover_each_document_once(c, store, plan), rehearsal.passed(c, store, plan)]
        for stage, result in zip(("store_backup", "migration_plan", "migration_plan"), found, strict=True):
            gates.record(c, Scope(assessment=assessed.number), stage, result, cycle.RUN)
    return store, plan, {result.gate: result for result in found}


def approve(engine: Engine, store: Store, plan: planning.Plan, given: Attestation | None = None) -> ledger.Execution:
    with engine.begin() as c:
        return approval.approve(c, store, plan.plan_id, given)


def asked(engine: Engine, store: Store) -> gates.GateResult:
    with engine.begin() as c:
        return backup_gate.as_asked(c, store, ledger.newest_assessment(c))


def rows_in(url: str, schema: str) -> cycle.Rows:
    other = open_store(url)
    try:
        return cycle.rows_of(other, schema)
    finally:
        other.dispose()


def restored_by_hand(made: Backup, url: str, extensions: tuple[str, ...] = ()) -> None:
    """pg_restore of the whole file, by its own program and not by ours, into an empty database."""
    with psycopg.connect(url, autocommit=True) as c:
        for extension in extensions:
            c.execute(f"CREATE EXTENSION {extension}")
    program = TOOLS[0] / "pg_restore"
    done = subprocess.run(
        [program, "--no-owner", "--no-privileges", f"--dbname={url}", made.name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_dump_of_the_incident_restores_equal_row_for_row(
    incident: Engine, workshop: Workshop, new_database: NewDatabase
) -> None:
    made = backup.take(incident, bound(incident), workshop)
    assert made.equal
    assert made.differences == []
    path = Path(made.name)
    assert path.parent == workshop.directory
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert made.bytes == path.stat().st_size
    assert made.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    before = cycle.rows_of(incident)
    assert {t["table"].split(".")[1]: t["rows"] for t in made.tables} == {
        table: len(rows) for table, rows in before.items() if table != "webhook_log"
    }
    copy = new_database(None)
    restored_by_hand(made, copy, ("vector",))
    assert {t: r for t, r in rows_in(copy, cycle.SCHEMA).items() if t != "webhook_log"} == {
        t: r for t, r in before.items() if t != "webhook_log"
    }


MOTLEY_SPEC = parse_spec(
    """
    namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
    schema: "Odd Shop"
    entities:
      item: {table: "I%tems", key: id, identity: "{code}"}
    """,
    "test",
)

MOTLEY = """
CREATE SCHEMA "Odd Shop"; CREATE SCHEMA util; CREATE SCHEMA elsewhere; CREATE SCHEMA people;
CREATE TYPE util.mood AS ENUM ('sad', 'so "so"', 'happy');
CREATE TYPE util.pair AS (a int, b text);
CREATE FUNCTION util.positive(n int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN n > 0; END';
CREATE DOMAIN util.amount AS int CHECK (util.positive(VALUE));
CREATE FUNCTION util.next_label() RETURNS text LANGUAGE sql AS $$SELECT 'L' || clock_timestamp()$$;
CREATE TEXT SEARCH CONFIGURATION util.plain (COPY = simple);
CREATE SEQUENCE util.numbers;
CREATE TABLE people.owners (owner int PRIMARY KEY, name text);
CREATE TABLE people.unrelated (n int);
CREATE TABLE "Odd Shop".unrelated (n int, m util.mood);
CREATE VIEW "Odd Shop".a_view AS SELECT * FROM people.unrelated;
CREATE TABLE "Odd Shop"."I%tems" (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text NOT NULL, m util.mood, ms util.mood[], p util.pair,
    a util.amount, n int GENERATED ALWAYS AS IDENTITY, k bigint DEFAULT nextval('util.numbers'),
    label text DEFAULT util.next_label(), doubled int GENERATED ALWAYS AS (a * 2) STORED, rel regclass,
    words tsvector GENERATED ALWAYS AS (to_tsvector('util.plain', code)) STORED, span int4range, at timestamptz,
    prices numeric[], doc jsonb, raw bytea, f float8, owner int REFERENCES people.owners,
    up uuid REFERENCES "Odd Shop"."I%tems");
CREATE INDEX by_words ON "Odd Shop"."I%tems" USING gin (words);
CREATE INDEX by_part ON "Odd Shop"."I%tems" (lower(code)) WHERE a > 3;
CREATE TABLE elsewhere.uses (use int PRIMARY KEY, item uuid NOT NULL REFERENCES "Odd Shop"."I%tems" ON DELETE CASCADE);
CREATE FUNCTION util.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touch BEFORE UPDATE ON "Odd Shop"."I%tems" FOR EACH ROW EXECUTE FUNCTION util.touch();
ALTER TABLE "Odd Shop"."I%tems" ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON "Odd Shop"."I%tems" USING (code = current_setting('x.y', true));
INSERT INTO people.owners SELECT i, 'o' || i FROM generate_series(1, 5) i;
INSERT INTO people.unrelated VALUES (1);
INSERT INTO "Odd Shop"."I%tems" (code, m, ms, p, a, rel, span, at, prices, doc, raw, f, owner)
SELECT 'c' || i, 'so "so"', '{sad,"so \\"so\\""}', ROW(i, 'x"y'::text)::util.pair, i, 'people.owners',
       int4range(i, i + 3), now(),
       ARRAY[i, 1.50], jsonb_build_object('k', i), decode('00ff', 'hex'), 1.0 / i, 1 + i % 5
FROM generate_series(1, 7) i;
UPDATE "Odd Shop"."I%tems" SET up = (SELECT id FROM "Odd Shop"."I%tems" WHERE code = 'c1') WHERE code = 'c2';
INSERT INTO elsewhere.uses SELECT row_number() OVER (), id FROM "Odd Shop"."I%tems";
"""


def test_a_store_of_odd_types_schemas_and_names_restores_equal(
    empty_store: Engine, workshop: Workshop, new_database: NewDatabase
) -> None:
    with empty_store.begin() as c:
        c.exec_driver_sql(MOTLEY.replace("%", "%%"))
    made = backup.take(empty_store, bound(empty_store, MOTLEY_SPEC), workshop)
    assert made.differences == []
    assert made.equal
    # The table that a foreign key leads to comes along with its rows; what nothing refers to does not.
    assert [t["table"] for t in made.tables] == ["Odd Shop.I%tems", "elsewhere.uses", "people.owners"]
    assert [t["rows"] for t in made.tables] == [7, 7, 5]
    assert [t["table"] for t in made.tables if t["touched"]] == ["Odd Shop.I%tems", "elsewhere.uses"]


def test_a_store_in_another_encoding_whose_names_are_beyond_ascii_restores_equal(
    workshop: Workshop, database_in: Callable[[str], str]
) -> None:
    with opened(database_in("LATIN1")) as store:
        cycle.run_sql(
            store,
            """CREATE SCHEMA "Läden"; CREATE TABLE "Läden"."Stücke" (id uuid PRIMARY KEY, name text);
               INSERT INTO "Läden"."Stücke" SELECT gen_random_uuid(), 'Käse ' || n FROM generate_series(1, 3) n""",
        )
        spec = MOTLEY_SPEC.model_copy(update={
            "schema_name": "Läden", "entities": {"item": EntitySpec(table="Stücke", key="id", identity="{name}")},
        })  # fmt: skip
        made = backup.take(store, bound(store, spec), workshop)

    assert made.equal
    assert [(t["table"], t["rows"]) for t in made.tables] == [("Läden.Stücke", 3)]


# In the store the path of the database finds inner_code; pg_restore looks in no schema at all.
LOST_SPEC = parse_spec(
    """
    namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
    schema: shop
    entities:
      item: {table: items, key: id, identity: "{code}"}
    """,
    "test",
)
LOST = """
CREATE SCHEMA shop; CREATE SCHEMA "More Util";
SET search_path TO shop, "More Util";
CREATE FUNCTION "More Util".inner_code(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT lower(t) $$;
CREATE FUNCTION shop.is_code(t text) RETURNS bool LANGUAGE plpgsql IMMUTABLE
    AS $$ BEGIN RETURN length(inner_code(t)) > 1; END $$;
CREATE FUNCTION shop.as_code(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN inner_code(t); END $$;
CREATE TABLE shop.items (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text NOT NULL {check});
CREATE TABLE shop.uses (use int PRIMARY KEY, item uuid NOT NULL REFERENCES shop.items);
CREATE INDEX by_code ON shop.items (shop.as_code(code));
INSERT INTO shop.items (code) SELECT 'C' || i FROM generate_series(1, 7) i;
INSERT INTO shop.uses SELECT row_number() OVER (), id FROM shop.items;
"""
LOST_PATH = '"shop", "More Util"'


@pytest.mark.parametrize("check", ["CHECK (shop.is_code(code))", ""], ids=["rows are refused", "an index is refused"])
def test_functions_that_find_names_by_the_search_path_do_not_make_a_backup_red(
    empty_store: Engine, empty_url: str, workshop: Workshop, new_database: NewDatabase, check: str
) -> None:
    with psycopg.connect(empty_url, autocommit=True) as c:
        c.execute(LOST.replace("{check}", check))
        c.execute(f"ALTER DATABASE {urlsplit(empty_url).path[1:]} SET search_path TO {LOST_PATH}")
    empty_store.dispose()

    made = backup.take(empty_store, bound(empty_store, LOST_SPEC), workshop)

    assert made.differences == []
    assert [f"search path {LOST_PATH}," in one for one in made.left_out] == [True]
    by_hand = new_database(None)
    run_as_written(runbook("path"), RESTORE_URL=by_hand, DUMP=made.name, SEARCH_PATH=LOST_PATH)
    assert rows_in(by_hand, "shop") == rows_in(empty_url, "shop")
    with psycopg.connect(by_hand) as c:
        assert c.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'shop.by_code'::regclass").fetchone()


def test_a_function_that_refuses_restored_rows_wherever_it_looks_for_names_makes_a_backup_red(
    empty_store: Engine, empty_url: str, workshop: Workshop
) -> None:
    """A check that held when the rows were written and does not any more: no path mends that."""
    with psycopg.connect(empty_url, autocommit=True) as c:
        c.execute(LOST.replace("{check}", "CHECK (shop.is_code(code))"))
        c.execute("""CREATE OR REPLACE FUNCTION "More Util".inner_code(t text) RETURNS text LANGUAGE sql IMMUTABLE
                     AS $$ SELECT '' $$""")

    made = backup.take(empty_store, bound(empty_store, LOST_SPEC), workshop)

    assert "shop.items: 7 rows before, 0 after" in made.differences


def test_a_dump_of_an_older_server_is_restored_on_a_newer_one(
    server_15: str, server_16: EmbeddedServer, tmp_path: Path
) -> None:
    with psycopg.connect(server_15, autocommit=True) as c:
        c.execute("DROP DATABASE IF EXISTS old")
        c.execute("CREATE DATABASE old")
        c.execute("DROP ROLE IF EXISTS poor")
        c.execute("CREATE ROLE poor LOGIN BYPASSRLS")
    old = server_15.replace("/postgres?", "/old?")
    with psycopg.connect(old, autocommit=True) as c:
        c.execute(MOTLEY)
        c.execute(
            "GRANT pg_read_all_data TO poor; GRANT CREATE ON DATABASE old TO poor; GRANT pg_write_all_data TO poor"
        )
    store = open_store(old.replace("postgres@", "poor@"))
    made = backup.take(
        store, bound(store, MOTLEY_SPEC), Workshop(tmp_path, (DEBIAN_15, *TOOLS), lambda: server_16.url("postgres"))
    )
    store.dispose()
    assert made.equal, made.differences
    assert made.tool is not None
    assert made.tool.startswith("pg_dump 15")
    assert "embedded server" in str(made.restored_on)
    with psycopg.connect(server_16.url("postgres")) as c:
        assert c.execute("SELECT count(*) FROM pg_database WHERE datname LIKE '%scratch%'").fetchone() == (0,)


def test_an_unreadable_table_that_a_foreign_key_leads_to_is_left_out_and_said(
    new_database: NewDatabase, new_role: NewRole, workshop: Workshop
) -> None:
    url = new_database(None)
    role = new_role("CREATEDB")
    with psycopg.connect(url, autocommit=True) as c:
        c.execute(
            """CREATE SCHEMA s; CREATE TABLE s.secret (n int PRIMARY KEY); INSERT INTO s.secret VALUES (1);
               CREATE SEQUENCE s.numbers;
               CREATE TABLE s.things (id uuid PRIMARY KEY, code text, n int REFERENCES s.secret,
                                      k bigint DEFAULT nextval('s.numbers'), i int GENERATED ALWAYS AS IDENTITY);
               INSERT INTO s.things SELECT gen_random_uuid(), 'a' || i, 1 FROM generate_series(1, 3) i"""
        )
        c.execute(f"GRANT USAGE ON SCHEMA s TO {role}; GRANT ALL ON s.things TO {role}")
        c.execute(f"GRANT CREATE ON DATABASE {urlsplit(url).path[1:]} TO {role}")
    spec = parse_spec(
        """
        namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
        schema: s
        entities: {thing: {table: things, key: id, identity: "{code}"}}
        """,
        "test",
    )
    engine = open_store(as_role(url, role))
    made = backup.take(engine, bound(engine, spec), workshop)
    engine.dispose()
    assert made.equal, made.differences
    assert ["s.secret" in said or "sequence s." in said for said in made.left_out] == [True, True, True]


def copy_of(server: EmbeddedServer) -> str:
    """The URL of the one scratch database there is."""
    with psycopg.connect(server.url("postgres")) as c:
        ((name,),) = c.execute("SELECT datname FROM pg_database WHERE datname LIKE 'uuid_pipeline_scratch%'").fetchall()
    return server.url(name)


def test_one_changed_row_of_the_restored_copy_makes_it_red(
    incident: Engine, workshop: Workshop, server: EmbeddedServer
) -> None:
    def tamper() -> None:
        with psycopg.connect(copy_of(server)) as c:
            c.execute(
                """UPDATE upload_pipeline.events SET code = code || '.'
                   WHERE event_id = (SELECT min(event_id::text)::uuid FROM upload_pipeline.events)"""
            )

    sync_points.on("restored", tamper)
    _, _, found = planned(incident, SPEC, workshop)
    assert not found["backup_as_asked"].passed
    assert "upload_pipeline.events: the 167 rows are not the same" in found["backup_as_asked"].finding


def test_an_index_that_the_copy_lacks_makes_it_red(
    incident: Engine, workshop: Workshop, server: EmbeddedServer
) -> None:
    def tamper() -> None:
        with psycopg.connect(copy_of(server)) as c:
            c.execute("DROP INDEX upload_pipeline.ix_documents_user")

    sync_points.on("restored", tamper)
    made = backup.take(incident, bound(incident), workshop)
    assert made.differences == ["index ix_documents_user on upload_pipeline.documents is missing"]
    assert not made.equal


def test_fingerprints_and_dump_are_of_one_moment(incident: Engine, workshop: Workshop) -> None:
    def delete() -> None:
        cycle.run_sql(incident, "DELETE FROM upload_pipeline.events")

    # Committed between the two: in neither.
    sync_points.on("fingerprinted", delete)
    made = backup.take(incident, bound(incident), workshop)
    assert made.equal
    assert {t["table"]: t["restored_rows"] for t in made.tables}["upload_pipeline.events"] == 167


def test_a_role_that_reads_by_default_and_may_not_idle_restores_on_the_stores_own_server(
    incident: Engine, incident_url: str, workshop: Workshop, new_role: NewRole
) -> None:
    role = new_role("SUPERUSER")
    for setting in ("default_transaction_read_only = on", "idle_in_transaction_session_timeout = '300ms'"):
        cycle.run_sql(incident, f'ALTER ROLE "{role}" SET {setting}')
    store = open_store(as_role(incident_url, role))
    idle: list[int] = []

    def look() -> None:
        # Whatever our sessions have open while the dump is restored would hold back the store's vacuum, or be ended.
        count = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = %(role)s "
            "AND state LIKE 'idle in transaction%%'"
        )
        idle.extend(n for (n,) in cycle.run_sql(incident, count, role=role))

    sync_points.on("restored", look)
    try:
        made = backup.take(store, bound(store), workshop)
    finally:
        store.dispose()

    assert idle == [0]
    assert made.differences == []
    assert "store's own server" in str(made.restored_on)


Spoil = Callable[[Engine, Path], object]


def append(_: Engine, path: Path) -> object:
    return path.write_bytes(path.read_bytes() + b"x")


def flip(_: Engine, path: Path) -> object:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return path.write_bytes(content)


def remove(_: Engine, path: Path) -> None:
    path.unlink()


def age(engine: Engine, _: Path) -> object:
    return cycle.run_sql(engine, "UPDATE uuid_pipeline.backups SET taken_at = taken_at - interval '24 hours 1 second'")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (append, "size or digest changed"), (flip, "size or digest changed"), (remove, "is not there"),
        (age, "24.0 hours old; the spec allows 24 hours"),
    ],
)  # fmt: skip
def test_a_dump_that_was_tampered_with_is_gone_or_too_old_is_red_refused_at_approval_and_replaced_by_the_next_plan(
    incident: Engine, workshop: Workshop, spoil: Spoil, said: str
) -> None:
    store, plan, found = planned(incident, SPEC, workshop)
    assert found["backup_as_asked"].passed
    with incident.begin() as c:
        first = backup.newest(c, "dump")
    assert first is not None
    spoil(incident, Path(first.name))
    red = asked(incident, store)
    assert not red.passed
    assert said in red.finding
    assert "uuid-pipeline backup" in red.remedy
    with pytest.raises(RefusedError, match=said):
        approve(incident, store, plan)
    _, again, found = planned(incident, SPEC, workshop)
    assert found["backup_as_asked"].passed
    assert again.plan_id == plan.plan_id
    with incident.begin() as c:
        second = backup.newest(c, "dump")
    assert second is not None
    assert second.number == first.number + 1
    approve(incident, store, again)


def test_a_valid_dump_is_used_again_and_one_from_before_a_migration_is_not(
    incident: Engine, workshop: Workshop
) -> None:
    store, plan, _ = planned(incident, SPEC, workshop)
    _, again, _ = planned(incident, SPEC, workshop)
    assert plan.plan_id == again.plan_id
    assert len(cycle.run_sql(incident, "SELECT FROM uuid_pipeline.backups")) == 1
    execution = approve(incident, store, again)
    assert cycle.run_sql(incident, "SELECT executions FROM uuid_pipeline.backups") == [([execution.execution_id],)]
    migration.run_wave(incident, store, cycle.waves_of(incident, execution)[0].wave, cycle.RUN, lambda _: None)
    red = asked(incident, store)
    assert not red.passed
    assert "ids were changed" in red.finding


def test_a_dump_of_another_catalog_is_red(incident: Engine, workshop: Workshop) -> None:
    backup.take(incident, bound(incident), workshop)
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.documents ADD note text")
    cycle.assess(incident, SPEC)
    red = asked(incident, bound(incident))
    assert not red.passed
    assert "another catalog" in red.finding


def test_grown_too_old_between_approval_and_first_wave_it_is_refused_until_a_new_one_is_taken(
    incident: Engine, workshop: Workshop
) -> None:
    store, plan, _ = planned(incident, SPEC, workshop)
    execution = approve(incident, store, plan)
    wave = cycle.waves_of(incident, execution)[0].wave
    before = cycle.rows_of(incident)
    age(incident, Path())
    with pytest.raises(
        RefusedError, match=r"the first wave of .* needs a backup.*24.0 hours old.*uuid-pipeline backup"
    ):
        migration.run_wave(incident, store, wave, cycle.RUN, lambda _: None)
    assert cycle.rows_of(incident) == before
    backup.take(incident, store, workshop)
    assert migration.run_wave(incident, store, wave, cycle.RUN, lambda _: None).documents == 5


def test_where_nothing_is_to_move_no_dump_is_made_and_the_gate_says_so(incident: Engine, workshop: Workshop) -> None:
    cycle.run_sql(incident, "TRUNCATE upload_pipeline.documents CASCADE")
    _, _, found = planned(incident, SPEC, workshop)
    assert found["backup_as_asked"].passed
    assert "none is needed" in found["backup_as_asked"].finding
    assert cycle.run_sql(incident, "SELECT FROM uuid_pipeline.backups") == []
    assert not workshop.directory.exists()


def ago(**parts: float) -> datetime:
    return datetime.now(UTC) - timedelta(**parts)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "--attest NAME --attested-at TIME"),
        (Attestation("snap-1", ago(hours=25)), r"2[56]\.\d hours old"),
        (Attestation("snap-1", ago(hours=-1)), "in the future"),
    ],
)
def test_an_attested_snapshot_must_be_named_young_enough_and_past(
    incident: Engine, workshop: Workshop, given: Attestation | None, said: str
) -> None:
    spec = cycle.spec_with(backup="attested")
    store, plan, found = planned(incident, spec, workshop)
    assert found["backup_as_asked"].passed
    with pytest.raises(RefusedError, match=said):
        approve(incident, store, plan, given)
    assert cycle.run_sql(incident, "SELECT FROM uuid_pipeline.executions") == []
    execution = approve(incident, store, plan, Attestation("snap-2", ago(hours=23)))
    held = cycle.run_sql(incident, "SELECT mode, name, executions, equal FROM uuid_pipeline.backups")
    assert held == [("attested", "snap-2", [execution.execution_id], None)]
    assert any("neither restored nor compared" in risk for risk in plan.content["risks"])
    wave = cycle.waves_of(incident, execution)[0].wave
    cycle.run_sql(incident, "UPDATE uuid_pipeline.backups SET taken_at = taken_at - interval '2 hours'")
    with pytest.raises(RefusedError, match=r"attested snapshot snap-2 .* 25\.\d hours old.*approve \w+ --attest"):
        migration.run_wave(incident, store, wave, cycle.RUN, lambda _: None)


def test_a_plan_is_approved_once_more_with_a_newer_snapshot_until_rows_move(
    incident: Engine, workshop: Workshop
) -> None:
    store, plan, _ = planned(incident, cycle.spec_with(backup="attested"), workshop)
    execution = approve(incident, store, plan, Attestation("snap-1", ago(hours=23)))
    newer = Attestation("snap-2", ago(hours=2))
    with pytest.raises(RefusedError, match="in the future"):
        approve(incident, store, plan, Attestation("snap-2", ago(hours=-1)))
    assert approve(incident, store, plan, newer) == approve(incident, store, plan, newer) == execution
    held = "SELECT name, executions FROM uuid_pipeline.backups ORDER BY backup_no"
    assert cycle.run_sql(incident, held) == [(name, [execution.execution_id]) for name in ("snap-1", "snap-2")]
    # The one before is too old by now, and no longer asked for.
    cycle.run_sql(incident, "UPDATE uuid_pipeline.backups SET taken_at = taken_at - interval '2 hours'")
    wave = cycle.waves_of(incident, execution)[0].wave
    assert migration.run_wave(incident, store, wave, cycle.RUN, lambda _: None).documents == 5
    approve(incident, store, plan, Attestation("snap-3", ago(hours=1)))
    assert len(cycle.run_sql(incident, held)) == 2


def test_none_is_a_risk_of_the_plan_and_takes_no_attestation(incident: Engine, workshop: Workshop) -> None:
    store, plan, found = planned(incident, cycle.spec_with(backup="none"), workshop)
    assert found["backup_as_asked"].passed
    assert [risk for risk in plan.content["risks"] if risk.startswith("no backup:")]
    with pytest.raises(UsageError, match="takes no --attest"):
        approve(incident, store, plan, Attestation("snap", ago(hours=1)))
    approve(incident, store, plan)
    assert not workshop.directory.exists()


def test_the_mode_is_part_of_what_the_plan_id_approves_and_times_are_not(incident: Engine, workshop: Workshop) -> None:
    ids = [
        planned(incident, cycle.spec_with(backup=mode), workshop)[1].plan_id for mode in ("dump", "attested", "none")
    ]
    assert len(set(ids)) == 3
    cycle.run_sql(incident, "DELETE FROM uuid_pipeline.backups")
    assert planned(incident, SPEC, workshop)[1].plan_id == ids[0]


@pytest.mark.parametrize(
    ("name", "at", "said"),
    [("snap", "", "by its name and its time"), ("", "2026-05-01", "by its name"), ("snap", "noon", "is no time")],
)
def test_half_an_attestation_is_wrong_use(name: str, at: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        backup_gate.attestation(name, at)


def test_a_time_without_a_zone_is_utc() -> None:
    given = backup_gate.attestation(" snap ", "2026-05-01T14:30")
    assert given == Attestation("snap", datetime(2026, 5, 1, 14, 30, tzinfo=UTC))
    assert backup_gate.attestation("", None) is None


def test_behind_a_pooler_it_is_refused_without_a_direct_url_and_taken_past_it_with_one(
    incident_url: str, new_database: NewDatabase, workshop: Workshop, pgbouncer: Pooled
) -> None:
    pooled = open_store(pgbouncer(incident_url))
    store = bound(pooled)
    with pytest.raises(RefusedError, match=r"pooler.*UUID_PIPELINE_DIRECT_URL.*attested"):
        backup.take(pooled, store, workshop)
    other = Workshop(workshop.directory, TOOLS, None, new_database(None))
    with pytest.raises(RefusedError, match="lead to two databases"):
        backup.take(pooled, store, other)
    made = backup.take(pooled, store, Workshop(workshop.directory, TOOLS, None, incident_url))
    assert made.equal
    pooled.dispose()


def test_a_failed_dump_leaves_no_file_and_says_what_pg_dump_said(
    incident: Engine, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uuid_pipeline.engine.backups.dumping.LOCK_WAIT_MILLISECONDS", 100)
    store = bound(incident)
    locked: list[Any] = []

    def lock() -> None:
        held = incident.connect()
        held.exec_driver_sql("LOCK TABLE upload_pipeline.webhook_log IN ACCESS EXCLUSIVE MODE")
        locked.append(held)

    sync_points.on("fingerprinted", lock)
    with pytest.raises(PipelineError, match=r"pg_dump ended with code 1(.|\n)*timeout(.|\n)*LOCK TABLE"):
        backup.take(incident, store, workshop)
    locked[0].close()
    assert list(workshop.directory.iterdir()) == []
    assert cycle.run_sql(incident, "SELECT FROM uuid_pipeline.backups") == []


def test_without_a_pg_dump_new_enough_nothing_is_recorded(
    incident: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pg_tools, "_INSTALLED", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    store = bound(incident)
    with pytest.raises(UsageError, match=r"needs pg_dump and pg_restore 18 or newer. Found: none"):
        backup.take(incident, store, Workshop(tmp_path))
    assert cycle.run_sql(incident, "SELECT FROM uuid_pipeline.backups") == []


def runbook(mark: str) -> str:
    """The commands of docs/backup.md that stand below this mark, as written."""
    text = (Path(__file__).parents[2] / "docs" / "backup.md").read_text()
    found = re.search(rf"<!-- tested: {mark} -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def run_as_written(commands: str, **variables: str) -> None:
    environment = os.environ | {"PATH": f"{TOOLS[0]}:{os.environ['PATH']}"} | variables
    done = subprocess.run(["bash", "-euc", commands], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_runbooks_commands_bring_the_touched_tables_back_after_a_migration(
    incident: Engine, incident_url: str, workshop: Workshop, new_database: NewDatabase
) -> None:
    before = cycle.rows_of(incident)
    made = backup.take(incident, bound(incident), workshop)
    copy = new_database(None)
    with psycopg.connect(copy, autocommit=True) as c:
        c.execute("CREATE EXTENSION vector")
    run_as_written(runbook("empty"), RESTORE_URL=copy, DUMP=made.name)
    assert rows_in(copy, cycle.SCHEMA)["documents"] == before["documents"]

    cycle.run_all(incident, SPEC)
    assert cycle.rows_of(incident)["documents"] != before["documents"]
    touched = " ".join(table["table"] for table in made.tables if table["touched"])
    run_as_written(runbook("store"), RESTORE_URL=incident_url, DUMP=made.name, TABLES=touched)
    assert cycle.rows_of(incident) == before
    assert [found.name for found in workshop.directory.iterdir()] == [Path(made.name).name]

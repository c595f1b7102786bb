"""Rehearsals: there and back on a restored copy, the store itself left alone; red when anything differs."""

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo import installation, twins
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import catalog, gates, ledger, planning, sync_points
from uuid_pipeline.engine.backups.workshop import Workshop
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.rehearsals import rehearsal
from uuid_pipeline.engine.rehearsals.rehearsal import Rehearsal
from uuid_pipeline.engine.store import Store, bind
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Rehearsal as Asked
from uuid_pipeline.spec import Spec, load_spec
from uuid_pipeline.stages.checks import EVALUATORS
from uuid_pipeline_tests.conftest import NewDatabase, NewRole, as_role
from uuid_pipeline_tests.integration import cycle, shop
from uuid_pipeline_tests.integration.test_backup import copy_of

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")

SPEC = load_spec(None)
OURS = [f"{stage}.{gate}" for stage in gates.GATES for gate in gates.GATES[stage]]
Rehearse = Callable[..., Rehearsal]


@pytest.fixture(autouse=True)
def every_check_made() -> None:
    from uuid_pipeline.definitions import defs

    assert defs is not None  # importing it makes every check


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "backups", tuple(installation.client_directories()))


def bound(engine: Engine, spec: Spec = SPEC) -> Store:
    with engine.begin() as c:
        store = bind(spec, catalog.read_catalog(c, spec.schema_name))
        ledger.create(c, store)
    return store


def rehearse(engine: Engine, workshop: Workshop, spec: Spec = SPEC, users: int | None = None) -> Rehearsal:
    return rehearsal.rehearse(engine, bound(engine, spec), workshop, EVALUATORS, users, lambda _: None)


def test_the_incident_is_migrated_and_rolled_back_in_the_copy_and_the_store_is_as_before(
    incident: Engine, workshop: Workshop, server: EmbeddedServer
) -> None:
    before = cycle.rows_of(incident)
    made = rehearse(incident, workshop)
    assert made.differences == []
    assert made.passed
    assert cycle.rows_of(incident) == before
    assert made.documents == len(before["documents"])
    assert made.ids == len(before["documents"]) + len(before["document_chunks"])
    moved = ("documents", "document_chunks", "upload_jobs", "events")
    assert made.rows == sum(len(before[table]) for table in moved)
    assert made.seconds > 0
    assert made.rollback_seconds > 0
    # Every gate that there is, each at least once.
    assert set(made.gates) == set(OURS)
    with psycopg.connect(server.url("postgres")) as c:
        assert c.execute("SELECT count(*) FROM pg_database WHERE datname LIKE '%scratch%'").fetchone() == (0,)
    # The store's own ledger knows no execution: the copy had one of its own.
    assert cycle.run_sql(incident, "SELECT FROM uuid_pipeline.executions") == []


@pytest.mark.system
def test_twins_are_merged_and_brought_back(empty_store: Engine, workshop: Workshop) -> None:
    with empty_store.begin() as c:
        twins.build_twins(c)
    made = rehearse(empty_store, workshop)
    assert made.passed, made.differences
    assert len(cycle.rows_of(empty_store)["documents"]) == 50


def test_a_sample_holds_the_documents_of_the_users_with_most_and_all_that_hangs_on_them(
    incident: Engine, workshop: Workshop, server: EmbeddedServer
) -> None:
    users = cycle.run_sql(
        incident, "SELECT user_id, count(*) FROM upload_pipeline.documents GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3"
    )
    chosen = [user for user, _ in users]
    expected = {
        table: cycle.run_sql(
            incident,
            f"""SELECT count(*) FROM upload_pipeline.{table} t JOIN upload_pipeline.documents d USING (document_id)
                WHERE d.user_id = ANY(%(users)s)""",  # noqa: S608
            users=chosen,
        )[0][0]
        for table in ("documents", "document_chunks", "upload_jobs", "events")
    }
    seen: dict[str, int] = {}

    def look() -> None:
        with psycopg.connect(copy_of(server)) as c:
            for table in expected:
                row = c.execute(f"SELECT count(*) FROM upload_pipeline.{table}").fetchone()  # noqa: S608
                seen[table] = row[0] if row else 0

    sync_points.on("rehearsed", look)
    made = rehearse(incident, workshop, users=3)
    assert made.passed, made.differences
    assert made.left_out == []
    assert seen == expected
    assert made.documents == sum(count for _, count in users)
    assert made.users == 3


def test_a_trigger_that_raises_makes_it_red_and_says_what_it_raised(incident: Engine, workshop: Workshop) -> None:
    cycle.run_sql(
        incident,
        """CREATE FUNCTION upload_pipeline.refuse() RETURNS trigger LANGUAGE plpgsql AS
           'BEGIN RAISE EXCEPTION ''ids are cast in stone''; END'""",
    )
    cycle.run_sql(
        incident,
        """CREATE TRIGGER refuse BEFORE UPDATE ON upload_pipeline.documents FOR EACH ROW
           EXECUTE FUNCTION upload_pipeline.refuse()""",
    )
    before = cycle.rows_of(incident)
    made = rehearse(incident, workshop, cycle.spec_with(triggers={"refuse": "fire"}))
    assert not made.passed
    assert "ids are cast in stone" in made.differences[0]
    assert cycle.rows_of(incident) == before


def test_a_red_gate_in_the_copy_is_named(incident: Engine, workshop: Workshop) -> None:
    # Half a chunk's natural key is another's: two rows, one key, and the spec wants no merging.
    cycle.run_sql(incident, "DROP INDEX upload_pipeline.uq_user_filehash")
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.documents SET (user_id, file_sha256) =
               (SELECT user_id, file_sha256 FROM upload_pipeline.documents ORDER BY document_id LIMIT 1)
           WHERE document_id = (SELECT max(document_id::text)::uuid FROM upload_pipeline.documents)""",
    )
    blocked = SPEC.entities["document"].model_copy(update={"on_duplicate": "block"})
    made = rehearse(incident, workshop, cycle.spec_with(entities=SPEC.entities | {"document": blocked}))
    assert not made.passed
    assert made.differences[0].startswith("duplicate_clusters.each_cluster_decided did not pass")


@pytest.mark.system
def test_a_row_that_differs_after_the_rollback_makes_it_red(
    incident: Engine, workshop: Workshop, server: EmbeddedServer
) -> None:
    def tamper() -> None:
        with psycopg.connect(copy_of(server)) as c:
            c.execute("UPDATE upload_pipeline.upload_jobs SET created_at = created_at + interval '1 s'")

    sync_points.on("rehearsed", tamper)
    made = rehearse(incident, workshop)
    assert not made.passed
    assert any("after the rollback upload_pipeline.upload_jobs" in said for said in made.differences)


@pytest.mark.system
def test_a_role_that_may_make_no_database_rehearses_on_the_embedded_server(
    incident_url: str, new_role: NewRole, server_16: EmbeddedServer, tmp_path: Path
) -> None:
    role = new_role("BYPASSRLS")
    with psycopg.connect(incident_url, autocommit=True) as c:
        c.execute(f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}")
        c.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA upload_pipeline TO {role}")
        c.execute(f"GRANT CREATE ON DATABASE {incident_url.rpartition('@/')[2].split('?')[0]} TO {role}")
        c.execute(f"GRANT SET ON PARAMETER session_replication_role TO {role}")
    engine = open_store(as_role(incident_url, role))
    tools = tuple(installation.client_directories())
    made = rehearse(engine, Workshop(tmp_path, tools, lambda: server_16.url("postgres")))
    engine.dispose()
    assert made.passed, made.differences
    assert "embedded server (permission denied to create database" in made.rehearsed_on


def test_a_sample_by_users_needs_to_know_whose_a_document_is(incident: Engine, workshop: Workshop) -> None:
    entity = SPEC.entities["document"]
    plain = entity.model_copy(update={"describe": entity.describe.model_copy(update={"owner": None})})
    with pytest.raises(RefusedError, match=r"describe\.owner"):
        rehearse(incident, workshop, cycle.spec_with(entities=SPEC.entities | {"document": plain}), users=2)


def gate_of(engine: Engine, plan: planning.Plan, spec: Spec) -> gates.GateResult:
    store = bound(engine, cycle.without_backup(spec))
    with engine.begin() as c:
        return rehearsal.passed(c, store, plan)


@pytest.mark.system
def test_where_it_is_required_the_gate_wants_one_that_passed_for_this_spec_and_size(
    incident: Engine, workshop: Workshop
) -> None:
    plain = cycle.without_backup(SPEC)
    assert gate_of(incident, cycle.assess_and_plan(incident, plain), plain).finding == "not asked for"
    required = cycle.without_backup(cycle.spec_with(rehearsal=Asked(required=True)))
    plan = cycle.assess_and_plan(incident, required)
    red = gate_of(incident, plan, required)
    assert not red.passed
    assert "there was none" in red.finding
    with pytest.raises(RefusedError, match=r"rehearsal_passed did not pass.*uuid-pipeline rehearse"):
        cycle.approve(incident, required, plan.plan_id)

    rehearse(incident, workshop, plain, users=2)
    assert "another spec" in gate_of(incident, plan, required).finding
    # As if this spec's had been rehearsed.
    cycle.run_sql(incident, "UPDATE uuid_pipeline.rehearsals SET spec_digest = %(digest)s", digest=required.digest)
    assert "2 users' documents; the spec asks for all" in gate_of(incident, plan, required).finding
    rehearse(incident, workshop, required)
    assert gate_of(incident, plan, required).passed
    # One that was made before there was anything to move proves nothing.
    cycle.run_sql(incident, "UPDATE uuid_pipeline.rehearsals SET documents = 0")
    assert "was of no document" in gate_of(incident, plan, required).finding
    rehearse(incident, workshop, required)
    cycle.approve(incident, required, cycle.assess_and_plan(incident, required).plan_id)


def estimate(engine: Engine) -> tuple[float, str]:
    content = cycle.assess_and_plan(engine, SPEC).content
    return content["estimate"]["seconds"], content["estimate"]["basis"]


@pytest.mark.system
def test_the_estimate_says_whose_speed_it_is_by(incident: Engine, workshop: Workshop) -> None:
    assert estimate(incident)[1].startswith("assumed")
    execution = cycle.approve(incident, SPEC, cycle.newest_plan(incident).plan_id)
    cycle.finish(incident, SPEC, execution)
    cycle.roll_back(incident, SPEC)
    cycle.run_sql(incident, "UPDATE uuid_pipeline.batches SET milliseconds = 1000")
    seconds, basis = estimate(incident)
    # Three waves of one batch each, all that there is to move again.
    assert basis.startswith(f"execution {execution.execution_id} here: 125 ids")
    assert seconds == 3.0
    rehearse(incident, workshop)
    cycle.run_sql(incident, "UPDATE uuid_pipeline.rehearsals SET seconds = 50")
    seconds, basis = estimate(incident)
    assert basis.startswith("rehearsal 1 of")
    assert seconds == 50.0
    cycle.run_sql(incident, "UPDATE uuid_pipeline.rehearsals SET passed = false")
    assert estimate(incident)[0] == 3.0


def test_a_store_with_nothing_to_move_is_rehearsed_too(new_database: NewDatabase, workshop: Workshop) -> None:
    engine = open_store(new_database(None))
    with engine.begin() as c:
        c.exec_driver_sql(
            "CREATE SCHEMA shop; CREATE TABLE shop.things (id uuid PRIMARY KEY, code text NOT NULL, n int); "
            "CREATE TABLE shop.parts (part int PRIMARY KEY, thing_id uuid NOT NULL, n int)"
        )
    made = rehearse(engine, workshop, shop.SPEC)
    engine.dispose()
    assert made.passed, made.differences
    assert made.documents == 0
    assert rehearsal.described(made).endswith("moved nothing: no document is due")

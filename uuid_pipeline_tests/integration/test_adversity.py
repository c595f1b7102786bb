"""What a hostile review found: an application, an operator or a spec that changes at the worst moment."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import gates, inventory, ledger, mapping, validation
from uuid_pipeline.engine.gates import Scope
from uuid_pipeline.engine.proofs import comparison
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.spec import Spec, load_spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_migration import ONE_BY_ONE, finish, some_documents, unmoved
from uuid_pipeline_tests.integration.test_rollback import status_of

SPEC = load_spec(None)

CHUNK_AGAIN = """
WITH gone AS (DELETE FROM upload_pipeline.document_chunks RETURNING *)
INSERT INTO upload_pipeline.document_chunks
SELECT gen_random_uuid(), document_id, chunker_name, chunker_version, chunk_ord, text, chunk_sha, embed_model,
       embed_version, vector_dim, embedding, embed_updated_at, created_at, updated_at
FROM gone
"""
NEW_HASH = "UPDATE upload_pipeline.documents SET file_sha256 = repeat('a', 64) WHERE document_id = %(id)s"


def approved(engine: Engine, spec: Spec = SPEC) -> ledger.Execution:
    return cycle.approve(engine, spec, cycle.assess_and_plan(engine, spec).plan_id)


def maps(engine: Engine) -> list[tuple[Any, ...]]:
    """Every row of both id maps."""
    return cycle.run_sql(
        engine,
        """SELECT 'document', d::text FROM uuid_pipeline.id_map_document d
           UNION ALL SELECT 'chunk', c::text FROM uuid_pipeline.id_map_chunk c ORDER BY 1, 2""",
    )


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(SPEC, id="in one batch a wave"),
        pytest.param(ONE_BY_ONE, id="one document a batch", marks=pytest.mark.system),
    ],
)
def test_chunks_made_again_under_other_ids_after_planning_are_moved_and_go_back(incident: Engine, spec: Spec) -> None:
    execution = approved(incident, spec)
    cycle.run_sql(incident, CHUNK_AGAIN)
    before = cycle.rows_of(incident)

    cycle.migrate_all(incident, spec, execution)

    cycle.assert_green(cycle.validate(incident))
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    cycle.roll_back(incident, spec)
    assert cycle.rows_of(incident) == before


@pytest.mark.begins("migrated")
def test_chunks_made_again_after_the_migration_stay_when_their_documents_go_back(
    incident: Engine, before: cycle.Rows
) -> None:
    cycle.run_sql(incident, CHUNK_AGAIN)
    made = {row["chunk_id"] for row in cycle.rows_of(incident)["document_chunks"]}

    cycle.roll_back(incident, SPEC)

    after = cycle.rows_of(incident)
    assert {row["chunk_id"] for row in after["document_chunks"]} == made
    for rows in (before, after):
        rows["document_chunks"] = cycle.ordered([row | {"chunk_id": None} for row in rows["document_chunks"]])
    assert after == before


@pytest.mark.begins("migrated")
@pytest.mark.parametrize("stage", ["inventory", "map"])
def test_an_approved_assessment_is_not_looked_at_again_and_keeps_its_map(incident: Engine, stage: str) -> None:
    execution = cycle.newest_execution(incident)
    before = maps(incident)
    stages: dict[str, Callable[..., object]] = {"inventory": inventory.take, "map": mapping.build}
    build = stages[stage]

    with incident.begin() as connection:
        store = cycle.bound(connection, SPEC)
        with pytest.raises(RefusedError, match=f"was approved as execution {execution.execution_id}"):
            build(connection, store, execution.assessment_no)

    assert maps(incident) == before


@pytest.mark.begins("planned")
def test_an_assessment_that_is_approved_while_one_of_its_stages_begins_keeps_its_map(
    incident: Engine, other: Engine
) -> None:
    """The stage's snapshot is older than the approval, and shows none."""
    plan = cycle.newest_plan(incident)
    before = maps(incident)
    stage = incident.connect().execution_options(isolation_level="REPEATABLE READ")

    with stage as connection, connection.begin():
        store = cycle.bound(connection, SPEC)
        cycle.approve(other, SPEC, plan.plan_id)
        with pytest.raises(RefusedError, match="was approved while this stage began"):
            mapping.build(connection, store, plan.assessment_no)

    assert maps(incident) == before


@pytest.mark.begins("approved")
@pytest.mark.parametrize("entity", ["document", "chunk"])
def test_a_map_changed_behind_the_plans_back_moves_nothing(incident: Engine, entity: str) -> None:
    execution = cycle.newest_execution(incident)
    change = f"UPDATE uuid_pipeline.id_map_{entity} SET new_id = gen_random_uuid() WHERE ordinal = 1"  # noqa: S608
    cycle.run_sql(incident, change)
    rows = cycle.rows_of(incident)

    with pytest.raises(RefusedError, match=f"The id map of {entity} is not the one that plan .* was made with"):
        cycle.migrate(incident, SPEC, cycle.waves_of(incident, execution)[0])

    assert cycle.rows_of(incident) == rows
    assert status_of(incident) == ["approved"]


@pytest.mark.parametrize("schema", ["upload_pipeline", "storage"])
def test_a_key_that_itself_refers_to_a_table_that_stays_is_unsupported(incident: Engine, schema: str) -> None:
    cycle.run_sql(
        incident,
        f"""CREATE SCHEMA IF NOT EXISTS {schema};
            CREATE TABLE {schema}.objects (id uuid PRIMARY KEY);
            INSERT INTO {schema}.objects SELECT document_id FROM upload_pipeline.documents;
            ALTER TABLE upload_pipeline.documents ADD FOREIGN KEY (document_id) REFERENCES {schema}.objects""",  # noqa: S608
    )

    gate = cycle.assess(incident, SPEC).gates["nothing_unsupported"]

    assert not gate.passed
    assert "documents.document_id moves as document" in gate.finding
    assert f"refers to {schema}.objects.id, which does not" in gate.finding


def renamed() -> Spec:
    """The default spec with its document called ``doc``."""
    document, chunk = SPEC.entities["document"], SPEC.entities["chunk"]
    return cycle.spec_with(
        entities={"doc": document, "chunk": chunk.model_copy(update={"parent": "doc"})},
        soft_references=[reference.model_copy(update={"entity": "doc"}) for reference in SPEC.soft_references],
    )


@pytest.mark.begins("migrated")
@pytest.mark.parametrize(
    "changed",
    [renamed(), cycle.spec_with(soft_references=[])],
    ids=["entity renamed", "soft reference dropped"],
)
def test_a_rollback_follows_the_spec_that_the_plan_was_made_with(
    incident_with_buffer: Engine, before: cycle.Rows, changed: Spec
) -> None:
    assert cycle.rows_of(incident_with_buffer) == cycle.expected_rows(before)
    assert changed.digest != SPEC.digest

    cycle.roll_back(incident_with_buffer, changed)

    assert cycle.rows_of(incident_with_buffer) == before
    assert status_of(incident_with_buffer) == ["rolled_back"]


@pytest.mark.begins("migrated")
def test_a_wave_does_not_go_back_under_a_newer_execution_that_has_moved_rows(
    incident: Engine, before: cycle.Rows
) -> None:
    older = cycle.newest_execution(incident)
    cycle.run_sql(incident, NEW_HASH, id=some_documents(incident, 1)[0])
    newer = cycle.run_all(incident, SPEC)
    rows = cycle.rows_of(incident)

    with pytest.raises(RefusedError, match=f"Execution {newer.execution_id} moved rows after"):
        cycle.roll_back(incident, SPEC, cycle.waves_of(incident, older)[0].wave)

    assert cycle.rows_of(incident) == rows
    assert status_of(incident) == ["completed", "completed"]
    cycle.roll_back(incident, SPEC)
    ids = [{row["document_id"] for row in found["documents"]} for found in (before, cycle.rows_of(incident))]
    assert ids[0] == ids[1]


@pytest.mark.begins("approved")
def test_a_validation_made_before_the_last_wave_does_not_complete_the_execution(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    *first, last, sweep, _ = cycle.all_waves_of(incident, execution)  # the second sweep is not needed
    for wave in first:
        cycle.migrate(incident, SPEC, wave)
        cycle.assert_green(cycle.check_wave(incident, SPEC, wave))
    cycle.assert_green(cycle.validate(incident))
    for wave in (last, sweep):
        cycle.migrate(incident, SPEC, wave)
        cycle.assert_green(cycle.check_wave(incident, SPEC, wave))

    with incident.begin() as connection:
        assert not validation.settle(connection, execution)
        compared = comparison.compare(connection, cycle.bound(connection, SPEC), execution)
        one = comparison.whole_conservation(compared)
        scope = Scope(execution=execution.execution_id)
        gates.record(connection, scope, gates.VALIDATION_STAGE, one, "one gate only")
        assert not validation.settle(connection, execution)
    assert status_of(incident) == ["running"]
    cycle.assert_green(cycle.validate(incident))
    assert status_of(incident) == ["completed"]


def test_a_document_whose_target_id_another_row_took_is_set_aside_and_the_others_go_on(incident: Engine) -> None:
    cycle.run_sql(incident, "DROP INDEX upload_pipeline.uq_user_filehash")
    [document] = some_documents(incident, 1)
    execution = approved(incident)
    [(target,)] = cycle.run_sql(
        incident,
        """INSERT INTO upload_pipeline.documents
               (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
           SELECT new_id, gen_random_uuid(), filename, mime, bytes_len, file_sha256, raw_path
           FROM upload_pipeline.documents JOIN uuid_pipeline.id_map_document ON old_id = document_id
           WHERE document_id = %(id)s RETURNING document_id::text""",
        id=document,
    )
    before = cycle.rows_of(incident)

    finish(incident, execution)

    assert unmoved(incident) == [(document, "taken")]
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left=[document, target])
    cycle.roll_back(incident, SPEC)
    assert cycle.rows_of(incident) == before


@pytest.mark.begins("approved")
def test_identity_edited_after_the_move_is_no_wrong_id_and_is_due_for_the_next_plan(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    canary = cycle.waves_of(incident, execution)[0]
    cycle.migrate(incident, SPEC, canary)
    [(document,)] = cycle.run_sql(incident, "SELECT new_id FROM uuid_pipeline.id_map_document WHERE ordinal = 1")
    cycle.run_sql(incident, NEW_HASH, id=document)
    before = cycle.rows_of(incident)

    found = {result.gate: result for result in cycle.check_wave(incident, SPEC, canary)}

    assert found["ids_exact"].passed, found["ids_exact"].finding
    finish(incident, execution)
    plan = cycle.assess_and_plan(incident, SPEC)
    assert plan.moves["document"] == 1
    finish(incident, cycle.approve(incident, SPEC, plan.plan_id))
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_a_table_of_another_schema_that_refers_at_second_hand_moves_along(incident: Engine) -> None:
    cycle.run_sql(
        incident,
        """CREATE SCHEMA app;
           CREATE TABLE app.ext (document_id uuid PRIMARY KEY REFERENCES upload_pipeline.documents);
           CREATE TABLE app.notes (n int, document_id uuid REFERENCES app.ext);
           INSERT INTO app.ext SELECT document_id FROM upload_pipeline.documents;
           INSERT INTO app.notes SELECT n, document_id FROM app.ext, generate_series(1, 2) n""",
    )
    new = cycle.targets(cycle.rows_of(incident))
    before = cycle.rows_of(incident, "app")

    cycle.run_all(incident, SPEC)

    assert cycle.rows_of(incident, "app") == {
        table: cycle.ordered([row | {"document_id": new[str(row["document_id"])]} for row in rows])
        for table, rows in before.items()
    }
    cycle.roll_back(incident, SPEC)
    assert cycle.rows_of(incident, "app") == before


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "0044-03-15 00:00:00+00 BC"])
def test_a_moment_that_no_calendar_of_python_holds_is_inventoried(incident: Engine, moment: str) -> None:
    [document] = some_documents(incident, 1)
    change = "UPDATE upload_pipeline.documents SET created_at = %(at)s WHERE document_id = %(id)s"
    cycle.run_sql(incident, change, at=moment, id=document)
    before = cycle.rows_of(incident)

    cycle.run_all(incident, SPEC)

    kept = "SELECT created_at::text FROM uuid_pipeline.inventory_document WHERE key = %(id)s"
    assert cycle.run_sql(incident, kept, id=document) == [(moment,)]
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_a_creation_date_that_is_a_number_is_refused_with_its_type(incident: Engine) -> None:
    document = SPEC.entities["document"]
    described = document.describe.model_copy(update={"created_at": "bytes_len"})
    odd = document.model_copy(update={"describe": described})
    spec = cycle.spec_with(entities={**SPEC.entities, "document": odd})

    with pytest.raises(UsageError, match=r"describe\.created_at names documents\.bytes_len, which is bigint"):
        cycle.assess(incident, spec)

"""Between the plan and its first wave, and between two plans: what comes then is neither lost nor taken for another."""

import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import EntitySpec, load_spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_migration import REMOVE
from uuid_pipeline_tests.integration.test_sweep import BUFFER

SPEC = load_spec(None)
UPLOAD = """
INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
VALUES (%(id)s, %(user)s, 'late.pdf', 'application/pdf', 1, %(sha)s, 'storage://late')
"""


def upload(engine: Engine) -> str:
    document = str(uuid.uuid4())
    cycle.run_sql(engine, UPLOAD, id=document, user=str(uuid.uuid4()), sha=uuid.uuid4().hex * 2)
    return document


# Between two waves: a chunk of a document that has moved, to one that has not, with or without another place there.
GIVE = """
UPDATE upload_pipeline.document_chunks SET document_id = %(to)s::uuid, chunk_ord = chunk_ord + %(further)s
WHERE chunk_id = %(chunk)s::uuid
"""


@pytest.mark.parametrize("further", [50, 0], ids=["a place of its own", "the place of another chunk"])
def test_a_chunk_that_the_application_gives_away_between_two_waves_makes_no_gate_red(
    incident: Engine, further: int
) -> None:
    """The batch of the document that has it now writes it last; in another's place it can have no target id."""
    cycle.run_sql(
        incident,
        """ALTER TABLE upload_pipeline.document_chunks
           DROP CONSTRAINT document_chunks_document_id_chunker_name_chunker_version_ch_key""",
    )
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    cycle.migrate_waves(incident, SPEC, slice(1))
    [(chunk, to)] = cycle.run_sql(
        incident,
        """SELECT c.chunk_id::text, o.document_id::text FROM uuid_pipeline.id_map_document m
           JOIN upload_pipeline.document_chunks c ON c.document_id = m.new_id
           JOIN upload_pipeline.document_chunks o USING (chunker_name, chunker_version, chunk_ord)
           JOIN uuid_pipeline.id_map_document later ON later.old_id = o.document_id AND later.ordinal > 5
           WHERE m.ordinal <= 5 ORDER BY 1, 2 LIMIT 1""",
    )
    cycle.run_sql(incident, GIVE, chunk=chunk, to=to, further=further)

    cycle.migrate_all(incident, SPEC, execution)

    cycle.assert_green(cycle.validate(incident))
    stayed = "SELECT count(*) FROM upload_pipeline.document_chunks WHERE chunk_id = %(chunk)s"
    assert cycle.run_sql(incident, stayed, chunk=chunk) == [(0 if further else 1,)]


LATE_CHUNK = """
INSERT INTO upload_pipeline.document_chunks (chunk_id, document_id, chunker_name, chunker_version, chunk_ord, text,
    chunk_sha, embed_model, embed_version, vector_dim, embedding)
SELECT gen_random_uuid(), document_id, 'late', '1', 7, 'late', '', 'none', '1', 1536, array_fill(0.1::real, ARRAY[1536])
FROM upload_pipeline.documents d WHERE document_id = %(document)s::uuid RETURNING chunk_id::text
"""
FIRST_OF = """
SELECT old_id::text, new_id::text FROM uuid_pipeline.id_map_document m WHERE ordinal > %(after)s AND NOT EXISTS (
    SELECT FROM upload_pipeline.document_chunks c WHERE c.document_id IN (m.old_id, m.new_id)) ORDER BY ordinal LIMIT 1
"""


@pytest.mark.begins("planned")
def test_a_chunk_that_came_after_the_plan_and_was_given_away_before_its_batch_makes_no_gate_red(
    incident: Engine,
) -> None:
    [(lender, _)] = cycle.run_sql(incident, FIRST_OF, after=5)
    [(chunk,)] = cycle.run_sql(incident, LATE_CHUNK, document=lender)
    execution = cycle.approve(incident, SPEC, cycle.newest_plan(incident).plan_id)
    cycle.migrate_waves(incident, SPEC, slice(1))
    [(to,)] = cycle.run_sql(incident, "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE ordinal = 38")
    cycle.run_sql(incident, GIVE, chunk=chunk, to=to, further=50)

    cycle.migrate_all(incident, SPEC, execution)

    cycle.assert_green(cycle.validate(incident))


def test_a_moved_document_whose_key_changes_and_that_gets_a_chunk_waits_for_the_next_plan_and_makes_no_gate_red(
    incident: Engine,
) -> None:
    before = {row["document_id"] for row in cycle.rows_of(incident)["documents"]}
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    cycle.migrate_waves(incident, SPEC, slice(1))
    [(document,)] = cycle.run_sql(incident, "SELECT new_id::text FROM uuid_pipeline.id_map_document WHERE ordinal = 1")
    edit = "UPDATE upload_pipeline.documents SET file_sha256 = repeat('cd', 32) WHERE document_id = %(id)s"
    cycle.run_sql(incident, edit, id=document)
    cycle.run_sql(incident, LATE_CHUNK, document=document)

    cycle.migrate_all(incident, SPEC, execution)

    found = {gate.gate: gate for gate in cycle.validate(incident)}
    cycle.assert_green(found.values())
    assert "1 rows came later and are due for the next plan" in found["next_step_safe"].finding
    assert document in {row["document_id"] for row in cycle.rows_of(incident)["documents"]}
    edited = cycle.rows_of(incident)
    cycle.run_all(incident, SPEC)
    assert cycle.rows_of(incident) == cycle.expected_rows(edited) != edited
    cycle.roll_back(incident, SPEC)
    assert {row["document_id"] for row in cycle.rows_of(incident)["documents"]} == before


# A third level, whose rows nobody but us writes: what refers to them is re-keyed with them.
LEAVES = """
CREATE TABLE upload_pipeline.leaves (leaf uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    chunk_id uuid NOT NULL REFERENCES upload_pipeline.document_chunks, place int NOT NULL);
INSERT INTO upload_pipeline.leaves (chunk_id, place) SELECT chunk_id, 1 FROM upload_pipeline.document_chunks
"""


def test_rows_that_our_batches_move_twice_since_one_above_was_given_away_count_as_the_applications_doing(
    incident: Engine,
) -> None:
    cycle.run_sql(incident, LEAVES)
    leaf = EntitySpec(table="leaves", key="leaf", parent="chunk", identity="{chunk_id}:{place}")
    spec = cycle.spec_with(entities=SPEC.entities | {"leaf": leaf})
    execution = cycle.approve(incident, spec, cycle.assess_and_plan(incident, spec).plan_id)
    cycle.migrate_waves(incident, spec, slice(1))
    [(chunk, to)] = cycle.run_sql(
        incident,
        """SELECT min(c.chunk_id::text), (SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE ordinal = 38)
           FROM uuid_pipeline.id_map_document m JOIN upload_pipeline.document_chunks c ON c.document_id = m.new_id
           WHERE m.ordinal <= 5""",
    )
    cycle.run_sql(incident, GIVE, chunk=chunk, to=to, further=50)

    cycle.migrate_all(incident, spec, execution)

    cycle.assert_green(cycle.validate(incident))


@pytest.mark.begins("planned")
def test_a_document_that_comes_after_the_plan_is_swept_and_the_whole_is_proven(incident: Engine) -> None:
    plan = cycle.newest_plan(incident)
    upload(incident)
    before = cycle.rows_of(incident)
    execution = cycle.approve(incident, SPEC, plan.plan_id)

    cycle.migrate_all(incident, SPEC, execution)

    cycle.assert_green(cycle.validate(incident))
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    cycle.roll_back(incident, SPEC)
    assert cycle.rows_of(incident) == before


@pytest.mark.begins("migrated")
def test_a_plan_made_before_a_rollback_is_stale_after_it(incident: Engine) -> None:
    upload(incident)
    plan = cycle.assess_and_plan(incident, SPEC)
    cycle.roll_back(incident, SPEC)

    with pytest.raises(RefusedError, match="is stale: rows were moved or rolled back by another execution since"):
        cycle.approve(incident, SPEC, plan.plan_id)


TAKE = """
WITH robbed AS (SELECT old_id, new_id FROM uuid_pipeline.id_map_chunk WHERE role = 'move'
                ORDER BY ordinal, old_id LIMIT 1)
INSERT INTO upload_pipeline.document_chunks
SELECT (jsonb_populate_record(c, jsonb_build_object(
           'chunk_id', robbed.new_id, 'chunk_ord', 999, 'document_id', holder.document_id))).*
FROM robbed JOIN upload_pipeline.document_chunks c ON c.chunk_id = robbed.old_id
CROSS JOIN LATERAL (SELECT d.document_id FROM upload_pipeline.documents d
                    WHERE (d.document_id = c.document_id) = %(same)s ORDER BY 1 LIMIT 1) holder
RETURNING chunk_id::text
"""


@pytest.mark.begins("planned")
@pytest.mark.parametrize("same", [True, False], ids=["of the same document", "of another document"])
def test_a_chunk_whose_target_id_another_chunk_has_taken_since_stays_and_is_due_for_the_next_plan(
    incident: Engine, same: bool
) -> None:
    [(taken,)] = cycle.run_sql(incident, TAKE, same=same)
    before = cycle.rows_of(incident)
    [robbed] = [old for old, new in cycle.targets(before).items() if new == taken]
    execution = cycle.approve(incident, SPEC, cycle.newest_plan(incident).plan_id)

    cycle.migrate_all(incident, SPEC, execution)

    cycle.assert_green(cycle.validate(incident))
    after = cycle.rows_of(incident)
    now = {row["chunk_id"] for row in after["document_chunks"]} | {row["document_id"] for row in after["documents"]}
    assert robbed in now
    assert {new for old, new in cycle.targets(before).items() if old not in (robbed, taken)} <= now
    cycle.run_all(incident, SPEC)
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    cycle.roll_back(incident, SPEC)
    assert cycle.rows_of(incident) == before


@pytest.mark.parametrize("again", ["random", "target"])
def test_an_old_id_written_while_its_document_was_deleted_makes_no_gate_red_once_that_is_there_again(
    incident_with_buffer: Engine, again: str
) -> None:
    """Nobody could tell then which id it would have; the alias trigger puts the id of a row that is there."""
    store = incident_with_buffer
    execution = cycle.approve(store, SPEC, cycle.assess_and_plan(store, SPEC).plan_id)
    canary, *_ = cycle.waves_of(store, execution)
    cycle.migrate(store, SPEC, canary)
    [(old, new), *_] = cycle.run_sql(
        store, "SELECT old_id::text, new_id::text FROM uuid_pipeline.id_map_document WHERE wave LIKE '%%canary%%'"
    )
    document = "SELECT user_id, file_sha256 FROM upload_pipeline.documents WHERE document_id = %(id)s"
    [(user, sha)] = cycle.run_sql(store, document, id=new)
    for statement in ("DELETE FROM upload_pipeline.document_vector_buffer WHERE document_id = %(id)s", *REMOVE):
        cycle.run_sql(store, statement, id=new)
    [(chunk,), *_] = cycle.run_sql(store, "SELECT chunk_id::text FROM upload_pipeline.document_chunks")
    cycle.run_sql(store, BUFFER, buffer=str(uuid.uuid4()), chunk=chunk, document=old)
    cycle.run_sql(store, UPLOAD, id=new if again == "target" else str(uuid.uuid4()), user=user, sha=sha)

    cycle.migrate_all(store, SPEC, execution)
    cycle.assert_green(cycle.validate(store))

    assert cycle.run_sql(store, "SELECT 1 FROM upload_pipeline.documents WHERE document_id = %(id)s", id=new) == [(1,)]
    # One that a batch forgot is red, as before: nobody wrote it since.
    forgotten = """UPDATE upload_pipeline.document_vector_buffer b SET document_id = m.old_id
                   FROM uuid_pipeline.id_map_document m WHERE m.new_id = b.document_id AND b.ctid = (
                       SELECT min(c.ctid) FROM upload_pipeline.document_vector_buffer c)"""
    as_a_batch(store, forgotten)
    red = [result.gate for result in cycle.validate(store) if not result.passed]
    assert "whole_no_dangling_reference" in red


def as_a_batch(engine: Engine, statement: str) -> None:
    """A change whose transaction stands in the journal as a batch's."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql(statement)
        connection.exec_driver_sql(
            """INSERT INTO uuid_pipeline.batches (execution_id, wave, direction, first_ordinal, last_ordinal, moved,
                   fingerprints, lease_epoch, milliseconds)
               SELECT execution_id, wave, direction, first_ordinal, last_ordinal, '{}', '{}', 0, 0
               FROM uuid_pipeline.batches LIMIT 1"""
        )

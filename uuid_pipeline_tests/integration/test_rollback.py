"""Rollback: the old ids again, on every row, with whatever the application has done since."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine

from uuid_pipeline.demo.incident import add_vector_buffer
from uuid_pipeline.engine import rollback, sync_points
from uuid_pipeline.engine.batches import tries
from uuid_pipeline.engine.batches.held import BatchPlan
from uuid_pipeline.engine.merges import restoring
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, load_spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_migration import NEW_CHUNK, ONE_BY_ONE, remove, some_documents

SPEC = load_spec(None)


def status_of(engine: Engine) -> list[str]:
    """Statuses of all executions, oldest first."""
    return [row[0] for row in cycle.run_sql(engine, "SELECT status FROM uuid_pipeline.executions ORDER BY approved_at")]


@pytest.mark.parametrize("spec", [SPEC, ONE_BY_ONE], ids=["in one batch a wave", "one document a batch"])
def test_every_row_is_back_as_it_was(incident: Engine, spec: Spec) -> None:
    with incident.begin() as connection:
        add_vector_buffer(connection)
    rows, objects = cycle.rows_of(incident), cycle.catalog_of(incident)
    cycle.run_all(incident, spec)

    runs = cycle.roll_back(incident, spec)

    assert cycle.rows_of(incident) == rows
    assert cycle.catalog_of(incident) == objects
    assert [run.documents for run in runs] == [18, 15, 5]
    assert status_of(incident) == ["rolled_back"]


@pytest.mark.begins("migrated")
def test_one_wave_goes_back_and_the_others_stay(incident: Engine, before: cycle.Rows) -> None:
    execution = cycle.newest_execution(incident)

    cycle.roll_back(incident, SPEC, "canary")

    back = [
        row[0]
        for row in cycle.run_sql(incident, "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE ordinal <= 5")
    ]
    assert len(back) == 5
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left=back)
    assert status_of(incident) == ["partly_rolled_back"]
    assert [wave.status for wave in cycle.waves_of(incident, execution)] == ["rolled_back", "moved", "moved"]


@pytest.mark.begins("migrated")
def test_after_one_wave_the_rest_can_be_rolled_back_too(incident: Engine, before: cycle.Rows) -> None:
    cycle.roll_back(incident, SPEC, "recent")
    cycle.roll_back(incident, SPEC)

    assert cycle.rows_of(incident) == before
    assert status_of(incident) == ["rolled_back"]


@pytest.mark.begins("approved")
def test_an_execution_that_has_only_begun_can_be_rolled_back(incident: Engine, before: cycle.Rows) -> None:
    execution = cycle.newest_execution(incident)
    cycle.migrate(incident, SPEC, cycle.waves_of(incident, execution)[0])
    assert cycle.rows_of(incident) != before

    cycle.roll_back(incident, SPEC)

    assert cycle.rows_of(incident) == before
    assert status_of(incident) == ["rolled_back"]


@pytest.mark.begins("migrated")
def test_rolling_back_again_changes_nothing(incident: Engine, before: cycle.Rows) -> None:
    cycle.roll_back(incident, SPEC)

    assert cycle.roll_back(incident, SPEC) == []

    assert cycle.rows_of(incident) == before


@pytest.mark.begins("migrated")
def test_a_rollback_that_gets_no_locks_says_who_has_them_and_goes_on_when_they_are_gone(
    incident: Engine, before: cycle.Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "MAX_TRIES", 1)
    monkeypatch.setattr(tries, "PATIENCE_SECONDS", 0.2)
    with cycle.session(incident) as writer:
        writer.execute("SELECT FROM upload_pipeline.documents FOR UPDATE")

        with pytest.raises(RefusedError, match=f"at work on these tables now: pid {writer.info.backend_pid}\\. What"):
            cycle.roll_back(incident, SPEC)

        writer.rollback()
    cycle.roll_back(incident, SPEC)
    assert cycle.rows_of(incident) == before


@pytest.mark.begins("migrated")
@pytest.mark.parametrize("end", ["remaining", "remaining-001", "030-remaining-001", "{execution}-030-remaining-001"])
def test_a_wave_is_called_by_its_kind_its_name_or_the_end_of_it(incident: Engine, end: str) -> None:
    execution = cycle.newest_execution(incident)
    name = end.format(execution=execution.execution_id)

    with incident.begin() as connection:
        chosen = rollback.choose(connection, name)
        nothing = rollback.choose(connection, "sweep-1")
        with pytest.raises(RefusedError, match="No moved wave is called 001"):
            rollback.choose(connection, "001")

    assert [wave.wave for wave in chosen] == [f"{execution.execution_id}-030-remaining-001"]
    assert nothing == []


@pytest.mark.begins("migrated")
def test_a_wave_of_an_unknown_name_is_refused_with_those_that_can_go_back(incident: Engine) -> None:
    with pytest.raises(RefusedError, match=r"No moved wave is called canaries.*-010-canary"):
        cycle.roll_back(incident, SPEC, "canaries")


@pytest.mark.begins("migrated")
def test_rows_that_the_application_wrote_since_stay_under_the_old_id(incident: Engine, before: cycle.Rows) -> None:
    [document] = some_documents(incident, 1)
    old = next(was for was, now in cycle.targets(before).items() if now == document)
    job, chunk = str(uuid.uuid4()), str(uuid.uuid4())
    new_job = "INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (%(job)s, %(id)s, 'queued')"
    cycle.run_sql(incident, new_job, job=job, id=document)
    cycle.run_sql(incident, NEW_CHUNK, id=chunk, document=document)
    rename = "UPDATE upload_pipeline.documents SET filename = 'renamed.pdf' WHERE document_id = %(id)s"
    cycle.run_sql(incident, rename, id=document)

    cycle.roll_back(incident, SPEC)

    after = cycle.rows_of(incident)
    written = {"upload_jobs": ("job_id", job), "document_chunks": ("chunk_id", chunk)}
    for table, (key, value) in written.items():
        [row] = [row for row in after[table] if row[key] == value]
        assert row["document_id"] == old
        after[table].remove(row)
    [renamed] = [row for row in after["documents"] if row["document_id"] == old]
    assert renamed["filename"] == "renamed.pdf"
    [original] = [row for row in before["documents"] if row["document_id"] == old]
    renamed |= {column: original[column] for column in ("filename", "updated_at")}
    assert {t: cycle.ordered(rows) for t, rows in after.items()} == before


@pytest.mark.begins("migrated")
def test_rows_that_the_application_deleted_since_stay_deleted(incident: Engine, before: cycle.Rows) -> None:
    [document] = some_documents(incident, 1)
    old = next(was for was, now in cycle.targets(before).items() if now == document)
    remove(incident, document)

    cycle.roll_back(incident, SPEC)

    jobs = {row["job_id"] for row in before["upload_jobs"] if row["document_id"] == old}
    assert jobs
    assert cycle.rows_of(incident) == {
        table: [row for row in rows if row.get("document_id") != old and row.get("job_id") not in jobs]
        for table, rows in before.items()
    }


# A document that no plan knows, as an application that has learned the rule writes it.
RECEIVER = """
INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
SELECT gen_random_uuid(), user_id, 'new.pdf', 'application/pdf', 1, repeat('ab', 32), 'storage://new'
FROM upload_pipeline.documents LIMIT 1 RETURNING document_id
"""


@pytest.mark.parametrize("spec", [SPEC, ONE_BY_ONE], ids=["in one batch a wave", "one document a batch"])
def test_a_chunk_given_to_a_document_of_no_plan_has_its_old_id_again_and_so_has_what_refers_to_it(
    incident: Engine, spec: Spec
) -> None:
    with incident.begin() as connection:
        add_vector_buffer(connection)
    before = {row["chunk_id"] for row in cycle.rows_of(incident)["document_chunks"]}
    cycle.run_all(incident, spec)
    [(receiver,)] = cycle.run_sql(incident, RECEIVER)
    [(chunk,)] = cycle.run_sql(incident, "SELECT min(chunk_id::text) FROM upload_pipeline.document_chunks")
    give = "UPDATE upload_pipeline.document_chunks SET document_id = %(to)s WHERE chunk_id = %(id)s"
    cycle.run_sql(incident, give, id=chunk, to=receiver)

    cycle.roll_back(incident, spec)

    after = cycle.rows_of(incident)["document_chunks"]
    assert {row["chunk_id"] for row in after} == before
    # The id that it had meanwhile goes on to mean it.
    [own] = [row["chunk_id"] for row in after if row["document_id"] == str(receiver)]
    assert cycle.run_sql(incident, "SELECT uuid_pipeline.resolve_chunk(%(id)s)::text", id=chunk) == [(own,)]


WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@pytest.mark.begins("migrated")
def test_a_chunk_given_to_a_document_that_somebody_has_locked_keeps_its_id_until_they_have_done(
    incident: Engine, before: cycle.Rows
) -> None:
    """Who has locked a document may name the chunks that it has by the ids just read."""
    [(receiver,)] = cycle.run_sql(incident, RECEIVER)
    [(chunk,)] = cycle.run_sql(incident, "SELECT min(chunk_id::text) FROM upload_pipeline.document_chunks")
    give = "UPDATE upload_pipeline.document_chunks SET document_id = %(to)s WHERE chunk_id = %(id)s"
    cycle.run_sql(incident, give, id=chunk, to=receiver)

    with incident.connect() as application, ThreadPoolExecutor(1) as helper:
        lock = "SELECT FROM upload_pipeline.documents WHERE document_id = %(id)s FOR UPDATE"
        application.exec_driver_sql(lock, {"id": receiver})
        undone = helper.submit(cycle.roll_back, incident, SPEC)
        while cycle.run_sql(incident, WAITING) == [(0,)] and not undone.done():
            time.sleep(0.01)
        assert not undone.done()
        edit = "UPDATE upload_pipeline.document_chunks SET text = text WHERE chunk_id = %(id)s"
        found = application.exec_driver_sql(edit, {"id": chunk}).rowcount
        application.commit()
        undone.result(60)

    assert found == 1
    after = cycle.rows_of(incident)["document_chunks"]
    assert {row["chunk_id"] for row in after} == {row["chunk_id"] for row in before["document_chunks"]}


@pytest.mark.parametrize("later", [True, False], ids=["to a later batch", "to an earlier batch"])
def test_a_chunk_given_to_another_document_since_has_its_old_id_again_and_leaves_no_reference_dangling(
    incident: Engine, later: bool
) -> None:
    with incident.begin() as connection:
        add_vector_buffer(connection)
    before = {row["chunk_id"] for row in cycle.rows_of(incident)["document_chunks"]}
    cycle.run_all(incident, ONE_BY_ONE)
    chunks = cycle.run_sql(
        incident,
        """SELECT chunk_id, document_id FROM upload_pipeline.document_chunks
           JOIN uuid_pipeline.id_map_document ON new_id = document_id ORDER BY ordinal""",
    )
    given, receiver = (chunks[0], chunks[-1]) if later else (chunks[-1], chunks[0])
    give = """UPDATE upload_pipeline.document_chunks SET document_id = %(to)s, chunk_ord = chunk_ord + 50
              WHERE chunk_id = %(id)s"""
    cycle.run_sql(incident, give, id=given[0], to=receiver[1])

    cycle.roll_back(incident, ONE_BY_ONE)

    dangling = """
        SELECT count(*) FROM upload_pipeline.document_vector_buffer b
        WHERE NOT EXISTS (SELECT FROM upload_pipeline.document_chunks c WHERE c.chunk_id = b.chunk_id)"""
    assert cycle.run_sql(incident, dangling) == [(0,)]
    assert {row["chunk_id"] for row in cycle.rows_of(incident)["document_chunks"]} == before
    [(given_id,)] = cycle.run_sql(
        incident, "SELECT chunk_id::text FROM upload_pipeline.document_chunks WHERE chunk_ord >= 50"
    )
    resolved = cycle.run_sql(incident, "SELECT uuid_pipeline.resolve_chunk(%(id)s)::text", id=given[0])
    assert resolved == [(given_id,)]


def test_a_chunk_below_another_waves_document_keeps_its_id_until_its_own_wave_goes_back(incident: Engine) -> None:
    """Undone with the other wave it would be gone from under what its own wave's merges remember of it."""
    before = {row["chunk_id"] for row in cycle.rows_of(incident)["document_chunks"]}
    cycle.run_all(incident, SPEC)
    [(chunk, to)] = cycle.run_sql(
        incident,
        """SELECT min(c.chunk_id::text), (SELECT r.new_id FROM uuid_pipeline.id_map_document r
                                          ORDER BY r.ordinal DESC LIMIT 1)
           FROM uuid_pipeline.id_map_document m JOIN upload_pipeline.document_chunks c ON c.document_id = m.new_id
           WHERE m.ordinal <= 5""",
    )
    give = "UPDATE upload_pipeline.document_chunks SET document_id = %(to)s, chunk_ord = 70 WHERE chunk_id = %(id)s"
    cycle.run_sql(incident, give, id=chunk, to=to)

    cycle.roll_back(incident, SPEC, "remaining")

    assert chunk in {row["chunk_id"] for row in cycle.rows_of(incident)["document_chunks"]}
    cycle.roll_back(incident, SPEC)
    assert {row["chunk_id"] for row in cycle.rows_of(incident)["document_chunks"]} == before


NOT_VALID = """
ALTER TABLE upload_pipeline.upload_jobs DROP CONSTRAINT upload_jobs_document_id_fkey,
    ADD CONSTRAINT upload_jobs_document_id_fkey FOREIGN KEY (document_id) REFERENCES upload_pipeline.documents NOT VALID
"""


def test_a_row_that_dangles_by_a_key_which_the_server_does_not_vouch_for_is_no_fault_of_a_rollback(
    incident: Engine,
) -> None:
    cycle.run_sql(incident, NOT_VALID)
    cycle.run_all(incident, SPEC)
    nowhere = str(uuid.uuid4())
    with cycle.session(incident) as application:
        application.execute("SET LOCAL session_replication_role = replica")
        application.execute(
            "UPDATE upload_pipeline.upload_jobs SET document_id = %s WHERE job_id = (SELECT min(job_id::text)::uuid "
            "FROM upload_pipeline.upload_jobs)",
            [nowhere],
        )
        application.commit()

    cycle.roll_back(incident, SPEC)

    assert nowhere in {row["document_id"] for row in cycle.rows_of(incident)["upload_jobs"]}
    assert status_of(incident) == ["rolled_back"]


@pytest.mark.begins("migrated")
def test_after_a_rollback_the_store_can_be_migrated_again(incident: Engine, before: cycle.Rows) -> None:
    first = cycle.newest_execution(incident)
    cycle.roll_back(incident, SPEC)

    second = cycle.run_all(incident, SPEC)

    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    assert first.execution_id != second.execution_id
    cycle.roll_back(incident, SPEC)
    assert cycle.rows_of(incident) == before


@pytest.mark.begins("migrated")
def test_a_wave_that_went_back_does_not_run_again_under_the_old_approval(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    cycle.roll_back(incident, SPEC, "canary")
    rows = cycle.rows_of(incident)

    with pytest.raises(RefusedError, match="partly_rolled_back"):
        cycle.migrate(incident, SPEC, cycle.waves_of(incident, execution)[0])

    assert cycle.rows_of(incident) == rows


DROPPED = {
    "a foreign key": "ALTER TABLE upload_pipeline.events DROP CONSTRAINT events_document_id_fkey",
    "the foreign key of children":
        "ALTER TABLE upload_pipeline.document_chunks DROP CONSTRAINT document_chunks_document_id_fkey",
    "a described column": "ALTER TABLE upload_pipeline.documents DROP COLUMN filename",
    "a column of the ignored": "ALTER TABLE upload_pipeline.events DROP COLUMN payload",
    "a table of soft references": "DROP TABLE upload_pipeline.document_vector_buffer",
    "a table of foreign keys": "DROP TABLE upload_pipeline.events",
}  # fmt: skip


@pytest.mark.parametrize("dropped", DROPPED)
def test_what_the_application_dropped_since_keeps_nothing_else_from_going_back(
    incident_with_buffer: Engine, dropped: str
) -> None:
    before = cycle.rows_of(incident_with_buffer)
    spec = cycle.spec_with(soft_references=[one.model_copy(update={"optional": False}) for one in SPEC.soft_references])
    cycle.run_all(incident_with_buffer, spec)
    cycle.run_sql(incident_with_buffer, DROPPED[dropped])

    cycle.undo(incident_with_buffer)

    # Each row and column that is left is as it was.
    after = cycle.rows_of(incident_with_buffer)
    assert set(before) - set(after) <= {"document_vector_buffer", "events"}
    for table, rows in after.items():
        assert rows == [{name: row[name] for name in rows[0]} for row in before[table]], table


def test_rows_of_another_schema_whose_foreign_key_is_gone_are_not_left_behind(incident: Engine) -> None:
    cycle.run_sql(incident, "CREATE SCHEMA billing")
    cycle.run_sql(
        incident,
        """CREATE TABLE billing.claims AS SELECT document_id, row_number() OVER () AS claim
           FROM upload_pipeline.documents""",
    )
    key = "ALTER TABLE billing.claims ADD CONSTRAINT of FOREIGN KEY (document_id) REFERENCES upload_pipeline.documents"
    cycle.run_sql(incident, key)
    claims = "SELECT document_id, claim FROM billing.claims ORDER BY 2"
    before, rows = cycle.rows_of(incident), cycle.run_sql(incident, claims)
    cycle.run_all(incident, SPEC)
    cycle.run_sql(incident, "ALTER TABLE billing.claims DROP CONSTRAINT of")
    moved = cycle.rows_of(incident)

    with pytest.raises(RefusedError, match=r"billing\.claims\.document_id held ids of the document by foreign key of"):
        cycle.undo(incident)
    assert cycle.rows_of(incident) == moved

    cycle.run_sql(incident, f"{key} NOT VALID")
    cycle.undo(incident)
    assert (cycle.rows_of(incident), cycle.run_sql(incident, claims)) == (before, rows)


@pytest.mark.begins("migrated")
def test_a_rollback_that_died_when_all_waves_were_back_is_closed_by_the_spec_of_its_execution(
    incident: Engine, before: cycle.Rows
) -> None:
    """What is left to undo is nothing by then; and yet it is no matter of the spec of now."""
    left = len([wave for wave in cycle.all_waves_of(incident, cycle.newest_execution(incident)) if wave.documents])

    def die_at_the_last() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    sync_points.on("rolled back", die_at_the_last)
    try:
        with pytest.raises(KeyboardInterrupt):
            cycle.undo(incident)
    finally:
        sync_points.clear()
    assert cycle.newest_execution(incident).status == "rolling_back"

    cycle.undo(incident)

    assert cycle.newest_execution(incident).status == "rolled_back"
    assert cycle.rows_of(incident) == before


@pytest.mark.begins("migrated")
def test_what_a_rollback_itself_changes_is_seen_at_its_end_where_nobody_else_wrote(
    incident: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = restoring.restore

    def restore_and_spoil(connection: Connection, store: Store, plan: BatchPlan) -> restoring.Restored:
        connection.exec_driver_sql("UPDATE upload_pipeline.events SET severity = 'error' WHERE severity <> 'error'")
        return restore(connection, store, plan)

    monkeypatch.setattr(restoring, "restore", restore_and_spoil)

    table = r"upload_pipeline\.events \((\d+) rows before, \1 now\)"
    with pytest.raises(RefusedError, match=f"these tables are not as they were before: {table}"):
        cycle.undo(incident)

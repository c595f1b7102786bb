"""Migration: every row is what an independent oracle says, and nothing but ids has changed."""

import uuid
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo.incident import add_vector_buffer
from uuid_pipeline.engine import ledger, migration, sync_points
from uuid_pipeline.engine.batches import writing
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, load_spec, parse_spec
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)
ONE_BY_ONE = cycle.spec_with(batch_rows=1, lanes=1)

NEW_CHUNK = """
INSERT INTO upload_pipeline.document_chunks
SELECT %(id)s, document_id, chunker_name, chunker_version, 1000, text, chunk_sha, embed_model, embed_version,
       vector_dim, embedding, embed_updated_at, created_at, updated_at
FROM upload_pipeline.document_chunks WHERE document_id = %(document)s LIMIT 1
"""
REMOVE = [
    "DELETE FROM upload_pipeline.webhook_log WHERE job_id IN "
    "(SELECT job_id FROM upload_pipeline.upload_jobs WHERE document_id = %(id)s)",
    *[
        f"DELETE FROM upload_pipeline.{table} WHERE document_id = %(id)s"  # noqa: S608
        for table in ("events", "upload_jobs", "document_chunks", "documents")
    ],
]


def some_documents(engine: Engine, count: int) -> list[str]:
    """Ids of complete documents, which have chunks, jobs and events."""
    found = cycle.run_sql(
        engine,
        "SELECT document_id FROM upload_pipeline.documents WHERE processing_status = 'complete' ORDER BY 1 LIMIT %(n)s",
        n=count,
    )
    return [str(row[0]) for row in found]


def remove(engine: Engine, document: str) -> None:
    """What the application does when a user deletes a document."""
    for statement in REMOVE:
        cycle.run_sql(engine, statement, id=document)


def unmoved(engine: Engine) -> list[tuple[Any, ...]]:
    return cycle.run_sql(engine, "SELECT old_id, reason FROM uuid_pipeline.unmoved ORDER BY 1")


def finish(engine: Engine, execution: ledger.Execution) -> None:
    cycle.migrate_all(engine, SPEC, execution)
    cycle.assert_green(cycle.validate(engine))


@pytest.mark.parametrize("spec", [SPEC, ONE_BY_ONE], ids=["in one batch a wave", "one document a batch"])
def test_every_column_of_every_row_is_as_the_standard_uuid5_says(incident: Engine, spec: Spec) -> None:
    before = cycle.rows_of(incident)

    cycle.run_all(incident, spec)

    after = cycle.rows_of(incident)
    old = {row["document_id"] for row in before["documents"]} | {row["chunk_id"] for row in before["document_chunks"]}
    new = {row["document_id"] for row in after["documents"]} | {row["chunk_id"] for row in after["document_chunks"]}
    assert after == cycle.expected_rows(before)
    assert len(new) == 38 + 87
    assert old.isdisjoint(new)


@pytest.mark.begins("migrated")
def test_tables_keys_indexes_triggers_policies_and_grants_are_as_before(
    incident: Engine, objects_before: list[tuple[Any, ...]]
) -> None:
    assert cycle.catalog_of(incident) == objects_before


@pytest.mark.begins("migrated")
def test_no_date_and_no_time_is_touched_although_triggers_would(incident: Engine, untouched: Engine) -> None:
    times = """
        SELECT 'document', file_sha256, created_at, updated_at FROM upload_pipeline.documents
        UNION ALL SELECT 'job', job_id::text, created_at, updated_at FROM upload_pipeline.upload_jobs
        UNION ALL SELECT 'chunk', chunk_sha || user_id || file_sha256, c.created_at, c.updated_at
        FROM upload_pipeline.document_chunks c JOIN upload_pipeline.documents USING (document_id)
        UNION ALL SELECT 'event', event_id::text, ts, ts FROM upload_pipeline.events ORDER BY 1, 2, 3"""
    assert cycle.run_sql(incident, times) == cycle.run_sql(untouched, times)


@pytest.mark.begins("migrated")
def test_jobs_events_and_webhooks_keep_their_own_ids_and_follow_their_document(
    incident: Engine, untouched: Engine
) -> None:
    own = """
        SELECT d.file_sha256, j.job_id, e.event_id, w.webhook_id FROM upload_pipeline.documents d
        JOIN upload_pipeline.upload_jobs j USING (document_id)
        LEFT JOIN upload_pipeline.events e ON e.job_id = j.job_id AND e.document_id = d.document_id
        LEFT JOIN upload_pipeline.webhook_log w ON w.job_id = j.job_id ORDER BY 1, 2, 3, 4"""
    before = cycle.run_sql(untouched, own)
    assert cycle.run_sql(incident, own) == before
    assert len(before) >= 38


@pytest.mark.begins("migrated")
def test_foreign_keys_are_enforced_again_after_the_migration(incident: Engine) -> None:
    with cycle.session(incident) as connection:
        for table, name in connection.execute(
            "SELECT conrelid::regclass::text, conname::text FROM pg_constraint WHERE contype = 'f' "
            "AND connamespace = 'upload_pipeline'::regnamespace"
        ).fetchall():
            definition = connection.execute(
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s", [name]
            ).fetchone()
            assert definition is not None
            # Adding it anew makes PostgreSQL itself look for orphans, which replica role would have let in.
            statement = f"ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {definition[0]}"
            connection.execute(statement.encode())
        connection.rollback()


@pytest.mark.begins("approved")
def test_a_chunk_written_after_planning_is_derived_in_its_documents_batch(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    [document] = some_documents(incident, 1)
    cycle.run_sql(incident, NEW_CHUNK, id=str(uuid.uuid4()), document=document)
    before = cycle.rows_of(incident)

    finish(incident, execution)

    assert len(before["document_chunks"]) == 88
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


@pytest.mark.begins("approved")
def test_a_chunk_that_a_batch_mapped_to_another_id_than_its_own_is_found_though_the_application_is_at_work(
    incident: Engine,
) -> None:
    execution = cycle.newest_execution(incident)
    [document] = cycle.run_sql(incident, "SELECT document_id::text FROM upload_pipeline.documents LIMIT 1")[0]
    cycle.run_sql(incident, NEW_CHUNK, id=str(uuid.uuid4()), document=document)
    cycle.migrate_all(incident, SPEC, execution)
    with cycle.session(incident) as connection:
        connection.execute("SET session_replication_role = replica")
        wrong = {"wrong": str(uuid.uuid4())}
        ours = "UPDATE upload_pipeline.document_chunks SET chunk_id = %(wrong)s WHERE chunk_ord = 1000"
        connection.execute(ours, wrong)
        connection.execute("UPDATE uuid_pipeline.id_map_chunk SET new_id = %(wrong)s WHERE arrived", wrong)

    [gate] = [one for one in cycle.validate(incident) if one.gate == "whole_ids_exact"]

    assert not gate.passed
    assert f"chunk {wrong['wrong']} was mapped, and its natural key gives " in gate.finding


@pytest.mark.begins("approved")
def test_a_chunk_whose_ordinal_changed_after_planning_is_derived_anew(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    [document] = some_documents(incident, 1)
    change = "UPDATE upload_pipeline.document_chunks SET chunk_ord = chunk_ord + 50 WHERE document_id = %(id)s"
    cycle.run_sql(incident, change, id=document)
    before = cycle.rows_of(incident)

    finish(incident, execution)

    assert cycle.rows_of(incident) == cycle.expected_rows(before)


@pytest.mark.parametrize("later", [True, False], ids=["to a later batch", "to an earlier batch"])
def test_a_chunk_given_to_another_document_after_planning_takes_its_references_along(
    incident: Engine, later: bool
) -> None:
    with incident.begin() as connection:
        add_vector_buffer(connection)
    execution = cycle.approve(incident, ONE_BY_ONE, cycle.assess_and_plan(incident, ONE_BY_ONE).plan_id)
    chunks = cycle.run_sql(
        incident,
        """SELECT chunk_id, document_id FROM upload_pipeline.document_chunks
           JOIN uuid_pipeline.id_map_document ON old_id = document_id ORDER BY ordinal""",
    )
    given, receiver = (chunks[0], chunks[-1]) if later else (chunks[-1], chunks[0])
    give = """UPDATE upload_pipeline.document_chunks SET document_id = %(to)s, chunk_ord = chunk_ord + 50
              WHERE chunk_id = %(id)s"""
    follow = "UPDATE upload_pipeline.document_vector_buffer SET document_id = %(to)s WHERE chunk_id = %(id)s"
    for statement in (give, follow):
        cycle.run_sql(incident, statement, id=given[0], to=receiver[1])
    before = cycle.rows_of(incident)

    cycle.migrate_all(incident, ONE_BY_ONE, execution)

    cycle.assert_green(cycle.validate(incident))
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


@pytest.mark.begins("approved")
def test_a_batch_in_the_middle_keeps_nobody_from_referring_to_rows_whose_own_ids_stay(incident: Engine) -> None:
    written: list[int] = []

    def write() -> None:
        with cycle.session(incident) as connection:
            connection.execute("SET lock_timeout = '100ms'")
            done = connection.execute(
                """INSERT INTO upload_pipeline.webhook_log (webhook_id, job_id)
                   SELECT 'meanwhile ' || gen_random_uuid(), job_id FROM upload_pipeline.upload_jobs"""
            )
            written.append(done.rowcount)

    sync_points.on("held", write)
    cycle.migrate(incident, SPEC, cycle.waves_of(incident, cycle.newest_execution(incident))[0])

    assert written == [cycle.run_sql(incident, "SELECT count(*) FROM upload_pipeline.upload_jobs")[0][0]]


@pytest.mark.begins("approved")
def test_a_document_deleted_after_planning_is_journaled_as_gone(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    [document] = some_documents(incident, 1)
    remove(incident, document)
    before = cycle.rows_of(incident)

    finish(incident, execution)

    assert len(before["documents"]) == 37
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    assert unmoved(incident) == [(document, "gone")]


@pytest.mark.begins("approved")
def test_a_document_whose_hash_changed_after_planning_is_left_alone_and_the_others_go_on(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    [document] = some_documents(incident, 1)
    change = "UPDATE upload_pipeline.documents SET file_sha256 = repeat('a', 64) WHERE document_id = %(id)s"
    cycle.run_sql(incident, change, id=document)
    before = cycle.rows_of(incident)

    finish(incident, execution)

    assert cycle.rows_of(incident) == cycle.expected_rows(before, left=[document])
    assert unmoved(incident) == [(document, "changed")]


@pytest.mark.begins("approved")
def test_what_was_left_alone_is_moved_by_the_next_plan(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    [document] = some_documents(incident, 1)
    change = "UPDATE upload_pipeline.documents SET file_sha256 = repeat('a', 64) WHERE document_id = %(id)s"
    cycle.run_sql(incident, change, id=document)
    before = cycle.rows_of(incident)
    finish(incident, execution)

    plan = cycle.assess_and_plan(incident, SPEC)
    finish(incident, cycle.approve(incident, SPEC, plan.plan_id))

    assert plan.moves == {"document": 1, "chunk": 3}
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_a_hash_in_capitals_is_read_in_small_letters_and_stays_as_it_is_stored(incident: Engine) -> None:
    capitals = "UPDATE upload_pipeline.documents SET file_sha256 = ' ' || upper(file_sha256) || ' '"
    cycle.run_sql(incident, capitals)
    before = cycle.rows_of(incident)

    cycle.run_all(incident, SPEC)

    assert cycle.rows_of(incident) == cycle.expected_rows(before)


@pytest.mark.begins("migrated")
def test_a_soft_reference_is_rewritten_like_a_foreign_key(incident_with_buffer: Engine, before: cycle.Rows) -> None:
    after = cycle.rows_of(incident_with_buffer)
    assert after == cycle.expected_rows(before)
    assert after["document_vector_buffer"] != before["document_vector_buffer"]


@pytest.mark.begins("migrated")
def test_documents_that_are_right_already_stay_and_their_chunks_are_put_right(incident: Engine) -> None:
    right = cycle.rows_of(incident)
    [document] = some_documents(incident, 1)
    spoil = "UPDATE upload_pipeline.document_chunks SET chunk_id = gen_random_uuid() WHERE document_id = %(id)s"
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.document_chunks DISABLE TRIGGER touch_updated_at")
    cycle.run_sql(incident, spoil, id=document)
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.document_chunks ENABLE TRIGGER touch_updated_at")

    plan = cycle.assess_and_plan(incident, SPEC)
    finish(incident, cycle.approve(incident, SPEC, plan.plan_id))

    assert plan.moves == {"document": 0, "chunk": 3}
    assert cycle.rows_of(incident) == right


def test_a_run_that_goes_on_where_another_ended_says_how_much_is_left(incident: Engine) -> None:
    execution = cycle.approve(incident, ONE_BY_ONE, cycle.assess_and_plan(incident, ONE_BY_ONE).plan_id)
    canary, *_ = cycle.waves_of(incident, execution)
    batches = iter(range(3))

    def die() -> None:
        if next(batches) == 2:
            raise KeyboardInterrupt

    sync_points.on("committed", die)
    with pytest.raises(KeyboardInterrupt):
        cycle.migrate(incident, ONE_BY_ONE, canary)
    sync_points.clear()
    said: list[writing.Progress] = []
    store = cycle.bound_store(incident, ONE_BY_ONE)
    done = migration.run_wave(incident, store, canary.wave, "another", said.append)

    assert [(one.earlier, one.documents, one.left, one.total) for one in said] == [(3, 1, 1, 5), (3, 2, 0, 5)]
    assert done.documents == 2


@pytest.mark.begins("approved")
def test_a_wave_that_is_done_can_run_again_and_does_nothing(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    canary = cycle.waves_of(incident, execution)[0]
    first = cycle.migrate(incident, SPEC, canary)
    before = cycle.rows_of(incident)

    again = cycle.migrate(incident, SPEC, canary)

    assert first.documents == 5
    assert (again.documents, again.batches, again.rows) == (0, 0, {})
    assert cycle.rows_of(incident) == before


@pytest.mark.begins("migrated")
def test_after_success_there_is_nothing_to_plan_and_nothing_to_approve(incident: Engine) -> None:
    plan = cycle.assess_and_plan(incident, SPEC)

    assert plan.nothing_to_do
    assert plan.waves == []
    with pytest.raises(RefusedError, match="moves nothing"):
        cycle.approve(incident, SPEC, plan.plan_id)


def test_an_empty_store_plans_nothing(incident: Engine) -> None:
    for document in some_documents(incident, 100):
        remove(incident, document)
    for statement in REMOVE:
        cycle.run_sql(incident, statement.split(" WHERE ")[0])

    plan = cycle.assess_and_plan(incident, SPEC)

    assert plan.nothing_to_do
    assert plan.content["approach"] == "nothing to migrate"


@pytest.mark.begins("planned")
def test_waves_are_the_reports_five_fifteen_and_eighteen(incident: Engine) -> None:
    plan = cycle.newest_plan(incident)

    assert [(wave.name, wave.documents) for wave in plan.waves] == [
        ("010-canary", 5),
        ("020-recent", 15),
        ("030-remaining-001", 18),
    ]
    assert plan.content["approach"] == "full migration"


ODD = """
CREATE SCHEMA "odd Schema";
CREATE TABLE "odd Schema".folder (
    "the key" text PRIMARY KEY, owner text NOT NULL, name text NOT NULL, inside text REFERENCES "odd Schema".folder,
    note text
);
CREATE TABLE "odd Schema"."select" (
    id varchar(64) PRIMARY KEY, folder text NOT NULL REFERENCES "odd Schema".folder, nr int NOT NULL,
    previous varchar(64) REFERENCES "odd Schema"."select", UNIQUE (folder, nr)
);
CREATE TABLE "odd Schema".line (
    folder text, nr int, line int, page varchar(64) REFERENCES "odd Schema"."select", words text,
    PRIMARY KEY (folder, nr, line), FOREIGN KEY (folder, nr) REFERENCES "odd Schema"."select" (folder, nr)
);
INSERT INTO "odd Schema".folder
SELECT 'f' || n, 'owner ' || n %% 3, E'näme: "' || n || E'"', CASE WHEN n > 1 THEN 'f' || n / 2 ELSE 'f1' END, 'f' || n
FROM generate_series(1, 23) n;
INSERT INTO "odd Schema"."select"
SELECT 'p' || n, 'f' || 1 + n %% 23, n, CASE WHEN n > 1 THEN 'p' || n - 1 END FROM generate_series(1, 60) n;
INSERT INTO "odd Schema".line
SELECT folder, nr, l, CASE WHEN l = 1 THEN id END, id FROM "odd Schema"."select", generate_series(1, 2) l;
"""
ODD_SPEC = """
namespace: 11111111-2222-3333-4444-555555555555
schema: odd Schema
entities:
  folder: {table: folder, key: the key, identity: "{owner}/{name}"}
  page: {table: select, key: id, parent: folder, identity: "{folder}%(sign)s{nr}"}
waves: {canary: 3, recent: 2, remaining: 7}
batch_rows: 20
"""


@pytest.mark.parametrize("sign", ["#", "%", "%%s{{}}'\\\""])
def test_text_keys_self_references_and_second_hand_keys_of_any_name_are_moved(empty_store: Engine, sign: str) -> None:
    cycle.run_sql(empty_store, ODD, unused=0)
    escaped = sign.replace("\\", "\\\\").replace('"', '\\"')
    spec = parse_spec(ODD_SPEC.replace("%(sign)s", escaped), "odd.yaml")
    before = cycle.rows_of(empty_store, "odd Schema")
    folders = {
        str(row["the key"]): str(uuid.uuid5(spec.namespace, f"{row['owner']}/{row['name']}"))
        for row in before["folder"]
    }
    between = sign.replace("{{", "{").replace("}}", "}")
    pages = {
        str(row["id"]): str(uuid.uuid5(spec.namespace, f"{folders[str(row['folder'])]}{between}{row['nr']}"))
        for row in before["select"]
    }
    new: dict[str | None, str] = dict([*folders.items(), *pages.items()])
    ids = {"folder": ("the key", "inside"), "select": ("id", "folder", "previous"), "line": ("folder", "page")}

    cycle.run_all(empty_store, spec)

    assert cycle.rows_of(empty_store, "odd Schema") == {
        table: cycle.ordered([{c: new.get(v, v) if c in ids[table] else v for c, v in row.items()} for row in rows])
        for table, rows in before.items()
    }


TWO_ROOTS = """
CREATE SCHEMA two;
CREATE TABLE two.a (id uuid PRIMARY KEY, name text NOT NULL);
CREATE TABLE two.b (id uuid PRIMARY KEY, name text NOT NULL, a uuid REFERENCES two.a);
INSERT INTO two.a SELECT gen_random_uuid(), 'a' || n FROM generate_series(1, {a}) n;
INSERT INTO two.b SELECT gen_random_uuid(), 'b' || n, (SELECT id FROM two.a LIMIT 1) FROM generate_series(1, {b}) n;
"""


@pytest.mark.parametrize(("a", "b"), [(3, 12), (12, 12), (12, 3), (0, 7), (7, 0)])
def test_two_entities_without_a_common_parent_are_both_moved(empty_store: Engine, a: int, b: int) -> None:
    cycle.run_sql(empty_store, TWO_ROOTS.format(a=a, b=b))
    spec = parse_spec(
        "namespace: 11111111-2222-3333-4444-555555555555\nschema: two\nentities:\n"
        '  first: {table: a, key: id, identity: "a:{name}"}\n  b: {table: b, key: id, identity: "b:{name}"}\n',
        "two.yaml",
    )
    first = str(uuid.uuid5(spec.namespace, "a:a1"))

    cycle.run_all(empty_store, spec)

    rows = cycle.rows_of(empty_store, "two")
    numbers = {"a": range(1, a + 1), "b": range(1, b + 1)}
    assert {(table, row["id"]) for table in ("a", "b") for row in rows[table]} == {
        (table, str(uuid.uuid5(spec.namespace, f"{table}:{table}{n}"))) for table in ("a", "b") for n in numbers[table]
    }
    assert {row["a"] for row in rows["b"]} == ({first} if a and b else {None} if b else set())

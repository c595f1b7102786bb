"""The sweep: what came after the plan is taken along, merged with nothing, and no longer than was approved."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo.incident import add_vector_buffer
from uuid_pipeline.engine import ledger, migration, sweep, sync_points
from uuid_pipeline.engine.batches import deletions
from uuid_pipeline.spec import Sweep, parse_spec
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with()
DOCUMENT = """
INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
SELECT %(document)s, user_id, 'late.pdf', 'application/pdf', 1, %(sha)s, 'late'
FROM upload_pipeline.documents ORDER BY user_id LIMIT 1
"""
CHUNK = """
INSERT INTO upload_pipeline.document_chunks (chunk_id, document_id, chunker_name, chunker_version, chunk_ord, text,
    chunk_sha, embed_model, embed_version, vector_dim, embedding)
VALUES (%(chunk)s, %(document)s, 'late', '1', 7, 'late', '', 'none', '1', 1536, array_fill(0.1::real, ARRAY[1536]))
"""
BUFFER = """
INSERT INTO upload_pipeline.document_vector_buffer
    (buffer_id, chunk_id, document_id, embed_model, embed_version, vector)
VALUES (%(buffer)s, %(chunk)s, %(document)s, 'late', '1', array_fill(0.1::real, ARRAY[1536]))
"""
JOB = "INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (%(job)s, %(document)s, 'queued')"


@pytest.fixture
def store(incident: Engine) -> Iterator[Engine]:
    with incident.begin() as connection:
        add_vector_buffer(connection)
    yield incident
    sync_points.clear()


def new_ids() -> dict[str, str]:
    return {name: str(uuid.uuid4()) for name in ("document", "chunk", "buffer", "job")}


def upload(store: Engine, sha: str | None = None) -> dict[str, str]:
    """A document with a child of each kind, under random ids; returns these."""
    ids = new_ids()
    cycle.run_sql(store, DOCUMENT, **ids, sha=sha or uuid.uuid4().hex * 2)
    write_under(store, ids)
    return ids


def write_under(store: Engine, ids: dict[str, str], chunk: str = CHUNK) -> None:
    for statement in (chunk, BUFFER, JOB):
        cycle.run_sql(store, statement, **ids)


def sweeps(store: Engine, execution: ledger.Execution) -> list[tuple[str, int]]:
    """(status, documents) of each sweep."""
    return [(w.status, w.documents) for w in cycle.all_waves_of(store, execution) if w.kind == "sweep"]


def run_wave(store: Engine, spec: Any, wave: ledger.Wave) -> None:
    cycle.migrate(store, spec, wave)
    cycle.assert_green(cycle.check_wave(store, spec, wave))


def begin(store: Engine, spec: Any = SPEC) -> tuple[ledger.Execution, list[ledger.Wave]]:
    """Every planned wave is done; returns the sweeps to come."""
    execution = cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)
    for wave in cycle.waves_of(store, execution):
        run_wave(store, spec, wave)
    return execution, [wave for wave in cycle.all_waves_of(store, execution) if wave.kind == "sweep"]


def test_documents_and_chunks_that_came_after_the_plan_are_moved_by_two_passes_and_the_rest_is_left(
    store: Engine,
) -> None:
    before = cycle.rows_of(store)
    execution, [first, second] = begin(store)
    # A new document; and a chunk of one that has moved, by its stale id.
    came = [upload(store), new_ids() | {"document": str(before["documents"][0]["document_id"])}]
    write_under(store, came[1])
    at_first = cycle.rows_of(store)

    run_wave(store, SPEC, first)

    assert cycle.rows_of(store) == cycle.expected_rows(at_first) != at_first
    came.append(upload(store))
    at_second = cycle.rows_of(store)
    run_wave(store, SPEC, second)
    after = cycle.rows_of(store)
    assert after == cycle.expected_rows(at_second) != at_second

    assert later(store, execution) == {"document": 0, "chunk": 0}
    came.append(upload(store))
    write_under(store, new_ids() | {"document": came[-1]["document"]}, CHUNK.replace(" 7,", " 8,"))
    assert later(store, execution) == {"document": 1, "chunk": 2}
    cycle.assert_green(cycle.validate(store))
    assert sweeps(store, execution) == [("moved", 2), ("moved", 1)]
    assert references_of(store, came[-1]) == (came[-1]["document"], came[-1]["chunk"])
    assert len(cycle.rows_of(store)["documents"]) == 41

    cycle.roll_back(store, SPEC)
    assert [references_of(store, ids) for ids in came] == [(ids["document"], ids["chunk"]) for ids in came]
    back, old = cycle.rows_of(store), {str(row["document_id"]) for row in before["documents"]}
    assert [row for row in back["documents"] if row["document_id"] in old] == before["documents"]


def later(store: Engine, execution: ledger.Execution) -> dict[str, int]:
    """What came after the last look, by entity."""
    bound = cycle.bound_store(store, SPEC)
    with store.begin() as connection:
        return sweep.later_arrivals(connection, bound, execution.execution_id)


def references_of(store: Engine, ids: dict[str, str]) -> tuple[str, str]:
    """The document and the chunk that a buffer row refers to."""
    [row] = [row for row in cycle.rows_of(store)["document_vector_buffer"] if row["buffer_id"] == ids["buffer"]]
    return str(row["document_id"]), str(row["chunk_id"])


def test_a_planned_chunk_that_was_given_to_a_document_which_had_moved_is_taken_by_the_sweep(store: Engine) -> None:
    execution = cycle.approve(store, SPEC, cycle.assess_and_plan(store, SPEC).plan_id)
    canary, *rest = cycle.all_waves_of(store, execution)
    run_wave(store, SPEC, canary)
    [(chunk, moved)] = cycle.run_sql(
        store,
        """UPDATE upload_pipeline.document_chunks c SET chunk_ord = 777, document_id = (
               SELECT new_id FROM uuid_pipeline.id_map_document WHERE ordinal = 1)
           WHERE chunk_id = (SELECT old_id FROM uuid_pipeline.id_map_chunk ORDER BY ordinal DESC, old_id LIMIT 1)
           RETURNING chunk_id::text, document_id::text""",
    )
    given = cycle.rows_of(store)
    *planned, first, second = rest
    for wave in planned:
        run_wave(store, SPEC, wave)
    assert later(store, execution) == {"document": 0, "chunk": 1}

    run_wave(store, SPEC, first)
    run_wave(store, SPEC, second)

    assert later(store, execution) == {"document": 0, "chunk": 0}
    assert cycle.rows_of(store) == cycle.expected_rows(given)
    cycle.assert_green(cycle.validate(store))
    cycle.roll_back(store, SPEC)
    back = {row["chunk_id"]: row for row in cycle.rows_of(store)["document_chunks"]}
    assert cycle.targets(cycle.rows_of(store))[str(back[chunk]["document_id"])] == moved


@pytest.mark.parametrize("level", ["document", "chunk"])
def test_a_moved_row_that_was_edited_is_moved_by_no_sweep_and_its_ids_of_before_stay_its_own(
    store: Engine, level: str
) -> None:
    execution = cycle.approve(store, SPEC, cycle.assess_and_plan(store, SPEC).plan_id)
    canary, *rest = cycle.all_waves_of(store, execution)
    run_wave(store, SPEC, canary)
    before, after = cycle.run_sql(
        store, "SELECT old_id::text, new_id::text FROM uuid_pipeline.id_map_document WHERE ordinal = 1"
    )[0]
    if level == "document":
        edit = "UPDATE upload_pipeline.documents SET file_sha256 = repeat('ab', 32) WHERE document_id = %(d)s"
    else:
        edit = "UPDATE upload_pipeline.document_chunks SET chunk_ord = 99 WHERE document_id = %(d)s AND chunk_ord = 0"
    cycle.run_sql(store, edit, d=after)
    write_under(store, new_ids() | {"document": after})
    edited = cycle.rows_of(store)

    for wave in rest:
        if any(now.wave == wave.wave and now.status == "unneeded" for now in cycle.all_waves_of(store, execution)):
            continue
        run_wave(store, SPEC, wave)

    kept = ids_below(edited, after) - {
        row["chunk_id"] for row in edited["document_chunks"] if row["chunker_name"] == "late"
    }
    assert kept <= ids_below(cycle.rows_of(store), after)
    cycle.assert_green(cycle.validate(store))
    assert cycle.run_sql(store, "SELECT uuid_pipeline.resolve_document(%(d)s)::text", d=before) == [(after,)]


def ids_below(rows: cycle.Rows, document: str) -> set[str | None]:
    return {row["chunk_id"] for row in rows["document_chunks"] if row["document_id"] == document}


def test_a_sweep_merges_nothing(store: Engine) -> None:
    cycle.run_sql(store, "DROP INDEX upload_pipeline.uq_user_filehash")
    _, [first, _] = begin(store)
    known = cycle.rows_of(store)
    mine = min(known["documents"], key=lambda row: str(row["user_id"]))
    sha = uuid.uuid4().hex * 2
    upload(store, sha)
    upload(store, sha.upper())
    upload(store, str(mine["file_sha256"]))
    before = cycle.rows_of(store)

    run_wave(store, SPEC, first)

    assert cycle.rows_of(store) == before
    cycle.assert_green(cycle.validate(store))


def test_a_second_pass_is_not_needed_when_the_first_found_nothing(store: Engine) -> None:
    execution, [first, _] = begin(store)

    run_wave(store, SPEC, first)

    assert sweeps(store, execution) == [("moved", 0), ("unneeded", 0)]
    cycle.assert_green(cycle.validate(store))


def test_without_passes_there_is_no_sweep_and_what_came_later_is_no_failure(store: Engine) -> None:
    spec = cycle.spec_with(sweep=Sweep(max_passes=0))
    execution, none = begin(store, spec)
    assert none == []
    late = upload(store)["document"]

    cycle.assert_green(cycle.validate(store))

    assert sweeps(store, execution) == []
    assert late in {row["document_id"] for row in cycle.rows_of(store)["documents"]}


NAMES_WITHOUT_SCHEMA = """
CREATE FUNCTION upload_pipeline.look() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM FROM documents; RETURN NULL; END$$;
CREATE TRIGGER look AFTER UPDATE ON upload_pipeline.documents FOR EACH ROW EXECUTE FUNCTION upload_pipeline.look();
"""
WORKING = "EXISTS (SELECT FROM upload_jobs j WHERE j.document_id = documents.document_id AND j.state = 'working')"


def test_triggers_that_fire_look_names_up_where_the_session_does_also_where_documents_may_be_busy(
    store: Engine,
) -> None:
    cycle.run_sql(store, NAMES_WITHOUT_SCHEMA)
    cycle.run_sql(store, f'ALTER DATABASE "{store.url.database}" SET search_path = upload_pipeline, public')
    store.dispose()
    document = SPEC.entities["document"].model_copy(update={"busy": WORKING})
    spec = cycle.spec_with(entities=SPEC.entities | {"document": document}, triggers={"look": "fire"})
    cycle.run_sql(store, "UPDATE upload_pipeline.upload_jobs SET state = 'done'")
    before = cycle.rows_of(store)

    cycle.run_all(store, spec)

    assert cycle.rows_of(store) == cycle.expected_rows(before)


# What happens to a document between approval and its wave, so that it is left alone for the reason named.
REASONS = {
    "taken": """INSERT INTO upload_pipeline.documents
                SELECT (jsonb_populate_record(d, jsonb_build_object('document_id', %(target)s::text,
                                                                    'file_sha256', upper(file_sha256)))).*
                FROM upload_pipeline.documents d WHERE document_id = %(old)s::uuid""",
    "changed": """UPDATE upload_pipeline.documents SET file_sha256 = repeat('ef', 32)
                  WHERE document_id = %(old)s::uuid""",
    "busy": """INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state)
               VALUES (gen_random_uuid(), %(old)s::uuid, 'working')""",
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_document_that_was_set_aside_is_left_by_the_sweeps_too_whatever_is_written_below_it(
    store: Engine, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    for pauses in ("RETAKE_SECONDS", "SWEEP_RETAKE_SECONDS", "LOCKED_RETAKE_SECONDS"):
        monkeypatch.setattr(migration, pauses, (0.1,))
    document = SPEC.entities["document"].model_copy(update={"busy": WORKING})
    spec = cycle.spec_with(entities=SPEC.entities | {"document": document})
    cycle.run_sql(store, "UPDATE upload_pipeline.upload_jobs SET state = 'done'")
    execution = cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)
    first = "SELECT old_id::text, new_id::text FROM uuid_pipeline.id_map_document WHERE ordinal = 1"
    [(old, target)] = cycle.run_sql(store, first)
    values = {"old": old, "target": target} if reason == "taken" else {"old": old}
    cycle.run_sql(store, REASONS[reason], **values)
    *planned, sweep, _ = cycle.all_waves_of(store, execution)
    for wave in planned:
        run_wave(store, spec, wave)
    assert unmoved(store) == {(old, reason)}
    late = new_ids()["chunk"]
    cycle.run_sql(store, CHUNK, document=old, chunk=late)

    run_wave(store, spec, sweep)

    assert unmoved(store) == {(old, reason)}
    rows = cycle.rows_of(store)
    assert old in {row["document_id"] for row in rows["documents"]}
    assert late in {row["chunk_id"] for row in rows["document_chunks"]}


def test_busy_documents_wait_until_the_end_of_the_wave_or_the_sweep_or_the_next_run_and_are_never_lost(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "RETAKE_SECONDS", (0.1,))
    monkeypatch.setattr(migration, "SWEEP_RETAKE_SECONDS", (0.1,))
    monkeypatch.setattr(migration, "LOCKED_RETAKE_SECONDS", (0.1,))
    document = SPEC.entities["document"].model_copy(update={"busy": WORKING})
    spec = cycle.spec_with(entities=SPEC.entities | {"document": document})
    execution = cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)
    canary, *later = cycle.all_waves_of(store, execution)
    ordered = "SELECT old_id::text FROM uuid_pipeline.id_map_document ORDER BY ordinal LIMIT 3"
    soon, at_sweep, never = (old for (old,) in cycle.run_sql(store, ordered))
    cycle.run_sql(store, "UPDATE upload_pipeline.upload_jobs SET state = 'done'")
    for old in (soon, at_sweep, never):
        cycle.run_sql(store, JOB.replace("queued", "working"), job=str(uuid.uuid4()), document=old)
    before = cycle.rows_of(store)

    def end_work(old: str) -> None:
        """By the job's own id, which does not change; its document's may have."""
        jobs = [
            row["job_id"] for row in before["upload_jobs"] if (row["document_id"], row["state"]) == (old, "working")
        ]
        cycle.run_sql(
            store, "UPDATE upload_pipeline.upload_jobs SET state = 'done' WHERE job_id::text = ANY(%(j)s)", j=jobs
        )

    sync_points.on("committed", lambda: end_work(soon))
    run_wave(store, spec, canary)
    sync_points.clear()
    assert unmoved(store) == {(at_sweep, "busy"), (never, "busy")}
    assert left_of(store, before) >= {at_sweep, never}
    assert soon not in left_of(store, before)

    for wave in later:
        if wave.kind == "sweep":
            end_work(at_sweep)
        if [w.status for w in cycle.all_waves_of(store, execution) if w.wave == wave.wave] != ["unneeded"]:
            run_wave(store, spec, wave)
    assert unmoved(store) == {(never, "busy")}
    assert left_of(store, before) == {never}
    assert {gate.gate for gate in cycle.validate(store) if not gate.passed} == {"next_step_safe"}

    end_work(never)
    cycle.migrate_all(store, spec, execution)
    cycle.assert_green(cycle.validate(store))
    assert unmoved(store) == set()
    assert left_of(store, before) == set()


def unmoved(store: Engine) -> set[tuple[str, str]]:
    return {(old, reason) for old, reason in cycle.run_sql(store, "SELECT old_id, reason FROM uuid_pipeline.unmoved")}


def left_of(store: Engine, before: cycle.Rows) -> set[str]:
    """Documents that are still under the id they had."""
    now = {str(row["document_id"]) for row in cycle.rows_of(store)["documents"]}
    return now & {str(row["document_id"]) for row in before["documents"]}


# A document with all its rows, deleted and written again under the id that its writer knows, in one transaction.
AGAIN = """
CREATE TEMPORARY TABLE was ON COMMIT DROP AS
SELECT * FROM upload_pipeline.documents WHERE document_id = uuid_pipeline.resolve_document(%(old)s);
CREATE TEMPORARY TABLE chunks_were ON COMMIT DROP AS
SELECT * FROM upload_pipeline.document_chunks WHERE document_id = (SELECT document_id FROM was);
DELETE FROM upload_pipeline.events WHERE document_id = (SELECT document_id FROM was);
DELETE FROM upload_pipeline.upload_jobs WHERE document_id = (SELECT document_id FROM was);
DELETE FROM upload_pipeline.document_chunks WHERE document_id = (SELECT document_id FROM was);
DELETE FROM upload_pipeline.documents WHERE document_id = (SELECT document_id FROM was);
INSERT INTO upload_pipeline.documents
SELECT (jsonb_populate_record(w, jsonb_build_object('document_id', %(old)s::text))).* FROM was w;
INSERT INTO upload_pipeline.document_chunks
SELECT (jsonb_populate_record(w, jsonb_build_object('document_id', %(old)s::text, 'chunk_id', m.old_id))).*
FROM chunks_were w JOIN uuid_pipeline.id_map_chunk m ON m.new_id = w.chunk_id
"""


def test_what_was_deleted_after_its_move_and_written_again_under_its_old_id_is_an_arrival(incident: Engine) -> None:
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    canary, *rest = cycle.all_waves_of(incident, execution)
    run_wave(incident, SPEC, canary)
    [(old,)] = cycle.run_sql(incident, "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE ordinal = 1")
    chunks = "SELECT chunk_id::text FROM upload_pipeline.document_chunks WHERE document_id = uuid_pipeline"
    [*below] = cycle.run_sql(incident, f"{chunks}.resolve_document(%(old)s)", old=old)
    with cycle.session(incident) as application:
        for statement in AGAIN.split(";"):
            application.execute(statement, {"old": old})
        application.commit()
    assert len(cycle.run_sql(incident, f"{chunks}.resolve_document(%(old)s)", old=old)) == len(below) > 0

    found = {result.gate: result for result in cycle.check_wave(incident, SPEC, canary)}
    cycle.assert_green(found.values())
    assert "1 deleted after the move and written again under the old id" in found["ids_exact"].finding
    for wave in rest:
        if wave.wave in {w.wave for w in cycle.all_waves_of(incident, execution) if w.status != "unneeded"}:
            run_wave(incident, SPEC, wave)
    assert later(incident, execution) == {"document": 1, "chunk": len(below)}
    cycle.assert_green(cycle.validate(incident))

    before = cycle.rows_of(incident)
    plan = cycle.assess_and_plan(incident, SPEC)
    assert plan.moves == {"document": 1, "chunk": len(below)}
    cycle.finish(incident, SPEC, cycle.approve(incident, SPEC, plan.plan_id))
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_a_moved_document_that_is_put_back_under_its_old_id_by_hand_is_wrong(
    incident: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "STATISTICS_SECONDS", 0)
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    canary = cycle.all_waves_of(incident, execution)[0]
    run_wave(incident, SPEC, canary)
    with cycle.session(incident) as tampering:
        tampering.execute("SET LOCAL session_replication_role = replica")
        tampering.execute(
            """UPDATE upload_pipeline.documents d SET document_id = m.old_id
               FROM uuid_pipeline.id_map_document m WHERE m.new_id = d.document_id AND m.ordinal = 1"""
        )
        tampering.commit()

    red = {result.gate for result in cycle.check_wave(incident, SPEC, canary) if not result.passed}

    assert red >= {"ids_exact", "documents_retrievable"}


LEVELS = """
CREATE SCHEMA app;
CREATE TABLE app.docs (id uuid PRIMARY KEY, sha text NOT NULL);
CREATE TABLE app.secs (id uuid PRIMARY KEY, doc uuid NOT NULL REFERENCES app.docs, no int NOT NULL);
CREATE TABLE app.paras (id uuid PRIMARY KEY, sec uuid NOT NULL REFERENCES app.secs, no int NOT NULL);
INSERT INTO app.docs VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'x');
INSERT INTO app.secs VALUES ('bbbbbbbb-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001', 0);
INSERT INTO app.paras VALUES ('cccccccc-0000-4000-8000-000000000001', 'bbbbbbbb-0000-4000-8000-000000000001', 0);
"""
LEVELS_SPEC = parse_spec(
    """
namespace: a1111111-2222-4333-8444-555555555555
schema: app
backup: none
entities:
  doc: {table: docs, key: id, identity: "{sha}"}
  sec: {table: secs, key: id, parent: doc, identity: "{doc}:{no}"}
  para: {table: paras, key: id, parent: sec, identity: "{sec}:{no}"}
""",
    "levels.yaml",
)


def test_what_is_below_a_moved_row_that_is_edited_while_the_sweep_comes_waits_for_the_next_plan_with_it(
    empty_store: Engine,
) -> None:
    cycle.run_sql(empty_store, LEVELS)
    execution = cycle.approve(empty_store, LEVELS_SPEC, cycle.assess_and_plan(empty_store, LEVELS_SPEC).plan_id)
    cycle.migrate(empty_store, LEVELS_SPEC, cycle.waves_of(empty_store, execution)[0])
    late = "cccccccc-0000-4000-8000-000000000002"
    cycle.run_sql(empty_store, "INSERT INTO app.paras SELECT %(late)s, id, 1 FROM app.secs", late=late)

    def edit() -> None:
        cycle.run_sql(empty_store, "UPDATE app.secs SET no = 5")

    sync_points.on("looked", edit)
    try:
        done = cycle.finish(empty_store, LEVELS_SPEC, execution)
    finally:
        sync_points.clear()

    assert done.status == "completed"
    assert late in {row["id"] for row in cycle.rows_of(empty_store, "app")["paras"]}
    cycle.run_all(empty_store, LEVELS_SPEC)
    namespace = LEVELS_SPEC.namespace
    doc = uuid.uuid5(namespace, "x")
    sec = uuid.uuid5(namespace, f"{doc}:5")
    after = cycle.rows_of(empty_store, "app")
    assert [row["id"] for row in after["secs"]] == [str(sec)]
    assert {row["id"] for row in after["paras"]} == {str(uuid.uuid5(namespace, f"{sec}:{n}")) for n in (0, 1)}

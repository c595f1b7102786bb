"""The application keeps writing while waves run: nothing is lost, nothing dangles, every id is exact."""

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo.incident import add_vector_buffer
from uuid_pipeline.engine import ledger, migration, sync_points
from uuid_pipeline.engine.batches import tries
from uuid_pipeline.errors import RefusedError
from uuid_pipeline_tests.faults import deeds
from uuid_pipeline_tests.faults import writers as application
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with()

CHUNK = """
INSERT INTO upload_pipeline.document_chunks (chunk_id, document_id, chunker_name, chunker_version, chunk_ord, text,
    chunk_sha, embed_model, embed_version, vector_dim, embedding)
SELECT %(chunk)s, %(document)s, 'live', '1', %(ord)s, 'written live', '', 'none', '1', 1536,
       array_fill(0.1::real, ARRAY[1536])
"""
JOB = "INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (%(job)s, %(document)s, 'queued')"
EVENT = """
INSERT INTO upload_pipeline.events (event_id, job_id, document_id, type, severity, code)
VALUES (%(event)s, %(job)s, %(document)s, 'live', 'info', 'LIVE')
"""
BUFFER = """
INSERT INTO upload_pipeline.document_vector_buffer
    (buffer_id, chunk_id, document_id, embed_model, embed_version, vector)
SELECT %(buffer)s, chunk_id, document_id, %(ord)s::text, '1', embedding FROM upload_pipeline.document_chunks
WHERE document_id = %(document)s ORDER BY chunk_id LIMIT 1
"""


@pytest.fixture
def store(incident: Engine) -> Engine:
    with incident.begin() as connection:
        add_vector_buffer(connection)
    return incident


def expect_what_was_written(after: cycle.Rows, before: cycle.Rows, written: list[dict[str, Any]]) -> None:
    """Every live row is there once, under its document's target id; takes these rows out of ``after``."""
    targets = cycle.targets(before)
    by_hash = {row["file_sha256"]: targets[str(row["document_id"])] for row in before["documents"]}
    chunks = {(row["document_id"], row["chunk_ord"]): row for row in after["document_chunks"]}
    ids = {str(row["chunk_id"]) for row in after["document_chunks"]}
    keys = {
        "upload_jobs": ("job_id", "job"),
        "events": ("event_id", "event"),
        "document_vector_buffer": ("buffer_id", "buffer"),
    }
    for table, (column, name) in keys.items():
        found = {row[column]: row for row in after[table]}
        for values in written:
            if table == "document_vector_buffer" and values[name] not in found:
                continue  # its document had no chunk at that moment
            assert found[values[name]]["document_id"] == by_hash[values["sha"]]
            assert table != "document_vector_buffer" or found[values[name]]["chunk_id"] in ids
        live = {values[name] for values in written}
        after[table] = [row for row in after[table] if row[column] not in live]
    for values in written:
        document = by_hash[values["sha"]]
        row = chunks[document, str(values["ord"])]
        derived = str(uuid.uuid5(cycle.NAMESPACE, f"{document}:live:1:{values['ord']}"))
        assert row["chunk_id"] in (derived, values["chunk"])
        after["document_chunks"].remove(row)


def test_a_batch_waits_for_a_transaction_that_holds_its_rows_and_then_takes_what_it_wrote_along(store: Engine) -> None:
    execution = cycle.approve(store, SPEC, cycle.assess_and_plan(store, SPEC).plan_id)
    chunk = "SELECT document_id, chunk_id FROM upload_pipeline.document_chunks ORDER BY 2 LIMIT 1"
    [(document, _)] = cycle.run_sql(store, chunk)
    values = {name: str(uuid.uuid4()) for name in ("job", "event", "chunk", "buffer")}
    with cycle.session(store) as connection:
        for statement in (JOB, EVENT, BUFFER, CHUNK):
            connection.execute(statement, values | {"document": document, "ord": 1000})
        before = cycle.rows_of(store)
        commit = threading.Timer(0.7, connection.commit)
        commit.start()

        cycle.migrate_all(store, SPEC, execution)

        commit.join()
    cycle.assert_green(cycle.validate(store))
    after = cycle.rows_of(store)
    expect_what_was_written(after, before, [values | {"sha": hash_of(before, str(document)), "ord": 1000}])
    assert after == cycle.expected_rows(before)


def test_documents_that_stay_locked_are_set_aside_and_the_next_run_takes_them_up(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "RETAKE_SECONDS", (0.1,))
    monkeypatch.setattr(migration, "SWEEP_RETAKE_SECONDS", (0.1,))
    monkeypatch.setattr(migration, "LOCKED_RETAKE_SECONDS", (0.1,))
    execution = cycle.approve(store, SPEC, cycle.assess_and_plan(store, SPEC).plan_id)
    before = cycle.rows_of(store)
    held = [str(row["document_id"]) for row in before["documents"][:7]]
    with cycle.session(store) as connection:
        connection.execute(
            "SELECT FROM upload_pipeline.documents WHERE document_id::text = ANY(%s) FOR KEY SHARE", [held]
        )

        cycle.migrate_all(store, SPEC, execution)

        assert {gate.gate for gate in cycle.validate(store) if not gate.passed} == {"next_step_safe"}
        left = {old for (old,) in cycle.run_sql(store, "SELECT old_id FROM uuid_pipeline.unmoved")}
        assert left == set(held)
        assert cycle.rows_of(store) == cycle.expected_rows(before, left=held)

    cycle.migrate_all(store, SPEC, execution)
    assert cycle.rows_of(store) == cycle.expected_rows(before)
    cycle.assert_green(cycle.validate(store))


@pytest.fixture(
    params=[("documents", "ACCESS EXCLUSIVE"), ("document_chunks", "SHARE")], ids=["rewritten", "being indexed"]
)
def locked_in_mid_wave(
    store: Engine, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    """A session that locks a whole table once the first batch of a wave is committed."""
    monkeypatch.setattr(tries, "MAX_TRIES", 1)
    monkeypatch.setattr(migration, "RETAKE_SECONDS", (0.1,))
    table, mode = request.param
    with cycle.session(store) as holder:

        def lock() -> None:
            sync_points.clear()
            holder.execute(f"LOCK TABLE upload_pipeline.{table} IN {mode} MODE")

        sync_points.on("committed", lock)
        yield holder
        sync_points.clear()


ONE_A_BATCH = cycle.spec_with(batch_rows=1, lanes=1)


def test_a_wave_waits_for_a_table_that_is_locked_whole_and_goes_on_when_it_is_free(
    store: Engine, locked_in_mid_wave: psycopg.Connection
) -> None:
    before = cycle.rows_of(store)
    execution = cycle.approve(store, ONE_A_BATCH, cycle.assess_and_plan(store, ONE_A_BATCH).plan_id)
    with ThreadPoolExecutor(1) as helper:
        wave = helper.submit(cycle.migrate, store, ONE_A_BATCH, cycle.waves_of(store, execution)[0])

        assert wait([wave], timeout=3).not_done
        locked_in_mid_wave.rollback()

        wave.result()
    cycle.finish(store, ONE_A_BATCH, execution)
    assert cycle.rows_of(store) == cycle.expected_rows(before)


def test_a_wave_whose_table_stays_locked_says_who_has_it_and_the_next_run_goes_on(
    store: Engine, locked_in_mid_wave: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "PATIENCE_SECONDS", 0.2)
    before = cycle.rows_of(store)
    execution = cycle.approve(store, ONE_A_BATCH, cycle.assess_and_plan(store, ONE_A_BATCH).plan_id)
    holder = locked_in_mid_wave.info.backend_pid

    with pytest.raises(RefusedError, match=f"at work on these tables now: pid {holder}\\. What was committed stands"):
        cycle.migrate(store, ONE_A_BATCH, cycle.waves_of(store, execution)[0])

    locked_in_mid_wave.rollback()
    cycle.finish(store, ONE_A_BATCH, execution)
    assert cycle.rows_of(store) == cycle.expected_rows(before)


def hash_of(rows: cycle.Rows, document: str) -> str | None:
    return next(row["file_sha256"] for row in rows["documents"] if row["document_id"] == document)


def test_writers_that_come_while_a_batch_has_moved_their_rows_wait_and_write_under_the_new_ids(
    store: Engine, incident_url: str
) -> None:
    before = cycle.rows_of(store)
    execution = cycle.approve(store, SPEC, cycle.assess_and_plan(store, SPEC).plan_id)
    canary, recent, *_ = cycle.waves_of(store, execution)
    cycle.migrate(store, SPEC, canary)
    cycle.assert_green(cycle.check_wave(store, SPEC, canary))
    held = set(in_wave(store, recent))
    known = application.learn(before, 1, 0)[0]
    documents = [document for document in known.documents if document.id in held]
    chunks = [chunk for chunk in known.own_chunks if chunk.document.id in held]
    prey, *shared = [document for document in documents if document not in {chunk.document for chunk in chunks}][:3]
    to_do = (*WAITING_DEEDS, deeds.delete_document)
    writers = [
        application.Writer(incident_url, application.Known(shared, [chunks[n].document], [chunks[n]], [prey]), n, to_do)
        for n in range(1, len(to_do) + 1)
    ]
    threads = [threading.Thread(target=do_once, args=pair) for pair in zip(writers, to_do, strict=True)]

    def come() -> None:
        for thread in threads:
            thread.start()
        wait_until(store, f"SELECT count(*) = {len(threads)} FROM pg_locks WHERE NOT granted")  # noqa: S608

    sync_points.on("moved", come)
    try:
        cycle.migrate(store, SPEC, recent)
    finally:
        sync_points.clear()
    for thread in threads:
        thread.join()
    cycle.assert_green(cycle.check_wave(store, SPEC, recent))

    assert [(writer.errors, writer.retried) for writer in writers] == [([], {})] * len(writers)
    assert all(writer.done for writer in writers)
    cycle.migrate_all(store, SPEC, execution)
    cycle.assert_green(cycle.validate(store))
    application.expect(cycle.rows_of(store), before, writers)


WAITING_DEEDS = (
    deeds.job_with_event, deeds.chunk_with_buffer, deeds.buffer_of_stale_chunk,
    deeds.upsert_by_stale_chunk_id, deeds.upsert_by_natural_key, deeds.rename,
    deeds.rewrite_chunk, deeds.give_job_to_another_document, deeds.upload_again,
)  # fmt: skip


def do_once(writer: application.Writer, deed: application.Deed) -> None:
    with psycopg.connect(writer.url) as connection:
        writer.do(connection, deed)


def in_wave(store: Engine, wave: ledger.Wave) -> list[str]:
    """Old ids of a wave's documents."""
    found = "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE ordinal BETWEEN %(first)s AND %(last)s"
    return [old for (old,) in cycle.run_sql(store, found, first=wave.first_ordinal, last=wave.last_ordinal)]


def wait_until(store: Engine, question: str) -> None:
    deadline = time.monotonic() + 20
    while cycle.run_sql(store, question) != [(True,)]:
        assert time.monotonic() < deadline, question
        time.sleep(0.02)


ARCHIVED = """
SELECT a.chunk_id::text, EXISTS (SELECT FROM uuid_pipeline.{documents} d WHERE d.document_id = a.document_id)
FROM uuid_pipeline.{chunks} a WHERE a.uuid_pipeline_survivor IS NULL ORDER BY 1
"""
AS_ARCHIVED = """
INSERT INTO upload_pipeline.document_chunks
SELECT (r).* FROM (SELECT jsonb_populate_record(NULL::upload_pipeline.document_chunks, to_jsonb(a)
       || jsonb_build_object('text', 'written since', 'chunk_id', %(id)s::text)) AS r
       FROM uuid_pipeline.{chunks} a WHERE chunk_id::text = %(chunk)s) x
ON CONFLICT (chunk_id) DO UPDATE SET text = excluded.text
"""


def test_what_the_application_wrote_in_the_place_of_an_archived_row_stays_after_rollback(twins: Engine) -> None:
    # A set in which the loser has more than the survivor: the survivor's own row goes, and its buffer's with it.
    survivor, loser = of_five_and_three(cycle.rows_of(twins))
    for document, ord_ in ((survivor, 9), (loser, 0), (loser, 1)):
        values = {name: str(uuid.uuid4()) for name in ("chunk", "id", "model")}
        cycle.run_sql(twins, CHUNK, **values, document=document, ord=ord_)
        cycle.run_sql(twins, application.BUFFER, **values, document=document)
    before, objects = cycle.rows_of(twins), cycle.catalog_of(twins)
    cycle.run_all(twins, SPEC)
    ours = [name for name in cycle.rows_of(twins, "uuid_pipeline") if name.startswith("archive_")]
    archives = {
        key: next(name for name in ours if name.startswith(f"archive_upload_pipeline_{table}_"))
        for key, table in (("documents", "documents"), ("chunks", "document_chunks"))
    }
    found = cycle.run_sql(twins, ARCHIVED.format(**archives))
    of_loser, of_survivor = (next(chunk for chunk, lost in found if lost is wanted) for wanted in (True, False))
    new = str(uuid.uuid4())
    for chunk, given in ((of_loser, of_loser), (of_survivor, new)):
        cycle.run_sql(twins, AS_ARCHIVED.format(**archives), chunk=chunk, id=given)

    cycle.roll_back(twins, SPEC)

    after = cycle.rows_of(twins)
    written = [row for row in after["document_chunks"] if row["text"] == "written since"]
    assert {row["chunk_id"] for row in written} == {of_loser, new}
    # What hangs on the old id comes back; what hung on a row that the application has put another one for does not.
    expected = before | {
        "document_chunks": [r for r in before["document_chunks"] if r["chunk_id"] not in (of_loser, of_survivor)],
        "document_vector_buffer": [r for r in before["document_vector_buffer"] if r["chunk_id"] != of_survivor],
    }
    assert after | {"document_chunks": [row for row in after["document_chunks"] if row not in written]} == expected
    left = f"SELECT chunk_id::text FROM uuid_pipeline.{archives['chunks']} ORDER BY 1"  # noqa: S608
    assert cycle.run_sql(twins, left) == sorted([(of_loser,), (of_survivor,)])
    assert cycle.catalog_of(twins) == objects


def of_five_and_three(rows: cycle.Rows) -> tuple[str, str]:
    """Twins with five chunks and three: the first survives."""
    twins: dict[tuple[str | None, str], dict[int, str]] = {}
    for row in rows["documents"]:
        count = sum(chunk["document_id"] == row["document_id"] for chunk in rows["document_chunks"])
        twins.setdefault((row["user_id"], str(row["file_sha256"]).strip().lower()), {})[count] = str(row["document_id"])
    return next((pair[5], pair[3]) for pair in twins.values() if pair.keys() == {3, 5})

"""The application keeps writing while waves run: nothing is lost, nothing dangles, every id is exact."""

import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import Engine

from uuid_pipeline.demo.incident import add_vector_buffer
from uuid_pipeline.engine import migration
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with(batch_rows=1)
WRITERS = 3
RETRIED = (errors.ForeignKeyViolation, errors.DeadlockDetected, errors.LockNotAvailable)

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


@dataclass
class Writer:
    """One worker of the application: looks a document up by its hash, then writes all that hangs on it."""

    url: str
    number: int
    stop: threading.Event
    written: list[dict[str, Any]] = field(default_factory=list)
    retried: Counter[str] = field(default_factory=Counter)
    fault: BaseException | None = None

    def work(self) -> None:
        try:
            with psycopg.connect(self.url) as connection:
                hashes = [
                    row[0]
                    for row in connection.execute(
                        "SELECT file_sha256 FROM upload_pipeline.documents ORDER BY 1"
                    ).fetchall()
                ]
                connection.commit()
                while not self.stop.is_set():
                    self.write(connection, hashes[(7 * len(self.written) + self.number) % len(hashes)])
        except BaseException as error:  # noqa: BLE001 - shown by the test, whose thread this is not
            self.fault = error

    def write(self, connection: "psycopg.Connection[Any]", sha: str) -> None:
        values: dict[str, Any] = {name: str(uuid.uuid4()) for name in ("job", "event", "chunk", "buffer")}
        values |= {"sha": sha, "ord": 1000 * (self.number + 1) + len(self.written)}
        while not self.stop.is_set():
            try:
                found = connection.execute(
                    "SELECT document_id FROM upload_pipeline.documents WHERE file_sha256 = %s", [sha]
                )
                [(values["document"],)] = found.fetchall()
                for statement in (JOB, EVENT, BUFFER, CHUNK):
                    connection.execute(statement, values)
                connection.commit()
            except RETRIED as error:
                connection.rollback()
                self.retried[type(error).__name__] += 1
            else:
                self.written.append(values)
                return


@pytest.fixture
def store(incident: Engine) -> Engine:
    with incident.begin() as connection:
        add_vector_buffer(connection)
    return incident


def test_writers_lose_nothing_and_leave_no_orphan_while_every_wave_runs(store: Engine, incident_url: str) -> None:
    before = cycle.rows_of(store)
    execution = cycle.approve(store, SPEC, cycle.assess_and_plan(store, SPEC).plan_id)
    stop = threading.Event()
    writers = [Writer(incident_url, number, stop) for number in range(WRITERS)]
    threads = [threading.Thread(target=writer.work) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        cycle.migrate_all(store, SPEC, execution)
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    cycle.assert_green(cycle.validate(store, SPEC))
    assert [writer.fault for writer in writers] == [None] * WRITERS
    written = [values for writer in writers for values in writer.written]
    assert len(written) > 38
    after = cycle.rows_of(store)
    expect_what_was_written(after, before, written)
    assert after == cycle.expected_rows(before)


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
    spec = cycle.spec_with()
    execution = cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)
    chunk = "SELECT document_id, chunk_id FROM upload_pipeline.document_chunks ORDER BY 2 LIMIT 1"
    [(document, _)] = cycle.run_sql(store, chunk)
    values = {name: str(uuid.uuid4()) for name in ("job", "event", "chunk", "buffer")}
    with cycle.session(store) as connection:
        for statement in (JOB, EVENT, BUFFER, CHUNK):
            connection.execute(statement, values | {"document": document, "ord": 1000})
        before = cycle.rows_of(store)
        commit = threading.Timer(0.7, connection.commit)
        commit.start()

        cycle.migrate_all(store, spec, execution)

        commit.join()
    cycle.assert_green(cycle.validate(store, spec))
    after = cycle.rows_of(store)
    expect_what_was_written(after, before, [values | {"sha": hash_of(before, str(document)), "ord": 1000}])
    assert after == cycle.expected_rows(before)


def test_documents_that_stay_locked_are_set_aside_and_the_next_run_takes_them_up(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "RETAKE_SECONDS", (0.1,))
    monkeypatch.setattr(migration, "SWEEP_RETAKE_SECONDS", (0.1,))
    spec = cycle.spec_with()
    execution = cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)
    before = cycle.rows_of(store)
    held = [str(row["document_id"]) for row in before["documents"][:7]]
    with cycle.session(store) as connection:
        connection.execute(
            "SELECT FROM upload_pipeline.documents WHERE document_id::text = ANY(%s) FOR KEY SHARE", [held]
        )

        cycle.migrate_all(store, spec, execution)

        assert {gate.gate for gate in cycle.validate(store, spec) if not gate.passed} == {"next_step_safe"}
        left = {old for (old,) in cycle.run_sql(store, "SELECT old_id FROM uuid_pipeline.unmoved")}
        assert left == set(held)
        assert cycle.rows_of(store) == cycle.expected_rows(before, left=held)

    cycle.migrate_all(store, spec, execution)
    assert cycle.rows_of(store) == cycle.expected_rows(before)
    cycle.assert_green(cycle.validate(store, spec))


def hash_of(rows: cycle.Rows, document: str) -> str | None:
    return next(row["file_sha256"] for row in rows["documents"] if row["document_id"] == document)

"""A spec that does not fit its store is refused with each fault and the nearest name."""

import time

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine.catalog import read_catalog
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.integration import cycle

NAMESPACE = "namespace: 11111111-2222-3333-4444-555555555555\n"
DOCUMENT = '{table: documents, key: document_id, identity: "{user_id}:{file_sha256}"}'


def refusal(engine: Engine, text: str) -> str:
    with pytest.raises(UsageError) as fault:
        cycle.bound_store(engine, parse_spec(NAMESPACE + text, "s.yaml"))
    assert fault.value.exit_code == 2
    return fault.value.message


@pytest.mark.parametrize(
    ("entities", "fault"),
    [
        (
            'document: {table: document, key: document_id, identity: "{user_id}"}',
            "entity document: schema upload_pipeline has no table document; the nearest it has is documents",
        ),
        (
            'document: {table: documents, key: documentid, identity: "{user_id}"}',
            "table documents has no column documentid; the nearest it has is document_id",
        ),
        (
            'document: {table: documents, key: document_id, identity: "{user_id}:{sha256}"}',
            "table documents has no column sha256; the nearest it has is file_sha256",
        ),
        (
            'document: {table: documents, key: document_id, identity: "{user_id}", describe: {owner: userid}}',
            "table documents has no column userid; the nearest it has is user_id",
        ),
        (
            'document: {table: documents, key: created_at, identity: "{user_id}"}',
            "the key documents.created_at is timestamp with time zone; it must be uuid or text",
        ),
        (
            'document: {table: documents, key: filename, identity: "{user_id}"}',
            "documents.filename has no unique index",
        ),
        (
            f"document: {DOCUMENT}\n"
            '  job: {table: webhook_log, key: webhook_id, parent: document, identity: "{job_id}"}',
            "no column of webhook_log refers to its parent documents.document_id",
        ),
        (
            f'document: {DOCUMENT}\n  chunk: {{table: document_chunks, key: chunk_id, identity: "{{document_id}}"}}',
            "its identity uses document_id, which refers to document",
        ),
    ],
)
def test_each_fault_is_named_with_what_the_store_has(incident: Engine, entities: str, fault: str) -> None:
    assert fault in refusal(incident, f"schema: upload_pipeline\nentities:\n  {entities}\n")


def test_all_faults_are_named_at_once(incident: Engine) -> None:
    message = refusal(
        incident,
        f"schema: upload_pipeline\nentities:\n  document: {DOCUMENT}\n"
        "  job: {table: jobs, key: job_id, identity: '{status}'}\n"
        "soft_references:\n  - {table: event, column: document_id, entity: document}\n"
        "ignore_references:\n  - {table: events, column: body, reason: history}\n",
    )

    assert len(message.splitlines()) == 4
    assert "the nearest it has is upload_jobs" in message
    assert "the nearest it has is events" in message
    assert "table events has no column body" in message


def test_a_schema_that_is_not_there_is_named_with_the_nearest(incident: Engine, empty_store: Engine) -> None:
    spec = f"schema: upload\nentities:\n  document: {DOCUMENT}\n"

    assert "schema upload: the store has none of that name that holds a table" in refusal(incident, spec)
    assert "the nearest it has is upload_pipeline" in refusal(incident, spec)
    assert "no schema of this database holds any" in refusal(empty_store, spec)


def test_an_empty_database_is_refused_in_the_same_words(empty_store: Engine) -> None:
    text = f"schema: upload_pipeline\nentities:\n  document: {DOCUMENT}\n"

    assert "schema upload_pipeline: the store has none of that name" in refusal(empty_store, text)


def test_an_optional_reference_that_is_not_there_is_skipped_and_said(incident: Engine) -> None:
    store = cycle.bound_store(incident, cycle.spec_with())

    assert len(store.skipped) == 1
    assert "document_vector_buffer" in store.skipped[0]


MANY = """
CREATE SCHEMA few; CREATE SCHEMA many;
DO $$
BEGIN
    FOR n IN 1..1200 LOOP
        EXECUTE format('CREATE TABLE many.t%%s (id uuid PRIMARY KEY)', n);
        IF n %% 8 = 0 THEN EXECUTE format('CREATE TABLE few.t%%s (id uuid PRIMARY KEY)', n); END IF;
    END LOOP;
END $$
"""


def test_eight_times_the_tables_take_no_more_than_twice_that_to_read(empty_store: Engine) -> None:
    """Every stage reads them, and so does every check."""
    cycle.run_sql(empty_store, MANY)

    def seconds(schema: str) -> float:
        with empty_store.begin() as connection:
            begun = time.perf_counter()
            found = read_catalog(connection, schema)
            taken = time.perf_counter() - begun
        assert len(found.tables) == {"few": 150, "many": 1200}[schema]
        return taken

    few, many = (min(seconds(schema) for _ in range(5)) for schema in ("few", "many"))
    assert many < 16 * few

"""What a batch and a rollback prove of themselves has no false alarm where a store is odd, but right."""

import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches import locks, new_references
from uuid_pipeline.errors import BatchError
from uuid_pipeline.spec import SoftReference, parse_spec
from uuid_pipeline_tests.integration import cycle

NAMESPACE = uuid.UUID("11111111-2222-3333-4444-555555555551")
SPEC = f"""
namespace: {NAMESPACE}
schema: app
backup: none
entities:
  document: {{table: documents, key: id, identity: "{{owner}}:{{sha}}"}}
"""
PINS = """
soft_references:
  - {table: pins, column: payload, entity: document, path: doc}
  - {table: pins, column: several, entity: document}
"""
PINNED = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id text PRIMARY KEY, owner text NOT NULL, sha text NOT NULL);
INSERT INTO app.documents SELECT {id}, 'ann', 's' || n FROM generate_series(1, 5) n;
CREATE TABLE app.pins (sha text PRIMARY KEY, payload {kind}, several text[]);
INSERT INTO app.pins SELECT sha, jsonb_build_object('doc', id, 'note', 'of ' || id)::text::{kind},
                            ARRAY[[id, NULL], ['other', id]] FROM app.documents;
"""
IDS = {"uuids": "md5(n::text)::uuid::text", "in capitals": "upper(md5(n::text)::uuid::text)", "words": "'doc-' || n"}


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_ids_of_any_spelling_are_turned_inside_json_and_arrays_and_back(
    empty_store: Engine, ids: str, kind: str
) -> None:
    cycle.run_sql(empty_store, PINNED.format(id=IDS[ids], kind=kind))
    before = cycle.rows_of(empty_store, "app")
    spec = parse_spec(SPEC + PINS, "pins")

    cycle.run_all(empty_store, spec)

    now = {row["sha"]: row["id"] for row in cycle.rows_of(empty_store, "app")["documents"]}
    turned = cycle.run_sql(empty_store, "SELECT sha, payload->>'doc', several[1][1], several[2][2] FROM app.pins")
    assert {sha: {*places} for sha, *places in turned} == {sha: {new} for sha, new in now.items()}
    cycle.roll_back(empty_store, spec)
    assert cycle.rows_of(empty_store, "app") == before


TWINS = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text NOT NULL, sha text NOT NULL);
INSERT INTO app.documents VALUES ('{target}', 'ann', 'a'), (gen_random_uuid(), 'ann', 'a');
CREATE TABLE app.notes (n int PRIMARY KEY, doc uuid REFERENCES app.documents, body text);
INSERT INTO app.notes SELECT row_number() OVER (ORDER BY id), id, 'as it was' FROM app.documents;
"""


def test_a_server_that_counts_nothing_keeps_no_batch_from_merging(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, TWINS.format(target=uuid.uuid5(NAMESPACE, "ann:a")))
    before = cycle.rows_of(empty_store, "app")
    [(name,)] = cycle.run_sql(empty_store, "SELECT quote_ident(current_database())")
    cycle.run_sql(empty_store, f"ALTER DATABASE {name} SET track_counts = off")
    empty_store.dispose()

    cycle.run_all(empty_store, parse_spec(SPEC, "twins"))
    assert len(cycle.rows_of(empty_store, "app")["documents"]) == 1
    cycle.roll_back(empty_store, parse_spec(SPEC, "twins"))

    assert cycle.rows_of(empty_store, "app") == before


def test_what_the_application_wrote_into_a_row_that_a_merge_had_turned_is_its_own(empty_store: Engine) -> None:
    """It stays, and it is no fault of the rollback that the row is not as it was before."""
    cycle.run_sql(empty_store, TWINS.format(target=uuid.uuid5(NAMESPACE, "ann:a")))
    before = cycle.rows_of(empty_store, "app")
    cycle.run_all(empty_store, parse_spec(SPEC, "twins"))
    cycle.run_sql(empty_store, "UPDATE app.notes SET body = 'edited'")

    cycle.roll_back(empty_store, parse_spec(SPEC, "twins"))

    edited = [{**row, "body": "edited"} for row in before["notes"]]
    assert cycle.rows_of(empty_store, "app") == {**before, "notes": edited}


HOLDING = {
    "jsonb": """
        CREATE TABLE upload_pipeline.pins AS
        SELECT jsonb_build_object('doc', document_id, 'note', 1) AS held FROM upload_pipeline.documents""",
    "uuid[]": """
        CREATE TABLE upload_pipeline.pins AS SELECT ARRAY[document_id] AS held FROM upload_pipeline.documents""",
}
SPOILT = {"jsonb": "'{}'::jsonb", "uuid[]": "array_append(w.was, gen_random_uuid())"}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_batch_that_would_change_more_of_a_value_than_its_ids_is_rolled_back(
    incident: Engine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cycle.run_sql(incident, HOLDING[kind])
    path = "doc" if kind == "jsonb" else None
    spec = cycle.spec_with(soft_references=[SoftReference(table="pins", column="held", entity="document", path=path)])
    before = cycle.rows_of(incident)
    monkeypatch.setattr(locks, "rewritten", lambda *_: sql.as_written(SPOILT[kind]))

    with pytest.raises(BatchError, match=r"values of pins\.held\S* would have changed in more than their ids"):
        cycle.run_all(incident, spec)

    assert cycle.rows_of(incident) == before


def test_a_batch_that_deletes_what_no_archive_has_is_rolled_back(
    incident: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cycle.rows_of(incident)
    delete = "DELETE FROM upload_pipeline.events"
    monkeypatch.setattr(new_references, "require_none", lambda connection, *_: connection.exec_driver_sql(delete))

    with pytest.raises(BatchError, match=r"deleted \{'upload_pipeline\.events': \d+\}, archived \{\}"):
        cycle.run_all(incident, cycle.spec_with())

    assert cycle.rows_of(incident) == before

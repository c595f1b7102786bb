"""What a batch set aside and a later one took up: a rollback undoes the later one first, and forgets nothing of it."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import migration
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_merging_odd import DOCUMENTS, SINGLY, built, spec_of, target

# A twin, and rows that name two documents, so that batches are undone one by one, each whole.
STORE = (
    DOCUMENTS
    + """
CREATE TABLE app.chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, ver text, ord int);
CREATE TABLE app.links (n int PRIMARY KEY, chunk_id uuid REFERENCES app.chunks,
                        document_id uuid REFERENCES app.documents);
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'u', 'k', false),
                                 ('bbbbbbbb-0000-4000-8000-000000000001', 'u', 'k', false),
                                 ('cccccccc-0000-4000-8000-000000000001', 'u', 'later', true);
INSERT INTO app.chunks VALUES ('dddddddd-0000-4000-8000-000000000001', 'cccccccc-0000-4000-8000-000000000001', 'v', 0);
INSERT INTO app.links VALUES (1, 'dddddddd-0000-4000-8000-000000000001', 'bbbbbbbb-0000-4000-8000-000000000001')
"""
)


def test_ids_that_a_child_had_in_between_lead_to_it_after_the_rollback(
    empty_store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "SWEEP_RETAKE_SECONDS", (0.01,))
    built(empty_store, STORE)
    spec = spec_of(SINGLY)
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    cycle.migrate_all(empty_store, spec, execution)
    assert cycle.run_sql(empty_store, "SELECT DISTINCT reason FROM uuid_pipeline.unmoved") == [("busy",)]
    cycle.run_sql(empty_store, "UPDATE app.documents SET busy = false")
    cycle.finish(empty_store, spec, execution)
    between = target(f"{target('u:later')}:v:0")

    cycle.roll_back(empty_store, spec)

    cycle.run_sql(empty_store, "INSERT INTO app.links VALUES (2, %(id)s::uuid)", id=between)
    old = "dddddddd-0000-4000-8000-000000000001"
    assert [row["chunk_id"] for row in cycle.rows_of(empty_store, "app")["links"]] == [old, old]
    assert cycle.run_sql(empty_store, "SELECT uuid_pipeline.resolve_chunk(%(id)s::uuid)::text", id=between) == [(old,)]

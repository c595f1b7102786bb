"""Rollback of what the application has deleted rows of since: what mentions these, and what was never touched."""

import uuid
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine.batches import locks
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.integration import cycle

NAMESPACE = uuid.UUID("11111111-2222-4333-8444-555555555555")
# Works W and L are one work twice; what mentions their leaves, and Z's, is written in every form.
STORE = """
CREATE SCHEMA app;
CREATE TABLE app.works (id uuid PRIMARY KEY, patron int NOT NULL, digest text NOT NULL, made date NOT NULL);
CREATE TABLE app.leaves (id uuid PRIMARY KEY, work uuid NOT NULL REFERENCES app.works ON DELETE CASCADE,
                         ord int NOT NULL, UNIQUE (work, ord));
CREATE TABLE app.notes (n int PRIMARY KEY, work uuid, leaf uuid, word text, leaves uuid[], body jsonb);
INSERT INTO app.works VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 1, 'd', '2024-01-01'),
    ('aaaaaaaa-0000-4000-8000-000000000002', 1, 'd', '2024-01-02'),
    ('aaaaaaaa-0000-4000-8000-000000000003', 2, 'e', '2024-01-03');
INSERT INTO app.leaves SELECT ('bbbbbbbb-0000-4000-8000-0000000000' || right(id::text, 1) || ord)::uuid, id, ord
    FROM app.works, generate_series(0, 1) ord
"""
NOTES = """
INSERT INTO app.notes
SELECT row_number() OVER (ORDER BY l.id), l.work, l.id, l.id::text, ARRAY[l.id, o.id],
       jsonb_build_object('l', jsonb_build_array(o.id, l.id))
FROM app.leaves l JOIN app.leaves o ON o.work = l.work AND o.ord = 1
"""
SPEC = """
namespace: 11111111-2222-4333-8444-555555555555
schema: app
backup: none
entities:
  work: {table: works, key: id, identity: "{patron}/{digest}", describe: {created_at: made}, survivor: [oldest]}
  leaf: {table: leaves, key: id, parent: work, identity: "{work}|{ord}"}
soft_references:
  - {table: notes, column: work, entity: work, orphans: keep}
  - {table: notes, column: leaf, entity: leaf, orphans: keep}
  - {table: notes, column: word, entity: leaf, orphans: keep}
  - {table: notes, column: leaves, entity: leaf, orphans: keep}
  - {table: notes, column: body, entity: leaf, path: "l.*", orphans: keep}
"""
W = uuid.uuid5(NAMESPACE, "1/d")
Z = uuid.uuid5(NAMESPACE, "2/e")
DELETED = {
    "a leaf of the survivor": ("DELETE FROM app.leaves WHERE work = %(id)s AND ord = 0", W, {"10"}, set[str]()),
    "a leaf of another work": ("DELETE FROM app.leaves WHERE work = %(id)s AND ord = 1", Z, {"31"}, set[str]()),
    "another work": ("DELETE FROM app.works WHERE id = %(id)s", Z, {"30", "31"}, {"3"}),
}


@pytest.mark.parametrize("what", DELETED)
def test_what_mentions_a_deleted_row_mentions_it_by_its_old_id_again_and_all_else_is_as_it_was(
    empty_store: Engine, what: str
) -> None:
    delete, work, leaves, works = DELETED[what]
    for statement in (STORE.replace("%", "%%").strip() + ";\n" + NOTES).split(";\n"):
        cycle.run_sql(empty_store, statement)
    before = cycle.rows_of(empty_store, "app")
    spec = parse_spec(SPEC, "test")
    cycle.run_all(empty_store, spec)
    cycle.run_sql(empty_store, delete, id=work)

    cycle.roll_back(empty_store, spec)

    after = cycle.rows_of(empty_store, "app")
    assert after["notes"] == before["notes"]
    assert after["leaves"] == [row for row in before["leaves"] if str(row["id"])[-2:] not in leaves]
    assert after["works"] == [row for row in before["works"] if str(row["id"])[-1:] not in works]


def test_a_row_written_again_while_the_rollback_is_at_it_is_what_is_mentioned_since(
    empty_store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploaded once more, under the target id, with a row that refers to it by foreign key and one that does not."""
    for statement in (STORE.strip() + ";\n" + NOTES).split(";\n"):
        cycle.run_sql(empty_store, statement)
    cycle.run_sql(empty_store, "CREATE TABLE app.marks (n int PRIMARY KEY, work uuid REFERENCES app.works)")
    spec = parse_spec(SPEC, "test")
    cycle.run_all(empty_store, spec)
    cycle.run_sql(empty_store, "DELETE FROM app.works WHERE id = %(id)s", id=Z)
    hold_references = locks.hold_references

    def hold_after_upload(*given: Any) -> None:
        monkeypatch.setattr(locks, "hold_references", hold_references)
        cycle.run_sql(empty_store, "INSERT INTO app.works VALUES (%(id)s, 2, 'e', '2025-01-01')", id=Z)
        cycle.run_sql(empty_store, "INSERT INTO app.marks VALUES (1, %(id)s)", id=Z)
        cycle.run_sql(empty_store, "INSERT INTO app.notes (n, work) VALUES (99, %(id)s)", id=Z)
        hold_references(*given)

    monkeypatch.setattr(locks, "hold_references", hold_after_upload)
    cycle.roll_back(empty_store, spec)

    [(work,)] = cycle.run_sql(empty_store, "SELECT id FROM app.works WHERE digest = 'e'")
    assert cycle.run_sql(empty_store, "SELECT work FROM app.marks") == [(work,)]
    assert cycle.run_sql(empty_store, "SELECT work FROM app.notes WHERE n = 99") == [(work,)]


REPLACED = uuid.UUID("cccccccc-0000-4000-8000-000000000030")


@pytest.mark.parametrize("work", [Z, W], ids=["of a work", "of a merged work"])
def test_what_mentions_a_row_that_was_replaced_by_another_of_its_natural_key_is_as_it_was(
    empty_store: Engine, work: uuid.UUID
) -> None:
    """Chunked anew by a worker that makes random ids, after its wave: a sweep gives the new row the id of the old."""
    for statement in (STORE.strip() + ";\n" + NOTES).split(";\n"):
        cycle.run_sql(empty_store, statement)
    before = cycle.rows_of(empty_store, "app")
    spec = parse_spec(SPEC, "test")
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    for wave in cycle.waves_of(empty_store, execution):
        cycle.migrate(empty_store, spec, wave)
        cycle.assert_green(cycle.check_wave(empty_store, spec, wave))
    cycle.run_sql(empty_store, "DELETE FROM app.leaves WHERE work = %(id)s AND ord = 0", id=work)
    cycle.run_sql(empty_store, "INSERT INTO app.leaves VALUES (%(new)s, %(id)s, 0)", id=work, new=REPLACED)

    cycle.migrate_all(empty_store, spec, execution)
    cycle.assert_green(cycle.validate(empty_store))
    cycle.roll_back(empty_store, spec)

    after = cycle.rows_of(empty_store, "app")
    assert after["notes"] == before["notes"]
    gone = "30" if work == Z else "10"
    assert [row["id"] for row in after["leaves"]] == sorted(
        [str(row["id"]) for row in before["leaves"] if str(row["id"])[-2:] != gone] + [str(REPLACED)]
    )

"""References that hold an id without a row: those that a wave left behind, told from what the application deleted."""

import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.spec import SoftReference, Spec, parse_spec
from uuid_pipeline_tests.integration import cycle

# How a column without a foreign key may hold a document's id: its type, the declared path, its value.
HELD = {
    "uuid": ("uuid", None, "d.document_id"),
    "text": ("text", None, "d.document_id::text"),
    "array": ("uuid[]", None, "ARRAY[d.document_id]"),
    "json": ("jsonb", "a.id", "jsonb_build_object('a', jsonb_build_object('id', d.document_id))"),
}

NOTE = "INSERT INTO upload_pipeline.notes (note) SELECT {} FROM {} d"


def with_notes(store: Engine, form: str, keep: bool) -> Spec:
    """A table of notes that hold ids in this form, and the spec that says so."""
    kind, path, _ = HELD[form]
    cycle.run_sql(store, f"CREATE TABLE upload_pipeline.notes (note_id serial PRIMARY KEY, note {kind})")
    orphans = {"orphans": "keep"} if keep else {}
    held = SoftReference(table="notes", column="note", entity="document", path=path, **orphans)
    return cycle.spec_with(soft_references=[held])


@pytest.mark.parametrize("moved", [False, True], ids=["before its batch", "after it, and mentioned again"])
@pytest.mark.parametrize("form", HELD)
def test_what_still_names_a_document_that_the_application_deleted_makes_no_gate_red(
    incident: Engine, form: str, moved: bool
) -> None:
    spec = with_notes(incident, form, keep=False)
    cycle.run_sql(incident, NOTE.format(HELD[form][2], "upload_pipeline.documents"))
    execution = cycle.approve(incident, spec, cycle.assess_and_plan(incident, spec).plan_id)
    canary, *rest = cycle.all_waves_of(incident, execution)
    ordinal = "SELECT old_id::text, new_id::text FROM uuid_pipeline.id_map_document ORDER BY ordinal"
    old, new = cycle.run_sql(incident, ordinal)[0 if moved else -1]
    cycle.migrate(incident, spec, canary)
    cycle.assert_green(cycle.check_wave(incident, spec, canary))

    delete_with_its_rows(incident, new if moved else old)
    if moved:
        cycle.run_sql(incident, NOTE.format(HELD[form][2], f"(SELECT '{old}'::uuid AS document_id)"))

    for wave in rest:
        if wave.wave in {w.wave for w in cycle.all_waves_of(incident, execution) if w.status != "unneeded"}:
            cycle.migrate(incident, spec, wave)
            cycle.assert_green(cycle.check_wave(incident, spec, wave))
    cycle.assert_green(cycle.check_wave(incident, spec, canary))
    cycle.assert_green(cycle.validate(incident))


TWINS = """
namespace: a1111111-2222-4333-8444-555555555555
schema: app
backup: none
entities:
  document: {table: documents, key: id, identity: "{owner}:{sha}", describe: {created_at: at}, survivor: [oldest]}
soft_references:
  - {table: notes, column: note, entity: document, orphans: keep}
"""


@pytest.mark.parametrize("deleted", ["the survivor", "the one with the target id", "another duplicate"])
def test_nor_does_what_names_a_deleted_document_of_a_cluster_that_is_left_for_that(
    empty_store: Engine, deleted: str
) -> None:
    spec = parse_spec(TWINS, "app.yaml")
    target = uuid.uuid5(spec.namespace, "u:k")
    for statement in (
        "CREATE SCHEMA app",
        "CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, at timestamptz, name text)",
        "INSERT INTO app.documents VALUES (gen_random_uuid(), 'u', 'k', '2026-01-01', 'the survivor')",
        f"INSERT INTO app.documents VALUES ('{target}', 'u', 'k', '2026-02-01', 'the one with the target id')",  # noqa: S608
        "INSERT INTO app.documents VALUES (gen_random_uuid(), 'u', 'k', '2026-03-01', 'another duplicate')",
        "INSERT INTO app.documents SELECT gen_random_uuid(), 'u', 'k' || n FROM generate_series(1, 3) n",
        "CREATE TABLE app.notes (n serial PRIMARY KEY, note uuid)",
        "INSERT INTO app.notes (note) SELECT id FROM app.documents",
    ):
        cycle.run_sql(empty_store, statement)
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    cycle.run_sql(empty_store, "DELETE FROM app.documents WHERE name = %(name)s", name=deleted)

    cycle.finish(empty_store, spec, execution)

    # The next plan does not wait for who is gone.
    cycle.run_all(empty_store, spec)
    assert [row["id"] for row in cycle.rows_of(empty_store, "app")["documents"] if row["sha"] == "k"] == [str(target)]


def delete_with_its_rows(store: Engine, document: str) -> None:
    with cycle.session(store) as application:
        application.execute("DELETE FROM upload_pipeline.webhook_log")
        for table in ("events", "upload_jobs", "document_chunks", "documents"):
            application.execute(f"DELETE FROM upload_pipeline.{table} WHERE document_id = %s", [document])  # noqa: S608


@pytest.mark.parametrize("keep", [False, True], ids=["", "in a column that may hold ids of what is gone"])
@pytest.mark.parametrize("form", HELD)
def test_a_reference_that_a_wave_left_behind_is_found_where_no_foreign_key_would(
    incident: Engine, form: str, keep: bool
) -> None:
    spec = with_notes(incident, form, keep)
    execution = cycle.approve(incident, spec, cycle.assess_and_plan(incident, spec).plan_id)
    canary, *_ = cycle.all_waves_of(incident, execution)
    cycle.migrate(incident, spec, canary)
    stale = "(SELECT old_id AS document_id FROM uuid_pipeline.id_map_document WHERE ordinal = 1)"
    with incident.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql(NOTE.format(HELD[form][2], stale))

    red = [gate for gate in cycle.check_wave(incident, spec, canary) if not gate.passed]

    said = f"dangling: notes.note{'.a.id' if form == 'json' else ''} 1"
    assert [(gate.gate, gate.finding) for gate in red] == [("no_dangling_reference", said)]
    whole = {gate.gate: gate for gate in cycle.validate(incident)}["whole_no_dangling_reference"]
    assert (whole.passed, whole.finding) == (False, said)


def test_an_id_of_a_row_that_came_and_went_unseen_makes_no_gate_red(incident: Engine) -> None:
    spec = with_notes(incident, "uuid", keep=False)
    execution = cycle.approve(incident, spec, cycle.assess_and_plan(incident, spec).plan_id)
    cycle.run_sql(incident, "INSERT INTO upload_pipeline.notes (note) VALUES (gen_random_uuid())")

    cycle.migrate_all(incident, spec, execution)

    cycle.assert_green(cycle.validate(incident))


HANGING = """
CREATE SCHEMA s;
CREATE TABLE s.documents (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner text NOT NULL, code text NOT NULL);
CREATE TABLE s.jobs (job int PRIMARY KEY, document_id uuid NOT NULL UNIQUE REFERENCES s.documents);
CREATE TABLE s.events (event int PRIMARY KEY, job int NOT NULL REFERENCES s.jobs ON DELETE CASCADE);
INSERT INTO s.documents (owner, code) VALUES ('ann', 'a'), ('ann', 'a');
INSERT INTO s.jobs SELECT row_number() OVER (), id FROM s.documents;
INSERT INTO s.events SELECT job, job FROM s.jobs;
"""
DOCUMENTS = """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: s
entities:
  document: {table: documents, key: id, identity: "{owner}:{code}", describe: {owner: owner}}
"""


def test_a_foreign_key_that_holds_no_id_and_leads_to_what_a_merge_archived_is_found(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, HANGING)
    cycle.run_all(empty_store, parse_spec(DOCUMENTS, "documents"))
    [(left,)] = cycle.run_sql(empty_store, "SELECT job FROM s.jobs")
    with cycle.session(empty_store) as connection:
        # As a batch would leave it that forgot to take along what hangs on a job: nothing checks the key in that role.
        connection.execute("SET session_replication_role = replica")
        connection.execute("INSERT INTO s.events VALUES (3, %(gone)s)", {"gone": 3 - left})

    [gate] = [one for one in cycle.validate(empty_store) if one.gate == "whole_no_dangling_reference"]

    assert not gate.passed
    assert "events.(job) 1" in gate.finding

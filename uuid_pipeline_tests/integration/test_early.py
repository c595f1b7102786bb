"""References that hold a target id before its row has it: turned with the row, and given back by a rollback."""

import itertools
import uuid

import pytest
from sqlalchemy import Engine, event

from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.spec import SoftReference
from uuid_pipeline_tests.conftest import NewRole
from uuid_pipeline_tests.integration import cycle

# By form of reference: the column's type, the declared path, and the column's value for a list of ids.
FORMS = {
    "key": ("uuid", None, "'{0}'"),
    "text": ("text", None, "'{0}'"),
    "array": ("uuid[]", None, "ARRAY['{0}', '{1}']::uuid[]"),
    "text array": ("text[]", None, "ARRAY['{0}', 'no id', '{1}']"),
    "jsonb": ("jsonb", "seen.*.id", """'{{"seen": [{{"id": "{0}"}}, {{"id": "{1}", "n": 1}}]}}'"""),
    "json": ("json", "id", """'{{ "n": 1,  "id": "{0}" }}'"""),
}


def spec_with(path: str | None, **changes: object) -> SoftReference:
    return SoftReference(table="notes", column="note", entity="document", path=path, **changes)


def add_notes(store: Engine, form: str, early: str, right: str, other: str) -> None:
    """Rows that hold a target id early, the id that the row has, both, and what refers to another document."""
    kind, _, value = FORMS[form]
    cycle.run_sql(store, f"CREATE TABLE upload_pipeline.notes (n int PRIMARY KEY, note {kind}, body text)")
    cycle.run_sql(store, "GRANT ALL ON upload_pipeline.notes TO PUBLIC")
    for n, held in enumerate([(early, early), (right, right), (early, right), (right, early), (other, early)]):
        cycle.run_sql(store, f"INSERT INTO upload_pipeline.notes VALUES ({n}, {value.format(*held)}, 'kept')")  # noqa: S608


def notes(rows: cycle.Rows, old: str, new: str) -> list[cycle.Row]:
    """The notes with every mention of one id replaced."""
    return [{c: v.replace(old, new) if v else v for c, v in row.items()} for row in rows["notes"]]


@pytest.mark.parametrize("form", FORMS)
def test_what_holds_a_target_id_already_is_right_after_the_migration_and_as_it_was_after_the_rollback(
    incident: Engine, form: str
) -> None:
    targets = cycle.targets(cycle.rows_of(incident))
    first, second = (str(row["document_id"]) for row in cycle.rows_of(incident)["documents"][:2])
    add_notes(incident, form, targets[first], first, targets[second])
    spec = cycle.spec_with(soft_references=[spec_with(FORMS[form][1])])
    before = cycle.rows_of(incident)

    assessed = cycle.assess(incident, spec)
    cycle.assert_green(assessed.gates.values())
    assert "notes.note" in assessed.gates["no_collision"].finding
    cycle.finish(incident, spec, cycle.approve(incident, spec, cycle.plan(incident, assessed).plan_id))

    after = cycle.rows_of(incident)
    expected = cycle.expected_rows(before)
    assert after.pop("notes") == notes(before, first, targets[first])
    expected.pop("notes")
    assert after == expected
    cycle.roll_back(incident, spec)
    assert cycle.rows_of(incident) == before
    cycle.run_all(incident, spec)
    assert cycle.rows_of(incident)["notes"] == notes(before, first, targets[first])


def test_a_plain_owner_with_aliases_in_place_gives_them_back_too(incident: Engine, new_role: NewRole) -> None:
    targets = cycle.targets(cycle.rows_of(incident))
    first, second = (str(row["document_id"]) for row in cycle.rows_of(incident)["documents"][:2])
    add_notes(incident, "key", targets[first], first, targets[second])
    spec = cycle.spec_with(soft_references=[spec_with(None)])
    role = new_role()
    cycle.make_owner(incident, role)
    before = cycle.rows_of(incident)
    as_owner = open_store(incident.url.set(username=role).render_as_string(hide_password=False))
    refused: list[str] = []
    event.listen(as_owner, "handle_error", lambda context: refused.append(str(context.statement)))

    execution = cycle.run_all(as_owner, spec)
    with as_owner.begin() as connection:
        assert ledger.execution(connection, execution.execution_id).status == "completed"
    assert cycle.rows_of(incident)["notes"] == notes(before, first, targets[first])
    cycle.roll_back(as_owner, spec)
    connections = as_owner.pool.checkedin()  # type: ignore[attr-defined]
    as_owner.dispose()
    # Each is an ERROR in the server's log.
    assert 1 <= refused.count("SET LOCAL session_replication_role = replica") <= connections, refused

    assert cycle.rows_of(incident) == before


def test_what_the_application_changed_since_is_left_to_it_by_the_rollback(incident: Engine) -> None:
    targets = cycle.targets(cycle.rows_of(incident))
    first, second = (str(row["document_id"]) for row in cycle.rows_of(incident)["documents"][:2])
    add_notes(incident, "key", targets[first], first, targets[second])
    spec = cycle.spec_with(soft_references=[spec_with(None)])
    before = cycle.rows_of(incident)
    cycle.run_all(incident, spec)
    cycle.run_sql(incident, "UPDATE upload_pipeline.notes SET note = %(other)s WHERE n = 0", other=targets[second])

    cycle.roll_back(incident, spec)

    changed = next(row for row in cycle.rows_of(incident)["notes"] if row["n"] == "0")
    assert changed == {"n": "0", "note": second, "body": "kept"}
    left = [row for row in cycle.rows_of(incident)["notes"] if row["n"] != "0"]
    assert left == [row for row in before["notes"] if row["n"] != "0"]


@pytest.mark.parametrize(
    ("alter", "why"),
    [
        ("DROP CONSTRAINT notes_pkey", "without a primary key"),
        ("ADD UNIQUE (body, note)", "part of a unique index"),
        ("ADD EXCLUDE (note WITH =)", "part of a unique index"),
    ],
)
@pytest.mark.parametrize("orphans", ["forbid", "keep"])
def test_what_could_not_be_given_back_is_refused(incident: Engine, alter: str, why: str, orphans: str) -> None:
    early = next(iter(cycle.targets(cycle.rows_of(incident)).values()))
    cycle.run_sql(incident, "CREATE TABLE upload_pipeline.notes (n int PRIMARY KEY, note uuid, body text)")
    cycle.run_sql(incident, f"ALTER TABLE upload_pipeline.notes {alter}")
    cycle.run_sql(incident, "INSERT INTO upload_pipeline.notes VALUES (1, %(early)s)", early=early)
    keep = {"orphans": "keep"} if orphans == "keep" else {}

    gates = cycle.assess(incident, cycle.spec_with(soft_references=[spec_with(None, **keep)])).gates

    assert not gates["no_collision"].passed
    finding = gates["no_collision"].finding
    assert "1 target ids are in notes.note, which is" in finding
    assert why in finding
    assert gates["no_orphans"].passed == (orphans == "keep")


def test_a_document_that_is_uploaded_again_where_history_kept_its_id_moves_and_goes_back(incident: Engine) -> None:
    cycle.run_sql(incident, "CREATE TABLE upload_pipeline.notes (n serial PRIMARY KEY, note uuid, body text)")
    cycle.run_sql(
        incident, "INSERT INTO upload_pipeline.notes (note) SELECT document_id FROM upload_pipeline.documents"
    )
    spec = cycle.spec_with(soft_references=[spec_with(None, orphans="keep")])
    cycle.run_all(incident, spec)
    document, again = str(cycle.rows_of(incident)["documents"][0]["document_id"]), str(uuid.uuid4())
    with cycle.session(incident) as application:
        copy = "CREATE TEMPORARY TABLE was AS SELECT * FROM upload_pipeline.documents WHERE document_id = %s"
        application.execute(copy, [document])
        application.execute("DELETE FROM upload_pipeline.webhook_log")
        for table in ("events", "upload_jobs", "document_chunks", "documents"):
            application.execute(f"DELETE FROM upload_pipeline.{table} WHERE document_id = %s", [document])  # noqa: S608
        application.execute("UPDATE was SET document_id = %s", [again])
        application.execute("INSERT INTO upload_pipeline.documents SELECT * FROM was")
    before = cycle.rows_of(incident)
    assert document in {row["note"] for row in before["notes"]}

    cycle.run_all(incident, spec)

    after = cycle.rows_of(incident)
    assert after["notes"] == before["notes"]
    assert after["documents"] == cycle.expected_rows(before)["documents"] != before["documents"]
    cycle.roll_back(incident, spec, "canary")
    assert cycle.rows_of(incident) == before


@pytest.mark.parametrize("form", ["array", "jsonb"])
def test_rows_that_hold_early_ids_of_documents_of_several_batches_get_them_all_back(
    incident: Engine, form: str
) -> None:
    targets = cycle.targets(cycle.rows_of(incident))
    documents = [str(row["document_id"]) for row in cycle.rows_of(incident)["documents"]]
    kind, path, value = FORMS[form]
    cycle.run_sql(incident, f"CREATE TABLE upload_pipeline.notes (n int PRIMARY KEY, note {kind}, body text)")
    # In pairs of any two, so that some are of different batches forward, and of one back.
    for n, (one, other) in enumerate(itertools.combinations(documents[::2], 2)):
        held = value.format(targets[one], targets[other] if n % 2 else other)
        cycle.run_sql(incident, f"INSERT INTO upload_pipeline.notes VALUES ({n}, {held}, 'kept')")  # noqa: S608
    forward = cycle.spec_with(soft_references=[spec_with(path)], batch_rows=45)
    before = cycle.rows_of(incident)

    cycle.run_all(incident, forward)

    moved = cycle.rows_of(incident)["notes"]
    assert not [d for d in documents for row in moved if d in str(row["note"])]
    cycle.roll_back(incident, forward)
    assert cycle.rows_of(incident) == before


@pytest.mark.parametrize(
    "deed",
    [
        "UPDATE upload_pipeline.document_chunks SET chunk_ord = 77 WHERE chunk_id = %(chunk)s",
        "DELETE FROM upload_pipeline.document_chunks WHERE chunk_id = %(chunk)s",
    ],
    ids=["edited", "deleted"],
)
def test_an_early_id_that_no_row_is_to_have_any_more_makes_no_gate_red(incident: Engine, deed: str) -> None:
    chunk = str(cycle.rows_of(incident)["document_chunks"][0]["chunk_id"])
    early = cycle.targets(cycle.rows_of(incident))[chunk]
    cycle.run_sql(incident, "CREATE TABLE upload_pipeline.notes (n serial PRIMARY KEY, note uuid)")
    cycle.run_sql(incident, "INSERT INTO upload_pipeline.notes (note) VALUES (%(early)s)", early=early)
    held = SoftReference(table="notes", column="note", entity="chunk")
    spec = cycle.spec_with(soft_references=[held])
    execution = cycle.approve(incident, spec, cycle.assess_and_plan(incident, spec).plan_id)
    cycle.run_sql(incident, deed, chunk=chunk)

    cycle.migrate_all(incident, spec, execution)

    found = {gate.gate: gate for gate in cycle.validate(incident)}
    cycle.assert_green([found["whole_no_dangling_reference"]])
    assert "1 rows of notes.note hold ids of rows that the application deleted or edited" in (
        found["whole_no_dangling_reference"].finding
    )

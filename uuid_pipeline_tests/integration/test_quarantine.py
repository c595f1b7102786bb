"""Documents below which ids change places are left as they are, and keep nobody else from moving."""

import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import control, inventory, mapping
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with()
ADD_CHUNK = """
INSERT INTO upload_pipeline.document_chunks (chunk_id, document_id, chunker_name, chunker_version, chunk_ord, text,
    chunk_sha, embed_model, embed_version, vector_dim, embedding)
SELECT %(chunk)s, document_id, chunker_name, chunker_version, 0, 'a new beginning', '', embed_model, embed_version,
    vector_dim, embedding FROM upload_pipeline.document_chunks WHERE document_id = %(document)s LIMIT 1
"""
ADD_DOCUMENT = """
INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
SELECT %(document)s, user_id, 'late.pdf', 'application/pdf', 1, %(sha)s, 'late'
FROM upload_pipeline.documents ORDER BY user_id LIMIT 1
"""


@pytest.fixture
def migrated(incident: Engine) -> Engine:
    cycle.run_all(incident, SPEC)
    return incident


def ids_of(rows: cycle.Rows) -> set[str | None]:
    documents = {row["document_id"] for row in rows["documents"]}
    return documents | {row["chunk_id"] for row in rows["document_chunks"]}


def a_document(store: Engine) -> str:
    """One that has chunks."""
    [(document,)] = cycle.run_sql(store, "SELECT min(document_id::text) FROM upload_pipeline.document_chunks")
    return str(document)


def put_chunk_in_front(store: Engine, document: str) -> str:
    """As a worker does that numbers the chunks of a document anew and keeps their ids; returns the new one's id."""
    chunk = str(uuid.uuid4())
    # From behind: the unique key of the numbers is checked row by row.
    later = "UPDATE upload_pipeline.document_chunks SET chunk_ord = chunk_ord + %(by)s WHERE document_id = %(document)s"
    cycle.run_sql(store, later, document=document, by=1000)
    cycle.run_sql(store, later, document=document, by=-999)
    cycle.run_sql(store, ADD_CHUNK, chunk=chunk, document=document)
    return chunk


def add_document(store: Engine) -> str:
    document = str(uuid.uuid4())
    cycle.run_sql(store, ADD_DOCUMENT, document=document, sha=uuid.uuid4().hex * 2)
    return document


def test_a_document_whose_chunks_were_numbered_anew_is_left_with_all_of_them_and_the_rest_moves(
    incident: Engine,
) -> None:
    random = ids_of(cycle.rows_of(incident))
    cycle.run_all(incident, SPEC)
    document, new = a_document(incident), add_document(incident)
    front = put_chunk_in_front(incident, document)
    before = cycle.rows_of(incident)

    assessed = cycle.assess(incident, SPEC)
    cycle.assert_green(assessed.gates.values())
    with incident.begin() as connection:
        aside = inventory.quarantined(connection, assessed.store, assessed.number)
        moves = mapping.moves(connection, assessed.store, assessed.number)
    cycle.finish(incident, SPEC, cycle.approve(incident, SPEC, cycle.plan(incident, assessed).plan_id))

    chunks = {row["chunk_id"] for row in before["document_chunks"] if row["document_id"] == document}
    assert {(row["entity"], row["id"]) for row in aside} == {("chunk", chunk) for chunk in chunks}
    assert moves == {"document": 1, "chunk": 0}
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left=[document])
    assert new not in ids_of(cycle.rows_of(incident))
    cycle.roll_back(incident, SPEC, "canary")
    assert cycle.rows_of(incident) == before
    cycle.roll_back(incident, SPEC)
    assert ids_of(cycle.rows_of(incident)) == random | {new, front}


def test_a_document_that_is_to_move_too_stays_with_its_twins(migrated: Engine) -> None:
    cycle.run_sql(migrated, "DROP INDEX upload_pipeline.uq_user_filehash")
    document, twin, new = a_document(migrated), str(uuid.uuid4()), add_document(migrated)
    cycle.run_sql(
        migrated,
        """INSERT INTO upload_pipeline.documents
               (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
           SELECT %(twin)s, user_id, filename, mime, bytes_len, upper(file_sha256), raw_path
           FROM upload_pipeline.documents WHERE document_id = %(document)s""",
        twin=twin,
        document=document,
    )
    put_chunk_in_front(migrated, document)
    before = cycle.rows_of(migrated)

    assessed = cycle.assess(migrated, SPEC)
    cycle.assert_green(assessed.gates.values())
    assert assessed.summary.quarantined == 2
    execution = cycle.approve(migrated, SPEC, cycle.plan(migrated, assessed).plan_id)
    cycle.finish(migrated, SPEC, execution)

    assert cycle.rows_of(migrated) == cycle.expected_rows(before, left=[document, twin])
    assert new not in {row["document_id"] for row in cycle.rows_of(migrated)["documents"]}


def test_once_the_chunks_have_other_ids_the_document_moves_again(migrated: Engine) -> None:
    document = a_document(migrated)
    put_chunk_in_front(migrated, document)
    cycle.run_sql(
        migrated,
        "UPDATE upload_pipeline.document_chunks SET chunk_id = gen_random_uuid() WHERE document_id = %(document)s",
        document=document,
    )
    before = cycle.rows_of(migrated)

    cycle.run_all(migrated, SPEC)

    assert cycle.rows_of(migrated) == cycle.expected_rows(before) != before


def test_a_document_waits_until_the_one_that_has_its_id_has_moved(incident: Engine) -> None:
    """As after a renaming: a migrated document gets another natural key, a new one its former."""
    waiting = {"document": SPEC.entities["document"].model_copy(update={"on_collision": "wait"})}
    spec = cycle.spec_with(entities=SPEC.entities | waiting)
    cycle.run_all(incident, spec)
    renamed = cycle.rows_of(incident)["documents"][0]
    holder = str(renamed["document_id"])
    edit = "UPDATE upload_pipeline.documents SET file_sha256 = repeat('ab', 32) WHERE document_id = %(holder)s"
    cycle.run_sql(incident, edit, holder=holder)
    late, other = str(uuid.uuid4()), add_document(incident)
    cycle.run_sql(
        incident,
        """INSERT INTO upload_pipeline.documents
               (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
           VALUES (%(late)s, %(user)s, 'late.pdf', 'application/pdf', 1, %(sha)s, 'late')""",
        late=late, user=renamed["user_id"], sha=renamed["file_sha256"],
    )  # fmt: skip
    before = cycle.rows_of(incident)
    refused = cycle.assess(incident, SPEC).gates["no_collision"]
    assert not refused.passed
    assert "on_collision: wait" in refused.remedy

    cycle.run_all(incident, spec)

    assert cycle.rows_of(incident) == cycle.expected_rows(before, left=[late])
    assert other not in ids_of(cycle.rows_of(incident))
    cycle.run_all(incident, spec)
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    cycle.roll_back(incident, spec, "canary")
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left=[late])


SHELVES = """
namespace: a1111111-2222-4333-8444-555555555555
schema: app
backup: none
entities:
  document: {table: documents, key: id, identity: "{owner}:{sha}", on_collision: wait}
  chunk: {table: chunks, key: id, parent: document, identity: "{document_id}:{ord}"}
"""


def test_a_document_that_gets_the_id_which_another_had_is_not_taken_for_that_one(empty_store: Engine) -> None:
    spec = parse_spec(SHELVES, "app.yaml")
    holder = uuid.uuid5(spec.namespace, "u:a")
    for statement in (
        "CREATE SCHEMA app",
        "CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text)",
        """CREATE TABLE app.chunks (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
                                    document_id uuid NOT NULL REFERENCES app.documents, ord int)""",
        f"INSERT INTO app.documents VALUES ('{holder}', 'u', 'b'), (gen_random_uuid(), 'u', 'a')",  # noqa: S608
        "INSERT INTO app.documents SELECT gen_random_uuid(), 'u', 'k' || n FROM generate_series(1, 4) n",
        # More of them below the holder than below the one that gets its id.
        "INSERT INTO app.chunks (document_id, ord) SELECT id, n FROM app.documents, generate_series(1, 2) n",
        f"INSERT INTO app.chunks (document_id, ord) SELECT '{holder}', n FROM generate_series(3, 5) n",  # noqa: S608
    ):
        cycle.run_sql(empty_store, statement)
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    # What arrives below the one that waits is no reason for the sweep to take it, though the id is free by then.
    arrival = "INSERT INTO app.chunks (document_id, ord) SELECT id, 9 FROM app.documents WHERE sha = 'a'"
    cycle.run_sql(empty_store, arrival)
    before = cycle.rows_of(empty_store, "app")
    cycle.finish(empty_store, spec, execution)
    target_of = {row["sha"]: str(uuid.uuid5(spec.namespace, f"u:{row['sha']}")) for row in before["documents"]}
    moved = {row["sha"]: row["id"] for row in cycle.rows_of(empty_store, "app")["documents"]}
    assert [sha for sha, document in moved.items() if document != target_of[str(sha)]] == ["a"]

    later = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    cycle.migrate(empty_store, spec, cycle.waves_of(empty_store, later)[0])
    with empty_store.begin() as connection:
        control.cancel(connection)

    assert {row["sha"]: row["id"] for row in cycle.rows_of(empty_store, "app")["documents"]} == target_of
    cycle.assert_green(cycle.validate(empty_store))
    cycle.roll_back(empty_store, spec)
    assert cycle.rows_of(empty_store, "app") == before

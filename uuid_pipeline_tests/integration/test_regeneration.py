"""What re-keying cannot mend: listed with why, queued on approval, recorded, taken back."""

from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.retrievals import regeneration, unretrievable
from uuid_pipeline.engine.retrievals.regeneration import Queued, Undone
from uuid_pipeline.engine.retrievals.unretrievable import Listed
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.spec import Regeneration, Spec, Statuses, parse_spec
from uuid_pipeline_tests.integration import cycle, shop

SPEC = cycle.spec_with()
JOBS = """
SELECT document_id::text FROM upload_pipeline.upload_jobs
WHERE state = 'queued' AND progress @> '{"regenerate": true}' ORDER BY 1
"""


@pytest.fixture
def store(incident: Engine) -> Engine:
    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    return incident


def listed(store: Engine, spec: Spec = SPEC) -> Listed:
    with store.connect().execution_options(isolation_level="REPEATABLE READ") as c, c.begin():
        return unretrievable.listed(c, cycle.bound(c, spec))


def queue(store: Engine, list_id: str, spec: Spec = SPEC) -> Queued:
    with store.connect().execution_options(isolation_level="REPEATABLE READ") as c, c.begin():
        return regeneration.queue(c, cycle.bound(c, spec), list_id)


def undo(store: Engine, spec: Spec = SPEC) -> Undone:
    with store.begin() as c:
        return regeneration.undo(c, cycle.bound(c, spec))


def without_chunks(rows: cycle.Rows) -> set[Any]:
    """The incident's documents that no chunk belongs to, from the rows themselves."""
    return {d["document_id"] for d in rows["documents"]} - {c["document_id"] for c in rows["document_chunks"]}


def test_nine_of_the_incidents_38_are_listed_each_with_why_before_and_after_the_migration(store: Engine) -> None:
    rows = cycle.rows_of(store)
    statuses = {d["document_id"]: d["processing_status"] for d in rows["documents"]}
    expected = {
        document: ("no_chunks", "failed") if statuses[document] is None else ("no_chunks",)
        for document in without_chunks(rows)
    }
    assert len(expected) == 9

    found = listed(store)
    assert {d.id: d.reasons for d in found.documents} == expected
    assert {d.id: d.target_id for d in found.documents}.items() <= cycle.targets(rows).items()
    assert (found.waiting, found.queued, found.by_reason) == (9, 0, {"no_chunks": 9, "failed": 1})
    assert found.unknown == ()

    cycle.run_all(store, SPEC)
    new = cycle.targets(rows)
    after = listed(store)
    assert {d.id for d in after.documents} == {new[str(old)] for old in expected}
    assert after.list_id != found.list_id


def test_chunks_without_a_vector_are_told_from_documents_without_chunks(store: Engine) -> None:
    cycle.run_sql(store, "ALTER TABLE upload_pipeline.document_chunks ALTER embedding DROP NOT NULL")
    held = sorted({str(c["document_id"]) for c in cycle.rows_of(store)["document_chunks"]})
    blank = "UPDATE upload_pipeline.document_chunks SET embedding = NULL WHERE document_id = %(document)s"
    cycle.run_sql(store, blank, document=held[0])
    cycle.run_sql(store, blank + " AND chunk_ord = 1", document=held[1])

    reasons = {d.id: d.reasons for d in listed(store).documents}
    assert (reasons[held[0]], reasons[held[1]], held[2] in reasons) == (
        ("no_vectors",), ("some_without_vector",), False,
    )  # fmt: skip
    only = cycle.spec_with(regeneration=Regeneration(only=["no_vectors"]))
    assert [d.id for d in listed(store, only).documents] == [held[0]]


@pytest.mark.begins("migrated")
def test_the_approved_list_is_queued_under_the_ids_of_now_recorded_and_taken_back(store: Engine) -> None:
    before = cycle.rows_of(store)
    missing = sorted(str(document) for document in without_chunks(before))

    found = listed(store)
    assert queue(store, found.list_id) == Queued(found.list_id, 9, ())

    assert [document for (document,) in cycle.run_sql(store, JOBS)] == missing
    recorded = cycle.run_sql(
        store,
        """SELECT document_id, list_id, rows, undone_at IS NULL, 'no_chunks' = ANY(reasons)
           FROM uuid_pipeline.regenerations ORDER BY 1""",
    )
    assert recorded == [(document, found.list_id, 1, True, True) for document in missing]
    now = listed(store)
    assert (now.waiting, now.queued) == (0, 9)
    assert queue(store, now.list_id).documents == 0
    assert len(cycle.run_sql(store, JOBS)) == 9

    assert undo(store) == Undone(9, (), 0)
    assert cycle.rows_of(store) == before
    assert undo(store) == Undone(0, (), 0)
    again = listed(store)
    assert (again.waiting, again.list_id) == (9, found.list_id)
    assert queue(store, again.list_id).documents == 9


def test_what_a_worker_has_taken_stays_queued_and_is_named(store: Engine) -> None:
    queue(store, listed(store).list_id)
    [(taken,), *_] = cycle.run_sql(store, JOBS)
    cycle.run_sql(
        store,
        """UPDATE upload_pipeline.upload_jobs SET state = 'working'
           WHERE document_id = %(document)s AND progress @> '{"regenerate": true}'""",
        document=taken,
    )
    assert undo(store) == Undone(8, (taken,), 0)
    found = listed(store)
    assert (found.waiting, found.queued) == (8, 1)


def test_a_request_made_before_the_migration_is_known_and_undone_after_it_and_after_its_rollback(
    store: Engine,
) -> None:
    before = cycle.rows_of(store)
    queue(store, listed(store).list_id)
    cycle.run_all(store, SPEC)
    assert (listed(store).waiting, listed(store).queued) == (0, 9)
    cycle.roll_back(store, SPEC)
    assert (listed(store).waiting, listed(store).queued) == (0, 9)
    assert undo(store).documents == 9
    assert cycle.rows_of(store) == before


def test_twins_are_queued_each_and_known_before_the_merge_after_it_and_after_its_rollback(twins: Engine) -> None:
    with twins.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    cycle.run_sql(
        twins, "DELETE FROM upload_pipeline.document_vector_buffer; DELETE FROM upload_pipeline.document_chunks"
    )
    before, found = cycle.rows_of(twins), listed(twins)
    assert (len({d.id for d in found.documents}), len({d.target_id for d in found.documents})) == (50, 38)

    assert queue(twins, found.list_id) == Queued(found.list_id, 50, ())

    for deed in (lambda: None, lambda: cycle.run_all(twins, SPEC), lambda: cycle.roll_back(twins, SPEC)):
        deed()
        assert listed(twins).waiting == 0
    assert undo(twins) == Undone(50, (), 0)
    assert cycle.rows_of(twins) == before
    # One of a pair alone: the other one waits, though both have one target id.
    pair = [d for d in found.documents if [o.target_id for o in found.documents].count(d.target_id) == 2][:2]
    cycle.run_sql(twins, "UPDATE uuid_pipeline.regenerations SET undone_at = NULL WHERE document_id = %(d)s",
                  d=pair[0].id)  # fmt: skip
    assert [d.id for d in listed(twins).documents if d.regeneration_id] == [pair[0].id]


def test_a_list_that_changed_since_it_was_approved_is_refused_and_nothing_is_queued(store: Engine) -> None:
    found = listed(store)
    chunk = "DELETE FROM upload_pipeline.document_chunks WHERE document_id = %(document)s"
    [(document,), *_] = cycle.run_sql(store, "SELECT document_id::text FROM upload_pipeline.document_chunks LIMIT 1")
    cycle.run_sql(store, chunk, document=document)
    before = cycle.rows_of(store)

    with pytest.raises(RefusedError, match=rf"The list {found.list_id} is not the one of now, which is \w+ with 10"):
        queue(store, found.list_id)

    assert cycle.rows_of(store) == before
    assert cycle.run_sql(store, "SELECT FROM uuid_pipeline.regenerations") == []


def test_another_statement_makes_another_list(store: Engine) -> None:
    other = cycle.spec_with(regeneration=Regeneration(statement="SELECT 1"))
    assert listed(store, other).list_id != listed(store).list_id


def test_a_statement_that_fails_for_one_document_names_it_and_queues_none(store: Engine) -> None:
    found = listed(store)
    second = found.documents[1].id
    statement = """
        -- :not_a_parameter ':nor_this' and 100 %
        INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state)
        SELECT :regeneration_id::uuid, d.document_id,
               CASE WHEN d.document_id = :bad::uuid THEN 'no state' ELSE 'queued' END
        FROM upload_pipeline.documents d WHERE d.document_id::text = :document_id
    """.replace(":bad", f"'{second}'")
    spec = cycle.spec_with(regeneration=Regeneration(statement=statement))
    before = cycle.rows_of(store)

    with pytest.raises(RefusedError, match=rf"document {second}: .*upload_jobs_state_check.*Nothing was queued"):
        queue(store, listed(store, spec).list_id, spec)

    assert cycle.rows_of(store) == before
    assert cycle.run_sql(store, "SELECT FROM uuid_pipeline.regenerations") == []


def test_what_the_statement_leaves_untouched_is_named_and_stays_on_the_list(store: Engine) -> None:
    statement = """
        UPDATE upload_pipeline.documents SET processing_status = 'queued'
        WHERE document_id = :document_id::uuid AND processing_status IS NULL AND :status::text IS NULL
    """
    spec = cycle.spec_with(regeneration=Regeneration(statement=statement))
    done = queue(store, listed(store, spec).list_id, spec)
    assert (done.documents, len(done.untouched)) == (1, 8)
    assert listed(store, spec).waiting == 8
    assert undo(store, spec) == Undone(0, (), 1)


def test_without_a_statement_there_is_a_list_only(store: Engine) -> None:
    spec = cycle.spec_with(regeneration=Regeneration())
    with pytest.raises(UsageError, match="no statement that queues a document"):
        queue(store, listed(store, spec).list_id, spec)


def test_what_the_spec_does_not_say_is_unknown(empty_store: Engine, store: Engine) -> None:
    nothing = listed(shop.build(empty_store), shop.SPEC)
    assert (nothing.waiting, len(nothing.unknown)) == (0, 2)
    assert "whether documents have chunks" in nothing.unknown[0]
    assert "whether processing failed" in nothing.unknown[1]

    unaware = listed(store, cycle.spec_with(retrieval=None, statuses=Statuses()))
    assert unaware.by_reason == {"no_chunks": 9}
    assert any("vectors" in line for line in unaware.unknown)


def test_a_parameter_that_nobody_binds_is_an_error_of_the_spec() -> None:
    text = """
    namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
    schema: shop
    entities: {thing: {table: things, key: id, identity: "{code}"}}
    regeneration: {statement: "SELECT ':fine', x::text FROM t WHERE id = :documentid"}
    """
    with pytest.raises(UsageError, match="no parameter :documentid; there are :regeneration_id, :document_id"):
        parse_spec(text, "test")

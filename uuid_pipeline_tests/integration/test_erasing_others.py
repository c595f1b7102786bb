"""Whoever is erased, what is kept of others stays as it is, and goes back with a rollback, row for row."""

import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import inventory, ledger
from uuid_pipeline.engine.privacy import erasing
from uuid_pipeline.engine.privacy.erasing import Erasure
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with()
DOCUMENTS = parse_spec(
    """
    namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
    schema: s
    entities:
      document: {table: documents, key: id, identity: "{owner}:{code}", describe: {owner: owner}}
    """,
    "documents",
)
CHUNKS = parse_spec(
    """
    namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
    schema: s
    entities:
      document: {table: documents, key: id, identity: "{owner}:{code}", describe: {owner: owner}}
      chunk: {table: chunks, key: id, parent: document, identity: "{document_id}:{n}"}
    """,
    "chunks",
)
ANN, BOB = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def erase(engine: Engine, spec: Spec, user: str) -> Erasure:
    store = cycle.bound_store(engine, spec)
    return erasing.erase(engine, store, user, erasing.look(engine, store, user).digest, "erasing run", lambda _: None)


def of(owner: str, rows: cycle.Rows) -> list[cycle.Row]:
    return [row for row in rows["documents"] if row["owner"] == owner]


NUMBERED = """
CREATE SCHEMA s;
CREATE TABLE s.documents (id {key} PRIMARY KEY, owner int NOT NULL, code text NOT NULL);
CREATE TABLE s.chunks (id {key} PRIMARY KEY, document_id {key} NOT NULL REFERENCES s.documents, n int NOT NULL,
                       version text NOT NULL DEFAULT '1');
CREATE TABLE s.jobs (job int PRIMARY KEY, document_id {key} NOT NULL REFERENCES s.documents);
"""
ALIKE = """
INSERT INTO s.documents VALUES ('1', 1, 'a'), ('2', 2, 'b'), ('3', 2, 'c');
INSERT INTO s.chunks VALUES ('1', '2', 0), ('2', '3', 0), ('3', '1', 0);
"""
TWINS = """
INSERT INTO s.documents SELECT gen_random_uuid(), o, 'c' || k
FROM generate_series(1, 2) o, generate_series(1, 2) k, generate_series(1, 2);
INSERT INTO s.chunks SELECT gen_random_uuid(), id, n FROM s.documents, generate_series(0, 2) n;
INSERT INTO s.jobs SELECT row_number() OVER (), id FROM s.documents;
"""


@pytest.mark.parametrize(("key", "rows"), [("text", ALIKE), ("uuid", TWINS)], ids=["keys alike", "users are numbers"])
def test_short_ids_are_those_of_their_own_entity_or_owner_only(empty_store: Engine, key: str, rows: str) -> None:
    cycle.run_sql(empty_store, NUMBERED.format(key=key))
    cycle.run_sql(empty_store, rows)
    before = cycle.rows_of(empty_store, "s")
    cycle.run_all(empty_store, CHUNKS)

    erase(empty_store, CHUNKS, "1")
    cycle.roll_back(empty_store, CHUNKS)

    after = cycle.rows_of(empty_store, "s")
    theirs = {str(row["id"]) for row in of("2", before)}
    assert of("2", after) == of("2", before)
    for table in ("chunks", "jobs"):
        kept = [row for row in before[table] if str(row["document_id"]) in theirs]
        assert [row for row in after[table] if str(row["document_id"]) in theirs] == kept


NAMING = """
CREATE SCHEMA s;
CREATE TABLE s.documents (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner uuid NOT NULL, code text NOT NULL,
                          reviewed_by uuid, note text, shared uuid[], meta jsonb);
"""
NAMED = """
INSERT INTO s.documents (owner, code, reviewed_by, note, shared, meta)
SELECT o, 'c', %(ann)s::uuid, 'reviewed by ' || %(ann)s, ARRAY[%(ann)s::uuid],
       jsonb_build_object('members', jsonb_build_array(jsonb_build_object('user', %(ann)s::text, 'may', 'edit')))
FROM unnest(ARRAY[%(ann)s, %(bob)s]::uuid[]) o, generate_series(1, 2)
"""


def test_anothers_archived_row_that_names_the_user_stays_as_it_is(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, NAMING)
    cycle.run_sql(empty_store, NAMED, ann=ANN, bob=BOB)
    before = cycle.rows_of(empty_store, "s")
    cycle.run_all(empty_store, DOCUMENTS)

    done = erase(empty_store, DOCUMENTS, ANN)
    cycle.roll_back(empty_store, DOCUMENTS)

    assert [count for name, count in done.deleted.items() if name.startswith("archive_")] == [1]
    assert of(BOB, cycle.rows_of(empty_store, "s")) == of(BOB, before)


HANGING = """
CREATE SCHEMA s;
CREATE TABLE s.documents (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner text NOT NULL, code text NOT NULL);
CREATE TABLE s.jobs (job int PRIMARY KEY, document_id uuid NOT NULL UNIQUE REFERENCES s.documents);
CREATE TABLE s.events (event int PRIMARY KEY, job int NOT NULL REFERENCES s.jobs ON DELETE CASCADE, note text);
INSERT INTO s.documents (owner, code) SELECT o, 'c' FROM unnest(ARRAY['ann', 'bob']) o, generate_series(1, 2);
INSERT INTO s.jobs SELECT row_number() OVER (), id FROM s.documents;
INSERT INTO s.events SELECT job * 10, job, 'secret of ' || owner FROM s.jobs JOIN s.documents d ON d.id = document_id;
"""


def test_what_was_archived_along_by_a_key_that_holds_no_id_goes_with_its_user(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, HANGING)
    before = cycle.rows_of(empty_store, "s")
    cycle.run_all(empty_store, DOCUMENTS)
    [archive] = [name for name in cycle.rows_of(empty_store, "uuid_pipeline") if name.startswith("archive_s_events")]
    notes = f"SELECT note FROM uuid_pipeline.{archive} ORDER BY 1"  # noqa: S608
    assert cycle.run_sql(empty_store, notes) == [("secret of ann",), ("secret of bob",)]

    erase(empty_store, DOCUMENTS, "ann")

    assert cycle.run_sql(empty_store, notes) == [("secret of bob",)]
    cycle.roll_back(empty_store, DOCUMENTS)
    after = cycle.rows_of(empty_store, "s")
    bobs = [row for row in before["events"] if row["note"] == "secret of bob"]
    assert [row for row in after["events"] if row["note"] == "secret of bob"] == bobs
    assert of("bob", after) == of("bob", before)


JOB = """
INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (gen_random_uuid(), %(id)s, 'queued')
RETURNING document_id::text
"""


@pytest.mark.begins("migrated")
def test_documents_that_were_given_to_another_since_still_resolve_and_go_back(
    incident: Engine, before: cycle.Rows
) -> None:
    giver, taker = sorted({str(row["user_id"]) for row in before["documents"]})[:2]
    olds = [str(row["document_id"]) for row in before["documents"] if row["user_id"] == giver]
    given = "UPDATE upload_pipeline.documents SET user_id = %(taker)s WHERE user_id = %(giver)s"
    cycle.run_sql(incident, given, giver=giver, taker=taker)

    done = erase(incident, SPEC, giver)

    assert done.documents == 0
    for old in olds:
        assert cycle.run_sql(incident, JOB, id=old) == [(cycle.targets(before)[old],)]
    # And yet nothing of the giver is left: natural keys begin with the owner.
    left = "SELECT count(*) FROM uuid_pipeline.id_map_document WHERE natural_key LIKE %(giver)s || '%%'"
    assert cycle.run_sql(incident, left, giver=giver) == [(0,)]
    cycle.roll_back(incident, SPEC)
    now = "SELECT document_id::text FROM upload_pipeline.documents WHERE document_id = ANY(%(olds)s::uuid[])"
    assert sorted(row[0] for row in cycle.run_sql(incident, now, olds=olds)) == sorted(olds)


def test_an_id_that_was_one_users_and_then_anothers_joins_them_not(empty_store: Engine) -> None:
    cycle.run_sql(
        empty_store,
        """CREATE SCHEMA s;
           CREATE TABLE s.documents (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner text, code text);
           INSERT INTO s.documents (owner, code) VALUES ('ann', 'k')""",
    )
    cycle.run_all(empty_store, DOCUMENTS)
    # Ann's document becomes bob's, and is called otherwise; she uploads it again, twice, under its former id.
    cycle.run_sql(empty_store, "UPDATE s.documents SET owner = 'bob'")
    cycle.run_all(empty_store, DOCUMENTS)
    cycle.run_sql(empty_store, "INSERT INTO s.documents (owner, code) VALUES ('ann', 'k'), ('ann', 'k')")
    before = cycle.rows_of(empty_store, "s")
    cycle.run_all(empty_store, DOCUMENTS)

    done = erase(empty_store, DOCUMENTS, "bob")

    assert not any(name.startswith("archive_") for name in done.deleted)
    cycle.undo(empty_store)
    assert of("ann", cycle.rows_of(empty_store, "s")) == of("ann", before)


@pytest.mark.begins("migrated")
def test_an_id_in_capitals_is_the_same_and_one_that_is_none_is_refused(incident: Engine, before: cycle.Rows) -> None:
    user = str(before["documents"][0]["user_id"])
    store = cycle.bound_store(incident, SPEC)
    assert erasing.look(incident, store, user.upper()) == erasing.look(incident, store, user)
    with pytest.raises(UsageError, match="user_id is uuid, and the given id is none"):
        erasing.look(incident, store, "erika")
    assert not erasing.look(incident, store, str(uuid.uuid4())).found


@pytest.mark.begins("migrated")
def test_the_ledger_forgets_by_which_ids_other_places_are_found_only_once_they_are_cleared(
    incident: Engine, before: cycle.Rows
) -> None:
    user = str(before["documents"][0]["user_id"])
    store = cycle.bound_store(incident, SPEC)
    seen = erasing.look(incident, store, user)

    def die(found: Erasure) -> None:
        assert found == seen
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erasing.erase(incident, store, user, seen.digest, "erasing run", die)

    assert erasing.look(incident, store, user) == seen


def test_while_an_inventory_is_taken_nobody_is_erased(incident: Engine, other: Engine) -> None:
    user = str(cycle.rows_of(incident)["documents"][0]["user_id"])
    cycle.run_all(incident, SPEC)
    number = cycle.newest_execution(incident).assessment_no
    with incident.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        store = cycle.bound(connection, SPEC)
        sweeps = ledger.begin_assessment(connection, "planning", "", "", {})
        assert sweeps > number
        inventory.take(connection, store, sweeps)
        with pytest.raises(RefusedError, match="an inventory is being taken"):
            erase(other, SPEC, user)
        connection.rollback()
    assert erase(other, SPEC, user).found

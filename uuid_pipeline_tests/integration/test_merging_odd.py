"""Merging where keys have several columns, clusters wait, and rows are left without a counterpart."""

import re
import uuid

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import ProgrammingError

from uuid_pipeline.engine import duplicates, ledger, migration, profile, rollback
from uuid_pipeline.engine.privacy import erasing
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle

NAMESPACE = uuid.UUID("a1111111-2222-4333-8444-555555555555")
ENTITIES = """
namespace: a1111111-2222-4333-8444-555555555555
schema: app
backup: none
waves: {canary: 3, recent: 6, remaining: 12}
entities:
  document: {table: documents, key: id, identity: "{owner}:{sha}", describe: {owner: owner}, busy: "busy"}
"""
CHUNKS = (
    '  chunk: {table: chunks, key: id, parent: document, identity: "{document_id}:{ver}:{ord}", merge_as_set: [ver]}\n'
)
DOCUMENTS = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false);
"""


def built(engine: Engine, statements: str) -> Engine:
    for statement in statements.strip().rstrip(";").split(";\n"):
        cycle.run_sql(engine, statement.replace("%", "%%"))
    return engine


def spec_of(*lines: str, batch_rows: int = 5000) -> Spec:
    return parse_spec("".join([ENTITIES, *lines, f"batch_rows: {batch_rows}\n"]), "app.yaml")


def owner_in(tier: str, store: Engine, new_role: NewRole) -> str:
    """The tables' owner, a role that has this tier."""
    role = new_role("BYPASSRLS" if tier == "O" else "SUPERUSER")
    cycle.make_owner(store, role, "app")
    return role


def target(text: str) -> str:
    return str(uuid.uuid5(NAMESPACE, text))


# The second document's set v1 is the smaller one: its chunk 7 goes, and no chunk of the survivor's is like it.
VECTORS = (
    DOCUMENTS  # noqa: S608
    + """
CREATE TABLE app.chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, ver text, ord int,
                         UNIQUE (document_id, ver, ord));
CREATE TABLE app.vecs (vid int PRIMARY KEY, document_id uuid NOT NULL, ver text NOT NULL, ord int NOT NULL,
                       FOREIGN KEY (document_id, ver, ord) REFERENCES app.chunks (document_id, ver, ord));
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'u', 'k'),
                                 ('bbbbbbbb-0000-4000-8000-000000000001', 'u', 'k');
INSERT INTO app.chunks
SELECT md5(d || v || o)::uuid, (d || '-0000-4000-8000-000000000001')::uuid, v, o
FROM (VALUES ('aaaaaaaa', 'v1', 0), ('aaaaaaaa', 'v1', 1), ('aaaaaaaa', 'v1', 2), ('bbbbbbbb', 'v1', 1),
             ('bbbbbbbb', 'v1', 7), ('bbbbbbbb', 'v2', 1)) c (d, v, o);
INSERT INTO app.vecs SELECT row_number() OVER (ORDER BY id), document_id, ver, ord FROM app.chunks;
"""
)


def vectors_are_right(engine: Engine, store: Engine) -> None:
    before = cycle.rows_of(store, "app")
    spec = spec_of(CHUNKS)

    cycle.run_all(engine, spec)

    after = cycle.rows_of(store, "app")
    chunks = {(row["document_id"], row["ver"], row["ord"]) for row in after["chunks"]}
    assert {(row["document_id"], row["ver"], row["ord"]) for row in after["vecs"]} <= chunks
    assert {row["document_id"] for row in after["vecs"]} == {target("u:k")}
    archived = [rows for name, rows in cycle.rows_of(store, "uuid_pipeline").items() if "archive_app_vecs" in name]
    assert len(after["vecs"]) + sum(map(len, archived)) == len(before["vecs"])
    assert ("v1", "7") in {(row["ver"], row["ord"]) for row in archived[0]}
    cycle.roll_back(engine, spec)
    assert cycle.rows_of(store, "app") == before


def test_a_row_whose_key_of_several_columns_has_no_counterpart_goes_to_the_archive(empty_store: Engine) -> None:
    vectors_are_right(built(empty_store, VECTORS), empty_store)


def test_where_foreign_keys_are_checked_such_a_merge_passes_too(
    empty_store: Engine, empty_url: str, new_role: NewRole
) -> None:
    built(empty_store, VECTORS)
    role = new_role("BYPASSRLS")
    cycle.make_owner(empty_store, role, "app")
    with opened(as_role(empty_url, role)) as owner:
        vectors_are_right(owner, empty_store)


def test_a_key_of_several_columns_that_dangles_turns_the_whole_stores_gate_red(empty_store: Engine) -> None:
    built(empty_store, VECTORS)
    spec = spec_of(CHUNKS)
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    cycle.migrate_all(empty_store, spec, execution)
    with cycle.session(empty_store) as somebody:
        somebody.execute("SET session_replication_role = replica")
        somebody.execute("UPDATE app.vecs SET ord = 99 WHERE vid = 1")

    red = {gate.gate: gate.finding for gate in cycle.validate(empty_store) if not gate.passed}

    assert red["whole_no_dangling_reference"] == "dangling: vecs.(document_id, ver, ord) 1"


JOBS = (
    DOCUMENTS  # noqa: S608
    + """
CREATE TABLE app.jobs (jid int PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, state text);
INSERT INTO app.documents SELECT md5('d' || g)::uuid, 'u', 'k' || g / 2, g / 2 = 5 FROM generate_series(0, 39) g;
"""
)


@pytest.mark.parametrize("batch_rows", [1, 10], ids=["alone in its batch", "beside others"])
@pytest.mark.parametrize("right", ["none", "the survivor", "the other"])
def test_a_cluster_that_waited_is_merged_when_it_is_taken_up_and_comes_back(
    empty_store: Engine, monkeypatch: pytest.MonkeyPatch, batch_rows: int, right: str
) -> None:
    """``right``: which of its two rows has the target id already; with nothing else known, the smaller id survives."""
    # Who is busy here stays so until we say otherwise.
    monkeypatch.setattr(migration, "SWEEP_RETAKE_SECONDS", (0.01,))
    built(empty_store, JOBS)
    chosen = {"the survivor": "min", "the other": "max"}.get(right)
    if chosen:
        k5 = f"(SELECT {chosen}(id::text)::uuid FROM app.documents WHERE sha = 'k5')"  # noqa: S608
        others = "ffffffff" if right == "the survivor" else "00000000"
        cycle.run_sql(empty_store, f"UPDATE app.documents SET id = %(id)s::uuid WHERE id = {k5}", id=target("u:k5"))  # noqa: S608
        cycle.run_sql(
            empty_store,
            "UPDATE app.documents SET id = %(other)s::uuid WHERE sha = 'k5' AND id <> %(id)s::uuid",
            id=target("u:k5"),
            other=f"{others}-0000-4000-8000-000000000001",
        )
    cycle.run_sql(
        empty_store, "INSERT INTO app.jobs SELECT row_number() OVER (ORDER BY sha, id), id, 's' FROM app.documents"
    )
    spec = spec_of(batch_rows=batch_rows)
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    cycle.migrate_all(empty_store, spec, execution)
    assert cycle.run_sql(empty_store, "SELECT DISTINCT reason FROM uuid_pipeline.unmoved") == [("busy",)]
    cycle.run_sql(empty_store, "UPDATE app.documents SET busy = false")

    cycle.finish(empty_store, spec, execution)

    after = cycle.rows_of(empty_store, "app")
    assert sorted(str(row["id"]) for row in after["documents"]) == sorted(target(f"u:k{n}") for n in range(20))
    assert {row["document_id"] for row in after["jobs"]} == {row["id"] for row in after["documents"]}
    cycle.roll_back(empty_store, spec)
    ids = {row["id"] for row in cycle.rows_of(empty_store, "app")["documents"]}
    assert len(ids) == 40
    assert {row["document_id"] for row in cycle.rows_of(empty_store, "app")["jobs"]} == ids


NOTES = (
    VECTORS  # noqa: S608
    + """
CREATE TABLE app.notes (nid int PRIMARY KEY, payload jsonb);
INSERT INTO app.notes SELECT 1, jsonb_build_object('chunk', id) FROM app.chunks WHERE ord = 7;
"""
)


# Of the smaller set two rows have no counterpart: of one an id stands in JSON, of the row below the other in an array.
NOTES_BELOW = (
    VECTORS  # noqa: S608
    + """
CREATE TABLE app.lines (id uuid PRIMARY KEY, chunk_id uuid NOT NULL REFERENCES app.chunks, n int NOT NULL);
INSERT INTO app.lines SELECT gen_random_uuid(), id, 1 FROM app.chunks;
CREATE TABLE app.notes (nid int PRIMARY KEY, payload jsonb, lines uuid[]);
INSERT INTO app.notes SELECT 1, jsonb_build_object('chunk', c.id), ARRAY[l.id]
FROM app.chunks c JOIN app.lines l ON l.chunk_id = c.id WHERE c.ord = 7;
INSERT INTO app.notes SELECT 2, jsonb_build_object('chunk', min(id::text)) FROM app.chunks WHERE ord = 0;
"""
)
LINES = '  line: {table: lines, key: id, parent: chunk, identity: "{chunk_id}:{n}"}\n'


@pytest.mark.parametrize("keep", [True, False])
def test_an_id_of_a_row_without_counterpart_may_stay_in_json_and_arrays_where_the_spec_keeps_orphans(
    empty_store: Engine, keep: bool
) -> None:
    """And nothing moves before it does."""
    built(empty_store, NOTES_BELOW)
    orphans = ", orphans: keep" if keep else ""
    spec = spec_of(
        CHUNKS + LINES,
        f"soft_references:\n  - {{table: notes, column: payload, entity: chunk, path: chunk{orphans}}}\n"
        f"  - {{table: notes, column: lines, entity: line{orphans}}}\n",
    )
    if not keep:
        plan = cycle.assess_and_plan(empty_store, spec)
        with empty_store.begin() as connection:
            store = cycle.bound(connection, spec)
            red = duplicates.conflicts_resolvable(connection, store, plan.assessment_no)
        assert "1 rows of notes.payload.chunk hold ids of rows that merging archives with nothing" in red.finding
        assert "1 rows of notes.lines hold ids" in red.finding
        with pytest.raises(RefusedError, match="conflicts_resolvable"):
            cycle.approve(empty_store, spec, plan.plan_id)
        return
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    [wave, *_] = cycle.waves_of(empty_store, execution)
    cycle.migrate(empty_store, spec, wave)

    assert [g.gate for g in cycle.check_wave(empty_store, spec, wave) if not g.passed] == []


def test_an_array_of_anothers_archived_row_stays_when_a_user_whose_ids_stand_in_it_is_erased(
    empty_store: Engine,
) -> None:
    built(
        empty_store,
        DOCUMENTS
        + """
ALTER TABLE app.documents ADD COLUMN related uuid[];
INSERT INTO app.documents (id, owner, sha, related) VALUES
    ('aaaaaaaa-0000-4000-8000-000000000001', 'u1', 'k', NULL),
    ('bbbbbbbb-0000-4000-8000-000000000001', 'u2', 'k', '{aaaaaaaa-0000-4000-8000-000000000001}'),
    ('bbbbbbbb-0000-4000-8000-000000000002', 'u2', 'k', '{aaaaaaaa-0000-4000-8000-000000000001}');
""",
    )
    spec = spec_of("soft_references:\n  - {table: documents, column: related, entity: document}\n")
    cycle.run_all(empty_store, spec)
    store = cycle.bound_store(empty_store, spec)

    erasing.erase(
        empty_store, store, "u1", erasing.look(empty_store, store, "u1").digest, "erasing run", lambda _: None
    )

    [archived] = [rows for name, rows in cycle.rows_of(empty_store, "uuid_pipeline").items() if "archive_app" in name]
    assert [row["related"] for row in archived] == ["{aaaaaaaa-0000-4000-8000-000000000001}"]


FOLDERS = """
CREATE SCHEMA app;
CREATE TABLE app.folders (fid int PRIMARY KEY, name text);
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false,
                            slug text UNIQUE, folder int NOT NULL REFERENCES app.folders);
CREATE TABLE app.covers (document_id uuid PRIMARY KEY REFERENCES app.documents, folder int REFERENCES app.folders);
CREATE TABLE app.notes (n int PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents);
INSERT INTO app.folders SELECT n, 'folder ' || n FROM generate_series(1, 9) n;
INSERT INTO app.documents SELECT md5('d' || n)::uuid, 'u', 'k' || (n + 1) / 2, false, 'slug ' || n, n
    FROM generate_series(1, 6) n;
INSERT INTO app.notes SELECT row_number() OVER (ORDER BY slug), id FROM app.documents;
"""
DELETED = "DELETE FROM app.folders WHERE fid = %(folder)s"
TAKEN = """
INSERT INTO app.documents VALUES (gen_random_uuid(), 'u', 'something new', false, 'slug ' || %(folder)s, 9)
"""


def loser_of(store: Engine, sha: str) -> str:
    """The folder of the document that was merged away, of two with this hash."""
    name = next(name for name in cycle.rows_of(store, "uuid_pipeline") if "archive_app_documents" in name)
    [(folder,)] = cycle.run_sql(store, f"SELECT folder::text FROM uuid_pipeline.{name} WHERE sha = %(sha)s", sha=sha)  # noqa: S608
    return str(folder)


def as_it_was_but_for(before: cycle.Rows, after: cycle.Rows, folder: str) -> None:
    """All as before, but that one loser stays merged: its notes with its survivor."""
    [gone] = [row for row in before["documents"] if row["folder"] == folder]
    [twin] = [row for row in before["documents"] if row["sha"] == gone["sha"] and row != gone]
    kept = [row for row in after["documents"] if row["sha"] != "something new"]
    assert kept == [row for row in before["documents"] if row != gone]
    turned = [
        {**row, "document_id": twin["id"]} if row["document_id"] == gone["id"] else row for row in before["notes"]
    ]
    assert after["notes"] == cycle.ordered(turned)


@pytest.mark.parametrize("tier", ["R", "O"])
@pytest.mark.parametrize("deed", [DELETED, TAKEN], ids=["what it referred to was deleted", "its unique key was taken"])
def test_a_loser_that_has_no_place_any_more_stays_archived_and_the_others_come_back(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str, deed: str
) -> None:
    built(empty_store, FOLDERS)
    role = owner_in(tier, empty_store, new_role)
    before = cycle.rows_of(empty_store, "app")
    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, spec_of())
        folder = loser_of(empty_store, "k2")
        cycle.run_sql(empty_store, deed, folder=folder)

        waves = [run.wave for run in cycle.roll_back(owner, spec_of())]
        with owner.begin() as connection:
            store = cycle.bound(connection, spec_of())
            assert rollback.left_in_archive(connection, store, waves) == {"app.documents": 1}

    as_it_was_but_for(before, cycle.rows_of(empty_store, "app"), folder)


def test_what_merged_rows_refer_to_and_nothing_moves_in_need_not_be_readable(
    empty_store: Engine, empty_url: str, new_role: NewRole
) -> None:
    built(empty_store, FOLDERS)
    role = owner_in("O", empty_store, new_role)
    cycle.run_sql(empty_store, "ALTER TABLE app.folders OWNER TO postgres")
    before = cycle.rows_of(empty_store, "app")
    with opened(as_role(empty_url, role)) as owner:
        with pytest.raises(ProgrammingError, match="permission denied for table folders"):
            cycle.run_sql(owner, "SELECT FROM app.folders")

        cycle.run_all(owner, spec_of())
        assert len(cycle.rows_of(empty_store, "app")["documents"]) == 3
        cycle.roll_back(owner, spec_of())

    assert cycle.rows_of(empty_store, "app") == before


@pytest.mark.parametrize("tier", ["R", "O"])
def test_a_row_beside_a_loser_stays_archived_where_what_it_referred_to_was_deleted(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    built(empty_store, FOLDERS)
    cycle.run_sql(empty_store, "INSERT INTO app.covers SELECT id, 7 FROM app.documents WHERE folder < 3")
    role = owner_in(tier, empty_store, new_role)
    before = cycle.rows_of(empty_store, "app")
    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, spec_of())
        assert len(cycle.rows_of(empty_store, "app")["covers"]) == 1
        cycle.run_sql(empty_store, "UPDATE app.covers SET folder = NULL")
        cycle.run_sql(empty_store, DELETED, folder=7)

        cycle.roll_back(owner, spec_of())

    after = cycle.rows_of(empty_store, "app")
    assert (after["documents"], after["notes"]) == (before["documents"], before["notes"])
    assert [row["folder"] for row in after["covers"]] == [None]


# The loser's job meets the unique key of the survivor's; others refer to it by its number, one of them a document that
# is no duplicate.
CHAIN = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false);
CREATE TABLE app.jobs (jid int PRIMARY KEY, document_id uuid NOT NULL UNIQUE REFERENCES app.documents,
                       after_job int REFERENCES app.jobs {action}, body text);
CREATE TABLE app.events (eid int PRIMARY KEY, jid int REFERENCES app.jobs {action}, document_id uuid NOT NULL
                         REFERENCES app.documents, body text);
CREATE TABLE app.logs (line int PRIMARY KEY, jid int REFERENCES app.jobs {action}, body text);
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'u', 'k'),
                                 ('aaaaaaaa-0000-4000-8000-000000000002', 'u', 'k'),
                                 ('aaaaaaaa-0000-4000-8000-000000000003', 'u', 'other');
INSERT INTO app.jobs SELECT n, ('aaaaaaaa-0000-4000-8000-00000000000' || d)::uuid, nullif(n - 1, 0), 'job ' || n
    FROM (VALUES (1, 2), (2, 1), (3, 3)) j (n, d);
INSERT INTO app.events SELECT jid, jid, document_id, 'event ' || jid FROM app.jobs;
INSERT INTO app.logs SELECT jid, jid, 'line ' || jid FROM app.jobs
"""


def emptied_rows_are_right(engine: Engine, store: Engine) -> None:
    before = cycle.rows_of(store, "app")

    cycle.run_all(engine, spec_of())

    after = cycle.rows_of(store, "app")
    assert [(row["body"], row["after_job"]) for row in after["jobs"]] == [("job 2", None), ("job 3", "2")]
    assert [(row["body"], row["jid"]) for row in after["events"]] == [
        ("event 1", None),
        ("event 2", "2"),
        ("event 3", "3"),
    ]
    assert [(row["body"], row["jid"]) for row in after["logs"]] == [("line 1", None), ("line 2", "2"), ("line 3", "3")]
    cycle.roll_back(engine, spec_of())
    assert cycle.rows_of(store, "app") == before


@pytest.mark.parametrize("tier", ["R", "O"])
@pytest.mark.parametrize("action", ["", "ON DELETE SET NULL", "ON DELETE RESTRICT"])
def test_what_may_lose_its_reference_to_an_archived_row_stays_and_gets_it_back(
    empty_store: Engine, empty_url: str, new_role: NewRole, action: str, tier: str
) -> None:
    built(empty_store, CHAIN.format(action=action))
    role = owner_in(tier, empty_store, new_role)
    with opened(as_role(empty_url, role)) as owner:
        emptied_rows_are_right(owner, empty_store)


def test_what_the_applications_own_delete_would_take_along_is_archived_with_it(empty_store: Engine) -> None:
    built(empty_store, CHAIN.format(action="ON DELETE CASCADE"))
    before = cycle.rows_of(empty_store, "app")

    cycle.run_all(empty_store, spec_of())

    assert cycle.rows_of(empty_store, "app")["jobs"] == []
    cycle.roll_back(empty_store, spec_of())
    assert cycle.rows_of(empty_store, "app") == before


def test_what_the_application_wrote_into_an_emptied_reference_stays(empty_store: Engine) -> None:
    built(empty_store, CHAIN.format(action=""))
    before = cycle.rows_of(empty_store, "app")
    cycle.run_all(empty_store, spec_of())
    cycle.run_sql(empty_store, "UPDATE app.events SET jid = 3 WHERE eid = 1")

    cycle.roll_back(empty_store, spec_of())

    after = cycle.rows_of(empty_store, "app")
    assert [row["jid"] for row in after["events"]] == ["3", "2", "3"]
    assert (after["jobs"], after["logs"]) == (before["jobs"], before["logs"])


def test_the_rights_to_archive_and_to_empty_are_asked_for_and_suffice(
    empty_store: Engine, empty_url: str, new_role: NewRole
) -> None:
    built(empty_store, CHAIN.format(action=""))
    role = new_role("BYPASSRLS")
    [(database,)] = cycle.run_sql(empty_store, "SELECT current_database()")
    cycle.run_sql(empty_store, f'GRANT CREATE, TEMPORARY ON DATABASE "{database}" TO "{role}"')
    cycle.run_sql(empty_store, f'GRANT USAGE ON SCHEMA app TO "{role}"')
    cycle.run_sql(empty_store, f'GRANT SELECT ON ALL TABLES IN SCHEMA app TO "{role}"')
    with opened(as_role(empty_url, role)) as poor, poor.begin() as connection:
        store = cycle.bound(connection, spec_of())
        asked = profile.missing_merge_rights(connection, store)
        others = profile.missing_rights(connection, store)

    assert {(right.right, right.object.split()[1]) for right in asked} == {
        *[(right, f"app.{table}") for right in ("DELETE", "INSERT") for table in ("documents", "jobs")],
        *[("UPDATE", f"app.{table}") for table in ("jobs", "events", "logs")],
    }
    for right in (*asked, *others):
        cycle.run_sql(empty_store, right.remedy)
    with opened(as_role(empty_url, role)) as poor:
        emptied_rows_are_right(poor, empty_store)


@pytest.mark.parametrize("tier", ["R", "O"])
def test_children_whose_unique_key_is_deferrable_come_back_too(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    own = "UNIQUE (document_id, ver, ord)"
    deferrable = VECTORS.replace(f"{own});", f"{own}, UNIQUE (ver, ord, id) DEFERRABLE);")
    assert deferrable != VECTORS
    built(empty_store, deferrable)
    role = owner_in(tier, empty_store, new_role)
    with opened(as_role(empty_url, role)) as owner:
        vectors_are_right(owner, empty_store)


# Each newer twin refers to the newer twin of the row before, the first to a row that the application then deletes.
ONE_AFTER_THE_OTHER = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false,
                            prev uuid REFERENCES app.documents);
CREATE TABLE app.notes (n int PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents);
INSERT INTO app.documents VALUES ('00000000-0000-4000-8000-000000000009', 'u', 'old', false, NULL);
INSERT INTO app.documents
SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, 'u', 'k' || (n + 1) / 2, false,
       CASE WHEN n % 2 = 0 THEN ('00000000-0000-4000-8000-00000000000' || CASE n WHEN 2 THEN 9 ELSE n - 2 END)::uuid END
FROM generate_series(1, 6) n;
INSERT INTO app.notes SELECT row_number() OVER (ORDER BY id), id FROM app.documents WHERE sha <> 'old'
"""


@pytest.mark.parametrize("batch_rows", [1, 5000])
def test_what_refers_to_a_loser_that_stays_archived_stays_archived_too(empty_store: Engine, batch_rows: int) -> None:
    built(empty_store, ONE_AFTER_THE_OTHER)
    cycle.run_all(empty_store, spec_of(batch_rows=batch_rows))
    cycle.run_sql(empty_store, "DELETE FROM app.documents WHERE sha = 'old'")

    cycle.roll_back(empty_store, spec_of(batch_rows=batch_rows))

    after = cycle.rows_of(empty_store, "app")
    there = {row["id"] for row in after["documents"]}
    assert {row["prev"] for row in after["documents"]} <= there | {None}
    assert {row["document_id"] for row in after["notes"]} <= there
    assert len(after["notes"]) == 6


# Nodes hang on each other by their own number, across documents: 3 on 2, 2 on 1, which the application then deletes.
NODES = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false);
CREATE TABLE app.nodes (no int PRIMARY KEY, document_id uuid UNIQUE REFERENCES app.documents,
                        up int REFERENCES app.nodes ON DELETE CASCADE);
INSERT INTO app.documents SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, 'u', 'k' || (n + 1) / 2
    FROM generate_series(1, 5) n;
INSERT INTO app.nodes VALUES (1, '00000000-0000-4000-8000-000000000005', NULL),
    (10, '00000000-0000-4000-8000-000000000001', NULL), (11, '00000000-0000-4000-8000-000000000003', NULL)
"""
HUNG = {
    "in one batch": "(2, {2}, 1), (3, NULL, 2), (4, NULL, 3)",
    "in a later one": "(2, {4}, 1), (3, {2}, 2)",
    "in an earlier one": "(2, {2}, 1), (3, {4}, 2)",
}


@pytest.mark.parametrize("deletes", [False, True], ids=["untouched", "the first deleted"])
@pytest.mark.parametrize("hung", HUNG)
def test_archived_rows_that_hang_on_each_other_come_back_or_stay_together(
    empty_store: Engine, hung: str, deletes: bool
) -> None:
    built(empty_store, NODES)
    ids = {n: f"'00000000-0000-4000-8000-00000000000{n}'" for n in range(1, 6)}
    cycle.run_sql(empty_store, f"INSERT INTO app.nodes VALUES {HUNG[hung].format(None, *ids.values())}")  # noqa: S608
    before = cycle.rows_of(empty_store, "app")
    spec = spec_of(batch_rows=1)
    cycle.run_all(empty_store, spec)
    if deletes:
        cycle.run_sql(empty_store, "DELETE FROM app.nodes WHERE no = 1")

    cycle.roll_back(empty_store, spec)

    after = cycle.rows_of(empty_store, "app")
    gone = {"1", "2", "3", "4"} if deletes else set()
    assert after["nodes"] == [row for row in before["nodes"] if row["no"] not in gone]
    assert after["documents"] == before["documents"]


# The newer twin's mark meets the unique key of the older one's; it refers to a page of a document that is no duplicate.
MARKS = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false);
CREATE TABLE app.pages (no int PRIMARY KEY, document_id uuid REFERENCES app.documents, w int, UNIQUE (document_id, w));
CREATE TABLE app.marks (no int PRIMARY KEY, document_id uuid UNIQUE REFERENCES app.documents, page_of uuid NOT NULL,
                        w int NOT NULL, FOREIGN KEY (page_of, w) REFERENCES app.pages (document_id, w));
INSERT INTO app.documents
SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, 'u', CASE n WHEN 3 THEN 'z' ELSE 'k' END
FROM generate_series(1, 3) n;
INSERT INTO app.pages VALUES (1, '00000000-0000-4000-8000-000000000003', 7);
INSERT INTO app.marks SELECT n, ('00000000-0000-4000-8000-00000000000' || n)::uuid,
    '00000000-0000-4000-8000-000000000003', 7 FROM generate_series(1, 2) n
"""


@pytest.mark.parametrize("tier", ["R", "O"])
@pytest.mark.parametrize("deed", [None, "UPDATE app.pages SET w = 8", "DELETE FROM app.pages"])
def test_a_row_whose_key_of_several_columns_finds_nothing_any_more_stays_archived(
    empty_store: Engine, empty_url: str, new_role: NewRole, deed: str | None, tier: str
) -> None:
    built(empty_store, MARKS)
    role = owner_in(tier, empty_store, new_role)
    before = cycle.rows_of(empty_store, "app")
    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, spec_of())
        assert len(cycle.rows_of(empty_store, "app")["marks"]) == 1
        if deed:
            cycle.run_sql(empty_store, "DELETE FROM app.marks")
            cycle.run_sql(empty_store, deed)

        cycle.roll_back(owner, spec_of())

    after = cycle.rows_of(empty_store, "app")
    assert (after["documents"], after["marks"]) == (before["documents"], [] if deed else before["marks"])


# Leaves of a loser follow each other; a row of the application's takes the slug of the first.
LEAVES = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false);
CREATE TABLE app.chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, ver text, ord int,
                         slug text UNIQUE, prev uuid REFERENCES app.chunks, UNIQUE (document_id, ver, ord));
INSERT INTO app.documents
SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, 'u', 'k' FROM generate_series(1, 2) n;
INSERT INTO app.chunks
SELECT ('00000000-0000-4000-9000-0000000000' || d || o)::uuid, ('00000000-0000-4000-8000-00000000000' || d)::uuid,
       'v1', o, d || '/' || o, CASE WHEN o > 1 THEN ('00000000-0000-4000-9000-0000000000' || d || o - 1)::uuid END
FROM generate_series(1, 2) d, generate_series(1, 3) o
"""


def test_a_row_whose_unique_value_was_taken_stays_archived_with_what_refers_to_it(empty_store: Engine) -> None:
    built(empty_store, LEAVES)
    before = cycle.rows_of(empty_store, "app")
    cycle.run_all(empty_store, spec_of(CHUNKS))
    kept = {str(row["slug"]) for row in cycle.rows_of(empty_store, "app")["chunks"]}
    [taken] = {"1/1", "2/1"} - kept
    cycle.run_sql(empty_store, "UPDATE app.chunks SET slug = %(taken)s WHERE ord = 3", taken=taken)

    cycle.roll_back(empty_store, spec_of(CHUNKS))

    after = cycle.rows_of(empty_store, "app")
    assert after["documents"] == before["documents"]
    assert {str(row["slug"])[:1] for row in after["chunks"] if row["ord"] != "3"} == {min(kept)[:1]}


# Rows that refer to the newer twins of two clusters, in every form; one twin's slug is taken by a row of another
# document. Early: rows that hold the target id of a third document, which no row has yet, as well.
PAIRS = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false,
                            slug text UNIQUE);
CREATE TABLE app.pairs (n int PRIMARY KEY, a uuid REFERENCES app.documents, b uuid REFERENCES app.documents,
                        early uuid, said text, both_ids uuid[], doc jsonb);
INSERT INTO app.documents
SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, 'u', 'k' || (n + 1) / 2, false, 's' || n
FROM generate_series(1, 5) n;
INSERT INTO app.pairs
SELECT row_number() OVER (ORDER BY x, y), x.id, y.id, %s, x.id, ARRAY[x.id, y.id, x.id],
       jsonb_build_object('ids', jsonb_build_array(y.id, x.id))
FROM app.documents x, app.documents y WHERE x.sha <> y.sha
"""
IN_PAIRS = """
soft_references:
  - {table: pairs, column: early, entity: document}
  - {table: pairs, column: said, entity: document}
  - {table: pairs, column: both_ids, entity: document}
  - {table: pairs, column: doc, entity: document, path: "ids.*"}
"""


@pytest.mark.parametrize("batch_rows", [1, 5000])
@pytest.mark.parametrize("early", [False, True])
def test_a_row_that_refers_to_losers_of_two_clusters_gets_back_the_one_that_comes_back(
    empty_store: Engine, early: bool, batch_rows: int
) -> None:
    third = uuid.uuid5(NAMESPACE, "u:k3") if early else None
    built(empty_store, PAIRS % (f"'{third}'" if third else "NULL"))
    before = cycle.rows_of(empty_store, "app")
    spec = spec_of(IN_PAIRS, batch_rows=batch_rows)
    cycle.run_all(empty_store, spec)
    there = {row["slug"] for row in cycle.rows_of(empty_store, "app")["documents"]}
    survivor, loser = sorted(["s1", "s2"], key=lambda slug: slug not in there)
    cycle.run_sql(empty_store, "UPDATE app.documents SET slug = %(slug)s WHERE slug = 's5'", slug=loser)

    cycle.roll_back(empty_store, spec)

    id_of = {row["slug"]: str(row["id"]) for row in before["documents"]}
    stays = {id_of[loser]: id_of[survivor]}
    after = cycle.rows_of(empty_store, "app")
    assert {row["id"] for row in after["documents"]} == set(id_of.values()) - {id_of[loser]}
    assert after["pairs"] == cycle.ordered(
        [{c: v and re.sub(r"[0-9a-f-]{36}", lambda found: stays.get(found[0], found[0]), v) for c, v in row.items()}
         for row in before["pairs"]]
    )  # fmt: skip


# The survivor's set is the smaller one and goes; a note refers to its chunk 1, which the other set has not.
SETS = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false,
                            at date NOT NULL);
CREATE TABLE app.chunks (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
                         document_id uuid NOT NULL REFERENCES app.documents, ver text, ord int,
                         UNIQUE (document_id, ver, ord));
CREATE TABLE app.notes (n int PRIMARY KEY, chunk_id uuid REFERENCES app.chunks);
INSERT INTO app.documents
SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, 'u', 'k', false, date '2026-01-01' + n
FROM generate_series(1, 2) n;
INSERT INTO app.chunks (document_id, ver, ord)
SELECT ('00000000-0000-4000-8000-00000000000' || d)::uuid, 'v1', o
FROM (VALUES (1, 0), (1, 1), (2, 0), (2, 2), (2, 3)) c(d, o);
INSERT INTO app.notes
SELECT ord, id FROM app.chunks WHERE document_id = '00000000-0000-4000-8000-000000000001'
"""


@pytest.mark.parametrize("tier", ["R", "O"])
@pytest.mark.parametrize("rewritten", [False, True])
def test_a_chunk_whose_place_was_filled_stays_archived_and_nothing_refers_to_it_again(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str, rewritten: bool
) -> None:
    built(empty_store, SETS)
    oldest = ENTITIES.replace("{owner: owner}", "{owner: owner, created_at: at}, survivor: [oldest]")
    spec = parse_spec(oldest + CHUNKS, "app.yaml")
    before = cycle.rows_of(empty_store, "app")
    role = owner_in(tier, empty_store, new_role)
    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, spec)
        if rewritten:
            again = "INSERT INTO app.chunks (document_id, ver, ord) SELECT id, 'v1', 1 FROM app.documents"
            cycle.run_sql(empty_store, again)
        cycle.roll_back(owner, spec)

    after = cycle.rows_of(empty_store, "app")
    assert after["documents"] == before["documents"]
    filled = {str(row["id"]) for row in before["chunks"] if rewritten and row["ord"] == "1"}
    assert [row for row in before["chunks"] if row not in after["chunks"]] == [
        row for row in before["chunks"] if row["id"] in filled
    ]
    assert len(after["chunks"]) == len(before["chunks"])
    assert after["notes"] == cycle.ordered(
        [{**row, "chunk_id": None if row["chunk_id"] in filled else row["chunk_id"]} for row in before["notes"]]
    )


# Arrays and JSON that hold ids of two clusters and of a document by itself; no foreign key keeps anything.
TRIPLES = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false, name text);
CREATE TABLE app.triples (n serial PRIMARY KEY, ids uuid[], doc jsonb);
INSERT INTO app.documents
SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, 'u', 'k' || (n + 1) / 2, false, 'n' || n
FROM generate_series(1, 5) n;
INSERT INTO app.triples (ids, doc)
SELECT ids, jsonb_build_object('ids', to_jsonb(ids))
FROM app.documents x, app.documents y, app.documents z, LATERAL (SELECT ARRAY[x.id, y.id, z.id] AS ids) three
WHERE (x.sha, y.sha, z.sha) = ('k1', 'k2', 'k3')
"""
IN_TRIPLES = """
soft_references:
  - {table: triples, column: ids, entity: document, orphans: keep}
  - {table: triples, column: doc, entity: document, path: "ids.*", orphans: keep}
"""


@pytest.mark.parametrize("batch_rows", [1, 5000])
@pytest.mark.parametrize("gone", ["the survivor of the first", "the survivor of the second", "the third"])
def test_what_comes_back_is_named_again_beside_ids_of_what_the_application_deleted(
    empty_store: Engine, gone: str, batch_rows: int
) -> None:
    built(empty_store, TRIPLES)
    before = cycle.rows_of(empty_store, "app")
    spec = spec_of(IN_TRIPLES, batch_rows=batch_rows)
    cycle.run_all(empty_store, spec)
    sha = {"the survivor of the first": "k1", "the survivor of the second": "k2", "the third": "k3"}[gone]
    cycle.run_sql(empty_store, "DELETE FROM app.documents WHERE sha = %(sha)s", sha=sha)

    cycle.roll_back(empty_store, spec)

    after = cycle.rows_of(empty_store, "app")
    lost = {str(row["id"]) for row in before["documents"] if row["sha"] == sha}
    assert after["documents"] == [row for row in before["documents"] if row["id"] not in lost]
    was, now = ({row["n"]: re.findall(r"[0-9a-f-]{36}", f"{row['ids']} {row['doc']}") for row in rows["triples"]}
                for rows in (before, after))  # fmt: skip
    for n, ids in was.items():
        assert [new for old, new in zip(ids, now[n], strict=True) if old not in lost] == [
            i for i in ids if i not in lost
        ]


# Either a cover or another picture: what may be NULL alone may not be for the CHECK.
PINS = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, busy bool NOT NULL DEFAULT false);
CREATE TABLE app.covers (no int PRIMARY KEY, document_id uuid UNIQUE REFERENCES app.documents);
CREATE TABLE app.pins (no int PRIMARY KEY, cover int REFERENCES app.covers, other int,
                       CHECK (num_nonnulls(cover, other) = 1));
INSERT INTO app.documents
SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, 'u', 'k' FROM generate_series(1, 2) n;
INSERT INTO app.covers SELECT n, ('00000000-0000-4000-8000-00000000000' || n)::uuid FROM generate_series(1, 2) n;
INSERT INTO app.pins SELECT n, n FROM generate_series(1, 2) n
"""


def test_a_key_that_a_check_looks_at_is_not_emptied(empty_store: Engine) -> None:
    built(empty_store, PINS)
    before = cycle.rows_of(empty_store, "app")

    cycle.run_all(empty_store, spec_of())

    assert len(cycle.rows_of(empty_store, "app")["pins"]) == 1
    cycle.roll_back(empty_store, spec_of())
    assert cycle.rows_of(empty_store, "app") == before


TAGGED = (
    DOCUMENTS
    + """
CREATE TABLE app.chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, ver text, ord int,
                         UNIQUE (document_id, ver, ord));
CREATE TABLE app.tags (chunk_id uuid NOT NULL REFERENCES app.chunks, tag text, PRIMARY KEY (chunk_id, tag));
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'u', 'k'),
                                 ('bbbbbbbb-0000-4000-8000-000000000001', 'u', 'k');
INSERT INTO app.chunks VALUES ('cccccccc-0000-4000-8000-000000000001', 'bbbbbbbb-0000-4000-8000-000000000001', 'v1', 1),
                              ('cccccccc-0000-4000-8000-000000000002', 'aaaaaaaa-0000-4000-8000-000000000001', 'v1', 2),
                              ('cccccccc-0000-4000-8000-000000000003', 'aaaaaaaa-0000-4000-8000-000000000001', 'v1', 3);
INSERT INTO app.tags VALUES ('cccccccc-0000-4000-8000-000000000001', 'red');
"""
)
SINGLY = '  chunk: {table: chunks, key: id, parent: document, identity: "{document_id}:{ver}:{ord}"}\n'


def tagged_and_approved(engine: Engine) -> tuple[cycle.Rows, Spec, ledger.Execution]:
    built(engine, TAGGED)
    before, spec = cycle.rows_of(engine, "app"), spec_of(SINGLY)
    return before, spec, cycle.approve(engine, spec, cycle.assess_and_plan(engine, spec).plan_id)


def test_what_displaces_a_planned_row_takes_its_target_id_and_its_alias_though_it_came_later(
    empty_store: Engine,
) -> None:
    before, spec, execution = tagged_and_approved(empty_store)
    # The survivor gets a chunk of its own of that natural key, as a worker that chunks it again writes one.
    own, planned = "dddddddd-0000-4000-8000-000000000001", "cccccccc-0000-4000-8000-000000000001"
    arrived = "INSERT INTO app.chunks SELECT %(own)s, min(id::text)::uuid, 'v1', 1 FROM app.documents"
    cycle.run_sql(empty_store, arrived, own=own)

    cycle.finish(empty_store, spec, execution)

    [chunk] = [row for row in cycle.rows_of(empty_store, "app")["chunks"] if row["ord"] == "1"]
    assert chunk["id"] == target(f"{target('u:k')}:v1:1")
    assert [row["chunk_id"] for row in cycle.rows_of(empty_store, "app")["tags"]] == [chunk["id"]]
    resolved = cycle.run_sql(empty_store, "SELECT uuid_pipeline.resolve_chunk(%(id)s)::text", id=planned)
    assert resolved == [(chunk["id"],)]
    cycle.run_sql(empty_store, "INSERT INTO app.tags VALUES (%(id)s, 'late')", id=planned)
    cycle.roll_back(empty_store, spec)
    after = cycle.rows_of(empty_store, "app")
    assert after["documents"] == before["documents"]
    assert {row["id"]: str(row["document_id"])[:4] for row in after["chunks"] if row["ord"] == "1"} == {
        planned: "bbbb",
        own: "aaaa",
    }
    assert {(row["chunk_id"], row["tag"]) for row in after["tags"]} == {(planned, "red"), (own, "late")}


def test_the_alias_of_a_row_that_was_renumbered_and_then_displaced_leads_to_what_stands_in_its_place(
    empty_store: Engine,
) -> None:
    before, spec, execution = tagged_and_approved(empty_store)
    planned = "cccccccc-0000-4000-8000-000000000001"
    cycle.run_sql(empty_store, "UPDATE app.chunks SET ord = 2 WHERE id = %(id)s", id=planned)

    cycle.finish(empty_store, spec, execution)

    there = target(f"{target('u:k')}:v1:2")
    assert cycle.run_sql(empty_store, "SELECT uuid_pipeline.resolve_chunk(%(id)s)::text", id=planned) == [(there,)]
    cycle.run_sql(empty_store, "INSERT INTO app.tags VALUES (%(id)s, 'late')", id=planned)
    assert {row["chunk_id"] for row in cycle.rows_of(empty_store, "app")["tags"]} == {there}
    cycle.roll_back(empty_store, spec)
    after = cycle.rows_of(empty_store, "app")
    assert [row["id"] for row in after["chunks"]] == [row["id"] for row in before["chunks"]]


# A spot names a chunk by its document and its own id; the chunk comes from a loser, and goes back below it.
SPOTS = (
    TAGGED  # noqa: S608
    + """
INSERT INTO app.documents VALUES ('eeeeeeee-0000-4000-8000-000000000001', 'u', 'other');
INSERT INTO app.chunks VALUES ('ffffffff-0000-4000-8000-000000000001', 'eeeeeeee-0000-4000-8000-000000000001', 'v1', 1);
ALTER TABLE app.chunks ADD UNIQUE (document_id, id);
CREATE TABLE app.spots (n int PRIMARY KEY, document_id uuid NOT NULL, chunk_id uuid NOT NULL,
                        FOREIGN KEY (document_id, chunk_id) REFERENCES app.chunks (document_id, id));
INSERT INTO app.spots SELECT row_number() OVER (ORDER BY id), document_id, id FROM app.chunks;
CREATE TABLE app.lines (document_id uuid NOT NULL, chunk_id uuid NOT NULL, line int, PRIMARY KEY (chunk_id, line),
                        UNIQUE (document_id, chunk_id, line),
                        FOREIGN KEY (document_id, chunk_id) REFERENCES app.chunks (document_id, id));
CREATE TABLE app.marks (n int PRIMARY KEY, document_id uuid NOT NULL, chunk_id uuid NOT NULL, line int NOT NULL,
                        FOREIGN KEY (document_id, chunk_id, line) REFERENCES app.lines (document_id, chunk_id, line));
"""
)


@pytest.mark.parametrize("tier", ["R", "O"])
def test_rows_written_since_that_name_a_chunk_with_its_document_go_back_with_the_chunk(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    built(empty_store, SPOTS)
    role = owner_in(tier, empty_store, new_role)
    before = cycle.rows_of(empty_store, "app")
    spec = spec_of(SINGLY)
    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, spec)
        theirs = {"d": "bbbbbbbb-0000-4000-8000-000000000001", "c": "cccccccc-0000-4000-8000-000000000001"}
        own = {"d": "aaaaaaaa-0000-4000-8000-000000000001", "c": "cccccccc-0000-4000-8000-000000000002"}
        # Written since, by the ids of before and by those of now.
        cycle.run_sql(empty_store, "INSERT INTO app.spots VALUES (11, %(d)s, %(c)s)", **theirs)
        cycle.run_sql(empty_store, "INSERT INTO app.spots SELECT n + 20, document_id, chunk_id FROM app.spots")
        # What was the survivor's own, or a third document's, names the chunk now; and the other way round.
        change = "UPDATE app.spots SET document_id = %(d)s, chunk_id = %(c)s WHERE n"
        cycle.run_sql(empty_store, f"{change} IN (2, 4)", **theirs)
        cycle.run_sql(empty_store, f"{change} = 1", **own)
        # And a level further down, where nothing was before.
        cycle.run_sql(empty_store, "INSERT INTO app.lines VALUES (%(d)s, %(c)s, 7)", **theirs)
        cycle.run_sql(empty_store, "INSERT INTO app.marks VALUES (1, %(d)s, %(c)s, 7)", **theirs)

        cycle.roll_back(owner, spec)

    after = cycle.rows_of(empty_store, "app")
    assert (after["documents"], after["chunks"]) == (before["documents"], before["chunks"])
    places = {row["n"]: (row["document_id"], row["chunk_id"]) for row in before["spots"]}
    assert {row["n"]: (row["document_id"], row["chunk_id"]) for row in after["spots"]} == {
        **places,
        **{str(int(str(n)) + 20): place for n, place in places.items()},
        "1": places["2"],
        "2": places["1"],
        "4": places["1"],
        "11": places["1"],
        "31": places["1"],
    }
    for table in ("lines", "marks"):
        assert [(row["document_id"], row["chunk_id"]) for row in after[table]] == [places["1"]]

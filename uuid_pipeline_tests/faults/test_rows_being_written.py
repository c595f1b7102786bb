"""Rows that somebody is writing to when a batch comes to them, and what they hold when both are done."""

import functools
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import sync_points
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_merging_hanging import DOCUMENTS, ENTITIES, SETS
from uuid_pipeline_tests.integration.test_merging_odd import CHUNKS, built, owner_in, target

WAITING = """
SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
NAMESPACE = uuid.UUID("6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42")
OLD, OTHER = "3b241101-e2bb-4255-8caf-4136c566a962", "4b241101-e2bb-4255-8caf-4136c566a962"
# What the application writes there by a trigger of its own, no alias trigger sees: its UPDATE names another column.
STORE = """
CREATE SCHEMA shop;
CREATE TABLE shop.things (id uuid PRIMARY KEY, code text NOT NULL, UNIQUE (code));
INSERT INTO shop.things VALUES ('{old}', 'first');
CREATE TABLE shop.notes (note int PRIMARY KEY, seen int NOT NULL DEFAULT 0, said {kind} NOT NULL);
INSERT INTO shop.notes (note, said) VALUES (1, {value});
CREATE FUNCTION shop.say() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN NEW.said := {written}; RETURN NEW; END$$;
CREATE TRIGGER say BEFORE UPDATE OF seen ON shop.notes FOR EACH ROW EXECUTE FUNCTION shop.say();
"""
SPEC = """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: shop
entities:
  thing: {table: things, key: id, identity: "{code}"}
soft_references:
  - {table: notes, column: said, entity: thing%s}
"""
KINDS: dict[str, tuple[str, str, str, Callable[[uuid.UUID, int], object]]] = {
    "jsonb": (
        "jsonb_build_object('of', '{old}', 'seen', 0)", "jsonb_set(NEW.said, '{seen}', to_jsonb(NEW.seen))",
        ", path: of", lambda id, seen: {"of": str(id), "seen": seen},
    ),
    "json": (
        "json_build_object('of', '{old}', 'seen', 0)", "jsonb_set(NEW.said::jsonb, '{seen}', to_jsonb(NEW.seen))::json",
        ", path: of", lambda id, seen: {"of": str(id), "seen": seen},
    ),
    "uuid[]": (
        "ARRAY['{old}']::uuid[]", f"NEW.said || '{OTHER}'::uuid", "",
        lambda id, seen: [id] + [uuid.UUID(OTHER)] * seen,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_hooks() -> Iterator[None]:
    yield
    sync_points.clear()


def while_somebody_writes(store: Engine, statement: str, work: Callable[[], object], at: str = "guarded") -> None:
    """Do the work; the statement is given when its batches begin (or at another point), and committed when one of them
    waits for its rows."""
    with cycle.session(store) as writer, ThreadPoolExecutor(1) as helper:

        def write() -> None:
            sync_points.clear()
            assert writer.execute(statement).rowcount > 0

        sync_points.on(at, write)
        done = helper.submit(work)
        while cycle.run_sql(store, WAITING) == [(False,)]:
            assert not done.done(), done.result()
            time.sleep(0.01)
        writer.commit()
        done.result(120)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_in_a_value_that_is_being_written_move_and_the_rest_of_it_is_as_it_was_written(
    empty_store: Engine, kind: str
) -> None:
    value, written, path, expected = KINDS[kind]
    spec = parse_spec(SPEC % path, "test")
    parts = {"{kind}": kind, "{value}": value, "{written}": written, "{old}": OLD}
    cycle.run_sql(empty_store, functools.reduce(lambda text, part: text.replace(*part), parts.items(), STORE))
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    write = "UPDATE shop.notes SET seen = seen + 1"

    while_somebody_writes(empty_store, write, lambda: cycle.migrate_all(empty_store, spec, execution))
    cycle.assert_green(cycle.validate(empty_store))
    new = uuid.uuid5(NAMESPACE, "first")
    assert cycle.run_sql(empty_store, "SELECT said FROM shop.notes") == [(expected(new, 1),)]

    while_somebody_writes(empty_store, write, lambda: cycle.roll_back(empty_store, spec))
    assert cycle.run_sql(empty_store, "SELECT said FROM shop.notes") == [(expected(uuid.UUID(OLD), 2),)]


# Of the two one is merged into the other; what says so of it is being written to by a trigger.
MERGED = (
    DOCUMENTS
    + """
CREATE TABLE app.notes (note int PRIMARY KEY, seen int NOT NULL DEFAULT 0, said jsonb NOT NULL);
INSERT INTO app.notes (note, said) VALUES (1, '{"of": "aaaaaaaa-0000-4000-8000-000000000002", "seen": 0}');
CREATE FUNCTION app.say() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN NEW.said := jsonb_set(NEW.said, '{seen}', to_jsonb(NEW.seen)); RETURN NEW; END$$;
CREATE TRIGGER say BEFORE UPDATE OF seen ON app.notes FOR EACH ROW EXECUTE FUNCTION app.say()
"""
)


def test_the_id_of_a_merged_row_in_a_value_that_is_being_written_is_turned_and_the_rest_of_it_is_as_it_was_written(
    empty_store: Engine,
) -> None:
    spec = parse_spec(
        f"{ENTITIES}soft_references: [{{table: notes, column: said, entity: document, path: of}}]", "test"
    )
    built(empty_store, MERGED)
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    write = "UPDATE app.notes SET seen = seen + 1"

    while_somebody_writes(empty_store, write, lambda: cycle.migrate_all(empty_store, spec, execution))
    cycle.assert_green(cycle.validate(empty_store))
    assert cycle.run_sql(empty_store, "SELECT said FROM app.notes") == [({"of": target("u:k"), "seen": 1},)]

    cycle.roll_back(empty_store, spec)
    loser = "aaaaaaaa-0000-4000-8000-000000000002"
    assert cycle.run_sql(empty_store, "SELECT said FROM app.notes") == [({"of": loser, "seen": 1},)]


# The first document's id is right already, so that its rows refer to nothing that changes.
KEPT = "aaaaaaaa-0000-4000-8000-000000000001"
NOTES = """
CREATE TABLE app.notes (n int PRIMARY KEY, document_id uuid, ver text, ord int, seen int DEFAULT 0,
                        FOREIGN KEY (document_id, ver, ord) REFERENCES app.chunks (document_id, ver, ord));
INSERT INTO app.notes SELECT 1, document_id, ver, ord FROM app.chunks WHERE right(id::text, 1) = '4';
"""
JOBS = """
CREATE TABLE app.notes (n int PRIMARY KEY, document_id uuid REFERENCES app.documents, seen int DEFAULT 0);
INSERT INTO app.notes VALUES (1, 'aaaaaaaa-0000-4000-8000-000000000002');
"""


@pytest.mark.parametrize("notes", [NOTES, JOBS], ids=["by several columns", "by one"])
def test_a_row_that_a_merge_turned_is_turned_back_though_somebody_is_writing_to_it(
    empty_store: Engine, notes: str
) -> None:
    spec = parse_spec(ENTITIES + CHUNKS, "app.yaml")
    built(empty_store, (SETS + notes).replace(KEPT, target("u:k")))
    before = cycle.rows_of(empty_store, "app")
    cycle.run_all(empty_store, spec)
    assert cycle.rows_of(empty_store, "app")["notes"] != before["notes"]
    write = "UPDATE app.notes SET seen = 1"

    while_somebody_writes(empty_store, write, lambda: cycle.roll_back(empty_store, spec))

    [note] = before["notes"]
    assert cycle.rows_of(empty_store, "app") == before | {"notes": [note | {"seen": "1"}]}


# A job names its chunk by a number: where that chunk goes, the job loses it.
EMPTIED = (
    SETS  # noqa: S608
    + """
ALTER TABLE app.chunks ADD no int UNIQUE;
UPDATE app.chunks SET no = right(id::text, 1)::int;
CREATE TABLE app.jobs (n int PRIMARY KEY, document_id uuid REFERENCES app.documents,
                       chunk_no int REFERENCES app.chunks (no), seen int DEFAULT 0);
INSERT INTO app.jobs SELECT no, document_id, no FROM app.chunks
"""
)


@pytest.mark.parametrize("job", [2, 3], ids=["of a chunk that goes", "of a document that goes"])
def test_what_a_merge_writes_of_rows_that_somebody_had_written_makes_no_proof_red(
    empty_store: Engine, job: int
) -> None:
    spec = parse_spec(ENTITIES + CHUNKS, "test")
    built(empty_store, EMPTIED.replace(KEPT, target("u:k")))
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    touch = "UPDATE app.jobs SET seen = 1 WHERE n = %(n)s"

    def write() -> None:
        sync_points.clear()
        cycle.run_sql(empty_store, touch, n=job)

    sync_points.on("guarded", write)

    cycle.migrate_all(empty_store, spec, execution)

    cycle.assert_green(cycle.validate(empty_store))
    assert cycle.run_sql(empty_store, "SELECT n FROM app.jobs WHERE seen = 1") == [(job,)]


UPLOADS = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, made date DEFAULT '2026-01-01');
INSERT INTO app.documents SELECT gen_random_uuid(), 'u', n::text FROM generate_series(1, 60) n
"""


def test_a_batch_in_which_uploads_take_target_ids_again_and_again_goes_on_without_these(empty_store: Engine) -> None:
    """New code writes the right ids by itself: one such row comes in each of two tries."""
    spec = parse_spec(ENTITIES, "test")
    built(empty_store, UPLOADS)
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    due = ["60", "59"]

    def upload() -> None:
        if due:
            sha = due.pop()
            row = "INSERT INTO app.documents VALUES (%(id)s, 'u', %(sha)s)"
            cycle.run_sql(empty_store, row, id=target(f"u:{sha}"), sha=sha)

    [canary, *rest] = cycle.all_waves_of(empty_store, execution)
    cycle.migrate(empty_store, spec, canary)
    cycle.assert_green(cycle.check_wave(empty_store, spec, canary))
    sync_points.on("held", upload)
    for wave in rest[:-2]:
        cycle.migrate(empty_store, spec, wave)

    assert not due
    taken = cycle.run_sql(empty_store, "SELECT count(*) FROM uuid_pipeline.unmoved WHERE reason = 'taken'")
    assert taken == [(2,)]


FOLDERS = (
    DOCUMENTS
    + """
CREATE TABLE app.folders (folder int PRIMARY KEY);
INSERT INTO app.folders VALUES (1), (2);
ALTER TABLE app.documents ADD folder int REFERENCES app.folders;
UPDATE app.documents SET folder = 2 WHERE right(id::text, 1) = '2'
"""
)
OUTSIDE = """
SELECT count(*) FROM app.documents d WHERE folder IS NOT NULL
AND NOT EXISTS (SELECT FROM app.folders f WHERE f.folder = d.folder)
"""


@pytest.mark.parametrize("tier", ["R", "O"])
def test_an_archived_row_does_not_come_back_below_one_that_somebody_is_deleting(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    """In tier R no server asks whether what it refers to is there."""
    spec = parse_spec(ENTITIES, "test")
    built(empty_store, FOLDERS)
    with opened(as_role(empty_url, owner_in(tier, empty_store, new_role))) as owner:
        cycle.run_all(owner, spec)
        delete = "DELETE FROM app.folders WHERE folder = 2"
        while_somebody_writes(empty_store, delete, lambda: cycle.roll_back(owner, spec))

    assert cycle.run_sql(empty_store, OUTSIDE) == [(0,)]
    assert len(cycle.rows_of(empty_store, "app")["documents"]) == 2


TAGS = (
    SETS  # noqa: S608
    + """
ALTER TABLE app.chunks ADD tag text UNIQUE;
UPDATE app.chunks SET tag = right(id::text, 1);
CREATE TABLE app.notes (n int PRIMARY KEY, chunk_id uuid {foreign_key}, said jsonb);
INSERT INTO app.notes SELECT row_number() OVER (), id, jsonb_build_object('of', id) FROM app.chunks WHERE ord = 0
"""
)
NAMED = """
SELECT count(*) FROM app.notes n
WHERE NOT EXISTS (SELECT FROM app.chunks c WHERE c.id = n.chunk_id)
   OR NOT EXISTS (SELECT FROM app.chunks c WHERE c.id = (n.said ->> 'of')::uuid)
"""


@pytest.mark.parametrize("foreign_key", ["", "REFERENCES app.chunks"], ids=["without a foreign key", "with one"])
def test_what_is_turned_back_to_an_archived_row_finds_it_though_somebody_takes_a_place(
    empty_store: Engine, foreign_key: str
) -> None:
    """The place is taken between the judgement of what may come back and its return."""
    soft = """soft_references: [{table: notes, column: said, entity: chunk, path: of},
                                {table: notes, column: chunk_id, entity: chunk}]"""
    built(empty_store, TAGS.replace("{foreign_key}", foreign_key))
    spec = parse_spec(ENTITIES + CHUNKS + (soft if not foreign_key else soft.replace(",\n", "]#")), "test")
    cycle.run_all(empty_store, spec)
    take = """WITH new AS (INSERT INTO app.documents (id, owner, sha) VALUES (gen_random_uuid(), 'u', 'new')
                           RETURNING id)
              INSERT INTO app.chunks SELECT gen_random_uuid(), id, 'v9', 0, '1' FROM new"""

    while_somebody_writes(empty_store, take, lambda: cycle.roll_back(empty_store, spec), at="proved")

    assert cycle.run_sql(empty_store, NAMED) == [(0,)]


BUFFER = (
    DOCUMENTS  # noqa: S608
    + """
CREATE TABLE app.buffer (n int PRIMARY KEY, document_id uuid);
INSERT INTO app.buffer SELECT row_number() OVER (), id FROM app.documents
"""
)


@pytest.mark.parametrize("point", ["guarded", "waves done"], ids=["before its batch", "after it"])
def test_a_table_that_somebody_truncates_meanwhile_makes_no_proof_red(empty_store: Engine, point: str) -> None:
    soft = "soft_references: [{table: buffer, column: document_id, entity: document}]"
    spec = parse_spec(ENTITIES + soft, "test")
    built(empty_store, BUFFER)
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)

    def truncate() -> None:
        sync_points.clear()
        cycle.run_sql(empty_store, "TRUNCATE app.buffer")

    sync_points.on(point, truncate)

    cycle.migrate_all(empty_store, spec, execution)

    cycle.assert_green(cycle.validate(empty_store))

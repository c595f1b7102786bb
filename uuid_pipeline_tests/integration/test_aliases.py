"""Ids that the application still holds from before a migration, or from before its rollback, go on working."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from uuid_pipeline.demo.incident import add_vector_buffer
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger, profile
from uuid_pipeline.engine.altered import triggers
from uuid_pipeline.engine.batches import batch, writing
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.installed import aliases
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import EntitySpec, SoftReference, Spec, parse_spec
from uuid_pipeline_tests.conftest import NewDatabase, NewRole, as_role
from uuid_pipeline_tests.integration import cycle

MIGRATED = "template_migrated_with_aliases"
NOTES = """
CREATE TABLE upload_pipeline.notes (
    note_id integer PRIMARY KEY, said_of text, listed uuid[], named text[], linked jsonb, quoted json)
"""
SPEC = cycle.spec_with()
# How the notes hold ids of documents, and of chunks in the last.
WIDE = cycle.spec_with(
    soft_references=[
        *SPEC.soft_references,
        SoftReference(table="notes", column="said_of", entity="document"),
        SoftReference(table="notes", column="listed", entity="document"),
        SoftReference(table="notes", column="named", entity="document"),
        SoftReference(table="notes", column="linked", entity="document", path="of.*.document"),
        SoftReference(table="notes", column="quoted", entity="chunk", path="chunks.*"),
    ]
)
JOB = """
INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (gen_random_uuid(), %(document)s, 'queued')
RETURNING document_id::text
"""
EVENT = """
INSERT INTO upload_pipeline.events (job_id, document_id, type, severity, code)
SELECT job_id, %(document)s, 'live', 'info', 'LIVE' FROM upload_pipeline.upload_jobs LIMIT 1
RETURNING document_id::text
"""
BUFFER = """
INSERT INTO upload_pipeline.document_vector_buffer (chunk_id, document_id, embed_model, embed_version, vector)
SELECT %(chunk)s, %(document)s, 'live', '1', embedding FROM upload_pipeline.document_chunks LIMIT 1
RETURNING document_id::text, chunk_id::text
"""
CHUNK = """
INSERT INTO upload_pipeline.document_chunks (chunk_id, document_id, chunker_name, chunker_version, chunk_ord, text,
    chunk_sha, embed_model, embed_version, vector_dim, embedding)
VALUES (%(chunk)s, %(document)s, 'markdown-simple', '1', %(ord)s, %(text)s, '', 'none', '1', 1536,
        array_fill(0.1::real, ARRAY[1536]))
"""


@dataclass(frozen=True)
class Migrated:
    """A store that was migrated with aliases in place; ``new`` maps its old ids, computed without the engine."""

    engine: Engine
    url: str
    before: cycle.Rows
    new: dict[str, str]

    @property
    def document(self) -> str:
        """The old id of a document that moved."""
        return str(self.before["documents"][0]["document_id"])

    @property
    def chunk(self) -> cycle.Row:
        """A chunk as it was before."""
        return self.before["document_chunks"][0]


@pytest.fixture(scope="module")
def migrated_template(server: EmbeddedServer, incident_template: str) -> Iterator[cycle.Rows]:
    """Migrates a copy of the incident once, aliases installed before the first wave; gives the rows before."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {MIGRATED} TEMPLATE {incident_template} STRATEGY file_copy")
    engine = open_store(server.url(MIGRATED))
    prepare(engine)
    before = cycle.rows_of(engine)
    migrate(engine)
    engine.dispose()
    yield before
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {MIGRATED}")


def prepare(engine: Engine) -> None:
    with engine.begin() as connection:
        add_vector_buffer(connection)
        connection.exec_driver_sql(NOTES)


def migrate(engine: Engine) -> None:
    execution = cycle.approve(engine, SPEC, cycle.assess_and_plan(engine, SPEC).plan_id)
    install(engine, execution.assessment_no)
    # Neither stale nor changed by our triggers: the waves are admitted, and every check is green.
    cycle.migrate_all(engine, SPEC, execution)
    cycle.assert_green(cycle.validate(engine))


def install(engine: Engine, *assessments: int) -> None:
    with leases.held(engine, "install") as (_, lease):
        aliases.install(engine, lease, cycle.bound_store(engine, WIDE), assessments)


def remove(engine: Engine) -> None:
    with leases.held(engine, "remove") as (_, lease):
        aliases.remove(engine, lease)


@pytest.fixture
def store(migrated_template: cycle.Rows, new_database: NewDatabase) -> Iterator[Migrated]:
    url = new_database(MIGRATED)
    engine = open_store(url)
    yield Migrated(engine, url, migrated_template, cycle.targets(migrated_template))
    engine.dispose()


@pytest.fixture
def fresh(incident: Engine) -> Engine:
    """The incident with buffer and notes, not migrated."""
    prepare(incident)
    return incident


def test_a_row_that_refers_to_a_document_by_its_old_id_is_stored_under_the_new_one(store: Migrated) -> None:
    old, new, chunk = store.document, store.new[store.document], str(store.chunk["chunk_id"])
    run = cycle.run_sql

    assert run(store.engine, JOB, document=old) == [(new,)]
    assert run(store.engine, EVENT, document=old) == [(new,)]
    assert run(store.engine, BUFFER, document=old, chunk=chunk) == [(new, store.new[chunk])]
    run(store.engine, CHUNK, document=old, chunk=str(uuid.uuid4()), ord=1000, text="live")
    moved = (
        "UPDATE upload_pipeline.upload_jobs SET document_id = %(d)s WHERE document_id <> %(n)s RETURNING document_id"
    )
    assert {str(row[0]) for row in run(store.engine, moved, d=old, n=new)} == {new}
    after = cycle.rows_of(store.engine)
    assert [row["document_id"] for row in after["document_chunks"] if row["text"] == "live"] == [new]
    known = {row["document_id"] for row in after["documents"]}
    assert all(row["document_id"] in known for rows in after.values() for row in rows if "document_id" in row)


@pytest.mark.parametrize("arbiter", ["(chunk_id)", "(document_id, chunker_name, chunker_version, chunk_ord)"])
def test_a_worker_that_upserts_a_chunk_by_its_old_id_hits_the_row(store: Migrated, arbiter: str) -> None:
    old = store.chunk
    upsert = f"{CHUNK} ON CONFLICT {arbiter} DO UPDATE SET chunk_id = excluded.chunk_id, text = excluded.text"
    values = {
        "chunk": old["chunk_id"],
        "document": old["document_id"],
        "ord": old["chunk_ord"],
        "text": "embedded again",
    }

    cycle.run_sql(store.engine, upsert, **values)

    chunks = cycle.rows_of(store.engine)["document_chunks"]
    [hit] = [row for row in chunks if row["text"] == "embedded again"]
    assert (hit["chunk_id"], hit["document_id"]) == (
        store.new[str(old["chunk_id"])],
        store.new[str(old["document_id"])],
    )
    assert len(chunks) == len(store.before["document_chunks"])


def test_old_ids_in_text_arrays_and_json_are_rewritten_and_nothing_else_of_the_value(store: Migrated) -> None:
    old, new, unknown = store.document, store.new[store.document], str(uuid.uuid4())
    chunk = str(store.chunk["chunk_id"])
    linked = {"of": [{"document": old, "n": 1.50}, {"document": unknown}, {"other": old}], "document": old}
    quoted = '{ "chunks" :["%s",\n "x\\u0000", 1e999999, "%s"], "chunks": ["%s"], "seen":"%s",  "\\ud800": {} }'
    insert = """INSERT INTO upload_pipeline.notes VALUES (%(id)s, %(said_of)s, %(listed)s::uuid[], %(named)s::text[],
        %(linked)s::jsonb, %(quoted)s::json) RETURNING said_of, listed::text[], named, linked, quoted::text"""
    written = {
        "id": 1, "said_of": old, "listed": [old, None, unknown, old], "named": ["x", old, old.upper()],
        "linked": json.dumps(linked), "quoted": quoted % (chunk, unknown, chunk, chunk),
    }  # fmt: skip

    [found] = cycle.run_sql(store.engine, insert, **written)

    expected = {"of": [{"document": new, "n": 1.50}, {"document": unknown}, {"other": old}], "document": old}
    moved = store.new[chunk]
    assert found == (
        new,
        [new, None, unknown, new],
        ["x", new, old.upper()],
        expected,
        quoted % (moved, unknown, moved, chunk),
    )
    left = {"id": 2, "said_of": f"about {old}", "listed": "{}", "named": ["", "{}"], "linked": '"x"', "quoted": "[[]]"}
    [found] = cycle.run_sql(store.engine, insert, **left)
    assert found == (f"about {old}", [], ["", "{}"], "x", "[[]]")
    nothing = {**dict.fromkeys(written), "id": 3}
    assert cycle.run_sql(store.engine, insert, **nothing) == [(None,) * 5]


def test_ids_that_no_map_knows_and_ids_of_rows_that_are_gone_are_left_alone(store: Migrated) -> None:
    unknown = str(uuid.uuid4())
    with pytest.raises(Exception, match="violates foreign key constraint"):
        cycle.run_sql(store.engine, JOB, document=unknown)
    chunk = str(store.chunk["chunk_id"])
    cycle.run_sql(store.engine, "DELETE FROM upload_pipeline.document_vector_buffer")
    cycle.run_sql(store.engine, "DELETE FROM upload_pipeline.document_chunks")

    for number, made in enumerate((chunk, unknown)):
        cycle.run_sql(store.engine, CHUNK, document=store.document, chunk=made, ord=number, text="")

    found = {row["chunk_id"] for row in cycle.rows_of(store.engine)["document_chunks"]}
    assert found == {chunk, unknown}


def test_the_newest_of_two_migrations_is_reached_from_the_ids_before_the_first_and_back_again(store: Migrated) -> None:
    entities = {name: entity.model_copy(update={"witnesses": []}) for name, entity in SPEC.entities.items()}
    other = cycle.spec_with(namespace=uuid.UUID(int=7), entities=entities)
    old, middle = store.document, store.new[store.document]
    execution = cycle.approve(store.engine, other, cycle.assess_and_plan(store.engine, other).plan_id)
    install(store.engine, 1, execution.assessment_no)
    cycle.migrate_all(store.engine, other, execution)

    assert job_of(store, old) == job_of(store, middle) != middle
    newest = job_of(store, old)

    cycle.roll_back(store.engine, other)

    assert document_ids(store) == {str(row["document_id"]) for row in store.before["documents"]}
    assert [job_of(store, asked) for asked in (newest, middle, old)] == [old] * 3
    chunk, document = str(store.chunk["chunk_id"]), str(store.chunk["document_id"])
    upsert = f"{CHUNK} ON CONFLICT (chunk_id) DO UPDATE SET text = 'again' RETURNING chunk_id::text, document_id::text"
    values = {"chunk": store.new[chunk], "document": store.new[document], "ord": 7, "text": ""}
    assert cycle.run_sql(store.engine, upsert, **values) == [(chunk, document)]
    listed = dict(cycle.run_sql(store.engine, "SELECT alias::text, current::text FROM uuid_pipeline.alias_document"))
    assert len(listed) == 2 * len(store.before["documents"])
    assert (listed[newest], listed[middle]) == (old, old)


def job_of(store: Migrated, document: str) -> str:
    """The document that a job written for this id is stored under; resolve() says the same."""
    [(found,)] = cycle.run_sql(store.engine, JOB, document=document)
    [(resolved,)] = cycle.run_sql(store.engine, "SELECT uuid_pipeline.resolve_document(%(d)s)::text", d=document)
    assert resolved == found
    return str(found)


def document_ids(store: Migrated) -> set[str]:
    return {str(row["document_id"]) for row in cycle.rows_of(store.engine)["documents"]}


def test_a_merged_duplicate_resolves_to_the_survivor_and_its_new_id_back_to_the_survivor_alone(store: Migrated) -> None:
    old, new, merged = store.document, store.new[store.document], str(uuid.uuid4())
    cycle.run_sql(
        store.engine,
        """INSERT INTO uuid_pipeline.id_map_document_1
           SELECT 1, ordinal, wave, 'merge', natural_key, %(merged)s, new_id
           FROM uuid_pipeline.id_map_document_1 WHERE old_id = %(old)s""",
        merged=merged,
        old=old,
    )
    assert job_of(store, merged) == new

    cycle.roll_back(store.engine, SPEC)
    # What a merge displaced comes back out of the archive, under a hash spelled differently.
    cycle.run_sql(
        store.engine,
        """INSERT INTO upload_pipeline.documents SELECT (jsonb_populate_record(d, jsonb_build_object(
               'document_id', %(merged)s::text, 'file_sha256', upper(file_sha256)))).*
           FROM upload_pipeline.documents d WHERE document_id = %(old)s""",
        merged=merged,
        old=old,
    )

    assert [job_of(store, asked) for asked in (merged, old, new)] == [merged, old, old]
    # The application deletes it: its id must not lead to its twin.
    cycle.run_sql(store.engine, "DELETE FROM upload_pipeline.upload_jobs WHERE document_id = %(m)s", m=merged)
    cycle.run_sql(store.engine, "DELETE FROM upload_pipeline.documents WHERE document_id = %(m)s", m=merged)
    with pytest.raises(Exception, match="violates foreign key constraint"):
        cycle.run_sql(store.engine, JOB, document=merged)


def test_before_its_row_has_moved_a_target_id_stands_for_nothing_but_itself(fresh: Engine) -> None:
    before = cycle.rows_of(fresh)
    install(fresh, cycle.approve(fresh, SPEC, cycle.assess_and_plan(fresh, SPEC).plan_id).assessment_no)
    chunk, target = before["document_chunks"][0], cycle.targets(before)

    edit = "UPDATE upload_pipeline.document_chunks SET chunk_ord = 77 WHERE chunk_id = %(c)s"
    cycle.run_sql(fresh, edit, c=chunk["chunk_id"])
    made = target[str(chunk["chunk_id"])]
    values = {"chunk": made, "document": chunk["document_id"], "ord": chunk["chunk_ord"], "text": "its own row"}
    cycle.run_sql(fresh, f"{CHUNK} ON CONFLICT (chunk_id) DO UPDATE SET text = excluded.text", **values)

    found = {row["chunk_id"]: row["text"] for row in cycle.rows_of(fresh)["document_chunks"]}
    assert (found[made], found[chunk["chunk_id"]]) == ("its own row", chunk["text"])


@pytest.fixture
def in_batch(fresh: Engine) -> Iterator[Callable[[], Any]]:
    """Begins the batch of the whole canary wave and leaves it uncommitted; gives its connection."""
    execution = cycle.approve(fresh, SPEC, cycle.assess_and_plan(fresh, SPEC).plan_id)
    install(fresh, execution.assessment_no)
    wave, store = cycle.waves_of(fresh, execution)[0], cycle.bound_store(fresh, SPEC)
    plan = batch.BatchPlan(
        execution.execution_id, execution.assessment_no, wave.wave, wave.first_ordinal, wave.last_ordinal
    )
    with leases.held(fresh, cycle.RUN) as (connection, lease):

        def begin() -> Any:
            connection.begin()
            batch.set_up(connection)
            triggers.silence(connection, "R")
            leases.hold(connection, lease)
            batch.run(connection, store, plan, batch.FORWARD, lease)
            return connection

        yield begin


def test_writers_that_come_while_their_batch_runs_wait_and_are_stored_under_the_new_id(
    fresh: Engine, in_batch: Callable[[], Any]
) -> None:
    before = cycle.rows_of(fresh)
    [(old,)] = cycle.run_sql(
        fresh, "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE wave = 'canary' LIMIT 1"
    )
    chunk = next(row for row in before["document_chunks"] if row["document_id"] == old)
    note = "INSERT INTO upload_pipeline.notes (note_id, said_of) VALUES (1, %(document)s) RETURNING said_of"
    upsert = f"{CHUNK} ON CONFLICT (chunk_id) DO UPDATE SET text = excluded.text RETURNING document_id::text"
    values = {"document": old, "chunk": chunk["chunk_id"], "ord": chunk["chunk_ord"], "text": "upserted"}
    found: dict[str, list[tuple[Any, ...]]] = {}

    def write(statement: str) -> None:
        found[statement] = cycle.run_sql(fresh, statement, **values)

    running = in_batch()
    writers = [threading.Thread(target=write, args=(statement,)) for statement in (JOB, note, upsert)]
    for writer in writers:
        writer.start()
    wait_until(fresh, "SELECT count(*) = 3 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")
    running.commit()
    for writer in writers:
        writer.join()

    new = cycle.targets(before)
    assert found == {statement: [(new[old],)] for statement in (JOB, note, upsert)}
    texts = {row["chunk_id"]: row["text"] for row in cycle.rows_of(fresh)["document_chunks"]}
    assert texts[new[str(chunk["chunk_id"])]] == "upserted"


def test_a_batch_cannot_pass_a_writer_whose_reference_no_foreign_key_guards(
    fresh: Engine, in_batch: Callable[[], Any]
) -> None:
    [(old,)] = cycle.run_sql(
        fresh, "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE wave = 'canary' LIMIT 1"
    )
    with cycle.session(fresh) as writer:
        writer.execute(
            "INSERT INTO upload_pipeline.notes (note_id, linked) VALUES (1, %s)",
            [f'{{"of": [{{"document": "{old}"}}]}}'],
        )

        with pytest.raises(OperationalError, match="lock timeout"):
            in_batch()


def wait_until(engine: Engine, question: str) -> None:
    deadline = time.monotonic() + 10
    while cycle.run_sql(engine, question) != [(True,)]:
        assert time.monotonic() < deadline, question
        time.sleep(0.01)


def test_translations_are_counted_where_they_can_be(store: Migrated) -> None:
    begun = time.time()
    for document in (store.document, store.new[store.document], store.document):
        cycle.run_sql(store.engine, JOB, document=document)
    resolve = "SELECT uuid_pipeline.resolve_document(%(d)s)::text"
    cycle.run_sql(store.engine, resolve, d=store.document)
    with cycle.session(store.engine) as reader:
        reader.execute("SET TRANSACTION READ ONLY")
        assert reader.execute(resolve, {"d": store.document}).fetchall() == [(store.new[store.document],)]

    with store.engine.begin() as connection:
        counted = aliases.uses(connection)
    assert [(use.entity, use.uses) for use in counted] == [("document", 3), ("chunk", 0)]
    assert counted[0].last_used is not None
    assert begun - 1 <= counted[0].last_used.timestamp() <= time.time()
    assert counted[1].last_used is None


def test_the_application_writes_through_the_triggers_and_reaches_nothing_else_of_ours(
    store: Migrated, new_role: NewRole
) -> None:
    writer = new_role("BYPASSRLS")
    cycle.run_sql(store.engine, f"GRANT USAGE ON SCHEMA upload_pipeline TO {writer}")
    cycle.run_sql(store.engine, f"GRANT INSERT ON upload_pipeline.upload_jobs TO {writer}")
    insert = JOB.replace("RETURNING document_id::text", "")
    resolve, document = "SELECT uuid_pipeline.resolve_document(%(document)s)::text", {"document": store.document}

    with psycopg.connect(as_role(store.url, writer), autocommit=True) as connection:
        connection.execute(insert, document)
        with pytest.raises(InsufficientPrivilege):
            connection.execute(resolve, document)
    with cycle.session(store.engine) as connection:
        connection.autocommit = True
        for role in ("authenticated", "service_role"):
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            assert connection.execute(resolve, document).fetchall() == [(store.new[store.document],)]
            for relation in ("id_map_document", "id_map_document_1", "alias_document", "audit"):
                with pytest.raises(InsufficientPrivilege):
                    connection.execute(f"SELECT FROM uuid_pipeline.{relation}")
            with pytest.raises(InsufficientPrivilege):
                connection.execute("SELECT uuid_pipeline.held_document(%(document)s::uuid)", document)
    open_to_all = """SELECT proname FROM pg_proc CROSS JOIN aclexplode(coalesce(proacl, acldefault('f', proowner))) a
                     WHERE pronamespace = 'uuid_pipeline'::regnamespace AND a.grantee = 0"""
    assert cycle.run_sql(store.engine, open_to_all) == []
    jobs = cycle.rows_of(store.engine)["upload_jobs"]
    assert len([row for row in jobs if row["document_id"] == store.new[store.document]]) == 2


def test_default_privileges_open_nothing_of_ours_before_readers_are_let_in_or_after(
    fresh: Engine, new_role: NewRole
) -> None:
    """Not the schema, nor any table of it, whether made before readers may use the schema or since."""
    other = new_role("")
    cycle.run_sql(fresh, f"ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO {other}, authenticated")
    cycle.run_sql(fresh, f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO authenticated, PUBLIC, {other}")
    opened = """SELECT role, c.relname FROM pg_class c, unnest(ARRAY['authenticated', %(other)s]) role
                WHERE relnamespace = 'uuid_pipeline'::regnamespace AND relkind IN ('r', 'v', 'p')
                  AND has_schema_privilege(role, relnamespace, 'USAGE')
                  AND has_table_privilege(role, c.oid, 'SELECT, INSERT, UPDATE, DELETE')"""

    execution = cycle.run_all(fresh, SPEC)
    assert cycle.run_sql(fresh, "SELECT has_schema_privilege('authenticated', 'uuid_pipeline', 'USAGE')") == [(True,)]
    assert cycle.run_sql(fresh, opened, other=other) == []

    # Parts of another assessment, and maps of another entity, made while those who may ask for ids may use the schema.
    assert cycle.assess_and_plan(fresh, SPEC).assessment_no > execution.assessment_no
    job = EntitySpec(table="upload_jobs", key="job_id", parent="document", identity="{document_id}:{state}")
    wider = SPEC.model_copy(update={"entities": {**SPEC.entities, "job": job}})
    with fresh.begin() as connection:
        ledger.create(connection, cycle.bound(connection, wider))
    made = "SELECT to_regclass('uuid_pipeline.id_map_job') IS NOT NULL"
    assert cycle.run_sql(fresh, made) == [(True,)]
    assert cycle.run_sql(fresh, opened, other=other) == []


def test_a_reader_asks_by_an_old_id_and_the_index_answers(store: Migrated) -> None:
    select = "SELECT filename FROM upload_pipeline.documents WHERE document_id = uuid_pipeline.resolve_document(%s)"
    with cycle.session(store.engine) as reader:
        # So small a table would be scanned otherwise; a volatile function would be, even so.
        reader.execute("SET enable_seqscan = off")
        plan = "\n".join(row[0] for row in reader.execute(f"EXPLAIN {select}", [store.document]).fetchall())
        found = reader.execute(select, [store.document]).fetchall()

    assert "Index Cond: (document_id = uuid_pipeline.resolve_document(" in plan
    assert found == [(store.before["documents"][0]["filename"],)]


def test_a_role_without_ownership_installs_and_removes_and_the_applications_schema_is_as_before(
    fresh: Engine, incident_url: str, new_role: NewRole
) -> None:
    role = new_role("BYPASSRLS")
    for grant in (
        "CREATE ON DATABASE " + str(fresh.url.database),
        "SET ON PARAMETER session_replication_role",
        "USAGE ON SCHEMA upload_pipeline",
        "SELECT, UPDATE ON ALL TABLES IN SCHEMA upload_pipeline",
    ):
        cycle.run_sql(fresh, f"GRANT {grant} TO {role}")
    engine = open_store(as_role(incident_url, role))
    tables = sorted(f"upload_pipeline.{name}" for name in cycle.rows_of(fresh) if name != "webhook_log")
    with engine.begin() as connection:
        missing = profile.missing_rights(connection, cycle.bound(connection, WIDE))
        assert sorted(found.object for found in missing if found.right == "TRIGGER") == [f"table {t}" for t in tables]
    cycle.run_sql(fresh, f"GRANT TRIGGER ON ALL TABLES IN SCHEMA upload_pipeline TO {role}")
    before, rows = cycle.catalog_of(fresh), cycle.rows_of(fresh)

    migrate(engine)
    with engine.begin() as connection:
        assert profile.missing_rights(connection, cycle.bound(connection, WIDE)) == []
        assert aliases.installed(connection) == tables
    old = str(rows["documents"][0]["document_id"])
    assert cycle.run_sql(fresh, JOB, document=old) == [(cycle.targets(rows)[old],)]
    remove(engine)

    assert cycle.catalog_of(fresh) == before
    left = "SELECT proname::text FROM pg_proc WHERE pronamespace = 'uuid_pipeline'::regnamespace ORDER BY 1"
    readers = {"ids_in_json", "json_tokens", "rewritten_json", "rewritten_array"}
    assert {row[0] for row in cycle.run_sql(fresh, left)} <= readers
    left = (
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'uuid_pipeline'::regnamespace AND relname ~ '^alias'"
    )
    assert cycle.run_sql(fresh, left) == []
    usage = "SELECT has_schema_privilege('authenticated', 'uuid_pipeline', 'USAGE')"
    assert cycle.run_sql(fresh, usage) == [(False,)]
    remove(engine)
    engine.dispose()


INSTALLED = """
SELECT p.oid, p.xmin::text FROM pg_proc p WHERE pronamespace = 'uuid_pipeline'::regnamespace
UNION ALL SELECT oid, xmin::text FROM pg_trigger WHERE tgname LIKE '00%%'
UNION ALL SELECT oid, xmin::text FROM pg_class WHERE relname LIKE 'alias%%' ORDER BY 1
"""


def test_a_second_installation_changes_nothing_and_waits_for_nobody(
    store: Migrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "PATIENCE_SECONDS", 0.0)
    with store.engine.begin() as connection:
        in_force = ledger.assessments_in_force(connection)
    install(store.engine, *in_force)
    before = cycle.run_sql(store.engine, INSTALLED)
    with cycle.session(store.engine) as writer:
        writer.execute(JOB, {"document": store.document})

        install(store.engine, *in_force)

    assert cycle.run_sql(store.engine, INSTALLED) == before


def test_installing_and_removing_wait_in_short_tries_for_a_long_transaction_or_name_it(
    store: Migrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "PATIENCE_SECONDS", 0.0)
    with cycle.session(store.engine) as reader:
        reader.execute("SELECT FROM upload_pipeline.upload_jobs")
        with pytest.raises(RefusedError, match=rf"lock on .*upload_jobs.* Held by: pid {reader.info.backend_pid} "):
            remove(store.engine)
    remove(store.engine)

    with cycle.session(store.engine) as writer, cycle.session(store.engine) as reader:
        reader.execute("SELECT FROM upload_pipeline.upload_jobs")
        writer.execute(JOB, {"document": store.new[store.document]})
        message = (
            rf"lock on upload_pipeline\.upload_jobs.* pid {writer.info.backend_pid} \(.*idle in transaction, for \d+ s"
        )
        with pytest.raises(RefusedError, match=message) as refused:
            install(store.engine, 1)
        # Who only reads is in nobody's way there.
        assert f"pid {reader.info.backend_pid} " not in str(refused.value)
        monkeypatch.setattr(aliases, "PATIENCE_SECONDS", 20.0)
        installing = threading.Thread(target=install, args=(store.engine, 1))
        installing.start()
        # Others wait behind our request for moments only.
        with cycle.session(store.engine) as other:
            other.execute("SET statement_timeout = '2s'")
            other.execute(JOB, {"document": store.new[store.document]})
        assert installing.is_alive()
    installing.join()

    assert job_of(store, store.document) == store.new[store.document]


CASES = [
    ("a.b", '{"a": {"b": "X"}, "b": "X"}', '{"a": {"b": "Y"}, "b": "X"}'),
    ("*", '["X", ["X"], {"*": "X"}, "X "]', '["Y", ["X"], {"*": "X"}, "X "]'),
    ("a.*.*", '{"a": [["X", "Z"], "X", []]}', '{"a": [["Y", "Z"], "X", []]}'),
    ("a", '{"a": ["X"], "b": null}', '{"a": ["X"], "b": null}'),
    ("a.b", '{"a": "X"}', '{"a": "X"}'),
    ("a", '{"\\u0061": "X", "c": "{\\"a\\": \\"X\\"}"}', '{"\\u0061": "Y", "c": "{\\"a\\": \\"X\\"}"}'),
    ("a", '{"a": "\\u0058"}', '{"a": "Y"}'),
    ("*", '{"*": "X"}', '{"*": "X"}'),
    ("a", '"X"', '"X"'),
    ("a", "null", "null"),
]


def test_json_is_rewritten_at_its_path_only(store: Migrated) -> None:
    call = "SELECT uuid_pipeline.rewritten_json(%s::{0}, %s::text[], jsonb_object('{{X}}', '{{Y}}'))::text"
    ids = "SELECT count(*) FROM uuid_pipeline.ids_in_json(%s::{0}, %s::text[]) i WHERE i = 'X'"
    with cycle.session(store.engine) as connection:

        def asked(query: str, kind: str) -> list[Any]:
            values = [(value, path.split(".")) for path, value, _ in CASES]
            return [connection.execute(query.format(kind), each).fetchall()[0][0] for each in values]

        found = {kind: (asked(call, kind), asked(ids, kind)) for kind in ("json", "jsonb")}

    wanted = [expected for *_, expected in CASES]
    assert found["json"][0] == wanted
    assert list(map(json.loads, found["jsonb"][0])) == list(map(json.loads, wanted))
    assert found["json"][1] == found["jsonb"][1] == [text.count('"Y"') for text in wanted]


LIBRARY = """
CREATE SCHEMA "Lib 100%";
CREATE TABLE "Lib 100%"."Papers" ("Id" varchar(64) PRIMARY KEY, sha text NOT NULL);
CREATE TABLE "Lib 100%".pages (page text PRIMARY KEY, of_paper varchar(64) NOT NULL REFERENCES "Lib 100%"."Papers",
    number int NOT NULL, follows text REFERENCES "Lib 100%".pages);
CREATE TABLE "Lib 100%".shelves (shelf int PRIMARY KEY, papers text[], loans json);
INSERT INTO "Lib 100%"."Papers" VALUES ('p/1 "é"', 'a'), ('p/2', 'b');
INSERT INTO "Lib 100%".pages VALUES ('p/1-1', 'p/1 "é"', 1, NULL), ('p/1-2', 'p/1 "é"', 2, 'p/1-1');
"""
LIBRARY_SPEC = """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: Lib 100%
entities:
  paper: {table: Papers, key: Id, identity: "{sha}"}
  page: {table: pages, key: page, parent: paper, identity: "{of_paper}:{number}"}
"""
LIBRARY_REFERENCES = """
soft_references:
  - {table: shelves, column: papers, entity: paper}
  - {table: shelves, column: loans, entity: paper, path: "*"}
"""


def test_text_keys_of_any_spelling_and_references_to_the_own_table_are_translated_as_well(empty_store: Engine) -> None:
    with cycle.session(empty_store) as connection:
        connection.execute(LIBRARY)
    spec = parse_spec(LIBRARY_SPEC, "library")
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    wide = cycle.bound_store(empty_store, parse_spec(LIBRARY_SPEC + LIBRARY_REFERENCES, "library"))
    with leases.held(empty_store, "install") as (_, lease):
        aliases.install(empty_store, lease, wide, [execution.assessment_no])
    cycle.migrate_all(empty_store, spec, execution)

    old, new = 'p/1 "é"', str(uuid.uuid5(cycle.NAMESPACE, "a"))
    page, first = (str(uuid.uuid5(cycle.NAMESPACE, f"{new}:{number}")) for number in (3, 1))
    insert = (
        'INSERT INTO "Lib 100%%".pages VALUES (%(page)s, %(paper)s, 3, %(first)s) RETURNING page, of_paper, follows'
    )
    assert cycle.run_sql(empty_store, insert, page=page, paper=old, first="p/1-1") == [(page, new, first)]
    insert = 'INSERT INTO "Lib 100%%".shelves VALUES (1, %(papers)s, %(loans)s) RETURNING papers, loans::text'
    loans = '[ "p\\/1 \\"\\u00e9\\"", "p/1 \\"é\\" " ]'
    found = cycle.run_sql(empty_store, insert, papers=[old, "p/3"], loans=loans)
    assert found == [([new, "p/3"], f'[ "{new}", "p/1 \\"é\\" " ]')]
    names = ['"Lib 100%"."Papers"', '"Lib 100%".pages', '"Lib 100%".shelves']
    with empty_store.begin() as reader:
        assert aliases.installed(reader) == names
    remove(empty_store)


def test_an_id_of_before_follows_its_row_though_another_has_the_id_that_it_had_in_between(incident: Engine) -> None:
    before = cycle.rows_of(incident)["documents"][0]
    old = str(before["document_id"])
    cycle.run_all(incident, SPEC)
    between = resolved(incident, old)
    edit = "UPDATE upload_pipeline.documents SET file_sha256 = repeat('cd', 32) WHERE document_id = %(id)s"
    cycle.run_sql(incident, edit, id=between)
    cycle.run_all(incident, SPEC)
    now = resolved(incident, old)
    another = str(uuid.uuid4())
    cycle.run_sql(
        incident,
        """INSERT INTO upload_pipeline.documents
               (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
           VALUES (%(id)s, %(user)s, 'again.pdf', 'application/pdf', 1, %(sha)s, 'again')""",
        id=another, user=before["user_id"], sha=before["file_sha256"],
    )  # fmt: skip
    cycle.run_all(incident, SPEC)

    assert resolved(incident, another) == between != now
    assert (resolved(incident, old), resolved(incident, between)) == (now, between)
    listed = dict(cycle.run_sql(incident, "SELECT alias::text, current::text FROM uuid_pipeline.alias_document"))
    assert (listed[old], listed[another]) == (now, between)
    assert cycle.run_sql(incident, EVENT, document=old) == [(now,)]
    cycle.roll_back(incident, SPEC, "canary")
    assert (resolved(incident, old), resolved(incident, another)) == (now, another)
    cycle.roll_back(incident, SPEC)
    assert {resolved(incident, one) for one in (old, another)} == {old, another}


def test_an_id_that_a_plan_could_not_move_stands_for_what_the_next_plan_makes_of_it(incident: Engine) -> None:
    """A twin that is renamed before its merge is no twin any more, though an earlier map says so."""
    cycle.run_sql(incident, "DROP INDEX upload_pipeline.uq_user_filehash")
    one = str(cycle.rows_of(incident)["documents"][0]["document_id"])
    twin = str(uuid.uuid4())
    cycle.run_sql(
        incident,
        """INSERT INTO upload_pipeline.documents
               (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
           SELECT %(twin)s, user_id, filename, mime, bytes_len, file_sha256, raw_path FROM upload_pipeline.documents
           WHERE document_id = %(one)s""",
        twin=twin,
        one=one,
    )
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    rename = "UPDATE upload_pipeline.documents SET file_sha256 = repeat('cd', 32) WHERE document_id = %(twin)s"
    cycle.run_sql(incident, rename, twin=twin)
    cycle.finish(incident, SPEC, execution)
    assert (resolved(incident, one), resolved(incident, twin)) == (one, twin)
    before = cycle.rows_of(incident)

    cycle.run_all(incident, SPEC)

    target = cycle.targets(before)
    assert (resolved(incident, one), resolved(incident, twin)) == (target[one], target[twin])
    listed = dict(cycle.run_sql(incident, "SELECT alias::text, current::text FROM uuid_pipeline.alias_document"))
    assert (listed[one], listed[twin]) == (target[one], target[twin])
    assert cycle.run_sql(incident, EVENT, document=twin) == [(target[twin],)]


def resolved(store: Engine, document: str) -> str:
    [(found,)] = cycle.run_sql(store, "SELECT uuid_pipeline.resolve_document(%(id)s)::text", id=document)
    return str(found)


def test_an_id_of_before_is_followed_there_and_back_again(incident: Engine) -> None:
    """A document is renamed, and later gets its former name back."""
    before = cycle.rows_of(incident)["documents"][0]
    old = str(before["document_id"])
    edit = "UPDATE upload_pipeline.documents SET file_sha256 = %(sha)s WHERE document_id = %(id)s"
    cycle.run_all(incident, SPEC)
    found = [resolved(incident, old)]
    for sha in ("cd" * 32, str(before["file_sha256"])):
        cycle.run_sql(incident, edit, sha=sha, id=found[-1])
        cycle.run_all(incident, SPEC)
        found.append(resolved(incident, old))

    assert found[0] == found[2] != found[1]
    assert resolved(incident, found[1]) == found[2]
    assert cycle.run_sql(incident, EVENT, document=old) == [(found[2],)]


def test_an_old_id_is_nobodys_once_another_row_was_moved_to_where_it_led(incident: Engine) -> None:
    """The application gave both rows ids of its own in between, as docs/traps.md says for ids that change places."""
    cycle.run_sql(incident, "DROP INDEX upload_pipeline.uq_user_filehash")
    one, other = cycle.rows_of(incident)["documents"][:2]
    old = [str(row["document_id"]) for row in (one, other)]
    cycle.run_all(incident, SPEC)
    given = [str(uuid.uuid4()), str(uuid.uuid4())]
    with cycle.session(incident) as application:
        application.execute("SET session_replication_role = replica")
        for was, now, swapped in ((old[0], given[0], other), (old[1], given[1], one)):
            for table in ("document_chunks", "upload_jobs", "events", "documents"):
                statement = f"UPDATE upload_pipeline.{table} SET document_id = %s WHERE document_id = %s"  # noqa: S608
                application.execute(statement, [now, resolved(incident, was)])
            edit = "UPDATE upload_pipeline.documents SET user_id = %s, file_sha256 = %s WHERE document_id = %s"
            application.execute(edit, [swapped["user_id"], swapped["file_sha256"], now])
    before = cycle.rows_of(incident)

    cycle.run_all(incident, SPEC)

    assert [resolved(incident, one) for one in given] == [cycle.targets(before)[one] for one in given]
    # Not the other row, which has the id now that this one led to.
    assert [resolved(incident, one) for one in old] == old


PAPERS = """
CREATE SCHEMA app;
CREATE TABLE app.papers (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), owner text NOT NULL, name text NOT NULL);
CREATE TABLE app.notes (nr serial PRIMARY KEY, paper uuid NOT NULL REFERENCES app.papers);
CREATE INDEX ON app.notes (paper);
INSERT INTO app.papers (owner, name) VALUES ('ann', 'A')
"""
HAND_OVER = "UPDATE app.papers SET owner = %(owner)s WHERE name = %(name)s"
PUT_IN = "INSERT INTO app.papers (owner, name) VALUES (%(owner)s, %(name)s)"


def papers(last: int) -> Spec:
    """Papers by their owners; under another namespace for each ``last`` digit of it."""
    return parse_spec(
        f"""
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b4{last}
schema: app
entities:
  document: {{table: papers, key: id, identity: "{{owner}}", on_duplicate: merge}}
""",
        "papers",
    )


def id_of(store: Engine, name: str) -> str:
    [(found,)] = cycle.run_sql(store, "SELECT id::text FROM app.papers WHERE name = %(name)s", name=name)
    return str(found)


def leads_to(store: Engine, id: str) -> str | None:
    """The paper that this id stands for, by the function, the view, and the trigger, which must agree."""
    by_function = cycle.run_sql(
        store, "SELECT name FROM app.papers WHERE id = uuid_pipeline.resolve_document(%(i)s)", i=id
    )
    by_view = """SELECT name FROM app.papers JOIN uuid_pipeline.alias_document ON current = id WHERE alias = %(i)s
                 UNION ALL SELECT name FROM app.papers WHERE id = %(i)s"""
    assert cycle.run_sql(store, by_view, i=id) == by_function
    if by_function:
        cycle.run_sql(store, "INSERT INTO app.notes (paper) VALUES (%(i)s)", i=id)
        written = "DELETE FROM app.notes n USING app.papers p WHERE p.id = n.paper RETURNING p.name"
        assert cycle.run_sql(store, written) == by_function
    return str(by_function[0][0]) if by_function else None


def test_an_id_follows_its_row_through_maps_though_another_went_on_from_an_id_that_it_had_in_between(
    empty_store: Engine,
) -> None:
    cycle.run_sql(empty_store, PAPERS)
    first = id_of(empty_store, "A")
    cycle.run_all(empty_store, papers(0))
    shared = id_of(empty_store, "A")
    cycle.run_sql(empty_store, HAND_OVER, owner="bob", name="A")
    cycle.run_all(empty_store, papers(0))
    cycle.run_sql(empty_store, PUT_IN, owner="ann", name="B")
    second = id_of(empty_store, "B")
    cycle.run_all(empty_store, papers(0))
    assert id_of(empty_store, "B") == shared

    cycle.run_all(empty_store, papers(1))

    assert [leads_to(empty_store, one) for one in (first, second, shared)] == ["A", "B", "B"]


def test_an_id_of_a_rolled_back_execution_leads_to_its_row_though_another_has_the_id_below_it(
    empty_store: Engine,
) -> None:
    cycle.run_sql(empty_store, PAPERS)
    cycle.run_sql(empty_store, PUT_IN, owner="bob", name="B")
    cycle.run_all(empty_store, papers(0))
    cycle.run_all(empty_store, papers(1))
    undone = [id_of(empty_store, name) for name in "AB"]
    cycle.undo(empty_store)
    assert [leads_to(empty_store, one) for one in undone] == ["A", "B"]
    cycle.run_sql(empty_store, "UPDATE app.papers SET owner = CASE owner WHEN 'ann' THEN 'bob' ELSE 'ann' END")

    cycle.run_all(empty_store, papers(0))

    assert [leads_to(empty_store, one) for one in undone] == ["A", "B"]


def test_the_new_id_of_a_cluster_stands_for_no_duplicate_once_the_row_that_moved_is_gone(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, PAPERS)
    cycle.run_sql(empty_store, PUT_IN, owner="ann", name="twin")
    cycle.run_all(empty_store, papers(0))
    [(new, moved)] = cycle.run_sql(empty_store, "SELECT id::text, name FROM app.papers")
    cycle.undo(empty_store)
    assert leads_to(empty_store, new) == moved

    cycle.run_sql(empty_store, "DELETE FROM app.papers WHERE name = %(moved)s", moved=moved)

    assert leads_to(empty_store, new) is None


@pytest.mark.begins("migrated")
def test_a_trigger_that_somebody_dropped_or_disabled_is_put_back_by_the_next_run(incident: Engine) -> None:
    objects, store = cycle.alias_triggers(incident), cycle.bound_store(incident, SPEC)
    assert writing.put_back(incident, store, cycle.RUN) == []
    cycle.run_sql(incident, 'DROP TRIGGER "00_uuid_pipeline_alias_ids" ON upload_pipeline.documents')
    cycle.run_sql(incident, 'ALTER TABLE upload_pipeline.events DISABLE TRIGGER "00_uuid_pipeline_alias_ids"')

    put_back = writing.put_back(incident, store, cycle.RUN)

    assert put_back == ["alias trigger of upload_pipeline.documents", "alias trigger of upload_pipeline.events"]
    assert cycle.alias_triggers(incident) == objects
    assert writing.put_back(incident, store, cycle.RUN) == []

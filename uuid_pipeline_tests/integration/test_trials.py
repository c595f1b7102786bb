"""Why the usual migrations fail: against the same statements run here by hand, and schemas whose fate is known."""

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import Connection, Engine

from uuid_pipeline.demo import installation
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.backups.workshop import Workshop
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.trials import analysis, entries, moving, verdict
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.conftest import NewRole, Pooled, as_role, opened
from uuid_pipeline_tests.integration import cycle, shop

SPEC = cycle.spec_with()
WORKSHOP = Workshop(Path("/nonexistent"), tuple(installation.client_directories()))
CHILDREN_FIRST, COPY, CASCADE, DEFER, AT_ONCE = (
    "children first", "insert copy, then delete", "update with cascade", "deferrable constraints", "one statement",
)  # fmt: skip


def analyse(engine: Engine, spec: Spec = SPEC, **options: Any) -> dict[str, Any]:
    return analysis.analyse(engine, cycle.bound_store(engine, spec), WORKSHOP, **options)


def failing(found: dict[str, Any], approach: str, entity: str = "document") -> dict[str, tuple[Any, ...]]:
    return {
        e["object"]: (e["sqlstate"], e["documents"])
        for e in found["constraint_analysis"]
        if (e["approach"], e["entity"], e["outcome"]) == (approach, entity, "fails")
    }


def one(found: dict[str, Any], approach: str, name: str, entity: str = "document") -> dict[str, Any]:
    (entry,) = [
        e for e in found["constraint_analysis"] if (e["approach"], e["object"], e["entity"]) == (approach, name, entity)
    ]
    return dict(entry)


def databases(server: EmbeddedServer) -> set[str]:
    with psycopg.connect(server.url("postgres")) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()}


def by_hand(engine: Engine, *statements: str) -> Counter[tuple[str, str]]:
    """The statements for every document, each in a transaction of its own that is rolled back: errors by kind."""
    rows = cycle.rows_of(engine)
    met: Counter[tuple[str, str]] = Counter()
    with cycle.session(engine) as connection:
        for old, new in cycle.targets(rows).items():
            if old not in {row["document_id"] for row in rows["documents"]} or old == new:
                continue
            try:
                for statement in statements:
                    connection.execute(statement, {"old": old, "new": new})
                connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            except psycopg.Error as error:
                met[error.sqlstate or "", error.diag.constraint_name or ""] += 1
            connection.rollback()
    return met


REFERENCES = (
    "UPDATE upload_pipeline.upload_jobs SET document_id = %(new)s WHERE document_id = %(old)s",
    "UPDATE upload_pipeline.document_chunks SET document_id = %(new)s WHERE document_id = %(old)s",
    "UPDATE upload_pipeline.events SET document_id = %(new)s WHERE document_id = %(old)s",
)
KEY = "UPDATE upload_pipeline.documents SET document_id = %(new)s WHERE document_id = %(old)s"
INSERT = """
INSERT INTO upload_pipeline.documents
SELECT %(new)s, user_id, filename, mime, bytes_len, file_sha256, parsed_sha256, raw_path, parsed_path,
       processing_status, created_at, updated_at FROM upload_pipeline.documents WHERE document_id = %(old)s
"""


@pytest.fixture
def analysed(incident: Engine) -> dict[str, Any]:
    return analyse(incident)


def test_the_two_failures_of_the_report_are_found_as_they_are(incident: Engine, analysed: dict[str, Any]) -> None:
    assert by_hand(incident, *REFERENCES, KEY) == {("23503", "upload_jobs_document_id_fkey"): 38}
    assert by_hand(incident, INSERT, *REFERENCES) == {("23505", "uq_user_filehash"): 38}
    assert by_hand(incident, KEY)[("23503", "upload_jobs_document_id_fkey")] > 0

    keys = {
        "upload_jobs_document_id_fkey": ("23503", 38),
        "events_document_id_fkey": ("23503", 38),
        "document_chunks_document_id_fkey": ("23503", 29),
    }
    assert analysed["tried"]
    assert failing(analysed, CHILDREN_FIRST) == keys
    assert failing(analysed, CASCADE) == keys
    assert failing(analysed, DEFER) == keys
    assert failing(analysed, COPY) == {"uq_user_filehash": ("23505", 38)}
    assert failing(analysed, AT_ONCE) == {}
    totals = {a["approach"]: a["fails_for"] for a in analysed["approaches"] if a["entity"] == "document"}
    assert totals == {CHILDREN_FIRST: 38, COPY: 38, CASCADE: 38, DEFER: 38, AT_ONCE: 0}
    assert {e["basis"] for e in analysed["constraint_analysis"]} == {"tried"}


def test_the_verdict_on_the_incident_is_that_the_copies_collide_with_their_originals(
    incident: Engine, analysed: dict[str, Any]
) -> None:
    refused = one(analysed, COPY, "uq_user_filehash")
    assert refused["whose"] == {"its own old row": 38}
    sampled = {row["old"] for row in analysed["sample"] if row["entity"] == "document"}
    who, key = refused["collides_with"].rsplit(" ", 1)
    assert (who, key in sampled) == ("its own old row", True)
    assert analysed["verdict"] == (
        "these 38 violations of uq_user_filehash are the copy against its own original; there is no duplicate content"
    )
    assert "once it is made DEFERRABLE this passes" in one(analysed, DEFER, "events_document_id_fkey")["message"]


def test_the_touch_triggers_are_seen_to_change_dates(analysed: dict[str, Any]) -> None:
    changes = {
        (e["approach"], e["table"].split(".")[1], e["documents"])
        for e in analysed["constraint_analysis"]
        if e["kind"] == "trigger" and e["entity"] == "document" and e["outcome"] == "changes"
    }
    children = {("upload_jobs", 38), ("document_chunks", 29)}
    assert changes == {
        *[(a, t, n) for a in (CHILDREN_FIRST, DEFER) for t, n in {*children, ("documents", 38)}],
        *[(COPY, t, n) for t, n in children],
        (CASCADE, "documents", 38),
    }


def test_twins_are_told_from_the_row_itself(twins: Engine) -> None:
    rows = cycle.rows_of(twins)
    ids = {row["document_id"] for row in rows["documents"]}
    new = {old: target for old, target in cycle.targets(rows).items() if old in ids and old != target}
    merged = sum(target in ids for target in new.values())
    assert by_hand(twins, INSERT)[("23505", "documents_pkey")] == merged == 12

    found = analyse(twins)

    assert one(found, COPY, "documents_pkey")["whose"] == {"a twin": merged}
    assert one(found, COPY, "documents_pkey")["collides_with"].startswith("a twin ")
    assert found["verdict"] == (
        f"{merged} document rows collide with a twin of the same natural key, which merging resolves"
    )


COPIED = """
INSERT INTO upload_pipeline.documents
SELECT gen_random_uuid(), {user}, filename, mime, bytes_len, {content}, parsed_sha256, raw_path, parsed_path,
       processing_status, created_at, updated_at FROM upload_pipeline.documents ORDER BY document_id LIMIT 3
"""


def test_duplicates_that_each_pass_alone_are_told_since_one_id_goes_to_one_row(incident: Engine) -> None:
    cycle.run_sql(incident, COPIED.format(user="user_id", content="upper(file_sha256)"))

    found = analyse(incident)

    assert found["verdict"] == (
        "these 41 violations of uq_user_filehash are the copy against its own original; "
        "3 document rows collide with a twin of the same natural key, which merging resolves"
    )
    for approach in (CHILDREN_FIRST, COPY, CASCADE, DEFER, AT_ONCE):
        met = one(found, approach, "documents_pkey")
        assert (met["outcome"], met["documents"], met["whose"]) == ("fails", 3, {"a twin": 3})
        assert "of rows that share a target id only the first gets it" in met["message"]

    cycle.run_sql(incident, "DROP INDEX upload_pipeline.uq_user_filehash")
    cycle.run_sql(incident, "UPDATE upload_pipeline.documents SET file_sha256 = lower(file_sha256)")
    assert analyse(incident)["verdict"] == (
        "3 document rows collide with a twin of the same natural key, which merging resolves"
    )


def test_content_that_two_owners_have_is_called_no_duplicate_and_is_not_passed_over(incident: Engine) -> None:
    cycle.run_sql(incident, COPIED.format(user="gen_random_uuid()", content="file_sha256"))

    assert analyse(incident)["verdict"] == (
        "these 41 violations of uq_user_filehash are the copy against its own original; "
        "no owner has duplicate content, and 6 with the same content as another owner's row stay apart"
    )


LIBRARY = """
CREATE SCHEMA lib;
CREATE TABLE lib.books (id text PRIMARY KEY, reader text NOT NULL, isbn text NOT NULL, shelf int NOT NULL UNIQUE);
CREATE TABLE lib.loans (loan int PRIMARY KEY, book text NOT NULL REFERENCES lib.books ON UPDATE CASCADE);
CREATE TABLE lib.notes (note int PRIMARY KEY, book text REFERENCES lib.books ON UPDATE SET NULL);
CREATE TABLE lib.marks (mark int PRIMARY KEY, book text NOT NULL REFERENCES lib.books DEFERRABLE);
INSERT INTO lib.books SELECT 'book ' || n, 'reader ' || n, 'isbn ' || n, n FROM generate_series(1, 3) n;
INSERT INTO lib.books VALUES (%(target)s, 'somebody else', 'isbn 1', 4);
INSERT INTO lib.loans VALUES (1, 'book 2'), (2, 'book 2'), (3, 'book 3');
"""
LIBRARY_SPEC = parse_spec(
    """
    namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
    schema: lib
    entities:
      book: {table: books, key: id, identity: "{isbn}", describe: {owner: reader}}
    """,
    "test",
)


@pytest.fixture
def library(empty_store: Engine) -> Engine:
    target = str(uuid.uuid5(cycle.NAMESPACE, "isbn 1"))
    with cycle.session(empty_store) as connection:
        for statement in LIBRARY.strip().rstrip(";").split(";\n"):
            connection.execute(statement, {"target": target} if "%(target)s" in statement else None)
    return empty_store


def test_another_users_row_in_the_way_is_named_and_never_taken_for_a_twin(library: Engine) -> None:
    found = analyse(library, LIBRARY_SPEC)

    target = str(uuid.uuid5(cycle.NAMESPACE, "isbn 1"))
    for approach in (CHILDREN_FIRST, COPY, CASCADE, DEFER, AT_ONCE):
        taken = one(found, approach, "books_pkey", "book")
        assert (taken["outcome"], taken["whose"], taken["collides_with"]) == (
            "fails", {"another user's row": 1}, f"another user's row {target}",
        )  # fmt: skip
    assert one(found, COPY, "books_shelf_key", "book")["whose"] == {"its own old row": 3}
    assert "1 collide with another user's row, and must not be merged" in found["verdict"]
    assert "no duplicate content" not in found["verdict"]


def test_cascading_emptying_and_deferrable_keys_have_their_own_fates(library: Engine) -> None:
    cycle.run_sql(library, "INSERT INTO lib.notes VALUES (1, 'book 2'), (2, 'book 2')")
    cycle.run_sql(library, "DELETE FROM lib.books WHERE reader = 'somebody else'")
    found = analyse(library, LIBRARY_SPEC)

    assert one(found, CASCADE, "loans_book_fkey", "book")["outcome"] == "passes"
    emptied = one(found, CASCADE, "notes_book_fkey", "book")
    assert (emptied["outcome"], emptied["documents"]) == ("loses", 1)
    assert "2 rows" in emptied["message"]

    cycle.run_sql(library, "DROP TABLE lib.loans, lib.notes")
    cycle.run_sql(library, "INSERT INTO lib.marks VALUES (1, 'book 2'), (2, 'book 3')")
    found = analyse(library, LIBRARY_SPEC)
    fates = {a["approach"]: a["fails_for"] for a in found["approaches"]}
    assert fates == {CHILDREN_FIRST: 2, COPY: 3, CASCADE: 2, DEFER: 0, AT_ONCE: 0}
    assert one(found, DEFER, "marks_book_fkey", "book")["outcome"] == "passes"


def test_what_no_foreign_key_names_is_left_behind_and_what_a_trigger_writes_is_counted(empty_store: Engine) -> None:
    store = shop.build(empty_store)
    cycle.run_sql(store, "CREATE TRIGGER noting AFTER UPDATE ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note()")

    found = analyse(store, shop.SPEC)

    behind = one(found, CHILDREN_FIRST, "parts.thing_id", "thing")
    assert (behind["outcome"], behind["documents"], behind["basis"]) == ("leaves behind", 3, "tried")
    assert one(found, CHILDREN_FIRST, "noting", "thing")["message"] == "writes +1 rows to shop.fired"
    assert one(found, COPY, "noting", "thing")["outcome"] == "passes"
    assert found["verdict"] == "no unique key refuses any of the 3 ids to change; there is no duplicate content"


@pytest.mark.parametrize("on_store", [False, True])
def test_neither_store_nor_server_show_a_trace_of_it(incident: Engine, server: EmbeddedServer, on_store: bool) -> None:
    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    before = cycle.rows_of(incident), cycle.catalog_of(incident), databases(server)

    found = analyse(incident, run="run 3" if on_store else None)

    assert (cycle.rows_of(incident), cycle.catalog_of(incident), databases(server)) == before
    assert failing(found, COPY) == {"uq_user_filehash": ("23505", 38)}
    assert ("the store itself" in found["where"]) == on_store


def test_on_the_store_itself_it_waits_for_no_other_writer(incident: Engine, incident_url: str) -> None:
    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    other = open_store(incident_url)
    with leases.held(other, "run 7"), pytest.raises(RefusedError, match="run run 7"):
        analyse(incident, run="run 8")
    other.dispose()


@pytest.fixture
def without_rights(incident: Engine, incident_url: str, new_role: NewRole) -> Iterator[Engine]:
    role = new_role()
    cycle.run_sql(incident, f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}")
    cycle.run_sql(incident, f"GRANT SELECT ON ALL TABLES IN SCHEMA upload_pipeline TO {role}")
    cycle.run_sql(incident, f"ALTER ROLE {role} BYPASSRLS")
    engine = open_store(as_role(incident_url, role))
    yield engine
    engine.dispose()
    cycle.run_sql(incident, f"DROP OWNED BY {role}")


def test_where_no_copy_can_be_made_the_catalogs_speak_and_say_so(without_rights: Engine) -> None:
    found = analyse(without_rights)

    assert not found["tried"]
    assert "derived from the catalogs, since no copy could be made" in found["note"]
    assert "CREATEDB" in found["note"]
    assert {e["basis"] for e in found["constraint_analysis"]} == {"derived, not tried"}
    assert failing(found, COPY) == {"uq_user_filehash": (None, 38)}
    assert failing(found, CHILDREN_FIRST).keys() == {
        "upload_jobs_document_id_fkey", "events_document_id_fkey", "document_chunks_document_id_fkey",
    }  # fmt: skip
    assert found["verdict"].startswith("these 38 violations of uq_user_filehash are the copy")


def test_what_was_tried_is_taken_over_until_the_catalog_or_the_sample_changes(
    incident: Engine, analysed: dict[str, Any]
) -> None:
    again = analyse(incident, earlier=analysed)
    assert again["reused"]
    assert again["constraint_analysis"] == analysed["constraint_analysis"]

    cycle.run_sql(incident, "DROP INDEX upload_pipeline.uq_user_filehash")
    changed = analyse(incident, earlier=analysed)
    assert not changed["reused"]
    assert failing(changed, COPY) == {}
    assert changed["verdict"].startswith("no unique key refuses any of the 38 ids")


@pytest.mark.begins("migrated")
def test_where_nothing_would_move_nothing_is_tried(incident: Engine) -> None:
    found = analyse(incident)
    assert (found["verdict"], found["constraint_analysis"]) == (analysis.NOTHING, [])


def test_programs_are_looked_for_only_where_they_may_be(incident: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("uuid_pipeline.engine.backups.pg_tools._INSTALLED", ())
    store = cycle.bound_store(incident, SPEC)
    found = analysis.analyse(incident, store, Workshop(Path("/nonexistent"), (Path("/nonexistent"),)))
    assert not found["tried"]
    assert "pg_dump" in found["note"]


def test_functions_that_find_names_by_the_search_path_can_be_tried_on_a_copy(
    empty_store: Engine, empty_url: str
) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute(
            """
            CREATE SCHEMA shop; CREATE SCHEMA util; SET search_path TO shop, util;
            CREATE FUNCTION util.inner_code(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT lower(t) $$;
            CREATE FUNCTION shop.is_code(t text) RETURNS bool LANGUAGE plpgsql IMMUTABLE
                AS $$ BEGIN RETURN length(inner_code(t)) > 1; END $$;
            CREATE TABLE shop.items (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text CHECK (is_code(code)));
            CREATE TABLE shop.uses (use int PRIMARY KEY, item uuid REFERENCES shop.items);
            INSERT INTO shop.items (code) VALUES ('C1'), ('C2');
            INSERT INTO shop.uses SELECT row_number() OVER (), id FROM shop.items;
            """
        )
        connection.execute(f"ALTER DATABASE {urlsplit(empty_url).path[1:]} SET search_path TO shop, util")
    empty_store.dispose()
    spec = parse_spec(
        """
        namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
        schema: shop
        backup: none
        entities:
          item: {table: items, key: id, identity: "{code}"}
        """,
        "test",
    )

    found = analyse(empty_store, spec)

    assert found["tried"], found["note"]
    assert failing(found, CHILDREN_FIRST, "item") == {"uses_item_fkey": ("23503", 2)}


@pytest.mark.system
@pytest.mark.parametrize("past", [True, False], ids=["with a direct url", "without one"])
def test_trials_leave_no_setting_in_the_sessions_of_a_pooler(incident_url: str, pgbouncer: Pooled, past: bool) -> None:
    with psycopg.connect(incident_url) as own:
        [usual] = own.execute("SHOW search_path").fetchall()
    workshop = replace(WORKSHOP, direct_url=incident_url if past else None)
    with opened(pgbouncer(incident_url)) as pooled:
        found = analysis.analyse(pooled, cycle.bound_store(pooled, SPEC), workshop)

    assert found["tried"] is past, found["note"]
    assert past or "UUID_PIPELINE_DIRECT_URL" in found["note"]
    with psycopg.connect(pgbouncer(incident_url)) as one, psycopg.connect(pgbouncer(incident_url)) as other:
        for lent in (one, other):
            assert lent.execute("SHOW search_path").fetchall() == [usual]


def test_counting_that_takes_too_long_is_done_on_fewer_rows_and_never_stops_the_plan(
    incident: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second for each document that is looked at stands for a large reference without an index."""
    counted = entries.counted

    def slowly(connection: Connection, *arguments: Any) -> Any:
        connection.exec_driver_sql("SELECT pg_sleep(0.5 * count(*)) FROM pg_temp.looked_document").all()
        return counted(connection, *arguments)

    monkeypatch.setattr(entries, "counted", slowly)
    monkeypatch.setattr(analysis, "COUNT_TIMEOUT", "3s")
    monkeypatch.setattr(moving, "FEW", 2)

    found = analyse(incident)

    assert {name: (one["rows"], one["exact"]) for name, one in found["looked_at"].items()} == {
        "document": (2, False), "chunk": (2, False),
    }  # fmt: skip
    assert {a["of"] for a in found["approaches"]} == {2}

    monkeypatch.setattr(analysis, "COUNT_TIMEOUT", "1ms")
    found = analyse(incident)
    assert (found["verdict"], found["approaches"]) == (analysis.NOT_COUNTED, [])
    assert found["constraint_analysis"]


def test_that_no_key_refuses_what_was_looked_at_says_nothing_of_duplicates_among_the_rest() -> None:
    said = verdict.verdict("document", 20_000, exact=False, entries=[])

    assert said.startswith("no unique key refuses any of the 20000 ids to change that were looked at")
    assert "no duplicate content" not in said


@pytest.mark.parametrize(
    "index",
    [
        "CREATE UNIQUE INDEX odd ON upload_pipeline.documents ((file_sha256 || 100 / (bytes_len - %s))) "
        "WHERE bytes_len <> %s",
        "CREATE FUNCTION upload_pipeline.slug(upload_pipeline.documents) RETURNS text IMMUTABLE LANGUAGE sql "
        "AS $$SELECT ($1).file_sha256$$; "
        "CREATE UNIQUE INDEX odd ON upload_pipeline.documents (user_id, upload_pipeline.slug(documents.*))",
    ],
    ids=["one that fails for rows outside of it", "one over the whole row"],
)
def test_an_index_over_expressions_keeps_nobody_from_planning(incident: Engine, index: str) -> None:
    [(size,)] = cycle.run_sql(incident, "SELECT min(bytes_len) FROM upload_pipeline.documents")
    cycle.run_sql(incident, index.replace("%s", str(size)))

    found = analyse(incident)

    assert "odd" in failing(found, COPY)

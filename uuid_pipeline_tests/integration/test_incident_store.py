"""The demo store: the report's figures, its schema's rules, and how the report's tools failed on it."""

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy
from sqlalchemy.exc import DBAPIError, IntegrityError

from uuid_pipeline.demo.incident import NAMESPACE, add_vector_buffer, build_incident
from uuid_pipeline.errors import UsageError

TABLES = ("documents", "upload_jobs", "document_chunks", "events", "webhook_log")
NOW = datetime(2025, 9, 11, 12, tzinfo=UTC)


@pytest.fixture
def connection(incident: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
    """A connection to the store whose transaction is rolled back after the test."""
    with incident.connect() as connection:
        connection.exec_driver_sql("SET search_path = upload_pipeline, public")
        yield connection
        connection.rollback()


def rows(connection: sqlalchemy.Connection, query: str, **names: str) -> list[tuple[object, ...]]:
    """Run a query, with names put into its braces if any are given."""
    return [tuple(row) for row in connection.exec_driver_sql(query.format(**names) if names else query)]


def one(connection: sqlalchemy.Connection, query: str, **names: str) -> object:
    [(value,)] = rows(connection, query, **names)
    return value


def become(connection: sqlalchemy.Connection, role: str, user: object) -> None:
    # Our engine's connections turn hidden rows into an error; an application's do not.
    connection.exec_driver_sql("SET LOCAL row_security = on")
    connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
    connection.exec_driver_sql(f"SET LOCAL request.jwt.claim.sub = '{user}'")


def digests(engine: sqlalchemy.Engine, seed: int) -> list[object]:
    """Digests of all tables of a store built with this seed, which is rolled back."""
    with engine.connect() as connection:
        build_incident(connection, seed=seed, now=NOW)
        query = "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM upload_pipeline.{table} AS t"
        found = [one(connection, query, table=table) for table in TABLES]
        connection.rollback()
    return found


def test_the_store_gives_the_reports_figures(connection: sqlalchemy.Connection) -> None:
    query = """
        SELECT count(*), count(*) FILTER (WHERE uuid_extract_version(document_id) = 4),
               count(DISTINCT user_id), sum(bytes_len),
               count(*) FILTER (WHERE processing_status = 'complete'),
               count(*) FILTER (WHERE processing_status = 'duplicate'),
               count(*) FILTER (WHERE processing_status IS NULL)
        FROM documents"""

    assert rows(connection, query) == [(38, 38, 27, 3_520_000, 29, 8, 1)]
    assert one(connection, "SELECT count(*) FROM document_chunks") == 87
    assert one(connection, "SELECT count(DISTINCT document_id) FROM document_chunks") == 29
    assert one(connection, "SELECT count(DISTINCT document_id) FROM upload_jobs") == 38
    assert one(connection, "SELECT count(*) FROM upload_jobs") == 38
    assert "Scan Classic HMO.pdf" in [name for (name,) in rows(connection, "SELECT filename FROM documents")]


def test_one_user_has_six_documents_six_have_two_and_twenty_one(connection: sqlalchemy.Connection) -> None:
    query = """
        SELECT documents, count(*)
        FROM (SELECT count(*) AS documents FROM documents GROUP BY user_id) AS by_user
        GROUP BY 1 ORDER BY 1"""

    assert rows(connection, query) == [(1, 20), (2, 6), (6, 1)]


def test_only_complete_documents_have_chunks_and_the_failed_one_says_why(
    connection: sqlalchemy.Connection,
) -> None:
    chunks = """
        SELECT processing_status, array_agg(chunk_ord ORDER BY chunk_ord)
        FROM documents JOIN document_chunks USING (document_id) GROUP BY document_id"""
    failed = """
        SELECT state, status, last_error ->> 'code' FROM documents JOIN upload_jobs USING (document_id)
        WHERE processing_status IS NULL"""

    assert rows(connection, chunks) == [("complete", [0, 1, 2])] * 29
    assert rows(connection, failed) == [("deadletter", "failed_parse", "PARSE_TIMEOUT")]


def test_chunk_ids_are_version_5_of_the_random_document_id_and_all_wrong(
    connection: sqlalchemy.Connection,
) -> None:
    query = """
        SELECT chunk_id, document_id, user_id, file_sha256, chunker_name, chunker_version, chunk_ord
        FROM document_chunks JOIN documents USING (document_id)"""

    for chunk_id, document_id, user_id, file_sha256, *rest in rows(connection, query):
        chunk = ":".join(map(str, rest))
        target = uuid.uuid5(NAMESPACE, f"{user_id}:{file_sha256}")
        assert chunk_id == uuid.uuid5(NAMESPACE, f"{document_id}:{chunk}")
        assert chunk_id != uuid.uuid5(NAMESPACE, f"{target}:{chunk}")


def test_every_time_is_of_the_last_seven_days_and_an_update_would_show(
    connection: sqlalchemy.Connection,
) -> None:
    times = {
        "documents": ("created_at", "updated_at"),
        "upload_jobs": ("created_at", "updated_at"),
        "document_chunks": ("created_at", "updated_at", "embed_updated_at"),
        "events": ("ts",),
        "webhook_log": ("processed_at",),
    }
    extremes = "SELECT min({column}), max({column}) FROM {table}"
    changed = "SELECT count(*) FROM {table} WHERE updated_at <> created_at"
    for table, columns in times.items():
        for column in columns:
            [(first, last)] = rows(connection, extremes, column=column, table=table)
            assert isinstance(first, datetime)
            assert isinstance(last, datetime)
            now = datetime.now(UTC)
            assert now - timedelta(days=7) < first < last < now
    for table in ("documents", "upload_jobs", "document_chunks"):
        assert one(connection, changed, table=table) != 0


def test_hashes_are_64_lower_hex_digits_and_no_content_is_there_twice(
    connection: sqlalchemy.Connection,
) -> None:
    query = "SELECT count(DISTINCT file_sha256) FROM documents WHERE file_sha256 ~ '^[0-9a-f]{64}$'"

    assert one(connection, query) == 38


def test_paths_hold_the_old_id_whole_or_as_a_digest(connection: sqlalchemy.Connection) -> None:
    query = """
        SELECT count(*) FILTER (WHERE parsed_path = folder || document_id || '.md'),
               count(*) FILTER (WHERE parsed_path = folder || left(md5(document_id::text), 8) || '.md'),
               count(parsed_path)
        FROM (SELECT *, 'storage://files/user/' || user_id || '/parsed/' AS folder FROM documents) AS d"""

    [(whole, digest, both)] = rows(connection, query)

    assert whole
    assert digest
    assert (both, int(str(whole)) + int(str(digest))) == (29, 29)


@pytest.mark.parametrize(("table", "column"), [("events", "payload"), ("upload_jobs", "progress")])
def test_some_json_repeats_the_document_id_and_some_does_not(
    connection: sqlalchemy.Connection, table: str, column: str
) -> None:
    query = """
        SELECT count(*), count({column} -> 'document_id'),
               count(*) FILTER (WHERE {column} ->> 'document_id' = document_id::text)
        FROM {table}"""

    [(every, named, right)] = rows(connection, query, table=table, column=column)

    assert named == right
    assert 0 < int(str(right)) < int(str(every))


def test_uq_user_filehash_is_an_index_and_no_constraint(connection: sqlalchemy.Connection) -> None:
    index = """
        SELECT indisunique, pg_get_indexdef(indexrelid) FROM pg_index
        WHERE indexrelid = 'uq_user_filehash'::regclass"""

    [(unique, definition)] = rows(connection, index)

    assert unique
    assert str(definition).endswith("(user_id, file_sha256)")
    assert one(connection, "SELECT count(*) FROM pg_constraint WHERE conname = 'uq_user_filehash'") == 0


def test_foreign_keys_are_plain_and_these(connection: sqlalchemy.Connection) -> None:
    query = """
        SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint
        WHERE contype = 'f' AND confdeltype = 'a' AND confupdtype = 'a' AND NOT condeferrable AND convalidated
        ORDER BY 1, 2"""

    assert rows(connection, query) == [
        ("document_chunks", "documents"),
        ("events", "documents"),
        ("events", "upload_jobs"),
        ("upload_jobs", "documents"),
        ("webhook_log", "upload_jobs"),
    ]
    assert one(connection, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == 5


def test_the_vector_index_is_partial_and_chunks_leave_room_for_updates(
    connection: sqlalchemy.Connection,
) -> None:
    definition = one(connection, "SELECT pg_get_indexdef('ix_document_chunks_embedding'::regclass)")

    assert "USING ivfflat (embedding vector_cosine_ops)" in str(definition)
    assert "WHERE (embed_model = 'text-embedding-3-small'::text)" in str(definition)
    options = one(connection, "SELECT reloptions FROM pg_class WHERE oid = 'document_chunks'::regclass")
    assert options == ["fillfactor=70"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE upload_jobs SET state = 'lost'",
        "UPDATE upload_jobs SET status = 'lost'",
        "UPDATE document_chunks SET vector_dim = 3",
    ],
)
def test_values_outside_the_lists_are_refused(connection: sqlalchemy.Connection, statement: str) -> None:
    with pytest.raises(IntegrityError, match="violates check constraint"):
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize("table", ["documents", "upload_jobs", "document_chunks"])
def test_an_update_bumps_updated_at(connection: sqlalchemy.Connection, table: str) -> None:
    query = """
        WITH updated AS (UPDATE {table} SET created_at = created_at RETURNING updated_at)
        SELECT bool_and(updated_at = now()) FROM updated"""

    assert one(connection, query, table=table) is True


def test_a_user_sees_the_rows_of_his_documents_only(connection: sqlalchemy.Connection) -> None:
    user = one(connection, "SELECT user_id FROM documents GROUP BY 1 ORDER BY count(*) DESC LIMIT 1")
    owned = "SELECT count(*) FROM {table} JOIN documents AS d USING (document_id) WHERE d.user_id = '{user}'"
    tables = ("upload_jobs", "document_chunks", "events")
    expected = [one(connection, owned, table=table, user=str(user)) for table in tables]
    seen = "SELECT count(*) FROM {table}"

    become(connection, "authenticated", user)

    assert one(connection, "SELECT count(*) FROM documents") == 6
    assert [one(connection, seen, table=table) for table in tables] == expected
    become(connection, "authenticated", uuid.uuid4())
    assert [one(connection, seen, table=table) for table in ("documents", *tables)] == [0] * 4


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("authenticated", "DELETE FROM documents"),
        ("authenticated", "SELECT FROM webhook_log"),
        ("anon", "SELECT FROM upload_pipeline.documents"),
    ],
)
def test_what_a_role_has_no_right_to_is_denied(connection: sqlalchemy.Connection, role: str, statement: str) -> None:
    become(connection, role, uuid.uuid4())

    with pytest.raises(DBAPIError, match="permission denied"):
        connection.exec_driver_sql(statement)


def test_the_service_sees_every_row(connection: sqlalchemy.Connection) -> None:
    become(connection, "service_role", "")

    assert one(connection, "SELECT count(*) FROM documents") == 38
    assert one(connection, "SELECT count(*) FROM webhook_log") != 0


def test_retrieval_by_the_vector_index_finds_a_chunk_by_its_own_embedding(
    connection: sqlalchemy.Connection,
) -> None:
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    connection.exec_driver_sql("SET LOCAL enable_sort = off")
    query = """
        SELECT d.user_id = asked.user_id AND found.chunk_id = asked.chunk_id
        FROM (SELECT * FROM document_chunks JOIN documents USING (document_id)) AS asked
        CROSS JOIN LATERAL (
            SELECT chunk_id, document_id FROM document_chunks
            WHERE embed_model = 'text-embedding-3-small' ORDER BY embedding <=> asked.embedding LIMIT 1
        ) AS found JOIN documents AS d ON d.document_id = found.document_id"""

    assert "ix_document_chunks_embedding" in str(rows(connection, "EXPLAIN " + query))
    assert rows(connection, query) == [(True,)] * 87


def test_the_reports_standard_tool_fails_on_the_foreign_key(connection: sqlalchemy.Connection) -> None:
    with pytest.raises(IntegrityError, match="violates foreign key constraint"):
        connection.exec_driver_sql("UPDATE document_chunks SET document_id = gen_random_uuid()")


def test_the_reports_safe_tool_fails_on_the_documents_own_old_row(connection: sqlalchemy.Connection) -> None:
    copy = """
        INSERT INTO documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
        SELECT gen_random_uuid(), user_id, filename, mime, bytes_len, file_sha256, raw_path
        FROM documents LIMIT 1"""

    with pytest.raises(IntegrityError, match="uq_user_filehash"):
        connection.exec_driver_sql(copy)


def test_the_older_vector_buffer_refers_to_documents_without_a_foreign_key(
    connection: sqlalchemy.Connection,
) -> None:
    add_vector_buffer(connection)
    keys = """
        SELECT confrelid::regclass::text FROM pg_constraint
        WHERE contype = 'f' AND conrelid = 'document_vector_buffer'::regclass"""
    joined = "SELECT count(*) FROM document_vector_buffer JOIN document_chunks USING (chunk_id, document_id)"

    assert rows(connection, keys) == [("document_chunks",)]
    assert one(connection, joined) == 87


def test_a_seed_gives_the_same_rows_every_time_and_another_seed_others(
    empty_store: sqlalchemy.Engine,
) -> None:
    first, again, other = digests(empty_store, 38), digests(empty_store, 38), digests(empty_store, 39)

    assert first == again
    assert not set(first) & set(other)


def test_the_store_is_built_in_the_callers_transaction(empty_store: sqlalchemy.Engine) -> None:
    schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'upload_pipeline'"
    with empty_store.connect() as connection:
        build_incident(connection)
        connection.rollback()
        assert one(connection, schemas) == 0
    with empty_store.connect() as connection:
        build_incident(connection)
        add_vector_buffer(connection)
        connection.commit()
    with empty_store.connect() as connection:
        assert one(connection, schemas) == 1
        assert one(connection, "SELECT count(*) FROM upload_pipeline.document_vector_buffer") == 87


def test_the_store_is_built_in_less_than_a_second_and_a_half(empty_store: sqlalchemy.Engine) -> None:
    began = time.perf_counter()
    with empty_store.begin() as connection:
        build_incident(connection)

    assert time.perf_counter() - began < 1.5


def test_another_driver_is_refused(empty_store: sqlalchemy.Engine) -> None:
    engine = sqlalchemy.create_engine(empty_store.url.set(drivername="postgresql+psycopg2"))
    with engine.connect() as connection, pytest.raises(UsageError, match="psycopg 3"):
        build_incident(connection)
    engine.dispose()

"""The demo's other stores: what they hold, seen by plain SQL and the standard uuid5."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from uuid_pipeline.demo import server as embedded
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.demo.sized import BYTES_A_DOCUMENT, build_sized, bytes_needed, require_room
from uuid_pipeline.demo.twins import build_twins
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.errors import UsageError
from uuid_pipeline_tests.integration import cycle

NOW = datetime(2025, 9, 11, 12, tzinfo=UTC)
DOCUMENTS = 400

Sets = dict[tuple[str, str], set[int]]
Twins = list[tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="module")
def stores(server: EmbeddedServer) -> Iterator[dict[str, Engine]]:
    """Both stores, built for the tests of this module, which change nothing that lasts."""
    made: dict[str, Engine] = {}
    builders: dict[str, Callable[[Connection], None]] = {
        "twins": build_twins,
        "sized": lambda connection: build_sized(connection, DOCUMENTS),
    }
    for name, build in builders.items():
        # A worker that takes over tests from another may come to this module twice.
        database = f"scenario_{name}_{uuid.uuid4().hex}"
        embedded.ensure_database(server, database)
        made[name] = open_store(server.url(database))
        with made[name].begin() as connection:
            build(connection)
    yield made
    for engine in made.values():
        engine.dispose()


@pytest.fixture
def twins(stores: dict[str, Engine]) -> Iterator[Connection]:
    """The twins, in a transaction that is rolled back after the test."""
    yield from in_transaction(stores["twins"])


@pytest.fixture
def sized(stores: dict[str, Engine]) -> Iterator[Connection]:
    """A store of 400 documents, in a transaction that is rolled back after the test."""
    yield from in_transaction(stores["sized"])


def in_transaction(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        connection.exec_driver_sql("SET search_path = upload_pipeline, public")
        yield connection
        connection.rollback()


def rows(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.exec_driver_sql(query)]


def documents(connection: Connection) -> list[dict[str, Any]]:
    """Every document with its chunk sets, its normalised hash and the id it should have."""
    sets: dict[uuid.UUID, Sets] = {}
    query = "SELECT document_id, chunker_name, chunker_version, chunk_ord FROM document_chunks"
    for document_id, name, version, number in rows(connection, query):
        sets.setdefault(document_id, {}).setdefault((name, version), set()).add(number)
    found = connection.exec_driver_sql("SELECT * FROM documents").mappings()
    return [
        {**row, "sets": sets.get(row["document_id"], {}), "target": target(row["user_id"], row["file_sha256"])}
        for row in found
    ]


def target(user: uuid.UUID, file_sha256: str) -> uuid.UUID:
    return uuid.uuid5(cycle.NAMESPACE, f"{user}:{file_sha256.strip(' ').lower()}")


def pairs(connection: Connection) -> Twins:
    """The random one and the deterministic one of every cluster."""
    clusters: dict[uuid.UUID, list[dict[str, Any]]] = {}
    for row in documents(connection):
        clusters.setdefault(row["target"], []).append(row)
    both = [sorted(c, key=lambda row: row["document_id"] == row["target"]) for c in clusters.values() if len(c) > 1]
    return [(first, again) for first, again in both]


def test_fifty_documents_are_thirty_eight_and_twelve_of_them_are_already_deterministic(twins: Connection) -> None:
    found = documents(twins)

    assert len(found) == 50
    assert Counter(Counter(row["target"] for row in found).values()) == {1: 26, 2: 12}
    assert sum(row["document_id"] == row["target"] for row in found) == 12
    assert sum(row["document_id"].version == 4 for row in found) == 38
    for first, again in pairs(twins):
        assert (first["document_id"].version, again["document_id"]) == (4, again["target"])
        assert first["user_id"] == again["user_id"]
        assert first["created_at"] < again["created_at"] < datetime.now(UTC)


def test_the_unique_index_is_missing_and_could_not_be_made_before_the_merge(twins: Connection) -> None:
    assert rows(twins, "SELECT to_regclass('uq_user_filehash')") == [(None,)]
    with pytest.raises(IntegrityError, match="could not create unique index"):
        twins.exec_driver_sql("CREATE UNIQUE INDEX ON documents (user_id, lower(btrim(file_sha256)))")


def test_twins_differ_in_spelling_and_in_time_as_in_life(twins: Connection) -> None:
    found = pairs(twins)

    spelled = Counter(
        (first["file_sha256"] == again["file_sha256"], first["file_sha256"].lower() == again["file_sha256"].lower())
        for first, again in found
    )
    assert spelled[True, True] >= 3
    assert spelled[False, True] >= 2  # another case
    assert spelled[False, False] >= 2  # spaces around
    assert any(again["file_sha256"] != again["file_sha256"].strip().lower() for _, again in found)
    assert sum((again["created_at"] - first["created_at"]).total_seconds() < 1 for first, again in found) == 2


def test_twins_have_every_relation_of_chunk_sets(twins: Connection) -> None:
    seen: Counter[str] = Counter()
    for first, again in pairs(twins):
        a, b = first["sets"], again["sets"]
        seen["only the random one has chunks"] += bool(a) and not b
        seen["only the deterministic one has chunks"] += bool(b) and not a
        seen["no version in common"] += bool(a) and bool(b) and not set(a) & set(b)
        seen["one version in common, one not"] += bool(set(a) & set(b)) and set(a) != set(b)
        for version in set(a) & set(b):
            seen["equal"] += a[version] == b[version]
            seen["random one has more"] += a[version] > b[version]
            seen["deterministic one has more"] += b[version] > a[version]
            seen["in part"] += bool(a[version] & b[version] and a[version] - b[version] and b[version] - a[version])

    assert seen == {
        "only the random one has chunks": 1,
        "only the deterministic one has chunks": 1,
        "no version in common": 1,
        "one version in common, one not": 1,
        "equal": 4,
        "random one has more": 1,
        "deterministic one has more": 2,
        "in part": 2,
    }


def test_chunk_ids_of_deterministic_documents_are_right_and_all_others_stray(twins: Connection) -> None:
    query = """
        SELECT chunk_id, document_id, user_id, file_sha256, chunker_name, chunker_version, chunk_ord
        FROM document_chunks JOIN documents USING (document_id)"""
    right: Counter[tuple[bool, bool]] = Counter()
    for chunk_id, document_id, user, file_sha256, *parts in rows(twins, query):
        goal = target(user, file_sha256)
        own = uuid.uuid5(cycle.NAMESPACE, ":".join(map(str, (goal, *parts))))
        right[document_id == goal, chunk_id == own] += 1

    assert right == {(True, True): 38, (False, False): 89}


def test_jobs_events_webhooks_and_buffered_vectors_hang_on_both_twins(twins: Connection) -> None:
    tables = {
        table: {row[0] for row in rows(twins, query)}
        for table, query in {
            "jobs": "SELECT document_id FROM upload_jobs",
            "events": "SELECT document_id FROM events",
            "webhooks": "SELECT document_id FROM webhook_log JOIN upload_jobs USING (job_id)",
            "buffer": "SELECT b.document_id FROM document_vector_buffer b JOIN document_chunks USING (chunk_id)",
        }.items()
    }

    for first, again in pairs(twins):
        for twin in (first["document_id"], again["document_id"]):
            assert twin in tables["jobs"] & tables["events"]
    for place in (0, 1):
        ids = {pair[place]["document_id"] for pair in pairs(twins)}
        assert len(ids & tables["webhooks"]) > 4
        assert len(ids & tables["buffer"]) == 11
    counts = "SELECT (SELECT count(*) FROM document_vector_buffer) = (SELECT count(*) FROM document_chunks)"
    assert rows(twins, counts) == [(True,)]


def test_moving_the_random_twins_naively_hits_the_unique_key_of_chunks(twins: Connection) -> None:
    """The collision that merging has to solve is a real one of the store's own constraints."""
    first, again = next(pair for pair in pairs(twins) if pair[0]["sets"] == pair[1]["sets"])
    with pytest.raises(IntegrityError, match="document_chunks_document_id_chunker_name"):
        twins.exec_driver_sql(
            "UPDATE document_chunks SET document_id = %s WHERE document_id = %s",
            (again["document_id"], first["document_id"]),
        )


def test_a_seed_gives_the_same_twins_every_time(empty_store: Engine) -> None:
    tables = ("documents", "upload_jobs", "document_chunks", "events", "webhook_log", "document_vector_buffer")

    def digests(seed: int) -> list[tuple[Any, ...]]:
        with empty_store.connect() as connection:
            build_twins(connection, seed=seed, now=NOW)
            query = "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM upload_pipeline.{} AS t"
            found = [rows(connection, query.format(table))[0] for table in tables]
            connection.rollback()
        return found

    first, again, other = digests(50), digests(50), digests(51)
    assert first == again
    assert not set(first) & set(other)


def test_a_sized_store_has_that_many_documents_and_what_hangs_on_them(sized: Connection) -> None:
    chunks = "SELECT count(DISTINCT document_id), count(*), count(DISTINCT chunk_id) FROM document_chunks"
    [(with_chunks, every, distinct)] = rows(sized, chunks)

    for table in ("documents", "upload_jobs", "events"):
        query = "SELECT count(*), count(DISTINCT document_id) FROM {}"
        assert rows(sized, query.format(table)) == [(DOCUMENTS, DOCUMENTS)]
    assert 0.65 * DOCUMENTS < with_chunks < 0.85 * DOCUMENTS
    assert 9 * with_chunks < every < 11 * with_chunks
    assert every == distinct
    assert {row["document_id"].version for row in documents(sized)} == {4}
    assert not any(row["document_id"] == row["target"] for row in documents(sized))


def test_a_sized_store_has_no_dangling_row_although_its_keys_were_not_asked(sized: Connection) -> None:
    """The foreign keys were switched off while it was filled, and are on afterwards."""
    dangling = "SELECT count(*) FROM {} t WHERE NOT EXISTS (SELECT FROM {} p WHERE p.{column} = t.{column})"
    for table, column, parent in (
        ("upload_jobs", "document_id", "documents"),
        ("document_chunks", "document_id", "documents"),
        ("events", "document_id", "documents"),
        ("events", "job_id", "upload_jobs"),
    ):
        query = dangling.format(table, parent, column=column)
        assert rows(sized, query) == [(0,)]
    with pytest.raises(IntegrityError, match="violates foreign key constraint"):
        sized.exec_driver_sql("UPDATE events SET document_id = gen_random_uuid()")


def test_a_sized_store_is_mixed_as_a_real_one(sized: Connection) -> None:
    statuses = dict(rows(sized, "SELECT coalesce(processing_status, '-'), count(*) FROM documents GROUP BY 1"))
    users = [n for (n,) in rows(sized, "SELECT count(*) FROM documents GROUP BY user_id ORDER BY 1 DESC")]
    dates = "SELECT max(created_at) < now(), min(created_at) > now() - interval '366 days', "
    recent = "count(*) FILTER (WHERE created_at > now() - interval '7 days') FROM documents"

    assert set(statuses) >= {"complete", "duplicate", "failed_parse", "-"}
    assert statuses["complete"] == max(statuses.values())
    assert users[0] > 10 * users[len(users) // 2]
    assert sum(users) == DOCUMENTS
    [(past, this_year, last_week)] = rows(sized, dates + recent)
    assert (past, this_year) == (True, True)
    assert 0 < last_week < DOCUMENTS / 10


def test_sized_vectors_are_whole_small_and_of_the_schema(sized: Connection) -> None:
    query = """
        SELECT min(vector_dims(embedding)), max(vector_dims(embedding)), count(DISTINCT embedding),
               avg(pg_column_size(embedding))::int, min(vector_norm(embedding)) > 0
        FROM document_chunks"""

    [(least, most, distinct, size, nonzero)] = rows(sized, query)

    assert (least, most, nonzero) == (1536, 1536, True)
    assert distinct == 256
    assert size < 300


def test_a_sized_store_migrates(empty_store: Engine) -> None:
    with empty_store.begin() as connection:
        build_sized(connection, 30)
    before = cycle.rows_of(empty_store)

    cycle.run_all(empty_store, cycle.spec_with())

    assert cycle.rows_of(empty_store) == cycle.expected_rows(before)


def test_a_store_that_does_not_fit_the_disk_is_refused(tmp_path: Path) -> None:
    require_room(1000, tmp_path)

    with pytest.raises(UsageError, match=r"1,000,000,000,000 documents needs up to .* GB free\. Ask for fewer"):
        require_room(10**12, tmp_path)


def test_the_estimate_of_a_size_is_not_below_what_it_takes(empty_store: Engine) -> None:
    with empty_store.begin() as connection:
        empty = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one()
        build_sized(connection, 3000)
        taken = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one() - empty
        connection.rollback()

    assert taken < 3 * BYTES_A_DOCUMENT * 3000 < bytes_needed(3000)

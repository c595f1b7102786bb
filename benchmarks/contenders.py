"""The hand-written alternatives, each written as well as it can be; mapping included."""

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks import store

_NAMESPACE = store.NAMESPACE.bytes


def target(natural_key: bytes) -> bytes:
    """uuid5 of the store's namespace, text to text: what a fast script would write."""
    digest = hashlib.sha1(_NAMESPACE + natural_key, usedforsecurity=False).hexdigest()
    return f"{digest[:12]}5{digest[13:16]}{'89ab'[int(digest[16], 16) & 3]}{digest[17:32]}".encode()


def replica(url: str) -> float:
    """One transaction under the replica role: maps by Python over COPY, four UPDATE … FROM them. Seconds."""
    started = time.perf_counter()
    with psycopg.connect(url) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        # Else the maps do not fit into the hash joins: 41 s instead of 35 s for a million chunks.
        connection.execute("SET LOCAL work_mem = '256MB'")
        map_documents(connection)
        map_chunks(connection)
        connection.execute(
            "UPDATE bench.documents t SET document_id = m.new_id FROM document_map m WHERE t.document_id = m.old_id"
        )
        connection.execute(
            """UPDATE bench.chunks t SET chunk_id = m.new_id, document_id = m.new_document_id
               FROM chunk_map m WHERE t.chunk_id = m.old_id"""
        )
        for table in (b"jobs", b"events"):
            connection.execute(
                b"UPDATE bench." + table + b" t SET document_id = m.new_id FROM document_map m"
                b" WHERE t.document_id = m.old_id"
            )
    return time.perf_counter() - started


def map_documents(connection: psycopg.Connection[Any]) -> None:
    """Temporary table document_map: old id, new id; indexed and analyzed."""
    connection.execute("CREATE TEMP TABLE document_map (old_id uuid NOT NULL, new_id uuid NOT NULL)")
    natural_keys = "COPY (SELECT document_id, user_id || ':' || lower(file_sha256) FROM bench.documents) TO STDOUT"
    rows = (b"%b\t%b\n" % (old, target(key)) for old, key in _lines(connection, natural_keys))
    _load(connection, "COPY document_map FROM STDIN", rows)
    connection.execute("ALTER TABLE document_map ADD PRIMARY KEY (old_id)")
    connection.execute("ANALYZE document_map")


def map_chunks(connection: psycopg.Connection[Any]) -> None:
    """Temporary table chunk_map: old id, new id, new id of its document; indexed and analyzed."""
    connection.execute(
        "CREATE TEMP TABLE chunk_map (old_id uuid NOT NULL, new_id uuid NOT NULL, new_document_id uuid NOT NULL)"
    )
    natural_keys = """COPY (SELECT c.chunk_id, m.new_id, concat_ws(':', m.new_id, c.chunker, c.version, c.ord)
                            FROM bench.chunks c JOIN document_map m ON m.old_id = c.document_id) TO STDOUT"""
    rows = (b"%b\t%b\t%b\n" % (old, target(key), new) for old, new, key in _lines(connection, natural_keys))
    _load(connection, "COPY chunk_map FROM STDIN", rows)
    connection.execute("ALTER TABLE chunk_map ADD PRIMARY KEY (old_id)")
    connection.execute("ANALYZE chunk_map")


def _lines(connection: psycopg.Connection[Any], statement: str) -> Iterator[list[bytes]]:
    """The rows of a COPY … TO STDOUT, split at tabs; keys hold none, nor backslashes."""
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        text = b"".join(copy)
    for line in text.splitlines():
        yield line.split(b"\t")


def _load(connection: psycopg.Connection[Any], statement: str, rows: Iterator[bytes]) -> None:
    # The whole map is held in memory, as scripts do.
    text = b"".join(rows)
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        copy.write(text)

"""The hand-written alternatives, each written as well as it can be; mapping included."""

import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2

from benchmarks import store

_NAMESPACE = store.NAMESPACE.bytes


def target(natural_key: bytes) -> bytes:
    """uuid5 of the store's namespace, text to text: what a fast script would write."""
    digest = hashlib.sha1(_NAMESPACE + natural_key, usedforsecurity=False).hexdigest()
    return f"{digest[:12]}5{digest[13:16]}{'89ab'[int(digest[16], 16) & 3]}{digest[17:32]}".encode()


def replica(url: str) -> float:
    """One transaction under the replica role: maps by Python over COPY, four UPDATE … FROM them. Seconds."""
    started = time.perf_counter()
    # psycopg2's COPY is in C and twice as fast as psycopg's, which hands each row to Python.
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        # Else the maps do not fit into the hash joins: a seventh slower for a million chunks.
        cursor.execute("SET LOCAL work_mem = '256MB'")
        map_documents(cursor)
        map_chunks(cursor)
        cursor.execute(
            "UPDATE bench.documents t SET document_id = m.new_id FROM document_map m WHERE t.document_id = m.old_id"
        )
        cursor.execute(
            """UPDATE bench.chunks t SET chunk_id = m.new_id, document_id = m.new_document_id
               FROM chunk_map m WHERE t.chunk_id = m.old_id"""
        )
        cursor.execute(
            "UPDATE bench.jobs t SET document_id = m.new_id FROM document_map m WHERE t.document_id = m.old_id"
        )
        cursor.execute(
            "UPDATE bench.events t SET document_id = m.new_id FROM document_map m WHERE t.document_id = m.old_id"
        )
    return time.perf_counter() - started


def map_documents(cursor: Any) -> None:
    """Temporary table document_map: old id, new id; indexed and analyzed."""
    cursor.execute("CREATE TEMP TABLE document_map (old_id uuid NOT NULL, new_id uuid NOT NULL)")
    natural_keys = "COPY (SELECT document_id, user_id || ':' || lower(file_sha256) FROM bench.documents) TO STDOUT"
    rows = (b"%b\t%b\n" % (old, target(key)) for old, key in _lines(cursor, natural_keys))
    cursor.copy_expert("COPY document_map FROM STDIN", io.BytesIO(b"".join(rows)))
    cursor.execute("ALTER TABLE document_map ADD PRIMARY KEY (old_id)")
    cursor.execute("ANALYZE document_map")


def map_chunks(cursor: Any) -> None:
    """Temporary table chunk_map: old id, new id, new id of its document; indexed and analyzed."""
    cursor.execute(
        "CREATE TEMP TABLE chunk_map (old_id uuid NOT NULL, new_id uuid NOT NULL, new_document_id uuid NOT NULL)"
    )
    natural_keys = """COPY (SELECT c.chunk_id, m.new_id, concat_ws(':', m.new_id, c.chunker, c.version, c.ord)
                            FROM bench.chunks c JOIN document_map m ON m.old_id = c.document_id) TO STDOUT"""
    rows = (b"%b\t%b\t%b\n" % (old, target(key), new) for old, new, key in _lines(cursor, natural_keys))
    cursor.copy_expert("COPY chunk_map FROM STDIN", io.BytesIO(b"".join(rows)))
    cursor.execute("ALTER TABLE chunk_map ADD PRIMARY KEY (old_id)")
    cursor.execute("ANALYZE chunk_map")


def _lines(cursor: Any, statement: str) -> Iterator[list[bytes]]:
    """The rows of a COPY … TO STDOUT, split at tabs; keys hold none, nor backslashes."""
    read = io.BytesIO()
    cursor.copy_expert(statement, read)
    read.seek(0)
    for line in read:
        yield line.rstrip(b"\n").split(b"\t")

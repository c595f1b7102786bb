"""The hand-written alternatives, each written as well as it can be; mapping included."""

import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import sql

from benchmarks import store

_NAMESPACE = store.NAMESPACE.bytes


def target(natural_key: bytes) -> bytes:
    """uuid5 of the store's namespace, text to text: what a fast script would write."""
    d = hashlib.sha1(_NAMESPACE + natural_key, usedforsecurity=False).hexdigest()
    return f"{d[:8]}-{d[8:12]}-5{d[13:16]}-{'89ab'[int(d[16], 16) & 3]}{d[17:20]}-{d[20:32]}".encode()


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


def replica_with_rebuild(url: str) -> float:
    """The same with the vector index dropped before and rebuilt after it."""
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_indexdef('bench.ix_chunks_embedding'::regclass)")
        [(definition,)] = cursor.fetchall()
        started = time.perf_counter()
        cursor.execute("DROP INDEX bench.ix_chunks_embedding")
        connection.commit()
        replica(url)
        cursor.execute("SET maintenance_work_mem = '1GB'")
        cursor.execute(definition)
    return time.perf_counter() - started


def cascade(url: str) -> float:
    """Foreign keys made ON UPDATE CASCADE, documents and chunks updated, foreign keys made as they were. Seconds."""
    started = time.perf_counter()
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL work_mem = '256MB'")
        _touch_triggers(cursor, "DISABLE")
        _foreign_keys(cursor, "ON UPDATE CASCADE")
        map_documents(cursor)
        map_chunks(cursor)
        cursor.execute(
            "UPDATE bench.documents t SET document_id = m.new_id FROM document_map m WHERE t.document_id = m.old_id"
        )
        cursor.execute("UPDATE bench.chunks t SET chunk_id = m.new_id FROM chunk_map m WHERE t.chunk_id = m.old_id")
        # Else the changes of keys are pending, and the tables cannot be altered.
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        _foreign_keys(cursor, "")
        _touch_triggers(cursor, "ENABLE")
    return time.perf_counter() - started


@dataclass(frozen=True)
class Sampled:
    """A run over some of the documents: seconds of what is done once, and of the sample."""

    once: float
    documents: int
    seconds: float

    def whole(self, documents: int) -> float:
        """What all the documents would take, each as long as those of the sample."""
        return self.once + self.seconds * documents / self.documents


def loop(url: str, sample: int) -> Sampled:
    """The report's tool, mended by deferred foreign keys: one transaction a document, one UPDATE a row of a chunk."""
    started = time.perf_counter()
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        with connection:
            _touch_triggers(cursor, "DISABLE")
            _foreign_keys(cursor, "DEFERRABLE INITIALLY DEFERRED")
        with connection:
            cursor.execute("SELECT document_id, user_id, file_sha256 FROM bench.documents LIMIT %s", [sample])
            documents = cursor.fetchall()
        once = time.perf_counter() - started
        for document_id, user_id, file_sha256 in documents:
            with connection:
                _move_one(cursor, document_id, target(f"{user_id}:{file_sha256.lower()}".encode()).decode())
        seconds = time.perf_counter() - started - once
        before = time.perf_counter()
        with connection:
            _foreign_keys(cursor, "")
            _touch_triggers(cursor, "ENABLE")
    return Sampled(once + time.perf_counter() - before, len(documents), seconds)


def _move_one(cursor: Any, old: str, new: str) -> None:
    cursor.execute("SELECT chunk_id, chunker, version, ord FROM bench.chunks WHERE document_id = %s", [old])
    for chunk_id, *parts in cursor.fetchall():
        new_chunk = target(":".join(map(str, (new, *parts))).encode()).decode()
        cursor.execute(
            "UPDATE bench.chunks SET chunk_id = %s, document_id = %s WHERE chunk_id = %s", [new_chunk, new, chunk_id]
        )
    cursor.execute("UPDATE bench.jobs SET document_id = %s WHERE document_id = %s", [new, old])
    cursor.execute("UPDATE bench.events SET document_id = %s WHERE document_id = %s", [new, old])
    cursor.execute("UPDATE bench.documents SET document_id = %s WHERE document_id = %s", [new, old])


def _foreign_keys(cursor: Any, options: str) -> None:
    """Make the foreign keys to documents anew, with these options."""
    statement = """ALTER TABLE {} DROP CONSTRAINT {name}, ADD CONSTRAINT {name}
                   FOREIGN KEY (document_id) REFERENCES bench.documents (document_id) {options}"""
    for table in ("chunks", "jobs", "events"):
        name, option = sql.Identifier(f"{table}_document"), sql.SQL(options)
        cursor.execute(sql.SQL(statement).format(sql.Identifier("bench", table), name=name, options=option))


def _touch_triggers(cursor: Any, what: str) -> None:
    for table in ("documents", "chunks", "jobs"):
        statement = sql.SQL("ALTER TABLE {} {} TRIGGER touch_updated_at")
        cursor.execute(statement.format(sql.Identifier("bench", table), sql.SQL(what)))


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

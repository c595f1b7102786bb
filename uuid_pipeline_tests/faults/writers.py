"""The application, as it goes on by what it learned before: old ids, open transactions, the same file again.

Each writer notes what it committed by natural keys, never by ids; that is compared with what the store holds.
"""

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import errors

from uuid_pipeline_tests.integration import cycle

# A table and the row's name in it, which no migration changes; and what the row holds, or None once it is deleted.
Key = tuple[str, str]
Facts = dict[Key, dict[str, str | None] | None]

# What applications retry anyway, because PostgreSQL may say it at any time.
RETRIED = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable)

DOCUMENT = """
INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
VALUES (%(id)s, %(user)s, %(text)s, 'application/pdf', 1, %(sha)s, 'live')
"""
AGAIN = " ON CONFLICT (user_id, file_sha256) DO UPDATE SET filename = excluded.filename RETURNING document_id::text"
JOB = "INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (%(id)s, %(document)s, 'queued')"
EVENT = """
INSERT INTO upload_pipeline.events (event_id, job_id, document_id, type, severity, code)
VALUES (%(id)s, %(job)s, %(document)s, 'live', 'info', 'LIVE')
"""
CHUNK = """
INSERT INTO upload_pipeline.document_chunks (chunk_id, document_id, chunker_name, chunker_version, chunk_ord, text,
    chunk_sha, embed_model, embed_version, vector_dim, embedding)
VALUES (%(id)s, %(document)s, %(name)s, %(version)s, %(ord)s, %(text)s, '', 'none', '1', 1536,
        array_fill(0.1::real, ARRAY[1536]))
"""
BY_ID = " ON CONFLICT (chunk_id) DO UPDATE SET text = excluded.text"
BY_NATURAL_KEY = """
ON CONFLICT (document_id, chunker_name, chunker_version, chunk_ord) DO UPDATE SET text = excluded.text
"""
# One chunk may have many of them: each under a model of its own.
BUFFER = """
INSERT INTO upload_pipeline.document_vector_buffer
    (buffer_id, chunk_id, document_id, embed_model, embed_version, vector)
VALUES (%(id)s, %(chunk)s, %(document)s, %(model)s, '1', array_fill(0.1::real, ARRAY[1536]))
"""
OF_DOCUMENT = "user_id = %(user)s AND file_sha256 = %(sha)s"
HELD = "SELECT document_id FROM upload_pipeline.documents WHERE " + OF_DOCUMENT  # noqa: S608
OF_CHUNK = """document_id = (SELECT document_id FROM upload_pipeline.documents WHERE user_id = %(user)s
    AND file_sha256 = %(sha)s) AND chunker_name = %(name)s AND chunker_version = %(version)s AND chunk_ord = %(ord)s"""

RENAME = "UPDATE upload_pipeline.documents SET filename = %(text)s WHERE " + OF_DOCUMENT  # noqa: S608
REWRITE = "UPDATE upload_pipeline.document_chunks SET text = %(text)s WHERE " + OF_CHUNK  # noqa: S608
HELD_CHUNK = "SELECT chunk_id FROM upload_pipeline.document_chunks WHERE " + OF_CHUNK + " FOR UPDATE"  # noqa: S608


@dataclass(frozen=True)
class Document:
    id: str
    user: str
    sha: str

    @property
    def name(self) -> str:
        return f"{self.user}:{self.sha}"

    @property
    def values(self) -> dict[str, Any]:
        return {"document": self.id, "user": self.user, "sha": self.sha}


@dataclass(frozen=True)
class Chunk:
    id: str
    document: Document
    chunker: str
    version: str
    ord: int

    @property
    def name(self) -> str:
        return f"{self.document.name}:{self.chunker}:{self.version}:{self.ord}"

    @property
    def values(self) -> dict[str, Any]:
        return self.document.values | {"name": self.chunker, "version": self.version, "ord": self.ord}


@dataclass(frozen=True)
class Known:
    """What one writer learned once: documents that all work on, and what it alone changes or deletes."""

    documents: Sequence[Document]
    own_documents: Sequence[Document]
    own_chunks: Sequence[Chunk]
    to_delete: Sequence[Document]


def learn(rows: cycle.Rows, writers: int, deleted: int) -> list[Known]:
    """What each writer knows of the store as it is now; the last ``deleted`` documents are the first writer's prey."""
    found = [Document(*(str(row[c]) for c in ("document_id", "user_id", "file_sha256"))) for row in rows["documents"]]
    found.sort(key=lambda document: document.name)
    shared, prey = found[: len(found) - deleted], found[len(found) - deleted :]
    of_id = {document.id: document for document in shared}
    chunks = [
        Chunk(
            str(row["chunk_id"]),
            of_id[str(row["document_id"])],
            str(row["chunker_name"]),
            str(row["chunker_version"]),
            int(str(row["chunk_ord"])),
        )
        for row in rows["document_chunks"]
        if row["document_id"] in of_id
    ]
    chunks.sort(key=lambda chunk: chunk.name)
    return [
        Known(shared, shared[number::writers], chunks[number::writers], prey if number == 0 else ())
        for number in range(writers)
    ]


class Turn:
    """One transaction of a writer: what it says it wrote counts when it commits."""

    def __init__(self, writer: "Writer", connection: "psycopg.Connection[Any]") -> None:
        self.connection = connection
        self.known, self.mine, self.chance = writer.known, writer.mine, writer.chance
        self.said: Facts = {}
        self.learned: list[Document | Chunk] = []
        self.forgotten: list[Document | Chunk] = []
        self.written = writer.facts

    def run(self, statement: LiteralString, **values: object) -> int:
        return self.connection.execute(statement, values).rowcount

    def run_on_one(self, statement: LiteralString, **values: object) -> None:
        """A statement by natural key, which must find its row."""
        count = self.run(statement, **values)
        if count != 1:
            raise RowMissedError(f"{count} rows: {' '.join(statement.split())[:60]}")

    def pause(self, seconds: float = 0.03) -> None:
        """Leave what was written uncommitted for a while."""
        time.sleep(self.chance.uniform(0, seconds))

    def document(self) -> Document:
        return self.chance.choice(self.known.documents)

    def job(self, document: Document, given: str | None = None) -> str:
        job = str(uuid.uuid4())
        self.run(JOB, id=job, document=given or document.id)
        self.said["upload_jobs", job] = {"document_id": document.name}
        return job

    def event(self, job: str, document: Document) -> None:
        event = str(uuid.uuid4())
        self.run(EVENT, id=event, job=job, document=document.id)
        self.said["events", event] = {"document_id": document.name, "job_id": job}

    def chunk(self, document: Document) -> Chunk:
        made = Chunk(str(uuid.uuid4()), document, "live", "1", uuid.uuid4().int % (1 << 31))
        self.write(made, CHUNK)
        self.learned.append(made)
        return made

    def write(self, chunk: Chunk, statement: LiteralString, given: str | None = None) -> None:
        text = str(uuid.uuid4())
        self.run(statement, id=given or chunk.id, text=text, **chunk.values)
        self.said["document_chunks", chunk.name] = {"text": text}

    def buffer(self, chunk: Chunk) -> None:
        row = str(uuid.uuid4())
        self.run(BUFFER, id=row, model=row, chunk=chunk.id, document=chunk.document.id)
        self.said["document_vector_buffer", row] = {"document_id": chunk.document.name, "chunk_id": chunk.name}

    def hold(self, document: Document, lock: LiteralString) -> str:
        """Lock a document by its natural key; its id as it is now."""
        statement = f"{HELD} {lock}"
        found = self.connection.execute(statement, document.values).fetchone()
        if found is None:
            raise RowMissedError(f"no document {document.name}")
        return str(found[0])


class RowMissedError(Exception):
    """A statement by natural key did not find the one row that it must find."""


class ChangeOfMindError(Exception):
    """The application rolls back what it wrote."""


Deed = Callable[[Turn], None]


@dataclass
class Writer:
    """One worker: every deed in turn, in an order of its own, each retried as applications do."""

    url: str
    known: Known
    number: int
    deeds: Sequence[Deed]
    facts: Facts = field(default_factory=dict)
    mine: list[Document | Chunk] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.number)

    def work(self, stop: threading.Event) -> None:
        with psycopg.connect(self.url) as connection:
            deeds: list[Deed] = []
            while not stop.is_set():
                deeds = deeds or self.chance.sample(self.deeds, len(self.deeds))
                self.do(connection, deeds.pop())
                # An application has other things to do; without it the server's two cores would do nothing else.
                time.sleep(self.chance.uniform(0, 0.06))

    def do(self, connection: "psycopg.Connection[Any]", deed: Deed) -> None:
        while True:
            turn = Turn(self, connection)
            try:
                deed(turn)
                connection.commit()
            except RETRIED as error:
                connection.rollback()
                self.retried[type(error).__name__] += 1
                continue
            except ChangeOfMindError:
                connection.rollback()
                self.done[deed.__name__] += 1
            except (psycopg.Error, RowMissedError) as error:
                connection.rollback()
                self.errors.append(f"{deed.__name__}: {type(error).__name__}: {error}")
            else:
                self.facts |= turn.said
                self.mine = [found for found in self.mine if found not in turn.forgotten] + turn.learned
                self.done[deed.__name__] += bool(turn.said)
            return


@contextmanager
def working(writers: Sequence[Writer]) -> Iterator[None]:
    """The writers work while the block runs, and some time before it."""
    stop = threading.Event()
    threads = [threading.Thread(target=writer.work, args=(stop,)) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


_OWN_KEY: Mapping[str, str] = {
    "upload_jobs": "job_id",
    "events": "event_id",
    "webhook_log": "webhook_id",
    "document_vector_buffer": "buffer_id",
}


def names(rows: cycle.Rows) -> tuple[dict[str, str], dict[str, str]]:
    """Id -> name, of every document and of every chunk."""
    documents = {str(row["document_id"]): f"{row['user_id']}:{row['file_sha256']}" for row in rows["documents"]}
    chunks = {
        str(row["chunk_id"]): f"{documents[str(row['document_id'])]}:{row['chunker_name']}:{row['chunker_version']}"
        f":{row['chunk_ord']}"
        for row in rows["document_chunks"]
    }
    return documents, chunks


def by_natural_key(rows: cycle.Rows) -> dict[Key, cycle.Row]:
    """Every row by a name without ids, with its references as such names; fails for an orphan and for a double."""
    documents, chunks = names(rows)
    found: dict[Key, cycle.Row] = {}
    for table, table_rows in rows.items():
        for row in table_rows:
            named = dict(row)
            for column, name_of in (("document_id", documents), ("chunk_id", chunks)):
                if column in row:
                    assert row[column] in name_of, f"orphan: {table} {row}"[:300]
                    named[column] = name_of[str(row[column])]
            own = {"documents": "document_id", "document_chunks": "chunk_id"}.get(table) or _OWN_KEY[table]
            key = (table, str(named[own]))
            assert key not in found, f"twice: {key}"
            found[key] = named
    return found


def expect(rows: cycle.Rows, before: cycle.Rows, writers: Sequence[Writer]) -> None:
    """All rows of before as they were, to the last column, but for what the writers say that they committed."""
    facts: Facts = {}
    for writer in writers:
        assert not facts.keys() & writer.facts.keys()
        facts |= writer.facts
    found, expected = by_natural_key(rows), by_natural_key(before)
    deleted = {key for key, fact in facts.items() if fact is None}
    assert found.keys() == (expected.keys() | facts.keys()) - deleted
    for key, row in found.items():
        fact = facts.get(key)
        if fact is None:
            assert row == expected[key]
        else:
            assert {column: row[column] for column in fact} == fact, key

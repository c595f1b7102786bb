"""What the application does by ids that it learned before: one function a transaction."""

import time
import uuid
from typing import LiteralString

from uuid_pipeline_tests.faults.writers import (
    AGAIN,
    BY_ID,
    BY_NATURAL_KEY,
    CHUNK,
    DOCUMENT,
    HELD_CHUNK,
    RENAME,
    REWRITE,
    ChangeOfMindError,
    Chunk,
    Deed,
    Document,
    RowMissedError,
    Turn,
)


def job_with_event(turn: Turn) -> None:
    """Two rows by a stale document id, the first uncommitted for a while."""
    document = turn.document()
    job = turn.job(document)
    turn.pause()
    turn.event(job, document)


def chunk_with_buffer(turn: Turn) -> None:
    """A chunk by its document's stale id, and a soft reference beside a hard one."""
    chunk = turn.chunk(turn.document())
    turn.pause()
    turn.buffer(chunk)


def buffer_of_stale_chunk(turn: Turn) -> None:
    turn.buffer(turn.chance.choice(turn.known.own_chunks))
    turn.pause()


def upsert_by_stale_chunk_id(turn: Turn) -> None:
    turn.write(turn.chance.choice(turn.known.own_chunks), CHUNK + BY_ID)
    turn.pause()


def upsert_by_natural_key(turn: Turn) -> None:
    """With the stale id of the document, and an id for the chunk that is not wanted when it is there."""
    chunk = turn.chance.choice(turn.known.own_chunks)
    turn.write(chunk, CHUNK + BY_NATURAL_KEY, given=str(uuid.uuid4()))
    turn.pause()


def rename(turn: Turn) -> None:
    document, text = turn.chance.choice(turn.known.own_documents), str(uuid.uuid4())
    turn.run_on_one(RENAME, text=text, **document.values)
    turn.said["documents", document.name] = {"filename": text}
    turn.pause()


def rewrite_chunk(turn: Turn) -> None:
    chunk, text = turn.chance.choice(turn.known.own_chunks), str(uuid.uuid4())
    turn.hold(chunk.document, "FOR KEY SHARE")
    turn.pause()
    turn.run_on_one(REWRITE, text=text, **chunk.values)
    turn.said["document_chunks", chunk.name] = {"text": text}


def give_job_to_another_document(turn: Turn) -> None:
    """A reference updated to a stale id."""
    job, other = turn.job(turn.document()), turn.document()
    turn.pause()
    turn.run_on_one(
        "UPDATE upload_pipeline.upload_jobs SET document_id = %(document)s WHERE job_id = %(job)s",
        document=other.id,
        job=job,
    )
    turn.said["upload_jobs", job] = {"document_id": other.name}


def upload(turn: Turn) -> None:
    """A new document under a random id, with children."""
    made = Document(str(uuid.uuid4()), turn.document().user, uuid.uuid4().hex * 2)
    text = str(uuid.uuid4())
    turn.run(DOCUMENT, text=text, id=made.id, user=made.user, sha=made.sha)
    turn.said["documents", made.name] = {"filename": text}
    turn.pause()
    turn.event(turn.job(made), made)
    turn.buffer(turn.chunk(made))
    turn.learned.append(made)


def work_on_own_upload(turn: Turn) -> None:
    """By ids that were never planned, and are stale once a sweep has come by."""
    documents = [found for found in turn.mine if isinstance(found, Document)]
    chunks = [found for found in turn.mine if isinstance(found, Chunk)]
    if documents and chunks:
        document, chunk = turn.chance.choice(documents), turn.chance.choice(chunks)
        turn.event(turn.job(document), document)
        turn.pause()
        turn.write(chunk, CHUNK + BY_ID)
        turn.buffer(chunk)


def upload_again(turn: Turn) -> None:
    """A file that is there: the row stays, and the answer's id is used for the next row."""
    document, text = turn.chance.choice(turn.known.own_documents), str(uuid.uuid4())
    statement = DOCUMENT + AGAIN
    found = turn.connection.execute(statement, document.values | {"id": str(uuid.uuid4()), "text": text}).fetchone()
    turn.said["documents", document.name] = {"filename": text}
    turn.pause()
    turn.job(document, given=str(found[0]) if found else None)


def delete_own_chunk(turn: Turn) -> None:
    chunks = [found for found in turn.mine if isinstance(found, Chunk)]
    if chunks:
        chunk = turn.chance.choice(chunks)
        turn.hold(chunk.document, "FOR KEY SHARE")
        found = turn.connection.execute(HELD_CHUNK, chunk.values).fetchone()
        if found is None:
            raise RowMissedError(f"no chunk {chunk.name}")
        gone = turn.connection.execute(
            "DELETE FROM upload_pipeline.document_vector_buffer WHERE chunk_id = %s RETURNING buffer_id::text", found
        ).fetchall()
        turn.pause()
        turn.run_on_one("DELETE FROM upload_pipeline.document_chunks WHERE chunk_id = %(id)s", id=found[0])
        turn.said |= {("document_vector_buffer", row[0]): None for row in gone}
        turn.said["document_chunks", chunk.name] = None
        turn.forgotten.append(chunk)


# Children first; each with the columns that name its rows.
_OF_DELETED: tuple[tuple[LiteralString, LiteralString, LiteralString], ...] = (
    ("events", "event_id", "document_id = %(id)s"),
    (
        "webhook_log",
        "webhook_id",
        "job_id IN (SELECT job_id FROM upload_pipeline.upload_jobs WHERE document_id = %(id)s)",
    ),
    ("upload_jobs", "job_id", "document_id = %(id)s"),
    ("document_vector_buffer", "buffer_id", "document_id = %(id)s"),
    ("document_chunks", "concat_ws(':', chunker_name, chunker_version, chunk_ord)", "document_id = %(id)s"),
)


def delete_document(turn: Turn) -> None:
    """With all that hangs on it; found by its natural key."""
    left = [document for document in turn.known.to_delete if ("documents", document.name) not in turn.written]
    if left:
        document = left[0]
        values = {"id": turn.hold(document, "FOR UPDATE")}
        for table, name, of in _OF_DELETED:
            statement = f"DELETE FROM upload_pipeline.{table} WHERE {of} RETURNING {name}::text"  # noqa: S608
            for (row,) in turn.connection.execute(statement, values).fetchall():
                turn.said[table, f"{document.name}:{row}" if table == "document_chunks" else row] = None
            turn.pause(0.01)
        turn.run_on_one("DELETE FROM upload_pipeline.documents WHERE document_id = %(id)s", **values)
        turn.said["documents", document.name] = None


def change_mind(turn: Turn) -> None:
    chunk = turn.chunk(turn.document())
    turn.pause()
    turn.buffer(chunk)
    raise ChangeOfMindError


def take_long(turn: Turn) -> None:
    """Longer than a batch waits for a lock, over several documents."""
    first, second = turn.document(), turn.document()
    job = turn.job(first)
    time.sleep(turn.chance.uniform(0.25, 0.5))
    turn.event(job, first)
    turn.buffer(turn.chunk(second))
    turn.buffer(turn.chance.choice(turn.known.own_chunks))


DEEDS: tuple[Deed, ...] = (
    job_with_event, chunk_with_buffer, buffer_of_stale_chunk, upsert_by_stale_chunk_id, upsert_by_natural_key, rename,
    rewrite_chunk, give_job_to_another_document, upload, work_on_own_upload, upload_again, delete_own_chunk,
    delete_document, change_mind, take_long,
)  # fmt: skip

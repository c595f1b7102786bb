"""What one upload leaves in the demo store: its document, job, chunks, events and webhook, as rows."""

import hashlib
import json
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

NAMESPACE = uuid.UUID("6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42")
VECTOR_DIM = 1536

_MODEL = ("text-embedding-3-small", "1")

_TOPICS = {
    "Copayments": ("A primary care visit costs ${}.", "A specialist visit needs a referral and costs ${}."),
    "Deductible": ("The yearly deductible is ${} a person.", "Drugs have a deductible of ${} of their own."),
    "Prescription drugs": ("Generics cost ${} for 30 days.", "Above ${} a prior authorization is needed."),
    "Claims and appeals": ("Send claims within {} days of service.", "Appeals are decided within {} days."),
    "Hospital stays": ("An inpatient stay costs ${} a day.", "Skilled nursing costs ${} a day from day 21."),
}

Row = Mapping[str, object]


@dataclass(frozen=True)
class ChunkSet:
    """The chunks that one version of the chunker made of a document."""

    version: str
    ordinals: tuple[int, ...]
    name: str = "markdown-simple"


@dataclass(frozen=True)
class Upload:
    """One document as it was uploaded, with what its job went through."""

    document_id: uuid.UUID
    job_id: uuid.UUID
    correlation_id: uuid.UUID
    user_id: uuid.UUID
    filename: str
    bytes_len: int
    file_sha256: str
    status: str | None
    created_at: datetime
    seconds: float
    chunk_sets: tuple[ChunkSet, ...]

    @property
    def finished_at(self) -> datetime:
        return self.created_at + timedelta(seconds=self.seconds)


def uuid4(rng: random.Random) -> uuid.UUID:
    """A random id."""
    return uuid.UUID(int=rng.getrandbits(128), version=4)


def hexadecimal(rng: random.Random, digits: int) -> str:
    """Random digits."""
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def document(upload: Upload, number: int) -> Row:
    """The row of documents; ``number`` decides how its parsed file is named."""
    complete = upload.status == "complete"
    document_id = str(upload.document_id)
    digest = hashlib.md5(document_id.encode(), usedforsecurity=False).hexdigest()
    # The application named parsed files after the id in both these ways.
    name = document_id if number % 2 else digest[:8]
    folder = f"storage://files/user/{upload.user_id}"
    return {
        "document_id": upload.document_id,
        "user_id": upload.user_id,
        "filename": upload.filename,
        "mime": "application/pdf",
        "bytes_len": upload.bytes_len,
        "file_sha256": upload.file_sha256,
        "parsed_sha256": _sha256(f"parsed {upload.file_sha256}") if complete else None,
        "raw_path": f"{folder}/raw/{upload.file_sha256.strip()[:8]}_{upload.created_at:%Y%m%d%H%M%S}.pdf",
        "parsed_path": f"{folder}/parsed/{name}.md" if complete else None,
        "processing_status": upload.status,
        "created_at": upload.created_at,
        "updated_at": upload.finished_at if upload.status else upload.created_at,
    }


def job(upload: Upload, rng: random.Random) -> Row:
    """The row of upload_jobs."""
    failed = upload.status is None
    progress: dict[str, object] = {"percent": 0 if failed else 100}
    if rng.random() < 0.5:
        progress["document_id"] = str(upload.document_id)
    error = {"code": "PARSE_TIMEOUT", "message": "the parser gave no answer in 300 s", "attempts": 3}
    return {
        "job_id": upload.job_id,
        "document_id": upload.document_id,
        "state": "deadletter" if failed else "done",
        "status": upload.status or "failed_parse",
        "retry_count": 3 if failed else 0,
        "progress": json.dumps(progress),
        "last_error": json.dumps(error) if failed else None,
        "webhook_secret": hexadecimal(rng, 32),
        "created_at": upload.created_at,
        "updated_at": upload.finished_at,
    }


def chunks(upload: Upload) -> list[Row]:
    """The rows of document_chunks: of one file the texts are the same whenever it was uploaded."""
    return [_chunk(upload, made, number) for made in upload.chunk_sets for number in made.ordinals]


def _chunk(upload: Upload, made: ChunkSet, number: int) -> Row:
    # The incident itself: version 5, but of whatever id the document has.
    chunk_id = uuid.uuid5(NAMESPACE, f"{upload.document_id}:{made.name}:{made.version}:{number}")
    text = _text(upload, number)
    return {
        "chunk_id": chunk_id,
        "document_id": upload.document_id,
        "chunker_name": made.name,
        "chunker_version": made.version,
        "chunk_ord": number,
        "text": text,
        "chunk_sha": _sha256(text),
        "embed_model": _MODEL[0],
        "embed_version": _MODEL[1],
        "vector_dim": VECTOR_DIM,
        "embedding": _embedding(random.Random(str(chunk_id))),
        "embed_updated_at": upload.finished_at,
        "created_at": upload.created_at + timedelta(seconds=upload.seconds / 2),
        "updated_at": upload.finished_at,
    }


def _text(upload: Upload, number: int) -> str:
    rng = random.Random(upload.file_sha256.strip().lower())
    topic = rng.sample(list(_TOPICS), len(_TOPICS))[number % len(_TOPICS)]
    sentences = " ".join(sentence.format(rng.randrange(10, 200, 5)) for sentence in _TOPICS[topic])
    return f"## {topic}\n\n{upload.filename.removesuffix('.pdf')}. {sentences}"


def _embedding(rng: random.Random) -> str:
    values = [rng.gauss(0, 1) for _ in range(VECTOR_DIM)]
    length = sum(value * value for value in values) ** 0.5
    return "[" + ",".join([f"{value / length:.7f}" for value in values]) + "]"


def events(upload: Upload, rng: random.Random) -> list[Row]:
    """The rows of events, from its arrival to its end."""
    steps = [("stage_started", "info", "UPLOAD_ACCEPTED")]
    if upload.status == "complete":
        steps += [("stage_done", "info", f"{stage}_DONE") for stage in ("PARSE", "CHUNK", "EMBED")]
    elif upload.status is None:
        steps += [("retry", "warn", "PARSE_RETRY")] * 3 + [("error", "error", "PARSE_TIMEOUT")]
    steps.append(("finalized", "info", "JOB_FINALIZED"))
    rows: list[Row] = []
    for number, (kind, severity, code) in enumerate(steps):
        payload: dict[str, object] = {"step": number, "filename": upload.filename}
        if number == 0 or rng.random() < 0.5:
            payload["document_id"] = str(upload.document_id)
        row: Row = {
            "event_id": uuid4(rng),
            "job_id": upload.job_id,
            "document_id": upload.document_id,
            "ts": upload.created_at + timedelta(seconds=upload.seconds * number / (len(steps) - 1)),
            "type": kind,
            "severity": severity,
            "code": code,
            "payload": json.dumps(payload),
            "correlation_id": upload.correlation_id,
        }
        rows.append(row)
    return rows


def webhooks(upload: Upload, rng: random.Random) -> list[Row]:
    """The row of webhook_log, of most that were parsed."""
    if upload.status != "complete" or rng.random() < 0.3:
        return []
    row: Row = {
        "webhook_id": f"wh_{hexadecimal(rng, 20)}",
        "job_id": upload.job_id,
        "processed_at": upload.created_at + timedelta(seconds=upload.seconds / 3),
        "ip_address": f"203.0.113.{rng.randrange(1, 255)}",
        "payload_hash": hexadecimal(rng, 64),
    }
    return [row]

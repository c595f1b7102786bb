"""The store of the incident, built anew: the report's schema and rows that give its figures.

38 documents of 27 users under random ids; 29 of them hold 3 chunks each, whose ids are version 5 and wrong
all the same, for they were made from the random ids; 8 are marked duplicate, and 1 has failed. The DDL is in
incident.sql.
"""

import hashlib
import itertools
import json
import random
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

import psycopg
import sqlalchemy
from psycopg import sql

from uuid_pipeline.errors import UsageError

NAMESPACE = uuid.UUID("6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42")
SCHEMA = "upload_pipeline"
TOTAL_BYTES = 3_520_000
VECTOR_DIM = 1536

_DOCUMENTS_BY_USER = (6, *[2] * 6, *[1] * 20)
_STATUSES: tuple[str | None, ...] = (*["complete"] * 29, *["duplicate"] * 8, None)
_CHUNKS = 3
_CHUNKER = ("markdown-simple", "1")
_MODEL = ("text-embedding-3-small", "1")
_MARGIN = timedelta(hours=1)

_PLANS = (
    "Scan Classic HMO",
    "Scan Balance PPO",
    "Harbor Silver 2000",
    "Cedar Bronze HDHP",
    "Northgate Vision",
)
_KINDS = ("", " Benefits", " Formulary", " Claim Form", " Coverage", " Directory", " Rates", " Appeal")
_TOPICS = {
    "Copayments": ("A primary care visit costs ${}.", "A specialist visit needs a referral and costs ${}."),
    "Deductible": ("The yearly deductible is ${} a person.", "Drugs have a deductible of ${} of their own."),
    "Prescription drugs": ("Generics cost ${} for 30 days.", "Above ${} a prior authorization is needed."),
    "Claims and appeals": ("Send claims within {} days of service.", "Appeals are decided within {} days."),
    "Hospital stays": ("An inpatient stay costs ${} a day.", "Skilled nursing costs ${} a day from day 21."),
}

Row = Mapping[str, object]


@dataclass(frozen=True)
class _Upload:
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

    @property
    def finished_at(self) -> datetime:
        return self.created_at + timedelta(seconds=self.seconds)


def build_incident(connection: sqlalchemy.Connection, *, seed: int = 38, now: datetime | None = None) -> None:
    """Create schema `upload_pipeline` in the current database and fill it, in the caller's transaction.

    The same `seed` and `now` (by default this second, UTC) give the same rows. Raises UsageError unless the
    driver is psycopg 3, sqlalchemy.exc.ProgrammingError if the schema exists already.
    """
    moment = now or datetime.now(UTC).replace(microsecond=0)
    rng = random.Random(seed)
    driver = _driver(connection)
    connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
    driver.execute(_block("tables"))
    uploads = _uploads(rng, moment)
    _copy(driver, "documents", [_document(upload, number) for number, upload in enumerate(uploads)])
    _copy(driver, "upload_jobs", [_job(upload, rng) for upload in uploads])
    _copy(driver, "document_chunks", [row for upload in uploads for row in _chunks(upload, rng)])
    _copy(driver, "events", [row for upload in uploads for row in _events(upload, rng)])
    _copy(driver, "webhook_log", [row for upload in uploads for row in _webhooks(upload, rng)])
    for name in ("indexes", "triggers", "access"):
        driver.execute(_block(name))


def add_vector_buffer(connection: sqlalchemy.Connection) -> None:
    """Create the older table `document_vector_buffer`, a row for every chunk, in the caller's transaction.

    Raises as `build_incident` does.
    """
    _driver(connection).execute(_block("vector_buffer"))


def _driver(connection: sqlalchemy.Connection) -> psycopg.Connection[Any]:
    # SQLAlchemy then knows of the transaction, and commits what the driver does in it behind its back.
    connection.exec_driver_sql("SELECT 1")
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise UsageError(f"the demo store is built through psycopg 3 (postgresql+psycopg://), not {type(driver)}")
    return driver


def _block(name: str) -> bytes:
    text = resources.files(__package__).joinpath("incident.sql").read_text(encoding="utf-8")
    pieces = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))[name].encode()


def _copy(driver: psycopg.Connection[Any], table: str, rows: Sequence[Row]) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, rows[0]))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(SCHEMA, table), columns)
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(list(row.values()))


def _uuid4(rng: random.Random) -> uuid.UUID:
    return uuid.UUID(int=rng.getrandbits(128), version=4)


def _hex(rng: random.Random, digits: int) -> str:
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _uploads(rng: random.Random, now: datetime) -> list[_Upload]:
    users = [user for count in _DOCUMENTS_BY_USER for user in [_uuid4(rng)] * count]
    statuses = list(_STATUSES)
    filenames = [f"{plan}{kind}.pdf" for plan, kind in itertools.product(_PLANS, _KINDS)]
    for values in (users, statuses, filenames):
        rng.shuffle(values)
    span = (timedelta(days=7) - 2 * _MARGIN).total_seconds()
    ages = sorted((rng.uniform(0, span) for _ in statuses), reverse=True)
    return [
        _Upload(
            document_id=_uuid4(rng),
            job_id=_uuid4(rng),
            correlation_id=_uuid4(rng),
            user_id=user,
            filename=filename,
            bytes_len=size,
            file_sha256=_hex(rng, 64),
            status=status,
            created_at=now - _MARGIN - timedelta(seconds=round(age, 3)),
            seconds=1.0 if status == "duplicate" else round(rng.uniform(20, 180), 3),
        )
        for user, filename, size, status, age in zip(users, filenames, _sizes(rng), statuses, ages, strict=False)
    ]


def _sizes(rng: random.Random) -> list[int]:
    """Give the size in bytes of every document; their sum is the report's 3.52 MB."""
    weights = [rng.uniform(1, 6) for _ in _STATUSES]
    sizes = [int(TOTAL_BYTES * weight / sum(weights)) for weight in weights]
    return [TOTAL_BYTES - sum(sizes[1:]), *sizes[1:]]


def _document(upload: _Upload, number: int) -> Row:
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
        "raw_path": f"{folder}/raw/{upload.file_sha256[:8]}_{upload.created_at:%Y%m%d%H%M%S}.pdf",
        "parsed_path": f"{folder}/parsed/{name}.md" if complete else None,
        "processing_status": upload.status,
        "created_at": upload.created_at,
        "updated_at": upload.finished_at if upload.status else upload.created_at,
    }


def _job(upload: _Upload, rng: random.Random) -> Row:
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
        "webhook_secret": _hex(rng, 32),
        "created_at": upload.created_at,
        "updated_at": upload.finished_at,
    }


def _chunks(upload: _Upload, rng: random.Random) -> list[Row]:
    if upload.status != "complete":
        return []
    topics = rng.sample(list(_TOPICS), _CHUNKS)
    return [_chunk(upload, number, topic, rng) for number, topic in enumerate(topics)]


def _chunk(upload: _Upload, number: int, topic: str, rng: random.Random) -> Row:
    sentences = " ".join(sentence.format(rng.randrange(10, 200, 5)) for sentence in _TOPICS[topic])
    text = f"## {topic}\n\n{upload.filename.removesuffix('.pdf')}. {sentences}"
    name, version = _CHUNKER
    return {
        # The incident itself: version 5, but of the random id of the document.
        "chunk_id": uuid.uuid5(NAMESPACE, f"{upload.document_id}:{name}:{version}:{number}"),
        "document_id": upload.document_id,
        "chunker_name": name,
        "chunker_version": version,
        "chunk_ord": number,
        "text": text,
        "chunk_sha": _sha256(text),
        "embed_model": _MODEL[0],
        "embed_version": _MODEL[1],
        "vector_dim": VECTOR_DIM,
        "embedding": _embedding(rng),
        "embed_updated_at": upload.finished_at,
        "created_at": upload.created_at + timedelta(seconds=upload.seconds / 2),
        "updated_at": upload.finished_at,
    }


def _embedding(rng: random.Random) -> str:
    values = [rng.gauss(0, 1) for _ in range(VECTOR_DIM)]
    length = sum(value * value for value in values) ** 0.5
    return "[" + ",".join([f"{value / length:.7f}" for value in values]) + "]"


def _events(upload: _Upload, rng: random.Random) -> list[Row]:
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
            "event_id": _uuid4(rng),
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


def _webhooks(upload: _Upload, rng: random.Random) -> list[Row]:
    if upload.status != "complete" or rng.random() < 0.3:
        return []
    row: Row = {
        "webhook_id": f"wh_{_hex(rng, 20)}",
        "job_id": upload.job_id,
        "processed_at": upload.created_at + timedelta(seconds=upload.seconds / 3),
        "ip_address": f"203.0.113.{rng.randrange(1, 255)}",
        "payload_hash": _hex(rng, 64),
    }
    return [row]

"""The store of the incident, built anew: the report's schema and rows that give its figures.

38 documents of 27 users under random ids; 29 of them hold 3 chunks each, whose ids are version 5 and wrong
all the same, for they were made from the random ids; 8 are marked duplicate, and 1 has failed. The DDL is in
incident.sql, the rows of one upload in uploads.py.
"""

import itertools
import random
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

import psycopg
import sqlalchemy
from psycopg import sql

from uuid_pipeline.demo import uploads
from uuid_pipeline.demo.uploads import ChunkSet, Row, Upload, hexadecimal, uuid4
from uuid_pipeline.errors import UsageError

NAMESPACE = uploads.NAMESPACE
SCHEMA = "upload_pipeline"
TOTAL_BYTES = 3_520_000

_DOCUMENTS_BY_USER = (6, *[2] * 6, *[1] * 20)
_STATUSES: tuple[str | None, ...] = (*["complete"] * 29, *["duplicate"] * 8, None)
_MARGIN = timedelta(hours=1)

_PLANS = (
    "Scan Classic HMO",
    "Scan Balance PPO",
    "Harbor Silver 2000",
    "Cedar Bronze HDHP",
    "Northgate Vision",
)
_KINDS = ("", " Benefits", " Formulary", " Claim Form", " Coverage", " Directory", " Rates", " Appeal")


def build_incident(connection: sqlalchemy.Connection, *, seed: int = 38, now: datetime | None = None) -> None:
    """Create schema `upload_pipeline` in the current database and fill it, in the caller's transaction.

    The same `seed` and `now` (by default this second, UTC) give the same rows. Raises UsageError unless the
    driver is psycopg 3, sqlalchemy.exc.ProgrammingError if the schema exists already.
    """
    rng = random.Random(seed)
    made = make_uploads(rng, now or datetime.now(UTC).replace(microsecond=0))
    fill(connection, made, rng)
    run_blocks(connection, "unique_index", "indexes", "triggers", "access")


def add_vector_buffer(connection: sqlalchemy.Connection) -> None:
    """Create the older table `document_vector_buffer`, a row for every chunk, in the caller's transaction.

    Raises as `build_incident` does.
    """
    run_blocks(connection, "vector_buffer")


def fill(connection: sqlalchemy.Connection, made: Sequence[Upload], rng: random.Random) -> None:
    """Create the schema with its tables, and the rows of these uploads."""
    driver = driver_of(connection)
    connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
    run_blocks(connection, "tables")
    _copy(driver, "documents", [uploads.document(upload, number) for number, upload in enumerate(made)])
    _copy(driver, "upload_jobs", [uploads.job(upload, rng) for upload in made])
    _copy(driver, "document_chunks", [row for upload in made for row in uploads.chunks(upload)])
    _copy(driver, "events", [row for upload in made for row in uploads.events(upload, rng)])
    _copy(driver, "webhook_log", [row for upload in made for row in uploads.webhooks(upload, rng)])


def run_blocks(connection: sqlalchemy.Connection, *names: str) -> None:
    """Run named blocks of incident.sql."""
    driver, found = driver_of(connection), blocks("incident.sql")
    for name in names:
        driver.execute(found[name])


def blocks(file: str) -> dict[str, bytes]:
    """The named blocks of one of this folder's SQL files."""
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    pieces = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return {name: block.encode() for name, block in zip(pieces[1::2], pieces[2::2], strict=True)}


def driver_of(connection: sqlalchemy.Connection) -> psycopg.Connection[Any]:
    # SQLAlchemy then knows of the transaction, and commits what the driver does in it behind its back.
    connection.exec_driver_sql("SELECT 1")
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise UsageError(f"the demo store is built through psycopg 3 (postgresql+psycopg://), not {type(driver)}")
    return driver


def _copy(driver: psycopg.Connection[Any], table: str, rows: Sequence[Row]) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, rows[0]))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(SCHEMA, table), columns)
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(list(row.values()))


def make_uploads(rng: random.Random, now: datetime) -> list[Upload]:
    """The incident's 38 uploads, in the order of their arrival."""
    users = [user for count in _DOCUMENTS_BY_USER for user in [uuid4(rng)] * count]
    statuses = list(_STATUSES)
    filenames = [f"{plan}{kind}.pdf" for plan, kind in itertools.product(_PLANS, _KINDS)]
    for values in (users, statuses, filenames):
        rng.shuffle(values)
    span = (timedelta(days=7) - 2 * _MARGIN).total_seconds()
    ages = sorted((rng.uniform(0, span) for _ in statuses), reverse=True)
    return [
        Upload(
            document_id=uuid4(rng),
            job_id=uuid4(rng),
            correlation_id=uuid4(rng),
            user_id=user,
            filename=filename,
            bytes_len=size,
            file_sha256=hexadecimal(rng, 64),
            status=status,
            created_at=now - _MARGIN - timedelta(seconds=round(age, 3)),
            seconds=1.0 if status == "duplicate" else round(rng.uniform(20, 180), 3),
            chunk_sets=(ChunkSet("1", (0, 1, 2)),) if status == "complete" else (),
        )
        for user, filename, size, status, age in zip(users, filenames, _sizes(rng), statuses, ages, strict=False)
    ]


def _sizes(rng: random.Random) -> list[int]:
    """Give the size in bytes of every document; their sum is the report's 3.52 MB."""
    weights = [rng.uniform(1, 6) for _ in _STATUSES]
    sizes = [int(TOTAL_BYTES * weight / sum(weights)) for weight in weights]
    return [TOTAL_BYTES - sum(sizes[1:]), *sizes[1:]]

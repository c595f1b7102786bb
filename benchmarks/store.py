"""The benchmark's store: documents with ten chunks, one job and one event each, under random ids."""

import re
import uuid
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import psycopg

from uuid_pipeline.demo import server
from uuid_pipeline.demo.server import EmbeddedServer

SPEC = Path(__file__).with_name("spec.yaml")
NAMESPACE = uuid.UUID("6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42")
CHUNKS_A_DOCUMENT = 10
TABLES = ("documents", "chunks", "jobs", "events")


def block(name: str) -> bytes:
    """One named block of store.sql."""
    text = resources.files(__package__).joinpath("store.sql").read_text(encoding="utf-8")
    pieces = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))[name].encode()


def build(url: str, documents: int) -> None:
    """Create and fill schema `bench` in an empty database; vacuumed and analyzed, as a store at rest is."""
    _build(url, documents, ("tables", *TABLES, "keys", "triggers"))


def build_wide(url: str, documents: int) -> None:
    """The same with vectors of 1536 random dimensions and an HNSW index over them, which takes minutes."""
    _build(url, documents, ("tables", "documents", "wide", "jobs", "events", "keys", "triggers", "vector_index"))


def _build(url: str, documents: int, names: Sequence[str]) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("SET maintenance_work_mem = '1GB'")
        for name in names:
            # Without values the driver leaves % alone and takes several statements at once.
            connection.execute(block(name), {"documents": documents} if name in TABLES else None)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


def clone(server_: EmbeddedServer, template: str, name: str) -> str:
    """A fresh copy of a database that nobody is connected to, under a new name; its URL."""
    with psycopg.connect(server_.url("postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        # What the last run left for the checkpointer is not this one's to pay.
        connection.execute("CHECKPOINT")
    return server_.url(name)


def drop(server_: EmbeddedServer, name: str) -> None:
    """Drop a database; sessions on it are ended."""
    with psycopg.connect(server_.url("postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def make_template(server_: EmbeddedServer, documents: int, fill: Callable[[str, int], None] = build) -> str:
    """A database that ``fill`` has made a store of this size in, on first use; its name."""
    name = f"{fill.__name__}_{documents}"
    with psycopg.connect(server_.url("postgres"), autocommit=True) as connection:
        known = connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone()
    if known is None:
        server.ensure_database(server_, name)
        fill(server_.url(name), documents)
    return name


def rows_of(documents: int) -> int:
    """Rows of a store of this size whose ids change: documents, chunks, jobs, events."""
    return documents * (CHUNKS_A_DOCUMENT + 3)


def digest(url: str) -> tuple[object, ...]:
    """Which row has which id, and who refers to whom: equal for two contenders that did the same work."""
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        [row] = connection.execute(block("digest")).fetchall()
    return tuple(row)

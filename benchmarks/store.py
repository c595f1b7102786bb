"""The benchmark's store: documents with ten chunks, one job and one event each, under random ids."""

import re
import uuid
from importlib import resources
from pathlib import Path

import psycopg

from uuid_pipeline.demo import server
from uuid_pipeline.demo.server import EmbeddedServer

SPEC = Path(__file__).with_name("spec.yaml")
NAMESPACE = uuid.UUID("6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42")
CHUNKS_A_DOCUMENT = 10
TABLES = ("documents", "chunks", "jobs", "events")
_BLOCKS = ("tables", *TABLES, "keys", "triggers")


def block(name: str) -> bytes:
    """One named block of store.sql."""
    text = resources.files(__package__).joinpath("store.sql").read_text(encoding="utf-8")
    pieces = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))[name].encode()


def build(url: str, documents: int) -> None:
    """Create and fill schema `bench` in an empty database; vacuumed and analyzed, as a store at rest is."""
    with psycopg.connect(url) as connection:
        for name in _BLOCKS:
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


def make_template(server_: EmbeddedServer, documents: int) -> str:
    """A database that holds a store of this size, built on first use; its name."""
    name = f"bench_{documents}"
    with psycopg.connect(server_.url("postgres"), autocommit=True) as connection:
        known = connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone()
    if known is None:
        server.ensure_database(server_, name)
        build(server_.url(name), documents)
    return name


def digest(url: str) -> tuple[object, ...]:
    """Which row has which id, and who refers to whom: equal for two contenders that did the same work."""
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        [row] = connection.execute(block("digest")).fetchall()
    return tuple(row)

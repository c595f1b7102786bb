"""One server and one template database of the incident a session; a fresh copy of it a test."""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine

from uuid_pipeline.demo import server as embedded
from uuid_pipeline.demo.incident import build_incident
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine.connection import open_store

pytest.register_assert_rewrite("uuid_pipeline_tests.integration.cycle")

INCIDENT = "template_incident"

NewDatabase = Callable[[str | None], str]
NewRole = Callable[..., str]


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A server of this worker's own, gone with its data after the session."""
    with tempfile.TemporaryDirectory(prefix="up_", ignore_cleanup_errors=True) as directory:
        # Root's server runs as another user, who must be able to reach its data.
        Path(directory).chmod(0o755)
        home = Path(directory) / "home"
        try:
            started = embedded.start(home)
            with psycopg.connect(started.url("postgres"), autocommit=True) as connection:
                # No test takes the machine down; what survives a dead client does not depend on fsync.
                connection.execute("ALTER SYSTEM SET fsync = off")
                connection.execute("ALTER SYSTEM SET full_page_writes = off")
                connection.execute("SELECT pg_reload_conf()")
            yield started
        finally:
            embedded.destroy(home)


@pytest.fixture(scope="session")
def incident_template(server: EmbeddedServer) -> str:
    """The name of a database that holds the incident; nobody stays connected to it."""
    embedded.ensure_database(server, INCIDENT)
    engine = open_store(server.url(INCIDENT))
    with engine.begin() as connection:
        build_incident(connection)
    engine.dispose()
    return INCIDENT


@pytest.fixture
def new_role(server: EmbeddedServer) -> Iterator[NewRole]:
    """Makes login roles with the given attributes, and drops them after the test."""
    made: list[str] = []

    def make(attributes: str = "") -> str:
        name = f"r_{uuid.uuid4().hex}"
        made.append(name)
        _maintain(server, "CREATE ROLE {} LOGIN " + attributes, name)
        return name

    yield make
    for name in made:
        _maintain(server, "REVOKE SET ON PARAMETER session_replication_role FROM {}", name)
        _maintain(server, "DROP ROLE {}", name)


@pytest.fixture
def new_database(server: EmbeddedServer, new_role: NewRole) -> Iterator[NewDatabase]:
    """Makes databases, empty or copied from a template, and drops them after the test, before its roles."""
    made: list[str] = []

    def make(template: str | None) -> str:
        name = f"t_{uuid.uuid4().hex}"
        made.append(name)
        _maintain(server, "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, template or "template0")
        return server.url(name)

    yield make
    for name in made:
        _maintain(server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


def _maintain(server: EmbeddedServer, statement: str, *names: str) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture
def incident_url(new_database: NewDatabase, incident_template: str) -> str:
    """The incident, in a database of the test's own."""
    return new_database(incident_template)


@pytest.fixture
def empty_url(new_database: NewDatabase) -> str:
    """A database with nothing in it."""
    return new_database(None)


@pytest.fixture
def incident(incident_url: str) -> Iterator[Engine]:
    """The incident as the engine opens a store."""
    engine = open_store(incident_url)
    yield engine
    engine.dispose()


@pytest.fixture
def empty_store(empty_url: str) -> Iterator[Engine]:
    """An empty database as the engine opens a store."""
    engine = open_store(empty_url)
    yield engine
    engine.dispose()


def as_role(url: str, role: str) -> str:
    """The same database for another role."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}@").geturl()

"""One server and one template database of the incident a session; a fresh copy of it a test; other servers as asked."""

import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine

from uuid_pipeline.demo import installation
from uuid_pipeline.demo import server as embedded
from uuid_pipeline.demo.incident import add_vector_buffer, build_incident
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine.connection import open_store

pytest.register_assert_rewrite("uuid_pipeline_tests.integration.cycle")

INCIDENT = "template_incident"

NewDatabase = Callable[[str | None], str]
NewRole = Callable[..., str]


@contextmanager
def server_of_our_own(version: int = 18, **settings: str) -> Iterator[EmbeddedServer]:
    """A server with these settings, gone with its data afterwards."""
    with tempfile.TemporaryDirectory(prefix="up_", ignore_cleanup_errors=True) as directory:
        # Root's server runs as another user, who must be able to reach its data.
        Path(directory).chmod(0o755)
        home = Path(directory) / "home"
        try:
            started = embedded.start(home, version)
            with psycopg.connect(started.url("postgres"), autocommit=True) as connection:
                # No test takes the machine down; what survives a dead client does not depend on fsync. Statistics that
                # come by themselves on a busy machine would change the size of batches in mid-test.
                for name, value in {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", **settings}.items():
                    setting = sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
                    connection.execute(setting)
                connection.execute("SELECT pg_reload_conf()")
            if settings:
                embedded.stop(home)
                started = embedded.start(home, version)
            yield started
        finally:
            embedded.destroy(home)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A server of this worker's own."""
    with server_of_our_own() as started:
        yield started


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


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    """A store as the engine opens it."""
    engine = open_store(url)
    yield engine
    engine.dispose()


@pytest.fixture
def incident(incident_url: str) -> Iterator[Engine]:
    """The incident as the engine opens a store."""
    with opened(incident_url) as engine:
        yield engine


@pytest.fixture
def incident_with_buffer(incident: Engine) -> Engine:
    """The incident with the older soft reference."""
    with incident.begin() as connection:
        add_vector_buffer(connection)
    return incident


@pytest.fixture
def other(incident_url: str) -> Iterator[Engine]:
    """Another process's engine on the incident, as far as PostgreSQL can tell."""
    with opened(incident_url) as engine:
        yield engine


@pytest.fixture
def empty_store(empty_url: str) -> Iterator[Engine]:
    """An empty database as the engine opens a store."""
    with opened(empty_url) as engine:
        yield engine


def as_role(url: str, role: str) -> str:
    """The same database for another role."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}@").geturl()


# Where Debian's packages put their programs; .ci/system-packages installs them.
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
PGBOUNCER = Path("/usr/sbin/pgbouncer")


@pytest.fixture(scope="session")
def server_16() -> Iterator[EmbeddedServer]:
    """The wheel's older server."""
    with server_of_our_own(version=16) as started:
        yield started


@pytest.fixture(scope="session")
def server_15() -> Iterator[str]:
    """The URL of an empty database on Debian's server, which has no pgvector."""
    with _owned_directory("up15_") as (directory, account):
        data = directory / "data"
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        _succeed(account, DEBIAN_15 / "initdb", "-D", data, *options)
        settings = f"-c listen_addresses= -c fsync=off -k {directory}"
        log = directory / "log"
        _succeed(account, DEBIAN_15 / "pg_ctl", "start", "-s", "-w", "-D", data, "-l", log, "-o", settings)
        try:
            yield f"postgresql://postgres@/postgres?host={directory}"
        finally:
            _succeed(account, DEBIAN_15 / "pg_ctl", "stop", "-s", "-m", "immediate", "-D", data)


Pooled = Callable[[str], str]


@pytest.fixture(scope="session")
def pgbouncer(server: EmbeddedServer) -> Iterator[Pooled]:
    """Turns a database's URL into the same one behind Debian's pgbouncer in transaction mode."""
    with _owned_directory("upb_") as (directory, account):
        pid_file, config = directory / "pid", directory / "pgbouncer.ini"
        config.write_text(
            f"""[databases]
* = host={server.socket_dir} port={server.port} user=postgres
[pgbouncer]
pool_mode = transaction
listen_addr =
listen_port = 6432
unix_socket_dir = {directory}
auth_type = any
ignore_startup_parameters = options
pidfile = {pid_file}
logfile = {directory}/log
"""
        )
        config.chmod(0o644)
        _succeed(account, PGBOUNCER, "-d", config)
        _wait(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), directory / "log")
        try:
            yield lambda url: f"postgresql://postgres@{urlsplit(url).path}?host={directory}&port=6432"
        finally:
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
            _wait(lambda: not pid_file.exists(), directory / "log")


def _wait(done: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else f"{log} is not there"
        time.sleep(0.02)


@contextmanager
def _owned_directory(prefix: str) -> Iterator[tuple[Path, installation.Account]]:
    """A short path for sockets, owned by the user that servers run as: they refuse root."""
    account = installation.server_account()
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/tmp", ignore_cleanup_errors=True) as directory:
        os.chown(directory, account.uid, account.gid)
        yield Path(directory), account


def _succeed(account: installation.Account, *command: str | Path) -> None:
    # A daemon that inherits a pipe keeps it open, so its output goes to a file.
    with tempfile.TemporaryFile() as output:
        done = account.run(*command, out=output)
        output.seek(0)
        assert done.returncode == 0, f"{command}: {output.read().decode(errors='replace')}"

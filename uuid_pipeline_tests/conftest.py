"""One server and one template database of the incident a session; a fresh copy of it a test; other servers as asked."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, Engine

from uuid_pipeline.demo import installation
from uuid_pipeline.demo import server as embedded
from uuid_pipeline.demo.incident import add_vector_buffer, build_incident
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.demo.twins import build_twins
from uuid_pipeline.engine import sync_points
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.spec import load_spec

pytest.register_assert_rewrite("uuid_pipeline_tests.integration.cycle")

from uuid_pipeline_tests.integration import cycle  # noqa: E402

NewDatabase = Callable[[str | None], str]
NewRole = Callable[..., str]

# A database a test is hundreds of files made and removed: half the time of the tests, where they are on a disk.
_MEMORY = Path("/dev/shm")
_MEMORY_WANTED = 8 * 2**30
if "TMPDIR" not in os.environ and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _MEMORY_WANTED:
    # Of this process and of those that it starts; nothing has asked for the directory yet.
    os.environ["TMPDIR"] = str(_MEMORY)
    tempfile.tempdir = None


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


def _build_incident_with_buffer(connection: Connection) -> None:
    build_incident(connection)
    add_vector_buffer(connection)


# What a store can be copied with, and how far the engine has come with it; each state is made from an earlier one.
STORES: dict[str, Callable[[Connection], object]] = {
    "incident": build_incident,
    "incident_with_buffer": _build_incident_with_buffer,
    "twins": build_twins,
}
SPEC = load_spec(None)
STATES: dict[str, tuple[str, Callable[[Engine], object]]] = {
    "planned": ("fresh", lambda engine: cycle.assess_and_plan(engine, SPEC)),
    "approved": ("planned", lambda engine: cycle.approve(engine, SPEC, cycle.newest_plan(engine).plan_id)),
    # The first wave has moved; or all but the sweeps; or everything, and it is validated.
    "begun": ("approved", lambda engine: cycle.migrate_waves(engine, SPEC, slice(1))),
    "moved": ("begun", lambda engine: cycle.migrate_waves(engine, SPEC, slice(1, None))),
    "migrated": ("approved", lambda engine: cycle.finish(engine, SPEC, cycle.newest_execution(engine))),
}


class Templates:
    """Databases to copy stores from, made when first asked for; nobody stays connected to one."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self._rows: dict[str, cycle.Rows] = {}
        self._objects: dict[str, list[tuple[Any, ...]]] = {}
        self._made: set[str] = set()

    def name(self, store: str, state: str = "fresh") -> str:
        """The database that holds this store in this state, the spec being the default one."""
        name = f"template_{store}_{state}"
        if name not in self._made:
            earlier, deed = STATES.get(state, (None, None))
            _copy(self._server, name, self.name(store, earlier) if earlier else "template0")
            with opened(self._server.url(name)) as engine:
                if deed:
                    deed(engine)
                else:
                    with engine.begin() as connection:
                        STORES[store](connection)
            self._made.add(name)
        return name

    def rows(self, store: str) -> cycle.Rows:
        """Every row of this store as it is in every fresh copy."""
        if store not in self._rows:
            with opened(self._server.url(self.name(store))) as engine:
                self._rows[store] = cycle.rows_of(engine)
        return {table: [dict(row) for row in rows] for table, rows in self._rows[store].items()}

    def objects(self, store: str) -> list[tuple[Any, ...]]:
        """Every object of this store's schema, as it is in every fresh copy."""
        if store not in self._objects:
            with opened(self._server.url(self.name(store))) as engine:
                self._objects[store] = cycle.catalog_of(engine)
        return self._objects[store]


@pytest.fixture(scope="session")
def templates(server: EmbeddedServer) -> Templates:
    """This worker's own."""
    return Templates(server)


@pytest.fixture(scope="session")
def incident_template(templates: Templates) -> str:
    """The name of a database that holds the incident; nobody stays connected to it."""
    return templates.name("incident")


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
        _copy(server, name, template or "template0")
        return server.url(name)

    yield make
    for name in made:
        _maintain(server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


@pytest.fixture
def database_in(server: EmbeddedServer) -> Iterator[Callable[[str], str]]:
    """Makes empty databases of a given encoding, and drops them after the test."""
    made: list[str] = []

    def make(encoding: str) -> str:
        name = f"e_{uuid.uuid4().hex}"
        made.append(name)
        # An identifier's quotes do for the encoding too.
        _maintain(server, "CREATE DATABASE {} TEMPLATE template0 LOCALE 'C' ENCODING {}", name, encoding)
        return server.url(name)

    yield make
    for name in made:
        _maintain(server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


def _copy(server: EmbeddedServer, name: str, template: str) -> None:
    _maintain(server, "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, template)


def _maintain(server: EmbeddedServer, statement: str, *names: str) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture(autouse=True)
def no_hook_outlives_its_test() -> Iterator[None]:
    """What a test holds the engine at, it holds no other test's at."""
    yield
    sync_points.clear()


def _state(request: pytest.FixtureRequest) -> str:
    marker = request.node.get_closest_marker("begins")
    return str(marker.args[0]) if marker else "fresh"


def _store(request: pytest.FixtureRequest) -> str:
    if "twins_url" in request.fixturenames:
        return "twins"
    return "incident_with_buffer" if "incident_with_buffer" in request.fixturenames else "incident"


@pytest.fixture
def incident_url(request: pytest.FixtureRequest, new_database: NewDatabase, templates: Templates) -> str:
    """The incident, in a database of the test's own and in the state that the test `begins` with."""
    return new_database(templates.name(_store(request), _state(request)))


@pytest.fixture
def twins_url(request: pytest.FixtureRequest, new_database: NewDatabase, templates: Templates) -> str:
    """The store with twins, in a database of the test's own, in the state that the test `begins` with."""
    return new_database(templates.name(_store(request), _state(request)))


@pytest.fixture
def before(request: pytest.FixtureRequest, templates: Templates) -> cycle.Rows:
    """Every row of the test's incident, or of its twins, as it was before anything was done to it."""
    return templates.rows(_store(request))


@pytest.fixture
def objects_before(request: pytest.FixtureRequest, templates: Templates) -> list[tuple[Any, ...]]:
    """Every object of its schema with definition and grants, as :func:`cycle.catalog_of` then read them."""
    return templates.objects(_store(request))


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
def untouched(new_database: NewDatabase, templates: Templates) -> Iterator[Engine]:
    """The incident again, as it was before anything was done to it."""
    with opened(new_database(templates.name("incident"))) as engine:
        yield engine


@pytest.fixture
def incident_with_buffer(incident: Engine) -> Engine:
    """The incident with the older soft reference, for everything that is made of it in the test."""
    return incident


@pytest.fixture
def twins(twins_url: str) -> Iterator[Engine]:
    """The store with twins as the engine opens a store."""
    with opened(twins_url) as engine:
        yield engine


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
# .ci/system-packages installs them.
FROM_NPM = Path("/opt/uuid_pipeline_servers/node_modules")
PGBOUNCER = Path("/usr/sbin/pgbouncer")


@pytest.fixture(scope="session")
def server_16() -> Iterator[EmbeddedServer]:
    """The wheel's older server."""
    with server_of_our_own(version=16) as started:
        yield started


@contextmanager
def _bare_server(binaries: Path) -> Iterator[str]:
    """The URL of an empty database on a server of these binaries, which come without pgvector."""
    with _owned_directory("upo_") as (directory, account):
        data = directory / "data"
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        _succeed(account, binaries / "initdb", "-D", data, *options)
        settings = f"-c listen_addresses= -c fsync=off -k {directory}"
        log = directory / "log"
        _succeed(account, binaries / "pg_ctl", "start", "-s", "-w", "-D", data, "-l", log, "-o", settings)
        try:
            yield f"postgresql://postgres@/postgres?host={directory}"
        finally:
            _succeed(account, binaries / "pg_ctl", "stop", "-s", "-m", "immediate", "-D", data)


@pytest.fixture(scope="session")
def server_14() -> Iterator[str]:
    """The oldest version that we take."""
    with _bare_server(FROM_NPM / "pg14/native/bin") as url:
        yield url


@pytest.fixture(scope="session")
def server_15() -> Iterator[str]:
    """Debian's server."""
    with _bare_server(DEBIAN_15) as url:
        yield url


@pytest.fixture(scope="session")
def server_17() -> Iterator[str]:
    """The version between the wheel's two."""
    with _bare_server(FROM_NPM / "pg17/native/bin") as url:
        yield url


@pytest.fixture(scope="session")
def server_18() -> Iterator[str]:
    """The wheel's newest version with the extensions that come with PostgreSQL, which the wheel has not."""
    with _bare_server(FROM_NPM / "pg18/native/bin") as url:
        yield url


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


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A filesystem of 200 MB, of the user that servers run as."""
    account = installation.server_account()
    place = Path(f"/tmp/up_disk_{os.getpid()}")
    place.mkdir()
    options = f"size=200m,uid={account.uid},gid={account.gid},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        place.rmdir()


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb") as filler:
        block = b"\0" * 65536
        try:
            while True:
                filler.write(block)
                filler.flush()
        except OSError:
            pass

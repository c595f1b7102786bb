"""The guard on Debian's server, whose pgcrypto and uuid-ossp have SHA-1."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.installed import guard
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.integration import cycle

pytestmark = pytest.mark.system

NAMESPACE = uuid.UUID("0b1e6b0a-63f4-4f0e-9b8e-0c6f5f1a2d3c")
SPEC = parse_spec(
    """
    namespace: 0b1e6b0a-63f4-4f0e-9b8e-0c6f5f1a2d3c
    schema: press
    entities:
      page: {table: pages, key: id, identity: "{title}"}
      line: {table: lines, key: id, parent: page, identity: "{page}/{nr}/{on}"}
    """,
    "test",
)
STORE = """
CREATE SCHEMA press;
CREATE TABLE press.pages (id uuid PRIMARY KEY, title text NOT NULL);
CREATE TABLE press.lines (id text PRIMARY KEY, page uuid NOT NULL REFERENCES press.pages, nr int, "on" timestamptz);
CREATE SCHEMA tools;
"""


@pytest.fixture
def store(server_15: str) -> Iterator[Engine]:
    name = f"t_{uuid.uuid4().hex}"
    with psycopg.connect(server_15, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    engine = open_store(server_15.replace("/postgres?", f"/{name}?"))
    cycle.run_sql(engine, STORE)
    with engine.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    yield engine
    engine.dispose()
    with psycopg.connect(server_15, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("extension", ["pgcrypto", "uuid-ossp", None])
def test_it_judges_by_whichever_sha1_the_server_has(store: Engine, extension: str | None) -> None:
    if extension is not None:
        cycle.run_sql(store, f'CREATE EXTENSION "{extension}" SCHEMA tools')
    guard.install(store, cycle.bound_store(store, SPEC), "reject", [], cycle.RUN)
    with store.begin() as connection:
        found = guard.report(connection, cycle.bound(connection, SPEC))
    assert [(one.hashing, one.current) for one in found] == [(extension or "PL/pgSQL", True)] * 2

    title = "Überschrift ☃ " + "x" * 200
    page = uuid.uuid5(NAMESPACE, title)
    # A date's text depends on the session's settings; the id does not.
    line = str(uuid.uuid5(NAMESPACE, f"{page}/7/2026-03-01 12:30:00+00"))
    with cycle.session(store) as app:
        app.execute("SET timezone = 'Asia/Kolkata'")
        app.execute("SET datestyle = 'German'")
        app.execute("INSERT INTO press.pages VALUES (%s, %s)", [page, title])
        app.execute("INSERT INTO press.lines VALUES (%s, %s, 7, '2026-03-01 12:30:00+00')", [line, page])
        app.commit()
        with pytest.raises(errors.CheckViolation, match=r"pages\.id"):
            app.execute("INSERT INTO press.pages VALUES (gen_random_uuid(), 'other')")
        app.rollback()
        with pytest.raises(errors.CheckViolation, match=r"lines\.id"):
            app.execute("INSERT INTO press.lines VALUES (%s, %s, 8, now())", [line.upper(), page])

    if extension is not None:
        with pytest.raises(Exception, match="other objects depend on it"):
            cycle.run_sql(store, f'DROP EXTENSION "{extension}"')
    guard.remove(store, cycle.bound_store(store, SPEC), cycle.RUN)
    if extension is not None:
        cycle.run_sql(store, f'DROP EXTENSION "{extension}"')

"""Scratch databases and PostgreSQL's client programs."""

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo import installation
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine.backups import extensions, pg_tools, scratch
from uuid_pipeline.engine.backups.extensions import Extension
from uuid_pipeline.engine.connection import open_store, store_url
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline_tests.conftest import DEBIAN_15, NewDatabase, NewRole, as_role

WHEEL = installation.client_directories()


def databases(server: EmbeddedServer) -> set[str]:
    with psycopg.connect(server.url("postgres")) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def test_the_tools_of_the_servers_own_version_come_first_else_the_next_above() -> None:
    assert pg_tools.find(180004, WHEEL).major == 18
    assert pg_tools.find(160000, WHEEL).major == 16
    assert pg_tools.find(150000, [*WHEEL, DEBIAN_15]).directory == DEBIAN_15
    assert pg_tools.find(170000, WHEEL).major == 18


def test_without_tools_new_enough_it_says_which_version_is_needed_and_where_it_looked() -> None:
    with pytest.raises(UsageError, match=r"needs pg_dump and pg_restore 19 or newer.*18\.\d+ in .*Looked in .*/15/bin"):
        pg_tools.find(190000, WHEEL)


def test_no_password_in_a_command_line_or_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "pg_dump"
    program.write_text('#!/bin/sh\necho "argv: $*"\necho "failed for $PGPASSWORD" >&2\nexit 3\n')
    program.chmod(0o755)
    tools = pg_tools.Tools(tmp_path, "18.0", 18)
    ran = pg_tools.run(tools, "pg_dump", ["-Fc"], store_url("postgresql://u:s%40cret@h:5/d?sslmode=require"))
    assert ran.code == 3
    assert "s@cret" not in ran.output + ran.messages
    assert "s%40cret" not in ran.output + ran.messages
    assert ran.messages == "failed for ***\n"
    assert "host=h" in ran.output
    assert "sslmode=require" in ran.output


def test_a_url_with_a_secret_that_only_argv_could_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sslpassword"):
        pg_tools.run(pg_tools.Tools(tmp_path, "18", 18), "pg_dump", [], store_url("postgresql://u@h/d?sslpassword=x"))


def test_a_scratch_database_is_there_with_its_extensions_and_then_gone(
    incident: Engine, server: EmbeddedServer
) -> None:
    with incident.begin() as connection:
        chunks = connection.exec_driver_sql("SELECT 'upload_pipeline.document_chunks'::regclass::oid").scalar_one()
        documents = connection.exec_driver_sql("SELECT 'upload_pipeline.documents'::regclass::oid").scalar_one()
        needed = extensions.of_tables(connection, [chunks])
        assert [(e.name, e.needed) for e in needed] == [("vector", True)]
        assert [e.needed for e in extensions.of_tables(connection, [documents])] == [False]
    with scratch.scratch_database(incident, None, needed) as made:
        assert made.on_store
        assert made.database in databases(server)
        with psycopg.connect(made.url) as connection:
            assert connection.execute("SELECT '[1,2]'::vector(2)").fetchone() is not None
    assert made.database not in databases(server)


def test_it_is_dropped_after_an_error_even_while_somebody_is_connected(
    incident: Engine, server: EmbeddedServer
) -> None:
    names = []

    def fail() -> None:
        with scratch.scratch_database(incident) as made, psycopg.connect(made.url) as other:
            names.append(made.database)
            other.execute("SELECT 1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not set(names) & databases(server)


def test_a_role_that_may_make_none_falls_back_to_the_other_server(
    new_database: NewDatabase, new_role: NewRole, server: EmbeddedServer, server_16: EmbeddedServer
) -> None:
    store = open_store(as_role(new_database(None), new_role()))
    with scratch.scratch_database(store, lambda: server_16.url("postgres")) as made:
        assert not made.on_store
        assert "permission denied to create database" in made.reason
        assert made.database in databases(server_16)
        assert made.database not in databases(server)
    assert made.database not in databases(server_16)
    with pytest.raises(RefusedError, match=r"permission denied.*CREATEDB"), scratch.scratch_database(store):
        pass
    store.dispose()


def test_an_extension_that_the_tables_need_and_nobody_has_is_named(incident: Engine, server: EmbeddedServer) -> None:
    before = databases(server)
    wanted = [Extension("postgis", "public", "3", needed=True)]
    with (
        pytest.raises(RefusedError, match=r"own server: the extension postgis.*embedded server: the extension postgis"),
        scratch.scratch_database(incident, lambda: server.url("postgres"), wanted),
    ):
        pass
    assert databases(server) == before
    unneeded = [Extension("postgis", "public", "3", needed=False)]
    with scratch.scratch_database(incident, None, unneeded) as made:
        assert made.without == ("postgis",)


_KILLED = """
import os, sys
from uuid_pipeline.engine.backups import scratch
with scratch.scratch_database(sys.argv[1]) as made:
    print(made.database, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_dropped_by_the_next_and_nothing_else(
    empty_url: str, server: EmbeddedServer
) -> None:
    left = subprocess.run(
        [sys.executable, "-c", _KILLED, empty_url], capture_output=True, text=True, check=False, cwd=Path.cwd()
    ).stdout.strip()
    assert left in databases(server)
    lookalike = "uuid_pipeline_scratch_of_mine"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {lookalike}")
        with scratch.scratch_database(empty_url) as first:
            # The first to come would drop it; somebody connected keeps it.
            assert left not in databases(server)
            with scratch.scratch_database(empty_url):
                assert {first.database, lookalike} <= databases(server)
        connection.execute(f"DROP DATABASE {lookalike}")


def test_a_leftover_in_use_stays(empty_url: str, server: EmbeddedServer) -> None:
    left = subprocess.run(
        [sys.executable, "-c", _KILLED, empty_url], capture_output=True, text=True, check=False, cwd=Path.cwd()
    ).stdout.strip()
    with psycopg.connect(server.url(left)):
        assert scratch.drop_leftovers(store_url(empty_url)) == []
    assert scratch.drop_leftovers(store_url(empty_url)) == [left]


def test_policies_roles_are_made_on_the_embedded_server_only(empty_url: str, server_16: EmbeddedServer) -> None:
    with scratch.scratch_database(empty_url) as made:
        assert scratch.ensure_roles(made, ["never_made"]) == ()
    elsewhere = scratch.Scratch(server_16.url("postgres"), "postgres", False, "", ())
    assert scratch.ensure_roles(elsewhere, ["reader_of_policies", "postgres"]) == ("reader_of_policies",)
    assert scratch.ensure_roles(elsewhere, ["reader_of_policies"]) == ()

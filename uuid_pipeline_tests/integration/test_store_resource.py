"""How stages and checks open the store: once a run, and anew where the connection is gone."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, text

from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.stages.session import StoreResource

PID = text("SELECT pg_backend_pid()")


@pytest.fixture
def configured(incident_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("UUID_PIPELINE_DATABASE_URL", incident_url)
    monkeypatch.delenv("UUID_PIPELINE_SPEC", raising=False)
    return incident_url


@contextmanager
def of_a_run() -> Iterator[StoreResource]:
    """The resource as Dagster gives it to the steps of one run."""
    with StoreResource.from_resource_context_cm(dg.build_init_resource_context()) as store:
        assert isinstance(store, StoreResource)
        yield store


@contextmanager
def step(store: StoreResource) -> Iterator[Connection]:
    with store.open() as (engine, _), engine.begin() as connection:
        yield connection


def pid_of_a_step(store: StoreResource) -> int:
    with step(store) as connection:
        return int(connection.execute(PID).scalar_one())


def sessions(url: str) -> set[int]:
    """The server's sessions of ours in the store."""
    with psycopg.connect(url) as connection:
        return {
            pid
            for (pid,) in connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = "
                "'uuid_pipeline'"
            )
        }


def test_the_steps_of_a_run_share_a_session_which_ends_with_the_run(configured: str) -> None:
    with of_a_run() as store:
        first, second = pid_of_a_step(store), pid_of_a_step(store)
        assert first == second
        assert sessions(configured) == {first}
    wait_until_gone(configured, first)


def test_without_a_run_each_opening_has_a_session_of_its_own(configured: str) -> None:
    first = pid_of_a_step(StoreResource())
    wait_until_gone(configured, first)


def test_a_session_that_was_ended_between_two_steps_is_replaced(configured: str) -> None:
    with of_a_run() as store:
        first = pid_of_a_step(store)
        end(configured, first)
        assert pid_of_a_step(store) != first


def test_a_step_that_finds_the_store_gone_says_that_it_cannot_be_reached(
    configured: str, server: EmbeddedServer
) -> None:
    with of_a_run() as store:
        first = pid_of_a_step(store)
        with psycopg.connect(server.url("postgres"), autocommit=True) as other:
            closed = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false")
            other.execute(closed.format(sql.Identifier(str(conninfo_to_dict(configured)["dbname"]))))
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
        with pytest.raises(dg.Failure, match="cannot be reached") as failed:
            pid_of_a_step(store)
    assert failed.value.metadata["exit_code"].value == 2


def end(url: str, pid: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def wait_until_gone(url: str, pid: int) -> None:
    """A closed session is still there for a moment."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(600):
            if connection.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone() is None:
                return
            connection.execute("SELECT pg_sleep(0.02)")
    raise AssertionError(f"session {pid} is still there")

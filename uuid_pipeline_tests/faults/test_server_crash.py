"""A server that crashes in the middle of a wave forgets whole batches, and the next run does them."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.demo import server as embedded
from uuid_pipeline.demo.incident import build_incident
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import sync_points
from uuid_pipeline.engine.batches import lanes
from uuid_pipeline.spec import Spec
from uuid_pipeline_tests.conftest import opened, server_of_our_own
from uuid_pipeline_tests.integration import cycle

pytestmark = pytest.mark.system

SPEC = cycle.spec_with(batch_rows=1)
JOURNAL = "SELECT first_ordinal, last_ordinal, count(*) FROM uuid_pipeline.batches GROUP BY 1, 2 ORDER BY 1"
ONCE_EACH = [(ordinal, ordinal, 1) for ordinal in range(1, 39)]


@pytest.fixture
def forgetful() -> Iterator[EmbeddedServer]:
    """What no commit waits for is on disk ten seconds later; the rest of a commit's promise holds."""
    with server_of_our_own(wal_writer_delay="10s") as started:
        yield started


@pytest.fixture
def store(forgetful: EmbeddedServer) -> Iterator[Engine]:
    embedded.ensure_database(forgetful, "store")
    with opened(forgetful.url("store")) as engine:
        with engine.begin() as connection:
            build_incident(connection)
        yield engine


def crash(server: EmbeddedServer) -> None:
    """Every process of the server ends at once; nothing that is in its memory alone is written."""
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGQUIT)
    while Path(f"/proc/{postmaster}").exists():
        time.sleep(0.02)


def kill_a_process(server: EmbeddedServer) -> None:
    """As the kernel does for want of memory: the postmaster ends all its processes, recovers, and goes on."""
    url, counted_since = server.url("postgres"), "SELECT pg_stat_get_bgwriter_stat_reset_time()"
    # In a transaction it would be asked to end that.
    with psycopg.connect(url, autocommit=True) as victim:
        before = victim.execute(counted_since).fetchone()
        os.kill(victim.info.backend_pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    # It takes new sessions until it has seen what became of that process.
    while time.monotonic() < deadline:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as now:
            if now.execute(counted_since).fetchone() != before:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not recover")


def crash_at_commit(server: EmbeddedServer, number: int) -> list[int]:
    """Let the server crash once so many batches have committed; returns a list that each of them is added to."""
    committed: list[int] = []

    def come() -> None:
        committed.append(len(committed) + 1)
        if len(committed) == number:
            crash(server)

    sync_points.on("committed", come)
    return committed


def forgotten(server: EmbeddedServer, store: Engine, spec: Spec, number: int) -> int:
    """Migrate until the server crashes at this commit, and start it; how many of the committed batches are gone."""
    execution = cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)
    committed = crash_at_commit(server, number)
    try:
        with pytest.raises(DBAPIError):
            cycle.migrate_all(store, spec, execution)
    finally:
        sync_points.clear()
    store.dispose()
    embedded.start(server.home)
    [(kept,)] = cycle.run_sql(store, "SELECT count(*) FROM uuid_pipeline.batches")
    return len(committed) - int(kept)


@pytest.mark.parametrize("number", [3, 20])
def test_of_batches_at_once_a_crashed_server_forgets_a_round_at_most_and_the_next_run_does_them(
    forgetful: EmbeddedServer, store: Engine, number: int
) -> None:
    before = cycle.rows_of(store)

    gone = forgotten(forgetful, store, SPEC, number)

    assert 0 <= gone <= lanes.BATCHES_A_ROUND * SPEC.lanes
    cycle.finish(store, SPEC, cycle.newest_execution(store))
    assert cycle.rows_of(store) == cycle.expected_rows(before)
    assert cycle.run_sql(store, JOURNAL) == ONCE_EACH
    cycle.roll_back(store, SPEC)
    assert cycle.rows_of(store) == before


def test_of_batches_one_by_one_a_crashed_server_forgets_none(forgetful: EmbeddedServer, store: Engine) -> None:
    before, spec = cycle.rows_of(store), SPEC.model_copy(update={"lanes": 1})

    assert forgotten(forgetful, store, spec, 20) == 0

    cycle.finish(store, spec, cycle.newest_execution(store))
    assert cycle.rows_of(store) == cycle.expected_rows(before)
    assert cycle.run_sql(store, JOURNAL) == ONCE_EACH


# A whole document of the first wave, as an application deletes one.
DELETE_ONE_THAT_MOVED = """
WITH gone AS (SELECT new_id FROM uuid_pipeline.id_map_document ORDER BY ordinal LIMIT 1),
jobs AS (DELETE FROM upload_pipeline.upload_jobs j USING gone WHERE j.document_id = new_id RETURNING job_id),
hooks AS (DELETE FROM upload_pipeline.webhook_log w USING jobs WHERE w.job_id = jobs.job_id),
events AS (DELETE FROM upload_pipeline.events e USING gone WHERE e.document_id = new_id),
chunks AS (DELETE FROM upload_pipeline.document_chunks c USING gone WHERE c.document_id = new_id)
DELETE FROM upload_pipeline.documents d USING gone WHERE d.document_id = new_id
"""


@pytest.mark.parametrize("deletes", ["before", "after"])
def test_what_the_application_deleted_makes_no_proof_red_though_a_killed_process_cost_the_server_its_counts(
    forgetful: EmbeddedServer, store: Engine, deletes: str
) -> None:
    execution = cycle.approve(store, SPEC, cycle.assess_and_plan(store, SPEC).plan_id)
    first, *_ = cycle.waves_of(store, execution)
    cycle.migrate(store, SPEC, first)
    cycle.assert_green(cycle.check_wave(store, SPEC, first))
    for moment in ("before", "after"):
        if moment == deletes:
            cycle.run_sql(store, DELETE_ONE_THAT_MOVED)
        if moment == "before":
            # A session tells what it deleted when it ends, if it has not earlier.
            store.dispose()
            kill_a_process(forgetful)
    cycle.assert_green(cycle.check_wave(store, SPEC, first))
    cycle.migrate_all(store, SPEC, execution)
    cycle.assert_green(cycle.validate(store))

"""The lease: one writer a store, whoever it is and wherever it runs."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import inventory, lease, migration, rollback, sync_points
from uuid_pipeline.engine.batches import writing
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_migration import ONE_BY_ONE

SPEC = load_spec(None)

HOLD = """
import sys, time
from uuid_pipeline.engine import lease
from uuid_pipeline.engine.connection import open_store
engine = open_store(sys.argv[1])
with engine.connect() as connection:
    lease.acquire(engine, connection, "the run that died")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.begins("approved")
def test_a_second_writer_is_refused_and_told_who_the_first_is(incident: Engine, other: Engine) -> None:
    execution = cycle.newest_execution(incident)
    [canary, *_] = cycle.waves_of(incident, execution)
    before = cycle.rows_of(incident)

    with (
        lease.held(other, "run 17"),
        pytest.raises(RefusedError, match=r"process \d+ on .* \(run run 17[,)]"),
    ):
        cycle.migrate(incident, SPEC, canary)

    assert cycle.rows_of(incident) == before
    assert cycle.migrate(incident, SPEC, canary).documents == 5


# As the first stage of another plan leaves it.
COPY_OF_ASSESSMENT = """
INSERT INTO uuid_pipeline.assessments (run_id, spec_digest, catalog_digest, profile)
SELECT 'another', spec_digest, catalog_digest, profile FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s
"""


@pytest.mark.begins("approved")
def test_a_plan_is_made_in_the_middle_of_a_batch_and_neither_waits_for_the_other(
    incident: Engine, other: Engine
) -> None:
    [canary, *_] = cycle.waves_of(incident, cycle.newest_execution(incident))
    made: list[str] = []

    def plan() -> None:
        with ThreadPoolExecutor(1) as thread:
            made.append(thread.submit(cycle.assess_and_plan, other, SPEC).result(timeout=60).plan_id)

    sync_points.on("moved", plan)

    assert cycle.migrate(incident, SPEC, canary).documents == 5
    assert len(made) == 1


@pytest.mark.begins("approved")
def test_a_run_goes_on_while_an_inventory_is_taken(incident: Engine, other: Engine) -> None:
    [canary, *_] = cycle.waves_of(incident, cycle.newest_execution(incident))
    assessed = cycle.newest_plan(incident).assessment_no
    cycle.run_sql(incident, COPY_OF_ASSESSMENT, no=assessed)
    looking = other.connect().execution_options(isolation_level="REPEATABLE READ")

    with looking as connection, connection.begin():
        inventory.take(connection, cycle.bound(connection, SPEC), assessed + 1)
        assert cycle.migrate(incident, SPEC, canary).documents == 5


@pytest.mark.begins("approved")
def test_a_first_writer_that_is_about_to_leave_is_waited_for(incident: Engine, other: Engine) -> None:
    """Of two runs that approve at once, the one whose execution is superseded holds the lease until it knows."""
    [canary, *_] = cycle.waves_of(incident, cycle.newest_execution(incident))
    held = threading.Event()

    def leave_soon() -> None:
        with lease.held(other, "superseded"):
            held.set()
            time.sleep(lease.BRIEF_SECONDS / 2)

    first = threading.Thread(target=leave_soon)
    first.start()
    assert held.wait(10)

    assert cycle.migrate(incident, SPEC, canary).documents == 5
    first.join()


def test_a_second_writer_is_refused_in_the_middle_of_a_wave(
    incident: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BRIEF_SECONDS", 0.0)
    execution = cycle.approve(incident, ONE_BY_ONE, cycle.assess_and_plan(incident, ONE_BY_ONE).plan_id)
    [canary, *_] = cycle.waves_of(incident, execution)
    refused: list[str] = []

    def intrude(_: writing.Progress) -> None:
        with pytest.raises(RefusedError) as refusal:
            cycle.migrate(other, ONE_BY_ONE, canary)
        refused.append(refusal.value.message)
        with pytest.raises(RefusedError):
            cycle.roll_back(other, ONE_BY_ONE)

    store = cycle.bound_store(incident, ONE_BY_ONE)
    done = migration.run_wave(incident, store, canary.wave, "first", intrude)

    assert done.batches == len(refused) == 5
    assert all("run first" in message for message in refused)


def test_of_writers_that_start_at_once_one_writes(incident: Engine, incident_url: str) -> None:
    before = cycle.rows_of(incident)
    execution = cycle.approve(incident, ONE_BY_ONE, cycle.assess_and_plan(incident, ONE_BY_ONE).plan_id)
    [canary, *_] = cycle.waves_of(incident, execution)
    outcomes: list[str] = []
    ready = threading.Barrier(4)

    def start() -> None:
        engine = open_store(incident_url)
        ready.wait()
        try:
            outcomes.append(f"moved {cycle.migrate(engine, ONE_BY_ONE, canary).documents}")
        except RefusedError as error:
            outcomes.append("refused" if "holds the lease" in error.message else error.message)
        engine.dispose()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # One that comes after the winner has ended finds nothing left to move.
    assert outcomes.count("moved 5") == 1
    assert len(outcomes) == 4
    assert set(outcomes) <= {"moved 5", "moved 0", "refused"}
    assert cycle.run_sql(incident, "SELECT count(*) FROM uuid_pipeline.batches") == [(5,)]
    cycle.migrate_all(incident, ONE_BY_ONE, execution)
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


@pytest.mark.begins("approved")
def test_the_lease_of_a_dead_process_is_taken_over_and_its_run_named(incident: Engine, incident_url: str) -> None:
    execution = cycle.newest_execution(incident)
    [canary, *_] = cycle.waves_of(incident, execution)
    process = subprocess.Popen([sys.executable, "-c", HOLD, incident_url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RefusedError, match="the run that died"):
        cycle.migrate(incident, SPEC, canary)

    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(200):
        with incident.begin() as connection:
            holder = lease.holder(connection)
        if holder is not None and not holder.alive:
            break
        time.sleep(0.02)

    assert cycle.migrate(incident, SPEC, canary).dead_run == "the run that died"


def test_a_holder_that_was_fenced_off_cannot_write_any_more(incident: Engine, other: Engine) -> None:
    execution = cycle.approve(incident, ONE_BY_ONE, cycle.assess_and_plan(incident, ONE_BY_ONE).plan_id)
    [canary, *_] = cycle.waves_of(incident, execution)
    store = cycle.bound_store(incident, ONE_BY_ONE)
    rows: list[cycle.Rows] = []

    def take_over(_: writing.Progress) -> None:
        # As if the holder had been taken for dead: its backend is not the one that the ledger names any more.
        cycle.run_sql(other, "UPDATE uuid_pipeline.lease SET backend_start = backend_start - interval '1 hour'")
        with lease.held(other, "the next"):
            rows.append(cycle.rows_of(other))

    with pytest.raises(RefusedError, match="lost its lease"):
        migration.run_wave(incident, store, canary.wave, "the first", take_over)

    assert len(rows) == 1
    assert cycle.rows_of(incident) == rows[0]


@pytest.mark.begins("planned")
def test_the_fenced_off_holder_does_not_release_the_lease_of_the_next(incident: Engine, other: Engine) -> None:
    with lease.held(incident, "the first"):
        cycle.run_sql(other, "UPDATE uuid_pipeline.lease SET backend_pid = 0")
        with other.connect() as connection:
            taken = lease.acquire(other, connection, "the next")
            first = lease.Lease(taken.epoch - 1, None)
            lease.release(incident, first)

            holder = lease.holder(connection)

    assert holder is not None
    assert holder.run_id == "the next"


@pytest.mark.begins("approved")
def test_the_lease_is_free_again_after_a_run_whether_it_ended_well_or_not(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    canary, recent, _ = cycle.waves_of(incident, execution)
    cycle.migrate(incident, SPEC, canary)
    with pytest.raises(RefusedError):
        cycle.migrate(incident, SPEC, recent)

    with incident.begin() as connection:
        assert lease.holder(connection) is None


@pytest.mark.begins("migrated")
def test_a_rollback_needs_the_lease_too(incident: Engine, other: Engine) -> None:
    rows = cycle.rows_of(incident)
    store = cycle.bound_store(incident, SPEC)
    with incident.begin() as connection:
        waves = rollback.choose(connection, None)

    with lease.held(other, "run 17"), pytest.raises(RefusedError, match="run 17"):
        rollback.roll_back(incident, store, waves, "mine", lambda _: None)

    assert cycle.rows_of(incident) == rows


@pytest.mark.parametrize("clock", ["61 s on", "an hour back"])
def test_a_holder_without_a_backend_of_its_own_is_judged_by_its_last_sign_of_life(
    incident: Engine, other: Engine, clock: str
) -> None:
    """Behind a pooler; the tests with a real one are in system/test_other_servers.py."""
    cycle.assess_and_plan(incident, SPEC)
    with incident.connect() as connection:
        lease.acquire(incident, connection, "the first")
    cycle.run_sql(incident, "UPDATE uuid_pipeline.lease SET backend_pid = NULL, backend_start = NULL")

    with pytest.raises(RefusedError, match="run the first"), lease.held(other, "the next"):
        pass

    since = {"61 s on": "-61 s", "an hour back": "59 min"}[clock]
    cycle.run_sql(incident, "UPDATE uuid_pipeline.lease SET renewed_at = renewed_at + %(since)s::interval", since=since)
    with lease.held(other, "the next") as (_, taken):
        assert taken.dead_run == "the first"
        assert not taken.pooled

"""Pause, resume and cancel: obeyed between two batches, and never by half."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import control, ledger, sync_points, validation
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.errors import RefusedError
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with(batch_rows=1, lanes=1)
BATCHES = "SELECT count(*) FROM uuid_pipeline.batches"
WAITING = "SELECT count(*) = 1 FROM uuid_pipeline.waits WHERE cause = 'pause' AND ended_at IS NULL"


@pytest.fixture
def other(incident_url: str) -> Iterator[Engine]:
    """Another process's engine on the same store, as far as PostgreSQL can tell."""
    engine = open_store(incident_url)
    yield engine
    engine.dispose()


def ask(engine: Engine, what: Callable[[Connection], ledger.Execution]) -> ledger.Execution:
    with engine.begin() as connection:
        return what(connection)


@pytest.fixture
def paused(incident: Engine, other: Engine) -> Iterator["Running"]:
    """A wave that is asked to pause after its second batch, and waits."""
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    before = cycle.rows_of(incident)
    running = Running(incident, other, execution, before)
    sync_points.on("committed", running.pause_after_two)
    running.thread.start()
    running.wait_until(WAITING)
    yield running
    sync_points.clear()
    if running.thread.is_alive():
        ask(other, control.cancel)
        running.thread.join()


@dataclass
class Running:
    """The first two waves, in a thread of their own."""

    engine: Engine
    other: Engine
    execution: ledger.Execution
    before: cycle.Rows
    batches: int = 0
    refused: list[RefusedError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        try:
            cycle.migrate_all(self.engine, SPEC, self.execution)
        except RefusedError as error:
            self.refused.append(error)

    def pause_after_two(self) -> None:
        self.batches += 1
        if self.batches == 2:
            ask(self.other, control.pause)

    def wait_until(self, question: str) -> None:
        deadline = time.monotonic() + 20
        while cycle.run_sql(self.other, question) != [(True,)]:
            assert self.thread.is_alive()
            assert time.monotonic() < deadline, question
            time.sleep(0.02)

    @property
    def status(self) -> str:
        with self.other.begin() as connection:
            return ledger.execution(connection, self.execution.execution_id).status


def test_a_paused_wave_holds_between_two_batches_until_it_is_resumed(paused: Running) -> None:
    time.sleep(3 * control.POLL_SECONDS)
    assert cycle.run_sql(paused.other, BATCHES) == [(2,)]
    # It holds no lock that the application could meet, but keeps the lease.
    cycle.run_sql(paused.other, "LOCK TABLE upload_pipeline.documents, upload_pipeline.document_chunks NOWAIT")
    with pytest.raises(RefusedError, match=r"Another run holds the lease .*It is paused: uuid-pipeline resume"):
        cycle.migrate(paused.other, SPEC, cycle.waves_of(paused.other, paused.execution)[0])

    ask(paused.other, control.resume)
    paused.thread.join()

    assert paused.refused == []
    assert cycle.rows_of(paused.engine) == cycle.expected_rows(paused.before)
    cycle.assert_green(cycle.validate(paused.engine))
    assert cycle.run_sql(paused.other, BATCHES) == [(38,)]
    waited = "SELECT extract(epoch FROM ended_at - began_at) FROM uuid_pipeline.waits WHERE cause = 'pause'"
    [(seconds,)] = cycle.run_sql(paused.other, waited)
    assert seconds > 3 * control.POLL_SECONDS


def test_a_paused_wave_that_is_cancelled_ends_and_rollback_restores_every_row(paused: Running) -> None:
    objects = cycle.catalog_of(paused.other)

    ask(paused.other, control.cancel)
    paused.thread.join()

    assert [error.message for error in paused.refused] != []
    assert "was cancelled; what its committed batches moved stays" in paused.refused[0].message
    assert paused.status == "cancelled"
    assert cycle.run_sql(paused.other, BATCHES) == [(2,)]
    assert cycle.rows_of(paused.engine) != paused.before
    cycle.roll_back(paused.engine, SPEC)
    assert cycle.rows_of(paused.engine) == paused.before
    assert cycle.catalog_of(paused.engine) == objects
    assert paused.status == "rolled_back"


def test_a_cancelled_execution_is_taken_up_by_a_new_plan_where_it_stopped(incident: Engine, other: Engine) -> None:
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    before = cycle.rows_of(incident)
    [canary, recent, *_] = cycle.waves_of(incident, execution)
    cycle.migrate(incident, SPEC, canary)
    cycle.assert_green(cycle.check_wave(incident, SPEC, canary))

    def cancel() -> None:
        ask(other, control.cancel)

    sync_points.on("committed", cancel)
    try:
        with pytest.raises(RefusedError, match="was cancelled"):
            cycle.migrate(incident, SPEC, recent)
    finally:
        sync_points.clear()
    with pytest.raises(RefusedError, match="is cancelled"):
        cycle.migrate(incident, SPEC, recent)
    assert cycle.run_sql(incident, BATCHES) == [(6,)]

    rest = cycle.run_all(incident, SPEC)

    assert rest.status == "completed"
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    cycle.roll_back(incident, SPEC)
    assert cycle.rows_of(incident) == before


RENAME = "UPDATE upload_pipeline.documents SET file_sha256 = translate(file_sha256, '0123456789', '1234567890')"


@pytest.mark.begins("migrated")
def test_what_cancelled_executions_have_moved_on_is_no_loss_of_the_one_that_is_validated(incident: Engine) -> None:
    completed = cycle.newest_execution(incident)
    for _ in range(2):
        cycle.run_sql(incident, RENAME)
        execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
        canary, *_ = cycle.waves_of(incident, execution)
        cycle.migrate(incident, SPEC, canary)
        cycle.assert_green(cycle.check_wave(incident, SPEC, canary))
        ask(incident, control.cancel)

    with incident.begin() as connection:
        assert validation.subject(connection) == completed
    cycle.assert_green(cycle.validate(incident))

    # A row that nobody moved on is missed all the same.
    with cycle.session(incident) as connection_of_another:
        connection_of_another.execute("SET session_replication_role = replica")
        connection_of_another.execute(
            """UPDATE upload_pipeline.documents SET document_id = gen_random_uuid() WHERE document_id = (
                   SELECT d.document_id FROM uuid_pipeline.retrieval_baseline b
                   JOIN upload_pipeline.documents d ON d.document_id::text = b.target LIMIT 1)"""
        )
    found = {result.gate: result for result in cycle.validate(incident)}
    assert not found["whole_documents_retrievable"].passed


def test_a_paused_execution_that_nobody_runs_waits_for_resume_and_not_for_a_run(incident: Engine) -> None:
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    [canary, *_] = cycle.waves_of(incident, execution)
    before = cycle.rows_of(incident)
    ask(incident, control.pause)

    with pytest.raises(RefusedError, match=r"is paused\. To go on: uuid-pipeline resume"):
        cycle.migrate(incident, SPEC, canary)
    assert cycle.rows_of(incident) == before

    ask(incident, control.resume)
    assert cycle.migrate(incident, SPEC, canary).documents == 5


def test_what_nobody_runs_is_cancelled_at_once_and_then_there_is_nothing_to_steer(incident: Engine) -> None:
    cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)

    assert ask(incident, control.cancel).status == "cancelled"

    for verb in (control.pause, control.resume, control.cancel):
        with pytest.raises(RefusedError, match="No execution is approved or running"):
            ask(incident, verb)
    asked = "SELECT detail->>'execution' IS NOT NULL FROM uuid_pipeline.audit WHERE action LIKE 'asked to %%'"
    assert cycle.run_sql(incident, asked) == [(True,)]


def test_a_rollback_that_is_under_way_is_said_to_obey_nothing(incident: Engine) -> None:
    cycle.run_all(incident, SPEC)
    cycle.run_sql(incident, "UPDATE uuid_pipeline.executions SET status = 'rolling_back'")

    for verb in (control.pause, control.cancel):
        with pytest.raises(RefusedError, match="is being rolled back, and that obeys no"):
            ask(incident, verb)


def test_who_waits_between_two_waves_waits_no_longer_when_the_execution_is_rolled_back(
    incident: Engine, other: Engine
) -> None:
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    canary, recent, *_ = cycle.waves_of(incident, execution)
    before = cycle.rows_of(incident)
    cycle.migrate(incident, SPEC, canary)
    ask(other, control.pause)
    said: list[str] = []
    waiting = threading.Thread(target=control.await_resumption, args=(incident, recent, said.append), daemon=True)
    waiting.start()
    deadline = time.monotonic() + 30
    while cycle.run_sql(other, WAITING) != [(True,)]:
        assert time.monotonic() < deadline

    cycle.roll_back(other, SPEC)

    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert said[1:] == [f"{recent.wave}: the execution has ended"]
    assert cycle.rows_of(incident) == before
    with pytest.raises(RefusedError):
        cycle.migrate(incident, SPEC, recent)

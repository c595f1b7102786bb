"""Pause, resume, cancel, finalize and drop-ledger as a user meets them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import lease
from uuid_pipeline_tests.acceptance.conftest import CommandLine, ended
from uuid_pipeline_tests.integration import cycle

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning"),
]

SPEC = Path(__file__).parents[2] / "uuid_pipeline/specs/upload_pipeline.yaml"
BATCHES = "SELECT count(*) FROM uuid_pipeline.batches"
JOB = """
INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (gen_random_uuid(), %(document)s, 'queued')
RETURNING document_id::text
"""


@pytest.fixture(autouse=True)
def hangups_end_us() -> Iterator[None]:
    """Whatever started the tests: under nohup every process that they start would inherit that SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def patient_spec(tmp_path: Path) -> str:
    """The default spec in one wave of small batches that wait while somebody is long in a transaction."""
    path = tmp_path / "patient.yaml"
    more = """
batch_rows: 1
waves: {canary: 0, recent: 0}
aliases: {quiet_hours: 0}
throttle: {long_transaction_seconds: 0.1, check_seconds: 0.1}
"""
    path.write_text(SPEC.read_text(encoding="utf-8") + more, encoding="utf-8")
    return str(path)


def wait_until(store: Engine, question: str) -> None:
    deadline = time.monotonic() + 300  # for what hangs, not for a busy machine
    while cycle.run_sql(store, question) != [(True,)]:
        assert time.monotonic() < deadline, question
        time.sleep(0.05)


@contextmanager
def kept_waiting(store: Engine, process: Callable[[], "subprocess.Popen[str]"]) -> Iterator["subprocess.Popen[str]"]:
    """A run that waits between two batches of its wave until the block ends."""
    with cycle.session(store) as connection:
        connection.execute("SELECT 1")
        running = process()
        wait_until(store, "SELECT to_regclass('uuid_pipeline.waits') IS NOT NULL")
        wait_until(store, "SELECT count(*) = 1 FROM uuid_pipeline.waits")
        yield running


def test_a_run_is_paused_resumed_and_ends_as_if_nothing_had_been(
    command_line: CommandLine, incident: Engine, patient_spec: str
) -> None:
    before = cycle.rows_of(incident)
    arguments = ("run", "--approve", "--json", "--spec", patient_spec)
    with kept_waiting(incident, lambda: command_line.start(*arguments)) as running:
        paused = command_line("pause", "--json", "--spec", patient_spec)
        assert (paused.code, paused.data["writer_alive"]) == (0, True)
        assert "waits after its current batch" in paused.data["message"]
    wait_until(incident, "SELECT count(*) = 1 FROM uuid_pipeline.waits WHERE cause = 'pause' AND ended_at IS NULL")

    [(done,)] = cycle.run_sql(incident, BATCHES)
    for second in (command_line(*arguments), command_line("plan", "--json", "--spec", patient_spec)):
        assert second.code == 1
        assert f"process {running.pid} on " in second.data["error"]
    assert running.poll() is None
    assert cycle.run_sql(incident, BATCHES) == [(done,)]
    assert done < 38

    assert command_line("resume", "--json", "--spec", patient_spec).data["writer_alive"]
    said = ended(running)
    assert (said.code, said.data["status"]) == (0, "completed")
    assert "paused; uuid-pipeline resume lets it go on" in said.err
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


# Ours, on the ledger: the execution is paused in the very transaction that ends its first wave.
PAUSED_AFTER_CANARY = """
CREATE FUNCTION public.pause() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    UPDATE uuid_pipeline.executions SET desired = 'pause' WHERE execution_id = NEW.execution_id; RETURN NULL; END$$;
CREATE TRIGGER pause AFTER UPDATE ON uuid_pipeline.waves FOR EACH ROW
WHEN (NEW.kind = 'canary' AND NEW.status = 'moved' AND OLD.status <> 'moved') EXECUTE FUNCTION public.pause();
"""


def test_a_run_that_is_paused_between_two_waves_waits_there(command_line: CommandLine, incident: Engine) -> None:
    before = cycle.rows_of(incident)
    assert command_line("plan").code == 0
    cycle.run_sql(incident, PAUSED_AFTER_CANARY)
    running = command_line.start("run", "--approve", "--json")
    wait_until(incident, "SELECT count(*) = 1 FROM uuid_pipeline.waits WHERE cause = 'pause' AND ended_at IS NULL")

    assert command_line("run", "--json").code == 1
    assert running.poll() is None
    assert command_line("resume", "--json").code == 0

    said = ended(running)
    assert (said.code, said.data["status"]) == (0, "completed"), said.data.get("error")
    assert "paused between two waves" in said.err
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_of_runs_that_plan_and_approve_at_once_one_moves_and_the_others_say_who(
    command_line: CommandLine, incident: Engine
) -> None:
    before = cycle.rows_of(incident)
    running = [command_line.start("run", "--approve", "--json") for _ in range(3)]
    pids = [process.pid for process in running]
    said = [ended(process) for process in running]

    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    errors = [one.data.get("error") for one in said]
    assert {one.code for one in said} <= {0, 1}, errors
    assert sum(one.code == 0 for one in said) >= 1, errors
    for one in said:
        if one.code == 1:
            who = any(f"process {pid} on " in one.data["error"] for pid in pids)
            # Or that one which had moved all was about to count it.
            known = ("was approved by", "yet not all is counted")
            assert who or any(words in one.data["error"] for words in known), one.data["error"]
    moved = cycle.run_sql(
        incident,
        "SELECT count(DISTINCT execution_id), sum(last_ordinal - first_ordinal + 1) FROM uuid_pipeline.batches",
    )
    assert moved == [(1, 38)]
    assert command_line("run", "--approve", "--json").code == 0


def test_a_run_waits_between_its_waves_for_whoever_has_the_lease_for_a_moment(
    command_line: CommandLine, incident: Engine
) -> None:
    """As a run does that is about to be refused: on a busy machine all of several ended so, and none finished."""
    before = cycle.rows_of(incident)
    running = command_line.start("run", "--approve", "--json")
    wait_until(incident, "SELECT to_regclass('uuid_pipeline.waves') IS NOT NULL")
    wait_until(incident, "SELECT EXISTS (SELECT FROM uuid_pipeline.waves WHERE status = 'moved')")
    with lease.held(incident, "another run"):
        left = cycle.run_sql(incident, "SELECT count(*) > 0 FROM uuid_pipeline.waves WHERE status = 'planned'")
        time.sleep(2 * lease.BRIEF_SECONDS)

    assert left == [(True,)]
    assert ended(running).code == 0
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_asked_to_end_says_so_and_the_next_one_goes_on(
    command_line: CommandLine, incident: Engine, patient_spec: str, asked: signal.Signals
) -> None:
    before, objects = cycle.rows_of(incident), cycle.catalog_of(incident)
    arguments = ("run", "--approve", "--json", "--spec", patient_spec)
    with kept_waiting(incident, lambda: command_line.start(*arguments)) as running:
        running.send_signal(asked)
        said = ended(running)

    assert said.code == 130
    assert said.data["error"].startswith("Interrupted. What was committed stands")
    assert "Traceback" not in said.err
    assert cycle.run_sql(incident, "SELECT holder FROM uuid_pipeline.lease") == [(None,)]
    assert command_line(*arguments).code == 0
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    assert command_line("rollback", "--all", "--spec", patient_spec).code == 0
    assert cycle.catalog_of(incident) == objects


def test_a_run_whose_terminal_closes_gives_the_lease_back_and_the_next_one_goes_on(
    command_line: CommandLine, incident: Engine, patient_spec: str
) -> None:
    before = cycle.rows_of(incident)
    arguments = ("run", "--approve", "--spec", patient_spec)
    master, terminal = os.openpty()
    with kept_waiting(incident, lambda: command_line.start(*arguments, terminal=terminal)) as running:
        os.close(terminal)
        os.close(master)
        assert running.wait(timeout=60) == 130

    assert cycle.run_sql(incident, "SELECT holder FROM uuid_pipeline.lease") == [(None,)]
    assert command_line(*arguments).code == 0
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_a_cancelled_run_says_how_to_go_back_and_going_back_restores_every_row(
    command_line: CommandLine, incident: Engine, patient_spec: str
) -> None:
    before, objects = cycle.rows_of(incident), cycle.catalog_of(incident)
    arguments = ("run", "--approve", "--json", "--spec", patient_spec)
    with kept_waiting(incident, lambda: command_line.start(*arguments)) as running:
        assert command_line("cancel", "--spec", patient_spec).code == 0

    said = ended(running)
    assert said.code == 1
    assert "uuid-pipeline rollback --all" in said.data["error"]
    assert cycle.run_sql(incident, "SELECT status FROM uuid_pipeline.executions") == [("cancelled",)]
    assert command_line("rollback", "--all", "--spec", patient_spec).code == 0
    assert cycle.rows_of(incident) == before
    assert cycle.catalog_of(incident) == objects


def test_finalize_and_drop_ledger_wait_for_quiet_and_for_each_other_and_leave_nothing(
    command_line: CommandLine, incident: Engine, patient_spec: str
) -> None:
    before, objects = cycle.rows_of(incident), cycle.catalog_of(incident)
    assert command_line("run", "--approve").code == 0
    old = str(before["documents"][0]["document_id"])
    assert cycle.run_sql(incident, JOB, document=old) == [(cycle.targets(before)[old],)]

    early = command_line("drop-ledger", "--yes", "--json")
    assert (early.code, "uuid-pipeline finalize" in early.data["error"]) == (1, True)
    busy = command_line("finalize", "--yes", "--json")
    assert busy.code == 1
    assert "old ids are still in use (document: 1 uses" in busy.data["error"]
    assert len(cycle.alias_triggers(incident)) == 4

    done = command_line("finalize", "--yes", "--json", "--spec", patient_spec)
    assert done.code == 0
    assert any("no longer be rolled back" in line for line in done.data["consequences"])
    assert cycle.alias_triggers(incident) == []
    assert "drop-ledger" in done.data["message"]
    late = command_line("validate", "--json")
    assert (late.code, "was finalized" in late.data["error"]) == (1, True)
    assert command_line("drop-ledger", "--yes", "--json").code == 0
    assert cycle.run_sql(incident, "SELECT to_regnamespace('uuid_pipeline') IS NULL") == [(True,)]
    assert cycle.catalog_of(incident) == objects

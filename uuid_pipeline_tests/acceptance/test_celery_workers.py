"""Stages and waves on two real Celery workers behind a real Redis: the work is shared, and survives a lost worker."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo.sized import build_sized
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.operations.instance import open_instance
from uuid_pipeline.settings import read_settings
from uuid_pipeline_tests.acceptance.conftest import ROOT, CommandLine, CommandLineFor
from uuid_pipeline_tests.conftest import NewDatabase
from uuid_pipeline_tests.integration import cycle

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning"),
]

PASSWORD = "broker-password"
DOCUMENTS = 300
WAITING_SECONDS = 120
REDIS = "/usr/bin/redis-server"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A Redis on loopback that asks for a password; what it knows is gone with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen([REDIS, *options, "--requirepass", PASSWORD], stdout=subprocess.DEVNULL)
    try:
        _wait_until(lambda: _listens(port), "Redis")
        yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_until(done: Callable[[], object], what: str, seconds: float = WAITING_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


class Worker:
    """A Celery worker with its child processes, as on a machine of its own."""

    def __init__(self, number: int, environment: dict[str, str], log: Path) -> None:
        self.name, self.log = f"worker-{number}", log
        arguments = ["-A", "uuid_pipeline.operations.celery_worker", "worker", "--queues", "dagster"]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", *arguments, "-n", f"{self.name}@%h", "--loglevel", "INFO"],
                cwd=ROOT, env=os.environ | environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return " ready." in self.log.read_text()

    def holds(self, pid: int) -> bool:
        """Whether a process belongs to this worker."""
        try:
            return os.getpgid(pid) == self.process.pid
        except ProcessLookupError:
            return False

    def lose_master(self) -> None:
        """The process that talks to the broker is killed; the one that carries out the step lives on."""
        self.process.kill()
        self.process.wait()

    def lose(self) -> None:
        """The machine is gone: every process of it at once, without a word."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.lose()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def store_url(new_database: NewDatabase) -> str:
    """A store whose one large wave takes a while."""
    url = new_database(None)
    engine = open_store(url)
    with engine.begin() as connection:
        build_sized(connection, DOCUMENTS)
    engine.dispose()
    return url


@pytest.fixture
def store(store_url: str) -> Iterator[Engine]:
    engine = open_store(store_url)
    yield engine
    engine.dispose()


@pytest.fixture
def on_workers(command_line_for: CommandLineFor, store_url: str, broker: str, tmp_path: Path) -> CommandLine:
    """The command line that hands its steps out."""
    spec = tmp_path / "spec.yaml"
    text = (ROOT / "uuid_pipeline/specs/upload_pipeline.yaml").read_text(encoding="utf-8")
    spec.write_text(text + "\nbatch_rows: 1\nwaves: {canary: 5, recent: 0}\n", encoding="utf-8")
    return command_line_for(store_url).but(
        UUID_PIPELINE_EXECUTOR="celery", UUID_PIPELINE_CELERY_BROKER=broker, UUID_PIPELINE_SPEC=str(spec)
    )


@pytest.fixture
def workers(on_workers: CommandLine, tmp_path: Path) -> Iterator[list[Worker]]:
    started = [Worker(number, on_workers.environment, tmp_path / f"worker-{number}.log") for number in (1, 2)]
    try:
        for worker in started:
            _wait_until(worker.is_ready, worker.name)
        yield started
    finally:
        for worker in started:
            worker.stop()


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def steps_by_worker(command_line: CommandLine) -> dict[str, set[str]]:
    """Worker -> the steps that it took, as Dagster's own event log has it."""
    found: dict[str, set[str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        command_line.apply(patch)
        with open_instance(read_settings()) as instance:
            for run in instance.get_runs():
                for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
                    event = entry.dagster_event
                    assert event is not None
                    taken = event.engine_event_data.metadata.get("Celery worker")
                    if taken is not None:
                        found.setdefault(str(taken.value).partition("@")[0], set()).add(str(event.step_key))
    return found


@pytest.mark.parametrize("whole", [True, False], ids=["machine", "only the process that talks to the broker"])
def test_a_worker_lost_mid_wave_loses_nothing_and_the_wave_is_finished_within_a_minute(
    whole: bool, on_workers: CommandLine, workers: list[Worker], store: Engine, store_url: str
) -> None:
    before = cycle.rows_of(store)
    running = on_workers.start("run", "--approve", "--json")
    try:
        # Until then it is planning, and a busy machine's time is no part of what is tested.
        _wait_until(
            lambda: _batches_of_the_large_wave(store_url) >= 10 or running.poll() is not None, "a wave to run", 400
        )
        [(holder,)] = ask(store_url, "SELECT holder FROM uuid_pipeline.lease")
        found = re.match(r"process (\d+) on ", str(holder))
        assert found, (holder, running.communicate(timeout=30) if running.poll() is not None else "")
        writer = int(found[1])
        [lost] = [worker for worker in workers if worker.holds(writer)]
        [other] = [worker for worker in workers if worker is not lost]
        if whole:
            lost.lose()
        else:
            lost.lose_master()
        done = _batches_of_the_large_wave(store_url)
        assert 0 < done < DOCUMENTS - 5
        lost_at = time.monotonic()

        _wait_until(lambda: _batches_of_the_large_wave(store_url) > done, "the wave to go on", 60)
        took_over_after = time.monotonic() - lost_at
        _wait_until(
            lambda: ask(store_url, "SELECT status FROM uuid_pipeline.waves WHERE kind = 'remaining'") == [("moved",)],
            "the wave to end",
            60 - took_over_after,
        )
        out, err = running.communicate(timeout=120)
    finally:
        running.kill()

    assert running.returncode == 0, (out, err, other.log.read_text())
    assert cycle.rows_of(store) == cycle.expected_rows(before)
    assert ask(store_url, "SELECT status FROM uuid_pipeline.executions") == [("completed",)]
    # One row a batch, none twice: what the lost worker had committed was not done again.
    repeated = """SELECT first_ordinal FROM uuid_pipeline.batches WHERE direction = 'forward'
                  GROUP BY execution_id, wave, first_ordinal HAVING count(*) > 1"""
    assert ask(store_url, repeated) == []
    printed = [out, err, *(worker.log.read_text() for worker in workers)]
    assert not any(PASSWORD in text for text in printed)
    taken = steps_by_worker(on_workers)
    assert "migrated_documents" in taken[lost.name] & taken[other.name]


def _batches_of_the_large_wave(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT to_regclass('uuid_pipeline.batches')").fetchone() == (None,):
            return 0
        counted = connection.execute(
            "SELECT count(*) FROM uuid_pipeline.batches JOIN uuid_pipeline.waves w USING (wave) "
            "WHERE w.kind = 'remaining'"
        ).fetchone()
    return int(counted[0]) if counted else 0

"""The benchmarks run, compare equal work, and can fail."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psycopg
import pytest

from benchmarks import contenders, network, store, verdicts
from benchmarks.memory import tree_bytes
from benchmarks.probe import Sample, latencies
from uuid_pipeline.errors import PipelineError
from uuid_pipeline_tests.conftest import NewDatabase
from uuid_pipeline_tests.integration import cycle

ROOT = Path(__file__).parents[2]


@pytest.mark.system
def test_a_small_run_goes_through_every_contender_and_its_exit_code_is_its_verdicts(tmp_path: Path) -> None:
    """Two hundred documents, two thousand chunks; unequal stores after two contenders would end it."""
    command = [sys.executable, "-m", "benchmarks", "--scale", "0.002", "--repeat", "1", "--skip-command-line"]
    ended = subprocess.run(
        [*command, "--curve", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["runs"]) == {"replica", "functions", "cascade", "loop"}
    assert all(run["seconds"] > 0 for runs in found["runs"].values() for run in runs)
    assert 20 < found["runs"]["functions"][0]["peak_mb"] < 300
    assert found["round_trip_ms"] > 0.5
    assert found["network"]["loop"][0]["seconds"] > found["runs"]["loop"][0]["seconds"]
    assert found["application"]["read while moving"]["p99"] > 0
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    # So small a store is all start-up: the hand-written transaction is much faster, and the verdict says so.
    assert "[FAIL] functions / hand-written transaction" in ended.stdout
    assert ended.returncode == 1


def test_contenders_leave_every_id_as_the_standard_uuid5_has_it(new_database: NewDatabase) -> None:
    for contender in (contenders.replica, contenders.cascade, lambda url: contenders.loop(url, 30)):
        url = new_database(None)
        store.build(url, 30)

        contender(url)

        with psycopg.connect(url) as connection:
            documents = connection.execute("SELECT document_id, user_id, file_sha256 FROM bench.documents").fetchall()
            chunks = connection.execute(
                """SELECT chunk_id, document_id, chunker, version, ord
                   FROM bench.chunks JOIN bench.documents USING (document_id)"""
            ).fetchall()
            counts = "SELECT count(*) FROM bench.jobs JOIN bench.events USING (job_id, document_id)"
            assert connection.execute(counts).fetchall() == [(30,)]
        assert len(documents) == 30
        assert len(chunks) == 300
        for key, *parts in documents + chunks:
            assert key == uuid.uuid5(cycle.NAMESPACE, ":".join(map(str, parts)))


@pytest.mark.parametrize(
    ("seconds", "passed"),
    [
        ({"functions": 13.0, "engine": 13.0, "replica": 10.0}, [True, True]),
        ({"functions": 12.9, "engine": 13.1, "replica": 10.0}, [True, False]),
        ({"functions": 13.1, "replica": 10.0}, [False]),
    ],
)
def test_targets_of_speed_are_met_or_missed(seconds: dict[str, float], passed: list[bool]) -> None:
    assert [verdict.passed for verdict in verdicts.of_speed(seconds)] == passed


def test_the_loop_is_judged_over_a_network() -> None:
    assert [verdict.passed for verdict in verdicts.of_network(100.0, 10.0)] == [True]
    assert [verdict.passed for verdict in verdicts.of_network(99.0, 10.0)] == [False]


def test_a_network_between_adds_its_round_trip_to_each_question_and_not_to_each_byte(incident_url: str) -> None:
    near = network.round_trip(incident_url)
    with network.between(incident_url, 20) as url:
        assert 20 < network.round_trip(url) - near < 60
        with psycopg.connect(url) as connection:
            began = time.perf_counter()
            [(length,)] = connection.execute("SELECT repeat('x', 20000000)").fetchall()
            assert len(length) == 20_000_000
            assert time.perf_counter() - began < 5


def test_an_application_error_misses_its_target_as_slowness_does() -> None:
    assert [v.passed for v in verdicts.of_application(2.0, 6.0, 0)] == [True, True]
    assert [v.passed for v in verdicts.of_application(2.0, 6.1, 1)] == [False, False]


def test_growth_compares_the_largest_size_with_its_tenth() -> None:
    [grown] = verdicts.of_growth({10_000: 9.0, 100_000: 1.0, 300_000: 1.0, 1_000_000: 1.31})
    [even] = verdicts.of_growth({10_000: 9.0, 100_000: 1.0, 300_000: 1.0, 1_000_000: 1.3})

    assert (grown.passed, even.passed) == (False, True)
    assert "1,000,000 chunks / at 100,000" in grown.line()


def test_latencies_are_of_their_span_alone() -> None:
    samples = [Sample(at, 1.0) for at in range(100)] + [Sample(at, 50.0) for at in range(100, 110)]

    assert latencies(samples, 0, 100).p99 == 1.0
    assert latencies(samples, 100, 110).p50 == 50.0
    with pytest.raises(PipelineError, match="no two queries"):
        latencies(samples, 200, 300)


# Holds 64 MB and, as long as nobody writes to the pipe, a child that still runs in its memory: vfork before its exec.
_STARTING_ANOTHER = """
import os, sys
held = b"x" * 2**26
open_pipe = (os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)
os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=[open_pipe])
"""


def test_memory_of_a_process_that_starts_another_is_not_counted_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen([sys.executable, "-c", _STARTING_ANOTHER, str(pipe)])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not children.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.01)

    counted = tree_bytes(process.pid)

    with pipe.open("w"):
        assert 2**26 < counted < 1.5 * 2**26
    assert process.wait(timeout=60) == 0


def test_memory_of_a_child_is_counted() -> None:
    holding = "import sys; held = b'x' * 2**26; print(flush=True); sys.stdin.read()"
    command = ["/bin/sh", "-c", '"$0" -c "$1"; true', sys.executable, holding]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert tree_bytes(process.pid) > 2**26

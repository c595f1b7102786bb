"""Runs of the engine in processes of their own: through the command line, and through its functions."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import store
from benchmarks.memory import MemoryWatch
from uuid_pipeline.demo import server
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.errors import PipelineError

_COMMAND_LINE = "from uuid_pipeline.cli.main import main; main()"
DAGSTER = "bench_dagster"
_START = "process start"


@dataclass(frozen=True)
class Run:
    """One run of a contender on a fresh store."""

    seconds: float
    peak_mb: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)


def functions(url: str) -> Run:
    """The stages as plain functions in one process, started by us: what Dagster costs is not in it."""
    seconds, peak, out = _process(["-m", "benchmarks.engine", url], {})
    stages = json.loads(out)
    # Starting Python and importing the engine is no stage, and no cost of a migration.
    return Run(sum(stages.values()), peak, {**stages, _START: seconds - sum(stages.values())})


def moving(run: Run, started: float, ended: float) -> tuple[float, float]:
    """From when to when the waves of a run of `functions` were moved and checked."""
    names = list(run.stages)
    after = names.index("migrated_documents checks") + 1
    # Starting the process comes first, whatever its place among the stages.
    before = sum(run.stages[name] for name in names[: names.index("migrated_documents")])
    rest = sum(run.stages[name] for name in names[after:] if name != _START)
    return started + run.stages[_START] + before, ended - rest


def command_line(server_: EmbeddedServer, url: str) -> Run:
    """`uuid-pipeline run --approve`, in a home that has been used before."""
    store.drop(server_, DAGSTER)
    server.ensure_database(server_, DAGSTER)
    with tempfile.TemporaryDirectory(prefix="up_home_") as home:
        environment = {
            "UUID_PIPELINE_DATABASE_URL": url,
            "UUID_PIPELINE_DAGSTER_URL": server_.url(DAGSTER),
            "UUID_PIPELINE_HOME": home,
            "UUID_PIPELINE_SPEC": str(store.SPEC),
        }
        # Dagster's tables are made once in the life of a home.
        _process(["-c", _COMMAND_LINE, "status", "--json"], environment)
        seconds, peak, _ = _process(["-c", _COMMAND_LINE, "run", "--approve", "--json"], environment)
    return Run(seconds, peak)


def _process(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float, str]:
    """Run Python with these arguments: seconds, peak memory in MB, output. Raises PipelineError if it failed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("UUID_PIPELINE_")}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[1],
        env=own | dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    memory = MemoryWatch(process.pid)
    memory.start()
    out, err = process.communicate()
    seconds = time.perf_counter() - started
    memory.stop()
    if process.returncode != 0:
        raise PipelineError(f"{' '.join(arguments[-3:])} ended with {process.returncode}: {err[-2000:]}{out[-2000:]}")
    return seconds, memory.peak_bytes / 1e6, out

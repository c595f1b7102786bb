"""An application beside the run: one connection that looks documents up, one that adds jobs."""

import math
import random
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from uuid_pipeline.errors import PipelineError

# Slow enough to leave the machine to the run, fast enough for a percentile of ten seconds.
_PAUSE_SECONDS = 0.005

_DOCUMENT = "SELECT document_id FROM bench.documents WHERE user_id = %s AND file_sha256 = %s"
_CHUNKS = "SELECT chunk_id, ord, text FROM bench.chunks WHERE document_id = %s ORDER BY ord"
_JOB = """
INSERT INTO bench.jobs (job_id, document_id, state, updated_at)
SELECT %s, document_id, 'queued', now() FROM bench.documents WHERE user_id = %s AND file_sha256 = %s
"""


@dataclass(frozen=True)
class Sample:
    """One query: when it began (perf_counter), and what it took."""

    at: float
    milliseconds: float


@dataclass(frozen=True)
class Latencies:
    """What one kind of query took, in milliseconds."""

    queries: int
    p50: float
    p99: float
    worst: float


def latencies(samples: Sequence[Sample], since: float = 0.0, until: float = math.inf) -> Latencies:
    """Percentiles of the queries that began in a span of time. Raises PipelineError when there were none."""
    found = [sample.milliseconds for sample in samples if since <= sample.at < until]
    if len(found) < 2:
        raise PipelineError("The application beside the run made no two queries: take a larger --scale.")
    cuts = statistics.quantiles(found, n=100, method="inclusive")
    return Latencies(len(found), cuts[49], cuts[98], max(found))


class _Client(threading.Thread):
    """Repeats one action on a connection of its own until stopped."""

    def __init__(self, url: str, keys: list[tuple[Any, ...]], act: Callable[..., None], seed: int) -> None:
        super().__init__(daemon=True)
        self._url, self._keys, self._act, self._rng = url, keys, act, random.Random(seed)
        self._stopped = threading.Event()
        self.samples: list[Sample] = []
        self.errors: list[str] = []

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True, application_name="application") as connection:
            while not self._stopped.wait(_PAUSE_SECONDS):
                started = time.perf_counter()
                try:
                    self._act(connection, self._rng.choice(self._keys))
                except psycopg.Error as error:
                    self.errors.append(str(error).splitlines()[0])
                self.samples.append(Sample(started, (time.perf_counter() - started) * 1000))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _read(connection: psycopg.Connection[Any], key: tuple[Any, ...]) -> None:
    for (document_id,) in connection.execute(_DOCUMENT, key).fetchall():
        connection.execute(_CHUNKS, [document_id]).fetchall()


def _write(connection: psycopg.Connection[Any], key: tuple[Any, ...]) -> None:
    connection.execute(_JOB, [uuid.uuid4(), *key])


class Application:
    """A reader and a writer that run from ``start`` to ``stop``."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            keys = connection.execute("SELECT user_id, file_sha256 FROM bench.documents LIMIT 100000").fetchall()
        self._reader, self._writer = _Client(url, keys, _read, 1), _Client(url, keys, _write, 2)

    def start(self) -> None:
        self._reader.start()
        self._writer.start()

    def stop(self) -> None:
        self._reader.stop()
        self._writer.stop()

    @property
    def reads(self) -> list[Sample]:
        return self._reader.samples

    @property
    def writes(self) -> list[Sample]:
        return self._writer.samples

    @property
    def errors(self) -> list[str]:
        """What the application would have logged."""
        return self._reader.errors + self._writer.errors

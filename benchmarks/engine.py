"""The engine's stages one after the other in one process, without Dagster: `python -m benchmarks.engine URL`.

The calls are those of the tests' cycle; a stage is over when its last gate is recorded.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks import store
from uuid_pipeline.engine import approval, gates, ledger, migration
from uuid_pipeline.engine.batches import writing
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.errors import PipelineError
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.integration import cycle


class Clock:
    """Seconds by stage, in the order in which the stages ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """All the time since the last mark was this stage's."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


@contextmanager
def stages_timed(clock: Clock) -> Iterator[None]:
    """Mark the clock when a wave has moved, the plan is approved, and for its stage whenever a gate is recorded."""
    record, run_wave, approve = gates.record, migration.run_wave, approval.approve

    def recorded(*arguments: Any) -> None:
        record(*arguments)
        _, _, stage, *_ = arguments
        clock.mark(f"{stage} checks" if stage == gates.WAVE_STAGE else stage)

    def moved(*arguments: Any) -> writing.Run:
        done = run_wave(*arguments)
        clock.mark(gates.WAVE_STAGE)
        sys.stderr.write(f"{done.wave}: {done.documents} documents in {done.batches} batches, {done.seconds:.1f} s\n")
        return done

    def approved(*arguments: Any) -> ledger.Execution:
        made = approve(*arguments)
        clock.mark("approve")
        return made

    with (
        patch.object(gates, "record", recorded),
        patch.object(migration, "run_wave", moved),
        patch.object(approval, "approve", approved),
    ):
        yield


def migrate(url: str) -> dict[str, float]:
    """Assess, plan, approve, move and validate the benchmark's store; seconds by stage.

    Raises PipelineError if it did not end with everything proven.
    """
    engine, clock = open_store(url), Clock()
    try:
        with stages_timed(clock):
            cycle.run_all(engine, load_spec(store.SPEC))
    except AssertionError as error:
        raise PipelineError(f"The engine did not prove its work: {error}") from error
    finally:
        engine.dispose()
    clock.mark("validation_report")
    return clock.seconds


if __name__ == "__main__":
    sys.stdout.write(json.dumps(migrate(sys.argv[1])) + "\n")

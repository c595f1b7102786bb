"""A process that migrates or rolls back, told at which statement, or at which commit, to die as by kill -9.

Run as ``python -m uuid_pipeline_tests.faults.runner URL SPEC forward|back statement|commit|never NUMBER``.
Prints a line a batch.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import event

from uuid_pipeline.engine import ledger, migration, rollback
from uuid_pipeline.engine.batches import writing
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.gates import Scope, record
from uuid_pipeline.engine.proofs.dangling import no_dangling_reference
from uuid_pipeline.engine.proofs.exactness import ids_exact
from uuid_pipeline.engine.retrievals.retrieval import documents_retrievable
from uuid_pipeline.engine.validation import conservation, schema_unchanged
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.integration import cycle


def main(url: str, spec_file: str, direction: str, moment: str, number: str) -> None:
    engine = open_store(url)
    spec = load_spec(Path(spec_file))
    left = int(number)

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with engine.begin() as c:
        store = cycle.bound(c, spec)
        open_ones = [e for e in ledger.executions(c) if e.status in ("approved", "running")]
        waves = ledger.waves(c, open_ones[0].execution_id) if direction == "forward" else rollback.choose(c, None)
    if moment == "statement":
        event.listen(engine, "before_cursor_execute", count)
    elif moment == "commit":
        event.listen(engine, "commit", count)

    def say(progress: writing.Progress) -> None:
        sys.stdout.write(f"{progress.wave} {progress.documents}\n")
        sys.stdout.flush()

    if direction == "back":
        rollback.roll_back(engine, store, waves, "runner", say)
        return
    for wave in waves:
        migration.run_wave(engine, store, wave.wave, "runner", say)
        with engine.begin() as c:
            now, execution = ledger.wave(c, wave.wave), ledger.execution(c, wave.execution_id)
            for found in (
                conservation(c, store, now),
                no_dangling_reference(c, store, now),
                ids_exact(c, store, now),
                schema_unchanged(c, store, execution, "schema_unchanged"),
                documents_retrievable(c, store, now),
            ):
                record(c, Scope(execution=execution.execution_id, wave=now.wave), "migrated_documents", found, "runner")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A store where every part of the engine has work to do, and what must hold of it at any instant.

Clusters merge, and the application's triggers are altered while a wave runs: one that is to fire makes it tier O.
"""

import time
import uuid
from collections import Counter, defaultdict
from pathlib import Path

from sqlalchemy import Engine

from uuid_pipeline.demo.twins import build_twins
from uuid_pipeline.engine import finalizing, gates, lease, ledger, rollback, sync_points
from uuid_pipeline.engine.gates import Scope
from uuid_pipeline.spec import Spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.cycle import NAMESPACE, Row, Rows

SPEC_FILE = Path(__file__).parents[2] / "uuid_pipeline/specs/upload_pipeline.yaml"

_FIRES = """
CREATE FUNCTION upload_pipeline.look() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER looks BEFORE UPDATE ON upload_pipeline.events FOR EACH ROW EXECUTE FUNCTION upload_pipeline.look();
"""
_KEYS = {"documents": "document_id", "document_chunks": "chunk_id", "upload_jobs": "job_id", "events": "event_id",
         "document_vector_buffer": "buffer_id", "webhook_log": "webhook_id"}  # fmt: skip
_IDS = ("document_id", "chunk_id")


def build(engine: Engine) -> None:
    with engine.begin() as connection:
        build_twins(connection)
        connection.exec_driver_sql(_FIRES)


def write_spec(path: Path) -> None:
    """The default spec with several batches a wave, and the trigger that fires."""
    text = SPEC_FILE.read_text(encoding="utf-8")
    assert "\ntriggers: {}" in text
    text = text.replace("\ntriggers: {}", "\ntriggers: {looks: fire}")
    path.write_text(text + "\nbatch_rows: 25\n", encoding="utf-8")


def forward(engine: Engine, spec: Spec) -> None:
    """What is left of the open execution, every check green."""
    with engine.begin() as connection:
        [execution] = [e for e in ledger.executions(connection) if e.status in ("approved", "running")]
    for wave in cycle.all_waves_of(engine, execution):
        [now] = [now for now in cycle.all_waves_of(engine, execution) if now.wave == wave.wave]
        if now.status == "planned":
            cycle.migrate(engine, spec, now)
        # One that was stopped after its last batch has moved, and may have been judged by half.
        if now.status == "planned" or (now.status == "moved" and not _is_judged(engine, now)):
            cycle.assert_green(cycle.check_wave(engine, spec, now))


def _is_judged(engine: Engine, wave: ledger.Wave) -> bool:
    with engine.begin() as c:
        return not gates.open_gates(c, Scope(execution=wave.execution_id, wave=wave.wave), [gates.WAVE_STAGE])


def back(engine: Engine, spec: Spec) -> None:
    """What is left to roll back."""
    with engine.begin() as connection:
        store, waves = cycle.bound(connection, spec), rollback.choose(connection, None)
    rollback.roll_back(engine, store, waves, "fault test", lambda _: None)


def finalize(engine: Engine, spec: Spec) -> None:
    finalizing.finalize(engine, cycle.bound_store(engine, spec), "fault test")


# In an order in which each is still to come: a sweep looks when all other waves are done.
POINTS = {
    "forward": [*(point for point in sync_points.FORWARD if point != "looked"), "looked"],
    "back": list(sync_points.BACK),
    "finalize": list(sync_points.FINALIZING),
}
WORK = {"forward": forward, "back": back, "finalize": finalize}


def wait_until_free(engine: Engine) -> None:
    """A backend notices that its client is gone when its statement ends."""
    for _ in range(500):
        with engine.begin() as connection:
            holder = lease.holder(connection)
        if holder is None or not holder.alive:
            return
        time.sleep(0.01)
    raise AssertionError(f"the lease is still held: {holder}")


def altered(engine: Engine) -> list[tuple[object, ...]]:
    return cycle.run_sql(engine, "SELECT object FROM uuid_pipeline.altered")


def archived(engine: Engine) -> Rows:
    """Every archived row by table, as text."""
    found: Rows = {table: [] for table in _KEYS}
    for name, rows in cycle.rows_of(engine, "uuid_pipeline").items():
        for table in _KEYS:
            if name.startswith(f"archive_upload_pipeline_{table}_"):
                found[table] += [{c: v for c, v in row.items() if not c.startswith("uuid_pipeline_")} for row in rows]
    return found


def moved_and_broken(engine: Engine, before: Rows) -> tuple[int, list[str]]:
    """How many natural keys have their target id and one row; and what is wrong, whatever has moved.

    Every row is in its table or archived as it was, but for ids; each natural key has all its rows under their old
    ids, or one under the target id; what referred to a row of it refers to the row that is left; nothing dangles.
    """
    after, kept = cycle.rows_of(engine), archived(engine)
    wrong = [
        f"{table}: rows lost, doubled or changed"
        for table, rows in before.items()
        if Counter(map(_content, rows)) != Counter(map(_content, after[table] + kept[table]))
        or not all(row in rows for row in kept[table])
    ]
    targets = {row["document_id"]: _target(row) for row in before["documents"]}
    were, now = _by_target(before), _by_target(after)
    wrong += [f"{name} has {now[name]}" for name in were if now[name] not in (were[name], [name])]
    moved = {name for name in were if now[name] == [name]}
    wrong += _misdirected(before, after, targets, moved)
    wrong += _dangling(after)
    return len(moved), wrong


def _content(row: Row) -> tuple[tuple[str, str | None], ...]:
    return tuple((column, value) for column, value in row.items() if column not in _IDS)


def _target(row: Row) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{row['user_id']}:{str(row['file_sha256']).strip().lower()}"))


def _by_target(rows: Rows) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows["documents"]:
        found[_target(row)].append(str(row["document_id"]))
    return {name: sorted(ids) for name, ids in found.items()}


def _misdirected(before: Rows, after: Rows, targets: dict[str | None, str], moved: set[str]) -> list[str]:
    wrong = []
    for table in ("upload_jobs", "events"):
        was = {row[_KEYS[table]]: row["document_id"] for row in before[table]}
        for row in after[table]:
            old = was[row[_KEYS[table]]]
            if row["document_id"] != (targets[old] if targets.get(old) in moved else old):
                wrong.append(f"{table} {row[_KEYS[table]]} refers to {row['document_id']}, before to {old}")
    chunks = {row["chunk_id"] for row in before["document_chunks"]}
    for row in after["document_chunks"]:
        parts = [row[c] for c in ("document_id", "chunker_name", "chunker_version", "chunk_ord")]
        canonical = str(uuid.uuid5(NAMESPACE, ":".join(map(str, parts))))
        if row["chunk_id"] not in ({canonical} if row["document_id"] in moved else chunks):
            wrong.append(f"chunk {row['chunk_id']} of {row['document_id']}")
    return wrong


def _dangling(after: Rows) -> list[str]:
    documents = {row["document_id"]: row for row in after["documents"]}
    chunks = {row["chunk_id"]: row["document_id"] for row in after["document_chunks"]}
    wrong = [
        f"{table}: {row['document_id']} dangles"
        for table, rows in after.items()
        for row in rows
        if row.get("document_id") is not None and row["document_id"] not in documents
    ]
    return wrong + [
        f"document_vector_buffer: chunk {row['chunk_id']} is not one of {row['document_id']}"
        for row in after["document_vector_buffer"]
        if chunks.get(row["chunk_id"]) != row["document_id"]
    ]

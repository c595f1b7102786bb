"""One batch: hold, re-read, derive, merge, move, prove, journal.

A batch is one READ COMMITTED transaction of the caller's. Each statement sees a snapshot taken after the locks of
the statements before it; that is why locking and moving are never one statement (ENGINE.md, section 2).
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, ledger, sql
from uuid_pipeline.engine.batches import aside, deletions, locks, new_references
from uuid_pipeline.engine.batches.application import written_since
from uuid_pipeline.engine.batches.departed import hold_departed
from uuid_pipeline.engine.batches.gone import note_gone, require_gone
from uuid_pipeline.engine.batches.held import (
    BACK,
    FORWARD,
    BatchPlan,
    Direction,
    Held,
    held_of,
    held_tables,
    make_room,
    map_part,
)
from uuid_pipeline.engine.lease import Lease
from uuid_pipeline.engine.merges import emptying, merging, restoring
from uuid_pipeline.engine.merges.collapse import Collapsed
from uuid_pipeline.engine.natural_keys import first_invalid, part
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import BatchError
from uuid_pipeline.identity import hasher

__all__ = ["BACK", "FORWARD", "BatchPlan", "BatchResult", "Direction", "run", "set_up"]


@dataclass(frozen=True)
class BatchResult:
    """By table: rows written, those of them that the application had written since the execution began, rows restored
    from the archive; ids moved by entity; what was merged; and what to tell people of it."""

    tables: dict[str, int]
    entities: dict[str, int]
    touched: dict[str, int]
    merged: Collapsed
    restored: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchFingerprint:
    """Of the rows that a batch writes in one table: how many, and the digest of all columns."""

    rows: int
    digest: int


# Short lock waits; look-ups by ordinal, key and place, never a scan of the map for a batch.
_SETTINGS = f"""
SELECT {locks.SHORT_WAITS}, set_config('enable_seqscan', 'off', true), set_config('enable_mergejoin', 'off', true)
"""


# The log is written in order: a server that crashes has lost whole batches, each with its journal, and none but those
# since the last commit that waited for the disk.
_SETTINGS_AT_REST = _SETTINGS.rstrip() + ", set_config('synchronous_commit', 'off', true)"


def set_up(connection: Connection) -> None:
    """Settings of one batch, gone with its transaction."""
    sql.execute(connection, _SETTINGS)


def set_up_at_rest(connection: Connection) -> None:
    """The same for a batch that nobody sees the moment it commits: the next need not wait until it is on disk.

    The run must :func:`~uuid_pipeline.engine.lease.hold` the lease between two rounds of such batches, and commit
    something of its own before it says that they are done: that waits for theirs as well.
    """
    sql.execute(connection, _SETTINGS_AT_REST)


def run(connection: Connection, store: Store, plan: BatchPlan, direction: Direction, lease: Lease) -> BatchResult:
    """Carry out one batch in the connection's transaction, journal included; the caller has locked the lease.

    Raises BatchError when the rows after are not the rows before with ids as mapped, RefusedError when a foreign key
    was made meanwhile that would be left dangling, OvertakenError when what was looked at is not so any more.
    """
    deleted_before = deletions.of_this_session(connection, store)
    merged = hold(connection, store, plan, direction)
    entities = _ids_held(connection, store)
    after, touched = move_and_prove(connection, store, plan)
    new_references.require_none(connection, store, direction)
    restored = restoring.Restored()
    if direction is BACK:
        restored = restoring.restore(connection, store, plan)
        emptying.fill(connection, store, plan)
    # What was archived shows no more who wrote it.
    touched = {
        name: rows + merged.touched.get(name, 0) + restored.touched.get(name, 0) for name, rows in touched.items()
    }
    result = BatchResult({name: found.rows for name, found in after.items()}, entities, touched, merged, restored.rows)
    deleted = deletions.between(deleted_before, deletions.of_this_session(connection, store))
    _require_archived(connection, store, deleted, merged)
    _journal(connection, plan, direction, lease, result, after, deleted)
    reach("journaled")
    return result


def _require_archived(connection: Connection, store: Store, deleted: dict[str, int], merged: Collapsed) -> None:
    """Raise BatchError where rows of moved tables went that no archive has.

    A trigger that is to fire may delete; and a server that counts nothing has counted none.
    """
    moved = {fingerprint.qualified(one) for one in store.tables}
    archived = {name: rows for name, rows in merged.archived.items() if rows and name in moved}
    if deleted == archived or "fire" in store.spec.triggers.values():
        return
    if sql.scalar(connection, "SELECT current_setting('track_counts')::boolean"):
        raise BatchError(
            f"A batch was rolled back because it deleted other rows than it had archived: deleted {deleted}, archived "
            f"{archived}. Look at the triggers, rules and foreign keys of these tables."
        )


def hold(connection: Connection, store: Store, plan: BatchPlan, direction: Direction) -> Collapsed:
    """Lock every row of the batch, level by level, with the id that it is to get; merge what the plan merges."""
    make_room(connection, store)
    locks.hold_roots(connection, store, plan, direction)
    aside.set_aside(connection, store, plan, direction)
    if direction is BACK:
        for root in store.roots:
            note_gone(connection, store, root, plan)
    merged = Collapsed()
    merges = direction is FORWARD and merging.wanted(connection, store, plan)
    if merges:
        locks.wait_briefly(connection, plan)
        merged = merging.merge(connection, store, plan)
        reach("merged")
        locks.hold_roots(connection, store, plan, direction)
    for entity in store.entities:
        if entity.parent is not None:
            locks.wait_briefly(connection, plan)
            locks.hold_children(connection, store, entity, plan, direction)
            if direction is BACK:
                hold_departed(connection, store, entity, plan)
                note_gone(connection, store, entity, plan)
            aside.forget_departed(connection, store, entity, plan, direction)
            if direction is FORWARD:
                derive_arrivals(connection, store, entity, plan)
    if merges:
        merging.lead_aliases(connection, store, plan)
    locks.hold_references(connection, store, plan, direction)
    if direction is BACK:
        require_gone(connection, store)
    reach("held")
    return merged


def move_and_prove(
    connection: Connection, store: Store, plan: BatchPlan
) -> tuple[dict[str, BatchFingerprint], dict[str, int]]:
    """Write what is held and compare it with what was read; returns fingerprints and rows touched by the application.

    Raises BatchError when they differ.
    """
    before, touched = _before(connection, store, plan)
    locks.wait_briefly(connection, plan)
    after = _move(connection, store)
    reach("moved")
    _prove(before, after)
    reach("proved")
    return after, touched


def derive_arrivals(connection: Connection, store: Store, entity: Entity, plan: BatchPlan) -> int:
    """Map children that are new or changed since the plan, from what is there now; returns how many.

    Children whose natural key is not valid stay under their id, as quarantined ones do; their parent's id moves. So do
    those that have none any more: a part of it is NULL, or the parent was edited and is left to the next plan.
    """
    found = sql.rows(connection, _arrivals_statement(store, entity.name, plan.assessment_no))
    if not found:
        return 0
    _forget(connection, entity, plan, [row[0] for row in found])
    arrivals = _derived(store, entity, found)
    if arrivals:
        _write_arrivals(connection, store, entity, plan, arrivals)
    return len(arrivals)


@sql.composed_once
def _arrivals_statement(store: Store, name: str, assessment_no: int) -> sql.Composable:
    entity, held = store.entity(name), held_of(store, name)
    goal = sql.compose("h.{value}", value=held.value(entity.parent_column or ""))
    valid = [part(entity, field, goal) for field in entity.spec.valid]
    return sql.compose(
        """SELECT h.key::text, h.ordinal, h.natural_key, ARRAY[{valid}]::text[]
           FROM {held} h JOIN {table} t ON t.ctid = h.at
           WHERE h.{value} IS NULL
             AND (h.natural_key IS NOT NULL OR EXISTS (SELECT FROM {map} m WHERE m.old_id = h.key))""",
        map=map_part(name, assessment_no),
        valid=sql.join(", ", valid),
        held=held.relation,
        table=held.table,
        value=held.value(entity.key),
    )


def _forget(connection: Connection, entity: Entity, plan: BatchPlan, keys: list[str]) -> None:
    """Children whose natural key is another one now lose their old target, also when they get no new one."""
    statement = sql.compose(
        "DELETE FROM {part} WHERE old_id = ANY(%(keys)s::{type}[])",
        part=map_part(entity.name, plan.assessment_no),
        type=sql.as_written(entity.key_type),
    )
    sql.execute(connection, statement, {"keys": keys})


def _derived(store: Store, entity: Entity, found: list[Any]) -> list[dict[str, Any]]:
    target_of = hasher(store.spec.namespace)
    return [
        {"key": key, "ordinal": ordinal, "natural_key": text, "target": target_of(text)}
        for key, ordinal, text, values in found
        if text is not None and first_invalid(entity, values) is None
    ]


def _write_arrivals(
    connection: Connection, store: Store, entity: Entity, plan: BatchPlan, arrivals: list[dict[str, Any]]
) -> None:
    """Into the plan's own part of the map; of two that claim one target id the second stays under the id it has.

    So does, in a sweep, what an earlier wave has moved. What was merged into an arrival claims nothing any more: the
    arrival stands in its place, and its alias leads there.
    """
    held = held_of(store, entity.name)
    statement = sql.compose(
        """WITH arrived AS (
               INSERT INTO {part} AS m (assessment_no, ordinal, wave, role, natural_key, old_id, new_id, arrived)
               SELECT DISTINCT ON (a.target) %(no)s, a.ordinal, %(wave)s,
                      CASE WHEN a.key = a.target THEN 'keep' ELSE 'move' END, a.natural_key,
                      a.key::{type}, a.target::{type}, true
               FROM jsonb_to_recordset(%(arrivals)s::jsonb)
                    AS a(key text, ordinal bigint, natural_key text, target text)
               WHERE NOT EXISTS (SELECT FROM {part} o WHERE o.new_id = a.target::{type} AND o.role <> 'merge')
                 AND (a.key = a.target OR NOT EXISTS (SELECT FROM {table} x WHERE x.{key} = a.target::{type}))
                 AND (a.key = a.target OR NOT EXISTS (
                     SELECT FROM {map} e WHERE e.new_id = a.key::{type} AND e.assessment_no < %(no)s
                     AND e.assessment_no IN (
                         SELECT assessment_no FROM uuid_pipeline.waves WHERE execution_id = %(execution)s UNION ALL
                         SELECT assessment_no FROM uuid_pipeline.executions WHERE execution_id = %(execution)s)))
               ORDER BY a.target, a.key
               ON CONFLICT (old_id) DO UPDATE SET ordinal = excluded.ordinal, wave = excluded.wave,
                      role = excluded.role, natural_key = excluded.natural_key, new_id = excluded.new_id,
                      arrived = true
               RETURNING old_id, new_id)
           UPDATE {held} h SET {value} = arrived.new_id FROM arrived WHERE h.key = arrived.old_id""",
        table=held.table,
        key=sql.name(entity.key),
        part=map_part(entity.name, plan.assessment_no),
        map=ledger.map_table(entity),
        type=sql.as_written(entity.key_type),
        held=held.relation,
        value=held.value(entity.key),
    )
    sql.execute(connection, statement, {**plan.values, "arrivals": json.dumps(arrivals)})


def _ids_held(connection: Connection, store: Store) -> dict[str, int]:
    """How many rows of each entity the batch holds with an id to give them."""
    found = sql.rows(connection, _ids_held_statement(store))[0]
    return dict(zip([entity.name for entity in store.entities], map(int, found), strict=True))


@sql.composed_once
def _ids_held_statement(store: Store) -> sql.Composable:
    counts = [
        sql.compose(
            "(SELECT count(*) FROM {held} WHERE {value} IS NOT NULL)",
            held=held_of(store, entity.name).relation,
            value=held_of(store, entity.name).value(entity.key),
        )
        for entity in store.entities
    ]
    return sql.compose("SELECT {counts}", counts=sql.join(", ", counts))


def _before(
    connection: Connection, store: Store, plan: BatchPlan
) -> tuple[dict[str, BatchFingerprint], dict[str, int]]:
    """Of the held rows that change, by table: the fingerprint that they must have after the move."""
    snapshot = ledger.first_snapshot(connection, plan.execution_id)
    found, touched = {}, {}
    for index, held in enumerate(held_tables(store)):
        row = sql.rows(connection, _before_statement(store, index), {**plan.values, "snapshot": snapshot})[0]
        found[fingerprint.qualified(held.moved)] = BatchFingerprint(int(row.rows), int(row.digest))
        touched[fingerprint.qualified(held.moved)] = int(row.touched)
    return found, touched


@sql.composed_once
def _before_statement(store: Store, index: int) -> sql.Composable:
    held = held_tables(store)[index]
    return sql.compose(
        """SELECT count(*) AS rows, coalesce(sum({digest}), 0) AS digest, count(*) FILTER (WHERE {written}) AS touched
           FROM {held} h JOIN {table} t ON t.ctid = h.at WHERE {changes}""",
        digest=fingerprint.row_digest(list(held.moved.table.columns.values()), held.mapped(), "t"),
        written=written_since("t"),
        held=held.relation,
        table=held.table,
        changes=held.changes(),
    )


@sql.composed_once
def move_statement(store: Store) -> sql.Composable:
    """One statement that writes every table of the batch, and returns each one's fingerprint as written.

    Foreign keys are checked at its end, when parents and children have both moved. Each row is written once, whatever
    number of id columns it has.
    """
    tables = held_tables(store)
    updates = [_update(index, held) for index, held in enumerate(tables)]
    results = [
        sql.compose(
            """SELECT {name} AS "table", count(*) AS rows, coalesce(sum(d), 0) AS digest FROM {moved}""",
            name=sql.literal(fingerprint.qualified(held.moved)),
            moved=sql.name(f"moved_{index}"),
        )
        for index, held in enumerate(tables)
    ]
    return sql.compose(
        "WITH {updates} {results}",
        updates=sql.join(", ", updates),
        results=sql.join(" UNION ALL ", results),
    )


def _update(index: int, held: Held) -> sql.Composable:
    columns = list(held.moved.table.columns.values())
    assignments = [
        sql.compose("{column} = {value}", column=sql.name(column), value=value)
        for column, value in held.mapped().items()
    ]
    return sql.compose(
        """{name} AS (
            UPDATE {table} t SET {assignments} FROM {held} h WHERE t.ctid = h.at AND ({changes})
            RETURNING {digest} AS d)""",
        name=sql.name(f"moved_{index}"),
        table=held.table,
        held=held.relation,
        changes=held.changes(),
        assignments=sql.join(", ", assignments),
        digest=fingerprint.row_digest(columns, {}, "t"),
    )


def _move(connection: Connection, store: Store) -> dict[str, BatchFingerprint]:
    return {
        row.table: BatchFingerprint(int(row.rows), int(row.digest))
        for row in sql.rows(connection, move_statement(store))
    }


def _prove(before: dict[str, BatchFingerprint], after: dict[str, BatchFingerprint]) -> None:
    wrong = [
        f"{name}: expected {expected.rows} rows with digest {expected.digest}, "
        f"wrote {after[name].rows} with {after[name].digest}"
        for name, expected in before.items()
        if after[name] != expected
    ]
    if wrong:
        raise BatchError(
            "A batch was rolled back because its rows changed in more than their ids. "
            + "; ".join(wrong)
            + ". A trigger that fires all the same, or a rule, writes to these columns: look at their triggers."
        )


def _journal(
    connection: Connection,
    plan: BatchPlan,
    direction: Direction,
    lease: Lease,
    result: BatchResult,
    after: dict[str, BatchFingerprint],
    deleted: dict[str, int],
) -> None:
    """The journal row commits with the batch or not at all: resuming reads it as the cursor."""
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.batches (execution_id, wave, direction, first_ordinal, last_ordinal, moved,
               fingerprints, lease_epoch, milliseconds)
           VALUES (%(execution)s, %(wave)s, %(direction)s, %(first)s, %(last)s, %(moved)s::jsonb, %(digests)s::jsonb,
                   %(epoch)s, extract(epoch FROM clock_timestamp() - now()) * 1000)""",
        {
            **plan.values,
            "direction": direction.name,
            "moved": json.dumps(
                {
                    "tables": result.tables,
                    "entities": result.entities,
                    "touched": result.touched,
                    "merged": asdict(result.merged),
                    "restored": result.restored,
                    "deleted": deleted,
                }
            ),
            "digests": json.dumps({name: [f.rows, str(f.digest)] for name, f in after.items()}),
            "epoch": lease.epoch,
        },
    )

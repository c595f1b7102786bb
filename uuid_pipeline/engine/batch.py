"""One batch: lock, re-read, derive, move, prove. Every statement of a batch is made here.

A batch is one READ COMMITTED transaction of the caller's. Each statement sees a snapshot taken after the locks of
the statements before it; that is why locking and moving are never one statement (ENGINE.md, section 2).
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, ledger, sql
from uuid_pipeline.engine.fingerprint import Fingerprint
from uuid_pipeline.engine.lease import Lease
from uuid_pipeline.engine.natural_keys import cast_type, first_invalid, natural_key, part
from uuid_pipeline.engine.store import Entity, MovedTable, Store
from uuid_pipeline.errors import BatchError
from uuid_pipeline.identity import hasher


@dataclass(frozen=True)
class Direction:
    """Which way ids go: ``source`` and ``goal`` are columns of the id map."""

    name: str
    source: str
    goal: str


FORWARD = Direction("forward", "old_id", "new_id")
BACK = Direction("back", "new_id", "old_id")


@dataclass(frozen=True)
class BatchPlan:
    """A range of ordinals of one wave, both ends included."""

    execution_id: str
    assessment_no: int
    wave: str
    first_ordinal: int
    last_ordinal: int

    @property
    def values(self) -> dict[str, Any]:
        return {
            "execution": self.execution_id,
            "no": self.assessment_no,
            "wave": self.wave,
            "first": self.first_ordinal,
            "last": self.last_ordinal,
        }


@dataclass(frozen=True)
class BatchResult:
    """Rows written by table, ids moved by entity, rows that the application had written since the execution began."""

    tables: dict[str, int]
    entities: dict[str, int]
    touched: dict[str, int]


# Short lock waits (below deadlock_timeout); index look-ups by ordinal and key, never a scan of the map for a batch.
_SETTINGS = """
SELECT set_config('lock_timeout', '200ms', true), set_config('session_replication_role', 'replica', true),
       set_config('enable_seqscan', 'off', true), set_config('enable_mergejoin', 'off', true),
       set_config('jit', 'off', true)
"""


def set_up(connection: Connection) -> None:
    """Settings of one batch, gone with its transaction."""
    sql.execute(connection, _SETTINGS)


def run(connection: Connection, store: Store, plan: BatchPlan, direction: Direction, lease: Lease) -> BatchResult:
    """Carry out one batch in the connection's transaction, journal included; the caller has locked the lease.

    Raises BatchError when the rows after are not the rows before with ids as mapped.
    """
    lock(connection, store, plan, direction)
    set_aside(connection, store, plan, direction)
    for entity in store.entities:
        if entity.parent is not None:
            forget_departed(connection, store, entity, plan, direction)
            # What refers to an arrival could not be locked before the arrival was known.
            if direction is FORWARD and derive_arrivals(connection, store, entity, plan):
                lock(connection, store, plan, direction)
    entities = _ids_found(connection, store, plan, direction)
    before, touched = _before(connection, store, plan, direction)
    after = _move(connection, store, plan, direction)
    _prove(before, after)
    result = BatchResult({name: found.rows for name, found in after.items()}, entities, touched)
    _journal(connection, plan, direction, lease, result, after)
    return result


def batch_rows(store: Store, direction: Direction) -> sql.Composable:
    """The WITH list that every statement of a batch starts from: ``batch_<entity>`` (source, goal, ordinal, …).

    Ordinals that an earlier step set aside (changed, gone) are no part of it.
    """
    parts = [
        sql.compose(
            """{name} AS MATERIALIZED (
                SELECT m.{source} AS source, m.{goal} AS goal, m.ordinal, m.wave, m.natural_key FROM {map} m
                WHERE m.assessment_no = %(no)s AND m.ordinal BETWEEN %(first)s AND %(last)s
                  AND NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u WHERE u.execution_id = %(execution)s
                                  AND u.wave = %(wave)s AND u.ordinal = m.ordinal))""",
            name=_batch(entity.name),
            source=sql.name(direction.source),
            goal=sql.name(direction.goal),
            map=ledger.map_table(entity),
        )
        for entity in store.entities
    ]
    return sql.compose("WITH {parts}", parts=sql.join(", ", parts))


def _batch(entity: str) -> sql.Composable:
    return sql.name(f"batch_{entity}")


def _table(moved: MovedTable) -> sql.Composable:
    return sql.table(moved.table.schema, moved.table.name)


def driving(moved: MovedTable) -> list[tuple[str, str]]:
    """The (column, entity) pairs by which a batch finds this table's rows.

    A child's own key is not among them: its rows are found by their parent, so that rows new since the plan are too.
    """
    if moved.entity is None or moved.entity.parent is None:
        return list(moved.columns)
    return [(column, entity) for column, entity in moved.columns if column != moved.entity.key]


def lock(connection: Connection, store: Store, plan: BatchPlan, direction: Direction) -> None:
    """Lock every row that the batch will write, parents first, one statement a level and column.

    FOR UPDATE on a parent waits for inserters of references (their KEY SHARE) and keeps new ones out; the next
    statement's snapshot then sees what they committed. Raises the driver's 55P03 when a lock is not had in time.
    """
    for moved in sorted(store.tables, key=lambda m: m.entity.level if m.entity else len(store.entities)):
        for column, entity in driving(moved):
            statement = sql.compose(
                """{batch} SELECT count(*) FROM (
                       SELECT FROM {rows} b JOIN {table} t ON t.{column} = b.source ORDER BY b.ordinal FOR UPDATE OF t
                   ) locked""",
                batch=batch_rows(store, direction),
                rows=_batch(entity),
                table=_table(moved),
                column=sql.name(column),
            )
            sql.execute(connection, statement, plan.values)


def set_aside(connection: Connection, store: Store, plan: BatchPlan, direction: Direction) -> None:
    """Journal the roots that this batch must leave: gone, changed since the plan, or their goal held by another row.

    Going back, what is gone needs no journal and a changed natural key is no hindrance.
    """
    for root in store.roots:
        statement = sql.compose(
            """{batch} INSERT INTO uuid_pipeline.unmoved (execution_id, wave, entity, ordinal, old_id, reason)
               SELECT %(execution)s, %(wave)s, %(entity)s, b.ordinal, b.source::text,
                      CASE WHEN t.{key} IS NULL THEN 'gone' WHEN h.{key} IS NOT NULL THEN 'taken' ELSE 'changed' END
               FROM {rows} b LEFT JOIN {table} t ON t.{key} = b.source
               LEFT JOIN {table} h ON h.{key} = b.goal AND b.goal <> b.source
               WHERE (h.{key} IS NOT NULL AND t.{key} IS NOT NULL)
                  OR (%(forward)s AND (t.{key} IS NULL OR ({natural_key}) IS DISTINCT FROM b.natural_key))
               ON CONFLICT DO NOTHING""",
            batch=batch_rows(store, direction),
            rows=_batch(root.name),
            table=sql.table(root.table.schema, root.table.name),
            key=sql.name(root.key),
            natural_key=natural_key(root, None),
        )
        values = {**plan.values, "entity": root.name, "forward": direction is FORWARD}
        sql.execute(connection, statement, values)


def forget_departed(
    connection: Connection, store: Store, entity: Entity, plan: BatchPlan, direction: Direction
) -> None:
    """Take children out of the map that are gone, have another parent now, or whose goal another row holds.

    The batch does not re-key such a row, so it must not rewrite what refers to it. The batch of a new parent, if still
    to come, finds it as an arrival; a gone child's successor may claim the same target id.
    """
    statement = sql.compose(
        """{batch} DELETE FROM {part} m USING {rows} b LEFT JOIN {table} t ON t.{key} = b.source
           WHERE m.{source} = b.source AND m.ordinal BETWEEN %(first)s AND %(last)s
             AND (NOT EXISTS (SELECT FROM {parents} p WHERE p.source = t.{parent})
                  OR (b.goal <> b.source AND EXISTS (SELECT FROM {table} h WHERE h.{key} = b.goal)))""",
        batch=batch_rows(store, direction),
        part=sql.table(ledger.SCHEMA, f"id_map_{entity.name}_{plan.assessment_no}"),
        rows=_batch(entity.name),
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
        source=sql.name(direction.source),
        parents=_batch(entity.parent or ""),
        parent=sql.name(entity.parent_column or ""),
    )
    sql.execute(connection, statement, plan.values)


def derive_arrivals(connection: Connection, store: Store, entity: Entity, plan: BatchPlan) -> int:
    """Map children that are new or changed since the plan, from what is there now; returns how many.

    Children whose natural key is not valid stay under their id, as quarantined ones do; their parent's id moves.
    """
    parent = store.entity(entity.parent or "")
    goal = sql.Text("p.goal")
    valid = [part(entity, field, goal) for field in entity.spec.valid]
    statement = sql.compose(
        """{batch} SELECT t.{key}::text, p.ordinal, p.wave, {natural_key}, ARRAY[{valid}]::text[]
           FROM {parents} p JOIN {table} t ON t.{parent} = p.source LEFT JOIN {rows} b ON b.source = t.{key}
           WHERE b.source IS NULL OR ({natural_key}) IS DISTINCT FROM b.natural_key""",
        batch=batch_rows(store, FORWARD),
        key=sql.name(entity.key),
        natural_key=natural_key(entity, goal),
        valid=sql.join(", ", valid),
        parents=_batch(parent.name),
        table=sql.table(entity.table.schema, entity.table.name),
        parent=sql.name(entity.parent_column or ""),
        rows=_batch(entity.name),
    )
    found = sql.rows(connection, statement, plan.values)
    arrivals = _derived(store, entity, found)
    if found:
        _forget(connection, entity, plan, [row[0] for row in found])
    if arrivals:
        _write_arrivals(connection, entity, plan, arrivals)
    return len(arrivals)


def _forget(connection: Connection, entity: Entity, plan: BatchPlan, keys: list[str]) -> None:
    """Children whose natural key is another one now lose their old target, also when they get no new one."""
    statement = sql.compose(
        "DELETE FROM {part} WHERE old_id = ANY(%(keys)s::{type}[])",
        part=sql.table(ledger.SCHEMA, f"id_map_{entity.name}_{plan.assessment_no}"),
        type=cast_type(entity.key_type),
    )
    sql.execute(connection, statement, {"keys": keys})


def _derived(store: Store, entity: Entity, found: list[Any]) -> list[dict[str, Any]]:
    target_of = hasher(store.spec.namespace)
    return [
        {"key": key, "ordinal": ordinal, "wave": wave, "natural_key": text, "target": str(target_of(text))}
        for key, ordinal, wave, text, values in found
        if text is not None and first_invalid(entity, values) is None
    ]


def _write_arrivals(connection: Connection, entity: Entity, plan: BatchPlan, arrivals: list[dict[str, Any]]) -> None:
    """Into the plan's own part of the map; of two that claim one target id the second stays under the id it has."""
    statement = sql.compose(
        """INSERT INTO {part} AS m (assessment_no, ordinal, wave, role, natural_key, old_id, new_id)
           SELECT DISTINCT ON (a.target) %(no)s, a.ordinal, a.wave,
                  CASE WHEN a.key = a.target THEN 'keep' ELSE 'move' END, a.natural_key,
                  a.key::{type}, a.target::{type}
           FROM jsonb_to_recordset(%(arrivals)s::jsonb)
                AS a(key text, ordinal bigint, wave text, natural_key text, target text)
           WHERE NOT EXISTS (SELECT FROM {part} o WHERE o.new_id = a.target::{type})
             AND (a.key = a.target OR NOT EXISTS (SELECT FROM {table} h WHERE h.{key} = a.target::{type}))
           ORDER BY a.target, a.key
           ON CONFLICT (old_id) DO UPDATE SET ordinal = excluded.ordinal, wave = excluded.wave, role = excluded.role,
                  natural_key = excluded.natural_key, new_id = excluded.new_id""",
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
        part=sql.table(ledger.SCHEMA, f"id_map_{entity.name}_{plan.assessment_no}"),
        type=cast_type(entity.key_type),
    )
    sql.execute(connection, statement, {**plan.values, "arrivals": json.dumps(arrivals)})


def _ids_found(connection: Connection, store: Store, plan: BatchPlan, direction: Direction) -> dict[str, int]:
    """How many of the batch's ids have their row, by entity."""
    counts = [
        sql.compose(
            "(SELECT count(*) FROM {rows} b JOIN {table} t ON t.{key} = b.source)",
            rows=_batch(entity.name),
            table=sql.table(entity.table.schema, entity.table.name),
            key=sql.name(entity.key),
        )
        for entity in store.entities
    ]
    statement = sql.compose(
        "{batch} SELECT {counts}", batch=batch_rows(store, direction), counts=sql.join(", ", counts)
    )
    found = sql.rows(connection, statement, plan.values)[0]
    return dict(zip([entity.name for entity in store.entities], map(int, found), strict=True))


def affected(moved: MovedTable) -> sql.Composable:
    """The places (ctid) of this table's rows in the batch; stable, since all of them are locked."""
    found = [
        sql.compose(
            "SELECT o.ctid AS at FROM {rows} b JOIN {table} o ON o.{column} = b.source",
            rows=_batch(entity),
            table=_table(moved),
            column=sql.name(column),
        )
        for column, entity in driving(moved)
    ]
    return sql.join(" UNION ", found)


def _mapped(moved: MovedTable) -> tuple[dict[str, sql.Composable], sql.Composable]:
    """For each id column its value after the batch, and the joins that these expressions need (row alias ``o``)."""
    mapped: dict[str, sql.Composable] = {}
    joins: list[sql.Composable] = []
    for index, (column, entity) in enumerate(moved.columns):
        alias = sql.name(f"m{index}")
        mapped[column] = sql.compose(
            "coalesce({alias}.goal, o.{column})::{type}",
            alias=alias,
            column=sql.name(column),
            type=cast_type(moved.table.columns[column].type),
        )
        joins.append(
            sql.compose(
                "LEFT JOIN {rows} {alias} ON {alias}.source = o.{column}",
                rows=_batch(entity),
                alias=alias,
                column=sql.name(column),
            )
        )
    return mapped, sql.join(" ", joins)


# Rows that the application wrote since the execution's first snapshot, and not we: by a transaction not older than the
# oldest that ran then (a snapshot does not name subtransactions, so those in flight count as written).
# This transaction has an id of its own by now (it wrote the lease), so age() counts from exactly that.
_WRITTEN_SINCE = """
age({row}.xmin) < 2000000000
AND (pg_current_xact_id()::text::bigint - age({row}.xmin))::text::xid8 >= pg_snapshot_xmin(%(snapshot)s::pg_snapshot)
AND (pg_current_xact_id()::text::bigint - age({row}.xmin))::text::xid8 NOT IN
    (SELECT j.transaction_id FROM uuid_pipeline.batches j WHERE j.execution_id = %(execution)s)
"""


def written_since(alias: str) -> sql.Composable:
    """Whether the application wrote the row of this alias since the execution's first snapshot, as a condition."""
    return sql.compose(_WRITTEN_SINCE, row=sql.name(alias))


def _before(
    connection: Connection, store: Store, plan: BatchPlan, direction: Direction
) -> tuple[dict[str, Fingerprint], dict[str, int]]:
    """Of the locked rows by table: the fingerprint that they must have after the move."""
    snapshot = ledger.first_snapshot(connection, plan.execution_id)
    found, touched = {}, {}
    for moved in store.tables:
        mapped, joins = _mapped(moved)
        statement = sql.compose(
            """{batch}, a AS MATERIALIZED ({affected})
               SELECT {aggregates}, count(*) FILTER (WHERE {written}) AS touched
               FROM a JOIN {table} o ON o.ctid = a.at {joins}""",
            batch=batch_rows(store, direction),
            affected=affected(moved),
            aggregates=fingerprint.aggregates(moved, mapped, "o"),
            written=written_since("o"),
            table=_table(moved),
            joins=joins,
        )
        row = sql.rows(connection, statement, {**plan.values, "snapshot": snapshot})[0]
        found[fingerprint.qualified(moved)] = Fingerprint(int(row.rows), int(row.digest), int(row.timestamps))
        touched[fingerprint.qualified(moved)] = int(row.touched)
    return found, touched


def move_statement(store: Store, direction: Direction) -> sql.Composable:
    """One statement that writes every table of the batch, and returns each one's fingerprint as written.

    Data-modifying CTEs share one snapshot and write each row once; a table with several id columns is therefore
    written by one UPDATE that sets them all.
    """
    updates = [_update(index, moved) for index, moved in enumerate(store.tables)]
    results = [
        sql.compose(
            """SELECT {name} AS "table", count(*) AS rows, coalesce(sum(d), 0) AS digest,
                      coalesce(sum(m), 0) AS timestamps FROM {moved}""",
            name=sql.literal(fingerprint.qualified(moved)),
            moved=sql.name(f"moved_{index}"),
        )
        for index, moved in enumerate(store.tables)
    ]
    return sql.compose(
        "{batch}, {updates} {results}",
        batch=batch_rows(store, direction),
        updates=sql.join(", ", updates),
        results=sql.join(" UNION ALL ", results),
    )


def _update(index: int, moved: MovedTable) -> sql.Composable:
    mapped, joins = _mapped(moved)
    columns = list(moved.table.columns.values())
    moments = fingerprint.moment_columns(columns)
    new_values = [
        sql.compose("{value} AS {column}", value=value, column=sql.name(column)) for column, value in mapped.items()
    ]
    assignments = [sql.compose("{column} = n.{column}", column=sql.name(column)) for column in mapped]
    return sql.compose(
        """{name} AS (
            UPDATE {table} t SET {assignments}
            FROM (SELECT o.ctid AS at, {values} FROM ({affected}) a JOIN {table} o ON o.ctid = a.at {joins}) n
            WHERE t.ctid = n.at RETURNING {digest} AS d, {moments} AS m)""",
        name=sql.name(f"moved_{index}"),
        table=_table(moved),
        assignments=sql.join(", ", assignments),
        values=sql.join(", ", new_values),
        affected=affected(moved),
        joins=joins,
        digest=fingerprint.row_digest(columns, {}, "t"),
        moments=fingerprint.row_digest(moments, {}, "t"),
    )


def _move(connection: Connection, store: Store, plan: BatchPlan, direction: Direction) -> dict[str, Fingerprint]:
    return {
        row.table: Fingerprint(int(row.rows), int(row.digest), int(row.timestamps))
        for row in sql.rows(connection, move_statement(store, direction), plan.values)
    }


def _prove(before: dict[str, Fingerprint], after: dict[str, Fingerprint]) -> None:
    wrong = [
        f"{name}: expected {expected.rows} rows with digest {expected.digest} (dates {expected.timestamps}), "
        f"wrote {after[name].rows} with {after[name].digest} (dates {after[name].timestamps})"
        for name, expected in before.items()
        if after[name] != expected
    ]
    if wrong:
        raise BatchError(
            "A batch was rolled back because its rows changed in more than their ids. "
            + "; ".join(wrong)
            + ". A trigger that fires in replica role, or a rule, writes to these columns: look at their triggers."
        )


def _journal(
    connection: Connection,
    plan: BatchPlan,
    direction: Direction,
    lease: Lease,
    result: BatchResult,
    after: dict[str, Fingerprint],
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
            "moved": json.dumps({"tables": result.tables, "entities": result.entities, "touched": result.touched}),
            "digests": json.dumps({name: [f.rows, str(f.digest), str(f.timestamps)] for name, f in after.items()}),
            "epoch": lease.epoch,
        },
    )

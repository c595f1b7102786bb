"""Gates of a wave and of the whole store: what was moved, recounted and recomputed from the store itself."""

import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import archive, aside, batch, fingerprint, gates, ledger, locks, sql
from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine.fingerprint import Fingerprint
from uuid_pipeline.engine.gates import GateResult, Scope
from uuid_pipeline.engine.natural_keys import natural_key
from uuid_pipeline.engine.store import Entity, MovedTable, Reference, Store
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.identity import recomputer

_JOURNAL = """
SELECT coalesce(sum((b.moved->'entities'->>%(entity)s)::bigint), 0) AS moved FROM uuid_pipeline.batches b
WHERE b.wave = %(wave)s AND b.direction = 'forward'
"""
# What merging archived or re-pointed, by table, of one wave or of a whole execution.
_MERGED = """
SELECT coalesce(sum((b.moved->'merged'->'archived'->>%(table)s)::bigint), 0) AS archived,
       coalesce(sum((b.moved->'merged'->'digests'->%(table)s->>0)::numeric), 0) AS digest,
       coalesce(sum((b.moved->'merged'->'digests'->%(table)s->>1)::numeric), 0) AS dates
FROM uuid_pipeline.batches b WHERE b.direction = 'forward'
"""
_UNMOVED = """
SELECT reason, count(*) AS n FROM uuid_pipeline.unmoved WHERE wave = %(wave)s GROUP BY reason ORDER BY reason
"""


def subject(connection: Connection) -> ledger.Execution:
    """The execution that validation is about: the running one, else the one completed last.

    Raises RefusedError when nothing has been migrated.
    """
    for execution in ledger.executions(connection):
        if execution.status in ("running", "completed"):
            return execution
        if execution.status in ("rolling_back", "rolled_back", "partly_rolled_back"):
            break
    raise RefusedError("Nothing is migrated that could be validated. Run: uuid-pipeline run")


def accounted(connection: Connection, store: Store, wave: ledger.Wave) -> dict[str, int]:
    """Of one wave: documents planned, moved (from the journal), and set aside by reason."""
    moved = sum(int(sql.scalar(connection, _JOURNAL, {"wave": wave.wave, "entity": root.name})) for root in store.roots)
    aside = {row.reason: int(row.n) for row in sql.rows(connection, _UNMOVED, {"wave": wave.wave})}
    merged = 0
    for root in store.roots:
        values = {"table": f"{root.table.schema}.{root.table.name}", "wave": wave.wave}
        merged += int(sql.rows(connection, _MERGED + " AND b.wave = %(wave)s", values)[0].archived)
    return {"planned": wave.documents, "moved": moved, **({"merged": merged} if merged else {}), **aside}


def conservation(connection: Connection, store: Store, wave: ledger.Wave) -> GateResult:
    """Gate: every planned document of the wave is counted as moved, merged, or set aside by reason; none twice."""
    found = accounted(connection, store, wave)
    missing = found["planned"] - sum(count for name, count in found.items() if name != "planned")
    said = ", ".join(f"{count} {name}" for name, count in found.items())
    return GateResult.of(
        "conservation",
        missing == 0 and wave.status in ("moved", "unneeded"),
        said if missing == 0 else f"{said}: {missing} unaccounted for",
        "run the wave again (uuid-pipeline run); if it stays, roll it back",
        figures=found,
    )


def no_dangling_reference(connection: Connection, store: Store, wave: ledger.Wave) -> GateResult:
    """Gate: no reference holds an id that this wave moved away from."""
    left = {}
    for reference in store.references:
        statement = _left_behind(reference, store)
        span = {"no": wave.assessment_no, "first": wave.first_ordinal, "last": wave.last_ordinal}
        left[reference.name] = int(sql.scalar(connection, statement, {**span, "path": list(reference.path)}))
    return _dangling("no_dangling_reference", {name: count for name, count in left.items() if count}, len(left))


def _left_behind(reference: Reference, store: Store) -> sql.Composable:
    """Counts rows of a reference that hold an old id of the span whose row is no longer there."""
    entity = store.entity(reference.entity)
    parts = {
        "map": ledger.map_table(entity),
        "table": sql.table(reference.table.schema, reference.table.name),
        "column": sql.name(reference.column),
        "target": sql.table(entity.table.schema, entity.table.name),
        "key": sql.name(entity.key),
    }
    holds = sql.compose("{table} t ON t.{column} = m.old_id", **parts)
    if reference.form != "key":
        holds = sql.compose(
            """({table} t CROSS JOIN LATERAL (SELECT t.{column} AS was) w CROSS JOIN LATERAL {ids} i(id))
               ON m.old_id::text = i.id""",
            ids=locks.ids_in(reference),
            **parts,
        )
    return sql.compose(
        """SELECT count(*) FROM {map} m JOIN {holds}
           WHERE m.assessment_no = %(no)s AND m.role <> 'keep' AND m.ordinal BETWEEN %(first)s AND %(last)s
             AND NOT EXISTS (SELECT FROM {target} e WHERE e.{key} = m.old_id)""",
        holds=holds,
        **parts,
    )


def whole_no_dangling_reference(orphans: dict[str, int]) -> GateResult:
    """Gate: every reference of the whole store points at a row; ``orphans`` counts those that do not, by reference."""
    return _dangling("whole_no_dangling_reference", {n: c for n, c in orphans.items() if c}, len(orphans))


def _dangling(gate: str, left: dict[str, int], references: int) -> GateResult:
    said = ", ".join(f"{name} {count}" for name, count in left.items())
    return GateResult.of(
        gate,
        not left,
        f"0 dangling in {references} references" if not left else f"dangling: {said}",
        "roll back (uuid-pipeline rollback --all); then look at what writes these columns",
        figures={"dangling": sum(left.values())},
    )


def ids_exact(connection: Connection, store: Store, wave: ledger.Wave) -> GateResult:
    """Gate: each row that the wave moved has the id of its own natural key.

    The server builds the key anew from the row and compares it with the approved map, whose ids were recomputed
    before approval; rows that differ from it or arrived since are recomputed here.
    """
    same, checked, wrong = 0, 0, list[str]()
    for entity in store.entities:
        same += _count_as_approved(connection, entity, wave)
        others = sql.compose("NOT ({same})", same=_as_approved(entity))
        found = _recompute(connection, store, entity, wave, others)
        checked, wrong = checked + found[0], wrong + found[1]
    return _exact("ids_exact", same + checked, wrong)


def whole_ids_exact(connection: Connection, store: Store, execution: ledger.Execution) -> GateResult:
    """Gate: every row of every wave that has moved has the id that the standard uuid5 makes of its raw columns."""
    checked, wrong = 0, list[str]()
    for wave in ledger.waves(connection, execution.execution_id):
        if wave.status == "moved":
            for entity in store.entities:
                found = _recompute(connection, store, entity, wave, sql.Text("true"))
                checked, wrong = checked + found[0], wrong + found[1]
    return _exact("whole_ids_exact", checked, wrong)


def _exact(gate: str, checked: int, wrong: list[str]) -> GateResult:
    return GateResult.of(
        gate,
        not wrong,
        f"{checked} ids made anew from the rows, all equal"
        if not wrong
        else f"{len(wrong)} wrong: {'; '.join(wrong[:5])}",
        "roll back (uuid-pipeline rollback --all) and compare these rows with the spec's identity",
        figures={"recomputed": checked, "wrong": len(wrong)},
    )


def _as_approved(entity: Entity) -> sql.Composable:
    """Whether the row ``t`` has the new id of ``m``, and still the natural key that the approved map has of it."""
    parent = sql.compose("t.{parent}", parent=sql.name(entity.parent_column)) if entity.parent_column else None
    return sql.compose(
        "t.{key} = m.new_id AND NOT m.arrived AND ({natural_key}) IS NOT DISTINCT FROM m.natural_key",
        key=sql.name(entity.key),
        natural_key=natural_key(entity, parent),
    )


# Which map rows a wave moved, and not set aside.
_MOVED_BY_WAVE = """
m.ordinal BETWEEN %(first)s AND %(last)s AND m.role <> 'merge'
AND NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u WHERE u.wave = %(wave)s AND u.ordinal = m.ordinal)
"""


def _parts(entity: Entity, wave: ledger.Wave) -> dict[str, sql.Composable]:
    return {
        "map": sql.table(ledger.SCHEMA, f"id_map_{entity.name}_{wave.assessment_no}"),
        "table": sql.table(entity.table.schema, entity.table.name),
        "key": sql.name(entity.key),
        "moved": sql.Text(_MOVED_BY_WAVE),
    }


def _span(wave: ledger.Wave) -> dict[str, Any]:
    return {"first": wave.first_ordinal, "last": wave.last_ordinal, "wave": wave.wave}


def _count_as_approved(connection: Connection, entity: Entity, wave: ledger.Wave) -> int:
    statement = sql.compose(
        "SELECT count(*) FROM {map} m JOIN {table} t ON t.{key} = m.new_id WHERE {moved} AND {same}",
        same=_as_approved(entity),
        **_parts(entity, wave),
    )
    return int(sql.scalar(connection, statement, _span(wave)))


def _recompute(
    connection: Connection, store: Store, entity: Entity, wave: ledger.Wave, which: sql.Composable
) -> tuple[int, list[str]]:
    """Rows recomputed from their raw columns, and a sentence for each whose id is another."""
    fields = entity.spec.template.fields
    target_of = recomputer(store.spec.namespace, entity.spec.identity, fields, entity.spec.normalize)
    checked, wrong = 0, list[str]()
    for rows in _raw_rows(connection, entity, wave, which):
        for key, mapped, rewritten, *raw in rows:
            target = None if None in raw else target_of(raw)
            # Identity that the application edited after the move is due for the next plan, not wrong.
            if rewritten and target != mapped:
                continue
            checked += 1
            if target != key:
                wrong.append(f"{entity.name} {key} should be {target}")
    return checked, wrong


def _raw_rows(connection: Connection, entity: Entity, wave: ledger.Wave, which: sql.Composable) -> Iterator[list[Any]]:
    """Id, mapped id, whether the application wrote the row since, and the identity's raw columns, of a wave's rows.

    They are found by their new id, and by their old one those that did not leave it, which are always looked at.
    """
    # age() counts from this transaction's own id, once it has one.
    sql.execute(connection, "SELECT pg_current_xact_id()")
    fields = entity.spec.template.fields
    statement = sql.compose(
        """SELECT t.{key}::text, m.new_id::text, {written}, {values}
           FROM {map} m JOIN {table} t ON t.{key} = m.new_id WHERE {moved} AND {which}
           UNION ALL
           SELECT t.{key}::text, m.new_id::text, {written}, {values}
           FROM {map} m JOIN {table} t ON t.{key} = m.old_id WHERE {moved} AND m.old_id <> m.new_id""",
        written=batch.written_since("t"),
        values=sql.join(", ", [sql.compose("t.{c}::text", c=sql.name(field)) for field in fields]),
        which=which,
        **_parts(entity, wave),
    )
    snapshot = ledger.first_snapshot(connection, wave.execution_id)
    return sql.stream(connection, statement, {**_span(wave), "execution": wave.execution_id, "snapshot": snapshot})


def schema_unchanged(connection: Connection, store: Store, execution: ledger.Execution, gate: str) -> GateResult:
    """Gate: tables, columns, constraints, indexes, triggers, policies, grants are as before the first batch."""
    before = sql.scalar(
        connection,
        "SELECT catalog_before FROM uuid_pipeline.executions WHERE execution_id = %(id)s",
        {"id": execution.execution_id},
    )
    after = catalogs.snapshot(connection, store.catalog)
    changes = catalogs.differences(before or {}, after)
    return GateResult.of(
        gate,
        not changes,
        f"{len(after)} objects as before" if not changes else f"{len(changes)} differ: {'; '.join(changes[:5])}",
        "put these back, or if the change was yours: plan again and approve the new plan",
        figures={"objects": len(after), "changed": len(changes)},
    )


def whole_conservation(connection: Connection, store: Store, execution: ledger.Execution) -> GateResult:
    """Gate: read back through the id map, every moved table has the rows it had before; see :func:`compare`."""
    compared = _compare_patiently(connection, store, execution)
    wrong = [row for row in compared if row["differs"] and not row["application_writes"]]
    live = [row for row in compared if row["application_writes"]]
    said = "; ".join(
        f"{row['table']}: {row['rows_before']} rows before, {row['rows_now']} now"
        + (f" and {row['archived']} archived" if row["archived"] else "")
        for row in compared
    )
    if live:
        names = ", ".join(f"{row['table']} ({row['application_writes']} writes seen)" for row in live)
        said += f". The application wrote to {names} meanwhile; there the proof is each batch's own"
    return GateResult.of(
        "whole_conservation",
        not wrong,
        said if not wrong else "differ though nothing else wrote to them: " + ", ".join(row["table"] for row in wrong),
        "roll back (uuid-pipeline rollback --all) and compare with your backup",
        figures={"rows": sum(row["rows_now"] for row in compared), "differing_tables": len(wrong)},
    )


def timestamps_untouched(connection: Connection, store: Store, execution: ledger.Execution) -> GateResult:
    """Gate: no date or time column of a moved table changed, but where the application wrote."""
    compared = _compare_patiently(connection, store, execution)
    wrong = [row["table"] for row in compared if row["dates_differ"] and not row["application_writes"]]
    live = ", ".join(row["table"] for row in compared if row["dates_differ"] and row["application_writes"])
    said = "every date and time as before"
    if live:
        said += f"; not compared, since the application wrote there: {live}"
    return GateResult.of(
        "timestamps_untouched",
        not wrong,
        said if not wrong else f"dates changed in {', '.join(wrong)}",
        "roll back (uuid-pipeline rollback --all); look at the triggers that set these columns",
    )


# A server process reports the rows it deleted when it is next busy, or after 10 s without work.
STATISTICS_SECONDS = 11.0


def _compare_patiently(connection: Connection, store: Store, execution: ledger.Execution) -> list[dict[str, Any]]:
    """As :func:`compare`; a difference that nobody seems to have made waits for the statistics of deletes first."""
    deadline = time.monotonic() + STATISTICS_SECONDS
    while True:
        compared = compare(connection, store, execution)
        unexplained = any((row["differs"] or row["dates_differ"]) and not row["application_writes"] for row in compared)
        if not unexplained or time.monotonic() > deadline:
            return compared
        time.sleep(0.5)
        sql.execute(connection, "SELECT pg_stat_clear_snapshot()")


def compare(connection: Connection, store: Store, execution: ledger.Execution) -> list[dict[str, Any]]:
    """Each moved table before and now, ids read back through the map, and how many of the application's writes show."""
    # age() counts from this transaction's own id, once it has one.
    sql.execute(connection, "SELECT pg_current_xact_id()")
    before = fingerprint.before(connection, execution)
    archives = archive.digests(connection, store, execution)
    compared = []
    for moved in store.tables:
        name = fingerprint.qualified(moved)
        merged = sql.rows(
            connection,
            _MERGED + " AND b.execution_id = %(execution)s",
            {"table": name, "execution": execution.execution_id},
        )[0]
        now = _with_merged(
            fingerprint.unmapped(connection, store, moved, execution), archives.get(name, (0, 0, 0)), merged
        )
        then, deleted = before.get(name, (None, 0))
        compared.append(
            {
                "table": name,
                "rows_before": then.rows if then else 0,
                "rows_now": now.rows - archives.get(name, (0, 0, 0))[0],
                "archived": archives.get(name, (0, 0, 0))[0],
                "differs": then != now,
                "dates_differ": then is None or then.timestamps != now.timestamps,
                "application_writes": _application_writes(connection, moved, execution, deleted + int(merged.archived)),
            }
        )
    return compared


def _with_merged(now: Fingerprint, archived: tuple[int, int, int], merged: Any) -> Fingerprint:
    """What the table would be without the merges: its rows, the archived ones, and re-pointed ones as they were."""
    return Fingerprint(
        now.rows + archived[0],
        now.digest + archived[1] + int(merged.digest),
        now.timestamps + archived[2] + int(merged.dates),
    )


def _application_writes(
    connection: Connection, moved: MovedTable, execution: ledger.Execution, deleted_before: int
) -> int:
    """Signs of other writers since the first snapshot: rows written, rows rewritten before a batch came, deletes."""
    statement = sql.compose(
        """SELECT (SELECT count(*) FROM {table} t WHERE {written})
                + (SELECT count(*) FROM uuid_pipeline.batches b WHERE b.execution_id = %(execution)s
                   AND (b.moved->'touched'->>%(table)s)::bigint > 0)
                + (SELECT count(*) FROM uuid_pipeline.unmoved u
                   WHERE u.execution_id = %(execution)s AND u.entity = ANY(%(entities)s))
                + greatest(coalesce(pg_stat_get_tuples_deleted(%(oid)s::oid), 0) - %(deleted)s, 0)
           FROM uuid_pipeline.executions e WHERE e.execution_id = %(execution)s""",
        table=sql.table(moved.table.schema, moved.table.name),
        written=batch.written_since("t"),
    )
    values = {
        "execution": execution.execution_id,
        "oid": moved.table.oid,
        "table": fingerprint.qualified(moved),
        "entities": [entity for _, entity in moved.columns],
        "deleted": deleted_before,
        "snapshot": ledger.first_snapshot(connection, execution.execution_id),
    }
    return int(sql.scalar(connection, statement, values) or 0)


def next_step_safe(connection: Connection, store: Store, execution: ledger.Execution) -> GateResult:
    """Gate: every wave that began has ended with all its gates green, so the next one, or the end, may come."""
    open_gates, unaccounted, done, waiting = [], 0, 0, []
    left = 0
    for wave in ledger.waves(connection, execution.execution_id):
        if wave.status == "unneeded":
            continue
        begun = wave.status == "moved" or sql.scalar(
            connection,
            "SELECT EXISTS (SELECT FROM uuid_pipeline.batches WHERE wave = %(w)s)",
            {"w": wave.wave},
        )
        if not begun:
            waiting.append(wave.wave)
            continue
        done += 1
        scope = Scope(execution=execution.execution_id, wave=wave.wave)
        open_gates += gates.open_gates(connection, scope, [gates.WAVE_STAGE])
        found = accounted(connection, store, wave)
        unaccounted += found["planned"] - sum(n for name, n in found.items() if name != "planned")
        left += sum(found.get(reason, 0) for reason in aside.WAITING)
    safe = not open_gates and unaccounted == 0 and (left == 0 or bool(waiting))
    unsafe = f"{unaccounted} documents unaccounted for" if unaccounted else f"{left} documents are busy or locked"
    after = f"next: {waiting[0]}" if waiting else "the execution may end"
    return GateResult.of(
        "next_step_safe",
        safe,
        f"{done} waves done, every document accounted for; {after}" if safe else "; ".join(open_gates)
        or unsafe,
        "run again (uuid-pipeline run), which takes up what is left; or roll back",
        figures={"waves_done": done, "waves_waiting": len(waiting)},
    )  # fmt: skip


# The newest results of the whole store's gates must be of one run, and of one that began after the last batch.
_AT_ONCE = """
SELECT count(DISTINCT run_id) = 1 AND min(evaluated_at) > coalesce(
           (SELECT max(committed_at) FROM uuid_pipeline.batches WHERE execution_id = %(execution)s), '-infinity')
FROM (SELECT DISTINCT ON (gate) gate, run_id, evaluated_at FROM uuid_pipeline.gates
      WHERE execution_id = %(execution)s AND wave IS NULL AND stage = %(stage)s ORDER BY gate, gate_no DESC) newest
"""


def _validated_at_once(connection: Connection, execution: ledger.Execution) -> bool:
    values = {"execution": execution.execution_id, "stage": gates.VALIDATION_STAGE}
    return bool(sql.scalar(connection, _AT_ONCE, values))


def settle(connection: Connection, execution: ledger.Execution) -> bool:
    """Complete a running execution when every wave is moved and every gate green; returns whether it is complete."""
    now = ledger.execution(connection, execution.execution_id)
    if now.status != "running":
        return now.status == "completed"
    waves = [wave for wave in ledger.waves(connection, now.execution_id) if wave.status != "unneeded"]
    if any(wave.status != "moved" for wave in waves):
        return False
    scopes: list[tuple[Scope, tuple[str, ...]]] = [
        (Scope(execution=now.execution_id), (*gates.PLANNING_STAGES, gates.VALIDATION_STAGE))
    ]
    scopes += [(Scope(execution=now.execution_id, wave=wave.wave), (gates.WAVE_STAGE,)) for wave in waves]
    if any(gates.open_gates(connection, scope, stages) for scope, stages in scopes):
        return False
    if not _validated_at_once(connection, now):
        return False
    ledger.change_status(connection, now.execution_id, "completed")
    return True

"""Gates on references that hold ids without a row: left behind by a wave, or found in the whole store."""

from collections.abc import Sequence
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import embedded_ids, ledger, orphans, sql
from uuid_pipeline.engine.batches import application
from uuid_pipeline.engine.catalog import ForeignKey
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.merges import archive
from uuid_pipeline.engine.merges.archive import Shelf
from uuid_pipeline.engine.store import Reference, Store


def no_dangling_reference(connection: Connection, store: Store, wave: ledger.Wave) -> GateResult:
    """Gate: no reference holds an id that this wave moved away from.

    Without a foreign key it may hold the id of a document that the application deleted: no row has the new one either.
    """
    counted = {r.name: _count_left_behind(connection, store, r, wave.execution_id, [wave]) for r in store.references}
    left = {name: count for name, count in counted.items() if count}
    said = orphans.named(connection, store, left)
    return _judged("no_dangling_reference", left, said, len(counted), {})


def _count_left_behind(
    connection: Connection, store: Store, reference: Reference, execution_id: str, waves: Sequence[ledger.Wave]
) -> int:
    """Rows of a reference that hold an old id of these waves of the execution: one look at the table for all."""
    spans = _spans(waves)
    values = {"path": list(reference.path), **_writers(connection, reference, execution_id)}
    for index, (number, first, last) in enumerate(spans):
        values |= {f"no_{index}": number, f"first_{index}": first, f"last_{index}": last}
    return int(sql.scalar(connection, _left_behind(reference, store, _in_spans(len(spans))), values))


def _in_spans(count: int) -> sql.Composable:
    """Whether the row ``m`` of a map is in one of so many spans, written out: a planner that joined them would take
    each for one of many."""
    spans = [
        sql.compose(
            "(m.assessment_no = {number} AND m.ordinal BETWEEN {first} AND {last})",
            number=sql.bound(f"no_{index}"),
            first=sql.bound(f"first_{index}"),
            last=sql.bound(f"last_{index}"),
        )
        for index in range(count)
    ]
    return sql.join(" OR ", spans or [sql.Text("false")])


def _spans(waves: Sequence[ledger.Wave]) -> list[tuple[int, int, int]]:
    """Each a number of an assessment, its first ordinal and its last; waves that follow one another are one."""
    joined: list[tuple[int, int, int]] = []
    for number, first, last in sorted((w.assessment_no, w.first_ordinal, w.last_ordinal) for w in waves):
        if joined and joined[-1][0] == number and joined[-1][2] + 1 == first:
            joined[-1] = (number, joined[-1][1], last)
        else:
            joined.append((number, first, last))
    return joined


def _writers(connection: Connection, reference: Reference, execution_id: str) -> dict[str, Any]:
    """The values that say whether the application wrote a row since the execution began."""
    sql.execute(connection, "SELECT pg_current_xact_id()")  # age() counts from it
    return {
        "execution": execution_id,
        "snapshot": ledger.first_snapshot(connection, execution_id),
        "label": f"{reference.table.schema}.{reference.table.name}",
    }


# Whether we took the row away from its old id: the application may have deleted it, before its batch or since. What was
# set aside, its cluster with it, we did not touch.
_OURS: LiteralString = """
(h.role = 'merge' OR EXISTS (SELECT FROM {target} n WHERE n.{key} = h.new_id))
AND NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u WHERE u.execution_id = %(execution)s AND u.ordinal = h.ordinal)
"""


# Whether a row refers to one that was deleted and is there anew: written with the old id while nobody had the new one,
# which the alias trigger would else have put. The row may have moved since, and then the journal tells of its table.
_BEFORE_IT_CAME_BACK: LiteralString = """
h.role = 'move'
AND (h.written OR EXISTS (SELECT FROM uuid_pipeline.batches b
                            WHERE b.execution_id = %(execution)s AND (b.moved->'touched'->>%(label)s)::bigint > 0))
AND (EXISTS (SELECT FROM {target} n WHERE n.{key} = h.new_id AND {new_written})
     OR EXISTS (SELECT FROM {map} o WHERE o.new_id = h.new_id AND o.old_id <> h.old_id
                AND o.assessment_no > h.assessment_no))
"""


def _before_it_came_back(reference: Reference, store: Store) -> sql.Composable:
    """The condition on a row ``h`` of the map with ``written``: whether the application wrote the row that refers."""
    return sql.compose(_BEFORE_IT_CAME_BACK, new_written=application.written_since("n"), **_parts(reference, store))


def _left_behind(reference: Reference, store: Store, in_spans: sql.Composable) -> sql.Composable:
    """Counts rows of a reference that hold an old id of the spans whose row is no longer there."""
    parts = _parts(reference, store)
    # What may hold ids of what is gone keeps that of a row that was merged and has no counterpart.
    roles: LiteralString = "h.role = 'move'" if reference.keeps_orphans else "true"
    ours: sql.Composable = sql.Text("true")
    if not reference.foreign_key:
        came_back = _before_it_came_back(reference, store)
        ours = sql.compose("{ours} AND NOT ({came_back})", ours=sql.compose(_OURS, **parts), came_back=came_back)
    written = application.written_since("t")
    holds, of_holder = sql.compose("{table} t ON t.{column} = m.old_id", **parts), written
    if reference.form != "key":
        of_holder = sql.Text("r.written")
        # OFFSET keeps the map out of it: it is joined to all the ids at once, not read through for each row.
        holds = sql.compose(
            """(SELECT i.id, {written} AS written
                FROM {table} t CROSS JOIN LATERAL (SELECT t.{column} AS was) w CROSS JOIN LATERAL {ids} i(id)
                OFFSET 0) r ON r.id = m.old_id::text""",
            written=written,
            ids=embedded_ids.ids_in(reference),
            **parts,
        )
    # OFFSET keeps the joins in this order. Hardly a reference holds an old id, but every old id has lost its row.
    return sql.compose(
        """SELECT count(*) FROM (
               SELECT m.old_id, m.new_id, m.role, m.ordinal, m.assessment_no, {written} AS written
               FROM {map} m JOIN {holds}
               WHERE m.role <> 'keep' AND ({in_spans}) OFFSET 0) h
           WHERE {roles} AND ({ours}) AND NOT EXISTS (SELECT FROM {target} e WHERE e.{key} = h.old_id)""",
        holds=holds,
        in_spans=in_spans,
        roles=sql.Text(roles),
        ours=ours,
        written=of_holder,
        **parts,
    )


def _parts(reference: Reference, store: Store) -> dict[str, sql.Composable]:
    entity = store.entity(reference.entity)
    return {
        "map": ledger.map_table(entity),
        "table": sql.table(reference.table.schema, reference.table.name),
        "column": sql.name(reference.column),
        "target": sql.table(entity.table.schema, entity.table.name),
        "key": sql.name(entity.key),
    }


def whole_no_dangling_reference(connection: Connection, store: Store, execution: ledger.Execution) -> GateResult:
    """Gate: every reference of the whole store points at a row.

    Without a foreign key it may hold an id of no row: one that the application deleted since the plan, or edited before
    it could get that id. Those are counted; our batches write none but ids of rows that they held. What may hold ids of
    other things too must hold none that a wave moved away from. No foreign key, also of what holds no id, may lead to
    rows that are in the archive alone.
    """
    waves = ledger.waves(connection, execution.execution_id)
    maps = sorted({wave.assessment_no for wave in waves})
    found = orphans.count(connection, store)
    deleted: dict[str, int] = {}
    moved = [wave for wave in waves if wave.status == "moved"]
    for reference in store.references:
        if reference.name not in found:
            found[reference.name] = _count_left_behind(connection, store, reference, execution.execution_id, moved)
        elif reference.foreign_key is None and found[reference.name]:
            values = {"maps": maps, **_writers(connection, reference, execution.execution_id)}
            deleted[reference.name] = int(sql.scalar(connection, _of_deleted(reference, store), values))
    for number in maps:
        found |= _of_archived(connection, store, number)
    left = {name: n - deleted.get(name, 0) for name, n in found.items() if n > deleted.get(name, 0)}
    counted = {name: n for name, n in deleted.items() if n}
    return _judged("whole_no_dangling_reference", left, orphans.named(connection, store, left), len(found), counted)


def _of_archived(connection: Connection, store: Store, assessment: int) -> dict[str, int]:
    """By foreign key the rows that refer to what a merge has archived and left nothing of under that key."""
    kept = {(one.table.schema, one.table.name): one for one in archive.shelves(connection, store, assessment)}
    found = {}
    for key in store.catalog.foreign_keys:
        one = kept.get((key.target_schema, key.target))
        if one is None or key.period:
            continue
        # By a column of another type than the archive's nothing can be compared.
        if {column.name for column in one.columns if column.name not in one.retyped}.issuperset(key.target_columns):
            counted = int(sql.scalar(connection, _of_archived_by(key, one)))
            if counted:
                found[f"{key.table}.({', '.join(key.columns)})"] = counted
    return found


def _of_archived_by(key: ForeignKey, one: Shelf) -> sql.Composable:
    pairs = list(zip(key.columns, key.target_columns, strict=True))
    return sql.compose(
        """SELECT count(*) FROM {table} t
           WHERE EXISTS (SELECT FROM {archive} a WHERE {archived})
             AND NOT EXISTS (SELECT FROM {target} e WHERE {there})""",
        table=sql.table(key.table_schema, key.table),
        archive=one.relation,
        target=one.source,
        archived=sql.join(" AND ", [sql.compose("a.{b} = t.{a}", a=sql.name(a), b=sql.name(b)) for a, b in pairs]),
        there=sql.join(" AND ", [sql.compose("e.{b} = t.{a}", a=sql.name(a), b=sql.name(b)) for a, b in pairs]),
    )


def _of_deleted(reference: Reference, store: Store) -> sql.Composable:
    """Counts rows of a reference that hold an id of no row, but old ids of rows that are there under new ones."""
    return sql.compose(
        """SELECT count(*) FROM {table} t WHERE t.{column} IS NOT NULL
           AND NOT EXISTS (SELECT FROM {target} e WHERE e.{key} = t.{column})
           AND NOT EXISTS (
               SELECT FROM (SELECT m.*, {written} AS written FROM {map} m
                            WHERE m.assessment_no = ANY(%(maps)s) AND m.old_id = t.{column}) h
               JOIN {target} n ON n.{key} = h.new_id
               WHERE NOT ({came_back}) AND NOT EXISTS (
                   SELECT FROM uuid_pipeline.unmoved u
                   WHERE u.execution_id = %(execution)s AND u.ordinal = h.ordinal))""",
        written=application.written_since("t"),
        came_back=_before_it_came_back(reference, store),
        **_parts(reference, store),
    )


def _judged(gate: str, left: dict[str, int], named: str, references: int, deleted: dict[str, int]) -> GateResult:
    said = f"0 dangling in {references} references"
    said += "".join(
        f"; {n} rows of {name} hold ids of rows that the application deleted or edited" for name, n in deleted.items()
    )
    figures: dict[str, Any] = {"dangling": sum(left.values()), "deleted": sum(deleted.values())}
    return GateResult.of(
        gate,
        not left,
        said if not left else f"dangling: {named}",
        "look at what wrote these columns. Where it was a wrong id, put that right and validate again; else roll back "
        "(uuid-pipeline rollback --all), which leaves ids of no row as they are. A soft reference that may hold ids of "
        "rows that merging leaves without a counterpart wants `orphans: keep` in the spec",
        figures=figures,
    )

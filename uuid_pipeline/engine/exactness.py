"""Whether each id is the one that its row's own natural key gives: gates of a wave and of the whole store."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import batch, ledger, sql
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.natural_keys import natural_key
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.identity import recomputer


def ids_exact(connection: Connection, store: Store, wave: ledger.Wave) -> GateResult:
    """Gate: each row that the wave moved has the id of its own natural key.

    The server builds the key anew from the row and compares it with the approved map, whose ids were recomputed
    before approval; rows that differ from it or arrived since are recomputed here.
    """
    return _exact("ids_exact", *_of_wave(connection, store, wave))


def whole_ids_exact(connection: Connection, store: Store, execution: ledger.Execution) -> GateResult:
    """Gate: as :func:`ids_exact`, now, for every row of every wave that has moved."""
    checked, wrong = 0, list[str]()
    for wave in ledger.waves(connection, execution.execution_id):
        if wave.status == "moved":
            found = _of_wave(connection, store, wave)
            checked, wrong = checked + found[0], wrong + found[1]
    return _exact("whole_ids_exact", checked, wrong)


def _of_wave(connection: Connection, store: Store, wave: ledger.Wave) -> tuple[int, list[str]]:
    """Rows looked at, and a sentence for each whose id is not the one of its natural key."""
    looked_at, wrong = 0, list[str]()
    for entity in store.entities:
        under_new_id, as_approved = _counted(connection, entity, wave)
        places = [_under_old_id(entity)]
        if as_approved < under_new_id:
            places.append(_under_new_id(entity))
        found = _recompute(connection, store, entity, wave, places)
        looked_at, wrong = looked_at + as_approved + found[0], wrong + found[1]
    return looked_at, wrong


def _under_new_id(entity: Entity) -> sql.Composable:
    """Rows that the map's new id finds, and that are not as approved."""
    return sql.compose("t.{key} = m.new_id AND NOT ({same})", key=sql.name(entity.key), same=_as_approved(entity))


def _under_old_id(entity: Entity) -> sql.Composable:
    """Rows that did not leave their old id."""
    return sql.compose("t.{key} = m.old_id AND m.old_id <> m.new_id", key=sql.name(entity.key))


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


def _counted(connection: Connection, entity: Entity, wave: ledger.Wave) -> tuple[int, int]:
    """Rows under the new id that the map has for them, and those of them that are as approved."""
    statement = sql.compose(
        """SELECT count(*) AS found, count(*) FILTER (WHERE {same}) AS as_approved
           FROM {map} m JOIN {table} t ON t.{key} = m.new_id WHERE {moved}""",
        same=_as_approved(entity),
        **_parts(entity, wave),
    )
    row = sql.rows(connection, statement, _span(wave))[0]
    return int(row.found), int(row.as_approved)


def _recompute(
    connection: Connection, store: Store, entity: Entity, wave: ledger.Wave, places: Sequence[sql.Composable]
) -> tuple[int, list[str]]:
    """Rows recomputed from their raw columns, and a sentence for each whose id is another."""
    fields = entity.spec.template.fields
    target_of = recomputer(store.spec.namespace, entity.spec.identity, fields, entity.spec.normalize)
    checked, wrong = 0, list[str]()
    for rows in _raw_rows(connection, entity, wave, places):
        for key, mapped, rewritten, *raw in rows:
            target = None if None in raw else target_of(raw)
            # Identity that the application edited after the move is due for the next plan, not wrong.
            if rewritten and target != mapped:
                continue
            checked += 1
            if target != key:
                wrong.append(f"{entity.name} {key} should be {target}")
    return checked, wrong


def _raw_rows(
    connection: Connection, entity: Entity, wave: ledger.Wave, places: Sequence[sql.Composable]
) -> Iterator[list[Any]]:
    """Id, mapped id, whether the application wrote the row since, and the identity's raw columns, of a wave's rows.

    ``places`` are conditions that join a row ``t`` with the map row ``m``.
    """
    # age() counts from this transaction's own id, once it has one.
    sql.execute(connection, "SELECT pg_current_xact_id()")
    fields = entity.spec.template.fields
    parts = _parts(entity, wave)
    selects = [
        sql.compose(
            "SELECT t.{key}::text, m.new_id::text, {written}, {values} FROM {map} m JOIN {table} t ON {place} "
            "WHERE {moved}",
            written=batch.written_since("t"),
            values=sql.join(", ", [sql.compose("t.{c}::text", c=sql.name(field)) for field in fields]),
            place=place,
            **parts,
        )
        for place in places
    ]
    snapshot = ledger.first_snapshot(connection, wave.execution_id)
    values = {**_span(wave), "execution": wave.execution_id, "snapshot": snapshot}
    return sql.stream(connection, sql.join(" UNION ALL ", selects), values)

"""Whether each id is the one that its row's own natural key gives: gates of a wave and of the whole store."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import batch, deletions, ledger, retrieval, returned, sql
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.natural_keys import natural_key
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.identity import recomputer


@dataclass
class _Found:
    """Rows looked at, a sentence for each whose id is not the one of its natural key, and by entity and old id the
    rows that may be the application's own again."""

    checked: int = 0
    wrong: list[str] = field(default_factory=list)
    back: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows came back, by entity."""
        return {name: sum(entity == name for entity, _ in self.back) for name in {entity for entity, _ in self.back}}


def ids_exact(connection: Connection, store: Store, wave: ledger.Wave) -> GateResult:
    """Gate: each row that the wave moved has the id of its own natural key.

    The server builds the key anew from the row and compares it with the approved map, whose ids were recomputed
    before approval; rows that differ from it or arrived since are recomputed here.
    """
    return _exact("ids_exact", connection, store, wave.execution_id, [wave])


def whole_ids_exact(connection: Connection, store: Store, execution: ledger.Execution) -> GateResult:
    """Gate: as :func:`ids_exact`, now, for every row of every wave that has moved."""
    waves = [wave for wave in ledger.waves(connection, execution.execution_id) if wave.status == "moved"]
    return _exact("whole_ids_exact", connection, store, execution.execution_id, waves)


def _exact(gate: str, connection: Connection, store: Store, execution_id: str, waves: list[ledger.Wave]) -> GateResult:
    found = _Found()
    for wave in waves:
        _look(connection, store, wave, found)
    if found.back:
        epoch = retrieval.epoch_before(connection, execution_id)
        unexplained = deletions.patiently(
            connection,
            lambda: returned.unexplained(connection, store, execution_id, epoch, found.counts),
            lambda left: not left,
        )
        found.wrong += [said for (entity, _), said in found.back.items() if entity in unexplained]
    wrong, back = found.wrong, sum(found.counts.values())
    said = f"{found.checked} ids made anew from the rows, all equal" + (f"; {back} {returned.SAID}" if back else "")
    return GateResult.of(
        gate,
        not wrong,
        said if not wrong else f"{len(wrong)} wrong: {'; '.join(wrong[:5])}",
        "roll back (uuid-pipeline rollback --all) and compare these rows with the spec's identity",
        figures={"recomputed": found.checked, "wrong": len(wrong), "returned": back},
    )


def _look(connection: Connection, store: Store, wave: ledger.Wave, found: _Found) -> None:
    for entity in store.entities:
        found.checked += _count_as_approved(connection, entity, wave)
        others = sql.compose("NOT ({same})", same=_as_approved(entity))
        _recompute(connection, store, entity, wave, others, found)


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
    connection: Connection, store: Store, entity: Entity, wave: ledger.Wave, which: sql.Composable, found: _Found
) -> None:
    """Recompute these rows from their raw columns."""
    fields = entity.spec.template.fields
    target_of = recomputer(store.spec.namespace, entity.spec.identity, fields, entity.spec.normalize)
    for rows in _raw_rows(connection, entity, wave, which):
        for key, mapped, rewritten, back, *raw in rows:
            target = None if None in raw else target_of(raw)
            # Identity that the application edited after the move is due for the next plan, not wrong.
            if rewritten and target != mapped:
                continue
            said = f"{entity.name} {key} should be {target}"
            if target == key:
                found.checked += 1
            elif back:
                found.back[entity.name, key] = said
            else:
                found.checked += 1
                found.wrong.append(said)


def _raw_rows(connection: Connection, entity: Entity, wave: ledger.Wave, which: sql.Composable) -> Iterator[list[Any]]:
    """Id, mapped id, whether the application wrote the row since, whether it may have deleted and written it again,
    and the identity's raw columns, of a wave's rows.

    They are found by their new id, and by their old one those that did not leave it, which are always looked at.
    """
    # age() counts from this transaction's own id, once it has one.
    sql.execute(connection, "SELECT pg_current_xact_id()")
    fields = entity.spec.template.fields
    statement = sql.compose(
        """SELECT t.{key}::text, m.new_id::text, {written}, false, {values}
           FROM {map} m JOIN {table} t ON t.{key} = m.new_id WHERE {moved} AND {which}
           UNION ALL
           SELECT t.{key}::text, m.new_id::text, {written}, {back}, {values}
           FROM {map} m JOIN {table} t ON t.{key} = m.old_id WHERE {moved} AND m.old_id <> m.new_id""",
        written=batch.written_since("t"),
        # Of the same snapshot as the row: the application may delete and write it again once more.
        back=returned.came_back(entity),
        values=sql.join(", ", [sql.compose("t.{c}::text", c=sql.name(field)) for field in fields]),
        which=which,
        **_parts(entity, wave),
    )
    snapshot = ledger.first_snapshot(connection, wave.execution_id)
    return sql.stream(connection, statement, {**_span(wave), "execution": wave.execution_id, "snapshot": snapshot})

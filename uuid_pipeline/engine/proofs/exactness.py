"""Whether each id is the one that its row's own natural key gives: gates of a wave and of the whole store."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.batches import application, deletions
from uuid_pipeline.engine.batches.held import map_part
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.natural_keys import natural_key
from uuid_pipeline.engine.proofs import returned
from uuid_pipeline.engine.retrievals import retrieval
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
    for span in _spans(waves):
        _look(connection, store, span, found)
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


@dataclass(frozen=True)
class _Span:
    """Waves of one id map whose ordinals follow each other: to be looked at in one pass over a table."""

    execution_id: str
    assessment_no: int
    first: int
    last: int
    waves: tuple[str, ...]

    @property
    def values(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last, "waves": list(self.waves)}


def _spans(waves: Sequence[ledger.Wave]) -> list[_Span]:
    spans: list[_Span] = []
    for wave in waves:
        before = spans[-1] if spans else None
        if before and (before.assessment_no, before.last + 1) == (wave.assessment_no, wave.first_ordinal):
            spans[-1] = replace(before, last=wave.last_ordinal, waves=(*before.waves, wave.wave))
        else:
            ordinals = (wave.first_ordinal, wave.last_ordinal)
            spans.append(_Span(wave.execution_id, wave.assessment_no, *ordinals, (wave.wave,)))
    return spans


def _look(connection: Connection, store: Store, span: _Span, found: _Found) -> None:
    for entity in store.entities:
        counted = _counted(connection, entity, span)
        found.checked += counted.as_approved
        places = []
        if counted.under_old_id:
            places.append(_under_old_id(entity))
        if counted.as_approved < counted.under_new_id:
            places.append(_under_new_id(entity))
        if places:
            _recompute(connection, store, entity, span, places, found)
        if counted.arrived:
            found.wrong += _misderived(connection, store, entity, span)


def _misderived(connection: Connection, store: Store, entity: Entity, span: _Span) -> list[str]:
    """What a batch mapped by itself, under another id than the natural key beside it gives: what was approved was
    recomputed with the plan, and what the row says by now may be the application's doing."""
    statement = sql.compose(
        "SELECT m.natural_key, m.new_id::text FROM {map} m WHERE m.arrived AND {moved}", **_parts(entity, span)
    )
    return [
        f"{entity.name} {mapped} was mapped, and its natural key gives {target}"
        for rows in sql.stream(connection, statement, span.values)
        for text, mapped in rows
        if (target := str(uuid.uuid5(store.spec.namespace, text))) != mapped
    ]


@dataclass(frozen=True)
class _Place:
    """Where to look for rows to recompute: what joins a row ``t`` with the map row ``m``, and whether such a row may be
    one that the application deleted and wrote again."""

    on: sql.Composable
    back: sql.Composable


def _under_new_id(entity: Entity) -> _Place:
    """Rows that the map's new id finds, and that are not as approved."""
    on = sql.compose("t.{key} = m.new_id AND NOT ({same})", key=sql.name(entity.key), same=_as_approved(entity))
    return _Place(on, sql.Text("false"))


def _under_old_id(entity: Entity) -> _Place:
    """Rows that did not leave their old id."""
    # Of the same snapshot as the row: the application may delete and write it again once more.
    return _Place(_has_old_id(entity), returned.came_back(entity))


def _has_old_id(entity: Entity) -> sql.Composable:
    return sql.compose("t.{key} = m.old_id AND m.old_id <> m.new_id", key=sql.name(entity.key))


def _as_approved(entity: Entity) -> sql.Composable:
    """Whether the row ``t`` has the new id of ``m``, and still the natural key that the approved map has of it."""
    parent = sql.compose("t.{parent}", parent=sql.name(entity.parent_column)) if entity.parent_column else None
    return sql.compose(
        "t.{key} = m.new_id AND NOT m.arrived AND ({natural_key}) IS NOT DISTINCT FROM m.natural_key",
        key=sql.name(entity.key),
        natural_key=natural_key(entity, parent),
    )


# Which map rows a span's waves moved, and not set aside.
_MOVED = """
m.ordinal BETWEEN %(first)s AND %(last)s AND m.role <> 'merge'
AND NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u WHERE u.wave = ANY(%(waves)s) AND u.ordinal = m.ordinal)
"""


def _parts(entity: Entity, span: _Span) -> dict[str, sql.Composable]:
    return {
        "map": map_part(entity.name, span.assessment_no),
        "table": sql.table(entity.table.schema, entity.table.name),
        "key": sql.name(entity.key),
        "moved": sql.Text(_MOVED),
    }


@dataclass(frozen=True)
class _Counted:
    """Rows under the new id that the map has for them, those of them that are as approved and that a batch mapped by
    itself, and rows under the old."""

    under_new_id: int
    as_approved: int
    arrived: int
    under_old_id: int


def _counted(connection: Connection, entity: Entity, span: _Span) -> _Counted:
    """Counted by joins that the server may do in several processes; a cursor would keep it from that."""
    statement = sql.compose(
        """SELECT n.found, n.as_approved, n.arrived, o.found FROM
               (SELECT count(*) AS found, count(*) FILTER (WHERE {same}) AS as_approved,
                       count(*) FILTER (WHERE m.arrived) AS arrived
                FROM {map} m JOIN {table} t ON t.{key} = m.new_id WHERE {moved}) n,
               (SELECT count(*) AS found FROM {map} m JOIN {table} t ON {has_old_id} WHERE {moved}) o""",
        same=_as_approved(entity),
        has_old_id=_has_old_id(entity),
        **_parts(entity, span),
    )
    return _Counted(*[int(count) for count in sql.rows(connection, statement, span.values)[0]])


def _recompute(
    connection: Connection,
    store: Store,
    entity: Entity,
    span: _Span,
    places: Sequence[_Place],
    found: _Found,
) -> None:
    """Recompute these rows from their raw columns."""
    fields = entity.spec.template.fields
    target_of = recomputer(store.spec.namespace, entity.spec.identity, fields, entity.spec.normalize)
    live = application.found_written(connection, span.execution_id)
    for rows in _raw_rows(connection, entity, span, places):
        for key, mapped, rewritten, back, *raw in rows:
            target = None if None in raw else target_of(raw)
            # Identity that the application edited after the move is due for the next plan, not wrong. Where it wrote
            # rows before our batches came, ours may have been the last to write this one too: to its parent's id.
            if (rewritten or live) and target != mapped:
                continue
            said = f"{entity.name} {key} should be {target}"
            if target == key:
                found.checked += 1
            elif back:
                found.back[entity.name, key] = said
            else:
                found.checked += 1
                found.wrong.append(said)


def _raw_rows(connection: Connection, entity: Entity, span: _Span, places: Sequence[_Place]) -> Iterator[list[Any]]:
    """Id, mapped id, whether the application wrote the row since, whether it may have deleted and written it again,
    and the identity's raw columns, of a span's rows."""
    # age() counts from this transaction's own id, once it has one.
    sql.execute(connection, "SELECT pg_current_xact_id()")
    fields = entity.spec.template.fields
    parts = _parts(entity, span)
    selects = [
        sql.compose(
            """SELECT t.{key}::text, m.new_id::text, {written}, {back}, {values}
               FROM {map} m JOIN {table} t ON {on} WHERE {moved}""",
            written=application.written_since("t"),
            back=place.back,
            values=sql.join(", ", [sql.compose("t.{c}::text", c=sql.name(field)) for field in fields]),
            on=place.on,
            **parts,
        )
        for place in places
    ]
    snapshot = ledger.first_snapshot(connection, span.execution_id)
    values = {**span.values, "execution": span.execution_id, "snapshot": snapshot}
    return sql.stream(connection, sql.join(" UNION ALL ", selects), values)

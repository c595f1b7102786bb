"""What an approach that went through left: references lost or left behind, columns changed besides the ids."""

from collections import Counter
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.trials.findings import Attempt, Refusal
from uuid_pipeline.engine.trials.obstacles import Obstacle, references_to, soft_references_to

Values = dict[str, Counter[str | None]]


@dataclass(frozen=True)
class State:
    """Of one row: how many rows refer to it by each reference, and the values of each column but those that hold ids.

    Values are digests. ``rows``: of every table of the copy.
    """

    referring: dict[str, int]
    values: dict[str, Values]
    rows: dict[str, int]


def state(connection: Connection, store: Store, entity: Entity, key: str) -> State:
    """Of the row with this key, in the transaction as it is."""
    own = (entity.table.schema, entity.table.name)
    values = {entity.table.name: _values(connection, store, own, entity.key, key)}
    for reference in references_to(store, entity):
        place = (reference.table.schema, reference.table.name)
        values[reference.name] = _values(connection, store, place, reference.column, key)
    return State(_referring(connection, store, entity, key), values, _counts(connection, store))


def _counts(connection: Connection, store: Store) -> dict[str, int]:
    """Rows of each table; in a copy there are few of them."""
    tables = [t for t in store.catalog.tables.values() if t.kind in ("r", "p")]
    counted = [
        sql.compose("SELECT {label} AS label, count(*) AS n FROM {table}",
                    label=sql.literal(f"{t.schema}.{t.name}"), table=sql.table(t.schema, t.name))
        for t in tables
    ]  # fmt: skip
    return {row.label: row.n for row in sql.rows(connection, sql.join(" UNION ALL ", counted))}


def _referring(connection: Connection, store: Store, entity: Entity, key: str) -> dict[str, int]:
    """Rows that refer to a key, by reference."""
    references = (*references_to(store, entity), *soft_references_to(store, entity))
    counted = [
        sql.compose(
            "SELECT {label} AS label, count(*) AS n FROM {table} WHERE {column}::text = %(key)s",
            label=sql.literal(reference.name),
            table=sql.table(reference.table.schema, reference.table.name),
            column=sql.name(reference.column),
        )
        for reference in references
    ]
    if not counted:
        return {}
    return {row.label: row.n for row in sql.rows(connection, sql.join(" UNION ALL ", counted), {"key": key})}


def _values(connection: Connection, store: Store, place: tuple[str, str], column: str, key: str) -> Values:
    """Of the rows whose column holds the key, the values of every column that is meant to stay as it is."""
    held = next((dict(m.columns) for m in store.tables if (m.table.schema, m.table.name) == place), {})
    kept = [c for c in store.catalog.tables[place].columns if c not in held]
    if not kept:
        return {}
    statement = sql.compose(
        "SELECT {columns} FROM {table} WHERE {column}::text = %(key)s",
        columns=sql.join(", ", [sql.compose("md5({c}::text)", c=sql.name(c)) for c in kept]),
        table=sql.table(*place),
        column=sql.name(column),
    )
    found = [tuple(row) for row in sql.rows(connection, statement, {"key": key})]
    return {name: Counter(row[n] for row in found) for n, name in enumerate(kept)}


def judged(
    connection: Connection, store: Store, done: Attempt, before: State, refusals: tuple[Refusal, ...],
    aside: set[Obstacle],
) -> Attempt:  # fmt: skip
    """The attempt with what it did; a reference whose foreign key was put aside is not held against it."""
    entity = store.entity(done.row.entity)
    after = state(connection, store, entity, done.row.new)
    still = _referring(connection, store, entity, done.row.old)
    hard = {r.name: r for r in references_to(store, entity)}
    freed = {o.name for o in aside}
    lost, behind = {}, {}
    for name, count in before.referring.items():
        kept_old, foreign_key = still[name], hard[name].foreign_key if name in hard else None
        if kept_old and foreign_key not in freed:
            behind[name] = kept_old
        gone = count - kept_old - after.referring[name]
        if gone > 0:
            lost[name] = gone
    changed = {
        name: columns
        for name, values in before.values.items()
        if (name not in behind and name not in lost and hard.get(name) is None)
        or (name in hard and not lost.get(name) and not still[name])
        for columns in [_changed(values, after.values[name])]
        if columns
    }
    written = {name: n - before.rows[name] for name, n in after.rows.items() if n != before.rows[name]}
    return replace(done, refusals=refusals, lost=lost, left_behind=behind, changed=changed,
                   written=written)  # fmt: skip


def _changed(before: Values, after: Values) -> tuple[str, ...]:
    return tuple(column for column, values in before.items() if after.get(column) != values)

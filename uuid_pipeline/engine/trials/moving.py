"""Which rows would move, looked at within bounds, and the few of them that are tried."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import savepoints, sql
from uuid_pipeline.engine.catalog import rows_up_to
from uuid_pipeline.engine.natural_keys import as_read, first_invalid, natural_key, part
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.trials.obstacles import references_to
from uuid_pipeline.identity import hasher

# Rows of an entity that are looked at: some tenths of a millisecond each, for all that is counted over them. The stages
# after this one look at every row.
LOOKED_ROOTS = 20_000
LOOKED_CHILDREN = 10_000
# Where even that takes too long (a reference without an index is read whole for each row).
FEW = 200
CANDIDATES = 200
EACH = 2


@dataclass(frozen=True)
class Sampled:
    """A row that is tried, and why it was chosen."""

    entity: str
    old: str
    new: str
    why: str


@dataclass(frozen=True)
class Looked:
    """Rows of an entity looked at, and how many of them would move; ``exact`` when these are all there are."""

    rows: int
    moving: int
    exact: bool


def table(entity: Entity) -> sql.Composable:
    """The temporary table (old, new, natural_key, owner, rest): the rows that would move, or stay (old = new).

    ``rest``: the natural key's own parts without the owner's, as one json array.
    """
    return sql.table("pg_temp", f"looked_{entity.name}")


@contextmanager
def looked_at(connection: Connection, store: Store) -> Iterator[dict[str, Looked]]:
    """Fill a temporary table an entity with its rows and their target ids; they are gone after the block."""
    with savepoints.undone(connection):
        yield {entity.name: _look(connection, store, entity) for entity in store.entities}


def _look(connection: Connection, store: Store, entity: Entity) -> Looked:
    key = sql.as_written(entity.table.columns[entity.key].type)
    create = """CREATE TEMPORARY TABLE {looked} (old {key} NOT NULL, new {key}, natural_key text, owner text, rest text,
                                                   parent text)"""
    sql.execute(connection, sql.compose(create, looked=table(entity), key=key))
    limit = LOOKED_ROOTS if entity.parent is None else LOOKED_CHILDREN
    target_of = hasher(store.spec.namespace)
    copy = sql.compose("COPY {looked} FROM STDIN", looked=table(entity)).as_string(None)
    rows = moving = 0
    for found in sql.stream(connection, _source(store, entity), {"limit": limit + 1}):
        kept = found[: limit - rows]
        records = [_record(entity, row, target_of) for row in kept]
        _write(connection, copy, records)
        rows += len(kept)
        moving += sum(1 for old, new, *_ in records if new is not None and new != old)
        if len(kept) < len(found):
            return _indexed(connection, entity, Looked(rows, moving, exact=False))
    exact = entity.parent is None or _parents_exact(connection, entity, rows)
    return _indexed(connection, entity, Looked(rows, moving, exact))


def fewer(connection: Connection, store: Store) -> dict[str, Looked]:
    """Look at a few of the rows that were looked at; gives what that leaves."""
    kept = {}
    for entity in store.entities:
        some = """DELETE FROM {looked} WHERE ctid <> ALL (ARRAY(SELECT ctid FROM {looked} WHERE new <> old ORDER BY old
                                                                LIMIT %(few)s))"""
        sql.execute(connection, sql.compose(some, looked=table(entity)), {"few": FEW})
        rows = sql.scalar(connection, sql.compose("SELECT count(*) FROM {looked}", looked=table(entity)))
        sql.execute(connection, sql.compose("ANALYZE {looked}", looked=table(entity)))
        kept[entity.name] = Looked(int(rows), int(rows), exact=False)
    return kept


def _write(connection: Connection, copy: str, records: list[tuple[Any, ...]]) -> None:
    with sql.by_the_driver(connection) as driver, driver.cursor() as cursor, cursor.copy(copy) as into:
        for record in records:
            into.write_row(record)


def _parents_exact(connection: Connection, entity: Entity, rows: int) -> bool:
    """Children are looked at below looked-at parents only."""
    return rows_up_to(connection, entity.table, rows + 1) == rows


def _indexed(connection: Connection, entity: Entity, looked: Looked) -> Looked:
    for column in ("old", "new"):
        sql.execute(
            connection,
            sql.compose("CREATE INDEX ON {looked} ({column})", looked=table(entity), column=sql.name(column)),
        )
    sql.execute(connection, sql.compose("ANALYZE {looked}", looked=table(entity)))
    return looked


def _record(entity: Entity, row: Any, target_of: Any) -> tuple[Any, ...]:
    old, text, valid, owner, rest, parent = row
    quarantined = text is None or first_invalid(entity, valid) is not None
    return (old, None if quarantined else target_of(text), text, owner, rest, parent)


def _source(store: Store, entity: Entity) -> sql.Composable:
    """Key, natural key, its checked parts, owner, the parts without the owner, parent; of children, below looked-at
    parents."""
    owner = entity.spec.describe.owner
    target = sql.Text("p.new") if entity.parent else None
    valid = [part(entity, field, target) for field in entity.spec.valid]
    join = sql.compose(
        "JOIN {parents} p ON p.old = t.{parent} AND p.new IS NOT NULL",
        parents=table(store.entity(entity.parent)),
        parent=sql.name(entity.parent_column or ""),
    ) if entity.parent else sql.Text("")  # fmt: skip
    return sql.compose(
        """SELECT t.{key}::text, {natural_key}, ARRAY[{valid}]::text[], {owner}, {rest}::text, {parent}
           FROM {table} t {join} LIMIT %(limit)s""",
        key=sql.name(entity.key),
        natural_key=natural_key(entity, target),
        valid=sql.join(", ", valid),
        owner=sql.compose("t.{c}::text", c=sql.name(owner)) if owner else sql.Text("NULL::text"),
        rest=as_read(entity, without=owner),
        parent=sql.compose("t.{c}::text", c=sql.name(entity.parent_column)) if entity.parent_column
        else sql.Text("NULL::text"),
        table=sql.table(entity.table.schema, entity.table.name),
        join=join,
    )  # fmt: skip


MOVES = sql.Text("m.new IS NOT NULL AND m.new <> m.old")

# The kinds of row whose fate differs: what stands under the target id, what shares it, what looks alike elsewhere.
_TWIN = """
SELECT m.old::text AS old, m.new::text AS new FROM {looked} m JOIN {table} t ON t.{key} = m.new
LEFT JOIN {looked} h ON h.old = m.new
WHERE {moves} AND (h.natural_key IS NOT DISTINCT FROM m.natural_key) = %(same)s ORDER BY m.old LIMIT %(each)s
"""
_RACE = """
SELECT m.old::text AS old, m.new::text AS new FROM {looked} m
WHERE {moves} AND m.new IN (SELECT r.new FROM {looked} r WHERE r.new <> r.old GROUP BY r.new HAVING count(*) > 1
                            ORDER BY r.new LIMIT 1) ORDER BY m.old LIMIT %(each)s
"""
_ALIKE = """
SELECT m.old::text AS old, m.new::text AS new FROM {looked} m
WHERE {moves} AND m.rest IN (SELECT r.rest FROM {looked} r WHERE r.rest <> '[]' GROUP BY r.rest
                             HAVING count(DISTINCT r.owner) > 1 ORDER BY r.rest LIMIT 1) ORDER BY m.old LIMIT %(each)s
"""
_ANY = """
SELECT m.old::text AS old, m.new::text AS new FROM {looked} m WHERE {moves} ORDER BY m.old LIMIT %(each)s
"""


def sample(connection: Connection, store: Store, entity: Entity) -> tuple[Sampled, ...]:
    """A few rows of each kind that there is, those with the most rows hanging on them first."""
    parts = {
        "looked": table(entity),
        "table": sql.table(entity.table.schema, entity.table.name),
        "key": sql.name(entity.key),
        "moves": MOVES,
    }
    chosen: dict[str, Sampled] = {}
    for old, new in _largest(connection, store, entity):
        chosen.setdefault(old, Sampled(entity.name, old, new, "has the most rows that refer to it"))
    for statement, why, values in (
        (_TWIN, "its target id is held by a row of the same natural key", {"same": True}),
        (_TWIN, "its target id is held by a row of another natural key", {"same": False}),
        (_RACE, "shares its target id with another row that would move", {}),
        (_ALIKE, "another owner has the same content", {}),
        (_ANY, "any", {"each": 1}),
    ):
        found = sql.Text(statement).format(**parts)
        for row in sql.rows(connection, found, {"each": EACH, **values}):
            chosen.setdefault(row.old, Sampled(entity.name, row.old, row.new, why))
    return tuple(chosen.values())


def _largest(connection: Connection, store: Store, entity: Entity) -> list[tuple[str, str]]:
    """Of the first rows, the one with the most referring rows; of no interest enough to wait for it long."""
    counts: dict[str, int] = {}
    statement = sql.compose(
        "SELECT m.old::text AS old, m.new::text AS new FROM {looked} m WHERE {moves} ORDER BY m.old LIMIT %(n)s",
        looked=table(entity),
        moves=MOVES,
    )
    targets = {row.old: row.new for row in sql.rows(connection, statement, {"n": CANDIDATES})}
    for reference in references_to(store, entity) if targets else ():
        for key, count in _referring(connection, entity, reference, list(targets)):
            # Under a collation that ignores case another spelling refers too, and is no row's key.
            if key in targets:
                counts[key] = counts.get(key, 0) + count
    return [(key, targets[key]) for key in sorted(counts, key=lambda k: (-counts[k], k))[:1]]


def _referring(connection: Connection, entity: Entity, reference: Any, keys: list[str]) -> list[tuple[str, int]]:
    statement = sql.compose(
        """SELECT {column}::text AS key, count(*) AS n FROM {table} WHERE {column} = ANY(%(keys)s::{type}[])
           GROUP BY 1""",
        column=sql.name(reference.column),
        table=sql.table(reference.table.schema, reference.table.name),
        type=sql.Text("uuid" if entity.key_type == "uuid" else "text"),
    )
    try:
        with savepoints.undone(connection):
            sql.execute(connection, "SET LOCAL statement_timeout = '2s'")
            return [(row.key, row.n) for row in sql.rows(connection, statement, {"keys": keys})]
    except DBAPIError as error:
        if sql.sqlstate(error) != sql.QUERY_CANCELED:
            raise
        return []

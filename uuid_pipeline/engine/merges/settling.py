"""References turned to the survivors, and what then cannot stand displaced, until nothing more follows from it."""

from typing import LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import ForeignKey, Table
from uuid_pipeline.engine.merges import checks, emptying
from uuid_pipeline.engine.merges.folding import (
    Fold,
    fold_embedded,
    fold_key,
    folds,
    forget_embedded,
    forget_unturned,
)
from uuid_pipeline.engine.merges.working_tables import merged
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.errors import BatchError

MAX_ROUNDS = 20


def settle(connection: Connection, store: Store) -> None:
    """Turn references to the survivors and displace what then stands twice, until nothing more follows from it.

    Raises BatchError when something still does after MAX_ROUNDS.
    """
    for _ in range(MAX_ROUNDS):
        before = _displaced(connection)
        for entity in store.entities:
            _follow_survivors(connection, store, entity)
        for fold in folds(store):
            _fold_table(connection, store, fold)
            for key in fold.held.moved.table.unique_keys:
                _displace_twins(connection, fold, key)
            checks.displace_forbidden(connection, fold)
            _note_displaced_of(connection, store, fold.held.moved.table)
        for foreign_key in _keys_to_displaced(connection, store):
            _displace_dependants(connection, store, foreign_key)
        if _displaced(connection) == before:
            _name_survivors(connection, store)
            for fold in folds(store):
                forget_unturned(connection, fold)
            return
    raise BatchError(
        f"A merge was given up: after {MAX_ROUNDS} rounds rows still displace each other. "
        "Set on_duplicate: block for this entity and report the store's foreign keys."
    )


def _fold_table(connection: Connection, store: Store, fold: Fold) -> None:
    own = fold.held.moved.entity
    forget_embedded(connection, fold)
    for column, entity in fold.held.moved.columns:
        if own is None or column != own.key:
            fold_key(connection, fold, column, merged(store, entity))
    for reference in fold.held.moved.embedded:
        fold_embedded(connection, fold, reference, merged(store, reference.entity))


def _displace_twins(connection: Connection, fold: Fold, key: tuple[str, ...]) -> None:
    """Of rows that a unique key would now refuse, the one that was there stays, and of turned ones the first.

    A row of which something else is turned was there.
    """
    turned = [fold.turned(column) for column, _ in fold.held.values if column in key]
    if not turned:
        return
    table = fold.held.moved.table
    after = [fold.after(column) for column in key]
    nulls_equal = key in table.null_equal_keys
    equal: LiteralString = "o.{c} IS NOT DISTINCT FROM a.{n}" if nulls_equal else "o.{c} = a.{n}"
    same = [sql.compose(equal, c=sql.name(column), n=sql.name(f"k{n}")) for n, column in enumerate(key)]
    named = [sql.compose("{v} AS {n}", v=value, n=sql.name(f"k{n}")) for n, value in enumerate(after)]
    twins = sql.compose(
        """INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
           SELECT %(oid)s, d.at, d.ordinal, NULL FROM (
               SELECT a.at, a.ordinal, row_number() OVER (PARTITION BY {keys} ORDER BY a.turned, a.at) AS turn,
                      EXISTS (SELECT FROM {table} o WHERE {same} AND o.ctid <> a.at
                              AND NOT EXISTS (SELECT FROM {fold} f WHERE f.at = o.ctid)
                              AND NOT EXISTS (SELECT FROM pg_temp.displaced x
                                              WHERE x.relation = %(oid)s AND x.at = o.ctid)) AS held
               FROM (SELECT f.at, f.ordinal, {turned} AS turned, {named} FROM {fold} f JOIN {table} t ON t.ctid = f.at
                     WHERE NOT EXISTS (SELECT FROM pg_temp.displaced x
                                       WHERE x.relation = %(oid)s AND x.at = f.at)) a
               WHERE {present}) d
           WHERE d.turn > 1 OR d.held ON CONFLICT DO NOTHING""",
        keys=sql.join(", ", [sql.compose("a.{n}", n=sql.name(f"k{n}")) for n in range(len(key))]),
        present=sql.Text("true")
        if nulls_equal
        else sql.join(" AND ", [sql.compose("a.{n} IS NOT NULL", n=sql.name(f"k{n}")) for n in range(len(key))]),
        table=fold.held.table,
        same=sql.join(" AND ", same),
        fold=fold.relation,
        turned=sql.join(" OR ", [sql.compose("f.{flag}", flag=flag) for flag in turned]),
        named=sql.join(", ", named),
    )
    sql.execute(connection, twins, {"oid": table.oid})


def _keys_to_displaced(connection: Connection, store: Store) -> list[ForeignKey]:
    """Foreign keys to tables of which rows are displaced; others may lead to what this role may not read."""
    places = {row.oid for row in sql.rows(connection, "SELECT DISTINCT relation AS oid FROM pg_temp.displaced")}
    targets = {place for place, table in store.catalog.tables.items() if table.oid in places}
    return [key for key in store.catalog.foreign_keys if (key.target_schema, key.target) in targets]


def _displace_dependants(connection: Connection, store: Store, key: ForeignKey) -> None:
    """Rows that refer to a displaced row by another key than an entity's, and may not lose that, go with it.

    They have no other to turn to.

    Of a key that holds an entity's among others only a part is turned: there may be no row that has the rest too.
    """
    source = store.catalog.tables[key.table_schema, key.table]
    target = store.catalog.tables[key.target_schema, key.target]
    if emptying.holds_id(store, key):
        if len(key.columns) > 1:
            _displace_without_counterpart(connection, store, key, source, target)
            _fold_in_place(connection, store, key, source, target)
        return
    if emptying.may_empty(store, key):
        emptying.note(connection, key, source, target)
        return
    statement = sql.compose(
        """INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
           SELECT %(source)s, s.ctid, d.ordinal, NULL FROM pg_temp.displaced d
           JOIN {target} t ON t.ctid = d.at JOIN {table} s ON {on}
           WHERE d.relation = %(target)s FOR UPDATE OF s ON CONFLICT DO NOTHING""",
        target=sql.table(target.schema, target.name),
        table=sql.table(source.schema, source.name),
        on=emptying.refers(key),
    )
    sql.execute(connection, statement, {"source": source.oid, "target": target.oid})
    _note_displaced_of(connection, store, source)


def _displace_without_counterpart(
    connection: Connection, store: Store, key: ForeignKey, source: Table, target: Table
) -> None:
    """Rows that refer to a displaced row, and to none that stays once their part of the key is turned.

    Where turning leaves NULL in the key, the row refers to nothing any more, and stays; MATCH FULL does not let it.
    """
    of_table = {fold.held.moved.table.oid: fold for fold in folds(store)}
    own, other = of_table[source.oid], of_table[target.oid]
    wanted = [sql.compose("{v} AS {k}", v=own.after(c), k=sql.name(f"k{n}")) for n, c in enumerate(key.columns)]
    plain = [sql.compose("o.{c} = s.{k}", c=sql.name(c), k=sql.name(f"k{n}")) for n, c in enumerate(key.target_columns)]
    turned = [
        sql.compose("{v} = s.{k}", v=other.after(c), k=sql.name(f"k{n}")) for n, c in enumerate(key.target_columns)
    ]
    statement = sql.compose(
        """INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
           SELECT %(source)s, s.at, s.ordinal, NULL FROM (
               SELECT t.ctid AS at, d.ordinal, {wanted}
               FROM pg_temp.displaced d JOIN {target} p ON p.ctid = d.at JOIN {table} t ON {on}
               LEFT JOIN {own} f ON f.at = t.ctid WHERE d.relation = %(target)s FOR UPDATE OF t) s
           WHERE ({refers}) AND NOT EXISTS (SELECT FROM {target} o WHERE {plain} AND {stays_o}
                             AND NOT EXISTS (SELECT FROM {other} g WHERE g.at = o.ctid))
             AND NOT EXISTS (SELECT FROM {other} f JOIN {target} t ON t.ctid = f.at WHERE {turned} AND {stays_t})
           ON CONFLICT DO NOTHING""",
        wanted=sql.join(", ", wanted),
        refers=sql.Text("true")
        if key.match_full
        else sql.join(
            " AND ", [sql.compose("s.{k} IS NOT NULL", k=sql.name(f"k{n}")) for n in range(len(key.columns))]
        ),
        target=sql.table(target.schema, target.name),
        table=sql.table(source.schema, source.name),
        on=_named_by(key),
        own=own.relation,
        other=other.relation,
        plain=sql.join(" AND ", plain),
        turned=sql.join(" AND ", turned),
        stays_o=sql.Text(_STAYS.format("o")),
        stays_t=sql.Text(_STAYS.format("t")),
    )
    sql.execute(connection, statement, {"source": source.oid, "target": target.oid})
    _note_displaced_of(connection, store, source)


_STAYS = "NOT EXISTS (SELECT FROM pg_temp.displaced x WHERE x.relation = %(target)s AND x.at = {}.ctid)"


def _fold_in_place(connection: Connection, store: Store, key: ForeignKey, source: Table, target: Table) -> None:
    """Rows that name a displaced row by what another gets are noted as turned: they mean that one from then on.

    Their text stays. Without the note a rollback would take them along with the row that they mean by then.
    """
    fold = next(fold for fold in folds(store) if fold.held.moved.table.oid == source.oid)
    columns = [column for column in key.columns if column in dict(fold.held.values)]
    if not columns:
        return
    statement = sql.compose(
        """INSERT INTO {fold} AS f (at, ordinal, {value}, {turned})
           SELECT t.ctid, d.ordinal, t.{column}, true
           FROM pg_temp.displaced d JOIN {target} p ON p.ctid = d.at JOIN {table} t ON {on}
           WHERE d.relation = %(target)s
             AND NOT EXISTS (SELECT FROM pg_temp.displaced x WHERE x.relation = %(source)s AND x.at = t.ctid)
             AND NOT EXISTS (SELECT FROM {fold} o WHERE o.at = t.ctid AND ({any_turned}))
           FOR UPDATE OF t ON CONFLICT (at) DO UPDATE SET {value} = excluded.{value}, {turned} = true""",
        fold=fold.relation,
        value=fold.held.value(columns[0]),
        turned=fold.turned(columns[0]),
        column=sql.name(columns[0]),
        any_turned=sql.join(" OR ", [sql.compose("o.{t}", t=fold.turned(column)) for column in columns]),
        target=sql.table(target.schema, target.name),
        table=fold.held.table,
        on=_named_by(key),
    )
    sql.execute(connection, statement, {"source": source.oid, "target": target.oid})


def _named_by(key: ForeignKey) -> sql.Composable:
    """Whether the row ``t`` names the row ``p``, as both stand now."""
    pairs = zip(key.columns, key.target_columns, strict=True)
    return sql.join(" AND ", [sql.compose("t.{a} = p.{b}", a=sql.name(a), b=sql.name(b)) for a, b in pairs])


def _note_displaced_of(connection: Connection, store: Store, source: Table) -> None:
    for entity in store.entities:
        if entity.table.oid == source.oid:
            _note_displaced(connection, store, entity)


def _note_displaced(connection: Connection, store: Store, entity: Entity) -> None:
    """A displaced row of an entity that had no natural twin: what refers to it has nothing to turn to."""
    statement = sql.compose(
        """INSERT INTO {merged} (loser, survivor, ordinal)
           SELECT t.{key}, NULL, d.ordinal FROM pg_temp.displaced d JOIN {table} t ON t.ctid = d.at
           WHERE d.relation = %(oid)s ON CONFLICT DO NOTHING""",
        merged=merged(store, entity.name),
        key=sql.name(entity.key),
        table=sql.table(entity.table.schema, entity.table.name),
    )
    sql.execute(connection, statement, {"oid": entity.table.oid})


def _follow_survivors(connection: Connection, store: Store, entity: Entity) -> None:
    """A survivor that was displaced itself hands its losers on to what stands in its place, if anything does."""
    statement = sql.compose(
        "UPDATE {merged} m SET survivor = n.survivor FROM {merged} n WHERE n.loser = m.survivor",
        merged=merged(store, entity.name),
    )
    sql.execute(connection, statement)


def _name_survivors(connection: Connection, store: Store) -> None:
    """What stands in a displaced row's place may have been displaced itself since the row was."""
    for entity in store.entities:
        statement = sql.compose(
            """UPDATE pg_temp.displaced d SET survivor = m.survivor::text
               FROM {table} t JOIN {merged} m ON m.loser = t.{key}
               WHERE d.relation = %(oid)s AND t.ctid = d.at AND d.survivor IS DISTINCT FROM m.survivor::text""",
            table=sql.table(entity.table.schema, entity.table.name),
            merged=merged(store, entity.name),
            key=sql.name(entity.key),
        )
        sql.execute(connection, statement, {"oid": entity.table.oid})


def _displaced(connection: Connection) -> int:
    return int(sql.scalar(connection, "SELECT count(*) FROM pg_temp.displaced"))

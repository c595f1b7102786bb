"""References whose row does not exist: how many, and which."""

from collections.abc import Mapping, Sequence
from typing import LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import ForeignKey
from uuid_pipeline.engine.store import Reference, Store

# Ids shown of what dangles, by reference.
LISTED_IDS = 3


def _orphans(store: Store, reference: Reference, wanted: LiteralString) -> sql.Composable:
    entity = store.entity(reference.entity)
    return sql.compose(
        """SELECT {wanted} FROM {table} r WHERE r.{column} IS NOT NULL
           AND NOT EXISTS (SELECT FROM {target} t WHERE t.{key} = r.{column})""",
        wanted=sql.Text(wanted).format(column=sql.name(reference.column)),
        table=sql.table(reference.table.schema, reference.table.name),
        column=sql.name(reference.column),
        target=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
    )


def named(connection: Connection, store: Store, found: Mapping[str, int]) -> str:
    """References with their counts, for people: foreign keys with some of the ids that no row has, to look for them."""
    by_name = {reference.name: reference for reference in store.references if reference.foreign_key is not None}
    said = []
    for name, count in sorted(found.items()):
        ids: list[str] = []
        if name in by_name:
            statement = _orphans(store, by_name[name], "DISTINCT r.{column}::text AS id")
            limited = sql.compose("{orphans} ORDER BY 1 LIMIT %(listed)s", orphans=statement)
            ids = [row.id for row in sql.rows(connection, limited, {"listed": LISTED_IDS + 1})]
            if len(ids) > LISTED_IDS:
                ids[LISTED_IDS:] = ["…"]
        said.append(f"{name} {count}" + (f" ({', '.join(ids)})" if ids else ""))
    return ", ".join(said)


def count(connection: Connection, store: Store) -> dict[str, int]:
    """Rows by reference whose entity row does not exist, now; text, arrays and json may hold ids of other things."""
    return _counted(connection, store, [r for r in store.references if r.form == "key" and not r.keeps_orphans])


def dangling(connection: Connection, store: Store) -> dict[str, int]:
    """Of the foreign keys that the server vouches for those with rows whose entity row does not exist, and how many.

    One that is not validated, or not enforced, says nothing of what a row may hold.
    """
    keys = {(key.table_schema, key.table, key.name) for key in store.catalog.foreign_keys if key.validated}
    vouched = [r for r in store.references if (r.table.schema, r.table.name, r.foreign_key) in keys]
    found = _counted(connection, store, vouched)
    return {name: count for name, count in found.items() if count}


def dangling_by(connection: Connection, keys: Sequence[ForeignKey]) -> dict[str, int]:
    """Of these foreign keys those with rows that refer to none, and how many."""
    found = {f"{k.table}.({', '.join(k.columns)})": int(sql.scalar(connection, _dangling_statement(k))) for k in keys}
    return {name: count for name, count in found.items() if count}


def _counted(connection: Connection, store: Store, references: Sequence[Reference]) -> dict[str, int]:
    """Orphans of each of these, and of the foreign keys of several columns."""
    found = {r.name: int(sql.scalar(connection, _orphans(store, r, "count(*)"))) for r in references}
    return found | _dangling_whole(connection, store)


def _dangling_whole(connection: Connection, store: Store) -> dict[str, int]:
    """By foreign key of several columns that holds ids: rows to which no row is as all of them say."""
    ids = {(m.table.schema, m.table.name, column) for m in store.tables for column, _ in m.columns}
    found = {}
    for key in store.catalog.foreign_keys:
        held = any((key.table_schema, key.table, column) in ids for column in key.columns)
        # One that is not validated may have dangled before anybody came.
        if held and len(key.columns) > 1 and key.validated:
            counted = sql.scalar(connection, _dangling_statement(key))
            found[f"{key.table}.({', '.join(key.columns)})"] = int(counted)
    return found


def _dangling_statement(key: ForeignKey) -> sql.Composable:
    """Counts rows with a whole key to which no row is as all its columns say, or no rows cover its period."""
    pairs = list(zip(key.columns, key.target_columns, strict=True))
    present = [sql.compose("r.{c} IS NOT NULL", c=sql.name(column)) for column in key.columns]
    same = [
        sql.compose("t.{b} = r.{a}", a=sql.name(a), b=sql.name(b)) for a, b in (pairs[:-1] if key.period else pairs)
    ]
    found = sql.compose(
        "EXISTS (SELECT FROM {target} t WHERE {same})",
        target=sql.table(key.target_schema, key.target),
        same=sql.join(" AND ", same),
    )
    if key.period:
        found = sql.compose(
            """coalesce((SELECT range_agg(t.{b}) @> r.{a} FROM {target} t WHERE {same} AND t.{b} && r.{a}), false)""",
            a=sql.name(key.columns[-1]),
            b=sql.name(key.target_columns[-1]),
            target=sql.table(key.target_schema, key.target),
            same=sql.join(" AND ", same),
        )
    return sql.compose(
        "SELECT count(*) FROM {table} r WHERE {present} AND NOT {found}",
        table=sql.table(key.table_schema, key.table),
        present=sql.join(" AND ", present),
        found=found,
    )

"""Documents that stay, and could not as they are once what they refer to is merged: as far as a plan foresees it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import inventory, ledger, sql
from uuid_pipeline.engine.catalog import ForeignKey, Table
from uuid_pipeline.engine.mapping import survivor_order
from uuid_pipeline.engine.merges import checks, emptying
from uuid_pipeline.engine.priorities import complete_statuses
from uuid_pipeline.engine.store import Entity, Store

SHOWN = 3


def found(connection: Connection, store: Store, assessment: int) -> Iterator[str]:
    """A sentence each: a CHECK or unique key that would refuse such documents, a key by which they would go along."""
    yield from _forbidden(connection, store, assessment)
    yield from _taken_along(connection, store, assessment)


def _values(store: Store, assessment: int) -> dict[str, Any]:
    return {"no": assessment, "complete": complete_statuses(store), "most": SHOWN + 1}


def _shown(rows: Sequence[Any]) -> str:
    return ", ".join(row.key for row in rows[:SHOWN]) + (", ..." if len(rows) > SHOWN else "")


def _forbidden(connection: Connection, store: Store, assessment: int) -> Iterator[str]:
    for root in store.roots:
        turned = _turned(connection, store, root, assessment)
        if turned is None:
            continue
        where = f"{root.table.schema}.{root.table.name}"
        for check in checks.of_columns(connection, root.table, turned.columns):
            fails = sql.compose("({any}) AND {f}", any=turned.merged, f=checks.fails(root.table, check, turned.after))
            rows = sql.rows(connection, _staying(root, turned, fails), _values(store, assessment))
            if rows:
                yield (
                    f"CHECK {check.name} on {where} ({check.expression}) fails for rows that stay, once what they "
                    f"refer to is merged: {_shown(rows)}"
                )
        for unique in root.table.unique_keys:
            if not turned.columns & set(unique):
                continue
            rows = sql.rows(connection, _twins_statement(root, turned, unique), _values(store, assessment))
            if rows:
                yield (
                    f"rows of {where} that stay would be twins in ({', '.join(unique)}), which is unique, once what "
                    f"they refer to is merged: {_shown(rows)}"
                )


def _taken_along(connection: Connection, store: Store, assessment: int) -> Iterator[str]:
    root_of = {(root.table.schema, root.table.name): root for root in store.roots}
    for key in store.catalog.foreign_keys:
        source, target = root_of.get((key.table_schema, key.table)), root_of.get((key.target_schema, key.target))
        if source is None or target is None or not inventory.may_share_targets(connection, target, assessment):
            continue
        if emptying.holds_id(store, key) or emptying.may_empty(store, key):
            continue
        rows = sql.rows(connection, _along_statement(source, target, key), _values(store, assessment))
        if rows:
            yield (
                f"foreign key {key.name} of {key.table_schema}.{key.table} may not be NULL, or is ON DELETE CASCADE, "
                f"and leads from rows that stay to rows that merging archives: {_shown(rows)}"
            )


def _along_statement(source: Entity, target: Entity, key: ForeignKey) -> sql.Composable:
    return sql.compose(
        """WITH goes AS ({target_places}), own AS ({source_places})
           SELECT s.{key}::text AS key FROM {source} s JOIN {target} t ON {refers}
           JOIN goes g ON g.key = t.{target_key} AND g.place > 1
           WHERE NOT EXISTS (SELECT FROM own o WHERE o.key = s.{key} AND o.place > 1) ORDER BY 1 LIMIT %(most)s""",
        target_places=_places(target),
        source_places=_places(source),
        key=sql.name(source.key),
        source=sql.table(source.table.schema, source.table.name),
        target=sql.table(target.table.schema, target.table.name),
        refers=emptying.refers(key),
        target_key=sql.name(target.key),
    )


def _places(root: Entity) -> sql.Composable:
    """Each row's place in its cluster; the first survives. Quarantined ones have none, and stay."""
    return sql.compose(
        """SELECT i.key, row_number() OVER (PARTITION BY i.target_id ORDER BY {survivor}, i.key) AS place
           FROM {inventory} i WHERE i.assessment_no = %(no)s AND i.target_id IS NOT NULL""",
        survivor=survivor_order(root),
        inventory=ledger.inventory_table(root),
    )


@dataclass(frozen=True)
class _Turned:
    """What merging turns in a document's own row ``t``: joins to the inventory, whether any is merged, values after."""

    columns: set[str]
    joins: sql.Composable
    merged: sql.Composable
    after: dict[str, sql.Composable]


def _turned(connection: Connection, store: Store, root: Entity, assessment: int) -> _Turned | None:
    """None where no reference of such a row can lead to one that is merged."""
    references = {
        column: store.entity(name)
        for moved in store.tables
        if moved.table.oid == root.table.oid
        for column, name in moved.columns
        if column != root.key and inventory.may_share_targets(connection, store.entity(name), assessment)
    }
    if not references:
        return None
    own = _as_column(root.table, root.key, sql.Text("own.target_id"))
    joins, merged = list[sql.Composable](), list[sql.Composable]()
    after: dict[str, sql.Composable] = {
        root.key: sql.compose("coalesce({target}, t.{key})", target=own, key=sql.name(root.key))
    }
    for index, (column, entity) in enumerate(references.items()):
        name = sql.name(f"r{index}")
        parts = {"inventory": ledger.inventory_table(entity), "r": name, "c": sql.name(column)}
        joins.append(
            sql.compose(
                "LEFT JOIN {inventory} {r} ON {r}.assessment_no = %(no)s AND {r}.key::text = t.{c}::text", **parts
            )
        )
        merged.append(
            sql.compose(
                """{r}.target_id IN (SELECT target_id FROM {inventory} WHERE assessment_no = %(no)s
                                     GROUP BY target_id HAVING count(*) > 1)""",
                **parts,
            )
        )
        target = _as_column(root.table, column, sql.compose("{r}.target_id", r=name))
        after[column] = sql.compose("coalesce({target}, t.{c})", target=target, c=sql.name(column))
    return _Turned(set(references), sql.join(" ", joins), sql.join(" OR ", merged), after)


def _staying(root: Entity, turned: _Turned, which: sql.Composable) -> sql.Composable:
    """The keys of documents that stay, and of which this is true."""
    return sql.compose(
        """WITH places AS ({places})
           SELECT own.key::text AS key FROM {table} t
           JOIN {inventory} own ON own.assessment_no = %(no)s AND own.key = t.{key}
           LEFT JOIN places p ON p.key = own.key {joins}
           WHERE coalesce(p.place, 1) = 1 AND {which} ORDER BY 1 LIMIT %(most)s""",
        places=_places(root),
        inventory=ledger.inventory_table(root),
        table=sql.table(root.table.schema, root.table.name),
        key=sql.name(root.key),
        joins=turned.joins,
        which=which,
    )


def _twins_statement(root: Entity, turned: _Turned, unique: tuple[str, ...]) -> sql.Composable:
    """Of twins at least one is turned by merging: the others were none before."""
    values = [turned.after.get(column, sql.compose("t.{c}", c=sql.name(column))) for column in unique]
    nulls_equal = unique in root.table.null_equal_keys
    return sql.compose(
        """WITH staying AS MATERIALIZED (
               SELECT t.{key} AS key, ({merged}) AS turned, jsonb_build_array({values}) AS value
               FROM {table} t JOIN {inventory} own ON own.assessment_no = %(no)s AND own.key = t.{key}
               LEFT JOIN ({places}) p ON p.key = own.key {joins} WHERE coalesce(p.place, 1) = 1 AND {present})
           SELECT s.key::text AS key FROM staying s
           WHERE s.value IN (SELECT value FROM staying GROUP BY value HAVING count(*) > 1 AND bool_or(turned))
           ORDER BY 1 LIMIT %(most)s""",
        key=sql.name(root.key),
        merged=turned.merged,
        values=sql.join(", ", [sql.compose("({v})::text", v=value) for value in values]),
        table=sql.table(root.table.schema, root.table.name),
        inventory=ledger.inventory_table(root),
        places=_places(root),
        joins=turned.joins,
        present=sql.Text("true")
        if nulls_equal
        else sql.join(" AND ", [sql.compose("({v}) IS NOT NULL", v=value) for value in values]),
    )


def _as_column(table: Table, column: str, value: sql.Composable) -> sql.Composable:
    return sql.compose("{v}::{type}", v=value, type=sql.as_written(table.columns[column].type))

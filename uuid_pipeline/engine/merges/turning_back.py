"""Turning back: what a re-pointed row gets of what it held, when not all that it referred to comes back."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.batches.locks import BatchPlan, ids_in, rewritten
from uuid_pipeline.engine.catalog import Column, ForeignKey, Table
from uuid_pipeline.engine.installed.resolving import CANONICAL_UUID
from uuid_pipeline.engine.merges import coming_back, emptying
from uuid_pipeline.engine.merges.archive import Shelf
from uuid_pipeline.engine.natural_keys import cast_type
from uuid_pipeline.engine.store import Entity, Reference, Store
from uuid_pipeline.errors import RefusedError


def name_of(index: int) -> sql.Composable:
    """The name of one table's part of the statement."""
    return sql.name(f"back_{index}")


def was_repointed(connection: Connection, table: Table, plan: BatchPlan) -> bool:
    """Whether the batch's merges turned rows of this table."""
    return bool(
        sql.scalar(
            connection,
            """SELECT EXISTS (SELECT FROM uuid_pipeline.repointed
                              WHERE wave = %(wave)s AND ordinal BETWEEN %(first)s AND %(last)s
                                AND table_name = %(table)s AND foreign_key IS NULL)""",
            {**plan.values, "table": f"{table.schema}.{table.name}"},
        )
    )


def require_found(connection: Connection, store: Store, assessment: int) -> None:
    """Raise RefusedError when rows that were turned or emptied cannot be told apart by what is remembered of them."""
    found = """SELECT DISTINCT r.table_name FROM uuid_pipeline.repointed r
               JOIN uuid_pipeline.executions e USING (execution_id) WHERE e.assessment_no = %(no)s ORDER BY 1"""
    tables = {f"{schema}.{name}": table for (schema, name), table in store.catalog.tables.items()}
    for row in sql.rows(connection, found, {"no": assessment}):
        table = tables.get(row.table_name)
        if table is None:
            continue  # dropped: nothing is to be given back
        key = ", ".join(table.primary_key)
        if not set(table.primary_key) <= table.columns.keys() or _has_twins(connection, table):
            raise RefusedError(
                f"Refused: rows of {row.table_name} are given back what they held by the primary key that they had, "
                f"({key}), and they are told apart by it no longer. Give the table these columns, unique, for as long "
                "as the rollback takes."
            )


def _has_twins(connection: Connection, table: Table) -> bool:
    if any(set(key) <= set(table.primary_key) for key in table.unique_keys):
        return False
    statement = sql.compose(
        "SELECT EXISTS (SELECT FROM {table} GROUP BY {key} HAVING count(*) > 1)",
        table=sql.table(table.schema, table.name),
        key=sql.join(", ", [sql.name(column) for column in table.primary_key]),
    )
    return bool(sql.scalar(connection, statement))


def repoint_back(index: int, store: Store, table: Table, kept: Sequence[Shelf]) -> sql.Composable:
    """Only what still holds what the merge put there: a reference that the application changed since is its own.

    A row may have been turned for several clusters of the batch: what it held of one that stays archived stays turned.
    """
    before = _before(store, table, kept)
    return sql.compose(
        """{name} AS (UPDATE {table} t SET {assignments} FROM uuid_pipeline.repointed m
               WHERE m.wave = %(wave)s AND m.ordinal BETWEEN %(first)s AND %(last)s AND m.table_name = {label}
                 AND m.foreign_key IS NULL AND {found} AND ({changes})
               RETURNING 1)""",
        name=name_of(index),
        table=sql.table(table.schema, table.name),
        assignments=sql.join(", ", [sql.compose("{c} = {v}", c=sql.name(c), v=v) for c, v in before.items()]),
        label=sql.literal(f"{table.schema}.{table.name}"),
        found=coming_back.remembered(table),
        changes=_changes(before),
    )


def _before(store: Store, table: Table, kept: Sequence[Shelf]) -> dict[str, sql.Composable]:
    """By column, what the row ``t`` gets back of what ``m`` remembers of it."""
    columns = [column for column in table.columns.values() if _may_be_repointed(table, column.name)]
    return {
        column.name: sql.compose(
            """CASE WHEN m.before ? {n} AND (t.{c}::text IS NOT DISTINCT FROM m.after->>{n}{same})
                    THEN {value} ELSE t.{c} END""",
            c=sql.name(column.name),
            n=sql.literal(column.name),
            same=_means_the_same(store, table, column),
            value=_turned_back(store, table, column, kept),
        )
        for column in columns
    }


def _changes(before: Mapping[str, sql.Composable]) -> sql.Composable:
    changes = [sql.compose("({v})::text IS DISTINCT FROM t.{c}::text", v=v, c=sql.name(c)) for c, v in before.items()]
    return sql.join(" OR ", changes)


def followed_by(store: Store, table: Table) -> list[ForeignKey]:
    """Foreign keys of several columns to the table, of which merging turns one: (document, chunk), say."""
    return [
        key
        for key in store.catalog.foreign_keys
        if (key.target_schema, key.target) == (table.schema, table.name)
        and len(key.columns) > 1
        and emptying.holds_id(store, key)
        and any(_may_be_repointed(table, column) for column in key.target_columns)
    ]


def follow(name: sql.Composable, store: Store, table: Table, key: ForeignKey, kept: Sequence[Shelf]) -> sql.Composable:
    """Rows that were written since and refer by this key to a row ``t`` that is turned back go along with it.

    Nothing remembers them, and their columns are not turned back one by one: together they name that row.
    """
    before, source = _before(store, table, kept), store.catalog.tables[key.table_schema, key.table]
    pairs = list(zip(key.columns, key.target_columns, strict=True))
    turned = {b: before[b] for _, b in pairs if b in before}
    return sql.compose(
        """{name} AS (UPDATE {source} s SET {assignments} FROM uuid_pipeline.repointed m JOIN {table} t ON {found}
               WHERE m.wave = %(wave)s AND m.ordinal BETWEEN %(first)s AND %(last)s AND m.table_name = {label}
                 AND m.foreign_key IS NULL AND ({changes}) AND {refers}
                 AND NOT EXISTS (SELECT FROM uuid_pipeline.repointed m
                                 WHERE m.wave = %(wave)s AND m.ordinal BETWEEN %(first)s AND %(last)s
                                   AND m.table_name = {own} AND m.foreign_key IS NULL AND {remembered})
               RETURNING 1)""",
        name=name,
        source=sql.table(source.schema, source.name),
        table=sql.table(table.schema, table.name),
        assignments=sql.join(
            ", ", [sql.compose("{a} = {v}", a=sql.name(a), v=turned[b]) for a, b in pairs if b in turned]
        ),
        found=coming_back.remembered(table),
        label=sql.literal(f"{table.schema}.{table.name}"),
        changes=_changes(turned),
        refers=sql.join(" AND ", [sql.compose("s.{a} = t.{b}", a=sql.name(a), b=sql.name(b)) for a, b in pairs]),
        own=sql.literal(f"{source.schema}.{source.name}"),
        remembered=coming_back.remembered(source, "s") if source.primary_key else sql.Text("false"),
    )


def _turned_back(store: Store, table: Table, column: Column, kept: Sequence[Shelf]) -> sql.Composable:
    """What a column of ``t`` gets back of what ``m`` remembers: for what stays archived its survivor."""
    coming = coming_back.is_coming("r")
    value: sql.Composable = sql.compose("(m.before->>{n})::{t}", n=sql.literal(column.name), t=cast_type(column.type))
    moved = next((m for m in store.tables if m.table.oid == table.oid), None)
    for name, entity in moved.columns if moved else ():
        if name == column.name:
            comes = coming_back.comes_back(name, store.entity(entity), kept, coming)
            value = sql.compose("CASE WHEN {comes} THEN {was} ELSE t.{c} END", comes=comes, was=value, c=sql.name(name))
    for reference in _embedded(store, table, column):
        value = _rewritten(store, reference, column, value, coming_back.staying(store.entity(reference.entity)))
    return value


def _means_the_same(store: Store, table: Table, column: Column) -> sql.Composable:
    """Or whether a value of several ids differs from what the merge wrote only by what came of others of them since.

    A later merge may have turned one of them that stays turned; another's row may be gone, and leaves its new id there.
    """
    now: sql.Composable = sql.compose("t.{c}", c=sql.name(column.name))
    then: sql.Composable = sql.compose("(m.after->>{n})::{t}", n=sql.literal(column.name), t=cast_type(column.type))
    references = [one for one in _embedded(store, table, column) if one.form != "text"]
    for reference in references:
        stands = _stands_for(store.entity(reference.entity))
        now, then = (_rewritten(store, reference, column, value, stands) for value in (now, then))
    return sql.compose(" OR ({now})::text = ({then})::text", now=now, then=then) if references else sql.Text("")


def _stands_for(entity: Entity) -> sql.Composable:
    """For the id ``i`` of a value, where its own row is not to be found: its survivor, or the id that it had before."""
    is_one = sql.compose("i.id ~ {form}", form=sql.literal(CANONICAL_UUID)) if entity.key_type == "uuid" else None
    return sql.compose(
        """(SELECT s.source, s.goal FROM {staying} s
            UNION ALL
            SELECT i.id, m.old_id::text FROM {map} m WHERE m.assessment_no = %(no)s AND m.role = 'move'
                AND m.new_id = {id} AND m.old_id <> m.new_id
                AND NOT EXISTS (SELECT FROM {table} e WHERE e.{key} = m.new_id))""",
        staying=coming_back.staying(entity),
        map=ledger.map_table(entity),
        id=sql.compose("CASE WHEN {is_one} THEN i.id::uuid END", is_one=is_one) if is_one else sql.Text("i.id"),
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
    )


def _embedded(store: Store, table: Table, column: Column) -> list[Reference]:
    moved = [m for m in store.tables if m.table.oid == table.oid]
    return [reference for m in moved for reference in m.embedded if reference.column == column.name]


def _rewritten(
    store: Store, reference: Reference, column: Column, value: sql.Composable, goals: sql.Composable
) -> sql.Composable:
    """A value with each of its ids that is a source of ``goals`` (source, goal) replaced."""
    path = _path(store, reference)
    return sql.compose(
        """(SELECT coalesce((SELECT {rewritten} FROM {ids} i(id) CROSS JOIN LATERAL {goals} b
                             WHERE b.source = i.id AND b.goal IS NOT NULL HAVING count(*) > 0), w.was)
            FROM (SELECT {value} AS was) w)""",
        rewritten=rewritten(reference, column.type, path),
        ids=ids_in(reference, path),
        goals=goals,
        value=value,
    )


def _path(store: Store, reference: Reference) -> str:
    """The name under which a reference's path is bound."""
    return f"path_{store.references.index(reference)}"


def paths(store: Store) -> dict[str, list[str]]:
    """The values that statements of :func:`repoint_back` want bound beside the batch's."""
    return {_path(store, reference): list(reference.path) for reference in store.references}


def _may_be_repointed(table: Table, column: str) -> bool:
    kind = table.columns[column].type.split("(")[0].removesuffix("[]")
    return not table.columns[column].generated and kind in ("uuid", "text", "character varying", "json", "jsonb")

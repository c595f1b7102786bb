"""Emptying: what a foreign key without an id refers to may go to the archive; where it may be NULL, it becomes so.

Such a key leads from a row to one that hangs on a document (from a job's events to the job, by its number, say). The
row itself may be of any other document: archived along with what it refers to it would be missed. What it held is
remembered, and put back once a rollback has brought back the row that it means.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, ledger, sql
from uuid_pipeline.engine.batches.application import written_since
from uuid_pipeline.engine.batches.held import BatchPlan
from uuid_pipeline.engine.catalog import Column, ForeignKey, Table
from uuid_pipeline.engine.merges import coming_back
from uuid_pipeline.engine.merges.folding import Fold, folds
from uuid_pipeline.engine.store import MovedTable, Store
from uuid_pipeline.errors import BatchError, RefusedError

CASCADE = "c"


def make_room(connection: Connection) -> None:
    """The temporary table of the rows to empty, by the foreign key's name."""
    sql.execute(
        connection,
        """CREATE TEMPORARY TABLE IF NOT EXISTS emptied
               (relation oid, foreign_key text, at tid, ordinal bigint, PRIMARY KEY (relation, foreign_key, at))
           ON COMMIT DELETE ROWS""",
    )


def holds_id(store: Store, key: ForeignKey) -> bool:
    """Whether the foreign key holds an entity's key, so that merging turns it to the survivor."""
    place = (key.table_schema, key.table)
    return any(
        (m.table.schema, m.table.name) == place and dict(m.columns).keys() & set(key.columns) for m in store.tables
    )


def holds_id_among_others(store: Store, key: ForeignKey) -> bool:
    """Whether the foreign key has several columns and holds an entity's key: (document, chunk), say."""
    return len(key.columns) > 1 and holds_id(store, key)


def named_together(store: Store, table: Table) -> list[str]:
    """Columns of a table in foreign keys that hold an id among others."""
    found = [
        column
        for key in store.catalog.foreign_keys
        if (key.table_schema, key.table) == (table.schema, table.name) and holds_id_among_others(store, key)
        for column in key.columns
    ]
    return list(dict.fromkeys(found))


def may_empty(store: Store, key: ForeignKey) -> bool:
    """Whether rows may lose what this foreign key refers to.

    Not where the application's own delete would take the row along, where the key is part of what makes the row what it
    is, and where the row could not be found again.
    """
    table = store.catalog.tables[key.table_schema, key.table]
    part_of_identity = any(
        set(key.columns) & set(entity.spec.template.fields)
        for entity in store.entities
        if entity.table.oid == table.oid
    )
    return (
        bool(table.primary_key)
        and key.on_delete != CASCADE
        and not part_of_identity
        and all(_may_be_null(table.columns[column]) for column in key.columns)
        and not any(set(key.columns) & set(unique) for unique in table.null_equal_keys)
    )


def _may_be_null(column: Column) -> bool:
    """What a CHECK would say of it is not known."""
    return not column.not_null and not column.generated and not column.checked


def _may_lose_rows(store: Store, moved: MovedTable) -> bool:
    """Whether a row may have no place once its ids are turned: by a unique key, a CHECK, a foreign key of several
    columns, or where what it must refer to goes with nothing in its place."""
    ids = {column for column, _ in moved.columns}
    of_children = {column for column, entity in moved.columns if store.entity(entity).parent is not None}
    return (
        moved.entity is not None
        or any(ids & set(key) for key in moved.table.unique_keys)
        or any(moved.table.columns[column].checked for column in ids)
        or any(moved.table.columns[column].not_null for column in of_children)
        or bool(named_together(store, moved.table))
    )


def touched_by_merging(store: Store) -> tuple[list[Table], list[tuple[Table, tuple[str, ...]]]]:
    """Tables of which merging may archive rows, and those of which it may empty a foreign key to one of these."""
    displaced = {moved.table.oid: moved.table for moved in store.tables if _may_lose_rows(store, moved)}
    emptied: dict[tuple[int, str], tuple[Table, tuple[str, ...]]] = {}
    count = -1
    while count != len(displaced):
        count = len(displaced)
        for key in store.catalog.foreign_keys:
            target = store.catalog.tables.get((key.target_schema, key.target))
            if target is None or target.oid not in displaced or holds_id(store, key):
                continue
            source = store.catalog.tables[key.table_schema, key.table]
            if may_empty(store, key):
                emptied[source.oid, key.name] = (source, key.columns)
            else:
                displaced[source.oid] = source
    return list(displaced.values()), list(emptied.values())


def hang_together(store: Store) -> bool:
    """Whether rows that merging may archive are referred to by a foreign key that holds no id.

    Such rows lead from one document to another without any id.
    """
    displaced, _ = touched_by_merging(store)
    places = {(table.schema, table.name) for table in displaced}
    return any(
        (key.target_schema, key.target) in places and not holds_id(store, key) for key in store.catalog.foreign_keys
    )


def refers(key: ForeignKey) -> sql.Composable:
    """Whether the row ``s`` refers by this foreign key to the row ``t``."""
    pairs = zip(key.columns, key.target_columns, strict=True)
    return sql.join(" AND ", [sql.compose("s.{a} = t.{b}", a=sql.name(a), b=sql.name(b)) for a, b in pairs])


def note(connection: Connection, key: ForeignKey, source: Table, target: Table) -> None:
    """Note, and lock, the rows that refer by this foreign key to a displaced row."""
    statement = sql.compose(
        """INSERT INTO pg_temp.emptied (relation, foreign_key, at, ordinal)
           SELECT %(source)s, %(name)s, s.ctid, d.ordinal FROM pg_temp.displaced d
           JOIN {target} t ON t.ctid = d.at JOIN {table} s ON {on}
           WHERE d.relation = %(target)s FOR UPDATE OF s ON CONFLICT DO NOTHING""",
        target=sql.table(target.schema, target.name),
        table=sql.table(source.schema, source.name),
        on=refers(key),
    )
    sql.execute(connection, statement, {"source": source.oid, "target": target.oid, "name": key.name})


@dataclass(frozen=True)
class Emptied:
    """What emptying takes from a moved table's digest, before less after, with ids that an earlier batch had moved read
    back; and how many of the rows the application had written since the execution began: they show our write alone
    afterwards.
    """

    taken: int = 0
    touched: int = 0


def empty(connection: Connection, store: Store, plan: BatchPlan) -> dict[str, Emptied]:
    """Empty what was noted, remembering it; returns what came of it by moved table.

    First of what a merge writes: afterwards no row refers to one that goes. Raises BatchError when other rows were
    written than were remembered.
    """
    noted = {
        (row.relation, row.foreign_key)
        for row in sql.rows(connection, "SELECT DISTINCT relation, foreign_key FROM pg_temp.emptied")
    }
    fold_of = {fold.held.moved.table.oid: fold for fold in folds(store)}
    emptied: dict[str, Emptied] = {}
    for key in store.catalog.foreign_keys:
        table = store.catalog.tables[key.table_schema, key.table]
        if (table.oid, key.name) not in noted:
            continue
        fold = fold_of.get(table.oid)
        if fold is not None:
            name = fingerprint.qualified(fold.held.moved)
            so_far, more = emptied.get(name, Emptied()), _emptied(connection, store, fold, key, plan)
            emptied[name] = Emptied(so_far.taken + more.taken, so_far.touched + more.touched)
        remembered = _remember(connection, table, fold, key, plan)
        written, as_expected = _write(connection, table, fold, key)
        # A trigger that is to fire may change more of a row, and is meant to.
        as_expected = as_expected or "fire" in store.spec.triggers.values()
        if remembered != written or not as_expected:
            raise BatchError(
                f"A batch was rolled back: of {remembered} rows of {table.name} whose {key.name} was to be emptied, "
                f"and nothing else, {written} were{'' if as_expected else ', and changed in more'}. Look at the "
                "triggers and policies of this table."
            )
    return emptied


# A row that goes to the archive goes as it is.
_NOTED = """
e.relation = %(oid)s AND e.foreign_key = %(foreign_key)s
AND NOT EXISTS (SELECT FROM pg_temp.displaced x WHERE x.relation = e.relation AND x.at = e.at)
"""


def _of(table: Table, key: ForeignKey) -> dict[str, object]:
    return {"oid": table.oid, "foreign_key": key.name}


def _nulls(table: Table, key: ForeignKey) -> dict[str, sql.Composable]:
    return {c: sql.compose("NULL::{type}", type=sql.as_written(table.columns[c].type)) for c in key.columns}


def _emptied(connection: Connection, store: Store, fold: Fold, key: ForeignKey, plan: BatchPlan) -> Emptied:
    moved = fold.held.moved
    columns = list(moved.table.columns.values())
    back = fingerprint.read_back(store, moved, fingerprint.id_columns(moved), "was", fingerprint.MOVED_BEFORE)
    statement = sql.compose(
        """SELECT coalesce(sum({was}), 0) - coalesce(sum({becomes}), 0), count(*) FILTER (WHERE {written})
           FROM pg_temp.emptied e JOIN {table} t ON t.ctid = e.at {joins} WHERE {noted}""",
        was=fingerprint.row_digest(columns, back.mapped, "t"),
        becomes=fingerprint.row_digest(columns, back.mapped | _nulls(moved.table, key), "t"),
        written=written_since("t"),
        table=fold.held.table,
        joins=back.joins,
        noted=sql.Text(_NOTED),
    )
    snapshot = ledger.first_snapshot(connection, plan.execution_id)
    values = {**plan.values, "maps": [plan.assessment_no], "snapshot": snapshot, **_of(moved.table, key)}
    taken, touched = sql.rows(connection, statement, values | back.values)[0]
    return Emptied(int(taken), int(touched))


def _remember(connection: Connection, table: Table, fold: Fold | None, key: ForeignKey, plan: BatchPlan) -> int:
    """Under the primary key that the row will have after the merge, as what is turned is remembered; ``after``: the one
    that it had, under which a rollback may find it again."""
    own_key = [sql.compose("{n}, t.{c}", n=sql.literal(c), c=sql.name(c)) for c in table.primary_key]
    row_key = [
        sql.compose("{n}, {value}", n=sql.literal(column), value=fold.after(column)) for column in table.primary_key
    ] if fold else own_key  # fmt: skip
    before = [sql.compose("{n}, t.{c}::text", n=sql.literal(c), c=sql.name(c)) for c in key.columns]
    statement = sql.compose(
        """INSERT INTO uuid_pipeline.repointed
               (execution_id, wave, ordinal, table_name, row_key, before, after, foreign_key)
           SELECT %(execution)s, %(wave)s, e.ordinal, %(table)s, jsonb_build_object({row_key}),
                  jsonb_build_object({before}), jsonb_build_object({own_key}), e.foreign_key
           FROM pg_temp.emptied e JOIN {source} t ON t.ctid = e.at {turned} WHERE {noted}""",
        row_key=sql.join(", ", row_key),
        own_key=sql.join(", ", own_key),
        before=sql.join(", ", before),
        source=sql.table(table.schema, table.name),
        turned=sql.compose("LEFT JOIN {fold} f ON f.at = t.ctid", fold=fold.relation) if fold else sql.Text(""),
        noted=sql.Text(_NOTED),
    )
    label = f"{table.schema}.{table.name}"
    return sql.execute(connection, statement, {**plan.values, **_of(table, key), "table": label}).rowcount


def _write(connection: Connection, table: Table, fold: Fold | None, key: ForeignKey) -> tuple[int, bool]:
    """Empty the key; what else was noted of these rows is told their new places.

    Returns how many rows that was, and whether they are what they were but for the key.
    """
    notes: list[tuple[sql.Composable, LiteralString]] = [
        (sql.Text("pg_temp.emptied"), "AND n.relation = %(oid)s AND n.foreign_key <> %(foreign_key)s")
    ]
    notes += [(fold.relation, "")] if fold else []
    follow = [
        sql.compose(
            "{name} AS (UPDATE {note} n SET at = done.now FROM done WHERE n.at = done.was {which})",
            name=sql.name(f"followed_{index}"),
            note=note_of,
            which=sql.Text(which),
        )
        for index, (note_of, which) in enumerate(notes)
    ]
    columns = list(table.columns.values())
    statement = sql.compose(
        """WITH done AS (UPDATE {table} t SET {nulls} FROM pg_temp.emptied e WHERE t.ctid = e.at AND {noted}
                         RETURNING e.at AS was, t.ctid AS now, {written} AS d),
           {follow}
           SELECT (SELECT count(*) FROM done),
                  -- Every part of a statement reads what there was before it.
                  (SELECT sum({wanted}) FROM pg_temp.emptied e JOIN {table} t ON t.ctid = e.at WHERE {noted})
                  IS NOT DISTINCT FROM (SELECT sum(d) FROM done)""",
        table=sql.table(table.schema, table.name),
        nulls=sql.join(", ", [sql.compose("{c} = NULL", c=sql.name(column)) for column in key.columns]),
        noted=sql.Text(_NOTED),
        follow=sql.join(", ", follow),
        written=fingerprint.row_digest(columns, {}, "t"),
        wanted=fingerprint.row_digest(columns, _nulls(table, key), "t"),
    )
    written, as_expected = sql.rows(connection, statement, _of(table, key))[0]
    return int(written), bool(as_expected)


def fill(connection: Connection, store: Store, plan: BatchPlan) -> None:
    """Put back what rows referred to, where it is there again and the application has not filled it since."""
    remembered = {(row.table_name, row.foreign_key) for row in sql.rows(connection, _REMEMBERED, plan.values)}
    for key in _keys(store, remembered):
        sql.execute(connection, _filled(store.catalog.tables[key.table_schema, key.table], key), plan.values)
    sql.execute(connection, _FORGET, plan.values)


# Each key of this assessment's batches with the columns that it emptied; a table is named as "schema.table".
_EMPTIED = """
SELECT r.table_name, r.foreign_key, array_agg(DISTINCT k.name) AS columns
FROM uuid_pipeline.repointed r JOIN uuid_pipeline.executions e USING (execution_id)
CROSS JOIN LATERAL jsonb_object_keys(r.before) k(name)
WHERE e.assessment_no = %(no)s AND r.foreign_key IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2
"""


def require_keys(connection: Connection, store: Store, assessment: int) -> None:
    """Raise RefusedError when a key that was emptied stands no longer under its name, and its columns do."""
    keys = {(f"{key.table_schema}.{key.table}", key.name) for key in store.catalog.foreign_keys}
    tables = {f"{schema}.{name}": table for (schema, name), table in store.catalog.tables.items()}
    missing = [
        f"{row.foreign_key} of {row.table_name} ({', '.join(row.columns)})"
        for row in sql.rows(connection, _EMPTIED, {"no": assessment})
        if (row.table_name, row.foreign_key) not in keys
        and row.table_name in tables
        and set(row.columns) <= tables[row.table_name].columns.keys()
    ]
    if missing:
        raise RefusedError(
            f"Refused: merging emptied foreign keys that stand no longer under their names: {'; '.join(missing)}. By "
            "them rows are given back what they held. Put them back (NOT VALID is enough), or rename them back, for as "
            "long as the rollback takes."
        )


_REMEMBERED = """
SELECT DISTINCT table_name, foreign_key FROM uuid_pipeline.repointed
WHERE wave = %(wave)s AND ordinal BETWEEN %(first)s AND %(last)s AND foreign_key IS NOT NULL
"""
_FORGET = """
DELETE FROM uuid_pipeline.repointed
WHERE wave = %(wave)s AND ordinal BETWEEN %(first)s AND %(last)s AND foreign_key IS NOT NULL
"""


def _keys(store: Store, remembered: Iterable[tuple[str, str]]) -> list[ForeignKey]:
    wanted = set(remembered)
    return [k for k in store.catalog.foreign_keys if (f"{k.table_schema}.{k.table}", k.name) in wanted]


def _found_again(table: Table) -> sql.Composable:
    """Whether the row ``t`` is the one that was emptied: under the key that it had, else under that of the merge.

    Its own key may have been turned back by now, and another row may have come back to the key of the merge.
    """
    own, other = (
        sql.join(
            " AND ",
            [
                sql.compose("{r}.{c} = (m.after->>{n})::{t}", r=sql.Text(row), c=sql.name(c), n=sql.literal(c),
                            t=sql.as_written(table.columns[c].type))
                for c in table.primary_key
            ],
        )
        for row in ("t", "o")
    )  # fmt: skip
    return sql.compose(
        "({own} OR ({now} AND NOT EXISTS (SELECT FROM {table} o WHERE {other})))",
        own=own,
        now=coming_back.remembered(table),
        table=sql.table(table.schema, table.name),
        other=other,
    )


def _filled(table: Table, key: ForeignKey) -> sql.Composable:
    held = {
        c: sql.compose("(m.before->>{n})::{t}", n=sql.literal(c), t=sql.as_written(table.columns[c].type))
        for c in key.columns
    }
    there = [
        sql.compose("p.{b} = {held}", b=sql.name(b), held=held[a])
        for a, b in zip(key.columns, key.target_columns, strict=True)
    ]
    return sql.compose(
        """UPDATE {table} t SET {assignments} FROM uuid_pipeline.repointed m
           WHERE m.wave = %(wave)s AND m.ordinal BETWEEN %(first)s AND %(last)s AND m.foreign_key = {name}
             AND m.table_name = {label} AND {found} AND {empty} AND EXISTS (SELECT FROM {target} p WHERE {there})""",
        table=sql.table(table.schema, table.name),
        assignments=sql.join(", ", [sql.compose("{c} = {v}", c=sql.name(c), v=value) for c, value in held.items()]),
        name=sql.literal(key.name),
        label=sql.literal(f"{table.schema}.{table.name}"),
        found=_found_again(table),
        empty=sql.join(" AND ", [sql.compose("t.{c} IS NULL", c=sql.name(c)) for c in key.columns]),
        target=sql.table(key.target_schema, key.target),
        there=sql.join(" AND ", there),
    )

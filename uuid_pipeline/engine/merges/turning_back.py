"""Turning back: what a re-pointed row gets of what it held, when not all that it referred to comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.batches.application import written_since
from uuid_pipeline.engine.batches.held import BatchPlan
from uuid_pipeline.engine.batches.locks import wait_briefly
from uuid_pipeline.engine.catalog import Column, ForeignKey, Table
from uuid_pipeline.engine.embedded_ids import GOALS_OF_B, ids_in, rewritten
from uuid_pipeline.engine.installed.resolving import CANONICAL_UUID
from uuid_pipeline.engine.merges import coming_back, emptying
from uuid_pipeline.engine.merges.archive import Shelf
from uuid_pipeline.engine.store import Entity, Reference, Store
from uuid_pipeline.errors import RefusedError


def name_of(index: int) -> sql.Composable:
    """The name of one table's part of the statement."""
    return sql.name(f"back_{index}")


def repointed_tables(connection: Connection, store: Store, plan: BatchPlan) -> list[Table]:
    """The tables of which the batch's merges turned rows."""
    found = """SELECT DISTINCT table_name FROM uuid_pipeline.repointed
               WHERE wave = %(wave)s AND ordinal BETWEEN %(first)s AND %(last)s AND foreign_key IS NULL"""
    turned = {row.table_name for row in sql.rows(connection, found, plan.values)}
    return [table for (schema, name), table in store.catalog.tables.items() if f"{schema}.{name}" in turned]


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


def _repoint_back(index: int, store: Store, table: Table, kept: Sequence[Shelf]) -> sql.Composable:
    """Only what still holds what the merge put there: a reference that the application changed since is its own.

    A row may have been turned for several clusters of the batch: what it held of one that stays archived stays turned.
    """
    before = _before(store, table, kept)
    return sql.compose(
        """{name} AS (UPDATE {table} t SET {assignments} FROM uuid_pipeline.repointed m
               WHERE {remembered} AND ({changes}) RETURNING 1)""",
        name=name_of(index),
        table=sql.table(table.schema, table.name),
        assignments=sql.join(", ", [sql.compose("{c} = {v}", c=sql.name(c), v=v) for c, v in before.items()]),
        remembered=_remembered(table),
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


@dataclass(frozen=True)
class _Turning:
    """A table with rows to turn back, and its foreign keys of several columns to tables that come before it."""

    table: Table
    keys: tuple[ForeignKey, ...]


def _hangs_together(store: Store, repointed: Sequence[Table]) -> bool:
    """Whether rows may name one of these tables by a foreign key of several columns of which merging turns one."""
    return any(_naming(store, table) for table in repointed)


def _naming(store: Store, table: Table) -> list[ForeignKey]:
    """Foreign keys of several columns to the table that hold an id: (document, chunk), say."""
    return [
        key
        for key in store.catalog.foreign_keys
        if (key.target_schema, key.target) == (table.schema, table.name) and emptying.holds_id_among_others(store, key)
    ]


def _in_order(store: Store, repointed: Sequence[Table]) -> list[_Turning]:
    """The tables, and all that name them in their turn, each after those that it names; a circle is cut somewhere."""
    tables = {table.oid: table for table in repointed}
    while True:
        sources = [store.catalog.tables[k.table_schema, k.table] for t in tables.values() for k in _naming(store, t)]
        if all(source.oid in tables for source in sources):
            break
        tables |= {source.oid: source for source in sources}
    keys = {oid: [key for t in tables.values() for key in _naming(store, t) if _is_of(key, tables[oid])]
            for oid in tables}  # fmt: skip
    ordered: list[_Turning] = []
    while tables:
        placed = {(turning.table.schema, turning.table.name) for turning in ordered}
        free = next(
            (oid for oid in tables if all((k.target_schema, k.target) in placed for k in keys[oid])), next(iter(tables))
        )
        known = tuple(key for key in keys[free] if (key.target_schema, key.target) in placed)
        ordered.append(_Turning(tables.pop(free), known))
    return ordered


def _is_of(key: ForeignKey, table: Table) -> bool:
    return (key.table_schema, key.table) == (table.schema, table.name)


def turned(store: Store, repointed: Sequence[Table], kept: Sequence[Shelf]) -> list[sql.Composable]:
    """Parts of a WITH list that turn rows of these tables back; part n is called ``name_of(n)``."""
    if _hangs_together(store, repointed):
        return _turn_together(store, repointed, kept)
    # Where nothing hangs together, one UPDATE a table does it.
    return [_repoint_back(index, store, table, kept) for index, table in enumerate(repointed)]


def hold(connection: Connection, store: Store, repointed: Sequence[Table], plan: BatchPlan) -> None:
    """Lock the rows that :func:`turned` finds by their places, those that others name before these.

    Of a row that somebody writes to meanwhile the place is another one when the statement comes to it. Raises the
    driver's 55P03 when a lock is not had in time.
    """
    if not _hangs_together(store, repointed):
        return  # rows are found by their keys
    order = _in_order(store, repointed)
    places = _places(order)
    rows: list[sql.Composable] = []
    for index, turning in enumerate(order):
        candidates = _candidates(turning, [_rows(places[key.target_schema, key.target]) for key in turning.keys])
        rows.append(sql.compose("{rows}(at) AS ({candidates})", rows=_rows(index), candidates=candidates))
        # A lock that was waited for is kept, though the row has another place then and is not returned.
        statement = sql.compose(
            "WITH {rows} SELECT FROM {table} t WHERE t.ctid IN (SELECT at FROM {own}) ORDER BY t.ctid FOR UPDATE OF t",
            rows=sql.join(", ", rows),
            table=sql.table(turning.table.schema, turning.table.name),
            own=_rows(index),
        )
        wait_briefly(connection, plan)
        sql.execute(connection, statement, plan.values)


def written(connection: Connection, repointed: Sequence[Table], plan: BatchPlan) -> dict[str, int]:
    """By table how many of the rows that were turned the application has written since: once they are turned back they
    show our write alone. Locks them all: one that is waited for is looked at as it is then."""
    wait_briefly(connection, plan)
    snapshot = ledger.first_snapshot(connection, plan.execution_id)
    counts = {f"{t.schema}.{t.name}": _written(t) for t in repointed}
    return {
        name: int(sql.scalar(connection, statement, {**plan.values, "snapshot": snapshot}))
        for name, statement in counts.items()
    }


def _written(table: Table) -> sql.Composable:
    return sql.compose(
        """SELECT count(*) FILTER (WHERE x.written) FROM (
               SELECT {written} AS written FROM uuid_pipeline.repointed m JOIN {table} t ON {remembered}
               FOR NO KEY UPDATE OF t) x""",
        table=sql.table(table.schema, table.name),
        remembered=_remembered(table),
        written=written_since("t"),
    )


def _rows(index: int) -> sql.Composable:
    return sql.name(f"rows_{index}")


def _places(order: Sequence[_Turning]) -> dict[tuple[str, str], int]:
    return {(turning.table.schema, turning.table.name): index for index, turning in enumerate(order)}


def _turn_together(store: Store, repointed: Sequence[Table], kept: Sequence[Shelf]) -> list[sql.Composable]:
    """As :func:`turned`, together with the rows that name those which are turned back.

    What a row names by a foreign key of several columns, a chunk together with its document, says what becomes of all
    of these: to where that row goes, it goes along, also where it was written since, or given another to name. Each row
    is written once: what all of them become is computed first, table by table.
    """
    order = _in_order(store, repointed)
    places = _places(order)
    parts: list[sql.Composable] = []
    for index, turning in enumerate(order):
        table, before = turning.table, _before(store, turning.table, kept)
        values = [_named(store, turning, column, value) for column, value in before.items()]
        changed = [
            sql.compose("x.{n}::text IS DISTINCT FROM x.{o}::text", n=_new(table, column), o=_old(table, column))
            for column in before
        ]
        becomes = sql.compose(
            """{becomes} AS (SELECT x.* FROM (
                   SELECT t.ctid AS at, {values}, {olds}
                   FROM ({candidates}) c(at) JOIN {table} t ON t.ctid = c.at
                   LEFT JOIN uuid_pipeline.repointed m ON {remembered} {targets}) x WHERE {changed})""",
            becomes=_becomes(index),
            values=sql.join(", ", values),
            olds=sql.join(", ", [sql.compose("t.{c} AS {o}", c=sql.name(c), o=_old(table, c)) for c in before]),
            candidates=_candidates(turning, [_becomes(places[key.target_schema, key.target]) for key in turning.keys]),
            table=sql.table(table.schema, table.name),
            remembered=_remembered(table),
            targets=sql.join(" ", [_target(n, key, places) for n, key in enumerate(turning.keys)]),
            changed=sql.join(" OR ", changed),
        )
        write = sql.compose(
            "{name} AS (UPDATE {table} t SET {assignments} FROM {becomes} b WHERE t.ctid = b.at RETURNING 1)",
            name=name_of(index),
            table=sql.table(table.schema, table.name),
            assignments=sql.join(
                ", ", [sql.compose("{c} = b.{n}", c=sql.name(column), n=_new(table, column)) for column in before]
            ),
            becomes=_becomes(index),
        )
        parts.append(sql.join(", ", [becomes, write]))
    return parts


def _becomes(index: int) -> sql.Composable:
    return sql.name(f"becomes_{index}")


def _new(table: Table, column: str) -> sql.Composable:
    """The name of what becomes of a column: by its place, since names of ours before theirs might be cut."""
    return sql.name(f"new_{list(table.columns).index(column)}")


def _old(table: Table, column: str) -> sql.Composable:
    return sql.name(f"old_{list(table.columns).index(column)}")


def _remembered(table: Table) -> sql.Composable:
    return sql.compose(
        """(m.wave = %(wave)s AND m.ordinal BETWEEN %(first)s AND %(last)s AND m.table_name = {label}
            AND m.foreign_key IS NULL AND {found})""",
        label=sql.literal(f"{table.schema}.{table.name}"),
        found=coming_back.remembered(table) if table.primary_key else sql.Text("false"),
    )


def _candidates(turning: _Turning, named: Sequence[sql.Composable]) -> sql.Composable:
    """Places of the rows that are remembered, and of those that name one of the rows at ``named``, by key of the
    table."""
    table = sql.table(turning.table.schema, turning.table.name)
    found = [
        sql.compose(
            "SELECT t.ctid FROM uuid_pipeline.repointed m JOIN {table} t ON {remembered}",
            table=table,
            remembered=_remembered(turning.table),
        )
    ]
    for key, rows in zip(turning.keys, named, strict=True):
        found.append(
            sql.compose(
                "SELECT t.ctid FROM {rows} v JOIN {target} p ON p.ctid = v.at JOIN {table} t ON {refers}",
                rows=rows,
                target=sql.table(key.target_schema, key.target),
                table=table,
                refers=_refers(key, sql.Text("p")),
            )
        )
    return sql.join(" UNION ", found)


def _refers(key: ForeignKey, target: sql.Composable) -> sql.Composable:
    pairs = zip(key.columns, key.target_columns, strict=True)
    return sql.join(" AND ", [sql.compose("t.{a} = {p}.{b}", a=sql.name(a), p=target, b=sql.name(b)) for a, b in pairs])


def _target(number: int, key: ForeignKey, places: Mapping[tuple[str, str], int]) -> sql.Composable:
    """The row that ``t`` names by its key of this number, and what becomes of it."""
    place = (key.target_schema, key.target)
    return sql.compose(
        "LEFT JOIN {target} {p} ON {refers} LEFT JOIN {becomes} {v} ON {v}.at = {p}.ctid",
        target=sql.table(*place),
        p=sql.name(f"p{number}"),
        refers=_refers(key, sql.name(f"p{number}")),
        becomes=_becomes(places[place]),
        v=sql.name(f"v{number}"),
    )


def _as_merged(key: ForeignKey) -> sql.Composable:
    """Whether a merge turned what ``t`` names by this key, as ``m`` remembers, and it names that still."""
    columns = [(sql.name(column), sql.literal(column)) for column in key.columns]
    return sql.compose(
        "(coalesce({turned}, false) AND {same})",
        turned=sql.join(" OR ", [sql.compose("m.before ? {n}", n=n) for _, n in columns]),
        same=sql.join(" AND ", [sql.compose("t.{c}::text IS NOT DISTINCT FROM m.after->>{n}", c=c, n=n)
                                for c, n in columns]),
    )  # fmt: skip


def _named(store: Store, turning: _Turning, column: str, value: sql.Composable) -> sql.Composable:
    """What becomes of a column of ``t``: what is remembered where it still names what the merge made it name, else what
    becomes of the row that it names now."""
    for number, key in reversed(list(enumerate(turning.keys))):
        if column in key.columns:
            target = key.target_columns[key.columns.index(column)]
            kind = turning.table.columns[column].type
            value = sql.compose(
                """CASE WHEN {p}.ctid IS NULL OR {as_merged} THEN {otherwise}
                        WHEN {v}.at IS NULL THEN t.{c} ELSE {v}.{n}::{kind} END""",
                p=sql.name(f"p{number}"),
                v=sql.name(f"v{number}"),
                as_merged=_as_merged(key),
                otherwise=value,
                c=sql.name(column),
                n=_new(store.catalog.tables[key.target_schema, key.target], target),
                kind=sql.as_written(kind),
            )
    return sql.compose("{value} AS {n}", value=value, n=_new(turning.table, column))


def _turned_back(store: Store, table: Table, column: Column, kept: Sequence[Shelf]) -> sql.Composable:
    """What a column of ``t`` gets back of what ``m`` remembers: for what stays archived its survivor."""
    coming = coming_back.is_coming("r")
    value: sql.Composable = sql.compose(
        "(m.before->>{n})::{t}", n=sql.literal(column.name), t=sql.as_written(column.type)
    )
    moved = next((m for m in store.tables if m.table.oid == table.oid), None)
    for name, entity in moved.columns if moved else ():
        if name == column.name:
            comes = coming_back.comes_back(name, store.entity(entity), kept, coming)
            value = sql.compose("CASE WHEN {comes} THEN {was} ELSE t.{c} END", comes=comes, was=value, c=sql.name(name))
    for reference in _embedded(store, table, column):
        value = _rewritten(store, reference, value, coming_back.staying(store.entity(reference.entity)))
    return value


def _means_the_same(store: Store, table: Table, column: Column) -> sql.Composable:
    """Or whether a value of several ids differs from what the merge wrote only by what came of others of them since.

    A later merge may have turned one of them that stays turned; another's row may be gone, and leaves its new id there.
    """
    now: sql.Composable = sql.compose("t.{c}", c=sql.name(column.name))
    then: sql.Composable = sql.compose(
        "(m.after->>{n})::{t}", n=sql.literal(column.name), t=sql.as_written(column.type)
    )
    references = [one for one in _embedded(store, table, column) if one.form != "text"]
    for reference in references:
        stands = _stands_for(store.entity(reference.entity))
        now, then = (_rewritten(store, reference, value, stands) for value in (now, then))
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


def _rewritten(store: Store, reference: Reference, value: sql.Composable, goals: sql.Composable) -> sql.Composable:
    """A value with each of its ids that is a source of ``goals`` (source, goal) replaced."""
    path = _path(store, reference)
    return sql.compose(
        """(SELECT coalesce((SELECT {rewritten} FROM {ids} i(id) CROSS JOIN LATERAL {goals} b
                             WHERE b.source = i.id AND b.goal IS NOT NULL HAVING count(*) > 0), w.was)
            FROM (SELECT {value} AS was) w)""",
        rewritten=rewritten(reference, GOALS_OF_B, path),
        ids=ids_in(reference, path),
        goals=goals,
        value=value,
    )


def _path(store: Store, reference: Reference) -> str:
    """The name under which a reference's path is bound."""
    return f"path_{store.references.index(reference)}"


def paths(store: Store) -> dict[str, list[str]]:
    """The values that statements of :func:`turned` want bound beside the batch's."""
    return {_path(store, reference): list(reference.path) for reference in store.references}


def _may_be_repointed(table: Table, column: str) -> bool:
    kind = table.columns[column].type.split("(")[0].removesuffix("[]")
    return not table.columns[column].generated and kind in ("uuid", "text", "character varying", "json", "jsonb")

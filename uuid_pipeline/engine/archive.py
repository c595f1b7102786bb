"""Archives: rows that a merge displaces, whole and typed, and what each re-pointed row held before; both restorable."""

from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, ledger, sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.locks import BatchPlan, held_of
from uuid_pipeline.engine.natural_keys import cast_type
from uuid_pipeline.engine.store import Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import BatchError

# Columns of ours beside the table's own; prefixed, since the table may have any name but these.
_OURS = "uuid_pipeline_wave text NOT NULL, uuid_pipeline_ordinal bigint NOT NULL, uuid_pipeline_survivor text"


@dataclass(frozen=True)
class Shelf:
    """One table's archive for one assessment; ``columns`` are those that can be written."""

    table: Table
    relation: sql.Composable
    columns: tuple[str, ...]

    @property
    def source(self) -> sql.Composable:
        return sql.table(self.table.schema, self.table.name)

    def listed(self, alias: str) -> sql.Composable:
        """The writable columns of an alias, in their order."""
        return sql.join(", ", [sql.compose("{a}.{c}", a=sql.name(alias), c=sql.name(c)) for c in self.columns])

    def digest(self, alias: str) -> sql.Composable:
        """The hash of one row, the same for the table's row and its archived copy."""
        return fingerprint.row_digest(list(self.table.columns.values()), {}, alias)


def shelf(table: Table, assessment: int) -> Shelf:
    name = f"archive_{table.schema}_{table.name}"[:50]
    columns = tuple(column.name for column in table.columns.values() if not column.generated)
    return Shelf(table, sql.table(ledger.SCHEMA, f"{name}_{table.oid % 1000:03d}_{assessment}"), columns)


def make_shelf(connection: Connection, kept: Shelf) -> None:
    """The archive table, typed as the table is; LIKE takes no lock that an application would wait for."""
    statement = sql.compose(
        "CREATE TABLE IF NOT EXISTS {archive} ({ours}, LIKE {table} INCLUDING GENERATED)",
        archive=kept.relation,
        ours=sql.Text(_OURS),
        table=kept.source,
    )
    sql.execute(connection, statement)


def exists(connection: Connection, kept: Shelf) -> bool:
    found = "SELECT to_regclass(%(name)s) IS NOT NULL"
    return bool(sql.scalar(connection, found, {"name": sql.shown(kept.relation)}))


def shelves(connection: Connection, store: Store, assessment: int) -> list[Shelf]:
    """Archives that exist for an assessment."""
    made = [shelf(table, assessment) for table in store.catalog.tables.values() if table.kind == "r"]
    return [kept for kept in made if exists(connection, kept)]


def digests(connection: Connection, store: Store, execution: ledger.Execution) -> dict[str, tuple[int, int, int]]:
    """(rows, digest, digest of dates) by table of what this execution's archives hold now."""
    found = {}
    for kept in shelves(connection, store, execution.assessment_no):
        columns = list(kept.table.columns.values())
        statement = sql.compose(
            "SELECT count(*) AS n, coalesce(sum({all}), 0) AS digest, coalesce(sum({moments}), 0) AS dates FROM {a} a",
            all=kept.digest("a"),
            moments=fingerprint.row_digest(fingerprint.moment_columns(columns), {}, "a"),
            a=kept.relation,
        )
        row = sql.rows(connection, statement)[0]
        found[f"{kept.table.schema}.{kept.table.name}"] = (int(row.n), int(row.digest), int(row.dates))
    return found


def restorable(connection: Connection, store: Store, plan: BatchPlan) -> list[int]:
    """Ordinals of the batch with something to restore whose survivor is held and whose losers' keys are free.

    Where the application deleted the survivor, the losers stay archived: they were merged into what it deleted.
    """
    found: list[int] = []
    for root in store.roots:
        kept = shelf(root.table, plan.assessment_no)
        if not exists(connection, kept):
            continue
        statement = sql.compose(
            """SELECT a.uuid_pipeline_ordinal AS ordinal FROM {archive} a
               WHERE a.uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s
                 AND EXISTS (SELECT FROM {held} h WHERE h.ordinal = a.uuid_pipeline_ordinal)
               GROUP BY 1 HAVING NOT bool_or(EXISTS (SELECT FROM {table} t WHERE t.{key} = a.{key}))""",
            archive=kept.relation,
            held=held_of(store, root.name).relation,
            table=kept.source,
            key=sql.name(root.key),
        )
        found += [int(row.ordinal) for row in sql.rows(connection, statement, plan.values)]
    return found + _without_losing_roots(connection, store, plan)


def _without_losing_roots(connection: Connection, store: Store, plan: BatchPlan) -> list[int]:
    """Ordinals where only rows below a document were merged, so that the root's archive does not name them."""
    roots = [shelf(root.table, plan.assessment_no).relation.as_string(None) for root in store.roots]
    found: set[int] = set()
    for kept in shelves(connection, store, plan.assessment_no):
        if kept.relation.as_string(None) in roots:
            continue
        for root in store.roots:
            map_table = sql.table(ledger.SCHEMA, f"id_map_{root.name}_{plan.assessment_no}")
            statement = sql.compose(
                """SELECT DISTINCT a.uuid_pipeline_ordinal AS ordinal FROM {archive} a
                   WHERE a.uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s
                     AND EXISTS (SELECT FROM {held} h WHERE h.ordinal = a.uuid_pipeline_ordinal)
                     AND NOT EXISTS (SELECT FROM {map} m WHERE m.ordinal = a.uuid_pipeline_ordinal
                                     AND m.role = 'merge')""",
                archive=kept.relation,
                held=held_of(store, root.name).relation,
                map=map_table,
            )
            found |= {int(row.ordinal) for row in sql.rows(connection, statement, plan.values)}
    return sorted(found)


def restore(connection: Connection, store: Store, plan: BatchPlan) -> dict[str, int]:
    """Give re-pointed rows their former references and put archived rows back; rows restored by table.

    The survivors are back under their old ids already. One statement: foreign keys are checked at its end, when
    both are there; re-pointing comes first, since a restored row may want a unique key that a re-pointed one holds.

    Raises BatchError when a restored row is not the row that was archived.
    """
    ordinals = restorable(connection, store, plan)
    kept = shelves(connection, store, plan.assessment_no)
    if not ordinals:
        return {}
    repointed = [table for table in store.catalog.tables.values() if _was_repointed(connection, table, plan, ordinals)]
    updates = [_repoint_back(index, table) for index, table in enumerate(repointed)]
    after = sql.join(
        " + ", [sql.Text("0"), *[sql.compose("(SELECT count(*) FROM {b})", b=_back(i)) for i in range(len(updates))]]
    )
    inserts = [_put_back(index, one, after) for index, one in enumerate(kept)]
    results = [
        sql.compose(
            """SELECT {name} AS "table", (SELECT count(*) FROM {taken}) AS taken, count(*) AS rows,
                      (SELECT coalesce(sum(d), 0) FROM {taken}) AS archived, coalesce(sum(d), 0) AS digest
               FROM {put}""",
            name=sql.literal(f"{one.table.schema}.{one.table.name}"),
            taken=sql.name(f"taken_{index}"),
            put=sql.name(f"put_{index}"),
        )
        for index, one in enumerate(kept)
    ]
    statement = sql.compose(
        "WITH {parts} {results}", parts=sql.join(", ", [*updates, *inserts]), results=sql.join(" UNION ALL ", results)
    )
    rows = sql.rows(connection, statement, {**plan.values, "ordinals": ordinals})
    wrong = [row.table for row in rows if (row.taken, row.archived) != (row.rows, row.digest)]
    if wrong:
        raise BatchError(
            f"A batch was rolled back: rows of {', '.join(wrong)} did not come back from the archive as they went in. "
            "Look at triggers and defaults of these tables."
        )
    forget = "DELETE FROM uuid_pipeline.repointed WHERE wave = %(wave)s AND ordinal = ANY(%(ordinals)s)"
    sql.execute(connection, forget, {**plan.values, "ordinals": ordinals})
    reach("restored")
    return {row.table: int(row.rows) for row in rows if row.rows}


def _back(index: int) -> sql.Composable:
    return sql.name(f"back_{index}")


def _was_repointed(connection: Connection, table: Table, plan: BatchPlan, ordinals: list[int]) -> bool:
    return bool(
        sql.scalar(
            connection,
            """SELECT EXISTS (SELECT FROM uuid_pipeline.repointed WHERE wave = %(wave)s AND ordinal = ANY(%(ordinals)s)
                              AND table_name = %(table)s)""",
            {**plan.values, "ordinals": ordinals, "table": f"{table.schema}.{table.name}"},
        )
    )


def _repoint_back(index: int, table: Table) -> sql.Composable:
    """Only what still holds what the merge put there: a reference that the application changed since is its own."""
    found = [
        sql.compose("t.{c} = (r.row_key->>{n})::{t}", c=sql.name(c), n=sql.literal(c),
                    t=cast_type(table.columns[c].type))
        for c in table.primary_key
    ]  # fmt: skip
    assignments = [
        sql.compose(
            """{c} = CASE WHEN r.before ? {n} AND t.{c}::text IS NOT DISTINCT FROM r.after->>{n}
                          THEN (r.before->>{n})::{t} ELSE t.{c} END""",
            c=sql.name(column.name),
            n=sql.literal(column.name),
            t=cast_type(column.type),
        )
        for column in table.columns.values()
        if _may_be_repointed(table, column.name)
    ]
    return sql.compose(
        """{name} AS (UPDATE {table} t SET {assignments} FROM uuid_pipeline.repointed r
               WHERE r.wave = %(wave)s AND r.ordinal = ANY(%(ordinals)s) AND r.table_name = {label} AND {found}
               RETURNING 1)""",
        name=_back(index),
        table=sql.table(table.schema, table.name),
        assignments=sql.join(", ", assignments),
        label=sql.literal(f"{table.schema}.{table.name}"),
        found=sql.join(" AND ", found),
    )


def _may_be_repointed(table: Table, column: str) -> bool:
    kind = table.columns[column].type.split("(")[0].removesuffix("[]")
    return not table.columns[column].generated and kind in ("uuid", "text", "character varying", "json", "jsonb")


def _put_back(index: int, kept: Shelf, after: sql.Composable) -> sql.Composable:
    return sql.compose(
        """{taken} AS (DELETE FROM {archive} a WHERE a.uuid_pipeline_ordinal = ANY(%(ordinals)s)
               RETURNING a.*, {archived} AS d),
           {put} AS (INSERT INTO {table} AS p ({names}) OVERRIDING SYSTEM VALUE
               SELECT {columns} FROM {taken} x WHERE ({after}) >= 0 RETURNING {digest} AS d)""",
        taken=sql.name(f"taken_{index}"),
        put=sql.name(f"put_{index}"),
        archive=kept.relation,
        archived=kept.digest("a"),
        table=kept.source,
        names=sql.join(", ", [sql.name(column) for column in kept.columns]),
        columns=kept.listed("x"),
        after=after,
        digest=kept.digest("p"),
    )

"""Archives: rows that a merge displaces, whole and typed, and what each re-pointed row held before; both restorable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, ledger, sql
from uuid_pipeline.engine.catalog import Column, ForeignKey, Table
from uuid_pipeline.engine.locks import BatchPlan, held_of, map_part
from uuid_pipeline.engine.natural_keys import cast_type
from uuid_pipeline.engine.store import Reference, Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import BatchError, RefusedError

# Columns of ours beside the table's own; prefixed, since the table may have any name but these.
_OURS = "uuid_pipeline_wave text NOT NULL, uuid_pipeline_ordinal bigint NOT NULL, uuid_pipeline_survivor text"


@dataclass(frozen=True)
class Shelf:
    """One table's archive for one assessment; ``columns`` are those that can be written.

    ``retyped``: of these the ones whose type in the table is no longer the archive's.
    """

    table: Table
    relation: sql.Composable
    columns: tuple[Column, ...]
    retyped: frozenset[str] = frozenset()

    @property
    def source(self) -> sql.Composable:
        return sql.table(self.table.schema, self.table.name)

    @property
    def names(self) -> sql.Composable:
        """The writable columns, in their order."""
        return sql.join(", ", [sql.name(column.name) for column in self.columns])

    def listed(self, alias: str) -> sql.Composable:
        """The same of a row of the table or of the archive, as the table has them now."""
        return sql.join(", ", [self.value(column, alias) for column in self.columns])

    def digest(self, alias: str) -> sql.Composable:
        """The hash of one row, the same for the table's row and its archived copy."""
        values = {column.name: self.value(column, alias) for column in self.columns}
        return fingerprint.row_digest(list(self.columns), values, alias)

    def value(self, column: Column, alias: str) -> sql.Composable:
        value = sql.compose("{a}.{c}", a=sql.name(alias), c=sql.name(column.name))
        if column.name not in self.retyped:
            return value
        return sql.compose("{value}::{type}", value=value, type=cast_type(column.type))


def shelf(table: Table, assessment: int) -> Shelf:
    """The archive as it is made for the table as it is."""
    # The server cuts names at 63 bytes: what tells two archives apart stands at the end.
    name = f"archive_{table.schema}_{table.name}".encode()[:50].decode(errors="ignore")
    columns = tuple(column for column in table.columns.values() if not column.generated)
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
    """Archives that exist for an assessment, with the columns that they and their tables still have in common."""
    made = [shelf(table, assessment) for table in store.catalog.tables.values() if table.kind == "r"]
    return [_in_common(connection, kept) for kept in made if exists(connection, kept)]


def _in_common(connection: Connection, kept: Shelf) -> Shelf:
    now, archived = _columns(connection, kept.source), _columns(connection, kept.relation)
    columns = tuple(column for column in kept.columns if column.name in archived)
    retyped = frozenset(column.name for column in columns if archived[column.name] != now[column.name])
    return replace(kept, columns=columns, retyped=retyped)


def _columns(connection: Connection, relation: sql.Composable) -> dict[str, tuple[int, int]]:
    """The columns of a table as it is now: the oid of the type and its modifier, by name."""
    found = sql.rows(
        connection,
        """SELECT attname::text AS name, atttypid::bigint AS type, atttypmod AS modifier FROM pg_attribute
           WHERE attrelid = to_regclass(%(name)s) AND attnum > 0 AND NOT attisdropped""",
        {"name": sql.shown(relation)},
    )
    return {row.name: (row.type, row.modifier) for row in found}


def require_whole_rows(connection: Connection, made: Sequence[Shelf]) -> None:
    """Raise RefusedError when a table has got other columns since the run began: its rows were not archived whole.

    Once rows of these tables are deleted, nobody can alter them before the batch commits.
    """
    for one in made:
        if _columns(connection, one.source).keys() != one.table.columns.keys():
            raise RefusedError(
                f"Columns of {one.table.name} were changed while this run was at work, so what is merged there cannot "
                "be archived whole. The batch was rolled back; what was committed before stands. To go on, plan again "
                "(uuid-pipeline plan) and approve the new plan."
            )


def _require_defaults(connection: Connection, kept: Sequence[Shelf], ordinals: Sequence[int]) -> None:
    """Raise RefusedError when a table has got a column since that no archived row can have a value for."""
    for one in kept:
        statement = sql.compose(
            """SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
               WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped AND attnotnull AND NOT atthasdef
                 AND attidentity = '' AND attname <> ALL(%(known)s)
                 AND EXISTS (SELECT FROM {archive} WHERE uuid_pipeline_ordinal = ANY(%(ordinals)s))""",
            archive=one.relation,
        )
        known = [column.name for column in one.columns]
        missing = sql.scalar(connection, statement, {"oid": one.table.oid, "known": known, "ordinals": list(ordinals)})
        if missing:
            raise RefusedError(
                f"{one.table.name} has columns that are NOT NULL, without a default, and newer than its archived rows, "
                f"which therefore cannot come back: {missing}. Give them a default until the rollback is over (ALTER "
                "TABLE ... ALTER COLUMN ... SET DEFAULT ...), then give the same command again."
            )


def checked_keys(connection: Connection, store: Store, assessment: int) -> list[ForeignKey]:
    """The foreign keys, but plain references, of the tables that have an archive: rows may have been put back there."""
    return [key for kept in shelves(connection, store, assessment) for key in _checked_keys(connection, store, kept)]


def contents(connection: Connection, store: Store, execution: ledger.Execution) -> dict[str, tuple[int, int]]:
    """(rows, digest) by table of what this execution's archives hold now, as they hold it."""
    found = {}
    for kept in shelves(connection, store, execution.assessment_no):
        statement = sql.compose(
            "SELECT count(*) AS n, coalesce(sum({digest}), 0) AS digest FROM {archive} a",
            digest=kept.digest("a"),
            archive=kept.relation,
        )
        row = sql.rows(connection, statement)[0]
        found[f"{kept.table.schema}.{kept.table.name}"] = (int(row.n), int(row.digest))
    return found


def _restorable(connection: Connection, store: Store, plan: BatchPlan, archives: Sequence[Shelf]) -> list[int]:
    """Ordinals of the batch with something to restore whose survivor is held and whose losers' keys are free.

    Where the application deleted the survivor, the losers stay archived: they were merged into what it deleted. So do
    they where it deleted what one of them refers to, or gave another row what is unique about one; and what refers to
    such a loser in its turn.
    """
    coming = [row.ordinal for kept in archives for row in sql.rows(connection, _archived_of_batch(kept), plan.values)]
    while True:
        with_roots = _with_their_roots(connection, store, plan, archives, coming)
        found = with_roots + _without_losing_roots(connection, store, plan, archives)
        if set(coming) <= set(found):
            return found + _only_turned(connection, plan, archives)
        coming = found


def _archived_of_batch(kept: Shelf) -> sql.Composable:
    return sql.compose(
        """SELECT DISTINCT uuid_pipeline_ordinal AS ordinal FROM {archive}
           WHERE uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s""",
        archive=kept.relation,
    )


def _with_their_roots(
    connection: Connection, store: Store, plan: BatchPlan, archives: Sequence[Shelf], coming: Sequence[int]
) -> list[int]:
    """Ordinals whose archived documents may come back, while those of ``coming`` do."""
    found: list[int] = []
    for root in store.roots:
        kept = next((one for one in archives if one.table.oid == root.table.oid), None)
        if kept is None:
            continue
        there = _all_there(connection, store, kept, archives, "a", _of_ordinals)
        statement = sql.compose(
            """SELECT a.uuid_pipeline_ordinal AS ordinal FROM {archive} a
               WHERE a.uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s
                 AND EXISTS (SELECT FROM {held} h WHERE h.ordinal = a.uuid_pipeline_ordinal)
               GROUP BY 1 HAVING NOT bool_or({taken}) AND bool_and(true{there})""",
            taken=sql.join(
                " OR ", [_taken(kept, unique) for unique in [(root.key,), *_plain_unique_keys(store, root.table)]]
            ),
            there=sql.join("", there),
            archive=kept.relation,
            held=held_of(store, root.name).relation,
        )
        values = {**plan.values, "ordinals": list(coming)}
        found += [int(row.ordinal) for row in sql.rows(connection, statement, values)]
    return found


def _only_turned(connection: Connection, plan: BatchPlan, archives: Sequence[Shelf]) -> list[int]:
    """Ordinals of the batch where nothing was archived, and references were turned that held target ids early."""
    archived = [
        sql.compose(
            " AND NOT EXISTS (SELECT FROM {archive} a WHERE a.uuid_pipeline_ordinal = r.ordinal)", archive=kept.relation
        )
        for kept in archives
    ]
    statement = sql.compose(
        """SELECT DISTINCT r.ordinal FROM uuid_pipeline.repointed r
           WHERE r.wave = %(wave)s AND r.ordinal BETWEEN %(first)s AND %(last)s
             AND r.foreign_key IS NULL{archived}""",
        archived=sql.join("", archived),
    )
    return [int(row.ordinal) for row in sql.rows(connection, statement, plan.values)]


def _without_losing_roots(
    connection: Connection, store: Store, plan: BatchPlan, archives: Sequence[Shelf]
) -> list[int]:
    """Ordinals where only rows below a document were merged, so that the root's archive does not name them."""
    roots = [shelf(root.table, plan.assessment_no).relation.as_string(None) for root in store.roots]
    found: set[int] = set()
    for kept in archives:
        if kept.relation.as_string(None) in roots:
            continue
        for root in store.roots:
            map_table = map_part(root.name, plan.assessment_no)
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
    A row whose place the application has filled since stays archived: what the application wrote counts.

    A column that the table has got since has its default.

    Raises BatchError when a restored row is not the row that was archived, or is missed by one that refers to it,
    RefusedError when a new column has no default.
    """
    archives = shelves(connection, store, plan.assessment_no)
    ordinals = _restorable(connection, store, plan, archives)
    if not ordinals:
        return {}
    values = {**plan.values, "ordinals": ordinals}
    kept = _targets_first(store, archives)
    _require_defaults(connection, kept, ordinals)
    _find_coming(connection, store, kept, values)
    repointed = [table for table in store.catalog.tables.values() if _was_repointed(connection, table, plan, ordinals)]
    updates = [_repoint_back(index, table) for index, table in enumerate(repointed)]
    after = sql.join(
        " + ", [sql.Text("0"), *[sql.compose("(SELECT count(*) FROM {b})", b=_back(i)) for i in range(len(updates))]]
    )
    inserts = [_put_back(connection, store, kept, index, after) for index in range(len(kept))]
    if not updates and not inserts:
        return {}  # the tables are gone
    results = [
        sql.compose(
            """UNION ALL SELECT {name},
                      (SELECT count(*) FROM {archive} WHERE uuid_pipeline_ordinal = ANY(%(ordinals)s)),
                      (SELECT count(*) FROM {taken}), count(*),
                      (SELECT coalesce(sum({d}), 0) FROM {taken}), coalesce(sum({d}), 0)
               FROM {put}""",
            name=sql.literal(f"{one.table.schema}.{one.table.name}"),
            archive=one.relation,
            taken=sql.name(f"taken_{index}"),
            put=sql.name(f"put_{index}"),
            d=sql.name(_DIGEST),
        )
        for index, one in enumerate(kept)
    ]
    # Where nothing was archived, only the references are turned back.
    statement = sql.compose(
        """WITH {parts}
           SELECT NULL AS "table", 0 AS due, 0 AS taken, 0 AS rows, 0 AS archived, 0 AS digest WHERE false {results}""",
        parts=sql.join(", ", [*updates, *inserts]),
        results=sql.join(" ", results),
    )
    rows = sql.rows(connection, statement, values)
    wrong = [row.table for row in rows if (row.taken, row.archived) != (row.rows, row.digest)]
    if wrong:
        raise BatchError(
            f"A batch was rolled back: rows of {', '.join(wrong)} did not come back from the archive as they went in. "
            "Look at triggers and defaults of these tables."
        )
    left = {row.table: int(row.due - row.rows) for row in rows if row.due > row.rows}
    if left:
        _require_unmissed(connection, store, kept, values)
        ledger.audit(connection, "left in the archive, the application has filled their place", left)
    forget = """DELETE FROM uuid_pipeline.repointed
                WHERE wave = %(wave)s AND ordinal = ANY(%(ordinals)s) AND foreign_key IS NULL"""
    sql.execute(connection, forget, values)
    reach("restored")
    return {row.table: int(row.rows) for row in rows if row.rows}


def _require_unmissed(connection: Connection, store: Store, kept: Sequence[Shelf], values: Mapping[str, Any]) -> None:
    """A row that stays archived must not be one that a re-pointed row refers to again."""
    shelf_of = {one.table.oid: one for one in kept}
    for reference in store.references:
        entity = store.entity(reference.entity)
        one = shelf_of.get(entity.table.oid)
        if one is None or reference.form != "key":
            continue
        statement = sql.compose(
            """SELECT count(*) FROM {archive} a JOIN {table} t ON t.{column} = a.{key}
               WHERE a.uuid_pipeline_ordinal = ANY(%(ordinals)s)
                 AND NOT EXISTS (SELECT FROM {entity} e WHERE e.{key} = a.{key})""",
            archive=one.relation,
            table=sql.table(reference.table.schema, reference.table.name),
            column=sql.name(reference.column),
            key=sql.name(entity.key),
            entity=one.source,
        )
        if missed := int(sql.scalar(connection, statement, values)):
            raise BatchError(
                f"A batch was rolled back: {missed} rows of {reference.name} refer to archived rows that cannot come "
                "back, since the application has written others in their place or deleted what they refer to. Look at "
                f"the rows of {one.table.name} written since the merge, and delete them or change what is unique about "
                "them."
            )


def _targets_first(store: Store, kept: Sequence[Shelf]) -> list[Shelf]:
    """Shelves in an order in which a row's references are put back before it, as far as there is one."""
    left, ordered = list(kept), list[Shelf]()
    while left:
        free = [one for one in left if not any(link.target in left for link in _links(store, one, left))]
        ordered += free or left[:1]
        left = [one for one in left if one not in ordered]
    return ordered


@dataclass(frozen=True)
class Link:
    """Columns of a shelf's table that refer to another shelf's, by foreign key or softly."""

    columns: tuple[str, ...]
    target: Shelf
    target_columns: tuple[str, ...]


def _links(store: Store, one: Shelf, others: Sequence[Shelf]) -> list[Link]:
    shelf_of = {(other.table.schema, other.table.name): other for other in others if other != one}
    own = (one.table.schema, one.table.name)
    found = [
        Link(key.columns, shelf_of[key.target_schema, key.target], key.target_columns)
        for key in store.catalog.foreign_keys
        if (key.table_schema, key.table) == own and (key.target_schema, key.target) in shelf_of
    ]
    for reference in store.references:
        entity = store.entity(reference.entity)
        place = (entity.table.schema, entity.table.name)
        if (reference.table.schema, reference.table.name) == own and reference.form == "key" and place in shelf_of:
            found.append(Link((reference.column,), shelf_of[place], (entity.key,)))
    return found


def _back(index: int) -> sql.Composable:
    return sql.name(f"back_{index}")


def _was_repointed(connection: Connection, table: Table, plan: BatchPlan, ordinals: list[int]) -> bool:
    return bool(
        sql.scalar(
            connection,
            """SELECT EXISTS (SELECT FROM uuid_pipeline.repointed WHERE wave = %(wave)s AND ordinal = ANY(%(ordinals)s)
                              AND table_name = %(table)s AND foreign_key IS NULL)""",
            {**plan.values, "ordinals": ordinals, "table": f"{table.schema}.{table.name}"},
        )
    )


def remembered(table: Table) -> sql.Composable:
    """Whether the row ``t`` is the one that ``r`` of ``repointed`` remembers, by its primary key."""
    same = [
        sql.compose("t.{c} = (r.row_key->>{n})::{t}", c=sql.name(c), n=sql.literal(c),
                    t=cast_type(table.columns[c].type))
        for c in table.primary_key
    ]  # fmt: skip
    return sql.join(" AND ", same)


def _repoint_back(index: int, table: Table) -> sql.Composable:
    """Only what still holds what the merge put there: a reference that the application changed since is its own."""
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
               WHERE r.wave = %(wave)s AND r.ordinal = ANY(%(ordinals)s) AND r.table_name = {label}
                 AND r.foreign_key IS NULL AND {found}
               RETURNING 1)""",
        name=_back(index),
        table=sql.table(table.schema, table.name),
        assignments=sql.join(", ", assignments),
        label=sql.literal(f"{table.schema}.{table.name}"),
        found=remembered(table),
    )


def _may_be_repointed(table: Table, column: str) -> bool:
    kind = table.columns[column].type.split("(")[0].removesuffix("[]")
    return not table.columns[column].generated and kind in ("uuid", "text", "character varying", "json", "jsonb")


_DIGEST = "uuid_pipeline_digest"


def _put_back(
    connection: Connection, store: Store, kept: Sequence[Shelf], index: int, after: sql.Composable
) -> sql.Composable:
    one = kept[index]
    # A document that finds its place taken ends the batch, since re-pointed rows are to be its children again.
    links = [_present(link, kept.index(link.target)) for link in _links(store, one, kept[:index])]
    is_root = any(root.table.oid == one.table.oid for root in store.roots)
    referred = {column for other in kept for link in _links(store, other, [one]) for column in link.target_columns}
    asked = [sql.compose("p.{c}", c=sql.name(column)) for column in sorted(referred)]
    return sql.compose(
        """{put} AS (INSERT INTO {table} AS p ({names}) OVERRIDING SYSTEM VALUE
               SELECT {columns} FROM {archive} x
               WHERE x.uuid_pipeline_ordinal = ANY(%(ordinals)s) AND {coming} AND ({after}) >= 0{links}
               {on_conflict} RETURNING {returned}),
           {taken} AS (DELETE FROM {archive} a WHERE a.uuid_pipeline_ordinal = ANY(%(ordinals)s)
               AND {archived} IN (SELECT {d} FROM {put}) RETURNING {archived} AS {d})""",
        taken=sql.name(f"taken_{index}"),
        put=sql.name(f"put_{index}"),
        archive=one.relation,
        archived=one.digest("a"),
        table=one.source,
        names=one.names,
        columns=one.listed("x"),
        coming=_is_coming("x"),
        after=after,
        links=sql.join("", links),
        # The server looks for a conflict only where a key is checked at once; else the row must find its place free.
        on_conflict=sql.Text("" if is_root or _has_deferrable_key(connection, one) else "ON CONFLICT DO NOTHING"),
        returned=sql.join(", ", [sql.compose("{digest} AS {d}", digest=one.digest("p"), d=sql.name(_DIGEST)), *asked]),
        d=sql.name(_DIGEST),
    )


def _has_deferrable_key(connection: Connection, one: Shelf) -> bool:
    found = "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = %(oid)s AND indisunique AND NOT indimmediate)"
    return bool(sql.scalar(connection, found, {"oid": one.table.oid}))


def _is_of(reference: Reference, table: Table) -> bool:
    """Whether the reference is a foreign key of this table: what the server would refuse to see dangle."""
    return reference.foreign_key is not None and reference.table.oid == table.oid


def _find_coming(connection: Connection, store: Store, kept: Sequence[Shelf], values: Mapping[str, Any]) -> None:
    """Note in ``pg_temp.coming`` the archived rows of the ``ordinals`` bound that may come back.

    One whose unique key another row has does not, and one whose foreign key refers to a row that does not come back,
    and is not there, does not either; so on until none is left. The documents were judged with their ordinals.
    """
    make = """CREATE TEMPORARY TABLE IF NOT EXISTS coming (archive regclass, at tid, PRIMARY KEY (archive, at))
              ON COMMIT DELETE ROWS"""
    sql.execute(connection, make)
    sql.execute(connection, "DELETE FROM pg_temp.coming")
    for one in kept:
        fill = sql.compose(
            """INSERT INTO pg_temp.coming SELECT x.tableoid::regclass, x.ctid FROM {archive} x
               WHERE x.uuid_pipeline_ordinal = ANY(%(ordinals)s)""",
            archive=one.relation,
        )
        sql.execute(connection, fill, values)
    roots = {root.table.oid for root in store.roots}
    below = [one for one in kept if one.table.oid not in roots]
    for one in below:
        for unique in _plain_unique_keys(store, one.table):
            sql.execute(connection, _whose_place_is_taken(one, unique))
    drops = [_without_target(connection, store, one, kept) for one in below]
    while sum(sql.execute(connection, drop, values).rowcount for drop in drops):
        continue


def _whose_place_is_taken(one: Shelf, unique: Sequence[str]) -> sql.Composable:
    return sql.compose(
        """DELETE FROM pg_temp.coming c USING {archive} a
           WHERE c.archive = a.tableoid AND c.at = a.ctid AND {taken}""",
        archive=one.relation,
        taken=_taken(one, unique),
    )


def _without_target(connection: Connection, store: Store, one: Shelf, kept: Sequence[Shelf]) -> sql.Composable:
    return sql.compose(
        """DELETE FROM pg_temp.coming c USING {archive} x
           WHERE c.archive = x.tableoid AND c.at = x.ctid AND NOT (true{there})""",
        archive=one.relation,
        there=sql.join("", _all_there(connection, store, one, kept, "x", lambda _: _is_coming("r"))),
    )


def _is_coming(alias: str) -> sql.Composable:
    """Whether the archived row of this alias is noted as one that comes back."""
    return sql.compose(
        "EXISTS (SELECT FROM pg_temp.coming n WHERE n.archive = {a}.tableoid AND n.at = {a}.ctid)", a=sql.name(alias)
    )


def _of_ordinals(_other: Shelf) -> sql.Composable:
    return sql.Text("r.uuid_pipeline_ordinal = ANY(%(ordinals)s)")


Coming = Callable[[Shelf], sql.Composable]


def _all_there(
    connection: Connection, store: Store, one: Shelf, kept: Sequence[Shelf], alias: str, coming: Coming
) -> list[sql.Composable]:
    """Whether each row that an archived row refers to is there or may come back, as further conditions.

    ``coming`` says of a shelf which of its rows ``r`` may.
    """
    there = [_is_there(store, r, kept, alias, coming) for r in store.references if _is_of(r, one.table)]
    return there + [_is_there_too(store, key, kept, alias, coming) for key in _checked_keys(connection, store, one)]


def _is_there(store: Store, reference: Reference, kept: Sequence[Shelf], alias: str, coming: Coming) -> sql.Composable:
    """Whether what an archived row refers to is in its table or may come back too, as a further condition.

    The application may have deleted it since.
    """
    entity = store.entity(reference.entity)
    held = sql.compose("{a}.{c}", a=sql.name(alias), c=sql.name(reference.column))
    archived = [
        sql.compose(
            " OR EXISTS (SELECT FROM {archive} r WHERE {coming} AND r.{key} = {held})",
            archive=other.relation,
            coming=coming(other),
            key=sql.name(entity.key),
            held=held,
        )
        for other in kept
        if other.table.oid == entity.table.oid
    ]
    return sql.compose(
        " AND ({held} IS NULL OR EXISTS (SELECT FROM {table} l WHERE l.{key} = {held}){archived})",
        held=held,
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
        archived=sql.join("", archived),
    )


def _ids_of(store: Store, table: Table) -> set[str]:
    """The columns of a table that hold ids which move."""
    return {column for moved in store.tables if moved.table.oid == table.oid for column, _ in moved.columns}


def _checked_keys(connection: Connection, store: Store, kept: Shelf) -> list[ForeignKey]:
    """A table's foreign keys but those of one column that hold an id, which are references.

    Those that are not validated may have dangled before anybody came; where this role may not look, the server does.
    """
    ids = _ids_of(store, kept.table)
    readable = "SELECT has_table_privilege(to_regclass(%(table)s), 'SELECT')"
    return [
        key
        for key in store.catalog.foreign_keys
        if (key.table_schema, key.table) == (kept.table.schema, kept.table.name)
        and key.validated
        and (len(key.columns) > 1 or not ids & set(key.columns))
        and set(key.columns) <= {column.name for column in kept.columns}
        and sql.scalar(connection, readable, {"table": sql.shown(sql.table(key.target_schema, key.target))})
    ]


def _is_there_too(store: Store, key: ForeignKey, kept: Sequence[Shelf], alias: str, coming: Coming) -> sql.Composable:
    """As :func:`_is_there`, for a foreign key of several columns or one that holds no id."""
    row = sql.name(alias)
    pairs = [(sql.name(c), sql.name(t)) for c, t in zip(key.columns, key.target_columns, strict=True)]
    null = sql.join(" OR ", [sql.compose("{row}.{c} IS NULL", row=row, c=column) for column, _ in pairs])
    same = sql.join(
        " AND ", [sql.compose("r.{t} = {row}.{c}", t=target, row=row, c=column) for column, target in pairs]
    )
    archived = [
        sql.compose(
            " OR EXISTS (SELECT FROM {archive} r WHERE {coming} AND {same})",
            archive=other.relation,
            coming=coming(other),
            same=same,
        )
        for other in kept
        if (other.table.schema, other.table.name) == (key.target_schema, key.target)
    ]
    return sql.compose(
        " AND ({null} OR EXISTS (SELECT FROM {target} r WHERE {same}){archived}{turned})",
        null=null,
        target=sql.table(key.target_schema, key.target),
        same=same,
        archived=sql.join("", archived),
        turned=_turned_back(store, key, alias),
    )


def _turned_back(store: Store, key: ForeignKey, alias: str) -> sql.Composable:
    """Or whether a row will be as the key says, once it is re-pointed, which happens with the archived row's return."""
    target = store.catalog.tables.get((key.target_schema, key.target))
    if target is None or not target.primary_key or not _ids_of(store, target) & set(key.target_columns):
        return sql.Text("")
    same = [
        sql.compose(
            "CASE WHEN r.before ? {n} THEN r.before->>{n} ELSE t.{t}::text END = {row}.{c}::text",
            n=sql.literal(t),
            t=sql.name(t),
            row=sql.name(alias),
            c=sql.name(c),
        )
        for c, t in zip(key.columns, key.target_columns, strict=True)
    ]
    return sql.compose(
        """ OR EXISTS (SELECT FROM {target} t JOIN uuid_pipeline.repointed r ON {remembered}
                       WHERE r.wave = %(wave)s AND r.ordinal = ANY(%(ordinals)s) AND r.table_name = {label}
                         AND r.foreign_key IS NULL AND {same})""",
        target=sql.table(target.schema, target.name),
        remembered=remembered(target),
        label=sql.literal(f"{target.schema}.{target.name}"),
        same=sql.join(" AND ", same),
    )


def _plain_unique_keys(store: Store, table: Table) -> list[tuple[str, ...]]:
    """The unique keys of a table that hold no id."""
    return [key for key in table.unique_keys if not _ids_of(store, table) & set(key)]


def _taken(kept: Shelf, unique: Sequence[str]) -> sql.Composable:
    """Whether another row has what is unique about the archived row ``a``."""
    there = {column.name for column in kept.columns}
    if not set(unique) <= there:
        return sql.Text("false")
    equal: LiteralString = (
        "t.{c} IS NOT DISTINCT FROM {a}" if tuple(unique) in kept.table.null_equal_keys else "t.{c} = {a}"
    )
    same = [
        sql.compose(equal, c=sql.name(column.name), a=kept.value(column, "a"))
        for column in kept.columns
        if column.name in unique
    ]
    return sql.compose("EXISTS (SELECT FROM {table} t WHERE {same})", table=kept.source, same=sql.join(" AND ", same))


def _present(link: Link, index: int) -> sql.Composable:
    """Whether what row ``x`` refers to does not stay archived."""

    pairs = list(zip(link.columns, link.target_columns, strict=True))
    referred, put, live = (
        sql.join(" AND ", [sql.compose(text, c=sql.name(column), t=sql.name(target)) for column, target in pairs])
        for text in ("r.{t} = x.{c}", "q.{t} = r.{t}", "l.{t} = r.{t}")
    )
    return sql.compose(
        """ AND NOT EXISTS (SELECT FROM {archive} r WHERE r.uuid_pipeline_ordinal = ANY(%(ordinals)s) AND {referred}
                            AND NOT EXISTS (SELECT FROM {put} q WHERE {same_put})
                            AND NOT EXISTS (SELECT FROM {table} l WHERE {same_live}))""",
        archive=link.target.relation,
        referred=referred,
        put=sql.name(f"put_{index}"),
        table=link.target.source,
        same_put=put,
        same_live=live,
    )

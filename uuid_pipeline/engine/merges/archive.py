"""Archives: rows that a merge displaces, whole and typed; restorable as long as their execution is."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, ledger, ledger_rights, places, sql
from uuid_pipeline.engine.catalog import Column, Table
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError

# Columns of ours beside the table's own; prefixed, since the table may have any name but these.
_OURS = "uuid_pipeline_wave text NOT NULL, uuid_pipeline_ordinal bigint NOT NULL, uuid_pipeline_survivor text"


# Of a table's 1,600 columns at most those are left to the table.
MAX_COLUMNS = 1600 - len(_OURS.split(","))


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
        return sql.compose("{value}::{type}", value=value, type=sql.as_written(column.type))


def name_of(table: Table) -> str:
    """What the names of a table's archives begin with; the number of the assessment follows.

    The server cuts names at 63 bytes: what tells two archives apart stands at the end. It is made of names alone: a
    store that was dumped and restored must find its archives, and there a table has another number.
    """
    readable = f"archive_{table.schema}_{table.name}".encode()[:47].decode(errors="ignore")
    mark = hashlib.sha256(json.dumps([table.schema, table.name]).encode()).hexdigest()[:6]
    return f"{readable}_{mark}_"


def shelf(table: Table, assessment: int) -> Shelf:
    """The archive as it is made for the table as it is."""
    columns = tuple(column for column in table.columns.values() if not column.generated)
    return Shelf(table, sql.table(ledger.SCHEMA, f"{name_of(table)}{assessment}"), columns)


def make_shelf(connection: Connection, kept: Shelf) -> None:
    """The archive table, typed as the table is; LIKE takes no lock that an application would wait for.

    Each batch of a rollback looks for its own rows: without an index it would read what all of them have archived.
    """
    if ledger.is_table(connection, kept.relation):
        return
    statement = sql.compose(
        "CREATE TABLE {archive} ({ours}, LIKE {table} INCLUDING GENERATED)",
        archive=kept.relation,
        ours=sql.Text(_OURS),
        table=kept.source,
    )
    sql.execute(connection, statement)
    sql.execute(connection, sql.compose("CREATE INDEX ON {archive} (uuid_pipeline_ordinal)", archive=kept.relation))
    ledger_rights.keep_ours(connection, kept.relation)
    _note(connection, kept, places.read(connection, [kept.table.oid]))


def _note(connection: Connection, kept: Shelf, made_of: places.Places) -> None:
    """Write down, as the archive's comment, which column of the table each of its columns holds."""
    statement = sql.compose(
        "COMMENT ON TABLE {archive} IS {places}", archive=kept.relation, places=sql.literal(json.dumps(made_of))
    )
    sql.execute(connection, statement)


def follow_renames(connection: Connection, store: Store, assessment: int) -> None:
    """Give columns of archives the names that those of their tables have now; wants an open transaction.

    Raises RefusedError where the table is another than then, restored from a dump or made anew, and nothing tells a
    renamed column from a dropped one.
    """
    for kept in shelves(connection, store, assessment):
        then = _noted(connection, kept)
        renamed = [one for one in places.renamed(connection, then) if one.column is not None] if then else []
        if renamed:
            _rename(connection, kept, {str(one.column): str(one.column_now) for one in renamed})
            _note(connection, kept, places.read(connection, [kept.table.oid]))
        elif then is None or not places.hold(connection, then, kept.table.oid):
            _require_no_rename(connection, kept)


def _noted(connection: Connection, kept: Shelf) -> places.Places | None:
    found = "SELECT obj_description(to_regclass(%(name)s), 'pg_class')"
    text = sql.scalar(connection, found, {"name": sql.shown(kept.relation)})
    return json.loads(text) if text else None


_ARCHIVED = """
SELECT DISTINCT t.name FROM uuid_pipeline.batches b
JOIN uuid_pipeline.executions e USING (execution_id)
CROSS JOIN LATERAL jsonb_object_keys(b.moved->'merged'->'archived') t(name) WHERE e.assessment_no = %(no)s
"""


def archived_tables(connection: Connection, assessment: int) -> set[str]:
    """Tables, each named as "schema.table", of which this assessment's batches archived rows."""
    return {row.name for row in sql.rows(connection, _ARCHIVED, {"no": assessment})}


def require_found(connection: Connection, store: Store, assessment: int) -> None:
    """Raise RefusedError when a table that rows were archived of is there, and their archive is not."""
    found = {f"{kept.table.schema}.{kept.table.name}" for kept in shelves(connection, store, assessment)}
    there = {f"{schema}.{name}" for schema, name in store.catalog.tables}
    missing = sorted(archived_tables(connection, assessment) & there - found)
    if missing:
        raise RefusedError(
            f"Refused: merging archived rows of {', '.join(missing)}, and the ledger has that archive no longer: they "
            "would not come back. Restore the ledger's tables from your backup first."
        )


def _rename(connection: Connection, kept: Shelf, names: Mapping[str, str]) -> None:
    """By names of our own in between: two may have changed theirs; what stands in the way is of a dropped column."""
    there = _columns(connection, kept.relation).keys()
    moves = {old: new for old, new in names.items() if old in there}
    in_the_way = [new for new in moves.values() if new in there and new not in moves]
    first = {old: f"uuid_pipeline_{number}" for number, old in enumerate([*moves, *in_the_way])}
    second = {first[old]: new for old, new in moves.items()}
    second |= {first[old]: f"uuid_pipeline_dropped_{number}" for number, old in enumerate(in_the_way)}
    for old, new in [*first.items(), *second.items()]:
        statement = sql.compose(
            "ALTER TABLE {archive} RENAME COLUMN {old} TO {new}",
            archive=kept.relation,
            old=sql.name(old),
            new=sql.name(new),
        )
        sql.execute(connection, statement)


def _require_no_rename(connection: Connection, kept: Shelf) -> None:
    now, archived = _columns(connection, kept.source), _columns(connection, kept.relation)
    gone = [name for name in archived if name not in now and not name.startswith("uuid_pipeline_")]
    new = [column.name for column in kept.table.columns.values() if column.name not in archived]
    place = f"{kept.table.schema}.{kept.table.name}"
    order = [name for name in archived if name in now]
    if order != [name for name in now if name in archived]:
        raise RefusedError(
            f"Refused: rows of {place} were archived with its columns in another order, {', '.join(order)}. Whether "
            "two have changed their names cannot be known of a table that was restored from a dump or made anew. "
            "Give it its columns in that order, or their names of then, for as long as the rollback takes."
        )
    if gone and new:
        raise RefusedError(
            f"Refused: rows of {place} were archived with {', '.join(gone)}, which it has no longer, and it has "
            f"got {', '.join(new)} since. Whether that is a rename cannot be known of a table that was restored from "
            "a dump or made anew. Rename back what was renamed, or take away what is new, for as long as the rollback "
            "takes."
        )


_THERE = """
SELECT c.relname::text AS name FROM pg_class c
WHERE c.relnamespace = to_regnamespace('uuid_pipeline') AND c.relkind = 'r' AND starts_with(c.relname, 'archive_')
"""


def shelves(connection: Connection, store: Store, assessment: int) -> list[Shelf]:
    """Archives that exist for an assessment, with the columns that they and their tables still have in common."""
    # Asked at once: each batch of a rollback wants to know, in a store of however many tables.
    there = {row.name for row in sql.rows(connection, _THERE)}
    tables = [table for table in store.catalog.tables.values() if f"{name_of(table)}{assessment}" in there]
    return [_in_common(connection, shelf(table, assessment)) for table in tables if table.kind == "r"]


def _in_common(connection: Connection, kept: Shelf) -> Shelf:
    now, archived = _columns(connection, kept.source), _columns(connection, kept.relation)
    columns = tuple(column for column in kept.columns if column.name in archived)
    retyped = frozenset(column.name for column in columns if archived[column.name] != now[column.name])
    return replace(kept, columns=columns, retyped=retyped)


def _columns(connection: Connection, relation: sql.Composable) -> dict[str, tuple[int, int]]:
    """The columns of a table as it is now, in their order: the oid of the type and its modifier, by name."""
    found = sql.rows(
        connection,
        """SELECT attname::text AS name, atttypid::bigint AS type, atttypmod AS modifier FROM pg_attribute
           WHERE attrelid = to_regclass(%(name)s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum""",
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

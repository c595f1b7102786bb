"""Archives: rows that a merge displaces, whole and typed; restorable as long as their execution is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, ledger, sql
from uuid_pipeline.engine.catalog import Column, Table
from uuid_pipeline.engine.natural_keys import cast_type
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError

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
    """The archive table, typed as the table is; LIKE takes no lock that an application would wait for.

    Each batch of a rollback looks for its own rows: without an index it would read what all of them have archived.
    """
    if exists(connection, kept):
        return
    statement = sql.compose(
        "CREATE TABLE {archive} ({ours}, LIKE {table} INCLUDING GENERATED)",
        archive=kept.relation,
        ours=sql.Text(_OURS),
        table=kept.source,
    )
    sql.execute(connection, statement)
    sql.execute(connection, sql.compose("CREATE INDEX ON {archive} (uuid_pipeline_ordinal)", archive=kept.relation))


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

"""The copy that is tried on: a scratch database with the store's schema and a few rows with what hangs on them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.backups import extensions, name_paths, pg_tools
from uuid_pipeline.engine.backups.backup import direct
from uuid_pipeline.engine.backups.scratch import ensure_roles, scratch_database
from uuid_pipeline.engine.backups.workshop import Workshop
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.store import Store
from uuid_pipeline.engine.trials.moving import Sampled
from uuid_pipeline.errors import RefusedError

ROWS_A_TABLE = 200  # of one table, that refer to the sampled rows
ROUNDS = 10
LOCK_WAIT_MS = 1000


@dataclass(frozen=True)
class Copy:
    """A database to try things in; ``missing`` are messages of what of the schema it could not be given."""

    engine: Engine
    where: str
    rows: int
    missing: tuple[str, ...]


@contextmanager
def copied(connection: Connection, store: Store, sampled: Sequence[Sampled], workshop: Workshop) -> Iterator[Copy]:
    """A copy with the sampled rows, those under their target ids, what refers to them and what these refer to.

    Wants a REPEATABLE READ transaction. Raises PipelineError when no copy can be made; the store is left as it was.
    """
    odd = [m.table.name for m in store.tables if m.table.kind != "r" or m.table.inherits]
    if odd:
        raise RefusedError(f"{', '.join(odd)} is partitioned or inherits, which a sample cannot follow")
    tools = pg_tools.find(store.catalog.server_version, workshop.tools)
    needed = extensions.of_tables(connection, [t.oid for t in store.catalog.tables.values()])
    with (
        # Through a pooler pg_dump would leave its empty search_path in a session that the application is lent next.
        direct(connection.engine, workshop.direct_url) as straight,
        scratch_database(straight, workshop.fallback, needed) as scratch,
        tempfile.TemporaryDirectory(prefix="uuid_pipeline_") as directory,
    ):
        ensure_roles(scratch, _roles(connection, store))
        archive = Path(directory) / "schema"
        _dump(straight.url, store, tools, archive)
        engine = open_store(scratch.url)
        try:
            missing = _restore(tools, engine, archive, "pre-data")
            with engine.begin() as made:
                name_paths.give(made, _path(connection, store, needed, made))
            rows = _copy_rows(connection, engine, store, sampled)
            missing += _restore(tools, engine, archive, "post-data")
            yield Copy(engine, scratch.where, rows, tuple(missing))
        finally:
            engine.dispose()


def _path(connection: Connection, store: Store, brought: Sequence[extensions.Extension], made: Connection) -> list[str]:
    """Where names are looked for in the store, as far as the copy has these schemas."""
    schemas = [table.schema for table in store.catalog.tables.values()] + [extension.schema for extension in brought]
    there = {row.nspname for row in sql.rows(made, "SELECT nspname FROM pg_namespace")}
    return [schema for schema in dict.fromkeys([*name_paths.of_session(connection), *schemas]) if schema in there]


def _roles(connection: Connection, store: Store) -> list[str]:
    oids = [t.oid for t in store.catalog.tables.values()]
    found = """SELECT DISTINCT pg_get_userbyid(r)::text AS role FROM pg_policy, unnest(polroles) r
               WHERE polrelid = ANY(%(oids)s) AND r <> 0"""
    return [row.role for row in sql.rows(connection, found, {"oids": oids})]


def _dump(url: URL, store: Store, tools: pg_tools.Tools, archive: Path) -> None:
    """The whole database's schema, since triggers and policies may use other schemas; else the store's schemas alone.

    Our ledger stays out: its triggers are not the application's.
    """
    common = [
        "--schema-only", "--format=custom", "--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions",
        f"--lock-wait-timeout={LOCK_WAIT_MS}", f"--file={archive}",
    ]  # fmt: skip
    if pg_tools.run(tools, "pg_dump", [*common, "--exclude-schema=uuid_pipeline"], url).code == 0:
        return
    schemas = sorted({table.schema for table in store.catalog.tables.values()})
    chosen = [f'--schema="{schema.replace(chr(34), chr(34) * 2)}"' for schema in schemas]
    pg_tools.run(tools, "pg_dump", [*common, *chosen], url).require("Reading the store's schema")


def _restore(tools: pg_tools.Tools, engine: Engine, archive: Path, section: str) -> list[str]:
    """Restores what it can; gives the messages of what it could not."""
    arguments: list[str | Path] = [f"--section={section}", "--no-owner", "--no-privileges", archive]
    ran = pg_tools.run(tools, "pg_restore", arguments, engine.url)
    # What extensions made is there already, and what they lack is found out by trying.
    return [
        line.removeprefix("pg_restore: error: ")
        for line in ran.messages.splitlines()
        if line.startswith("pg_restore: error:") and "already exists" not in line
    ]


Place = tuple[str, str]


def _copy_rows(connection: Connection, engine: Engine, store: Store, sampled: Sequence[Sampled]) -> int:
    """The chosen rows of every table, before foreign keys and triggers are there: in any order."""
    savepoint = connection.begin_nested()
    try:
        chosen = _choose(connection, store, sampled)
        with engine.begin() as target:
            return sum(_copy_table(connection, target, place) for place in sorted(chosen))
    finally:
        savepoint.rollback()


def _marks(place: Place) -> sql.Composable:
    return sql.table("pg_temp", "copied_" + str(abs(hash(place)) % 10**12))


def _choose(connection: Connection, store: Store, sampled: Sequence[Sampled]) -> set[Place]:
    """Notes in temporary tables where the rows to copy are: downwards a step, then upwards to the end."""
    chosen: set[Place] = set()
    keys = {e.name: sorted({k for s in sampled if s.entity == e.name for k in (s.old, s.new)}) for e in store.entities}
    for moved in store.tables:
        for column, entity in moved.columns:
            statement = sql.compose(
                "SELECT t.ctid FROM {table} t WHERE t.{column}::text = ANY(%(keys)s) LIMIT %(limit)s"
                if moved.table.columns[column].type != "uuid"
                else "SELECT t.ctid FROM {table} t WHERE t.{column} = ANY(%(keys)s::uuid[]) LIMIT %(limit)s",
                table=sql.table(moved.table.schema, moved.table.name),
                column=sql.name(column),
            )
            place = (moved.table.schema, moved.table.name)
            _mark(connection, chosen, place, statement, {"keys": keys[entity], "limit": ROWS_A_TABLE})
    for _ in range(ROUNDS):
        if sum(_mark_targets(connection, chosen, key) for key in store.catalog.foreign_keys) == 0:
            break
    return chosen


def _mark_targets(connection: Connection, chosen: set[Place], key: Any) -> int:
    source, target = (key.table_schema, key.table), (key.target_schema, key.target)
    if source not in chosen:
        return 0
    on = sql.join(
        " AND ",
        [sql.compose("t.{b} = s.{a}", a=sql.name(a), b=sql.name(b))
         for a, b in zip(key.columns, key.target_columns, strict=True)],
    )  # fmt: skip
    statement = sql.compose(
        "SELECT t.ctid FROM {marks} k JOIN {source} s ON s.ctid = k.at JOIN {target} t ON {on}",
        marks=_marks(source),
        source=sql.table(*source),
        target=sql.table(*target),
        on=on,
    )
    return _mark(connection, chosen, target, statement, {})


def _mark(
    connection: Connection, chosen: set[Place], place: Place, statement: sql.Composable, values: dict[str, Any]
) -> int:
    if place not in chosen:
        create = "CREATE TEMPORARY TABLE {marks} (at tid PRIMARY KEY)"
        sql.execute(connection, sql.compose(create, marks=_marks(place)))
        chosen.add(place)
    insert = sql.compose("INSERT INTO {marks} {found} ON CONFLICT DO NOTHING", marks=_marks(place), found=statement)
    return sql.execute(connection, insert, values).rowcount


def _copy_table(connection: Connection, target: Connection, place: Place) -> int:
    columns = sql.rows(
        connection,
        """SELECT attname::text AS name FROM pg_attribute WHERE attrelid = %(table)s::regclass AND attnum > 0
           AND NOT attisdropped AND attgenerated = '' ORDER BY attnum""",
        {"table": sql.shown(sql.table(*place))},
    )
    listed = sql.join(", ", [sql.name(row.name) for row in columns])
    read = sql.compose(
        "COPY (SELECT {columns} FROM {table} t JOIN {marks} k ON k.at = t.ctid) TO STDOUT",
        columns=sql.join(", ", [sql.compose("t.{c}", c=sql.name(row.name)) for row in columns]),
        table=sql.table(*place),
        marks=_marks(place),
    )
    write = sql.compose("COPY {table} ({columns}) FROM STDIN", table=sql.table(*place), columns=listed)
    sql.execute(target, "SELECT 1")  # the copy goes into a transaction that SQLAlchemy knows of
    with (
        sql.by_the_driver(connection) as source,
        sql.by_the_driver(target) as sink,
        source.cursor() as reading,
        sink.cursor() as writing,
    ):
        with reading.copy(_raw(read)) as out, writing.copy(_raw(write)) as into:
            for data in out:
                into.write(data)
        return int(writing.rowcount)


def _raw(statement: sql.Composable) -> bytes:
    return sql.shown(statement).encode()

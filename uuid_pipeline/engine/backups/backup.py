"""Backups: dumped from one snapshot, restored into a scratch database, compared, recorded.

What makes one valid for a plan, and what approval asks of it, is the matter of `backup_gate`.
"""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import catalog, ledger, sql
from uuid_pipeline.engine.backups import backup_scope, definitions_of, dumping, name_paths, pg_tools, portable
from uuid_pipeline.engine.backups.backup_scope import Scope
from uuid_pipeline.engine.backups.dumping import DumpFile, Restored
from uuid_pipeline.engine.backups.pg_tools import Tools
from uuid_pipeline.engine.backups.portable import Portable
from uuid_pipeline.engine.backups.scratch import Scratch, scratch_database
from uuid_pipeline.engine.backups.workshop import Workshop
from uuid_pipeline.engine.connection import is_pooled, open_store, same_store
from uuid_pipeline.engine.store import Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import RefusedError

READ_ONLY = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


@dataclass(frozen=True)
class Backup:
    """A recorded backup. Of an attested one only number, mode, name and moments are known; the rest is None or empty.

    ``equal``: the restored copy had the same rows and definitions. Times in seconds, sizes in bytes.
    """

    number: int
    mode: str
    name: str
    machine: str | None
    bytes: int | None
    sha256: str | None
    snapshot: str | None
    catalog_digest: str | None
    tables: list[dict[str, Any]]
    left_out: list[str]
    differences: list[str]
    tool: str | None
    restored_on: str | None
    dump_seconds: float | None
    restore_seconds: float | None
    equal: bool | None
    taken_at: datetime

    @property
    def rows(self) -> int:
        return sum(int(table["rows"]) for table in self.tables)


@dataclass(frozen=True)
class _Taken:
    """What one snapshot held, and the dump of it."""

    scope: Scope
    snapshot: str
    taken_at: datetime
    catalog_digest: str
    fingerprints: list[Portable]
    definitions: frozenset[str]
    file: DumpFile


def take(engine: Engine, store: Store, workshop: Workshop) -> Backup:
    """Take a backup, prove it by restoring and comparing, and record what came of that, also when it is not equal.

    Raises UsageError (no fitting pg_dump, no directory), RefusedError (a pooler in between, no scratch database) or
    PipelineError (pg_dump failed); nothing is recorded then.
    """
    with direct(engine, workshop.direct_url) as source:
        with source.connect() as connection:
            version = int(sql.scalar(connection, "SELECT current_setting('server_version_num')"))
        tools = pg_tools.find(version, workshop.tools)
        taken = _dump(source, store, tools, workshop.directory)
        reach("dumped")
        with scratch_database(source, workshop.fallback, taken.scope.extensions) as made:
            restored = dumping.restore(tools, taken.file.path, made, taken.scope)
            reach("restored")
            after, definitions = _look(made, taken.scope)
    found = portable.differences(taken.fingerprints, after)
    found += definitions_of.differences(taken.definitions, definitions)
    if found:
        found += [f"pg_restore said: {complaint}" for complaint in restored.complaints]
    with engine.begin() as connection:
        number = _record(connection, taken, after, restored, found, tools, made)
        return of_number(connection, number)


@contextmanager
def direct(engine: Engine, direct_url: str | None) -> Iterator[Engine]:
    """The engine itself, or where a pooler stands before the store, one past it.

    Raises RefusedError when there is a pooler and no other way, or the other way leads elsewhere.
    """
    with engine.connect() as through:
        pooled = _pooled(through)
    if not pooled:
        yield engine
        return
    if direct_url is None:
        raise RefusedError(
            "The store is reached through a pooler (as pgbouncer), and whether it lends a session for longer than a "
            "transaction cannot be told from here. pg_dump needs one session of its own on an exported snapshot, and "
            "would leave its settings in the pooler's. Set UUID_PIPELINE_DIRECT_URL to the database itself; all else "
            "goes on through the pooler. "
            "Or set `backup: attested` in the spec and name your provider's snapshot (or `backup: none`)."
        )
    own = open_store(direct_url)
    try:
        with own.connect() as past, engine.connect() as through:
            if _pooled(past):
                raise RefusedError("UUID_PIPELINE_DIRECT_URL leads to a pooler too. Set it to the database itself.")
            if not same_store(past, through):
                raise RefusedError("UUID_PIPELINE_DIRECT_URL and UUID_PIPELINE_DATABASE_URL lead to two databases.")
        yield own
    finally:
        own.dispose()


def _pooled(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    return is_pooled(driver)


def _dump(engine: Engine, store: Store, tools: Tools, directory: Path) -> _Taken:
    """Fingerprints, definitions and dump of one moment: all read one exported snapshot."""
    with engine.connect().execution_options(**READ_ONLY) as connection, connection.begin():
        scope = backup_scope.choose(connection, store)
        oids = {"oids": [moved.table.oid for moved in store.tables]}
        size = sql.scalar(connection, "SELECT sum(pg_table_size(o)) FROM unnest(%(oids)s::oid[]) o", oids)
        # Compressed it takes less, but nobody knows how much less; half is what text and vectors come to.
        dumping.require_room(directory, int(size or 0) // 2)
        snapshot, taken_at, database = sql.rows(
            connection, "SELECT pg_export_snapshot(), clock_timestamp(), current_database()"
        )[0]
        digest = catalog.digest(catalog.snapshot(connection, catalog.read_catalog(connection, store.spec.schema_name)))
        catalog.pin_names(connection)
        definitions = definitions_of.of_tables(connection, scope.touched, _held(scope))
        fingerprints = [portable.of_table(connection, recipe) for recipe in scope.recipes]
        reach("fingerprinted")
        encoded = "SELECT convert_to(%(option)s, getdatabaseencoding()::text)"
        selection = [bytes(sql.scalar(connection, encoded, {"option": option})) for option in scope.arguments]
        file = dumping.dump(tools, engine.url, selection, snapshot, directory, database)
    return _Taken(scope, snapshot, taken_at, digest, fingerprints, definitions, file)


def _held(scope: Scope) -> list[str]:
    return [recipe.name for recipe in scope.recipes]


def _look(made: Scratch, scope: Scope) -> tuple[list[Portable], frozenset[str]]:
    """What a restored copy holds; a table that is not there is left out."""
    copy = open_store(made.url)
    try:
        with copy.connect() as connection, connection.begin():
            catalog.pin_names(connection)
            there = {
                (row.nspname, row.relname)
                for row in sql.rows(
                    connection,
                    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace",
                )
            }
            found = [portable.of_table(connection, r) for r in scope.recipes if (r.schema, r.table) in there]
            return found, definitions_of.of_tables(connection, scope.touched, _held(scope))
    finally:
        copy.dispose()


def _record(
    connection: Connection, taken: _Taken, after: Sequence[Portable], restored: Restored, differences: Sequence[str],
    tools: Tools, made: Scratch,
) -> int:  # fmt: skip
    now = {found.table: found for found in after}
    tables = [
        was.as_data()
        | {
            "touched": was.table in taken.scope.touched,
            "restored_rows": now[was.table].rows if was.table in now else None,
            "restored_digest": str(now[was.table].digest) if was.table in now else None,
        }
        for was in taken.fingerprints
    ]
    left_out = [*taken.scope.left_out, *[f"extension {name} in the copy" for name in made.without]]
    if restored.needs_path:
        left_out.append(name_paths.said(taken.scope.search_path))
    number = sql.scalar(
        connection,
        """INSERT INTO uuid_pipeline.backups
               (mode, name, machine, bytes, sha256, snapshot, catalog_digest, tables, left_out, differences, tool,
                restored_on, dump_seconds, restore_seconds, equal, taken_at, recorded_by)
           VALUES ('dump', %(name)s, %(machine)s, %(bytes)s, %(sha256)s, %(snapshot)s, %(catalog)s, %(tables)s::jsonb,
                   %(left_out)s::jsonb, %(differences)s::jsonb, %(tool)s, %(restored_on)s, %(dump_seconds)s,
                   %(restore_seconds)s, %(equal)s, %(taken_at)s, %(actor)s) RETURNING backup_no""",
        {
            "name": str(taken.file.path), "machine": machine(), "bytes": taken.file.bytes,
            "sha256": taken.file.sha256, "snapshot": taken.snapshot, "catalog": taken.catalog_digest,
            "tables": json.dumps(tables), "left_out": json.dumps(left_out),
            "differences": json.dumps(list(differences)), "tool": f"pg_dump {tools.version}",
            "restored_on": made.where, "dump_seconds": taken.file.seconds, "restore_seconds": restored.seconds,
            "equal": not differences, "taken_at": taken.taken_at, "actor": ledger.actor(),
        },
    )  # fmt: skip
    ledger.audit(connection, "backup", {"backup": number, "equal": not differences, "bytes": taken.file.bytes})
    return int(number)


_BACKUPS = """
SELECT backup_no, mode, name, machine, bytes, sha256, snapshot, catalog_digest, tables, left_out, differences, tool,
       restored_on, dump_seconds, restore_seconds, equal, taken_at
FROM uuid_pipeline.backups
"""


def machine() -> str:
    """Where the files of this process's backups are."""
    return socket.gethostname()


def of_number(connection: Connection, number: int) -> Backup:
    return Backup(*sql.rows(connection, _BACKUPS + " WHERE backup_no = %(no)s", {"no": number})[0])


def newest(connection: Connection, mode: str) -> Backup | None:
    """The backup of a mode recorded last, valid or not."""
    found = sql.rows(connection, _BACKUPS + " WHERE mode = %(mode)s ORDER BY backup_no DESC LIMIT 1", {"mode": mode})
    return Backup(*found[0]) if found else None

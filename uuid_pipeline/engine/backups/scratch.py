"""Scratch databases: empty ones to restore and try things in, on the store's own server or else on the embedded one.

A database's name says who made it: the machine, the process with its start, and when. What a killed process left is
dropped by the next one that makes a scratch database on that server.
"""

import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL

from uuid_pipeline.engine.backups.extensions import Extension
from uuid_pipeline.engine.connection import is_pooled, store_url
from uuid_pipeline.errors import PipelineError, RefusedError
from uuid_pipeline.settings import without_secrets

PREFIX = "uuid_pipeline_scratch_"
_NAME = re.compile(PREFIX + r"(?P<machine>[0-9a-f]{8})_(?P<pid>\d+)_(?P<start>\d+)_(?P<made>[0-9a-f]+)_[0-9a-f]{4}")
# Of a process of another machine we cannot know whether it lives: then a day without a connection must do.
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Scratch:
    """An empty database with the extensions asked for.

    ``url`` holds the password: not for messages. ``reason`` says why it is not on the store's own server. ``without``
    names extensions that are not there and that no table's definition needs.
    """

    url: str
    database: str
    on_store: bool
    reason: str
    without: tuple[str, ...]

    @property
    def where(self) -> str:
        return "the store's own server" if self.on_store else f"the embedded server ({self.reason})"


class _UnfitError(Exception):
    """A server that cannot hold this scratch database, and why."""


@contextmanager
def scratch_database(
    store: Connection | Engine | URL | str,
    fallback: Callable[[], str] | None = None,
    extensions: Sequence[Extension] = (),
) -> Iterator[Scratch]:
    """An empty database, dropped at the end, also after an error.

    It is made on the store's own server where the role may (tried, not asked) and the needed extensions are to be had;
    else on the server whose URL ``fallback`` gives, started by it. Raises RefusedError that names what each lacked.
    """
    url = _url_of(store)
    try:
        scratch = _make(url, extensions, on_store=True, reason="")
    except _UnfitError as unfit:
        if fallback is None:
            raise RefusedError(
                f"No scratch database can be made: {unfit}. Give the role the right to make one: "
                f'ALTER ROLE "{url.username or "…"}" CREATEDB; Or set `backup: attested` in the spec.'
            ) from unfit
        username = url.username or "…"
        url = store_url(fallback())
        try:
            scratch = _make(url, extensions, on_store=False, reason=str(unfit))
        except _UnfitError as second:
            raise RefusedError(
                f"No scratch database can be made. On the store's own server: {unfit}. "
                f"On the embedded server: {second}. "
                f'Give the role the right to make one (ALTER ROLE "{username}" CREATEDB;), or set `backup: attested` '
                "in the spec and name your provider's snapshot."
            ) from second
    try:
        yield scratch
    finally:
        _drop(url, scratch.database, force=True)


def ensure_roles(scratch: Scratch, names: Sequence[str]) -> tuple[str, ...]:
    """Make roles that policies name and the embedded server lacks, without login; gives those made.

    On the store's own server each role is there, and none is ever made.
    """
    if scratch.on_store:
        return ()
    made = []
    with _connected(store_url(scratch.url)) as connection:
        for name in names:
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is None:
                with suppress(psycopg.errors.DuplicateObject):
                    connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
                made.append(name)
    return tuple(made)


def schemas(scratch: Scratch) -> list[str]:
    """The schemas that a scratch database has by now."""
    with _connected(store_url(scratch.url)) as connection:
        return [name for (name,) in connection.execute("SELECT nspname FROM pg_namespace").fetchall()]


def drop_leftovers(url: URL) -> list[str]:
    """Drop the scratch databases of processes that are dead, where nobody is connected; gives their names."""
    with _connected(url) as connection:
        found = connection.execute(
            """SELECT datname FROM pg_database d WHERE starts_with(datname, %s)
               AND datdba = (SELECT oid FROM pg_roles WHERE rolname = current_user)
               AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid AND a.pid <> pg_backend_pid())""",
            (PREFIX,),
        ).fetchall()
    dropped = [name for (name,) in found if _abandoned(name)]
    for name in dropped:
        _drop(url, name, force=False)
    return dropped


def _url_of(store: Connection | Engine | URL | str) -> URL:
    if isinstance(store, Connection):
        return store.engine.url
    if isinstance(store, Engine):
        return store.url
    return store_url(store if isinstance(store, str) else store.render_as_string(hide_password=False))


# What a role's own defaults could put in the way of making a database. CREATE DATABASE takes no transaction of ours, so
# these are the session's; a pooler would hand them on to others.
_UNHINDERED = {"statement_timeout": "0", "lock_timeout": "0", "default_transaction_read_only": "off"}


@contextmanager
def _connected(url: URL, database: str | None = None) -> Iterator[psycopg.Connection[Any]]:
    target = url.set(drivername="postgresql+psycopg", database=database or url.database)
    _, parameters = target.get_dialect()().create_connect_args(target)
    settings = {"connect_timeout": "10", "application_name": "uuid_pipeline", **parameters}
    with psycopg.connect(make_conninfo(**settings), autocommit=True, prepare_threshold=None) as connection:
        if not is_pooled(connection):
            for name, value in _UNHINDERED.items():
                connection.execute(sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        yield connection


def _make(url: URL, extensions: Sequence[Extension], on_store: bool, reason: str) -> Scratch:
    """Raises _UnfitError when this server cannot hold it; nothing of it stays then."""
    name = _new_name()
    try:
        with suppress(psycopg.Error):
            drop_leftovers(url)
        with _connected(url) as connection:
            connection.execute(_create_statement(connection, name, like_here=on_store))
        without = _create_extensions(url, name, extensions)
    except psycopg.Error as error:
        _drop(url, name, force=True)
        raise _UnfitError(_first_line(error, url)) from error
    except BaseException:
        _drop(url, name, force=True)
        raise
    made = url.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    return Scratch(made, name, on_store, reason, without)


def _create_statement(connection: psycopg.Connection[Any], name: str, like_here: bool) -> sql.Composed:
    """CREATE DATABASE; on the store's server with the encoding and collation of the store itself."""
    here = connection.execute(
        "SELECT to_jsonb(d) || jsonb_build_object('encoding', pg_encoding_to_char(encoding)) FROM pg_database d "
        "WHERE datname = current_database()"
    ).fetchone()
    options: dict[str, str] = {}
    if like_here and here is not None:
        found = here[0]
        provider = {"i": "icu", "b": "builtin"}.get(found.get("datlocprovider", "c"), "libc")
        locale = found.get("datlocale") or found.get("daticulocale")
        options = {"ENCODING": found["encoding"], "LC_COLLATE": found["datcollate"], "LC_CTYPE": found["datctype"]}
        if provider != "libc" and locale:
            options |= {"LOCALE_PROVIDER": provider, f"{provider.upper()}_LOCALE": locale}
    parts = [sql.SQL("{} {}").format(sql.SQL(key), sql.Literal(value)) for key, value in options.items()]
    return sql.SQL("CREATE DATABASE {} TEMPLATE template0 {}").format(sql.Identifier(name), sql.SQL(" ").join(parts))


def _create_extensions(url: URL, database: str, extensions: Sequence[Extension]) -> tuple[str, ...]:
    """Gives those left out. Raises _UnfitError naming a needed one that is not to be had."""
    without = []
    with _connected(url, database) as connection:
        for extension in extensions:
            try:
                with connection.transaction():
                    schema, name = sql.Identifier(extension.schema), sql.Identifier(extension.name)
                    if extension.schema != "pg_catalog":
                        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
                    connection.execute(
                        sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {} CASCADE").format(name, schema)
                    )
            except psycopg.Error as error:
                if extension.needed:
                    raise _UnfitError(
                        f"the extension {extension.name}, which the tables need, cannot be made there "
                        f"({_first_line(error, url)})"
                    ) from error
                without.append(extension.name)
    return tuple(without)


def _drop(url: URL, name: str, force: bool) -> None:
    """Drop a database of ours; one that is in use without ``force``, or is gone already, is left."""
    with suppress(psycopg.Error), _connected(url) as connection:
        statement = "DROP DATABASE IF EXISTS {} WITH (FORCE)" if force else "DROP DATABASE IF EXISTS {}"
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


def _first_line(error: Exception, url: URL) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_secrets(lines[0], url.render_as_string(hide_password=False))


def _new_name() -> str:
    start = _start_of(os.getpid())
    if start is None:
        raise PipelineError("This process's own start time cannot be read from /proc.")
    return f"{PREFIX}{_machine()}_{os.getpid()}_{start}_{int(time.time()):x}_{secrets.token_hex(2)}"


def _abandoned(name: str) -> bool:
    found = _NAME.fullmatch(name)
    if found is None:
        return False
    if found["machine"] != _machine():
        return time.time() - int(found["made"], 16) > _ABANDONED_SECONDS
    return _start_of(int(found["pid"])) != int(found["start"])


def _machine() -> str:
    """Where a process id means something: this host, and on Linux this namespace of process ids."""
    namespace = Path("/proc/self/ns/pid")
    text = f"{socket.gethostname()} {namespace.readlink() if namespace.is_symlink() else ''}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _start_of(pid: int) -> int | None:
    """When a process began, in the kernel's ticks; 0 where it lives but there is no /proc; None if it is dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return None if state[0] == "Z" else int(state[19])

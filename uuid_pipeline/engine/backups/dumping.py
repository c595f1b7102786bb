"""pg_dump and pg_restore of a scope: a file that only its owner may read, and a copy of it in a scratch database."""

import hashlib
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.engine import URL

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.backups import name_paths, pg_tools, scratch
from uuid_pipeline.engine.backups.backup_scope import Scope
from uuid_pipeline.engine.backups.pg_tools import Tools
from uuid_pipeline.engine.backups.scratch import Scratch
from uuid_pipeline.engine.connection import open_store, store_url
from uuid_pipeline.errors import PipelineError, UsageError

LOCK_WAIT_MILLISECONDS = 10_000
_ABANDONED_SECONDS = 3600
_SHOWN = 120
Section = str
WHOLE: tuple[Section, ...] = ("pre-data", "data", "post-data")


@dataclass(frozen=True)
class DumpFile:
    """A finished dump: where, how large, its SHA-256, and how long it took."""

    path: Path
    bytes: int
    sha256: str
    seconds: float


def dump(tools: Tools, url: URL, selection: Sequence[bytes], snapshot: str, directory: Path, database: str) -> DumpFile:
    """Dump a selection as of an exported snapshot into a new file of mode 0600 below ``directory``.

    ``selection``: pg_dump's options that name schemas and tables, in the database's own encoding, as it reads them.

    Raises UsageError when the directory cannot be written, PipelineError with pg_dump's own words when it failed;
    nothing of a failed dump stays.
    """
    path = _new_file(directory, database)
    partial = path.with_suffix(".partial")
    started = time.monotonic()
    try:
        # Made by us, since pg_dump would make it with whatever mode the umask leaves.
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        ran = pg_tools.run(
            tools,
            "pg_dump",
            [
                "--format=custom", "--compress=1", "--no-publications", "--no-subscriptions",
                f"--snapshot={snapshot}", f"--lock-wait-timeout={LOCK_WAIT_MILLISECONDS}", f"--file={partial}",
                *selection,
            ],
            url,
        )  # fmt: skip
        ran.require("The backup")
        digest, size = sha256(partial), partial.stat().st_size
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return DumpFile(path, size, digest, time.monotonic() - started)


def _new_file(directory: Path, database: str) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in directory.glob("*.partial"):
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                    left.unlink()
    except OSError as error:
        raise UsageError(f"Backups cannot be kept in {directory}: {error.strerror}. Set UUID_PIPELINE_HOME.") from error
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", database)[:60]
    return directory / f"{plain}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.dump"


def sha256(path: Path) -> str:
    """Of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Restored:
    """What a restore took, and what pg_restore complained of: statements that failed, each with the reason.

    ``needs_path``: it went through only when functions were told where to look for names.
    """

    seconds: float
    complaints: tuple[str, ...]
    needs_path: bool = False


def restore(tools: Tools, path: Path, made: Scratch, scope: Scope, sections: Sequence[Section] = WHOLE) -> Restored:
    """Restore a dump into a scratch database, without owners and grants; statements that fail are told, not raised.

    What comes of them shows when the copy is compared. Raises PipelineError when the file cannot be read at all.
    """
    scratch.ensure_roles(made, scope.roles)
    entries = _entries(tools, path, made, scope)
    url = store_url(made.url)
    # A copy to be dropped need not survive a crash; vector indexes are built many times faster in memory.
    faster = f"{url.query.get('options', '')} -c synchronous_commit=off -c maintenance_work_mem=256MB"
    url = url.update_query_dict({"options": faster.strip()})
    listed = path.parent / f".{made.database}.list"
    arguments: list[str | Path] = [
        "--no-owner", "--no-privileges", f"--use-list={listed}", f"--jobs={min(4, os.cpu_count() or 1)}",
    ]  # fmt: skip
    started = time.monotonic()
    complaints: list[str] = []
    needs_path = False
    try:
        listed.write_text("\n".join(entries) + "\n")
        for section in sections:
            ran = pg_tools.run(tools, "pg_restore", [*arguments, f"--section={section}", path], url)
            if ": error:" not in ran.messages:
                ran.require(f"Restoring {path}")
            found = _complaints(ran.messages)
            if found and section != "pre-data" and not needs_path and _tell_where_names_are(made, scope, section):
                needs_path = True
                again = pg_tools.run(tools, "pg_restore", [*arguments, f"--section={section}", path], url)
                found = [line for line in _complaints(again.messages) if not _MADE_BEFORE.search(line)]
            complaints += found
    finally:
        listed.unlink(missing_ok=True)
    return Restored(time.monotonic() - started, tuple(complaints), needs_path)


# What the first try of a section made is there in the second.
_MADE_BEFORE = re.compile(r"already exists|multiple primary keys")


def _tell_where_names_are(made: Scratch, scope: Scope, section: Section) -> bool:
    """Give the copy's functions the store's search path, and make room to restore a section again; False if none is."""
    copy = open_store(made.url)
    try:
        with copy.begin() as connection:
            there = set(scratch.schemas(made))
            if not name_paths.give(connection, [schema for schema in scope.search_path if schema in there]):
                return False
            if section == "data":  # no foreign key is there yet
                for recipe in scope.recipes:
                    table = sql.table(recipe.schema, recipe.table)
                    named = {"table": sql.shown(table)}
                    if sql.scalar(connection, "SELECT to_regclass(%(table)s) IS NOT NULL", named):
                        sql.execute(connection, sql.compose("TRUNCATE {table}", table=table))
            return True
    finally:
        copy.dispose()


def _entries(tools: Tools, path: Path, made: Scratch, scope: Scope) -> list[str]:
    """The dump's table of contents but for schemas that the database has already, and triggers that need the ledger."""
    listed = pg_tools.run(tools, "pg_restore", ["--list", path]).require(f"Reading {path}").splitlines()
    there = tuple(f"{name} " for name in scratch.schemas(made))
    ours = [f" TRIGGER {trigger} " for trigger in scope.our_triggers]
    return [
        line
        for line in listed
        if not (_SCHEMA.match(line) and _SCHEMA.sub("", line).startswith(there))
        and not any(trigger in f"{line} " for trigger in ours)
    ]


# A line of the contents is "5; 2615 2200 SCHEMA - public owner".
_SCHEMA = re.compile(r"\d+; \d+ \d+ SCHEMA - ")
_HARMLESS = ("transaction_timeout",)  # a pg_restore of 17 or newer sets it, a server before that does not know it


def _complaints(messages: str) -> list[str]:
    """Each statement that failed, in a line: the server's reason, and how the statement begins."""
    found: list[str] = []
    for line in messages.splitlines():
        if line.startswith("Command was:") and found:
            found[-1] += f" ({line.removeprefix('Command was:').strip()[:_SHOWN]})"
        elif ": error:" in line:
            found.append(line.partition(": error:")[2].strip().removeprefix("could not execute query: "))
    return [line for line in found if not any(word in line for word in _HARMLESS)]


def require_room(directory: Path, needed: int) -> None:
    """Raise PipelineError when less than ``needed`` bytes are free where backups are kept."""
    statistics = os.statvfs(next(path for path in (directory, *directory.parents) if path.exists()))
    free = statistics.f_bavail * statistics.f_frsize
    if free < needed:
        raise PipelineError(
            f"{directory} has {free / 1e6:.0f} MB free; a backup of this store may take {needed / 1e6:.0f} MB. "
            "Make room, or set UUID_PIPELINE_HOME to a larger disk."
        )

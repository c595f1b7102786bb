"""Retention: maps, archives, history, dumps and reports that are older than the spec keeps them, and that nobody needs.

What an execution that is not finalized would need for its rollback is never among them, however old.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath
from typing import Any, Literal, LiteralString

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.spec import Retention

Kind = Literal["map", "archive", "history", "dump", "report"]
_TABLES: dict[Kind, LiteralString] = {"map": r"^(id_map|inventory)_.+_[0-9]+$", "archive": r"^archive_.+_[0-9]+$"}


@dataclass(frozen=True)
class Due:
    """One thing that is kept no longer: a table or a file by name, or rows of a table; ``rows`` None for files."""

    kind: Kind
    name: str
    since: datetime
    rows: int | None
    bytes: int


def due(connection: Connection, kept: Retention, home: Path, now: datetime | None = None) -> list[Due]:
    """What may go now, by the spec's days; changes nothing."""
    at = now or datetime.now(UTC)
    days: dict[Kind, int | None] = {
        "map": kept.maps_days, "archive": kept.archives_days, "history": kept.history_days,
        "dump": kept.dumps_days, "report": kept.reports_days,
    }  # fmt: skip
    before = {kind: at - timedelta(days=number) for kind, number in days.items() if number is not None}
    found: list[Due] = []
    for kind in _TABLES:
        if kind in before:
            found += _tables(connection, kind, before[kind])
    if "history" in before:
        found += _history(connection, before["history"])
    needed = _dumps_needed(connection)
    if "dump" in before:
        found += [one for one in _files("dump", home / "backups", before["dump"]) if not _is_needed(one, needed)]
    if "report" in before:
        found += _files("report", home / "reports", before["report"])
    return found


def apply(engine: Engine, kept: Retention, home: Path, run_id: str) -> list[Due]:
    """Remove what :func:`due` finds, tables and rows in one transaction, then files; says so in the audit.

    Raises RefusedError when another run writes.
    """
    with leases.held(engine, run_id) as (connection, lease), connection.begin():
        leases.hold(connection, lease)
        found = due(connection, kept, home)
        for one in found:
            if one.kind in _TABLES:
                # Waits for a reader of the table, but not for long: whoever comes next queues behind us.
                sql.execute(connection, "SET LOCAL lock_timeout = '5s'")
                drop = sql.compose("DROP TABLE {table}", table=sql.table(ledger.SCHEMA, one.name))
                sql.execute(connection, drop)
        if kept.history_days is not None:
            before = datetime.now(UTC) - timedelta(days=kept.history_days)
            for name, condition in _parts_of_history(connection):
                _delete(connection, name, condition, before)
        if found:
            ledger.audit(connection, "removed by retention", {"removed": [f"{one.kind} {one.name}" for one in found]})
    for one in found:
        if one.kind in ("dump", "report"):
            _remove(home / ("backups" if one.kind == "dump" else "reports") / one.name)
    return found


# The assessment's number ends a table's name. It may go when no execution that can still be rolled back has it, and
# when it was not made for a plan that may still be approved.
_ENDED = """
SELECT c.relname AS name, n.no, greatest(max(e.finished_at), a.started_at) AS since,
       pg_total_relation_size(c.oid) AS bytes
FROM pg_class c CROSS JOIN LATERAL (SELECT substring(c.relname FROM '_([0-9]+)$')::integer AS no) n
JOIN uuid_pipeline.assessments a ON a.assessment_no = n.no
LEFT JOIN uuid_pipeline.waves w ON w.assessment_no = n.no
LEFT JOIN uuid_pipeline.executions e ON e.assessment_no = n.no OR e.execution_id = w.execution_id
WHERE c.relnamespace = 'uuid_pipeline'::regnamespace AND c.relkind = 'r' AND c.relname ~ %(pattern)s
  AND (n.no <> (SELECT max(assessment_no) FROM uuid_pipeline.assessments WHERE kind = 'plan')
       OR EXISTS (SELECT FROM uuid_pipeline.executions x WHERE x.assessment_no = n.no))
GROUP BY c.oid, c.relname, n.no, a.started_at
HAVING coalesce(bool_and(e.status = 'finalized') FILTER (WHERE e.execution_id IS NOT NULL), true)
   AND greatest(max(e.finished_at), a.started_at) < %(before)s
ORDER BY 1
"""


def _tables(connection: Connection, kind: Kind, before: datetime) -> Iterator[Due]:
    for row in sql.rows(connection, _ENDED, {"pattern": _TABLES[kind], "before": before}):
        counted = sql.compose("SELECT count(*) FROM {table}", table=sql.table(ledger.SCHEMA, row.name))
        yield Due(kind, row.name, row.since, int(sql.scalar(connection, counted)), int(row.bytes))


# Journal and findings of what is over; that it was, who approved it and who ended it stays.
_OF_PLANS: LiteralString = """
t.assessment_no IS NOT NULL AND t.evaluated_at < %(before)s
AND t.assessment_no <> (SELECT max(assessment_no) FROM uuid_pipeline.assessments)
AND NOT EXISTS (SELECT FROM uuid_pipeline.executions e WHERE e.assessment_no = t.assessment_no
                AND e.status <> 'finalized')"""
_OF_ENDED: LiteralString = """
EXISTS (SELECT FROM uuid_pipeline.executions e WHERE e.execution_id = t.execution_id AND e.status = 'finalized'
        AND e.finished_at < %(before)s)"""
_HISTORY: dict[str, LiteralString] = {
    "batches": _OF_ENDED,
    "comparisons": _OF_ENDED,
    "fingerprints": _OF_ENDED,
    "repointed": _OF_ENDED,
    "unmoved": _OF_ENDED,
    "gates": f"({_OF_ENDED}) OR ({_OF_PLANS})",
    "health_ticks": "t.at < %(before)s",
    "guard_samples": "t.at < %(before)s",
}  # fmt: skip


def _parts_of_history(connection: Connection) -> Iterator[tuple[str, LiteralString]]:
    for name, condition in _HISTORY.items():
        if sql.scalar(connection, "SELECT to_regclass(%(name)s)", {"name": f"{ledger.SCHEMA}.{name}"}):
            yield name, condition


def _history(connection: Connection, before: datetime) -> Iterator[Due]:
    for name, condition in _parts_of_history(connection):
        statement = sql.compose(
            "SELECT count(*) AS n, coalesce(sum(pg_column_size(t)), 0) AS bytes FROM {table} t WHERE {condition}",
            table=sql.table(ledger.SCHEMA, name),
            condition=sql.Text(condition),
        )
        row = sql.rows(connection, statement, {"before": before})[0]
        if row.n:
            yield Due("history", name, before, int(row.n), int(row.bytes))


def _delete(connection: Connection, name: str, condition: LiteralString, before: datetime) -> None:
    statement = sql.compose(
        "DELETE FROM {table} t WHERE {condition}", table=sql.table(ledger.SCHEMA, name), condition=sql.Text(condition)
    )
    sql.execute(connection, statement, {"before": before})


def _dumps_needed(connection: Connection) -> tuple[datetime | None, frozenset[str]]:
    """Since when dumps are kept (the first approval that is not finalized), and those that approvals name."""
    oldest: Any = sql.scalar(
        connection, "SELECT min(approved_at) FROM uuid_pipeline.executions WHERE status <> 'finalized'"
    )
    if not sql.scalar(connection, "SELECT to_regclass('uuid_pipeline.backups')"):
        # Which dump an approval relied on is not known: one from before it may be.
        return datetime.min.replace(tzinfo=UTC) if oldest else None, frozenset()
    named = sql.rows(
        connection,
        """SELECT b.name FROM uuid_pipeline.backups b WHERE EXISTS (
               SELECT FROM uuid_pipeline.executions e
               WHERE e.execution_id = ANY(b.executions) AND e.status <> 'finalized')""",
    )
    # The ledger has the whole path, on the machine that made it.
    return oldest, frozenset(PurePath(row.name).name for row in named)


def _is_needed(one: Due, needed: tuple[datetime | None, frozenset[str]]) -> bool:
    since, names = needed
    return one.name in names or (since is not None and one.since >= since)


def _files(kind: Kind, directory: Path, before: datetime) -> Iterator[Due]:
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        parts = [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]
        last = max((part.stat().st_mtime for part in parts), default=path.stat().st_mtime)
        since = datetime.fromtimestamp(last, UTC)
        if since < before:
            yield Due(kind, path.name, since, None, sum(part.stat().st_size for part in parts))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""What other stages keep in the ledger for a report: retrieval, certificate, backup, rehearsal, health, guard.

A ledger that has not the table yet has nothing to say; neither is an error.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.planning import Plan

Record = dict[str, Any]

_RETRIEVAL = """
SELECT DISTINCT ON (phase) phase, figures FROM uuid_pipeline.retrieval_measurements
WHERE execution_id = %(execution)s AND wave IS NULL ORDER BY phase, measurement_no DESC
"""
# A batch that came after a certificate makes it one of another state of the store.
_CERTIFICATE = """
SELECT content FROM uuid_pipeline.certificates c WHERE execution_id = %(execution)s AND NOT EXISTS (
    SELECT FROM uuid_pipeline.batches b WHERE b.committed_at > (c.content->>'made_at')::timestamptz)
ORDER BY certificate_no DESC LIMIT 1
"""
_BACKUP = """
SELECT backup_no AS number, mode, name, bytes, sha256, tables, differences, restored_on, dump_seconds, restore_seconds,
       equal, taken_at, %(execution)s::text IS NOT NULL AND %(execution)s = ANY(executions) AS used
FROM uuid_pipeline.backups ORDER BY 13 DESC, backup_no DESC LIMIT 1
"""
_REHEARSAL = """
SELECT rehearsal_no AS number, users, documents, rows, ids, seconds, rollback_seconds, rehearsed_on, passed,
       differences, rehearsed_at
FROM uuid_pipeline.rehearsals WHERE spec_digest = %(spec)s AND catalog_digest = %(catalog)s
ORDER BY (documents > 0 OR NOT passed) DESC, rehearsal_no DESC LIMIT 1
"""
_HEALTH = """
SELECT c.check_name AS check, c.severity, c.passed, c.value, c.threshold, c.failing_since, c.finding, t.at
FROM uuid_pipeline.health_checks c JOIN uuid_pipeline.health_ticks t USING (tick_no)
WHERE t.tick_no = (SELECT max(tick_no) FROM uuid_pipeline.health_ticks) ORDER BY c.passed, c.check_name
"""
_GUARDS = "SELECT entity, mode, installed_at FROM uuid_pipeline.guards WHERE removed_at IS NULL ORDER BY entity"
_REQUESTS = """
SELECT count(*) AS queued, min(queued_at) AS since, min(queued_by) AS by
FROM uuid_pipeline.regenerations WHERE undone_at IS NULL
"""


def _records(connection: Connection, table: str, statement: str, **values: Any) -> list[Record]:
    if sql.scalar(connection, "SELECT to_regclass(%(t)s)", {"t": f"{ledger.SCHEMA}.{table}"}) is None:
        return []
    return [dict(row._mapping) for row in sql.rows(connection, sql.Text(statement), values)]


def retrieval(connection: Connection, execution: str) -> dict[str, Record]:
    """The newest measurement of the whole sample by phase: ``before`` and ``after``, where they were made."""
    found = _records(connection, "retrieval_measurements", _RETRIEVAL, execution=execution)
    return {row["phase"]: row["figures"] for row in found}


def certificate(connection: Connection, execution: str) -> Record | None:
    """The determinism certificate made since the last batch."""
    found = _records(connection, "certificates", _CERTIFICATE, execution=execution)
    content: Record | None = found[0]["content"] if found else None
    return content


def backup(connection: Connection, execution: str | None) -> Record | None:
    """The backup that an execution was approved with, else the newest; ``used`` says which of the two."""
    found = _records(connection, "backups", _BACKUP, execution=execution)
    return found[0] if found else None


def rehearsal(connection: Connection, plan: Plan) -> Record | None:
    """The newest rehearsal with this plan's spec and catalog, preferably one that had something to move."""
    digests = {"spec": plan.content["spec_digest"], "catalog": plan.content["catalog_digest"]}
    found = _records(connection, "rehearsals", _REHEARSAL, **digests)
    return found[0] if found else None


def health(connection: Connection) -> list[Record]:
    """Every check of the newest look at the store's health."""
    return _records(connection, "health_checks", _HEALTH)


def guards(connection: Connection) -> list[Record]:
    """The guards that stand now."""
    return _records(connection, "guards", _GUARDS)


def requests(connection: Connection) -> Record | None:
    """Documents queued for the application's workers and not taken back."""
    found = _records(connection, "regenerations", _REQUESTS)
    return found[0] if found and found[0]["queued"] else None


def of_profile(connection: Connection, assessment: int, part: str) -> Any:
    """One part of what an assessment's first stage found; None where it has none."""
    return sql.scalar(
        connection,
        "SELECT profile->%(part)s FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s",
        {"no": assessment, "part": part},
    )


@dataclass(frozen=True)
class Kept:
    """All of it, of one subject."""

    retrieval: dict[str, Record]
    certificate: Record | None
    backup: Record | None
    rehearsal: Record | None
    health: list[Record]
    guards: list[Record]
    requests: Record | None


def gather(connection: Connection, plan: Plan, execution: str | None) -> Kept:
    """Read everything that there is of a plan and its execution."""
    return Kept(
        retrieval(connection, execution) if execution else {},
        certificate(connection, execution) if execution else None,
        backup(connection, execution),
        rehearsal(connection, plan),
        health(connection),
        guards(connection),
        requests(connection),
    )

"""Rehearsal: the whole migration and its rollback on a restored copy, every row compared with the state before."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import catalog, ledger, sql
from uuid_pipeline.engine.altered import triggers
from uuid_pipeline.engine.backups import backup, backup_gate, backup_scope, dumping, pg_tools, portable
from uuid_pipeline.engine.backups.backup import Backup
from uuid_pipeline.engine.backups.backup_scope import Scope
from uuid_pipeline.engine.backups.pg_tools import Tools
from uuid_pipeline.engine.backups.portable import Portable
from uuid_pipeline.engine.backups.scratch import Scratch, scratch_database
from uuid_pipeline.engine.backups.workshop import Workshop
from uuid_pipeline.engine.batches.writing import Report
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.evaluators import Evaluators
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.planning import Plan
from uuid_pipeline.engine.rehearsals import rehearsal_sample, run_through
from uuid_pipeline.engine.rehearsals.run_through import RunThrough
from uuid_pipeline.engine.store import Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import PipelineError

GATE = "rehearsal_passed"


@dataclass(frozen=True)
class Rehearsal:
    """A recorded rehearsal; ``users`` is None when it was of all documents. ``gates`` names those that passed.

    ``rows`` were written on the way forward, in ``seconds``; ``ids`` of them are changed keys. ``differences`` are all
    reasons why it did not pass; ``left_out`` is what the copy lacked.
    """

    number: int
    backup_no: int
    spec_digest: str
    catalog_digest: str
    users: int | None
    documents: int
    rows: int
    ids: int
    seconds: float
    rollback_seconds: float
    tier: str
    rehearsed_on: str
    passed: bool
    gates: list[str]
    differences: list[str]
    left_out: list[str]
    rehearsed_at: datetime

    @property
    def rows_a_second(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class _State:
    """What a copy holds: its rows' fingerprints and its catalog."""

    tables: list[Portable]
    catalog: dict[str, str]


def rehearse(
    engine: Engine, store: Store, workshop: Workshop, evaluators: Evaluators, users: int | None, report: Report
) -> Rehearsal:
    """Rehearse on the newest valid dump, or on a new one, and record what came of it, also when it did not pass.

    ``users`` cuts the copy down to so many users' documents. Raises as :func:`backup.take`, and RefusedError when the
    spec does not say whose a document is.
    """
    if users is not None:
        rehearsal_sample.owner_column(store)
    with engine.begin() as connection:
        digest = catalog.digest(catalog.snapshot(connection, catalog.read_catalog(connection, store.spec.schema_name)))
        tier = triggers.choose(connection, store).name
    source = _backup(engine, store, workshop, digest)
    with backup.direct(engine, workshop.direct_url) as straight:
        with straight.begin() as connection:
            scope = backup_scope.choose(connection, store)
            version = int(sql.scalar(connection, "SELECT current_setting('server_version_num')"))
        tools = pg_tools.find(version, workshop.tools)
        with scratch_database(straight, workshop.fallback, scope.extensions) as made:
            complaints = _restore(tools, source, made, scope, store, users)
            expected = _proven(source) if users is None else []
            through, differences, seconds = _run(made, scope, store, evaluators, report, expected)
    left_out = [*scope.left_out, *complaints, *[f"extension {name}" for name in made.without]]
    if through.tier not in (tier, "unknown"):
        left_out.append(f"tier {tier}: the copy's server gives tier {through.tier}, and that was rehearsed")
    with engine.begin() as connection:
        return _record(connection, store, digest, source, users, through, differences, left_out, made, seconds)


def _backup(engine: Engine, store: Store, workshop: Workshop, digest: str) -> Backup:
    with engine.begin() as connection:
        found = backup.newest(connection, "dump")
        if found is not None and backup_gate.fault(connection, store, found, digest) is None:
            return found
    made = backup.take(engine, store, workshop)
    if not made.equal:
        raise PipelineError(
            f"Backup {made.number} was restored and differs, so there is nothing to rehearse on: "
            + "; ".join(made.differences[:5])
        )
    return made


def _restore(
    tools: Tools, source: Backup, made: Scratch, scope: Scope, store: Store, users: int | None
) -> tuple[str, ...]:
    """The copy, whole or cut down before its indexes and constraints are made; what could not be made."""
    path = Path(source.name)
    if users is None:
        complaints = dumping.restore(tools, path, made, scope).complaints
    else:
        dumping.restore(tools, path, made, scope, ("pre-data", "data"))
        with _opened(made) as copy, copy.begin() as connection:
            rehearsal_sample.cut(connection, store, users)
        complaints = dumping.restore(tools, path, made, scope, ("post-data",)).complaints
    with _opened(made) as copy, copy.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        sql.execute(connection, "ANALYZE")
    return complaints


@contextmanager
def _opened(made: Scratch) -> Iterator[Engine]:
    copy = open_store(made.url)
    try:
        yield copy
    finally:
        copy.dispose()


def _proven(source: Backup) -> list[Portable]:
    """What a whole copy of this backup holds."""
    return [Portable(table["table"], int(table["rows"]), int(table["digest"])) for table in source.tables]


def _run(
    made: Scratch, scope: Scope, store: Store, evaluators: Evaluators, report: Report, expected: list[Portable]
) -> tuple[RunThrough, list[str], tuple[float, float]]:
    """There and back on a copy that holds what is expected; why it did not pass, and the seconds of each way."""
    with _opened(made) as copy:
        before = _look(copy, scope, store)
        differences = [f"before the rehearsal {said}" for said in portable.differences(expected, before.tables)]
        through = RunThrough(copy, run_through.spec_of_copy(store.spec), evaluators, report)
        for way in (through.forward, through.backward):
            try:
                way()
            except PipelineError as error:
                differences.append(error.message)
            except DBAPIError as error:
                differences.append(f"The copy refused a statement: {str(error.orig).strip()}")
            reach("rehearsed")
        after = _look(copy, scope, store)
    differences += [f"after the rollback {said}" for said in portable.differences(before.tables, after.tables)]
    differences += [f"after the rollback {said}" for said in catalog.differences(before.catalog, after.catalog)]
    seconds = sum(run.seconds for run in through.runs), sum(run.seconds for run in through.back)
    return through, differences, seconds


def _look(copy: Engine, scope: Scope, store: Store) -> _State:
    with copy.begin() as connection:
        found = catalog.snapshot(connection, catalog.read_catalog(connection, store.spec.schema_name))
        tables = [portable.of_table(connection, recipe) for recipe in scope.recipes]
    return _State(tables, found)


def _record(
    connection: Connection, store: Store, digest: str, source: Backup, users: int | None, through: RunThrough,
    differences: list[str], left_out: list[str], made: Scratch, seconds: tuple[float, float],
) -> Rehearsal:  # fmt: skip
    number = sql.scalar(
        connection,
        """INSERT INTO uuid_pipeline.rehearsals
               (backup_no, spec_digest, catalog_digest, users, documents, rows, ids, seconds, rollback_seconds, tier,
                rehearsed_on, passed, gates, differences, left_out)
           VALUES (%(backup)s, %(spec)s, %(catalog)s, %(users)s, %(documents)s, %(rows)s, %(ids)s, %(seconds)s,
                   %(back)s, %(tier)s, %(where)s, %(passed)s, %(gates)s::jsonb, %(differences)s::jsonb,
                   %(left_out)s::jsonb) RETURNING rehearsal_no""",
        {
            "backup": source.number, "spec": store.spec.digest, "catalog": digest, "users": users,
            "documents": through.documents, "rows": through.rows, "ids": through.ids, "seconds": seconds[0],
            "back": seconds[1], "tier": through.tier, "where": made.where, "passed": not differences,
            "gates": json.dumps(through.passed), "differences": json.dumps(differences),
            "left_out": json.dumps(left_out),
        },
    )  # fmt: skip
    ledger.audit(connection, "rehearsed", {"rehearsal": number, "passed": not differences})
    return Rehearsal(*sql.rows(connection, _REHEARSALS + " WHERE rehearsal_no = %(no)s", {"no": number})[0])


_REHEARSALS = """
SELECT rehearsal_no, backup_no, spec_digest, catalog_digest, users, documents, rows, ids, seconds, rollback_seconds,
       tier, rehearsed_on, passed, gates, differences, left_out, rehearsed_at
FROM uuid_pipeline.rehearsals
"""


def newest(connection: Connection) -> Rehearsal | None:
    """The rehearsal recorded last, passed or not."""
    found = sql.rows(connection, _REHEARSALS + " ORDER BY rehearsal_no DESC LIMIT 1")
    return Rehearsal(*found[0]) if found else None


def passed(connection: Connection, store: Store, plan: Plan) -> GateResult:
    """Gate: where the spec requires one, the newest rehearsal is of this spec and catalog, large enough, and passed."""
    asked = store.spec.rehearsal
    if not asked.required:
        return GateResult.of(GATE, True, "not asked for", "")
    if plan.nothing_to_do:
        return GateResult.of(GATE, True, "nothing is to be moved, so there is nothing to rehearse", "")
    found = newest(connection)
    wrong = _fault(found, asked.users, plan.content)
    if found is None or wrong is not None:
        return GateResult.of(GATE, False, str(wrong), "rehearse (uuid-pipeline rehearse), then plan again")
    figures = {"rows": found.rows, "seconds": found.seconds, "rows_a_second": found.rows_a_second}
    return GateResult.of(GATE, True, described(found), "", figures)


def _fault(found: Rehearsal | None, users: int | None, content: dict[str, Any]) -> str | None:
    if found is None or not found.documents:
        was = "there was none" if found is None else f"rehearsal {found.number} was of no document"
        return f"the spec requires a rehearsal, and {was}"
    if not found.passed:
        return f"{described(found)}: {'; '.join(found.differences[:3])}"
    if found.spec_digest != content["spec_digest"]:
        return f"rehearsal {found.number} was of another spec"
    if found.catalog_digest != content["catalog_digest"]:
        return (
            f"rehearsal {found.number} was of another catalog: tables, constraints, triggers or the like changed since"
        )
    if found.users is not None and (users is None or found.users < users):
        wanted = "all" if users is None else f"{users}"
        return f"rehearsal {found.number} was of {found.users} users' documents; the spec asks for {wanted}"
    return None


def described(found: Rehearsal) -> str:
    """A rehearsal in one line."""
    if found.passed and not found.documents:
        return (
            f"rehearsal {found.number} of {found.rehearsed_at:%Y-%m-%d %H:%M} UTC on {found.rehearsed_on} moved "
            "nothing: no document is due"
        )
    whose = "all documents" if found.users is None else f"{found.users} users' documents"
    verdict = "passed, every row as before after the rollback" if found.passed else "did NOT pass"
    return (
        f"rehearsal {found.number} of {found.rehearsed_at:%Y-%m-%d %H:%M} UTC on {whose} ({found.documents}), on "
        f"{found.rehearsed_on}: {found.rows} rows in {found.seconds:.1f} s, back in {found.rollback_seconds:.1f} s; "
        f"{verdict}"
    )

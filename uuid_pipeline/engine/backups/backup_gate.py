"""What the spec asks of a backup, and whether there is one: for the plan, at approval, and before the first wave."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import ledger, mapping, sql
from uuid_pipeline.engine.backups import backup
from uuid_pipeline.engine.backups.backup import Backup
from uuid_pipeline.engine.backups.dumping import sha256
from uuid_pipeline.engine.backups.workshop import Workshop
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.spec import BackupMode

GATE = "backup_as_asked"
ATTEST = "--attest NAME --attested-at TIME"
RISKS: dict[BackupMode, tuple[str, ...]] = {
    "dump": (),
    "attested": ("the backup is attested: named by a person, and neither restored nor compared here",),
    "none": (
        "no backup: the spec says `backup: none`; what neither a batch's proof nor a rollback mends cannot be restored",
    ),
}


@dataclass(frozen=True)
class Attestation:
    """A provider's snapshot as a person names it; ``at`` with its time zone."""

    name: str
    at: datetime


def attestation(name: str | None, at: str | None) -> Attestation | None:
    """Read what a person gave; None when nothing was. A time without a zone is UTC.

    Raises UsageError when only one of the two is there, or the time is none.
    """
    name, at = (name or "").strip(), (at or "").strip()
    if not name and not at:
        return None
    if not name or not at:
        raise UsageError(f"A snapshot is attested by its name and its time: {ATTEST}.")
    try:
        moment = datetime.fromisoformat(at)
    except ValueError as error:
        raise UsageError(f"{at!r} is no time. Write it as 2026-05-01T14:30Z (a time without a zone is UTC).") from error
    return Attestation(name, moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def approve_command(plan_id: str, mode: str) -> str:
    """What a person types to approve a plan; ``mode`` is the plan's own kind of backup."""
    return f"uuid-pipeline approve {plan_id}" + (f" {ATTEST}" if mode == "attested" else "")


def risks(store: Store) -> tuple[str, ...]:
    """What the plan, and approval again, must say of this spec's backup."""
    return RISKS[store.spec.backup]


def needed(connection: Connection, store: Store, assessment: int) -> bool:
    """Whether the id map of an assessment changes or merges anything at all."""
    found = (mapping.moves(connection, store, assessment), mapping.merges(connection, store, assessment))
    return any(sum(counts.values()) for counts in found)


def ensure(engine: Engine, store: Store, assessment: ledger.Assessment, workshop: Workshop) -> Backup | None:
    """The backup that the spec asks for: a valid one that is there, else a new one; None where none is to be made.

    Raises as :func:`backup.take`.
    """
    with engine.begin() as connection:
        if store.spec.backup != "dump" or not needed(connection, store, assessment.assessment_no):
            return None
        found = backup.newest(connection, "dump")
        if found is not None and fault(connection, store, found, assessment.catalog_digest) is None:
            return found
    return backup.take(engine, store, workshop)


def fault(connection: Connection, store: Store, found: Backup, catalog_digest: str) -> str | None:
    """Why a dump does not do for a plan of this catalog; None when it does. Reads the file whole."""
    if not found.equal:
        return f"backup {found.number} was restored and differs: {'; '.join(found.differences[:5])}"
    return (
        _too_old(connection, store, found.taken_at, f"backup {found.number}")
        or _moved_since(connection, found.taken_at, f"backup {found.number}")
        or (
            f"backup {found.number} is of another catalog: tables, constraints, indexes, triggers, policies or grants "
            "changed since"
            if found.catalog_digest != catalog_digest
            else None
        )
        or _file_fault(found)
    )


def _file_fault(found: Backup) -> str | None:
    path = Path(found.name)
    if not path.is_file():
        return f"the file {path} of backup {found.number}, made on {found.machine}, is not there"
    if path.stat().st_size != found.bytes or sha256(path) != found.sha256:
        return f"the file {path} is not as backup {found.number} was proven: its size or digest changed"
    return None


def _too_old(connection: Connection, store: Store, taken_at: datetime, what: str) -> str | None:
    hours = store.spec.backup_max_age_hours
    age = _now(connection) - taken_at
    if age <= timedelta(hours=hours):
        return None
    return f"{what} is of {taken_at:%Y-%m-%d %H:%M} UTC, {_hours(age)} old; the spec allows {hours:g} hours"


def _moved_since(connection: Connection, taken_at: datetime, what: str) -> str | None:
    moved = sql.scalar(
        connection,
        "SELECT EXISTS (SELECT FROM uuid_pipeline.batches WHERE committed_at > %(at)s)",
        {"at": taken_at},
    )
    return f"ids were changed or rolled back since {what} was taken" if moved else None


def _now(connection: Connection) -> datetime:
    # The store's clock: taken_at was read from it.
    return sql.scalar(connection, "SELECT clock_timestamp()")  # type: ignore[no-any-return]


def _hours(age: timedelta) -> str:
    return f"{age.total_seconds() / 3600:.1f} hours"


def as_asked(connection: Connection, store: Store, assessment: ledger.Assessment) -> GateResult:
    """Gate: the backup that the spec asks for is there, restored and equal, young enough, its file as it was."""
    mode = store.spec.backup
    if mode == "none":
        return GateResult.of(GATE, True, "the spec asks for none; the plan says so as a risk", "")
    if not needed(connection, store, assessment.assessment_no):
        return GateResult.of(GATE, True, "none is needed: nothing is to be moved or merged", "")
    if mode == "attested":
        return GateResult.of(GATE, True, f"a provider's snapshot, to be named at approval ({ATTEST})", "")
    found = backup.newest(connection, "dump")
    wrong = "there is no backup" if found is None else fault(connection, store, found, assessment.catalog_digest)
    if found is None or wrong is not None:
        return GateResult.of(GATE, False, str(wrong), remedy(found))
    age = _now(connection) - found.taken_at
    figures = {
        "bytes": float(found.bytes or 0), "dump_seconds": found.dump_seconds or 0.0,
        "restore_seconds": found.restore_seconds or 0.0, "tables": len(found.tables), "rows": found.rows,
        "age_hours": round(age.total_seconds() / 3600, 3),
    }  # fmt: skip
    return GateResult.of(GATE, True, described(found), "", figures)


def remedy(found: Backup | None) -> str:
    """What to do about a dump that does not do."""
    if found is not None and not found.equal:
        return "look at the differences (uuid-pipeline backup --json says them all), then: uuid-pipeline backup"
    return "take a new one: uuid-pipeline backup"


def described(found: Backup) -> str:
    """A dump in one line."""
    verdict = "equal" if found.equal else "NOT equal"
    left = f"; left out: {'; '.join(found.left_out)}" if found.left_out else ""
    return (
        f"backup {found.number} of {found.taken_at:%Y-%m-%d %H:%M} UTC: {(found.bytes or 0) / 1e6:.2f} MB, restored on "
        f"{found.restored_on} in {found.restore_seconds or 0:.1f} s, {len(found.tables)} tables and {found.rows} rows "
        f"{verdict}{left}"
    )


def at_approval(
    connection: Connection, store: Store, catalog_digest: str, given: Attestation | None
) -> Callable[[str], None]:
    """Raise RefusedError unless the backup is as the spec asks now; gives what records it for an execution.

    Raises UsageError for an attestation that the spec has no use for.
    """
    mode = store.spec.backup
    if given is not None:
        _require_use_of_attestation(store)
    if mode == "attested":
        attested = _require_attested(connection, store, given)
        return lambda execution: _record_attested(connection, attested, execution)
    if mode == "dump":
        number = _require_dump(connection, store, catalog_digest, "approval").number
        return lambda execution: _use(connection, number, execution)
    return lambda _execution: None


def attest_anew(connection: Connection, store: Store, given: Attestation, execution: str) -> None:
    """Note another snapshot for an execution that was approved with one; it counts from here on.

    Raises as :func:`at_approval` does.
    """
    _require_use_of_attestation(store)
    used = of_execution(connection, execution)
    if used is None or (used.name, used.taken_at) != (given.name, given.at):
        _record_attested(connection, _require_attested(connection, store, given), execution)


def _require_use_of_attestation(store: Store) -> None:
    if store.spec.backup != "attested":
        raise UsageError(
            f"The spec says `backup: {store.spec.backup}`; it takes no --attest. Leave it out, or change the spec."
        )


def _require_dump(connection: Connection, store: Store, catalog_digest: str, before: str) -> Backup:
    found = backup.newest(connection, "dump")
    wrong = "there is no backup" if found is None else fault(connection, store, found, catalog_digest)
    if found is None or wrong is not None:
        raise RefusedError(f"Refused: {before} needs a backup, and {wrong}. Remedy: {remedy(found)}")
    return found


def _require_attested(connection: Connection, store: Store, given: Attestation | None) -> Attestation:
    if given is None:
        raise RefusedError(
            f"Refused: the spec says `backup: attested`. Name your provider's snapshot and when it was taken: {ATTEST}"
        )
    if given.at > _now(connection):
        raise RefusedError(f"Refused: snapshot {given.name} is said to be of {given.at}, which is in the future.")
    what = f"snapshot {given.name}"
    wrong = _too_old(connection, store, given.at.astimezone(UTC), what) or _moved_since(connection, given.at, what)
    if wrong is not None:
        raise RefusedError(f"Refused: {wrong}. Take a new snapshot and name that one.")
    return given


def _record_attested(connection: Connection, given: Attestation, execution: str) -> None:
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.backups (mode, name, taken_at, recorded_by, executions)
           VALUES ('attested', %(name)s, %(at)s, %(actor)s, ARRAY[%(execution)s])""",
        {"name": given.name, "at": given.at, "actor": ledger.actor(), "execution": execution},
    )


def _use(connection: Connection, number: int, execution: str) -> None:
    sql.execute(
        connection,
        "UPDATE uuid_pipeline.backups SET executions = executions || %(execution)s::text WHERE backup_no = %(no)s",
        {"no": number, "execution": execution},
    )


def of_execution(connection: Connection, execution: str) -> Backup | None:
    """The backup that an execution was approved with; None where the spec asked for none."""
    found = sql.scalar(
        connection,
        "SELECT max(backup_no) FROM uuid_pipeline.backups WHERE %(execution)s = ANY(executions)",
        {"execution": execution},
    )
    return backup.of_number(connection, found) if found is not None else None


def require_before_first_wave(
    connection: Connection, store: Store, execution: ledger.Execution, catalog_digest: str
) -> None:
    """Raise RefusedError when the backup has grown too old since approval, or its file is not as it was.

    A newer dump than the one approved with does as well. On another machine than the one that holds the file only the
    ledger can be asked; approval read the file itself.
    """
    mode, before = store.spec.backup, f"the first wave of {execution.execution_id}"
    if mode == "dump":
        used = backup.newest(connection, "dump")
        if used is not None and used.machine != backup.machine() and not Path(used.name).exists():
            wrong = _too_old(connection, store, used.taken_at, f"backup {used.number}")
            if wrong is not None:
                raise RefusedError(f"Refused: {before} needs a backup, and {wrong}. Remedy: {remedy(used)}")
            return
        number = _require_dump(connection, store, catalog_digest, before).number
        _use(connection, number, execution.execution_id)
    if mode == "attested":
        used = of_execution(connection, execution.execution_id)
        wrong = (
            "none was attested"
            if used is None
            else _too_old(connection, store, used.taken_at, f"the attested snapshot {used.name}")
        )
        if wrong is not None:
            raise RefusedError(
                f"Refused: {before} needs a backup, and {wrong}. Take a new snapshot, and approve the plan with it: "
                f"{approve_command(execution.plan_id, mode)}"
            )
